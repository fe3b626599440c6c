"""`control` and `faults` of a scenario: how the cluster is steered, and what goes wrong."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from deploy.suggestions import did_you_mean
from deploy.yaml_documents import Fields
from scaler.simulator.scenario import Control, Fault

CONTROL_KEYS = ("optimizer", "options", "interval_s", "time_s", "forecast", "binding", "batching", "admission", "shares")
WORDS = {"binding": ("late", "early"), "batching": ("headrace", "proteus", "nexus", "aimd"), "shares": ("both", "plan", "load")}
FAULT_KEYS = ("kind", "at_s", "lasts_s", "target", "factor", "skew_ms", "part")
FAULT_FIELDS = {
    "worker": ("target",),
    "dispatcher": ("target",),
    "planner": (),
    "slow": ("target", "factor"),
    "skew": ("target", "skew_ms"),
    "duplicates": ("part",),
    "delays": ("part", "factor"),
    "load": ("target",),
}
"""Kind of fault -> what it takes beside `at_s` and `lasts_s`."""
SECONDS_MAX = 1e7
FORECAST = "calibrated"
"""Where a scenario names none: it scores best on the traces (docs/forecasts.md)."""


def read_control(fields: Fields, optimizers: Iterable[str], forecasts: Iterable[str]) -> Control:
    """How the cluster is steered; names are checked against those known."""
    options = fields.mapping("options", "`options`", None)
    numbers = {} if options is None else {name: options.number(name, -1e12, 1e12) for name in options.keys()}  # noqa: SIM118 - not a mapping
    stated: dict[str, Any] = {
        "optimizer": _word(fields, "optimizer", optimizers),
        "options": {name: value for name, value in numbers.items() if value is not None},
        "interval_s": fields.number("interval_s", 0.01, SECONDS_MAX),
        "time_s": fields.number("time_s", 0.001, 3_600.0),
        "forecast": _word(fields, "forecast", forecasts) or FORECAST,
        "admission": fields.flag("admission"),
    }
    stated |= {key: _word(fields, key, known) for key, known in WORDS.items()}
    return msgspec.convert({key: value for key, value in stated.items() if value is not None}, Control)


def read_fault(fields: Fields) -> Fault | None:
    """One thing that goes wrong; None where it cannot be told what."""
    kind = _word(fields, "kind", FAULT_FIELDS)
    for key in ("kind", "at_s"):
        if key not in fields:
            fields.missing(key)
    if kind is None:
        return None
    own = ("kind", "at_s", "lasts_s", *FAULT_FIELDS[kind])
    for key in fields.keys():  # noqa: SIM118 - not a mapping
        if key not in own:
            fields.problem(key, f"`{key}` says nothing of a fault of kind {kind!r}, which takes {', '.join(own)}")
    stated: dict[str, Any] = {
        "kind": kind,
        "at_s": fields.number("at_s", 0.0, SECONDS_MAX),
        "lasts_s": fields.number("lasts_s", 0.0, SECONDS_MAX),
        "target": fields.text("target"),
        "factor": fields.number("factor", 1e-3, 1e4),
        "skew_ms": fields.number("skew_ms", -1e9, 1e9),
        "part": fields.number("part", 0.0, 1.0),
    }
    kept = {key: value for key, value in stated.items() if value is not None}
    return msgspec.convert({"at_s": 0.0} | kept, Fault)


def _word(fields: Fields, key: str, known: Iterable[str]) -> str | None:
    word = fields.text(key)
    if word is None or word in known:
        return word
    fields.problem(key, f"unknown {key} {word!r}{did_you_mean(word, known)}")
    return None

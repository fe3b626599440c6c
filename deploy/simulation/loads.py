"""`loads` of a scenario: to which endpoint requests come, when, how accurate and by when they are wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from deploy.simulation.models import ModelReader
from deploy.suggestions import did_you_mean
from deploy.yaml_documents import Fields
from scaler.simulator.scenario import Arrivals, Choice, Load
from schemas.catalog import Catalog

LOAD_KEYS = ("endpoint", "arrivals", "floors", "timeouts_ms", "tenants", "rows", "fan_out", "branches")
FIELDS_OF = {
    "constant": ("rate_rps",),
    "poisson": ("rate_rps",),
    "gamma": ("rate_rps", "cv"),
    "mmpp": ("rates_rps", "hold_s"),
    "diurnal": ("rate_rps", "period_s", "amplitude"),
    "flash": ("rate_rps", "peak", "at_s", "lasts_s"),
    "steps": ("rates_rps", "hold_s"),
    "trace": ("trace", "column", "speed", "rate_rps"),
}
"""Kind of arrivals -> what is said beside it."""
EVERY_FIELD = tuple(dict.fromkeys(field for fields in FIELDS_OF.values() for field in fields))
RATE_RPS_MAX, SECONDS_MAX, FACTOR_MAX, TIMEOUT_MS_MAX, ROWS_MAX = 1e7, 1e7, 1e4, 86_400_000.0, 4_096
SMALLEST = 1e-6
RANGES = {
    "rate_rps": (SMALLEST, RATE_RPS_MAX),
    "cv": (0.01, 100.0),
    "hold_s": (0.001, SECONDS_MAX),
    "period_s": (0.001, SECONDS_MAX),
    "amplitude": (0.0, 1.0),
    "peak": (1.0, FACTOR_MAX),
    "at_s": (0.0, SECONDS_MAX),
    "lasts_s": (0.001, SECONDS_MAX),
    "speed": (SMALLEST, 1e6),
}
CheckTrace = Callable[[str, str], str]
"""Reads a trace by file or name, with its column; returns where it comes from. Raises HeadraceError where it is none."""


def read_loads(fields: Fields, models: ModelReader) -> tuple[Load, ...]:
    """By name, which is the endpoint's unless it states another. What is wrong is reported and left out."""
    catalog = models.catalog
    loads: list[Load] = []
    for name in fields.keys():  # noqa: SIM118 - not a mapping
        inner = fields.mapping(name, f"load {name!r}", (*LOAD_KEYS, *EVERY_FIELD))
        if inner is None:
            continue
        endpoint = inner.text("endpoint") if "endpoint" in inner else name
        if endpoint is not None and endpoint not in catalog.endpoints:
            where, key = (inner, "endpoint") if "endpoint" in inner else (fields, name)
            where.problem(key, f"no endpoint {endpoint!r} among the models{did_you_mean(endpoint, catalog.endpoints)}")
        arrivals = _arrivals(inner)
        loads.append(
            Load(
                endpoint=endpoint or name,
                arrivals=arrivals,
                floors=_choices(inner, "floors", 0.0, 1.0) or (Choice(_default_floor(catalog, endpoint)),),
                timeouts_ms=_choices(inner, "timeouts_ms", 1.0, TIMEOUT_MS_MAX) or (Choice(_default_timeout(catalog, endpoint)),),
                tenants=weights(inner, "tenants"),
                rows=inner.integer("rows", 1, ROWS_MAX) or 1,
                fan_out=_tables(inner, "fan_out", 0.0, float(ROWS_MAX)) or models.fan_out.get(endpoint or "", {}),
                branches=_tables(inner, "branches", 0.0, 1.0) or models.branches.get(endpoint or "", {}),
            )
        )
    return tuple(loads)


def _default_floor(catalog: Catalog, endpoint: str | None) -> float:
    spec = catalog.endpoints.get(endpoint or "")
    return 0.0 if spec is None else spec.defaults.min_accuracy


def _default_timeout(catalog: Catalog, endpoint: str | None) -> float:
    spec = catalog.endpoints.get(endpoint or "")
    return 1_000.0 if spec is None else float(spec.defaults.timeout_ms)


def _arrivals(fields: Fields) -> Arrivals:
    kind = fields.text("arrivals") or ("trace" if "trace" in fields else "poisson")
    if kind not in FIELDS_OF:
        fields.problem("arrivals", f"unknown arrivals {kind!r}{did_you_mean(kind, FIELDS_OF)}")
        return Arrivals()
    own = FIELDS_OF[kind]
    for key in fields.keys():  # noqa: SIM118 - not a mapping
        if key in EVERY_FIELD and key not in own:
            fields.problem(key, f"`{key}` says nothing of {kind} arrivals, which take {_listed(own)}")
    for key in own[:1]:
        if key not in fields:
            fields.problem("arrivals", f"{kind} arrivals need `{key}`")
    stated: dict[str, object] = {key: fields.number(key, *RANGES[key]) for key in own if key in RANGES and key != "rate_rps"}
    if "rate_rps" in own:
        # A trace without a rate runs as it was recorded.
        stated["rate_rps"] = _rate(fields) if "rate_rps" in fields else 0.0
    if "rates_rps" in fields:
        stated["rates_rps"] = _rates(fields)
    if kind == "trace":
        stated |= {"file": trace_file(fields), "column": fields.text("column")}
    return msgspec.convert({"kind": kind} | {key: value for key, value in stated.items() if value is not None}, Arrivals)


def trace_file(fields: Fields) -> str:
    """A file beside the scenario's, or the name of a known trace."""
    stated = fields.text("trace") or ""
    beside = fields.source.path.parent / stated
    return str(beside) if beside.exists() else stated


def _rate(fields: Fields) -> float | None:
    rate_rps = fields.number("rate_rps", -RATE_RPS_MAX, RATE_RPS_MAX)
    if rate_rps is not None and rate_rps < SMALLEST:
        fields.problem("rate_rps", f"`rate_rps` of {fields.what} is {rate_rps:g}: a rate is above 0; leave the load out where nothing comes")
        return None
    return rate_rps


def _rates(fields: Fields) -> tuple[float, ...] | None:
    rates = fields.numbers("rates_rps")
    if rates is None:
        return None
    if not rates or min(rates) < 0.0 or max(rates) < SMALLEST or max(rates) > RATE_RPS_MAX:
        fields.problem("rates_rps", f"`rates_rps` of {fields.what} is a list of rates from 0 to {RATE_RPS_MAX:g}, at least one of them above 0")
        return None
    return tuple(rates)


def _choices(fields: Fields, key: str, low: float, high: float) -> tuple[Choice, ...]:
    """One number, a list of equally likely ones, or numbers with weights."""
    if key not in fields:
        return ()
    if fields.is_mapping(key):
        found = [(_as_number(fields, key, value, low, high), weight) for value, weight in weights(fields, key).items()]
        return tuple(Choice(value, weight) for value, weight in found if value is not None)
    if not isinstance(fields.value(key), list):
        one = fields.number(key, low, high)
        return () if one is None else (Choice(one),)
    values = fields.numbers(key) or []
    if any(not low <= value <= high for value in values):
        fields.problem(key, f"`{key}` of {fields.what} lie in {low:g}..{high:g}")
        return ()
    return tuple(Choice(value) for value in values)


def _as_number(fields: Fields, key: str, text: str, low: float, high: float) -> float | None:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if low <= value <= high:
        return value
    fields.problem(key, f"{text!r} in `{key}` of {fields.what} is no number in {low:g}..{high:g}")
    return None


def weights(fields: Fields, key: str) -> dict[str, float]:
    """Positive weights by name."""
    inner = fields.mapping(key, f"`{key}` of {fields.what}", None)
    found = {} if inner is None else {name: inner.number(name, 0.0, 1e9) for name in inner.keys()}  # noqa: SIM118 - not a mapping
    if found and not any(found.values()):
        fields.problem(key, f"`{key}` of {fields.what} has no weight above 0")
    return {name: weight for name, weight in found.items() if weight}


def _tables(fields: Fields, key: str, low: float, high: float) -> dict[str, dict[str, float]]:
    inner = fields.mapping(key, f"`{key}` of {fields.what}", None)
    found: dict[str, dict[str, float]] = {}
    for name in [] if inner is None else inner.keys():
        assert inner is not None
        row = inner.mapping(name, f"`{name}` in `{key}`", None)
        if row is None:
            continue
        values = {column: row.number(column, low, high) for column in row.keys()}  # noqa: SIM118 - not a mapping
        found[name] = {column: value for column, value in values.items() if value is not None}
    return found


def _listed(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)

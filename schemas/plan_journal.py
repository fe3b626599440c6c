"""The plan's history: what the leading scaler decided, when and why, as JSON records in {p}.plan-history."""

from __future__ import annotations

import msgspec

from schemas.decoding import strict
from schemas.plan import Plan

JOURNAL_VERSION = 1
PUBLISHED, STEP, KEPT, INVALID, FAILED_TO_PLAN = "published", "step", "kept", "invalid", "failed"
LED, PINNED, UNPINNED, SWITCHED, MENDED = "led", "pinned", "unpinned", "switched", "mended"
PUBLISHING = (PUBLISHED, STEP, MENDED)
"""Kinds that carry a plan."""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Why a proposal is what it is."""

    status: str
    """optimal, feasible (time ran out, or a heuristic), fallback (a simpler rule decided) or infeasible (demand had to be cut)."""
    objective: float = 0.0
    """In the optimizer's own unit, named in `bound_by` or its documentation."""
    gap: float | None = None
    """Relative distance to the best bound, where a solver knows one."""
    bound_by: tuple[str, ...] = ()
    """What kept it from being better, most important first: "cpu workers are full", "floor 0.93 of shop leaves one variant"."""
    served: dict[str, float] = {}
    """By endpoint: the part of its forecast that this plan can serve in time."""
    accuracy: dict[str, float] = {}
    """By endpoint: effective accuracy (served) that this plan expects."""
    load: dict[str, float] = {}
    """By worker type: the part of its capacity that is used."""


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """The hysteresis and the cool-downs that a decision was made under."""

    interval_ms: float
    """Between periodic plans."""
    cool_down_ms: float
    """Least time between two plans."""
    attainment_cool_down_ms: float
    """Between plans for attainment alone."""
    attainment_target: float
    demand_margin: float
    """A rate this part above what was planned for has shifted."""
    gain_min: float
    """What a plan must bring beyond its cost, or the present one stays."""


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """What was planned for at one endpoint."""

    rate_rps: float
    forecast_rps: float
    attainment: float
    lag: int = 0


class PlanDecision(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `headrace plan history`."""

    at_ms: float
    scaler: str
    epoch: int
    """Of the plan in force afterwards."""
    kind: str
    """published, step (of a rebinding), kept (the present plan is as good), invalid or failed (the present plan stays);
    led (a scaler took over), pinned, unpinned, switched (another optimizer), mended (the plan written again over a stale one)."""
    trigger: str = ""
    """Why a plan was to be made."""
    reason: str = ""
    """Why it ended so."""
    optimizer: str = ""
    failures: tuple[str, ...] = ()
    """Of optimizers that were asked before."""
    loads: int = 0
    """Loads of variants that the plan costs."""
    proposed_ms: float = 0.0
    """How long the optimizer took."""
    demand: dict[str, Forecast] = {}
    left_out: dict[str, str] = {}
    """What was not planned with, and why: a worker that flaps, or `worker: variant` where that could not be made ready (quarantined)."""
    actuator: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    """By class whose workers somebody can start and stop: how many are wanted, and why."""
    explanation: Explanation | None = None
    plan: Plan | None = None
    """What was published."""
    rules: Rules | None = None
    version: int = JOURNAL_VERSION


_encoder = msgspec.json.Encoder()
_decode = strict(msgspec.json.Decoder(PlanDecision).decode)


def encode_decision(decision: PlanDecision) -> bytes:
    """The value of a record in {p}.plan-history."""
    return _encoder.encode(decision)


def decode_decision(value: bytes) -> PlanDecision:
    """Raises msgspec.DecodeError (or ValidationError) for what is not a decision."""
    return _decode(value)

"""Golden records of the control loop: the plan, its history, what people tell the loop, and what a leader says of itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from schemas.control import ControlSpec, decode_control, encode_control
from schemas.learned_costs import LearnedCost, LearnedCosts, decode_learned_costs, encode_learned_costs
from schemas.plan import Binding, Plan, decode_plan, encode_plan
from schemas.plan_journal import Explanation, Forecast, PlanDecision, Rules, decode_decision, encode_decision
from schemas.profile import Latency
from schemas.telemetry import ScalerReport, decode_reported, encode_telemetry

PLAN = Plan(
    epoch=8,
    bindings=(Binding(worker="worker-cpu-0", accelerator="cpu", lane=0, variants=("fashion/wide", "fashion/tiny"), batch_size_max=16, threads=2),),
    shares={"fashion": {"fashion/wide": 0.75, "fashion/tiny": 0.25}},
    planner="scaler-1",
    optimizer="headrace",
    reason="every 10 s: serves 99.0% of the forecast, now 80.0%; 1 loads cost 0.1% of the workers' time",
    made_ms=1_700_000_000_000,
)
DECISION = PlanDecision(
    at_ms=1_700_000_000_000.0,
    scaler="scaler-1",
    epoch=8,
    kind="published",
    trigger="every 10 s",
    reason="serves 99.0% of the forecast, now 80.0%; 1 loads cost 0.1% of the workers' time",
    optimizer="headrace",
    failures=("loki late: no proposal after 2 s",),
    loads=1,
    proposed_ms=12.5,
    demand={"fashion": Forecast(rate_rps=80.0, forecast_rps=100.0, attainment=0.97, lag=12)},
    left_out={"worker-cpu-1: fashion/wide": "the file is corrupt"},
    explanation=Explanation(
        status="optimal", objective=91.5, gap=0.0, bound_by=("cpu is full",), served={"fashion": 0.99}, accuracy={"fashion": 0.91}, load={"cpu": 1.0}
    ),
    plan=PLAN,
    rules=Rules(
        interval_ms=10_000.0, cool_down_ms=2_000.0, attainment_cool_down_ms=5_000.0, attainment_target=0.95, demand_margin=0.25, gain_min=0.01
    ),
)
CONTROL = ControlSpec(optimizer="loki", pinned=True, pin_reason="measuring", changed_by="root", changed_ms=1_700_000_000_000)
SCALER = ScalerReport(
    scaler="scaler-1", incarnation=1_700_000_000_000, at_ms=1_700_000_001_000, leads_since_ms=1_700_000_000_500, epoch=8, optimizer="headrace"
)

COSTS = LearnedCosts(
    costs=(
        LearnedCost(
            variant="fashion/wide",
            model="ab" * 32,
            type="cpu AMD EPYC x2",
            latency={2: {1: Latency(2.5, 3.0, 40), 16: Latency(30.0, 33.5, 12)}},
            load_ms=80.5,
            memory_bytes=1_048_576,
        ),
    ),
    at_ms=1_700_000_000_000,
    by="scaler-1",
)

Kind = tuple[str, Any, Callable[[bytes], Any], Callable[[Any], bytes]]
"""File, what it says, how that is read and written."""

CONTROL_KINDS: list[Kind] = [
    ("plan-v2.json", PLAN, decode_plan, encode_plan),
    ("plan-decision-v1.json", DECISION, decode_decision, encode_decision),
    ("plan-decision-kept-v1.json", msgspec.structs.replace(DECISION, kind="kept", plan=None, rules=None), decode_decision, encode_decision),
    ("catalog-control-v1.json", CONTROL, decode_control, encode_control),
    ("catalog-learned-costs-v1.json", COSTS, decode_learned_costs, encode_learned_costs),
    ("telemetry-scaler-v1.json", SCALER, decode_reported, encode_telemetry),
]

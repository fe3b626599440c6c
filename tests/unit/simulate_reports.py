"""Results made by hand, for tests of tables, charts and pages."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.simulation.report import Report, Run, rows_of
from scaler.optimizers.optimizer import Explanation
from scaler.simulator.result import EndpointResult, PlanMade, Result, Violation, Window

WARM_UP_S, LASTS_S = 2, 10


def result(optimizer: str, seed: int, *, offered: int = 100, completed: int = 90, accuracy: float = 0.9, broken: int = 0) -> Result:
    """Ten windows of a second, all alike."""
    windows = tuple(
        Window(at_s=float(at), offered=offered, completed=completed, expired=offered - completed, accuracy_sum=accuracy * completed)
        for at in range(WARM_UP_S, WARM_UP_S + LASTS_S)
    )
    total = EndpointResult(
        offered=offered * LASTS_S,
        completed=completed * LASTS_S,
        expired=(offered - completed) * LASTS_S,
        accuracy_served=accuracy,
        accuracy_best=0.95,
        latency_p99_ms=120.0,
        max_accuracy_drop=0.05,
        windows=windows,
    )
    explanation = Explanation(status="optimal", bound_by=("cpu workers are <full>",))
    return Result(
        scenario="hand-made",
        optimizer=optimizer,
        seed=seed,
        endpoints={"shop": total, "search": total},
        total=total,
        plans=(PlanMade(at_s=0.5, epoch=1, reason="first", loads=3, explanation=explanation, solve_ms=12.0),),
        violations=tuple(Violation("bounds", 1_500.0, "a lease too many") for _ in range(broken)),
        virtual_s=float(WARM_UP_S + LASTS_S),
    )


def report(runs: Sequence[Run], *, swept: tuple[str, ...] = ()) -> Report:
    """A report of these runs."""
    return Report(
        scenario="hand-made <one>",
        description="Two optimizers.",
        provenance="made by hand",
        offered="shop: poisson, 100 requests/s",
        cluster="4 cpu workers",
        duration_s=12.0,
        warm_up_s=2.0,
        seeds=tuple(sorted({run.seed for run in runs})),
        optimizers=tuple(dict.fromkeys(run.optimizer for run in runs)),
        swept=swept,
        rows=rows_of(runs),
        runs=tuple(runs),
    )

"""Snapshots of a small cluster for trials: two workers, a ladder of two variants, and demand as the test wants it."""

from __future__ import annotations

import time

import msgspec
from control_stage import ControlStage, catalog

from scaler.optimizers.optimizer import Limits, Proposal
from scaler.optimizers.registry import create_optimizer
from scaler.optimizers.snapshot import Snapshot
from scaler.policy.trial_load import IntervalDemand
from scaler.policy.trial_rolling import Question, Rolled, roll_forward


def staged(rate_rps: float = 50.0, seconds: int = 20) -> ControlStage:
    """After some time under load, with everything hosted that fits."""
    stage = ControlStage()
    stage.rate_rps = rate_rps
    stage.run(seconds)
    return stage


def snapshot_of(rate_rps: float = 50.0) -> Snapshot:
    stage = staged(rate_rps)
    return stage.policy.snapshot(stage.now_ms)


def asked(rate_rps: float, seconds: int = 5, endpoint: str = "shop") -> IntervalDemand:
    return IntervalDemand(duration_s=float(seconds), rates={endpoint: {0.8: (rate_rps,) * seconds}})


def proposal_of(optimizer: str, snapshot: Snapshot) -> Proposal:
    return create_optimizer(optimizer).propose(snapshot, Limits(time_s=5.0, seed=1, clock_s=time.monotonic))


def rolled(snapshot: Snapshot, proposal: Proposal | None, demand: IntervalDemand, *, optimizer: str = "test", seed: int = 1) -> Rolled:
    question = Question(snapshot=snapshot, proposal=proposal, optimizer=optimizer, catalog=catalog(), demand=demand, seed=seed)
    return roll_forward(question)


def with_rate(snapshot: Snapshot, rate_rps: float, at_ms: float) -> Snapshot:
    """The same cluster at another time, asked at another rate."""
    endpoints = tuple(
        msgspec.structs.replace(
            endpoint, floors=tuple(msgspec.structs.replace(floor, rate_rps=rate_rps, forecast_rps=rate_rps) for floor in endpoint.floors)
        )
        for endpoint in snapshot.endpoints
    )
    return msgspec.structs.replace(snapshot, endpoints=endpoints, at_ms=at_ms)

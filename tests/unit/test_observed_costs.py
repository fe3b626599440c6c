"""Unit: whose word counts for what a variant costs."""

from __future__ import annotations

from collections import Counter

from scaler.policy.control_settings import ControlSettings
from scaler.policy.observed_costs import SAMPLES_MAX, STALE_MS, ObservedCosts
from schemas.catalog import Catalog, TaskSpec, VariantSpec
from schemas.profile import Latency
from schemas.telemetry import HostedVariant, WorkerReport

CATALOG = Catalog({"t": TaskSpec(name="t", variants=(VariantSpec(name="v", file="f", sha256="0" * 64, accuracy=0.9, accelerators=("cpu",)),))}, {})


def report(worker: int, latency_ms: float) -> WorkerReport:
    hosted = HostedVariant(state="ready", latency={1: Latency(latency_ms, latency_ms)})
    return WorkerReport(
        worker=f"w{worker}", incarnation=1, accelerator="cpu", device="d", host="h", at_ms=0, lane=worker, state="ready", variants={"t/v": hosted}
    )


def median_ms(costs: ObservedCosts) -> float:
    return costs.variants(CATALOG, {"cpu": "cpu"})[0].costs["cpu"].latency[1][1].p50_ms


def test_of_many_workers_the_first_few_are_believed_and_others_take_the_place_of_those_who_fall_silent() -> None:
    costs = ObservedCosts(ControlSettings(), (), Counter())
    for second in range(3):
        for worker in range(SAMPLES_MAX):
            costs.observe(report(worker, 10.0), "cpu", 1, second * 1_000.0)
        for worker in range(SAMPLES_MAX, 100):
            costs.observe(report(worker, 50.0), "cpu", 1, second * 1_000.0)
    assert median_ms(costs) == 10.0

    # One look for a silent one in so long a time: all have been replaced after as many looks.
    for look in range(1, SAMPLES_MAX + 1):
        now_ms = 2_000.0 + look * (STALE_MS + 1)
        for worker in range(SAMPLES_MAX, 2 * SAMPLES_MAX):
            costs.observe(report(worker, 50.0), "cpu", 1, now_ms)
    assert median_ms(costs) == 50.0


def test_who_is_heard_is_heard_when_it_changes_its_word() -> None:
    costs = ObservedCosts(ControlSettings(), (), Counter())
    for latency_ms in (10.0, 30.0):
        for worker in range(50):
            costs.observe(report(worker, latency_ms), "cpu", 1, 0.0)
        assert median_ms(costs) == latency_ms

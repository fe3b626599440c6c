"""Every kind of fault happens, is seen, and ends; nothing of it breaks a promise that the checkers know."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Sequence

import msgspec
import pytest
from simulator_stage import scenario

from broker.policy.entry import Send
from scaler.simulator.checking.checkers import Checkers
from scaler.simulator.errors import InvalidScenario
from scaler.simulator.result import EndpointResult, Result
from scaler.simulator.run import simulate
from scaler.simulator.scenario import Fault, Scenario
from scaler.simulator.watching import Offered

KINDS = {
    "worker": Fault(kind="worker", at_s=1.0, lasts_s=1.0),
    "dispatcher": Fault(kind="dispatcher", at_s=1.5, lasts_s=0.5),
    "planner": Fault(kind="planner", at_s=0.5, lasts_s=1.0),
    "slow": Fault(kind="slow", at_s=1.0, lasts_s=1.5, factor=5.0),
    "skew": Fault(kind="skew", at_s=1.0, lasts_s=1.5, skew_ms=-30.0),
    "duplicates": Fault(kind="duplicates", at_s=0.5, lasts_s=2.0, part=0.2),
    "delays": Fault(kind="delays", at_s=0.5, lasts_s=2.0, part=0.05, factor=10.0),
    "load": Fault(kind="load", at_s=-10.0, lasts_s=11.0, target="task/middle"),
}


class Seen(Checkers):
    """The checkers, with a count of what they are told."""

    def follow(self) -> Seen:
        self.counts: Counter[str] = Counter()
        self.keys: Counter[bytes] = Counter()
        self.epochs: list[int] = []
        self.order: list[float] = []
        return self

    def offered(self, records: Sequence[Offered]) -> None:
        self.keys.update(request.key for _, request, _, _ in records)
        super().offered(records)

    def sent(self, at_ms: float, dispatcher: str, sends: Sequence[Send]) -> None:
        self.counts["sent"] += len(sends)
        self.order.append(at_ms)
        super().sent(at_ms, dispatcher, sends)

    def computing(self, at_ms: float, worker: str, incarnation: int, variant: str, orders: Sequence[str], rows: int) -> None:
        self.counts["computing"] += 1
        self.order.append(at_ms)
        super().computing(at_ms, worker, incarnation, variant, orders, rows)

    def worker(self, at_ms: float, name: str, incarnation: int, alive: bool) -> None:
        self.counts["worker up" if alive else "worker down"] += 1
        super().worker(at_ms, name, incarnation, alive)

    def dispatcher(self, at_ms: float, name: str, alive: bool) -> None:
        self.counts["dispatcher up" if alive else "dispatcher down"] += 1
        super().dispatcher(at_ms, name, alive)

    def committed(self, at_ms: float, dispatcher: str, shard: int, offset: int, metadata: str) -> None:
        self.counts["committed"] += 1
        super().committed(at_ms, dispatcher, shard, offset, metadata)


def watched(broken: Scenario, seed: int) -> tuple[Result, Seen]:
    of = Checkers.of(broken)
    seen = Seen.__new__(Seen)
    seen.__dict__.update(of.__dict__)
    result = simulate(broken, seed, watchers=[seen.follow()])
    return result, seen


def whole(total: EndpointResult) -> bool:
    return total.offered == total.completed + total.expired + total.rejected + total.failed


def with_faults(*faults: Fault, dispatchers: int = 1, duration_s: float = 3.0) -> Scenario:
    return msgspec.structs.replace(scenario(rate_rps=300.0, workers=3, duration_s=duration_s, faults=faults), dispatchers=dispatchers)


@pytest.mark.parametrize("dispatchers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_one_fault_breaks_no_promise(kind: str, dispatchers: int) -> None:
    result, seen = watched(with_faults(KINDS[kind], dispatchers=dispatchers), 4)
    assert seen.violations == ()
    assert whole(result.total)
    assert result.total.completed > 0.7 * result.total.offered
    assert seen.counts["committed"] > 8


@pytest.mark.parametrize("seed", range(6))
def test_all_faults_together_break_no_promise(seed: int) -> None:
    result, seen = watched(with_faults(*KINDS.values(), dispatchers=2), seed)
    assert seen.violations == ()
    assert whole(result.total)
    assert seen.order == sorted(seen.order)


def test_a_worker_that_dies_comes_back_in_a_new_life() -> None:
    result, seen = watched(with_faults(KINDS["worker"]), 4)
    assert (seen.counts["worker down"], seen.counts["worker up"]) == (1, 4)
    assert min(window.workers for window in result.total.windows) == 2


def test_another_dispatcher_takes_over_when_one_stays_away() -> None:
    away = Fault(kind="dispatcher", at_s=1.0, lasts_s=9.0, target="dispatcher-0")
    result, seen = watched(with_faults(away, dispatchers=2, duration_s=12.0), 1)
    assert seen.violations == ()
    windows = {window.at_s: window for window in result.total.windows}
    assert (seen.counts["dispatcher down"], seen.counts["dispatcher up"]) == (1, 3)
    assert 0.3 < windows[3.0].attainment < 0.7, "half of the shards have no owner"
    assert windows[8.0].attainment > 0.9, "the other one has them all"
    assert windows[11.0].attainment > 0.9


def test_a_slow_worker_is_felt() -> None:
    busy = with_faults()
    slow = with_faults(*(Fault(kind="slow", at_s=0.0, lasts_s=3.0, factor=6.0, target=f"cpu-0-{number}") for number in range(3)))
    assert simulate(slow, 2).total.accuracy_served < simulate(busy, 2).total.accuracy_served - 0.005  # type: ignore[operator]


def test_requests_that_come_twice_are_answered_once() -> None:
    result, seen = watched(with_faults(KINDS["duplicates"]), 4)
    twice = sum(count > 1 for count in seen.keys.values())
    assert twice > 50
    assert result.total.offered == len(seen.keys)
    assert whole(result.total)


def test_delays_make_answers_late() -> None:
    slow = Fault(kind="delays", at_s=0.0, lasts_s=3.0, part=0.3, factor=20.0)
    late, usual = simulate(with_faults(slow), 2).total, simulate(with_faults(), 2).total
    assert late.latency_p99_ms is not None
    assert usual.latency_p99_ms is not None
    assert late.latency_p99_ms > usual.latency_p99_ms


def test_a_variant_that_cannot_be_loaded_computes_nothing() -> None:
    for_ever = Fault(kind="load", at_s=-60.0, lasts_s=100.0, target="task/middle")
    result, seen = watched(with_faults(for_ever), 4)
    assert seen.violations == ()
    assert "task/middle" not in result.variants
    assert "task/middle" in simulate(with_faults(), 4).variants


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(kind="earthquake", at_s=1.0), "no kind 'earthquake'"),
        (Fault(kind="worker", at_s=1.0, target="nobody"), "worker 'nobody' is not there"),
        (Fault(kind="load", at_s=1.0, target="task/none"), "variant 'task/none' is not there"),
    ],
)
def test_a_fault_that_means_nothing_is_said(fault: Fault, said: str) -> None:
    with pytest.raises(InvalidScenario, match=said):
        simulate(with_faults(fault), 1)


def test_memory_does_not_grow_with_the_number_of_finished_requests() -> None:
    def peak_bytes(duration_s: float) -> int:
        tracemalloc.start()
        try:
            simulate(scenario(rate_rps=400.0, duration_s=duration_s, floors=(0.5,)), 1)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak_bytes(0.5)
    short, long = peak_bytes(2.0), peak_bytes(8.0)
    # 2,400 more requests. Dispatchers remember their ids (150 bytes each), up to a limit; a request that was kept would be 1 kB.
    assert long - short < 2_400 * 400

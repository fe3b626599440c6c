"""Simulated workers are told what live ones are: loading beside serving, parts of a device's time, and answers that missed."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from sim_scenarios import FASHION, FLOWERS, catalog_of, small_scenario, variant_of
from simulator_stage import scenario

from broker.policy.report import dispatcher_report
from scaler.optimizers.optimizer import FEASIBLE, Explanation, Limits, Proposal
from scaler.optimizers.snapshot import Snapshot
from scaler.simulator.answer_log import AnswerLog
from scaler.simulator.checking.checkers import Checkers
from scaler.simulator.cluster import Cluster
from scaler.simulator.planning import StaticPlanning
from scaler.simulator.run import simulate
from scaler.simulator.scenario import Arrivals, Choice, Control, Fault, Load, Scenario, WorkerGroup
from schemas.catalog import Catalog
from schemas.plan import Binding
from workers.policy.time_shares import TimeShares

LOAD_MS = 600.0


class OneAfterTheOther:
    """An optimizer that lets the one worker host the least accurate variant, and the other one beside it as soon as somebody asks."""

    name = "one after the other"
    source = "Headrace"

    def propose(self, snapshot: Snapshot, limits: Limits) -> Proposal:
        ladder = sorted(snapshot.variants, key=lambda variant: variant.accuracy)
        keys = [variant.key for variant in ladder[: 2 if snapshot.endpoints[0].forecast_rps else 1]]
        worker = snapshot.workers[0]
        binding = Binding(worker=worker.name, accelerator=worker.accelerator, lane=0, variants=tuple(keys))
        return Proposal(bindings=(binding,), explanation=Explanation(status=FEASIBLE))


class Gaps(Checkers):
    """Beside its checks: the longest time from one batch to the next."""

    def __init__(self, catalog: Catalog) -> None:
        super().__init__(catalog)
        self.longest_ms = 0.0
        self._last_ms = 0.0

    def computing(self, at_ms: float, worker: str, incarnation: int, variant: str, orders: Sequence[str], rows: int) -> None:
        if self._last_ms:
            self.longest_ms = max(self.longest_ms, at_ms - self._last_ms)
        self._last_ms = at_ms
        super().computing(at_ms, worker, incarnation, variant, orders, rows)


def for_class(catalog: Catalog, accelerator: str) -> Catalog:
    tasks = {
        name: msgspec.structs.replace(
            task, variants=tuple(msgspec.structs.replace(variant, accelerators=(accelerator,)) for variant in task.variants)
        )
        for name, task in catalog.tasks.items()
    }
    return Catalog(tasks, catalog.endpoints)


def rebound(accelerator: str) -> Scenario:
    """A worker that is given a second variant while it serves the first."""
    tasks = {"fashion": {name: FASHION[name] for name in ("cnn", "linear")}}
    return small_scenario(
        "rebound",
        catalog=for_class(catalog_of(tasks), accelerator),
        variants=tuple(variant_of("fashion", name, {"big": 1.0}, LOAD_MS) for name in tasks["fashion"]),
        workers=(WorkerGroup(type="big", accelerator=accelerator),),
        loads=(Load(endpoint="fashion", arrivals=Arrivals(kind="constant", rate_rps=100.0), timeouts_ms=(Choice(2_000.0),)),),
        control=Control(optimizer=OneAfterTheOther.name, interval_s=2.0),
        duration_s=6.0,
    )


@pytest.mark.parametrize(("accelerator", "beside"), [("cpu", True), ("gpu", True), ("fpga", False)])
def test_a_worker_serves_while_it_loads_as_its_class_does(accelerator: str, beside: bool) -> None:
    wanted = rebound(accelerator)
    gaps = Gaps(wanted.catalog)
    result = simulate(wanted, 1, OneAfterTheOther(), watchers=[gaps])
    assert not gaps.violations
    assert result.total.completed == result.total.offered
    assert result.variants.keys() == {"fashion/cnn", "fashion/linear"}
    assert (gaps.longest_ms < LOAD_MS / 4) == beside
    if not beside:
        assert gaps.longest_ms > LOAD_MS * 0.9


class Shared:
    """An optimizer that binds everything to everybody and leaves it at that: the control policy shares the time out."""

    name = "shared"
    source = "Headrace"

    def propose(self, snapshot: Snapshot, limits: Limits) -> Proposal:
        keys = tuple(variant.key for variant in snapshot.variants)
        worker = snapshot.workers[0]
        return Proposal(bindings=(Binding(worker=worker.name, accelerator="cpu", lane=0, variants=keys),), explanation=Explanation(status=FEASIBLE))


def test_parts_of_the_time_in_the_plan_reach_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, float]] = []
    share_out = TimeShares.share_out

    def observed(shares: TimeShares, parts: dict[str, float]) -> None:
        told.append(dict(parts))
        share_out(shares, parts)

    monkeypatch.setattr(TimeShares, "share_out", observed)
    tasks = {"fashion": {"linear": FASHION["linear"]}, "flowers": {"two": FLOWERS["two"]}}
    simulate(
        small_scenario(
            "shared",
            catalog=catalog_of(tasks),
            variants=tuple(variant_of(task, name, {"big": 1.0}, 20.0) for task, ladder in tasks.items() for name in ladder),
            workers=(WorkerGroup(type="big"),),
            loads=tuple(Load(endpoint=task, arrivals=Arrivals(kind="constant", rate_rps=20.0)) for task in tasks),
            control=Control(optimizer=Shared.name, interval_s=1.0),
        ),
        1,
        Shared(),
    )
    last = told[-1]
    assert last.keys() == tasks.keys()
    assert sum(last.values()) == pytest.approx(1.0, abs=1e-3)
    assert last["flowers"] > 0.8, "a row of flowers costs forty times a row of fashion"


def test_what_a_worker_answers_as_expired_counts_as_missed_whatever_the_dispatchers_clock_says() -> None:
    """The worker's clock is ahead: its answers come before their deadlines, as the dispatcher sees them, and say `expired`."""
    slow = [Fault(kind="slow", at_s=1.0 + 0.4 * number, lasts_s=0.1, target="cpu-0-0", factor=4.0) for number in range(10)]
    ahead = Fault(kind="skew", at_s=1.0, lasts_s=4.0, target="cpu-0-0", skew_ms=40.0)
    wanted = scenario(rate_rps=20.0, workers=1, floors=(0.95,), faults=(*slow, ahead))
    load = msgspec.structs.replace(wanted.loads[0], timeouts_ms=(Choice(100.0),))
    cluster = Cluster(msgspec.structs.replace(wanted, loads=(load,)), 3, StaticPlanning, [], {})
    cluster.run(None)
    total, live = cluster.result().total, cluster.dispatchers[0].live
    assert live is not None
    counted = dispatcher_report(live, "dispatcher-0", 1, cluster.world.agenda.now_ms, ()).endpoints["shop"]
    assert counted.missed == total.offered - total.completed > 0


def test_the_answer_log_tells_which_of_what_is_read_was_missed() -> None:
    log = AnswerLog()
    for number in range(6):
        log.append(b"%d" % number, float(number))
        if number in (1, 2, 5):
            log.miss()
    assert log.missed(0, log.read(0, 1.0, 10)) == {b"1"}
    assert log.missed(2, log.read(2, 9.0, 2)) == {b"2"}
    assert log.missed(3, log.read(3, 4.0, 10)) == frozenset()
    log.trim(2)
    assert log.missed(2, log.read(2, 9.0, 10)) == {b"2", b"5"}
    log.trim(6)
    log.append(b"6", 9.0)
    log.miss()
    assert log.missed(6, log.read(6, 9.0, 10)) == {b"6"}

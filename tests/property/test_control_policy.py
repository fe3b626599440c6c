"""Whatever telemetry says and optimizers propose: epochs grow, lanes are nobody's twice, plans keep their distance, and nothing raises."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from scaler.optimizers.optimizer import FEASIBLE, Explanation, Limits, Proposal
from scaler.optimizers.registry import create_optimizer
from scaler.optimizers.snapshot import READY, Snapshot
from scaler.policy.control import ControlPolicy
from scaler.policy.control_settings import ControlSettings
from scaler.policy.forecasting.ewma import Ewma
from schemas.catalog import Catalog, EndpointSpec, TaskSpec, VariantSpec
from schemas.plan import Binding, Plan
from schemas.profile import Latency
from schemas.telemetry import Departed, DispatcherReport, EndpointCounts, HostedVariant, StageCounts, WorkerReport

KEYS = ("t/a", "t/b", "u/c", "ghost/x")
SETTINGS = ControlSettings(lanes_per_class=4, history_max=20)
any_float = st.floats(allow_nan=True, allow_infinity=True) | st.floats(0.1, 50.0)
any_count = st.integers(-(1 << 60), 1 << 60) | st.integers(0, 500)
names = st.sampled_from([f"w{at}" for at in range(6)])
states = st.sampled_from(("starting", "ready", "ready", "ready", "draining", "stopped", "odd"))

latencies = st.dictionaries(st.sampled_from((0, 1, 8, 10**6)), st.builds(Latency, any_float, any_float, any_count), max_size=2)
variants = st.builds(
    HostedVariant,
    state=st.sampled_from(("ready", "ready", "loading", "failed", "odd")),
    latency=latencies | st.just({1: Latency(1.0, 1.5, 5), 8: Latency(4.0, 5.0, 5)}),
    load_ms=any_float,
    memory_bytes=any_count,
)
worker_reports = st.builds(
    WorkerReport,
    worker=names,
    incarnation=st.integers(0, 4),
    accelerator=st.sampled_from(("cpu", "cpu", "gpu")),
    device=st.sampled_from(("one", "two")),
    host=st.just("here"),
    at_ms=any_count,
    lane=st.none() | st.integers(0, 9),
    state=states,
    epoch=any_count,
    variants=st.dictionaries(st.sampled_from(KEYS), variants, max_size=3),
    memory_bytes_max=any_count,
    threads=any_count,
)
counts = st.dictionaries(st.sampled_from(("a", "b", "g")), any_count, max_size=2)
endpoint_counts = st.builds(
    EndpointCounts,
    arrived=st.dictionaries(st.sampled_from(("0.5", "0.9", "1e9", "nan", "?")), any_count, max_size=3),
    rows=any_count,
    ended=any_count,
    missed=any_count,
    waiting=any_count,
    timeout_ms=any_float,
    stages=st.dictionaries(st.sampled_from(("", "s")), st.builds(StageCounts, rows=any_count, done=counts), max_size=2),
)
dispatcher_reports = st.builds(
    DispatcherReport,
    dispatcher=st.sampled_from(("d0", "d1")),
    incarnation=st.integers(0, 2),
    at_ms=any_count,
    shards=st.sampled_from(((), (0,), (0, 1))),
    fan_out=st.dictionaries(st.sampled_from(("e/s", "x")), st.tuples(any_float, any_float), max_size=2),
    endpoints=st.dictionaries(st.sampled_from(("e", "f", "nobody")), endpoint_counts, max_size=2),
)
departures = st.builds(Departed, role=st.sampled_from(("worker", "dispatcher")), name=names, incarnation=st.integers(0, 3), at_ms=any_count)
catalogs = st.builds(
    lambda files, used: Catalog(
        {
            "t": TaskSpec(
                name="t", variants=(VariantSpec(name="a", sha256=files[0], accuracy=0.6), VariantSpec(name="b", sha256=files[1], accuracy=0.9))
            ),
            "u": TaskSpec(name="u", variants=(VariantSpec(name="c", accuracy=0.7, accelerators=("cpu", "gpu")),)),
        },
        {name: EndpointSpec(name=name, task=task) for name, task in (("e", "t"), ("f", "u")) if name in used},
    ),
    st.tuples(st.sampled_from("xy"), st.sampled_from("xy")),
    st.sets(st.sampled_from("ef")),
)
bindings = st.builds(
    Binding,
    worker=names,
    accelerator=st.sampled_from(("cpu", "gpu")),
    lane=st.integers(0, 5),
    variants=st.lists(st.sampled_from(KEYS), max_size=3).map(tuple),
    threads=st.integers(0, 3),
)
proposals = st.builds(
    Proposal,
    bindings=st.lists(bindings, max_size=4).map(tuple),
    shares=st.dictionaries(st.sampled_from("tu"), st.dictionaries(st.sampled_from(KEYS), any_float, max_size=2), max_size=1),
    explanation=st.just(Explanation(status=FEASIBLE)),
)
foreign_plans = st.builds(Plan, epoch=st.integers(0, 40), bindings=st.lists(bindings, max_size=3, unique_by=lambda each: each.worker).map(tuple))
passing = st.floats(0.0, 9_000.0)
honest = names.map(lambda name: ("honest", name))
"""The worker has done what the plan says."""
chosen = st.lists(st.sets(st.sampled_from(KEYS[:3]), min_size=1).map(sorted), min_size=6, max_size=6)
"""What each worker is to host: a proposal that is valid as far as workers are there."""
happenings = worker_reports | dispatcher_reports | departures | catalogs | foreign_plans | proposals
events = st.lists(happenings | honest | honest | chosen | chosen | passing | passing, max_size=40)


class Follower:
    """Reads plans as everybody does."""

    def __init__(self) -> None:
        self.policy = ControlPolicy(SETTINGS, Ewma)
        self.now_ms = 0.0
        self.began_ms: list[float] = []
        self.greedy = create_optimizer("greedy")

    def happen(self, event: Any) -> None:
        policy = self.policy
        if isinstance(event, WorkerReport):
            policy.observe_worker(event, self.now_ms)
        elif isinstance(event, DispatcherReport):
            policy.observe_dispatcher(event, self.now_ms)
        elif isinstance(event, Departed):
            policy.observe_departed(event, self.now_ms)
        elif isinstance(event, Catalog):
            policy.observe_catalog(event)
        elif isinstance(event, Plan):
            policy.observe_plan(event)
        elif isinstance(event, Proposal):
            self.propose(policy.snapshot(self.now_ms), event)
            self.began_ms.clear()  # asked for, not due
        elif isinstance(event, tuple):
            self.policy.observe_worker(self.honest(event[1]), self.now_ms)
        elif isinstance(event, list):
            snapshot = policy.snapshot(self.now_ms)
            self.propose(snapshot, valid(snapshot, event))
            self.began_ms.clear()
        else:
            self.now_ms += event
        self.follow()

    def honest(self, name: str) -> WorkerReport:
        binding = self.policy.plan.binding(name)
        hosted = HostedVariant(state="ready", latency={1: Latency(1.0, 1.5, 5), 8: Latency(4.0, 5.0, 5)}, load_ms=100.0, memory_bytes=60)
        keys = KEYS[:3] if binding is None else binding.variants
        return WorkerReport(
            worker=name,
            incarnation=2,
            accelerator="cpu",
            device="one",
            host="here",
            at_ms=0,
            state="ready",
            epoch=self.policy.plan.epoch,
            variants=dict.fromkeys(keys, hosted),
            memory_bytes_max=200,
        )

    def follow(self) -> None:
        step = self.policy.next_step(self.now_ms)
        reason = self.policy.due(self.now_ms)
        assert reason != ""
        if reason is not None:
            assert not self.began_ms or self.now_ms - self.began_ms[-1] >= SETTINGS.cool_down_ms
            self.began_ms.append(self.now_ms)
            snapshot = self.policy.snapshot(self.now_ms)
            self.propose(snapshot, self.greedy.propose(snapshot, Limits(time_s=1.0, seed=1, clock_s=lambda: 0.0)))
        elif step is not None:
            well_made(step)

    def propose(self, snapshot: Snapshot, proposal: Proposal) -> None:
        before = self.policy.plan.epoch
        plan = self.policy.decide(proposal, snapshot, self.now_ms)
        if plan is None:
            assert self.policy.plan.epoch == before
            assert self.policy.history[-1].reason
        else:
            assert plan.epoch == before + 1
            assert plan == self.policy.plan
            well_made(plan)


def valid(snapshot: Snapshot, wanted: list[list[str]]) -> Proposal:
    """As valid as the snapshot allows; at most one worker for each lane."""
    known = {variant.key: variant for variant in snapshot.variants}
    found: list[Binding] = []
    for at, (worker, keys) in enumerate(zip(snapshot.workers, wanted, strict=False)):
        usable = tuple(key for key in keys if key in known and worker.type in known[key].costs and key not in worker.refused)
        if worker.state == READY and at < SETTINGS.lanes_per_class:
            found.append(Binding(worker=worker.name, accelerator=worker.accelerator, lane=at, variants=usable[:1] if at % 2 else usable))
    return Proposal(bindings=tuple(found), explanation=Explanation(status=FEASIBLE))


def well_made(plan: Plan) -> None:
    lanes = [(binding.accelerator, binding.lane) for binding in plan.bindings]
    assert len(set(lanes)) == len(lanes)
    assert len({binding.worker for binding in plan.bindings}) == len(plan.bindings)
    assert all(0 <= lane < SETTINGS.lanes_per_class for _, lane in lanes)
    assert plan.reason


@given(events)
@settings(max_examples=200, deadline=None)
def test_no_telemetry_and_no_proposal_breaks_the_control_policy(happened: list[Any]) -> None:
    follower = Follower()
    follower.happen(Catalog({"t": TaskSpec(name="t", variants=(VariantSpec(name="a", accuracy=0.6),))}, {"e": EndpointSpec(name="e", task="t")}))
    for name in ("w0", "w1", "w2"):
        follower.happen(("honest", name))
    for event in happened:
        follower.happen(event)
    snapshot = follower.policy.snapshot(follower.now_ms)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(snapshot), type=Snapshot)
    assert all(0.0 <= floor.forecast_rps <= SETTINGS.rate_rps_max for endpoint in snapshot.endpoints for floor in endpoint.floors)
    assert all(0.0 <= endpoint.attainment <= 1.0 and endpoint.timeout_ms > 0.0 for endpoint in snapshot.endpoints)
    assert len(follower.policy.history) <= 20

"""Whatever arrives: each order leaves the batcher exactly once, in time or dropped; whatever is planned: hosting converges within memory."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.catalog import VariantSpec
from schemas.profile import Latency
from schemas.work import WORK_VERSION, WorkOrder
from workers.policy.batcher import Batch, Batcher, BatchRules, QueuedOrder, Wait
from workers.policy.estimator import LatencyEstimator
from workers.policy.hosting import FAILED, READY, Hosted, HostedVariants, Load, Unload, Wanted, Warm

HOP_MS = 8.0
ROUNDING_MS = 1e-9
"""The policy subtracts from the deadline what is added to the time here: in floats the two may differ by their last digits, and by no more."""
RULES = {
    "t/fast": BatchRules(lambda rows: Latency(1.0 + 0.1 * rows, 2.0 + 0.1 * rows), 8),
    "t/slow": BatchRules(lambda rows: Latency(4.0 * rows, 5.0 * rows), 4, (1, 2, 4)),
}
arrivals = st.lists(
    st.tuples(
        st.floats(0.0, 20.0),  # milliseconds since the one before
        st.sampled_from(sorted(RULES)),
        st.integers(-10, 120),  # deadline, from its arrival
        st.integers(1, 10),  # rows
        st.integers(0, 3),  # priority
        st.integers(0, 12),  # id: some come twice
        st.booleans(),  # more is on its way
    ),
    max_size=40,
)


class Bench:
    """A batcher with a device that takes the median."""

    def __init__(self) -> None:
        self.batcher = Batcher(hop_ms=HOP_MS)
        for variant, rules in RULES.items():
            self.batcher.host(variant, rules)
        self.now_ms, self.free_ms = 0.0, 0.0
        self.accepted: Counter[str] = Counter()
        self.left: Counter[str] = Counter()

    def add(self, request_id: str, variant: str, deadline_in: int, rows: int, priority: int) -> None:
        order = WorkOrder(WORK_VERSION, "e", "main", variant, 0.9, "w", 1, 0, 0, int(self.now_ms + deadline_in), rows, 1, 1, priority)
        if self.batcher.add(QueuedOrder(request_id, request_id, order, b"", "", 0, 0)):
            self.accepted[request_id] += 1

    def act(self, *, arriving: bool) -> None:
        for queued in self.batcher.drop_late(self.now_ms):
            needed_ms = RULES[queued.order.variant].p95_ms(queued.order.rows) + HOP_MS
            assert self.now_ms + needed_ms > queued.order.deadline_ms - ROUNDING_MS, "dropped although it could have finished"
            self._leave(queued)
        if self.now_ms < self.free_ms:
            return
        decision = self.batcher.next_batch(self.now_ms, arriving=arriving)
        if isinstance(decision, Wait):
            assert arriving
            assert decision.until_ms > self.now_ms
        elif isinstance(decision, Batch):
            self._run(decision)

    def _run(self, batch: Batch) -> None:
        rules = RULES[batch.variant]
        assert batch.rows == sum(queued.order.rows for queued in batch.orders)
        assert batch.rows <= rules.rows_max or len(batch.orders) == 1
        for queued in batch.orders:
            assert queued.order.variant == batch.variant
            assert self.now_ms + rules.p95_ms(batch.rows) + HOP_MS <= queued.order.deadline_ms + ROUNDING_MS, "started although it would be late"
            self._leave(queued)
        self.free_ms = self.now_ms + rules.latency_at(batch.rows).p50_ms

    def _leave(self, queued: QueuedOrder) -> None:
        self.batcher.finish(queued)
        self.left[queued.id] += 1


@given(arrivals)
@example([(2.122407762746791e-167, "t/slow", 38, 6, 0, 0, False)])  # late by less than a sum of floats can show
@settings(max_examples=200)
def test_each_order_leaves_once_and_starts_only_where_it_can_finish(events) -> None:
    bench = Bench()
    for after_ms, variant, deadline_in, rows, priority, number, arriving in events:
        bench.now_ms += after_ms
        bench.add(str(number), variant, deadline_in, rows, priority)
        bench.act(arriving=arriving)
    for _ in range(len(events) + 1):
        bench.now_ms = max(bench.now_ms, bench.free_ms)
        bench.act(arriving=False)
    assert bench.left == bench.accepted
    assert bench.batcher.waiting_rows == 0
    assert all(bench.batcher.waiting(variant) == 0 for variant in RULES)


@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0.01, 1_000.0)), max_size=120))
def test_estimates_are_ordered_and_within_what_was_measured(samples) -> None:
    profile = {1: Latency(1.0, 1.5, 10), 8: Latency(3.0, 4.0, 10), 32: Latency(9.0, 12.0, 10)}
    estimator = LatencyEstimator(profile)
    for rows, measured_ms in samples:
        estimator.observe(rows, measured_ms)
    shown = [estimator.at(rows) for rows in range(1, 70)]
    assert all(one.p50_ms <= one.p95_ms for one in shown)
    assert all(a.p50_ms <= b.p50_ms + 1e-6 and a.p95_ms <= b.p95_ms + 1e-6 for a, b in pairwise(shown))
    assert estimator.estimates.keys() == profile.keys()


SIZES = {"a": 40, "b": 50, "c": 70, "d": 200}
steps = st.lists(
    st.tuples(
        st.sampled_from(["plan", "old plan", "step", "step", "step", "fail", "busy", "time"]),
        st.lists(st.sampled_from(sorted(SIZES)), unique=True),
        st.integers(1, 2),
    ),
    max_size=40,
)


class Installer:
    """Carries out what the hosting policy commands."""

    def __init__(self, limit: int, *, foretold: bool) -> None:
        self.hosting = HostedVariants(memory_bytes_max=limit)
        self.limit, self.foretold = limit, foretold
        self.now_ms, self.epoch = 0.0, 0
        self.wanted: dict[str, Wanted] = {}
        self.busy: set[str] = set()
        self.in_backend: dict[str, int] = {}

    def plan(self, names: list[str], threads: int) -> None:
        self.epoch += 1
        specs = {name: VariantSpec(name=name, file=name, sha256=name, accuracy=0.5) for name in names}
        self.wanted = {name: Wanted(spec, 8, threads, SIZES[name] if self.foretold else 0) for name, spec in specs.items()}
        assert self.hosting.plan(self.epoch, self.wanted, self.now_ms)

    def step(self, *, broken: bool = False) -> bool:
        command = self.hosting.decide(self.now_ms, lambda hosted: hosted.handle in self.busy)
        if isinstance(command, Load) and broken:
            self.hosting.failed(command.hosted, "broken", self.now_ms)
        elif isinstance(command, Load):
            self._load(command.hosted)
        elif isinstance(command, Warm):
            self.hosting.warmed(command.hosted)
        elif isinstance(command, Unload):
            assert command.hosted.handle not in self.busy, "unloaded although orders wait"
            self.in_backend.pop(command.hosted.handle, None)
            self.hosting.unloaded(command.hosted)
        if self.limit and self.foretold:
            assert sum(self.in_backend.values()) <= self.limit
        return command is not None

    def _load(self, hosted: Hosted) -> None:
        assert hosted.handle not in self.in_backend, "two forms under one name"
        size = SIZES[hosted.variant]
        if self.hosting.loaded(hosted, memory_bytes=size, load_ms=1.0, now_ms=self.now_ms):
            self.in_backend[hosted.handle] = size

    def act(self, kind: str, names: list[str], threads: int) -> None:
        match kind:
            case "plan":
                self.plan(names, threads)
            case "old plan":
                assert self.epoch == 0 or not self.hosting.plan(self.epoch - 1, {}, self.now_ms)
            case "busy":
                serving = [self.hosting.serving(name) for name in names]
                self.busy = {hosted.handle for hosted in serving if hosted is not None}
            case "time":
                self.now_ms += 400.0
            case _:
                self.step(broken=kind == "fail")

    def settle(self) -> None:
        self.busy = set()
        self.plan(sorted(self.wanted), 1)
        for _ in range(60):
            self.now_ms += 20_000.0
            while self.step():
                pass


@given(steps, st.booleans(), st.booleans())
@settings(max_examples=200)
def test_hosting_converges_to_the_newest_plan_within_memory(events, limited: bool, foretold: bool) -> None:
    installer = Installer(130 if limited else 0, foretold=foretold)
    for kind, names, threads in events:
        installer.act(kind, names, threads)
    installer.settle()
    wanted, in_backend = installer.wanted, installer.in_backend
    states = {variant: hosted.state for variant, hosted in installer.hosting.visible().items()}
    if not limited or sum(SIZES[name] for name in wanted) <= installer.limit:
        assert states == dict.fromkeys(wanted, READY)
        assert len(in_backend) == len(wanted)
    else:
        assert states.keys() >= wanted.keys()
        assert all(state in (READY, FAILED) for state in states.values())
        assert sum(in_backend.values()) <= installer.limit

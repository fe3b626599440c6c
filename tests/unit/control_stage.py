"""A control policy with the telemetry of a small cluster: workers do what plans say, one dispatcher counts, and time is moved by hand."""

from __future__ import annotations

from collections.abc import Iterable

from scaler.optimizers.greedy import Greedy
from scaler.optimizers.optimizer import FEASIBLE, Explanation, Limits, Proposal
from scaler.optimizers.snapshot import Snapshot, Variant
from scaler.policy.control import ControlPolicy
from scaler.policy.control_settings import ControlSettings
from scaler.policy.forecasting.last import Last
from schemas.catalog import Catalog, Defaults, EndpointSpec, TaskSpec, VariantSpec
from schemas.plan import Binding, Plan
from schemas.profile import Latency
from schemas.telemetry import DispatcherReport, EndpointCounts, HostedVariant, WorkerReport

START_MS = 1_000_000.0
LADDER = {"small": (0.80, 1.0), "large": (0.90, 4.0)}
"""(accuracy, milliseconds a row) by variant."""


def catalog(ladder: dict[str, tuple[float, float]] | None = None) -> Catalog:
    variants = tuple(VariantSpec(name=name, sha256=name, accuracy=accuracy) for name, (accuracy, _) in (ladder or LADDER).items())
    endpoint = EndpointSpec(name="shop", task="t", defaults=Defaults(min_accuracy=0.8, timeout_ms=400))
    return Catalog({"t": TaskSpec(name="t", variants=variants)}, {"shop": endpoint})


def hosted(key: str, state: str = "ready") -> HostedVariant:
    row_ms = LADDER.get(key.partition("/")[2], (0.0, 2.0))[1]
    latency = {1: Latency(row_ms, row_ms * 1.2, 9), 8: Latency(6.0 * row_ms, 7.0 * row_ms, 9)}
    return HostedVariant(state=state, latency=latency if state == "ready" else {}, load_ms=200.0, memory_bytes=100)


class ControlStage:
    """`run` moves time second by second; `plans` are what was published."""

    def __init__(
        self, workers: Iterable[str] = ("w0", "w1"), settings: ControlSettings | None = None, *, costs: Iterable[Variant] = ()
    ) -> None:  # fmt: skip
        self.now_ms = START_MS
        self.policy = ControlPolicy(settings or ControlSettings(), Last, costs=costs)
        self.policy.observe_catalog(catalog())
        self.incarnations = dict.fromkeys(workers, 1)
        self.rate_rps = 50.0
        self.missed_part = 0.0
        self.floors: tuple[str, ...] = ("0.8",)
        self.counts: dict[str, float] = {}
        self.plans: list[Plan] = []
        self.due: list[str] = []
        self.loads_at_once = True
        self.optimizer = Greedy()

    def report(self, name: str, **fields: object) -> WorkerReport:
        binding = self.policy.plan.binding(name)
        ready = {key: hosted(key) for key in (binding.variants if binding is not None else ())}
        said: dict[str, object] = {
            "worker": name,
            "incarnation": self.incarnations[name],
            "accelerator": "cpu",
            "device": "box",
            "host": name,
            "at_ms": int(self.now_ms),
            "state": "ready",
            "epoch": self.policy.plan.epoch,
            "variants": ready,
            "memory_bytes_max": 10_000,
            "threads": 1,
        }
        return WorkerReport(**(said | fields))  # type: ignore[arg-type]

    def counted(self) -> DispatcherReport:
        for floor in self.floors:
            self.counts[floor] = self.counts.get(floor, 0.0) + self.rate_rps / len(self.floors)
        ended = sum(self.counts.values())
        self.counts["missed"] = self.counts.get("missed", 0.0) + self.rate_rps * self.missed_part
        arrived = {floor: int(self.counts[floor]) for floor in self.floors}
        counts = EndpointCounts(arrived=arrived, rows=sum(arrived.values()), ended=int(ended), missed=int(self.counts["missed"]), timeout_ms=300.0)
        return DispatcherReport(dispatcher="d0", incarnation=1, at_ms=int(self.now_ms), shards=(0,), endpoints={"shop": counts})

    def second(self) -> None:
        """Everybody reports; then the scaler does what is due."""
        self.now_ms += 1_000.0
        for name in self.incarnations:
            self.policy.observe_worker(self.report(name), self.now_ms)
        self.policy.observe_dispatcher(self.counted(), self.now_ms)
        reason = self.policy.due(self.now_ms)
        if reason is not None:
            self.due.append(reason)
            self.plan()
        step = self.policy.next_step(self.now_ms)
        if step is not None:
            self.plans.append(step)

    def run(self, seconds: int) -> list[str]:
        """Reasons to plan that came up."""
        before = len(self.due)
        for _ in range(seconds):
            self.second()
        return self.due[before:]

    def plan(self) -> Plan | None:
        snapshot = self.policy.snapshot(self.now_ms)
        proposal = self.optimizer.propose(snapshot, Limits(time_s=1.0, seed=1, clock_s=lambda: 0.0))
        plan = self.policy.decide(proposal, snapshot, self.now_ms, "greedy")
        if plan is not None:
            self.plans.append(plan)
        return plan


def proposing(snapshot: Snapshot, hosting: dict[str, tuple[str, ...]], shares: dict[str, dict[str, float]] | None = None) -> Proposal:
    """A proposal by hand."""
    names = [worker.name for worker in snapshot.workers]
    bindings = tuple(Binding(worker=name, accelerator="cpu", lane=names.index(name), variants=keys) for name, keys in hosting.items())
    return Proposal(bindings=bindings, shares=shares or {}, explanation=Explanation(status=FEASIBLE))

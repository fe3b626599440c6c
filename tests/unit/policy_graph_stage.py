"""A dispatcher's policy with requests on graphs, and workers that answer each order at once with tensors of the test's choice."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
from policy_stage import LADDER, START_MS, plan, report, request

from broker.policy import events as ev
from broker.policy.dispatcher import DispatcherPolicy
from broker.policy.entry import Answer, Commands, Entry, Send, Tap
from broker.policy.graph_request import StageJob
from broker.policy.settings import DispatcherSettings
from broker.policy.watermark import Watermark
from graphs.compiled import Graph
from graphs.stage import COMBINE_TASK, COMBINE_VARIANT
from graphs.tensor import Tensor
from schemas.catalog import Catalog, EndpointSpec, TaskSpec, TensorSpec, VariantSpec
from schemas.graph import GraphSpec
from schemas.limits import Limits
from schemas.profile import Latency
from schemas.stage import STAGE_VERSION, StageRecord, TensorHead
from schemas.telemetry import HostedVariant, WorkerReport

IMAGE = TensorSpec("image", "UINT8", (-1, 1, 28, 28))
PROBS = TensorSpec("probs", "FP32", (-1, 10))
COMBINE = TaskSpec(name=COMBINE_TASK, variants=(VariantSpec(name="combine", call="graphs.combiners:combine", accuracy=1.0),))
Compute = Callable[[Send], np.ndarray | None]
"""What a stage's `probs` are; None: it fails."""


def fashion(*, declared: bool = True) -> TaskSpec:
    """Not `declared`: with tensors of any kind, so that its stages can follow one another."""
    inputs, outputs = ((IMAGE,), (PROBS,)) if declared else ((), ())
    variants = tuple(
        VariantSpec(name=name, file=name, sha256=name, accuracy=accuracy, inputs=inputs, outputs=outputs) for name, (accuracy, _) in LADDER.items()
    )
    return TaskSpec(name="fashion", variants=variants)


def catalog_of(graph: GraphSpec, revision: int = 1, *, declared: bool = True) -> Catalog:
    endpoint = EndpointSpec(name="garment", graph=graph, revision=revision)
    return Catalog({"fashion": fashion(declared=declared), COMBINE_TASK: COMBINE}, {"garment": endpoint})


class GraphStage:
    """Plays one dispatcher; `run` goes on until nothing is left to do at this moment."""

    def __init__(
        self, graph: GraphSpec, compute: Compute, *, workers: tuple[str, ...] = ("w0",), limits: Limits | None = None, declared: bool = True
    ) -> None:
        self.graph, self.compute, self.workers, self.declared = graph, compute, workers, declared
        self.limits = limits or Limits()
        self.now_ms = START_MS
        self.sends: list[Send] = []
        self.log: list[tuple[bytes, StageRecord, bytes]] = []
        """The stage topics."""
        self.answers: list[Answer] = []
        self.finals: list[Send] = []
        self.taps: list[Tap] = []
        self.terminals: list[tuple[bytes, str]] = []
        """Terminal records in the order of the log."""
        self.incarnation = 1
        self.due: list[Send] = []
        self.policy = self.started()

    def started(self, *, recovered: bool = True) -> DispatcherPolicy:
        policy = DispatcherPolicy("d0", DispatcherSettings(), self.limits, _open)
        policy.step(ev.CatalogObserved(catalog_of(self.graph, declared=self.declared)), self.now_ms)
        bound = plan(*self.workers)
        keys = (*bound.bindings[0].variants, COMBINE_VARIANT)
        bindings = tuple(msgspec.structs.replace(binding, variants=keys) for binding in bound.bindings)
        policy.step(ev.PlanObserved(msgspec.structs.replace(bound, bindings=bindings)), self.now_ms)
        for worker in self.workers:
            policy.step(ev.TelemetryObserved(_with_combine(report(worker, incarnation=self.incarnation))), self.now_ms)
        policy.step(ev.ShardAssigned(0, Watermark()), self.now_ms)
        if recovered:
            policy.step(ev.ShardRecovered(0), self.now_ms)
        return policy

    def heard(self, said: WorkerReport) -> None:
        self.step(ev.TelemetryObserved(_with_combine(said)))

    def step(self, event: ev.Event) -> None:
        self._take(self.policy.step(event, self.now_ms))

    def ask(self, *keys: str, floor: float = 0.8, timeout_ms: int = 1_000) -> list[Entry]:
        entries = [request(key, self.now_ms, endpoint="garment", floor=floor, timeout_ms=timeout_ms) for key in keys]
        for offset, entry in enumerate(entries):
            entry.offset = self.policy.shards[0].next_offset + offset
        self.step(ev.Arrived(0, entries))
        return entries

    def run(self, count: int | None = None) -> None:
        """Answer what workers have, oldest first."""
        while self.due and (count is None or count > 0):
            self.work(self.due.pop(0))
            count = None if count is None else count - 1

    def work(self, send: Send) -> None:
        self.now_ms += 1.0
        entry = send.entry
        assert entry.root is not None
        job: StageJob = entry.payload  # type: ignore[assignment]
        found = self.compute(send)
        if job.command.final and found is not None:
            self.finals.append(send)
            self.terminals.append((entry.root.key, "completed"))
            self.step(ev.Answered(0, [entry.root.key]))
            return
        data = found.astype("<f4").tobytes() if found is not None else b""
        heads = (TensorHead("probs", "FP32", found.shape, len(data)),) if found is not None else ()
        record = StageRecord(
            STAGE_VERSION, "garment", 1, job.command.instance, send.attempt, send.variant, send.accuracy, "cpu", "cpu0", 0.0, 1.0, 1,
            int(self.now_ms), heads, "" if found is not None else "backend_error", "" if found is not None else "it broke",
        )  # fmt: skip
        self.log.append((entry.root.key, record, data))
        self.step(ev.StagesDone(0, [self.log[-1]]))

    def tick(self, passed_ms: float) -> None:
        self.now_ms += passed_ms
        self.step(ev.Ticked())

    def _take(self, commands: Commands) -> None:
        self.sends.extend(commands.sends)
        self.due.extend(commands.sends)
        self.taps.extend(commands.taps)
        for letter in commands.dead_letters:
            self._take(self.policy.step(ev.DeadLettered(letter.entry), self.now_ms))
        for answer in commands.answers:
            self.answers.append(answer)
            self.terminals.append((answer.entry.key, answer.outcome))
            self._take(self.policy.step(ev.Answered(0, [answer.entry.key]), self.now_ms))

    def left(self) -> dict[str, int]:
        """What the policy still holds."""
        policy = self.policy
        return {
            "live": policy.live,
            "waiting": policy.waiting,
            "graphs": len(policy.graphs),
            "orders": len(policy.fleet.orders),
            "finals": len(policy.graphs._finals),
        }


def _with_combine(said: WorkerReport) -> WorkerReport:
    combine = HostedVariant(state="ready", latency={1: Latency(0.1, 0.2, 9)})
    return msgspec.structs.replace(said, variants=dict(said.variants) | {COMBINE_VARIANT: combine})


def _open(_payload: object, graph: Graph) -> tuple[dict[str, object], dict[str, Tensor]]:
    return {}, {name: Tensor(name, "UINT8", (3, 1, 28, 28), bytes(3 * 784)) for name in graph.request_tensors}


def probs(*best: float) -> np.ndarray:
    """A row of probabilities for each, whose largest is that."""
    rows = np.full((len(best), 10), 0.0, np.float32)
    rows[:, 3] = best
    rows[:, 4] = [1.0 - one for one in best]
    return rows

"""An actuating policy over a cluster of which every second is played: a supervisor that takes its time, a planner that binds whom it is shown."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from scaler.optimizers.snapshot import Cost, EndpointDemand, FloorDemand, Snapshot, StageDemand, Variant, Worker
from scaler.policy.actuating import ActuatingPolicy, adjusted
from scaler.policy.actuating_settings import ActuatingSettings
from schemas.plan import Binding, Plan
from schemas.profile import Latency
from schemas.scale import ScaleOffer, ScaleOrder

KEY = "t/large"
ROW_MS = 10.0
"""At one thread, in any batch: a worker answers a hundred rows a second."""


def variant(types: Mapping[str, float], threads: int = 1) -> Variant:
    """Milliseconds a row by worker type; twice the threads, half the time."""
    costs = {
        type_: Cost(latency={count: {size: Latency(size * row_ms / count, size * row_ms / count) for size in (1, 2)} for count in powers(threads)})
        for type_, row_ms in types.items()
    }
    return Variant(key=KEY, task="t", accuracy=0.9, batch_size_max=2, costs=costs)


def powers(threads: int) -> list[int]:
    return [count for count in (1, 2, 4, 8) if count <= threads]


def asked(rate_rps: float) -> tuple[EndpointDemand, ...]:
    floors = (FloorDemand(floor=0.8, rate_rps=rate_rps, forecast_rps=rate_rps),)
    return (EndpointDemand(endpoint="e", stages=(StageDemand(name="", task="t"),), floors=floors, timeout_ms=500.0),)


class Process(msgspec.Struct):
    ready_s: int
    hosted: bool = False
    hosted_threads: int = 0


class Cluster:
    """`rate_rps` is what is asked; `second` plays one."""

    def __init__(self, *, least: int = 1, most: int = 4, first: int = 1, threads: int = 1, cores: int = 0, start_s: int = 2) -> None:
        self.policy = ActuatingPolicy(ActuatingSettings())
        self.offer = ScaleOffer(accelerator="cpu", least=least, most=most, threads=threads, cores=cores, wanted=first)
        self.start_s, self.now_s, self.rate_rps = start_s, 1_000, 0.0
        self.workers: dict[str, Process] = {f"cpu-{number + 1}": Process(0) for number in range(first)}
        self.plan = Plan(epoch=1)
        self.orders: list[ScaleOrder] = []
        self.broken = False
        """Workers that start die."""
        self.planner = True
        self.log: list[str] = []
        self.replan()

    @property
    def now_ms(self) -> float:
        return 1_000.0 * self.now_s

    def ready(self) -> list[str]:
        return [name for name, process in self.workers.items() if process.ready_s <= self.now_s and not (self.broken and process.ready_s)]

    def snapshot(self) -> Snapshot:
        workers = tuple(
            Worker(
                name=name,
                accelerator="cpu",
                type="cpu/box",
                threads_max=self.offer.threads,
                binding=self.plan.binding(name),
                hosted=(KEY,) if self.workers[name].hosted else (),
            )
            for name in self.ready()
        )
        known = {"cpu/box": ROW_MS} if workers else {}
        return Snapshot(
            at_ms=self.now_ms, endpoints=asked(self.rate_rps), variants=(variant(known, self.offer.threads),), workers=workers, plan=self.plan
        )

    def replan(self) -> None:
        """Bind everybody who is shown, with the threads that it has or may have."""
        seen = self.policy.seen(self.snapshot(), self.now_ms)
        shown = {worker.name: worker for worker in seen.workers if worker.state == "ready"}
        kept = [binding for binding in self.plan.bindings if binding.worker not in shown and binding.worker in self.workers]
        before = {binding.worker: binding.threads for binding in self.plan.bindings}
        made = [
            Binding(worker=name, accelerator="cpu", lane=0, variants=(KEY,), threads=min(before.get(name, 1), worker.threads_max))
            for name, worker in shown.items()
        ]
        self.plan = msgspec.structs.replace(self.plan, epoch=self.plan.epoch + 1, bindings=(*made, *kept))
        self.policy.planned()

    def second(self) -> None:
        self.now_s += 1
        for name in self.ready():
            binding = self.plan.binding(name)
            self.workers[name].hosted = binding is not None
            self.workers[name].hosted_threads = binding.threads if binding else 0
        leaving = self.policy.leaving
        offer = msgspec.structs.replace(self.offer, running=len(self.workers), failing="it dies" if self.broken and self.failing() else "")
        self.policy.offered([offer], self.now_ms)
        adjustment = self.policy.look(self.snapshot(), self.now_ms)
        if adjustment is not None:
            self.log.append(adjustment.reason)
            self.plan = adjusted(self.plan, adjustment, self.now_ms) or self.plan
        self.carry_out(self.policy.orders(self.plan, self.now_ms)["cpu"])
        unbound = any(self.plan.binding(name) is None for name in self.ready())
        if self.planner and (self.now_s % 10 == 0 or self.policy.leaving - leaving or (unbound and not self.policy.leaving)):
            self.replan()

    def failing(self) -> bool:
        return any(process.ready_s for process in self.workers.values())

    def carry_out(self, order: ScaleOrder) -> None:
        if not self.orders or self.orders[-1].wanted != order.wanted:
            self.orders.append(order)
        names = sorted(self.workers, key=lambda name: (name in order.leaving, name), reverse=True)
        for name in names[: max(len(names) - order.wanted, 0)]:
            del self.workers[name]
        free = [name for number in range(16) if (name := f"cpu-{number + 1}") not in self.workers]
        for name in free[: order.wanted - len(self.workers)]:
            self.workers[name] = Process(self.now_s + self.start_s)
        self.offer = msgspec.structs.replace(self.offer, wanted=order.wanted)

    def run(self, seconds: int, rate_rps: float | None = None) -> Cluster:
        self.rate_rps = self.rate_rps if rate_rps is None else rate_rps
        for _ in range(seconds):
            self.second()
        return self

    def serving(self) -> float:
        """Rows/s of those that host."""
        return sum(1_000.0 / ROW_MS * process.hosted_threads for process in self.workers.values() if process.hosted)

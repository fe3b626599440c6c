"""The stage for worker tests: a worker on a log, orders written as a dispatcher writes them, and what comes of them."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from prometheus_client import CollectorRegistry

from broker.log import Log, TopicPartition
from schemas.catalog import TaskSpec, TensorSpec, VariantSpec, catalog_key, encode_catalog
from schemas.limits import Limits
from schemas.names import Names, TopicSpec
from schemas.plan import PLAN_KEY, Binding, Plan, encode_plan
from schemas.profile import Latency, Profile
from schemas.raw_tensors import decode_raw, encode_raw
from schemas.stage import StageRecord, decode_stage
from schemas.telemetry import Returned, WorkerReport, decode_telemetry
from schemas.tensors import encode_tensor
from schemas.terminal import JSON_TYPE, MSGPACK_TYPE, Terminal, decode_terminal
from schemas.work import WORK_HEADER, WORK_VERSION, StagePart, WorkOrder, encode_order, order_name
from workers.backend import Backend, Device, Loaded, Tensors
from workers.settings import WorkerSettings
from workers.worker import Worker

IMAGE = (TensorSpec("image", "UINT8", (-1, 1, 28, 28)),)
PROBS = (TensorSpec("probs", "FP32", (-1, 10)),)


def variant(name: str, *, sha256: str = "0" * 64, inputs=IMAGE, outputs=PROBS) -> VariantSpec:
    return VariantSpec(name=name, file=f"{name}.onnx", sha256=sha256, accuracy=0.9, inputs=inputs, outputs=outputs)


def python_task(name: str, call: str, **fields: Any) -> VariantSpec:
    return VariantSpec(name=name, call=call, accuracy=1.0, **fields)


def fashion(name: str, folder: Path) -> VariantSpec:
    return variant(name, sha256=hashlib.sha256((folder / f"{name}.onnx").read_bytes()).hexdigest())


def image_body(images: np.ndarray, *, raw: bool = False, **fields: Any) -> bytes:
    content = {"inputs": [encode_tensor("image", images, raw=raw)], **fields}
    return msgspec.msgpack.encode(content) if raw else msgspec.json.encode(content)


BLANK = image_body(np.zeros((1, 1, 28, 28), np.uint8))


class NoProfiles:
    """Nothing is kept."""

    def get(self, variant: str, sha256: str, *, device: str, threads: int, host: str) -> Profile | None:
        return None

    def put(self, profile: Profile) -> None:
        return None


class KnownProfiles(NoProfiles):
    """Every variant has the same profile."""

    def __init__(self, batches: Mapping[int, Latency], *, memory_bytes: int = 0) -> None:
        self._batches, self._memory_bytes = dict(batches), memory_bytes

    def get(self, variant: str, sha256: str, *, device: str, threads: int, host: str) -> Profile | None:
        common = {"sha256": sha256, "accelerator": "cpu", "device": device, "host": host, "threads": threads}
        return Profile(variant=variant, batches=self._batches, load_ms=1.0, memory_bytes=self._memory_bytes, **common)


class ScriptedBackend:
    """Answers the mean of each image in every class; `before(key, inputs, rows)` may sleep, raise or hang first."""

    def __init__(self, before: Callable[[str, Tensors, int], None] = lambda _key, _inputs, _rows: None, *, batch_sizes: tuple[int, ...] = ()) -> None:
        self._before, self._batch_sizes = before, batch_sizes
        self.calls: list[tuple[str, int]] = []
        self.unloaded: list[str] = []
        self.fail_load: dict[str, str] = {}
        self.load_seconds = 0.0
        self.threads: list[int] = []
        """Of each load."""
        self.events: list[str] = []
        self.armed = False
        """Faults begin when this is set, so that warming works."""

    def describe(self) -> Device:
        return Device(accelerator="cpu", name="scripted")

    def load(self, key: str, spec: VariantSpec, file: Path, *, batch_size_max: int, threads: int) -> Loaded:
        if spec.name in self.fail_load:
            raise RuntimeError(self.fail_load[spec.name])
        self.events.append(f"load {spec.name}")
        self.threads.append(threads)
        time.sleep(self.load_seconds)
        return Loaded(spec=spec, device="scripted device", batch_sizes=self._batch_sizes, memory_bytes=10, load_ms=1.0)

    def infer(self, key: str, inputs: Tensors, rows: int) -> Tensors:
        if self.armed:
            self.calls.append((key, rows))
            self.events.append(f"run {key}")
            self._before(key, inputs, rows)
        means = inputs["image"].reshape(rows, -1).mean(axis=1, dtype=np.float64)
        return {"probs": np.repeat(means[:, None], 10, axis=1).astype(np.float32)}

    def unload(self, key: str) -> None:
        self.unloaded.append(key)


FAST = {1: Latency(0.1, 0.2, 100), 8: Latency(0.3, 0.5, 100), 32: Latency(1.0, 1.5, 100)}


class Stage:
    """One worker, the dispatcher's side of its topics, and everything that was read from them."""

    def __init__(
        self, log: Log, prefix: str, backend: Backend, *, profiles: Any = None, resolve: Callable[[str], Path] | None = None, **settings: Any
    ) -> None:
        self.log, self.names = log, Names(prefix)
        self.settings = WorkerSettings(name="w1", accelerator="cpu", **settings)
        self.registry = CollectorRegistry()
        self._make = lambda: Worker(
            log, self.names, backend, resolve or (lambda _sha256: Path("unused")), profiles or KnownProfiles(FAST), self.settings, self.registry
        )
        self.worker: Worker
        self.running: asyncio.Task[None]
        self.reports: list[WorkerReport] = []
        self.returned: dict[str, str] = {}
        self.answers: dict[str, list[Terminal]] = {}
        self.answered_ms: dict[str, float] = {}
        self.staged: dict[str, list[Any]] = {}
        """Stage records by order name, as the log hands them out."""
        self.dead: list[Any] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Stage:
        await self.log.create_topics([*self.names.topics(shards=2, lanes=2), TopicSpec(self.stage_topic, 2, {})])
        self._writer = self.log.writer("stage")
        await self._writer.start()
        self._reader = self.log.reader("stage-reader")
        await self._reader.start()
        topics = [(topic, shard) for topic in (self.names.responses, self.stage_topic) for shard in (0, 1)]
        topics += [(self.names.telemetry, 0), (self.names.dead_letters, 0)]
        await self._reader.assign({TopicPartition(topic, number): "earliest" for topic, number in topics})
        self._tasks.append(asyncio.create_task(self._read()))
        self.start_worker()
        return self

    @property
    def stage_topic(self) -> str:
        return self.names.stage("fashion", "classify")

    def start_worker(self) -> None:
        self.worker = self._make()
        self.running = asyncio.create_task(self.worker.run())

    async def __aexit__(self, *_: object) -> None:
        if not self.running.done():
            self.worker.stop()
        await asyncio.gather(self.running, return_exceptions=True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._reader.close()
        await self._writer.close()

    async def _read(self) -> None:
        while True:
            for partition, records in (await self._reader.read(timeout_ms=100, records_max=1000)).items():
                for record in records:
                    self._take(partition.topic, record)

    def _take(self, topic: str, record: Any) -> None:
        if topic == self.names.dead_letters:
            self.dead.append(record)
        elif topic == self.stage_topic:
            stage = decode_stage(dict(record.headers)[WORK_HEADER])
            self.staged.setdefault(order_name(record.key.decode(), stage.instance), []).append(record)
        elif topic == self.names.responses:
            self.answers.setdefault(record.key.decode(), []).append(decode_terminal(record.value))
            self.answered_ms.setdefault(record.key.decode(), record.timestamp)
        else:
            told = decode_telemetry(record.value)
            if isinstance(told, WorkerReport):
                self.reports.append(told)
            elif isinstance(told, Returned):
                self.returned |= dict.fromkeys(told.ids, told.reason)

    async def write(self, topic: str, partition: int, *messages: Any) -> None:
        await self._writer.write(topic, partition, messages)

    async def catalog(self, *variants: VariantSpec) -> None:
        task = TaskSpec(name="fashion", variants=variants)
        await self.write(self.names.catalog, 0, (catalog_key(task), encode_catalog(task), ()))

    async def plan(self, epoch: int, *names: str, lane: int = 0, batch_size_max: int = 32) -> None:
        keys = tuple(f"fashion/{name}" for name in names)
        binding = Binding(worker="w1", accelerator="cpu", lane=lane, variants=keys, batch_size_max=batch_size_max)
        await self.write(self.names.plan, 0, (PLAN_KEY, encode_plan(Plan(epoch=epoch, bindings=(binding,))), ()))

    @property
    def report(self) -> WorkerReport | None:
        return self.reports[-1] if self.reports else None

    def states(self) -> dict[str, str]:
        return {key.partition("/")[2]: shown.state for key, shown in self.report.variants.items()} if self.report else {}

    async def until(self, condition: Callable[[], Any], *, timeout_s: float = 15.0) -> Any:
        deadline = time.monotonic() + timeout_s
        while not (value := condition()):
            if self.running.done() and not self.running.cancelled() and self.running.exception() is not None:
                raise AssertionError("the worker ended") from self.running.exception()
            assert time.monotonic() < deadline, f"not within {timeout_s} s: {self.report}, answers {len(self.answers)}"
            await asyncio.sleep(0.005)
        return value

    async def until_read(self, condition: Callable[[], Any]) -> None:
        """The same after the worker has ended."""
        deadline = time.monotonic() + 5.0
        while not condition():
            assert time.monotonic() < deadline, f"{self.report}, answers {len(self.answers)}, returned {len(self.returned)}"
            await asyncio.sleep(0.005)

    async def ready(self, *names: str) -> None:
        wanted = dict.fromkeys(names, "ready")
        await self.until(lambda: self.report and self.report.state == "ready" and wanted.items() <= self.states().items())

    def order(
        self, request_id: str, name: str, *, deadline_in_ms: float = 5_000, body: bytes | None = BLANK, raw: bool = False, **fields: Any
    ) -> Any:
        now_ms = int(time.time() * 1e3)
        known: dict[str, Any] = {
            "version": WORK_VERSION, "endpoint": "fashion", "stage": "main", "variant": f"fashion/{name}", "accuracy": 0.9, "worker": "w1",
            "incarnation": self.report.incarnation if self.report else 0, "shard": 0, "received_ms": now_ms, "rows": 1,
            "deadline_ms": int(now_ms + deadline_in_ms), "attempt": 1, "epoch": 1, "priority": 0,
        }  # fmt: skip
        content_type = MSGPACK_TYPE if raw else JSON_TYPE
        headers = [(WORK_HEADER, encode_order(WorkOrder(**known | fields))), ("content-type", content_type.encode())]
        return request_id.encode(), body, headers

    def part(
        self,
        request_id: str,
        name: str,
        *,
        instance: str = "classify",
        final: bool = False,
        tensors: dict[str, np.ndarray] | None = None,
        **rest: Any,
    ) -> Any:
        """An order for one stage of a graph: `body` (if any) and raw `tensors`; `rest` goes to the part where that has such a field, else on."""
        heads, parts = encode_raw(tensors or {})
        body = rest.pop("body", b"")
        fields = {field: rest.pop(field) for field in StagePart.__struct_fields__ if field in rest}
        made: dict[str, Any] = {"revision": 3, "topic": "" if final else self.stage_topic, "request_bytes": len(body), "tensors": heads}
        return self.order(request_id, name, body=body + b"".join(parts), part=StagePart(instance, **made | fields), stage=instance, **rest)

    async def stage_results(self, *names: str) -> list[tuple[StageRecord, dict[str, np.ndarray]]]:
        """The first stage record of each order, with its tensors."""
        await self.until(lambda: all(name in self.staged for name in names))
        found = [(decode_stage(dict(record.headers)[WORK_HEADER]), record.value) for record in (self.staged[name][0] for name in names)]
        return [(record, decode_raw(value or b"", 0, record.tensors, Limits())) for record, value in found]

    async def send(self, *orders: Any, lane: int = 0) -> None:
        await self.write(self.names.work("cpu"), lane, *orders)

    async def answered(self, *ids: str, timeout_s: float = 15.0) -> list[Terminal]:
        await self.until(lambda: all(request_id in self.answers for request_id in ids), timeout_s=timeout_s)
        return [self.answers[request_id][0] for request_id in ids]


def grey(level: int, rows: int = 1) -> bytes:
    return image_body(np.full((rows, 1, 28, 28), level, np.uint8))


async def serve(stage: Stage, *names: str, **plan: Any) -> None:
    """Bind the worker to these variants, wait until they are ready, and let the scripted faults begin."""
    await stage.catalog(*(variant(name) for name in names))
    await stage.plan(1, *names, **plan)
    await stage.ready(*names)


async def committed(stage: Stage, offset: int, lane: int = 0) -> None:
    """Until Kafka's own tools would say that the worker has finished so much."""
    group = stage.names.workers_group("cpu")
    reader = stage.log.reader("lag-tool", group=group)
    await reader.start()
    deadline = time.monotonic() + 10
    while (found := await reader.committed(TopicPartition(stage.names.work("cpu"), lane))) is None or found.offset != offset:
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.05)
    await reader.close()

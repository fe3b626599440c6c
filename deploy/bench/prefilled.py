"""A catalog of one null variant, its plan, and a topic full of requests: how the rows begin that measure the dispatcher alone."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import msgspec

from broker.log import Ack, Headers, Log, Message, Reader, TopicPartition, Writer
from deploy.bench.harness import Crew, Harness
from deploy.bench.null_worker import NullWorkerSettings, worker_name
from schemas.catalog import EndpointSpec, TaskSpec, VariantSpec, catalog_key, encode_catalog, variant_key
from schemas.names import SHARDS, Names
from schemas.plan import PLAN_KEY, Binding, Plan, encode_plan
from schemas.terminal import decode_terminal_head

TASK, VARIANT, ENDPOINT = "null", "null", "bench"
FLOOR, ACCURACY = 0.9, 0.99
"""A chain of several null stages keeps the floor too."""
VARIANT_KEY = variant_key(TASK, VARIANT)
TASKS = {TASK: TaskSpec(name=TASK, variants=(VariantSpec(name=VARIANT, file="none", sha256="0" * 64, accuracy=ACCURACY),))}
PLAIN = EndpointSpec(name=ENDPOINT, task=TASK)
FILL_RECORDS = 500
BODY_VALUES = 200
POLL_S = 0.03
READ_MS, READ_RECORDS = 200, 2_000


def json_body(timeout_ms: int) -> bytes:
    """A request of 1 kB, everything in its body, as `kcat -P` would send it."""
    tensor = {"name": "image", "shape": [1, BODY_VALUES], "datatype": "UINT8", "data": [128] * BODY_VALUES}
    fields = {"endpoint": ENDPOINT, "min_accuracy": FLOOR, "timeout_ms": timeout_ms, "parameters": {"padding": "x" * 80}, "inputs": [tensor]}
    return msgspec.json.encode(fields)


async def start_null_worker(
    harness: Harness, crew: Crew, *, lanes: int = 1, spends_ms: float | None = 0.0, fuses: bool = True, cores: Sequence[int] = ()
) -> None:
    """In a process of its own, for the null task's variant."""
    ready = crew.path("null-worker.ready")
    settings = NullWorkerSettings(
        kafka=harness.kafka, prefix=crew.names.prefix, variant=VARIANT_KEY, lanes=lanes, spends_ms=spends_ms, fuses=fuses, ready=ready
    )
    await crew.program("deploy.bench.null_worker", "null-worker", settings, cores=cores)


async def publish_control(log: Log, names: Names, *, lanes: int, endpoint: EndpointSpec = PLAIN) -> None:
    """Catalog and plan, as `apply` and the scaler would write them."""
    bindings = tuple(Binding(worker=worker_name(lane), accelerator="cpu", lane=lane, variants=(VARIANT_KEY,)) for lane in range(lanes))
    plan = Plan(epoch=1, bindings=bindings, planner="bench")
    async with written(log) as writer:
        await writer.write(names.catalog, 0, [(catalog_key(spec), encode_catalog(spec), ()) for spec in (TASKS[TASK], endpoint)])
        await writer.write(names.plan, 0, [(PLAN_KEY, encode_plan(plan), ())])


class written:  # noqa: N801 - used like a function, in `async with`
    """A writer for the length of a block."""

    def __init__(self, log: Log) -> None:
        self._writer = log.writer("bench")

    async def __aenter__(self) -> Writer:
        await self._writer.start()
        return self._writer

    async def __aexit__(self, *_: object) -> None:
        await self._writer.close()


async def fill(log: Log, topic: str, bodies: Iterable[bytes], *, headers: Headers = (), batch_records: int = FILL_RECORDS) -> int:
    """Write requests over all shards, as fast as Kafka takes them; returns how many."""
    count = 0
    async with written(log) as writer:
        batch: list[Message] = []
        shard = 0
        pending: list[asyncio.Future[Ack]] = []
        for body in bodies:
            batch.append((b"request-%d" % count, body, headers))
            count += 1
            if len(batch) == batch_records:
                pending.append(asyncio.ensure_future(writer.write(topic, shard, batch)))
                batch, shard = [], (shard + 1) % SHARDS
                if shard == 0:
                    await asyncio.gather(*pending)
                    pending.clear()
        pending.append(asyncio.ensure_future(writer.write(topic, shard, batch)))
        await asyncio.gather(*pending)
    return count


def shards_of(topic: str) -> list[TopicPartition]:
    """All partitions of a sharded topic."""
    return [TopicPartition(topic, shard) for shard in range(SHARDS)]


async def until_written(reader: Reader, topic: str, count: int, s_max: float, check: Callable[[], None]) -> None:
    """Wait until a sharded topic holds so many records. Raises TimeoutError."""
    deadline_s = time.monotonic() + s_max
    while sum((await reader.end_offsets(shards_of(topic))).values()) < count:
        check()
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{topic} has not got {count} records within {s_max:.0f} s")
        await asyncio.sleep(POLL_S)


async def outcomes(log: Log, topic: str, count: int, s_max: float) -> Counter[str]:
    """What became of so many requests, by outcome and code: only what was computed may count as such. Raises TimeoutError."""
    reader = log.reader("bench-outcomes")
    await reader.start()
    found: dict[bytes | None, str] = {}
    deadline_s = time.monotonic() + s_max
    try:
        await reader.assign(dict.fromkeys(shards_of(topic), "earliest"))
        while len(found) < count:
            for records in (await reader.read(timeout_ms=READ_MS, records_max=READ_RECORDS)).values():
                for record in records:
                    terminal = decode_terminal_head(record.value or b"")
                    found.setdefault(record.key, f"{terminal.outcome}/{terminal.error.code}" if terminal.error else terminal.outcome)
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{topic} has answers to {len(found)} of {count} requests within {s_max:.0f} s")
    finally:
        await reader.close()
    return Counter(found.values())

"""What the topics say now: the catalog, the plan, who is alive, lag and dead letters, each read once from start to end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

import msgspec

from broker.log import Log, Reader, Record, Start, TopicPartition
from scaler.lag import LagReader, PartitionLag
from schemas.catalog import Catalog
from schemas.errors import LogUnavailable
from schemas.names import Names
from schemas.plan import Plan, decode_plan
from schemas.plan_journal import PlanDecision, decode_decision
from schemas.telemetry import DispatcherReport, ScalerReport, WorkerReport, decode_reported, decode_telemetry

CLIENT_ID = "headrace-tool"
READ_MS_MAX = 15_000.0
ALIVE_MS = 5_000
"""A worker or dispatcher that said nothing for this long is not shown as alive."""
RECORDS_MAX = 1_000_000


class Alive(msgspec.Struct, frozen=True):
    """The last reports of those that reported lately, by name."""

    workers: dict[str, WorkerReport]
    dispatchers: dict[str, DispatcherReport]


async def read_catalog(log: Log, names: Names) -> Catalog:
    """The catalog as it stands; records that are none of this version are left out."""
    catalog = Catalog()
    for record in await read_topic(log, names.catalog):
        if record.key is None:
            continue
        try:
            catalog.apply(record.key, record.value)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
    return catalog


async def read_plan(log: Log, names: Names) -> Plan | None:
    """The plan of the highest epoch; None where there is none yet."""
    best: Plan | None = None
    for record in await read_topic(log, names.plan):
        try:
            plan = decode_plan(record.value or b"")
        except msgspec.DecodeError:
            continue
        if best is None or plan.epoch >= best.epoch:
            best = plan
    return best


async def read_alive(log: Log, names: Names, *, now_ms: float | None = None) -> Alive:
    """Who reported in the last seconds, by the reports' own clocks."""
    since_ms = int((time.time() * 1000 if now_ms is None else now_ms) - ALIVE_MS)
    alive = Alive({}, {})
    for record in await read_topic(log, names.telemetry, since_ms=since_ms):
        try:
            report = decode_telemetry(record.value or b"")
        except msgspec.DecodeError:
            continue
        if isinstance(report, WorkerReport) and report.at_ms >= since_ms:
            alive.workers[report.worker] = report
        elif isinstance(report, DispatcherReport) and report.at_ms >= since_ms:
            alive.dispatchers[report.dispatcher] = report
    return Alive({name: worker for name, worker in alive.workers.items() if worker.state != "stopped"}, alive.dispatchers)


async def read_leader(log: Log, names: Names, *, now_ms: float | None = None) -> ScalerReport | None:
    """Whichever scaler said last, and lately, that it leads."""
    since_ms = int((time.time() * 1000 if now_ms is None else now_ms) - ALIVE_MS)
    found: ScalerReport | None = None
    for record in await read_topic(log, names.telemetry, since_ms=since_ms):
        try:
            report = decode_reported(record.value or b"")
        except msgspec.DecodeError:
            continue
        if isinstance(report, ScalerReport) and (found is None or report.leads_since_ms >= found.leads_since_ms):
            found = report
    return found


async def read_history(log: Log, names: Names) -> list[PlanDecision]:
    """All decisions that the plan's history still has, in order; what cannot be read is left out."""
    found: list[PlanDecision] = []
    for record in await read_topic(log, names.plan_history):
        try:
            found.append(decode_decision(record.value or b""))
        except msgspec.DecodeError:
            continue
    return found


async def read_lag(log: Log, names: Names) -> list[PartitionLag]:
    """Log end minus committed offset, per partition, of dispatchers, sink, workers and taps."""
    reader = LagReader(log, names, CLIENT_ID)
    try:
        return await reader.read_all()
    finally:
        await reader.close()


async def read_topic(log: Log, topic: str, *, since_ms: int | None = None) -> list[Record]:
    """Every record of a topic up to its present end, partition by partition in order; empty where the topic does not exist.

    Raises LogUnavailable where the end is not reached in time.
    """
    partitions = [TopicPartition(topic, number) for number in range(await log.partitions(topic))]
    if not partitions:
        return []
    async with _opened(log.reader(CLIENT_ID)) as reader:
        await reader.assign(dict.fromkeys(partitions, "earliest"))
        if since_ms is not None:
            starts: Mapping[TopicPartition, Start] = {partition: await reader.offset_at(partition, since_ms) for partition in partitions}
            await reader.assign(starts)
        return await _read_to_end(reader, partitions)


async def _read_to_end(reader: Reader, partitions: list[TopicPartition]) -> list[Record]:
    ends = await reader.end_offsets(partitions)
    waiting = {partition for partition in partitions if await reader.position(partition) < ends[partition]}
    found: list[Record] = []
    give_up = asyncio.get_running_loop().time() + READ_MS_MAX / 1000
    while waiting:
        for partition, records in (await reader.read(timeout_ms=200, records_max=5_000)).items():
            found.extend(record for record in records if record.offset < ends[partition])
        waiting = {partition for partition in waiting if await reader.position(partition) < ends[partition]}
        if len(found) > RECORDS_MAX:
            raise LogUnavailable(f"{partitions[0].topic} has more than {RECORDS_MAX} records: too many to show")
        if waiting and asyncio.get_running_loop().time() > give_up:
            raise LogUnavailable(f"the end of {partitions[0].topic} was not reached within {READ_MS_MAX / 1000:.0f} s: is Kafka busy or partly down?")
    return found


@asynccontextmanager
async def _opened(reader: Reader) -> AsyncGenerator[Reader]:
    await reader.start()
    try:
        yield reader
    finally:
        await reader.close()

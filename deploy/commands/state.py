"""`headrace get`: the catalog, the plan, the workers and the lag as the topics have them now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import click
import uvloop

from broker.log import Log
from deploy.commands.command import Command, Group
from deploy.commands.learned import alerts, models
from deploy.commands.output import Output
from deploy.commands.plan import NO_PLAN, show_plan
from deploy.configuration import Connection
from deploy.connections import open_log
from deploy.snapshots import read_alive, read_catalog, read_lag, read_plan
from scaler.lag import PartitionLag
from schemas.catalog import Catalog, EndpointSpec
from schemas.names import Names
from schemas.telemetry import WorkerReport

Found = TypeVar("Found")
MEGABYTE = 1 << 20


@click.group(cls=Group)
def get() -> None:
    """Show the catalog and the state.

    \b
    headrace get endpoints
    headrace get workers --json
    """


get.add_command(models)
get.add_command(alerts)


@get.command(cls=Command)
def endpoints(connection: Connection, output: Output) -> None:
    """The endpoints with their tasks and variants; of graphs, the revision and what runs on which.

    \b
    headrace get endpoints
    """
    catalog, running = _read(connection, _read_endpoints)
    rows: list[tuple[object, ...]] = []
    for endpoint in catalog.endpoints.values():
        what = endpoint.task if endpoint.graph is None else f"graph, {len(endpoint.graph.nodes)} nodes"
        revision = "-" if endpoint.graph is None else endpoint.revision
        on = ", ".join(f"{count} on {number}" for number, count in sorted(running.get(endpoint.name, {}).items())) or "-"
        floor, timeout_ms = f"{endpoint.defaults.min_accuracy:g}", endpoint.defaults.timeout_ms
        rows.append((endpoint.name, what, revision, on, floor, timeout_ms, _variants(catalog, endpoint)))
    columns = ("endpoint", "task or graph", "revision", "running", "min accuracy", "timeout ms", "variants (accuracy)")
    output.table("", columns, rows)
    gone = {name: counts for name, counts in running.items() if name not in catalog.endpoints}
    for name, counts in gone.items():
        output.say(f"{name} was deleted, {sum(counts.values())} requests still run on it")
    if not rows:
        output.say("the catalog has no endpoint: apply some with `headrace apply FILE...`")
    output.result({"endpoints": list(catalog.endpoints.values()), "tasks": list(catalog.tasks.values()), "running": running})


def _variants(catalog: Catalog, endpoint: EndpointSpec) -> str:
    if endpoint.graph is not None:
        return f"`headrace graph show {endpoint.name}`"
    task = catalog.tasks.get(endpoint.task)
    return "task is missing" if task is None else ", ".join(f"{variant.name} {variant.accuracy:g}" for variant in task.variants)


async def _read_endpoints(log: Log, names: Names) -> tuple[Catalog, dict[str, dict[str, int]]]:
    """The catalog, and the requests that run on each revision of each graph, as the dispatchers say."""
    catalog, alive = await read_catalog(log, names), await read_alive(log, names)
    running: dict[str, dict[str, int]] = {}
    for dispatcher in alive.dispatchers.values():
        for key, count in dispatcher.running.items():
            name, _, revision = key.rpartition("@")
            counts = running.setdefault(name, {})
            counts[revision] = counts.get(revision, 0) + count
    return catalog, running


@get.command(cls=Command)
def plan(connection: Connection, output: Output) -> None:
    """The plan: which worker hosts which variants, and the routing shares.

    \b
    headrace get plan --json
    """
    found = _read(connection, read_plan)
    if found is None:
        output.say(NO_PLAN)
    else:
        show_plan(output, found)
    output.result({"plan": found})


@get.command(cls=Command)
def workers(connection: Connection, output: Output) -> None:
    """The workers that reported in the last seconds, with the device that really computes.

    \b
    headrace get workers
    """
    found = sorted(_read(connection, read_alive).workers.values(), key=lambda worker: worker.worker)
    columns = ("worker", "class", "device", "state", "lane", "waiting rows", "memory MB", "variants (state)")
    output.table("", columns, [_worker_row(worker) for worker in found])
    if not found:
        output.say("no worker reported in the last seconds: start some with `headrace worker --accelerator cpu`, or `headrace up`")
    output.result({"workers": found})


def _worker_row(worker: WorkerReport) -> tuple[object, ...]:
    hosted = ", ".join(f"{key} ({variant.reason or variant.state})" for key, variant in worker.variants.items())
    memory = round(worker.memory_bytes / MEGABYTE)
    state = f"{worker.state}: {worker.reason}" if worker.reason else worker.state
    return worker.worker, worker.accelerator, _device(worker), state, worker.lane, worker.waiting_rows, memory, hosted


def _device(worker: WorkerReport) -> str:
    """Of a board, also what is on it, and how it is."""
    board = worker.board
    if board is None:
        return worker.device
    overlay = f"overlay {board.overlay[:12]} at {board.clock_mhz:.4g} MHz" if board.overlay else "no overlay"
    warmth = f", {board.temperature_celsius:.3g} °C" if board.temperature_celsius else ""
    power = f", {board.power_watts:.3g} W" if board.power_watts else ""
    return f"{worker.device}, {overlay}{warmth}{power}"


@get.command(cls=Command)
def lag(connection: Connection, output: Output) -> None:
    """Log end minus committed offset of every group, as Kafka's own tools show it.

    \b
    headrace get lag --json
    """
    found = _read(connection, read_lag)
    totals: dict[tuple[str, str], list[PartitionLag]] = {}
    for partition in found:
        totals.setdefault((partition.group, partition.topic), []).append(partition)
    rows = [(group, topic, sum(p.lag_messages for p in parts), _spread(parts)) for (group, topic), parts in totals.items()]
    output.table("", ("group", "topic", "lag messages", "by partition"), rows)
    if not rows:
        output.say(f"no topic with the prefix {connection.prefix!r} on this Kafka: is it the right --prefix?")
    by_group = Counter[str]()
    for (group, _), parts in totals.items():
        by_group[group] += sum(p.lag_messages for p in parts)
    output.result({"lag_messages": by_group, "partitions": found})


def _spread(parts: list[PartitionLag]) -> str:
    return ", ".join(f"{p.partition}: {p.lag_messages}" for p in parts if p.lag_messages)


def _read(connection: Connection, read: Callable[[Log, Names], Coroutine[Any, Any, Found]]) -> Found:
    async def within_log() -> Found:
        async with open_log(connection) as log:
            return await read(log, connection.names)

    return uvloop.run(within_log())

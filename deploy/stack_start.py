"""Starts a stack and applies catalog files to it on the way: workers become ready by what the catalog gives them to host."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from deploy.catalog_apply import Change, apply_files
from deploy.configuration import Connection, split_address
from deploy.connections import create_topics, open_log
from deploy.control_changes import write_control
from deploy.local import stack as local
from deploy.local.kafka import kafka_answers
from schemas.errors import LogUnavailable

SERVER_POLL_S = 0.05
APPLY_S_MAX = 60.0
"""A Kafka that has just started on a busy machine may not answer every call at once."""


async def start_and_apply(
    plan: local.StackPlan,
    connection: Connection,
    files: Sequence[Path],
    models: Path,
    *,
    on_progress: Callable[[str], None],
    optimizer: str | None = None,
) -> tuple[local.Stack, list[Change]]:
    """Returns when all is ready. `optimizer`: who plans from now on, by the catalog.

    Raises as local.start and apply_files do; then nothing is left running.
    """
    starting = asyncio.create_task(local.start(plan, on_progress=on_progress))
    applying = asyncio.create_task(_apply_when_up(plan.folder, connection, files, models, optimizer))
    try:
        await asyncio.wait((starting, applying), return_when=asyncio.FIRST_EXCEPTION)
        if starting.done():
            stack = starting.result()
            return stack, await applying
        applying.result()
        return await starting, applying.result()
    finally:
        for task in (applying, starting):
            task.cancel()
        await asyncio.gather(starting, applying, return_exceptions=True)


async def _apply_when_up(folder: Path, connection: Connection, files: Sequence[Path], models: Path, optimizer: str | None) -> list[Change]:
    if not files and optimizer is None:
        return []
    while True:
        stack = local.read(folder)
        if stack is not None and stack.supervisor.is_alive():
            host, port = split_address(stack.kafka.partition(",")[0])
            if await asyncio.to_thread(kafka_answers, host, port):
                break
        await asyncio.sleep(SERVER_POLL_S)
    there = Connection(
        kafka=stack.kafka, redis=stack.redis, prefix=stack.prefix, replication=connection.replication, kafka_options=connection.kafka_options
    )
    until_s = time.monotonic() + APPLY_S_MAX
    while True:
        try:
            async with open_log(there) as log:
                await create_topics(log, there)
                if optimizer is not None:
                    await write_control(log, there.names, optimizer=optimizer)
                return await apply_files(log, there.names, files, models, replication=there.replication)
        except LogUnavailable:
            if time.monotonic() > until_s:
                raise
            await asyncio.sleep(1.0)

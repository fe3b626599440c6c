"""`headrace up`, `status` and `down`: the whole stack on this machine."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import uvloop
from rich.console import Console

from deploy.catalog_files import load_catalog_files
from deploy.commands.catalog import Change, show_changes
from deploy.commands.command import Command, config_path, option
from deploy.commands.output import Output
from deploy.configuration import Connection
from deploy.connections import open_log
from deploy.local import stack as local
from deploy.running_stack import CACHE, FOLDER, MODELS, PROFILES
from deploy.snapshots import read_leader
from deploy.stack_plan import UpOptions, default_workers, parse_ranges, plan_stack, scale_rules, start_counts
from deploy.stack_start import start_and_apply
from scaler.optimizers.registry import create_optimizer
from schemas.errors import ConfigurationError, HeadraceError

WATCH_MS = 500.0
LEADER_MS_MAX = 3_000.0


def _parsed_workers(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> dict[str, tuple[int, int]]:
    try:
        return {name: (count, count) for name, count in default_workers().items()} if value is None else parse_ranges(value)
    except ConfigurationError as error:
        raise click.BadParameter(str(error)) from None


@click.command(cls=Command)
@click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="[FILE...]")
@option("--detach", is_flag=True, help="Return when the stack is ready; `headrace down` ends it.")
@option(
    "--workers", callback=_parsed_workers, metavar="CLASS=N,...", help="Default: cpu=1, and vpu=1 where OpenVINO is installed; cpu=1..4: by load."
)
@option("--cores", type=click.IntRange(0), default=0, help="Processor cores for workers whose number follows the load; alone: cpu workers up to it.")
@option("--dispatchers", type=click.IntRange(1, 16), default=1, show_default=True)
@option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of each worker.")
@option("--optimizer", default=None, help="Who plans; kept in the catalog, as `headrace optimizers use` does. Default: the catalog's, else headrace.")
@option("--ha", is_flag=True, help="A second scaler stands by: it leads within seconds after the first one's death.")
@option("--vpu-device", default="CPU", show_default=True, help="OpenVINO device of the vpu workers: NPU where there is one.")
@option("--models", type=click.Path(file_okay=False, path_type=Path), default=MODELS, show_default=True, help="Model repository.")
@option("--profiles", type=click.Path(file_okay=False, path_type=Path), default=PROFILES, show_default=True, help="Stored profiles.")
@option("--kafka-home", envvar="KAFKA_HOME", type=click.Path(file_okay=False), help="An unpacked Kafka; default: Maven, then Docker.")
def up(connection: Connection, output: Output, files: tuple[Path, ...], *, detach: bool, **options: Any) -> None:
    """Start Kafka, Valkey and every role on this machine, and apply FILEs.

    Servers whose addresses are given (--kafka, --redis) are used instead of started. Without --detach the stack ends with Ctrl-C.
    State lies in .headrace/stack.json, logs in .headrace/logs; whatever dies is started again.

    \b
    headrace up examples/fashion/*.yaml
    headrace up --detach --workers cpu=2,vpu=1 --dispatchers 2 examples/fashion/*.yaml
    headrace up --workers cpu=1..4 --cores 4 --threads 4 examples/fashion/*.yaml
    headrace up --ha --optimizer static-accurate examples/fashion/*.yaml
    headrace up --kafka 127.0.0.1:9092 --redis redis://127.0.0.1:6379
    """
    owner_pid = None if detach else os.getpid()
    # Faults of the files show at once, not after servers were started for them.
    stated = load_catalog_files(files)
    ranges = options.pop("workers")
    scale = scale_rules(ranges, options.pop("cores"), options["threads"])
    settings = UpOptions(
        **options,
        workers=start_counts(ranges),
        scale=scale,
        cache=CACHE,
        config=config_path(),
        applies_files=bool(files),
        taps=any(endpoint.taps is not None for endpoint in stated.endpoints),
        owner_pid=owner_pid,
    )
    if settings.optimizer is not None:
        create_optimizer(settings.optimizer)
    uvloop.run(_up(connection, settings, files, output))


async def _up(connection: Connection, options: UpOptions, files: tuple[Path, ...], output: Output) -> None:
    plan = plan_stack(FOLDER, options, kafka=connection.kafka, redis=connection.redis, prefix=connection.prefix)
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        stack, changes = await _start(plan, connection, files, options)
        show_changes(output, changes)
        _show(output, stack, leader=None)
        output.result(_state(stack, leader=None) | {"applied": changes})
        if options.owner_pid is None:
            output.say("ready; look with `headrace status`, end it with `headrace down`")
            return
        output.say("ready; Ctrl-C ends it")
        await _watch(output, stack)
    except asyncio.CancelledError:
        output.say("ending the stack ...")
        await local.stop(FOLDER)
        if options.owner_pid is None:
            raise click.Abort from None


async def _start(plan: local.StackPlan, connection: Connection, files: tuple[Path, ...], options: UpOptions) -> tuple[local.Stack, list[Change]]:
    with Console(stderr=True).status("starting") as status:
        return await start_and_apply(plan, connection, files, options.models, on_progress=status.update, optimizer=options.optimizer)


async def _watch(output: Output, stack: local.Stack) -> None:
    """Say what changes, until the supervisor is gone."""
    restarts = {process.name: process.restarts for process in stack.processes}
    while True:
        await asyncio.sleep(WATCH_MS / 1000)
        now = local.read(FOLDER)
        if now is None or not now.supervisor.is_alive():
            raise HeadraceError("the stack was ended from elsewhere" if now is None else f"the supervisor is gone; see {FOLDER / local.LOGS}")
        for process in now.processes:
            if process.restarts > restarts.get(process.name, 0):
                output.say(f"{process.name} died and was started again (pid {process.pid}, {process.restarts} restarts); see {_log_file(process)}")
            restarts[process.name] = process.restarts


def _log_file(process: local.StackProcess) -> Path:
    return FOLDER / local.LOGS / f"{process.name}.log"


@click.command(cls=Command)
def status(connection: Connection, output: Output) -> None:
    """What runs in this folder: processes, restarts, addresses, and who leads. Exit code 1 where something is missing.

    \b
    headrace status
    headrace status --json | jq .leader
    """
    stack = local.read(FOLDER)
    if stack is None:
        output.result({"state": "none", "processes": []})
        output.say("no stack runs in this folder: start one with `headrace up`")
        raise click.exceptions.Exit(1)
    leader = uvloop.run(_leader(stack, connection))
    _show(output, stack, leader)
    output.result(_state(stack, leader))
    if stack.state != local.RUNNING or not all(process.is_alive() for process in (stack.supervisor, *stack.processes)):
        raise click.exceptions.Exit(1)


async def _leader(stack: local.Stack, connection: Connection) -> str | None:
    """Whichever scaler says that it leads; None where none has for some seconds, or where that cannot be told now."""
    if not stack.supervisor.is_alive():
        return None
    there = Connection(kafka=stack.kafka, prefix=stack.prefix, kafka_options=connection.kafka_options)
    with suppress(HeadraceError, TimeoutError):
        async with asyncio.timeout(LEADER_MS_MAX / 1000), open_log(there) as log:
            report = await read_leader(log, there.names)
            return report.scaler if report is not None else None
    return None


def _show(output: Output, stack: local.Stack, leader: str | None) -> None:
    rows = [
        (process.role, process.name, process.pid, "yes" if process.is_alive() else "NO", process.restarts, process.http or "")
        for process in (stack.supervisor, *stack.processes)
    ]
    output.table("", ("role", "name", "pid", "alive", "restarts", "metrics and health"), rows)
    output.say(f"kafka {stack.kafka}   redis {stack.redis}   prefix {stack.prefix}   state {stack.state}" + (f"   leader {leader}" if leader else ""))


def _state(stack: local.Stack, leader: str | None) -> dict[str, Any]:
    processes = [
        {"role": p.role, "name": p.name, "pid": p.pid, "alive": p.is_alive(), "restarts": p.restarts, "http": p.http}
        for p in (stack.supervisor, *stack.processes)
    ]
    return {
        "state": stack.state,
        "kafka": stack.kafka,
        "redis": stack.redis,
        "gateway": stack.gateway,
        "prefix": stack.prefix,
        "leader": leader,
        "processes": processes,
    }


@click.command(cls=Command)
def down(connection: Connection, output: Output) -> None:
    """End the stack that runs in this folder, in order: roles, sink, Valkey, Kafka. What Kafka stored stays for the next `up`.

    \b
    headrace down
    """
    del connection
    with Console(stderr=True).status("ending the stack"):
        ended = asyncio.run(local.stop(FOLDER))
    output.say(f"{len(ended)} processes ended" if ended else "no stack runs in this folder")
    output.result({"ended": ended})

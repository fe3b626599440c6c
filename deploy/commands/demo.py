"""`headrace demo`: labelled images, floors and deadlines, over genuine Kafka or in this process, and what came of it."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click
import uvloop
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from broker.client import Client
from deploy.commands.command import Command, Option
from deploy.commands.output import Output
from deploy.configuration import Connection
from deploy.demo.play import EXAMPLE, Labelled, play
from deploy.demo.report import show, summary
from deploy.demo.traffic import BURST_FACTOR, schedule
from deploy.embedded import Embedded
from deploy.local import stack as local
from deploy.stack_plan import UpOptions, default_workers, plan_stack
from deploy.stack_start import start_and_apply
from schemas.errors import ConfigurationError, DeviceUnavailable

CATALOG = (EXAMPLE / "task.yaml", EXAMPLE / "endpoint.yaml")
LOCAL_KAFKA = "local"


class DemoCommand(Command):
    """Its --kafka may stand alone: then the demo starts a Kafka of its own."""

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.params = [parameter for parameter in self.params if parameter.name != "kafka"]
        words = "Over genuine Kafka and Valkey, a process for each role; without an address they are started for the demo."
        self.params.insert(0, Option(["--kafka"], is_flag=False, flag_value=LOCAL_KAFKA, metavar="[HOST:PORT]", help=words))


@click.command(cls=DemoCommand)
@click.option("--embedded", is_flag=True, help="Everything in this process, without servers (the default).")
@click.option("--auto", is_flag=True, help="Over Kafka where one can be had, else embedded, loudly.")
@click.option("--requests", type=click.IntRange(10, 1_000_000), default=3000, show_default=True, help="How many requests in all.")
@click.option(
    "--rate", type=click.FloatRange(1, 10_000), default=60.0, show_default=True, help=f"Steady requests/s; the burst is {BURST_FACTOR:g} x."
)
def demo(connection: Connection, output: Output, *, embedded: bool, auto: bool, requests: int, rate: float) -> None:
    """The main job on real input: four labelled images a request, mixed accuracy floors and deadlines, and a burst beyond capacity.

    \b
    headrace demo                      in this process, in seconds
    headrace demo --kafka              genuine Kafka and Valkey, a process for each role
    headrace demo --kafka --json       one JSON object as the last line
    """
    kafka = connection.kafka
    if embedded and auto:
        raise click.UsageError("--embedded and --auto exclude each other")
    if embedded:
        kafka = None
    elif auto and kafka is None:
        kafka = LOCAL_KAFKA
    try:
        uvloop.run(_demo(output, kafka, requests, rate))
    except (ConfigurationError, DeviceUnavailable) as error:
        if not auto:
            raise
        output.console.rule("[bold red]FALLING BACK: no Kafka")
        output.say(f"{error}\nThe demo runs embedded instead: the in-process log, not Kafka.")
        output.console.rule()
        uvloop.run(_demo(output, None, requests, rate))


async def _demo(output: Output, kafka: str | None, requests: int, rate: float) -> None:
    data = Labelled()
    asks = schedule(requests, rate, len(data.images))
    opened = _over_kafka(output, kafka) if kafka else _embedded(output)
    async with opened as client:
        with _progress(output) as progress:
            sent = progress.add_task("steady", total=requests)

            def show_progress(phase: str, published: int, answered: int) -> None:
                progress.update(sent, description=f"{phase}: {answered} answered", completed=published)

            answered = await play(client, asks, data, show_progress)
    total = summary("kafka" if kafka else "memory", answered)
    show(output.console, total, answered)
    output.result(total)


def _progress(output: Output) -> Progress:
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=output.console)


@asynccontextmanager
async def _embedded(output: Output) -> AsyncGenerator[Client]:
    output.say("embedded: dispatcher, workers (cpu, and vpu on the CPU), sink and planner in this process, over the in-process log")
    async with Embedded(CATALOG, workers=("cpu", "vpu"), allow_cpu=True) as client:
        yield client


@asynccontextmanager
async def _over_kafka(output: Output, kafka: str) -> AsyncGenerator[Client]:
    """A stack of its own, in a folder and under a prefix of its own, that ends with the demo."""
    prefix = f"demo-{secrets.token_hex(3)}"
    with tempfile.TemporaryDirectory(prefix="headrace-demo-") as name:
        folder = Path(name)
        options = UpOptions(
            workers=default_workers(),
            models=folder / "models",
            profiles=folder / "profiles",
            cache=folder / "cache",
            applies_files=True,
            owner_pid=os.getpid(),
        )
        address = None if kafka == LOCAL_KAFKA else kafka
        plan = plan_stack(folder, options, kafka=address, redis=None, prefix=prefix)
        try:
            stack, _ = await start_and_apply(plan, Connection(kafka=address, prefix=prefix), CATALOG, options.models, on_progress=output.say)
            output.say(f"Kafka at {stack.kafka}, Valkey at {stack.redis}, {len(stack.processes)} processes")
            async with Client(kafka=stack.kafka, redis=stack.redis, prefix=prefix) as client:
                yield client
        finally:
            await local.stop(folder)

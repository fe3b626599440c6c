"""`headrace demo`: labelled images, floors and deadlines, over genuine Kafka or in this process, and what came of it."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
import uvloop

from broker.client import Client
from deploy.commands.command import Command, Option
from deploy.commands.output import Output
from deploy.configuration import Connection
from deploy.demo.graph_play import play_graph
from deploy.demo.graphs import DEMOS
from deploy.demo.ocr_play import play_ocr
from deploy.demo.play import EXAMPLE, Labelled, play
from deploy.demo.progress import progress_bar, shown_on
from deploy.demo.report import show, summary
from deploy.demo.traffic import BURST_FACTOR, schedule
from deploy.embedded import Embedded
from deploy.local import stack as local
from deploy.stack_plan import default_workers, options_within, plan_stack
from deploy.stack_start import start_and_apply
from schemas.errors import ConfigurationError, DeviceUnavailable

CATALOG = (EXAMPLE / "task.yaml", EXAMPLE / "endpoint.yaml")
LOCAL_KAFKA = "local"
REQUESTS, RATE_RPS = 3_000, 60.0
OCR = "ocr"


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
@click.option("--graph", type=click.Choice((*DEMOS, OCR)), help="A graph instead of a single stage, at a steady rate.")
@click.option("--requests", type=click.IntRange(10, 1_000_000), help="How many requests in all.  [default: 3000; with --graph 600 or more]")
@click.option("--rate", type=click.FloatRange(1, 10_000), help=f"Steady requests/s; the burst is {BURST_FACTOR:g} x.  [default: 60]")
def demo(connection: Connection, output: Output, *, embedded: bool, auto: bool, **options: Any) -> None:
    """The main job on real input: four labelled images a request, mixed accuracy floors and deadlines, and a burst beyond capacity.

    \b
    headrace demo                      in this process, in seconds
    headrace demo --kafka              genuine Kafka and Valkey, a process for each role
    headrace demo --graph cascade      a graph: cascade, ensemble, canary, shadow, ocr
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
        uvloop.run(_demo(output, kafka, **options))
    except (ConfigurationError, DeviceUnavailable) as error:
        if not auto:
            raise
        output.console.rule("[bold red]FALLING BACK: no Kafka")
        output.say(f"{error}\nThe demo runs embedded instead: the in-process log, not Kafka.")
        output.console.rule()
        uvloop.run(_demo(output, None, **options))


async def _demo(output: Output, kafka: str | None, graph: str | None, requests: int | None, rate: float | None) -> None:
    log = "kafka" if kafka else "memory"
    if graph == OCR:
        await play_ocr(output, partial(_opened, output, kafka), requests, log)
        return
    if graph is not None:
        await play_graph(output, partial(_opened, output, kafka), DEMOS[graph], requests, rate, log)
        return
    data = Labelled()
    asks = schedule(requests or REQUESTS, rate or RATE_RPS, len(data.images))
    async with _opened(output, kafka, CATALOG) as client:
        with progress_bar(output) as progress:
            answered = await play(client, asks, data, shown_on(progress, len(asks)))
    total = summary(log, answered)
    show(output.console, total, answered)
    output.result(total)


def _opened(output: Output, kafka: str | None, files: Sequence[Path]) -> AbstractAsyncContextManager[Client]:
    return _over_kafka(output, kafka, files) if kafka else _embedded(output, files)


@asynccontextmanager
async def _embedded(output: Output, files: Sequence[Path]) -> AsyncGenerator[Client]:
    output.say("embedded: dispatcher, workers (cpu, and vpu on the CPU), sink and planner in this process, over the in-process log")
    async with Embedded(files, workers=("cpu", "vpu"), allow_cpu=True) as client:
        yield client


@asynccontextmanager
async def _over_kafka(output: Output, kafka: str, files: Sequence[Path]) -> AsyncGenerator[Client]:
    """A stack of its own, in a folder and under a prefix of its own, that ends with the demo."""
    prefix = f"demo-{secrets.token_hex(3)}"
    with tempfile.TemporaryDirectory(prefix="headrace-demo-") as name:
        folder = Path(name)
        options = options_within(folder, default_workers())
        address = None if kafka == LOCAL_KAFKA else kafka
        plan = plan_stack(folder, options, kafka=address, redis=None, prefix=prefix)
        try:
            stack, _ = await start_and_apply(plan, Connection(kafka=address, prefix=prefix), files, options.models, on_progress=output.say)
            output.say(f"Kafka at {stack.kafka}, Valkey at {stack.redis}, {len(stack.processes)} processes")
            async with Client(kafka=stack.kafka, redis=stack.redis, prefix=prefix) as client:
                yield client
        finally:
            await local.stop(folder)

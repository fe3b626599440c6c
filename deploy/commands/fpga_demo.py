"""`headrace fpga demo`: a processor and two emulated boards serve labelled images over genuine Kafka."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import click
import uvloop

from broker.client import Client
from deploy.commands.command import Command, option
from deploy.commands.output import Output
from deploy.configuration import Connection
from deploy.demo.boards import CATALOG, FABRICS, FLOORS, PACKAGE, by_class, by_device, table
from deploy.demo.play import Labelled, play
from deploy.demo.progress import progress_bar, shown_on
from deploy.demo.report import show, summary
from deploy.demo.traffic import schedule
from deploy.local import stack as local
from deploy.local.boards import BoardPlan, check_python, plan_with_boards
from deploy.running_stack import CACHE
from deploy.stack_plan import options_within
from deploy.stack_start import start_and_apply
from schemas.errors import ConfigurationError

REQUESTS, RATE_RPS = 1_500, 25.0
FPGA_PYTHON = Path(".venv-fpga/bin/python")
COMPILE_S_MAX = 400


@click.command(cls=Command)
@option("--requests", type=click.IntRange(10, 1_000_000), default=REQUESTS, show_default=True, help="How many requests in all.")
@option("--rate", type=click.FloatRange(1, 10_000), default=RATE_RPS, show_default=True, help="Steady requests/s; the burst is 8 x.")
@option("--fpga-python", type=click.Path(path_type=Path), default=FPGA_PYTHON, show_default=True, help="Interpreter of the environment with pynq.")
@option("--cache", type=click.Path(file_okay=False, path_type=Path), default=CACHE, show_default=True, help="Compiled fabrics.")
def demo(connection: Connection, output: Output, requests: int, rate: float, fpga_python: Path, cache: Path) -> None:
    """A processor and two boards (one computes in numpy, one runs the project's RTL in Verilator) serve one endpoint over genuine Kafka.

    \b
    make fpga-demo
    headrace fpga demo --requests 1000 --json
    """
    boards = BoardPlan(fabrics=FABRICS, python=check_python(fpga_python), cache=cache)
    uvloop.run(_demo(connection, output, boards, requests, rate))


async def _demo(connection: Connection, output: Output, boards: BoardPlan, requests: int, rate_rps: float) -> None:
    data = Labelled()
    asks = schedule(requests, rate_rps, len(data.images), floors=FLOORS)
    await asyncio.to_thread(compile_rtl, output, boards)
    async with _opened(connection, output, boards) as client:
        with progress_bar(output) as progress:
            answered = await play(client, asks, data, shown_on(progress, len(asks)))
    classes, devices = by_class(answered), by_device(answered)
    total = summary("kafka", answered) | {"by_class": classes, "by_device": devices}
    show(output.console, total, answered)
    output.console.print(table("by class", classes))
    output.console.print(table("by device", devices))
    output.result(total)


def compile_rtl(output: Output, boards: BoardPlan) -> None:
    """So that no board is busy compiling when it should configure itself. Raises ConfigurationError where it cannot be done."""
    output.say("compiling the RTL with Verilator, once")
    argv = [str(boards.python), "-P", "-m", "deploy.cli", "fpga", "compile", str(PACKAGE), "--cache", str(boards.cache)]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=COMPILE_S_MAX, check=False)  # noqa: S603 - no shell
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigurationError(f"the RTL cannot be compiled: {error}") from None
    if done.returncode:
        raise ConfigurationError(f"the RTL cannot be compiled: {done.stderr.strip()[-800:]}")


@asynccontextmanager
async def _opened(connection: Connection, output: Output, boards: BoardPlan) -> AsyncGenerator[Client]:
    """A stack of its own, in a folder and under a prefix of its own, that ends with the demo."""
    prefix = f"demo-{secrets.token_hex(3)}"
    with tempfile.TemporaryDirectory(prefix="headrace-demo-") as name:
        folder = Path(name)
        options = options_within(folder, {"cpu": 1})
        plan = plan_with_boards(folder, options, boards, kafka=connection.kafka, redis=None, prefix=prefix)
        try:
            stack, _ = await start_and_apply(plan, Connection(kafka=connection.kafka, prefix=prefix), CATALOG, options.models, on_progress=output.say)
            output.say(f"Kafka at {stack.kafka}, Valkey at {stack.redis}, {len(stack.processes)} processes, two of them boards")
            async with Client(kafka=stack.kafka, redis=stack.redis, prefix=prefix) as client:
                yield client
        finally:
            await local.stop(folder)

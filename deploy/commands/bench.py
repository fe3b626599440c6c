"""`headrace bench`: every row measures its baseline and Headrace in one run, over genuine Kafka, and says whether the must is met."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
import uvloop
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from deploy.bench.added_latency import AddedLatency
from deploy.bench.dispatcher_cpu import DispatcherCpu
from deploy.bench.expiry import Expiry
from deploy.bench.fpga_live import FpgaMixed, FpgaRecovery
from deploy.bench.fpga_overhead import FpgaOverhead
from deploy.bench.graph_chain import GraphChain
from deploy.bench.graph_cpu import GraphCpu
from deploy.bench.graph_join import GraphJoin
from deploy.bench.graph_shadow import GraphShadow
from deploy.bench.harness import Harness
from deploy.bench.late_binding import LateBinding
from deploy.bench.memory import Memory
from deploy.bench.overload import Overload
from deploy.bench.report import COLUMNS, DIFFERS, PREDICTED, RowReport, cells, differences, predicted_cells, summarise
from deploy.bench.rows import Measured, Row, Say, Scale
from deploy.bench.scaling_burst import ScalingBurst
from deploy.bench.scaling_capacity import ScalingCapacity
from deploy.bench.scaling_cost import ScalingCost
from deploy.bench.scaling_epochs import ScalingEpochs
from deploy.bench.scaling_rebind import ScalingRebind
from deploy.bench.scaling_shift import ScalingShift
from deploy.bench.spare_capacity import SpareCapacity
from deploy.bench.taps_dead_sink import TapsDeadSink
from deploy.bench.taps_path import TapsPath
from deploy.bench.taps_speed import TapSpeed
from deploy.commands.command import Command
from deploy.commands.output import Output
from deploy.configuration import Connection
from deploy.local.kafka import QUICK_JVM, STEADY_JVM
from deploy.log_output import configure_logs
from schemas.errors import HeadraceError
from workers.host import host_name, processor_name

ROWS: tuple[Row, ...] = (DispatcherCpu(), AddedLatency(), Expiry(), LateBinding(), Overload(), SpareCapacity(), Memory())
GRAPH_ROWS: tuple[Row, ...] = (GraphCpu(), GraphJoin(), GraphChain(), GraphShadow())
SCALING_ROWS: tuple[Row, ...] = (ScalingCapacity(), ScalingShift(), ScalingBurst(), ScalingRebind(), ScalingEpochs(), ScalingCost())
TAP_ROWS: tuple[Row, ...] = (TapsPath(), TapSpeed("kafka", 10_000.0), TapSpeed("parquet", 5_000.0), TapsDeadSink())
FPGA_ROWS: tuple[Row, ...] = (FpgaOverhead(remote=False), FpgaOverhead(remote=True), FpgaRecovery(), FpgaMixed())
GROUPS = {"graphs": GRAPH_ROWS, "scaling": SCALING_ROWS, "taps": TAP_ROWS, "fpga": FPGA_ROWS}
BY_NAME = dict[str, tuple[Row, ...]]({row.name: (row,) for row in (*ROWS, *(row for group in GROUPS.values() for row in group))} | GROUPS)
RUNS = 3
SOAK_S, SOAK_QUICK_S = 30.0, 12.0
SHORT_SOAK_MINUTES = 10.0


class BenchReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `--json` and `--output` give."""

    host: str
    processor: str
    started_ms: int
    minutes: float
    runs: int
    quick: bool
    soak_minutes: float
    pinned: bool
    """Whether the worker had a core to itself."""
    rows: tuple[RowReport, ...]

    @property
    def unmet(self) -> list[str]:
        return [f"{line.row}: {line.figure}" for row in self.rows for line in row.lines if line.met is False]


@click.command(cls=Command)
@click.argument("rows", nargs=-1, type=click.Choice(sorted(BY_NAME)), metavar="[ROW]...")
@click.option(
    "--runs", type=click.IntRange(1, 100), help=f"Runs of each row; the median counts, the spread is shown. Default: {RUNS}, with --quick 1."
)
@click.option("--quick", is_flag=True, help="One short run of each row, in about two minutes: says whether something is broken, not how good it is.")
@click.option(
    "--soak-minutes", type=click.FloatRange(0.1, 24 * 60), help="Length of the run at capacity that looks for growth. Default: half a minute."
)
@click.option("--output", "output_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the JSON here too.")
@click.option("--kafka-home", envvar="KAFKA_HOME", type=click.Path(file_okay=False), help="Kafka to start where no --kafka is given.")
def bench(connection: Connection, output: Output, rows: Sequence[str], runs: int | None, quick: bool, **options: Any) -> int:  # noqa: FBT001 - click's callback
    """Measure speed and memory against baselines, in one run, on a genuine Kafka (one is started where no --kafka is given).

    \b
    headrace bench                                  every row but those of the groups, three runs: about ten minutes
    headrace bench --quick                          about two minutes
    headrace bench graphs                           the rows about graphs
    headrace bench scaling                          the rows about scaling, on the ImageNet ladder, with the simulator's predictions
    headrace bench taps                             the rows about taps
    headrace bench fpga                             the rows about FPGA boards, in the environment with pynq (.venv-fpga)
    headrace bench overload late-binding --runs 5 --output bench.json
    headrace bench memory --soak-minutes 10
    """
    configure_logs(log_format=None, log_level="error", role="bench", name="bench")
    chosen = chosen_rows(rows)
    minutes: float | None = options["soak_minutes"]
    soak_s = minutes * 60 if minutes is not None else SOAK_QUICK_S if quick else SOAK_S
    scale = Scale(quick=quick, soak_s=soak_s)
    try:
        report = uvloop.run(_bench(connection.kafka, options["kafka_home"], output, chosen, scale, runs or (1 if quick else RUNS)))
    except asyncio.CancelledError:
        raise click.Abort from None
    _show(output, report)
    if options["output_file"] is not None:
        _write(options["output_file"], report)
    output.result(report)
    return 1 if report.unmet else 0


def chosen_rows(names: Sequence[str]) -> list[Row]:
    """The rows of these names, each once; without names all but those of the groups."""
    return list(dict.fromkeys(row for name in names for row in BY_NAME[name])) or list(ROWS)


async def _bench(kafka: str | None, kafka_home: str | None, output: Output, rows: Sequence[Row], scale: Scale, runs: int) -> BenchReport:
    started_s = time.time()
    running = asyncio.current_task()
    assert running is not None
    # Ended in order, so that nothing of it is left; Ctrl-C does the same by itself.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    reports: list[RowReport] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    total = sum(1 if row.once else runs for row in rows)
    with Progress(*columns, console=output.console, transient=True) as progress:
        bar = progress.add_task("starting", total=total)
        # Rows about scaling share two cores with Kafka for half a minute each: what its second compiler takes is what workers lack.
        jvm_options = QUICK_JVM if set(rows) <= set(SCALING_ROWS) else STEADY_JVM
        async with Harness(kafka, output.say, kafka_home=kafka_home, jvm_options=jvm_options) as harness:
            for row in rows:
                measured: list[Measured] = []
                for run in range(1 if row.once else runs):
                    say = _saying(progress, bar, row, run)
                    measured.append(await row.measure(harness, scale, run, say))
                    progress.advance(bar)
                reports.append(summarise(row, measured))
            return BenchReport(
                host=host_name(),
                processor=processor_name(),
                started_ms=int(started_s * 1000),
                minutes=round((time.time() - started_s) / 60, 2),
                runs=runs,
                quick=scale.quick,
                soak_minutes=scale.soak_s / 60,
                pinned=harness.own_kafka and bool(harness.cores.worker),
                rows=tuple(reports),
            )


def _saying(progress: Progress, bar: TaskID, row: Row, run: int) -> Say:
    def say(words: str) -> None:
        progress.update(bar, description=f"{row.name} {run + 1}: {words}")

    return say


def _show(output: Output, report: BenchReport) -> None:
    lines = [line for row in report.rows for line in row.lines]
    heading = f"{report.processor}, {report.runs} runs, {report.minutes:.1f} minutes"
    if any(line.simulated is not None for line in lines):
        output.table(heading, (*COLUMNS, *PREDICTED), [(*cells(line), *predicted_cells(line)) for line in lines])
        output.say(
            f"simulated: the same scenario in virtual time, without what else takes the processor's time; where it differs by {DIFFERS:.0%} or more:"
        )
        for row in report.rows:
            for reason in differences(row):
                output.say(f"  {row.name}: {reason}")
    else:
        output.table(heading, COLUMNS, [cells(line) for line in lines])
    for baseline in dict.fromkeys(f"{line.row}, {line.figure}: baseline is {line.baseline_is}" for line in lines if line.baseline_is):
        output.say(baseline)
    if not report.pinned:
        output.say(
            "nothing could be pinned to cores (one core, no Linux, or a Kafka that runs elsewhere): the rows that compute share the worker's core"
        )
    if report.quick:
        output.say("quick: one short run of each row; it says whether something is broken, not how good it is")
    if any(row.name == "memory" for row in report.rows) and report.soak_minutes < SHORT_SOAK_MINUTES:
        output.say(f"the soak was short ({report.soak_minutes:g} minutes): growth is shown by --soak-minutes {SHORT_SOAK_MINUTES:g}")
    if report.unmet:
        output.say(f"not met: {'; '.join(report.unmet)}")


def _write(file: Path, report: BenchReport) -> None:
    try:
        file.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    except OSError as error:
        raise HeadraceError(f"{file}: cannot be written: {error.strerror}") from None

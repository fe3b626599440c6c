"""`headrace simulate`: a scenario in virtual time, over the policies that serve; optimizers compared on the same arrivals."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from deploy.commands.command import Command, option
from deploy.commands.output import Output, with_progress
from deploy.configuration import Connection
from deploy.simulation.comparing import Comparison, compare
from deploy.simulation.known import known
from deploy.simulation.report import Report
from deploy.simulation.scenario_files import load_scenario
from deploy.simulation.snapshots import replay_snapshots
from deploy.simulation.snapshots_table import COLUMNS, snapshot_cells, snapshot_heading
from deploy.simulation.table import cells, columns, heading
from deploy.suggestions import did_you_mean
from scaler.optimizers.registry import DEFAULT_OPTIMIZER
from scaler.simulator.scenario import Scenario
from schemas.errors import HeadraceError

INSTALL = "plots and the page need matplotlib and jinja2: pip install 'headrace[simulate]' (the table and --json work without them)"
LIBRARIES = ("matplotlib", "jinja2")
POINTS_MAX, RUNS_MAX = 1_000, 10_000
ALL = "all"


@click.command(cls=Command)
@click.argument("file", type=click.Path(path_type=Path), required=False)
@option(
    "--snapshots", "snapshots_file", type=click.Path(path_type=Path), metavar="RECORDING", help="Instead of FILE: what a scaler recorded (--record)."
)
@option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of everything that is drawn: arrivals, times, faults.")
@option(
    "--seeds", type=click.IntRange(1, 1_000), default=1, show_default=True, help="So many runs, with seeds from --seed on, and confidence intervals."
)
@option("--compare", "compared", metavar="A,B,...", help="Optimizers on the same arrivals; `all` for every one that is installed.")
@option("--sweep", "sweeps", multiple=True, metavar="PATH=V1,V2,...", help="A field of the file with several values; several sweeps multiply.")
@option("--duration", "duration_s", type=click.FloatRange(0.001), metavar="S", help="Instead of the file's `duration_s`.")
@option("--output", "output_folder", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER", help="Write page, plots and JSON here.")
@option("--jobs", type=click.IntRange(1, 256), help="Runs at once. Default: one for each processor.")
def simulate(connection: Connection, output: Output, file: Path | None, snapshots_file: Path | None, **options: Any) -> int:
    """Run a scenario in virtual time, over the same policies that serve, and show what became of the requests.

    \b
    headrace simulate examples/simulate/azure.yaml
    headrace simulate azure.yaml --compare all --seeds 5 --output azure/
    headrace simulate azure.yaml --compare headrace,greedy --sweep loads.shop.rate_rps=100,200,400
    headrace simulate --snapshots snapshots.bin --compare headrace,loki
    """
    del connection
    if snapshots_file is not None:
        return _replayed(output, file, snapshots_file, options)
    if file is None:
        raise click.UsageError("Missing argument 'FILE'.")
    folder: Path | None = options["output_folder"]
    missing = [name for name in LIBRARIES if find_spec(name) is None] if folder is not None else []
    if missing:
        output.say(f"{' and '.join(missing)} not installed here, so --output gets the JSON only: {INSTALL}")
    comparison = planned_comparison(file, options)
    report = _run(comparison, options["jobs"] or available_processors())
    _show(output, report)
    if folder is not None:
        _write(output, report, folder, file, charts=not missing)
    output.result(report)
    return 1 if report.broken else 0


def planned_comparison(file: Path, options: dict[str, Any]) -> Comparison:
    """What the command line asks for. Raises click.UsageError for the line, CatalogError for the file."""
    names = known()
    points = [dict(point) for point in itertools.product(*map(_swept, options["sweeps"]))]
    changes = {} if options["duration_s"] is None else {"duration_s": repr(options["duration_s"])}
    if len(points) > POINTS_MAX:
        raise click.UsageError(f"{len(points)} points to sweep, the limit is {POINTS_MAX}")
    scenarios = [(point, load_scenario(file, names, changes | point)) for point in points]
    optimizers = _optimizers(options["compared"], scenarios[0][1], names.optimizers)
    if optimizers and any("control.optimizer" in point for point in points):
        raise click.UsageError("--compare and a sweep of control.optimizer are the same thing: use one of them")
    if len(points) * len(optimizers) * options["seeds"] > RUNS_MAX:
        raise click.UsageError(f"{len(points)} points x {len(optimizers)} optimizers x {options['seeds']} seeds: the limit is {RUNS_MAX} runs")
    return Comparison(points=tuple(scenarios), optimizers=optimizers, seeds=tuple(range(options["seed"], options["seed"] + options["seeds"])))


def _replayed(output: Output, file: Path | None, recording: Path, options: dict[str, Any]) -> int:
    if file is not None or options["sweeps"] or options["duration_s"] is not None or options["output_folder"] is not None or options["seeds"] != 1:
        raise click.UsageError("--snapshots goes with --compare and --seed only: a recording says all else")
    optimizers = _named(options["compared"], known().optimizers) if options["compared"] is not None else (DEFAULT_OPTIMIZER,)
    report = with_progress(lambda tell: asyncio.run(replay_snapshots(recording, optimizers, seed=options["seed"], on_snapshot=tell)))
    for line in snapshot_heading(report):
        output.say(line)
    output.table("", COLUMNS, snapshot_cells(report))
    output.result(report)
    return 0


def available_processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _optimizers(stated: str | None, scenario: Scenario, installed: Sequence[str]) -> tuple[str, ...]:
    return (scenario.control.optimizer,) if stated is None else _named(stated, installed)


def _named(stated: str, installed: Sequence[str]) -> tuple[str, ...]:
    names = list(installed) if stated == ALL else [name.strip() for name in stated.split(",") if name.strip()]
    for name in names:
        if name not in installed:
            raise click.BadParameter(f"unknown optimizer {name!r}{did_you_mean(name, installed)}", param_hint="--compare")
    if not names:
        raise click.BadParameter(f"names no optimizer; known: {', '.join(installed)}", param_hint="--compare")
    return tuple(dict.fromkeys(names))


def _swept(stated: str) -> list[tuple[str, str]]:
    """(path, value) for each value of a sweep; commas in brackets do not separate."""
    path, equals, values = stated.partition("=")
    found = [value.strip() for value in _split(values)]
    if not path or not equals or not all(found):
        raise click.BadParameter(f"{stated!r}: write PATH=V1,V2,..., as in loads.shop.rate_rps=100,200", param_hint="--sweep")
    return [(path.strip(), value) for value in found]


def _split(values: str) -> list[str]:
    parts, depth = [""], 0
    for letter in values:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _run(comparison: Comparison, processes: int) -> Report:
    total = len(comparison.planned())
    console = Console(stderr=True)
    parts = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*parts, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("simulating", total=1.0)

        def told(part: float, ended: int) -> None:
            bar.update(task, completed=part, description=f"simulating, {ended} of {total} runs")

        return compare(comparison, processes, told)


def _show(output: Output, report: Report) -> None:
    for line in heading(report):
        output.say(line)
    output.table("", columns(report), cells(report))
    requests = sum(run.result.total.offered for run in report.runs if run.result is not None)
    output.say(f"{len(report.runs)} runs, {requests:,} requests, in {report.real_s:.1f} s")


def _write(output: Output, report: Report, folder: Path, file: Path, *, charts: bool) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.json").write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
        if charts:
            # By name: the libraries that it needs are an extra.
            import_module("deploy.simulation.page").write_page(report, folder, file.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        raise HeadraceError(f"{folder}: cannot be written: {error.strerror or error}") from None
    output.say(f"wrote {folder / ('index.html' if charts else 'result.json')}")

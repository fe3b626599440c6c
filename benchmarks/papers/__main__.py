"""`python -m benchmarks.papers [ROW]...`: runs rows, prints paper beside ours, and writes docs/results.md."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.papers.bench import Bench
from benchmarks.papers.combined import Combined
from benchmarks.papers.loki_capacity import LokiCapacity
from benchmarks.papers.loki_violations import LokiViolations
from benchmarks.papers.proteus_accuracy import ProteusAccuracy
from benchmarks.papers.proteus_batching import ProteusBatching
from benchmarks.papers.results import PAGE, write_results
from benchmarks.papers.row import Measured, PaperRow
from benchmarks.papers.themis_violations import ThemisViolations
from deploy.simulation.execution import work
from deploy.simulation.processes import Processes
from deploy.suggestions import did_you_mean

ROWS: tuple[PaperRow, ...] = (LokiCapacity(), LokiViolations(), ProteusAccuracy(), ProteusBatching(), ThemisViolations(), Combined())
BY_NAME = {row.name: row for row in ROWS}
PROCESSES_MAX = 8


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0 where every must is met, 1 where one is not, 2 for wrong usage."""
    parser = argparse.ArgumentParser(prog="benchmarks.papers", description="Published results on the simulator, paper beside ours.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(BY_NAME)}; all where none is named")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each comparison, seeds from 1 on (searches use the first alone)")
    parser.add_argument("--jobs", type=int, default=0, help="processes; default: one for each processor")
    parser.add_argument("--no-page", action="store_true", help="leave docs/results.md as it is")
    stated = parser.parse_args(arguments)
    for name in stated.rows:
        if name not in BY_NAME:
            parser.error(f"no row {name!r}{did_you_mean(name, BY_NAME)}")
    if stated.seeds < 1:
        parser.error("--seeds is at least 1")
    return run([BY_NAME[name] for name in dict.fromkeys(stated.rows)] or list(ROWS), stated)


def run(rows: Sequence[PaperRow], stated: argparse.Namespace) -> int:
    """Run these rows one after the other."""
    console, progress = Console(highlight=False), Console(stderr=True, highlight=False, soft_wrap=True)
    made: dict[str, tuple[PaperRow, Measured, float]] = {}
    with Processes(work, stated.jobs or min(processors(), PROCESSES_MAX)) as pool:
        bench = Bench(pool, range(1, stated.seeds + 1), lambda words: progress.print(Text(words, style="dim")))
        for row in rows:
            progress.print(Text(f"{row.name}: {row.title}"))
            started_s = time.monotonic()
            made[row.name] = (row, row.measure(bench), (time.monotonic() - started_s) / 60.0)
            show(console, *made[row.name])
            if not stated.no_page:
                # After each row: what was found is kept, whatever becomes of the rest.
                write_results({row.name: made[row.name]}, list(BY_NAME))
    if not stated.no_page:
        console.print(Text(f"wrote {PAGE}"), soft_wrap=True)
    unmet = [f"{name}: {figure}" for name, (_, measured, _) in made.items() for figure in measured.unmet]
    for line in unmet:
        console.print(Text(f"not met: {line}"), soft_wrap=True)
    return 1 if unmet else 0


def show(console: Console, row: PaperRow, measured: Measured, minutes: float) -> None:
    """A row as a table."""
    table = Table(title=f"{row.name}: {row.title} ({minutes:.1f} min)", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in ("figure", "paper", "ours", "must", ""):
        table.add_column(column, overflow="fold")
    for line in measured.lines:
        met = {True: "met", False: "NOT MET", None: ""}[line.met]
        table.add_row(*map(Text, (line.figure, line.paper, line.ours, line.must, met)))
    console.print(table)
    for fact in (row.source, f"differs: {row.differences}", *measured.facts):
        console.print(Text(fact, style="dim"), soft_wrap=True)
    console.print()


def processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

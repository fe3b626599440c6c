"""docs/results.md and its plots: every row with paper and ours side by side; rows that were not run keep what was found before."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from benchmarks.papers.row import Line, Measured, PaperRow
from deploy.simulation.plots import colours_of, write_charts
from deploy.simulation.series import Chart

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "results.md"
PLOTS = "results"
OPENING = """# Published results, reproduced

Written by `make papers`, which runs the simulator; each row is a scenario in `benchmarks/papers/scenarios/`, and `make papers ROW=NAME` runs one.
The simulator drives the dispatcher, worker, graph and scaler policies that serve. Nothing was measured on the papers' own hardware: *ours* is
the same question asked of models with public figures, and what differs is said in each row. Metrics have one definition (`schemas/slo.py`); a
request that was dropped counts as missed. Where violations are divided by, none at all counts as one request.
"""


def section(row: PaperRow, measured: Measured, minutes: float) -> str:
    """The row's part of the page."""
    parts = [f"## {row.name}", "", f"**{row.title}.** {row.source}.", "", f"*Differs from the paper:* {row.differences}", ""]
    parts += [f"- {fact}" for fact in measured.facts]
    parts += ["", *_table(("figure", "paper", "ours", "must", ""), [_line_cells(line) for line in measured.lines]), ""]
    parts += _table(measured.columns, [list(cells) for cells in measured.table])
    charts = [f"![{chart.title}]({PLOTS}/{chart.key}.svg)" for chart in _named_after(row, measured)]
    parts += ["", *charts, "", f"Took {minutes:.1f} minutes."]
    return "\n".join(parts) + "\n"


def write_results(made: dict[str, tuple[PaperRow, Measured, float]], order: list[str], page: Path = PAGE) -> None:
    """Write the page: new sections for the rows that were run, the old ones for all others. Raises OSError."""
    sections = sections_of(page.read_text(encoding="utf-8")) if page.exists() else {}
    page.parent.mkdir(parents=True, exist_ok=True)
    for name, (row, measured, minutes) in made.items():
        sections[name] = section(row, measured, minutes)
        names = list(dict.fromkeys(line.name for chart in measured.charts for line in chart.lines))
        write_charts(_named_after(row, measured), page.parent / PLOTS, colours_of(names), formats=("svg",))
    text = "\n".join([OPENING, *(sections[name] for name in order if name in sections)])
    page.write_text(text, encoding="utf-8")


def sections_of(text: str) -> dict[str, str]:
    """The sections of a page that was written before, by name."""
    parts = re.split(r"^(?=## )", text, flags=re.MULTILINE)[1:]
    return {part.splitlines()[0].removeprefix("## ").strip(): part.rstrip("\n") + "\n" for part in parts}


def _named_after(row: PaperRow, measured: Measured) -> list[Chart]:
    """The charts with keys that begin with the row's name, as all plots lie in one folder."""
    return [msgspec.structs.replace(chart, key=f"{row.name}-{chart.key.removeprefix(row.name).lstrip('-')}".rstrip("-")) for chart in measured.charts]


def _line_cells(line: Line) -> list[str]:
    return [line.figure, line.paper, line.ours, line.must, {True: "met", False: "**not met**", None: ""}[line.met]]


def _table(columns: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    lines = [list(columns), ["---"] * len(columns), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines]

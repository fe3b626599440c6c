"""Charts drawn with matplotlib: as files that stand alone, and as SVG that takes its colours from the page around it."""

# matplotlib's stubs leave most of its functions partly unknown.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from deploy.simulation.series import DEMAND_NAME, Chart, Line

PAGE_INCHES, ALONE_INCHES = (4.5, 2.8), (6.4, 4.0)
"""On a page charts are as wide as a phone, so that their words can be read there."""
DPI = 160
OURS = "headrace"
COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#b83280", "#8a6d00", "#6b46c1", "#0987a0", "#c53030", "#5f6b7a", "#7b5e3b", "#4c8c1f", "#a23b72")
"""Told apart on white and on near black."""
DASHES = ("-", "--", "-.", ":")
INK, FAINT, DEMAND_INK = "#123456", "#abcdef", "#456123"
"""Stand-ins that the page replaces by its own colours."""
ON_PAGE = {INK: "var(--ink)", FAINT: "var(--line)", DEMAND_INK: "var(--demand)"}
ALONE = {INK: "#1f2933", FAINT: "#d9dee5", DEMAND_INK: "#9aa5b1"}


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """A colour for each optimizer, ours always the first."""
    ordered = sorted(names, key=lambda name: name != OURS) if OURS in names else ["", *names]
    return {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(ordered)}


def svg_for_page(chart: Chart, colours: dict[str, str], prefix: str) -> str:
    """The chart as an element of a page: the page's font and colours, ids that begin with `prefix`, no size but its proportions."""
    text = _svg(_draw(chart, colours, ON_PAGE), chart.key)
    for ink, replacement in ON_PAGE.items():
        text = text.replace(ink, replacement)
    text = text[text.index("<svg") :]
    text = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", text, count=1)
    text = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", text, count=1)
    # Every chart numbers its parts anew: on one page the ids would meet.
    text = re.sub(r'id="([^"]+)"', rf'id="{prefix}-\1"', text)
    text = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{prefix}-", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(chart.title)}" ', 1)


def write_charts(charts: Sequence[Chart], folder: Path, colours: dict[str, str], *, formats: Sequence[str] = ("svg", "png")) -> list[Path]:
    """Each chart as files of its own. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for chart in charts:
        figure = _draw(chart, colours, ALONE)
        for ending in formats:
            path = folder / f"{chart.key}.{ending}"
            if ending == "svg":
                path.write_text(_svg(figure, chart.key), encoding="utf-8")
            else:
                figure.savefig(path, format=ending, dpi=DPI)
            written.append(path)
    return written


def _draw(chart: Chart, colours: dict[str, str], inks: dict[str, str]) -> Any:
    """A figure without a window: no state is shared, nothing has to be closed."""
    on_page = inks is ON_PAGE
    ink, faint = (INK, FAINT) if on_page else (inks[INK], inks[FAINT])
    figure = Figure(figsize=PAGE_INCHES if on_page else ALONE_INCHES, layout="constrained", facecolor="none" if on_page else "white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    for number, line in enumerate(chart.lines):
        _draw_line(axes, line, number, colours.get(line.name, DEMAND_INK if on_page else inks[DEMAND_INK]))
    if not on_page:
        axes.set_title(chart.title, color=ink, fontsize=11, loc="left")
        if len(chart.lines) > 1:
            figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8, labelcolor=ink)
    axes.set_xlabel(chart.x_label, color=ink, fontsize=10)
    axes.set_ylabel(chart.y_label, color=ink, fontsize=10)
    axes.tick_params(colors=ink, labelsize=10, length=0)
    axes.grid(visible=True, color=faint, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(faint)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    if chart.unit == "percent":
        axes.yaxis.set_major_formatter(FuncFormatter(_percent))
        bottom, top = axes.get_ylim()
        if top > 0.99:
            axes.set_ylim(top=1.0 + 0.03 * (1.0 - bottom))
    elif chart.unit == "rps":
        axes.set_ylim(bottom=0.0)
        axes.yaxis.set_major_formatter(FuncFormatter(_rate))
    return figure


def _percent(value: float, _position: int) -> str:
    return f"{value * 100:g} %"


def _rate(value: float, _position: int) -> str:
    return f"{value:,.0f}" if abs(value) >= 10.0 or not value else f"{value:g}"


def _draw_line(axes: Any, line: Line, number: int, colour: str) -> None:
    if line.name == DEMAND_NAME:
        axes.fill_between(line.x, line.y, color=colour, alpha=0.25, linewidth=0.0, label=DEMAND_NAME)
        return
    ours = line.name == OURS
    marker = "o" if len(line.x) <= 24 and line.low else None
    axes.plot(
        line.x,
        line.y,
        color=colour,
        linewidth=2.4 if ours else 1.5,
        # Dashes of a line that jumps about cannot be told apart.
        linestyle=DASHES[number % len(DASHES)] if marker and not ours else "-",
        alpha=1.0 if ours or marker else 0.8,
        marker=marker,
        markersize=4,
        zorder=3 if ours else 2,
        label=line.name,
    )
    if line.low and len(line.low) == len(line.high) == len(line.x) and line.low != line.high:
        axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0.0)


def _svg(figure: Any, salt: str) -> str:
    """Text stays text, and the same chart gives the same bytes."""
    written = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "font.family": ["sans-serif"]}):
        figure.savefig(written, format="svg", metadata={"Date": None}, transparent=None)
    return written.getvalue()

"""The report as one HTML page that needs nothing else: charts inline, no script, no request to anywhere."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from deploy.simulation.plots import OURS, colours_of, svg_for_page, write_charts
from deploy.simulation.report import Report, Run
from deploy.simulation.series import DEMAND_NAME, Chart, charts_of_sweep, charts_over_time
from deploy.simulation.table import FIGURES, figures, heading, percent

TEMPLATE = "page.html"
POINTS_SHOWN_MAX = 8
"""Points of a sweep whose charts over time are on the page: each is a third of a megabyte with ten optimizers."""
PLANS_MAX = 12


def page(report: Report, scenario_text: str = "") -> str:
    """The whole page; `scenario_text` is shown at its end."""
    colours = colours_of(report.optimizers)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(resources.files("deploy.simulation").joinpath(TEMPLATE).read_text(encoding="utf-8"))
    points = list({tuple(row.point.items()): row.point for row in report.rows}.values())
    return template.render(
        report=report,
        heading=heading(report),
        colours=colours,
        ours=OURS,
        columns=[name for name, _, _ in FIGURES],
        rows=[(row, figures(row)) for row in report.rows],
        sweep=_drawn(charts_of_sweep(report), colours, "sweep"),
        points=[
            (_named(point), _drawn(charts_over_time(report, point), colours, f"p{number}")) for number, point in enumerate(points[:POINTS_SHOWN_MAX])
        ],
        points_left=max(len(points) - POINTS_SHOWN_MAX, 0),
        endpoints=_endpoints(report),
        plans=_plans(report),
        demand=DEMAND_NAME,
        scenario_text=scenario_text,
    )


def write_page(report: Report, folder: Path, scenario_text: str) -> None:
    """`index.html`, and each chart in `plots/` as PNG and SVG: those of the sweep, and those over time of the first point. Raises OSError."""
    (folder / "index.html").write_text(page(report, scenario_text), encoding="utf-8")
    charts = [*charts_of_sweep(report), *charts_over_time(report, report.rows[0].point)]
    write_charts(charts, folder / "plots", colours_of(report.optimizers))


def _named(point: dict[str, str]) -> str:
    return ", ".join(f"{path} = {value}" for path, value in point.items())


def _drawn(charts: list[Chart], colours: dict[str, str], prefix: str) -> list[tuple[Chart, str]]:
    return [(chart, svg_for_page(chart, colours, f"{prefix}-{chart.key}")) for chart in charts]


def _first_runs(report: Report) -> list[Run]:
    """Of the first seed, which stands for the others where details are shown."""
    return [run for run in report.runs if run.seed == report.seeds[0] and run.result is not None]


def _endpoints(report: Report) -> list[tuple[str, ...]]:
    """Figures by endpoint, where there are several."""
    found: list[tuple[str, ...]] = []
    for run in _first_runs(report):
        assert run.result is not None
        if len(run.result.endpoints) < 2:
            continue
        for name, one in run.result.endpoints.items():
            served = "-" if one.accuracy_served is None else f"{one.accuracy_served:.4f}"
            p99 = "-" if one.latency_p99_ms is None else f"{one.latency_p99_ms:,.0f}"
            counts = (f"{one.offered:,}", f"{one.expired:,}", f"{one.rejected:,}", f"{one.failed:,}")
            found.append((_named(run.point), run.optimizer, name, percent(one.attainment), served, p99, *counts))
    return found


def _plans(report: Report) -> list[tuple[str, int, list[tuple[str, ...]]]]:
    """The first plans of each optimizer, with what bound them."""
    found: list[tuple[str, int, list[tuple[str, ...]]]] = []
    for run in _first_runs(report):
        assert run.result is not None
        lines: list[tuple[str, ...]] = []
        for plan in run.result.plans[:PLANS_MAX]:
            status = "" if plan.explanation is None else plan.explanation.status
            bound = "" if plan.explanation is None else "; ".join(plan.explanation.bound_by)
            lines.append((f"{plan.at_s:.1f}", str(plan.epoch), plan.reason, status, str(plan.loads), bound))
        title = " · ".join(filter(None, [run.optimizer, _named(run.point)]))
        found.append((title, len(run.result.plans), lines))
    return found

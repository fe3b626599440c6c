"""Rows, tables, charts and the page of a simulation, from results made by hand."""

from __future__ import annotations

import math
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec
import pytest
from simulate_reports import report, result

from deploy.simulation.page import page, write_page
from deploy.simulation.plots import COLOURS, colours_of
from deploy.simulation.report import Run, offered_in_words, rows_of
from deploy.simulation.series import POINTS_MAX, charts_of_sweep, charts_over_time
from deploy.simulation.table import cells, columns, heading
from scaler.simulator.intervals import difference, interval
from scaler.simulator.result import Window
from scaler.simulator.scenario import Arrivals, Load, Scenario
from schemas.catalog import Catalog

RUNS = [
    *(Run(optimizer="greedy", seed=seed, result=result("greedy", seed, completed=80 + seed)) for seed in (1, 2, 3)),
    *(Run(optimizer="headrace", seed=seed, result=result("headrace", seed, completed=95)) for seed in (1, 2, 3)),
]


def test_an_interval_is_students() -> None:
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.low == pytest.approx(2.0 - 4.302653 / math.sqrt(3), abs=1e-5)
    assert found.high == pytest.approx(2.0 + 4.302653 / math.sqrt(3), abs=1e-5)
    assert (interval([5.0]).low, interval([5.0]).high) == (None, None)
    with pytest.raises(ValueError, match="no run"):
        interval([])


def test_a_difference_is_taken_seed_by_seed() -> None:
    found = difference([11.0, 21.0, 31.0], [10.0, 20.0, 30.0])
    assert (found.mean, found.low, found.high) == (1.0, 1.0, 1.0)


def test_runs_of_an_optimizer_become_one_row() -> None:
    greedy, ours = rows_of(RUNS)
    assert (greedy.optimizer, greedy.seeds, ours.optimizer) == ("greedy", 3, "headrace")
    assert greedy.attainment is not None
    assert greedy.attainment.mean == pytest.approx(0.82)
    assert ours.served_rps is not None
    assert ours.served_rps.mean == pytest.approx(95.0)
    assert ours.accuracy_offered is not None
    assert ours.accuracy_offered.mean == pytest.approx(0.95 * 0.9)
    assert ours.violation_ratio is not None
    assert (ours.violation_ratio.low, ours.violation_ratio.high) == (pytest.approx(0.05), pytest.approx(0.05))


def test_a_run_that_failed_has_its_reason_and_the_others_stay() -> None:
    runs = [*RUNS, Run(optimizer="bad", seed=1, error="ValueError: no plan"), Run(optimizer="odd", seed=1, result=result("odd", 1, broken=2))]
    made = report(runs)
    assert made.broken
    assert not report(RUNS).broken
    by_name = {row.optimizer: row for row in made.rows}
    assert (by_name["bad"].seeds, by_name["bad"].notes) == (0, ("ValueError: no plan",))
    assert by_name["odd"].notes == ("2 promises broken, first: bounds at 1500 ms: a lease too many",)
    assert columns(made)[-1] == "notes"
    assert [line[-1] for line in cells(made)][2] == "ValueError: no plan"
    assert cells(made)[2][1:-1] == ["-"] * (len(columns(made)) - 2)


def test_the_table_shows_figures_with_half_an_interval() -> None:
    line = dict(zip(columns(report(RUNS)), cells(report(RUNS))[0], strict=True))
    assert line["attainment"] == "82.00 % ±2.48"
    assert dict(zip(columns(report(RUNS[:1])), cells(report(RUNS[:1]))[0], strict=True))["attainment"] == "81.00 %"


def test_seed_provenance_and_offered_load_are_always_said() -> None:
    text = "\n".join(heading(report(RUNS)))
    for part in ("seeds 1..3", "made by hand", "shop: poisson, 100 requests/s", "4 cpu workers", "12 s, the first 2 s left out"):
        assert part in text


@pytest.mark.parametrize(
    ("arrivals", "words"),
    [
        (Arrivals(rate_rps=50.0), "shop: poisson, 50 requests/s"),
        (Arrivals(kind="steps", rates_rps=(1.0, 2.5)), "shop: steps, 1, 2.5 requests/s"),
        (Arrivals(kind="trace", file="/a/b/c.csv", rate_rps=0.0, speed=2.0), "shop: trace c.csv, as recorded, 2 x as fast"),
        (Arrivals(kind="flash", rate_rps=9.0, peak=3.0), "shop: flash, 9 requests/s, peak 3 x"),
    ],
)
def test_arrivals_in_words(arrivals: Arrivals, words: str) -> None:
    scenario = Scenario(name="a", catalog=Catalog(), variants=(), workers=(), loads=(Load(endpoint="shop", arrivals=arrivals),))
    assert offered_in_words(scenario) == words


def test_lines_over_time_are_means_over_the_seeds() -> None:
    charts = {chart.key: chart for chart in charts_over_time(report(RUNS), {})}
    assert list(charts) == ["served", "accuracy", "attainment", "violations"]
    demand, greedy, ours = charts["served"].lines
    assert (demand.name, set(demand.y)) == ("demand", {100.0})
    assert (greedy.name, set(greedy.y), greedy.x[0]) == ("greedy", {82.0}, 2.0)
    assert set(ours.y) == {95.0}
    assert charts["accuracy"].lines[0].y == pytest.approx([0.9] * 10)


def test_long_runs_are_drawn_with_few_points() -> None:
    windows = tuple(Window(at_s=float(at), offered=10, completed=5) for at in range(1_000))
    short = result("headrace", 1)
    long = msgspec.structs.replace(short, total=msgspec.structs.replace(short.total, windows=windows))
    (chart, *_) = charts_over_time(report([Run(optimizer="headrace", seed=1, result=long)]), {})
    assert POINTS_MAX / 2 < len(chart.lines[0].x) <= POINTS_MAX
    assert set(chart.lines[0].y) == {10.0}


def test_a_sweep_is_drawn_against_demand() -> None:
    path = "loads.shop.rate_rps"
    runs = [
        Run(optimizer="headrace", seed=1, point={path: str(rate)}, result=result("headrace", 1, offered=rate, completed=rate - 5))
        for rate in (50, 100)
    ]
    (accuracy, attainment, served) = charts_of_sweep(report(runs, swept=(path,)))
    assert accuracy.lines[0].x == (50.0, 100.0)
    assert attainment.lines[0].y == (pytest.approx(0.9), pytest.approx(0.95))
    assert served.lines[0].y == (45.0, 95.0)
    assert charts_of_sweep(report(runs)) == []


def test_the_page_stands_alone_and_says_what_it_shows() -> None:
    text = page(report([*RUNS, Run(optimizer="bad", seed=1, error="it <never> returned")]), "models: <file>\n")
    assert "hand-made &lt;one&gt;" in text
    assert "it &lt;never&gt; returned" in text
    assert "cpu workers are &lt;full&gt;" in text
    assert "models: &lt;file&gt;" in text
    assert text.count("<svg") == 4
    assert "seeds 1..3" in text
    assert "made by hand" in text
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text
    loaded = re.findall(r'(?:src|href)="(?!#|data:)([^"]*)"|url\((?!#)([^)]*)\)|@import', text)
    assert loaded == [], "the page loads nothing"
    assert "<script" not in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:xlink:href="|url\()#([^")]+)', text)) <= set(ids)


def test_page_plots_and_their_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_page(report(RUNS), tmp_path / name, "text")
    plots = sorted(path.name for path in (tmp_path / "a" / "plots").iterdir())
    assert plots == sorted(f"{key}.{ending}" for key in ("served", "accuracy", "attainment", "violations") for ending in ("png", "svg"))
    assert (tmp_path / "a" / "plots" / "served.png").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "a" / "plots" / "served.svg").read_text()
    assert ET.fromstring(svg).tag.endswith("svg")
    assert svg == (tmp_path / "b" / "plots" / "served.svg").read_text()
    assert (tmp_path / "a" / "index.html").read_text() == (tmp_path / "b" / "index.html").read_text()


def test_ours_has_the_first_colour_wherever_it_stands() -> None:
    assert colours_of(["greedy", "headrace"])["headrace"] == COLOURS[0]
    assert colours_of(["greedy", "proteus"])["greedy"] != COLOURS[0]

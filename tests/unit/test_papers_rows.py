"""benchmarks/papers: searches, figures side by side, the page, and that every scenario can be read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from simulate_reports import report, result

from benchmarks.papers.__main__ import ROWS, main
from benchmarks.papers.bench import SCENARIOS, Changes, all_optimizers
from benchmarks.papers.capacity import PRECISION, capacities, served_well
from benchmarks.papers.results import sections_of, write_results
from benchmarks.papers.row import Line, Measured, accuracy_line, part, ratio, table_of, times, violations_line
from deploy.simulation.known import known
from deploy.simulation.report import Row, Run, rows_of
from deploy.simulation.scenario_files import load_scenario
from deploy.simulation.series import charts_over_time


def row_at(rate: float, capacity: float, accuracy: float = 0.9) -> Row:
    """What a system does that serves `capacity` and no more."""
    completed = round(1_000 * min(capacity / rate, 1.0))
    (row,) = rows_of([Run(optimizer="a", seed=1, result=result("a", 1, offered=1_000, completed=completed, accuracy=accuracy))])
    return row


@pytest.mark.parametrize("start_rps", [1.0, 50.0, 3_000.0])
def test_the_search_finds_the_capacity_from_anywhere(start_rps: float) -> None:
    true = {"small": 40.0, "large": 333.0}
    tries: list[dict[str, float]] = []

    def run(variations: Mapping[str, Changes]) -> Mapping[str, Row]:
        rates = {label: float(changes["rate"]) for label, changes in variations.items()}
        tries.append(rates)
        return {label: row_at(rate, true[label]) for label, rate in rates.items()}

    found = capacities({"small": {}, "large": {}}, start_rps, run, "rate")
    for label, capacity in true.items():
        assert capacity / PRECISION * 0.98 <= found[label] <= capacity * 1.012, label
    assert len(tries) <= 18
    assert len(tries[0]) == 2, "they search side by side"


def test_what_serves_nothing_ends_the_search() -> None:
    assert capacities({"a": {}}, 100.0, lambda variations: {"a": row_at(1.0, 0.0)}, "rate") == {"a": 0.0}


def test_served_well_asks_for_attainment_accuracy_and_kept_promises() -> None:
    assert served_well(row_at(100.0, 99.0))
    assert not served_well(row_at(100.0, 98.8))
    assert not served_well(row_at(100.0, 100.0, accuracy=0.80), accuracy_min=0.87)
    assert served_well(row_at(100.0, 100.0, accuracy=0.83), accuracy_min=0.87), "of the best, which is 0.95"
    (broken,) = rows_of([Run(optimizer="a", seed=1, result=result("a", 1, completed=100, broken=1))])
    assert not served_well(broken)
    assert not served_well(Row(optimizer="a"))


def test_nothing_is_infinitely_better() -> None:
    assert ratio(0.1, 0.0, 0.001) == pytest.approx(100.0)
    assert ratio(0.0, 0.0, 0.001) == 1.0
    assert ratio(None, 0.1, 0.001) is None
    assert (times(2.74), times(None), part(0.0485)) == ("2.7 x", "-", "4.85 %")


def test_ours_is_held_against_the_best_of_the_others() -> None:
    runs = [Run(optimizer=name, seed=1, result=result(name, 1, completed=done)) for name, done in (("a", 90), ("b", 97), ("headrace", 96))]
    made = report(runs)
    assert (violations_line(made, slack=0.0).met, violations_line(made, slack=0.011).met) == (False, True)
    assert violations_line(made, slack=0.0).ours == "4.00 %; b: 3.00 %"
    assert (accuracy_line(made, slack=0.0).met, accuracy_line(made, slack=0.01).met) == (False, True)
    assert not accuracy_line(made, slack=0.01, strictly=True).met
    leading = report([runs[0], runs[2]])
    assert accuracy_line(leading, slack=0.0, strictly=True).met
    assert violations_line(leading, slack=0.0).met
    failed = report([*runs[:2], Run(optimizer="headrace", seed=1, error="died")])
    assert violations_line(failed, slack=1.0).met is False


def measured(met: bool = True) -> Measured:
    made = report([Run(optimizer="headrace", seed=1, result=result("headrace", 1))])
    columns, table = table_of(made)
    line = Line(figure="violations | a", paper="> 10 x", ours="12 x", must="> 10 x", met=met)
    return Measured(lines=(line,), columns=columns, table=table, charts=tuple(charts_over_time(made, {})), facts=("seed 1",))


def test_the_page_has_paper_beside_ours_and_keeps_rows_that_were_not_run(tmp_path: Path) -> None:
    page, names = tmp_path / "docs" / "results.md", [row.name for row in ROWS]
    first, last = ROWS[0], ROWS[-1]
    write_results({last.name: (last, measured(), 1.0)}, names, page)
    write_results({first.name: (first, measured(met=False), 2.0)}, names, page)
    text = page.read_text()
    assert list(sections_of(text)) == [first.name, last.name]
    assert "| violations \\| a | > 10 x | 12 x | > 10 x | **not met** |" in text
    assert "| > 10 x | met |" in text
    assert first.differences in text
    assert last.source in text
    for name in (first.name, last.name):
        assert f"(results/{name}-served.svg)" in text
        assert (page.parent / "results" / f"{name}-served.svg").read_text().startswith("<?xml")
    write_results({}, names, page)
    assert page.read_text() == text, "writing again changes nothing"


def test_every_row_says_its_source_and_how_it_differs() -> None:
    assert [row.name for row in ROWS] == [
        "loki-capacity",
        "loki-violations",
        "proteus-accuracy",
        "proteus-batching",
        "themis-violations",
        "combined",
    ]
    assert all(len(row.source) > 20 and len(row.differences) > 50 for row in ROWS)


@pytest.mark.parametrize("file", sorted(SCENARIOS.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_scenario_can_be_read(file: Path) -> None:
    scenario = load_scenario(file, known())
    assert scenario.provenance
    assert scenario.warm_up_s > 0.0


def test_ours_stands_last_among_all_optimizers() -> None:
    assert all_optimizers()[-1] == "headrace"
    assert {"loki", "proteus", "themis", "static-accurate"} < set(all_optimizers())


def test_an_unknown_row_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["loki-capacty"])
    assert ended.value.code == 2
    assert "did you mean 'loki-capacity'?" in capsys.readouterr().err

"""`headrace simulate` from its command line to its files, with optimizers that misbehave among those that do not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.cli import run
from deploy.commands import simulate as command

SCENARIO = """\
models:
  tasks:
    - name: classify
      variants:
        - {name: small, accuracy: 0.8, costs: {cpu: {latency_ms: {1: 4, 8: [16, 18]}, load_ms: 50}}}
        - {name: large, accuracy: 0.94, costs: {cpu: {latency_ms: {1: 20, 8: 120}, load_ms: 200}}}
  endpoints: {shop: classify, search: classify}
workers:
  - {type: cpu, count: 3}
loads:
  shop: {rate_rps: 40, floors: {0: 3, 0.9: 1}, timeouts_ms: 500}
  search: {trace: stamps.csv, rate_rps: 20, timeouts_ms: 500}
duration_s: 4
warm_up_s: 1
"""


@pytest.fixture
def scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stamps.csv").write_text("arrival_s\n" + "".join(f"{number * 0.05 + (number % 3) * 0.01:.3f}\n" for number in range(200)))
    (tmp_path / "shop.yaml").write_text(SCENARIO)
    return tmp_path / "shop.yaml"


def last_line(text: str) -> dict[str, Any]:
    return json.loads(text.strip().splitlines()[-1])


def test_optimizers_are_compared_on_the_same_arrivals(scenario: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["simulate", str(scenario), "--compare", "static-accurate,static-fast", "--seeds", "2", "--output", "out", "--json"]
    code = run(arguments)
    printed = capfd.readouterr()
    found = last_line(printed.out)
    assert code == 0, printed.err
    rows = found["rows"]
    assert [(row["optimizer"], row["seeds"], row["notes"]) for row in rows] == [("static-accurate", 2, []), ("static-fast", 2, [])]
    offered = {(run["optimizer"], run["seed"]): run["result"]["total"]["offered"] for run in found["runs"]}
    assert offered["static-accurate", 1] == offered["static-fast", 1] > 100
    assert offered["static-accurate", 2] == offered["static-fast", 2]
    assert rows[0]["accuracy_served"]["mean"] > rows[1]["accuracy_served"]["mean"]
    assert "trace stamps.csv (200 arrivals" in str(found["provenance"])
    assert (scenario.parent / "out" / "index.html").read_text().startswith("<!doctype html>")
    assert json.loads((scenario.parent / "out" / "result.json").read_text())["scenario"] == "shop"
    assert (scenario.parent / "out" / "plots" / "served.svg").exists()
    assert "static-fast" in printed.err


PLUG_INS = """\
import time

from scaler.optimizers.optimizer import Explanation, Proposal
from schemas.plan import Binding


class Odd:
    source = "a test"

    def __init__(self) -> None:
        self.name = type(self).__name__.lower()


class Raises(Odd):
    def propose(self, snapshot, limits):
        raise ZeroDivisionError("no demand")


class Hangs(Odd):
    def propose(self, snapshot, limits):
        while True:
            time.sleep(1.0)


class Dead(Odd):
    def propose(self, snapshot, limits):
        binding = Binding(worker="nobody", accelerator="cpu", lane=0, variants=("classify/small",))
        return Proposal(bindings=(binding,), explanation=Explanation(status="optimal"))
"""


def test_optimizers_that_misbehave_are_told_in_their_rows(scenario: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    folder = scenario.parent / "plugins"
    (folder / "odd-1.dist-info").mkdir(parents=True)
    (folder / "odd_optimizers.py").write_text(PLUG_INS)
    (folder / "odd-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1\n")
    lines = [f"{name.lower()} = odd_optimizers:{name}" for name in ("Raises", "Hangs", "Dead")]
    (folder / "odd-1.dist-info" / "entry_points.txt").write_text("\n".join(["[headrace.optimizers]", *lines, ""]))
    monkeypatch.syspath_prepend(folder)
    text = scenario.read_text() + "control: {time_s: 0.01}\n"
    scenario.write_text(text)
    assert run(["simulate", str(scenario), "--compare", "raises,hangs,dead,static-fast", "--output", "out", "--json"]) == 1
    notes = {row["optimizer"]: (row["seeds"], row["notes"]) for row in last_line(capfd.readouterr().out)["rows"]}
    assert notes["hangs"] == (0, ["optimizer 'hangs' has not returned after 5.25 s"])
    assert notes["raises"][0] == 1
    assert notes["raises"][1][0].startswith("raised (")
    assert notes["raises"][1][0].endswith("ZeroDivisionError: no demand")
    assert notes["dead"][1][0].startswith("invalid plan (")
    assert "nobody" in notes["dead"][1][0]
    assert notes["static-fast"] == (1, [])
    assert "has not returned" in (scenario.parent / "out" / "index.html").read_text()


def test_a_sweep_runs_every_value(scenario: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", str(scenario), "--compare", "static-fast", "--sweep", "loads.shop.rate=20,80", "--duration", "3", "--json"]) == 0
    rows = last_line(capfd.readouterr().out)["rows"]
    assert [row["point"] for row in rows] == [{"loads.shop.rate": "20"}, {"loads.shop.rate": "80"}]
    assert rows[0]["offered_rps"]["mean"] < rows[1]["offered_rps"]["mean"]


def test_the_same_seed_gives_the_same_figures(scenario: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found: list[object] = []
    for _ in range(2):
        assert run(["simulate", str(scenario), "--compare", "static-accurate", "--seed", "5", "--json"]) == 0
        (row,) = last_line(capfd.readouterr().out)["rows"]
        found.append({name: value for name, value in row.items() if name != "solve_ms"})
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--compare", "static-fats"], 2, "unknown optimizer 'static-fats'; did you mean 'static-fast' or 'static-accurate'?"),
        (["--compare", ","], 2, "names no optimizer; known: "),
        (["--sweep", "loads.shop.rate_rps"], 2, "write PATH=V1,V2,..., as in loads.shop.rate_rps=100,200"),
        (["--sweep", "loads.shop.rate_rps=-1"], 1, "`rate_rps` of load 'shop' is -1"),
        (["--sweep", "workers.cpux.count=1"], 1, "none called 'cpux'; did you mean 'cpu'?"),
        (["--sweep", "control.optimizer=static-fast", "--compare", "greedy"], 2, "are the same thing"),
        (["--duration", "0.5"], 1, "nothing would be counted"),
    ],
)
def test_wrong_usage_is_told(scenario: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], code: int, told: str) -> None:
    assert run(["simulate", str(scenario), *arguments]) == code
    printed = capfd.readouterr()
    assert told in printed.err
    assert "Traceback" not in printed.err


def test_without_the_libraries_the_table_and_the_json_are_there(
    scenario: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "deploy.simulation.page", None)
    assert run(["simulate", str(scenario), "--compare", "static-fast", "--output", "out"]) == 0
    printed = capfd.readouterr().out
    assert "matplotlib and jinja2 not installed here" in printed
    assert "pip install 'headrace[simulate]'" in printed
    assert "static-fast" in printed
    assert sorted(path.name for path in (scenario.parent / "out").iterdir()) == ["result.json"]

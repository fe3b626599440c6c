"""Scenario files: what is right becomes a Scenario, and each thing that is wrong is told with file, line and near miss."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.families.family import Family
from deploy.simulation.scenario_files import Known, load_scenario
from deploy.suggestions import did_you_mean
from scaler.optimizers.snapshot import Cost
from scaler.simulator.scenario import Arrivals, Choice, Fault, Scenario, WorkerGroup
from schemas.errors import CatalogError
from schemas.profile import Latency

TEXT = """\
name: shop
models:
  tasks:
    - name: classify
      variants:
        - {name: small, accuracy: 0.8, costs: {cpu: {latency_ms: {1: 4, 8: [16, 18]}, load_ms: 100, memory_mb: 2}}}
        - {name: large, accuracy: 0.94, costs: {cpu: {latency_ms: {1: 20}}}}
  endpoints: {shop: classify}
workers:
  - {type: cpu, count: 4}
loads:
  shop: {rate_rps: 60, floors: {0: 3, 0.9: 1}, timeouts_ms: [300, 500]}
"""


def no_family(name: str) -> Family:
    raise CatalogError(f"there is no model family {name!r}{did_you_mean(name, ['fashion'])}")


def known_trace(file: str, column: str) -> str:
    if not Path(file).exists():
        raise CatalogError(f"{file}: there is no such file")
    return f"trace {Path(file).name}{column}"


KNOWN = Known(families=no_family, check_trace=known_trace, optimizers=("headrace", "greedy"), forecasts=("ewma", "peak-window"))


def load(tmp_path: Path, text: str, changes: dict[str, str] | None = None) -> Scenario:
    (tmp_path / "a.yaml").write_text(text)
    return load_scenario(tmp_path / "a.yaml", KNOWN, changes)


def problems(tmp_path: Path, text: str, changes: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(CatalogError) as refused:
        load(tmp_path, text, changes)
    return [line.removeprefix(f"{tmp_path / 'a.yaml'}:") for line in str(refused.value).splitlines()]


def test_a_scenario_states_models_workers_and_loads(tmp_path: Path) -> None:
    scenario = load(tmp_path, TEXT)
    assert scenario.workers == (WorkerGroup(type="cpu", count=4),)
    (load_of_shop,) = scenario.loads
    assert load_of_shop.arrivals == Arrivals(kind="poisson", rate_rps=60.0)
    assert load_of_shop.floors == (Choice(0.0, 3.0), Choice(0.9, 1.0))
    assert load_of_shop.timeouts_ms == (Choice(300.0), Choice(500.0))
    costs = {variant.key: variant.costs for variant in scenario.variants}
    small = Cost(latency={1: {1: Latency(4.0, 4.0), 8: Latency(16.0, 18.0)}}, load_ms=100.0, memory_bytes=2 << 20)
    assert costs["classify/small"] == {"cpu": small}
    assert list(scenario.catalog.endpoints) == ["shop"]
    assert set(scenario.catalog.variants()) == set(costs)


def test_only_endpoints_that_are_asked_for_are_planned_for(tmp_path: Path) -> None:
    scenario = load(tmp_path, TEXT.replace("{shop: classify}", "{shop: classify, idle: classify}"))
    assert list(scenario.catalog.endpoints) == ["shop"]


def test_everything_else_that_a_file_may_say(tmp_path: Path) -> None:
    (tmp_path / "stamps.csv").write_text("time\n1\n")
    more = """\
  again: {endpoint: shop, trace: stamps.csv, column: time, speed: 2, rows: 3, tenants: {acme: 2, beta: 1}}
duration_s: 30
warm_up_s: 2
hop: {p50_ms: 1, p99_ms: 4}
control:
  {optimizer: greedy, options: {margin: 1.2}, forecast: peak-window, binding: early, batching: nexus, admission: false, shares: plan}
faults:
  - {kind: worker, at_s: 10, lasts_s: 3, target: cpu-1}
  - {kind: delays, at_s: 5, part: 0.1, factor: 3}
"""
    scenario = load(tmp_path, TEXT + more)
    again = scenario.loads[1]
    assert (again.endpoint, again.rows, again.tenants) == ("shop", 3, {"acme": 2.0, "beta": 1.0})
    assert again.arrivals == Arrivals(kind="trace", rate_rps=0.0, file=str(tmp_path / "stamps.csv"), column="time", speed=2.0)
    assert scenario.control.options == {"margin": 1.2}
    assert (scenario.control.admission, scenario.control.binding, scenario.control.shares) == (False, "early", "plan")
    assert scenario.faults[0] == Fault(kind="worker", at_s=10.0, lasts_s=3.0, target="cpu-1")
    assert scenario.provenance == "trace stamps.csvtime"


def test_a_profile_that_headrace_wrote_gives_costs_to_a_catalog_file(tmp_path: Path) -> None:
    profile = (
        '{"profiles": [{"variant": "classify/small", "sha256": "", "accelerator": "cpu", "device": "CPU", "host": "h", "threads": 2, '
        '"batches": {"1": {"p50_ms": 2.0, "p95_ms": 3.0, "samples": 10}}, "load_ms": 5, "memory_bytes": 7}]}'
    )
    (tmp_path / "profiles.json").write_text(profile)
    scenario = load(tmp_path, TEXT.replace("  endpoints:", "  profiles: [profiles.json]\n  endpoints:"))
    small = next(variant for variant in scenario.variants if variant.key == "classify/small")
    assert small.costs["cpu"].latency[2] == {1: Latency(2.0, 3.0, 10)}


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("count: 4", "count: 0", "10: there are no workers: nothing could be served"),
        ("type: cpu", "type: gpu", "10: no variant has a cost on workers of type 'gpu': they could do nothing; did you mean 'cpu'?"),
        ("8: [16, 18]", "8: 3", "6: the profile contradicts itself: a batch of 8 takes 3 ms, the smaller one of 1 takes 4 ms"),
        ("8: [16, 18]", "8: [16, 12]", "6: a batch of 8 has a p95 of 12 ms below its p50 of 16 ms"),
        ("1: 20", "1: 0", "7: a batch of 1 takes 0 ms: computing takes time"),
        ("rate_rps: 60", "rate_rps: 0", "12: `rate_rps` of load 'shop' is 0: a rate is above 0; leave the load out where nothing comes"),
        ("rate_rps: 60", "rate_rps: -3", "12: `rate_rps` of load 'shop' is -3: a rate is above 0; leave the load out where nothing comes"),
        ("rate_rps: 60", "rate_rps: .nan", "12: `rate_rps` of load 'shop' is a number, not '.nan'"),
        ("rate_rps: 60", "rate: 60", "12: unknown key 'rate' in load 'shop'; did you mean 'trace' or 'rate_rps' or 'rates_rps'?"),
        ("rate_rps: 60", "rate_rps: 60, cv: 2", "12: `cv` says nothing of poisson arrivals, which take `rate_rps`"),
        ("rate_rps: 60", "rate_rps: 60, arrivals: poison", "12: unknown arrivals 'poison'; did you mean 'poisson'?"),
        ("rate_rps: 60", "trace: missing.csv", "12: missing.csv: there is no such file"),
        ("  shop: {rate", "  shp: {rate", "12: no endpoint 'shp' among the models; did you mean 'shop'?"),
        ("0.9: 1", "1.9: 1", "12: '1.9' in `floors` of load 'shop' is no number in 0..1"),
        ("{shop: classify}", "{shop: clasify}", "8: no task 'clasify' among the models; did you mean 'classify'?"),
        ("accuracy: 0.94, ", "", "7: a variant needs `accuracy`"),
        ("  tasks:", "  families: [fashon]\n  tasks:", "3: there is no model family 'fashon'; did you mean 'fashion'?"),
        ("name: shop\n", "name: shop\ncontrol: {optimizer: gredy}\n", "2: unknown optimizer 'gredy'; did you mean 'greedy'?"),
        ("name: shop\n", "name: shop\ncontrol: {forecast: ewm}\n", "2: unknown forecast 'ewm'; did you mean 'ewma'?"),
        ("name: shop\n", "name: shop\nwarm_up_s: 60\n", "2: `warm_up_s` is 60 of 60 s: nothing would be counted"),
        ("name: shop\n", "name: shop\nhop: {p50_ms: 9, p99_ms: 1}\n", "2: `p99_ms` is 1, below `p50_ms`, 9"),
        ("name: shop\n", "name: shop\nfaults: [{kind: worker, at_s: 1, factor: 2}]\n", "2: `factor` says nothing of a fault of kind 'worker', which"),
        ("loads:", "lods:", "11: unknown key 'lods' in a scenario; did you mean 'loads' or 'models'?"),
    ],
)
def test_what_is_wrong_is_told_at_its_line(tmp_path: Path, old: str, new: str, told: str) -> None:
    assert old in TEXT
    found = problems(tmp_path, TEXT.replace(old, new, 1))
    assert any(problem.startswith(told) for problem in found), found


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    text = TEXT.replace("count: 4", "count: 0").replace("rate_rps: 60", "rate_rps: 0").replace("1: 20", "1: 0")
    assert [problem.partition(":")[0] for problem in problems(tmp_path, text)] == ["7", "10", "12"]


def test_a_task_that_no_worker_can_run_is_told(tmp_path: Path) -> None:
    text = TEXT.replace(
        "  endpoints: {shop",
        "    - {name: other, variants: [{name: a, accuracy: 1, costs: {gpu: {latency_ms: {1: 1}}}}]}\n  endpoints: {odd: other, shop",
    )
    assert [variant.key for variant in load(tmp_path, text).variants][-1] == "other/a", "nobody asks for it"
    found = problems(tmp_path, text + "  odd: {rate_rps: 1}\n")
    assert found == ["3: task 'other' can run nowhere: none of its variants (other/a) has a cost on cpu"]


def test_values_can_be_changed_by_path(tmp_path: Path) -> None:
    changes = {"loads.shop.rate": "100", "workers.cpu.count": "9", "control.optimizer": "greedy", "loads.shop.timeouts_ms": "[250]"}
    scenario = load(tmp_path, TEXT, changes)
    assert scenario.loads[0].arrivals.rate_rps == 100.0
    assert scenario.loads[0].timeouts_ms == (Choice(250.0),)
    assert scenario.workers[0].count == 9
    assert scenario.control.optimizer == "greedy"


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("loads.shop.rate_rps", "-1", "12: `rate_rps` of load 'shop' is -1"),
        ("loads.shp.rate_rps", "1", "12: no endpoint 'shp' among the models; did you mean 'shop'?"),
        ("workers.cpux.count", "1", "'workers.cpux.count' leads nowhere: the list has 1 items, none called 'cpux'; did you mean 'cpu'?"),
        ("name.first", "1", "'name.first' leads nowhere: nothing can be named inside of 'shop'"),
        ("loads..shop", "1", "'loads..shop' is not a path"),
        ("duration_s", "[1", "duration_s=[1: the value is not YAML"),
        ("duration", "1", "1: unknown key 'duration' in a scenario; did you mean 'duration_s' or 'description'?"),
    ],
)
def test_a_path_that_leads_nowhere_is_told(tmp_path: Path, path: str, value: str, told: str) -> None:
    found = problems(tmp_path, TEXT, {path: value})
    assert any(problem.startswith(told) for problem in found), found


def test_a_file_without_a_document_or_with_two_is_told(tmp_path: Path) -> None:
    assert problems(tmp_path, "# nothing\n") == ["1: no document in the file: a scenario needs `models`, `workers` and `loads`"]
    assert problems(tmp_path, TEXT + "---\nname: b\n") == ["14: a second document: a file has one scenario"]

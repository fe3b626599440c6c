"""docs/simulate.md: the scenario that it shows is one, and runs."""

from __future__ import annotations

import re
from pathlib import Path

from deploy.simulation.execution import simulated
from deploy.simulation.known import known
from deploy.simulation.scenario_files import load_scenario
from scaler.optimizers.registry import create_optimizer

DOCUMENT = Path(__file__).parents[2] / "docs" / "simulate.md"
TASK = "kind: task\nname: detect\nvariants:\n  - {name: only, call: 'operator:itemgetter', accuracy: 0.9}\n"
ENDPOINT = "kind: endpoint\nname: night\ntask: detect\n"
PROFILES = (
    '{"profiles": [{"variant": "detect/only", "sha256": "", "accelerator": "cpu", "device": "CPU", "host": "h", "threads": 1, '
    '"batches": {"1": {"p50_ms": 2.0, "p95_ms": 3.0, "samples": 10}}, "load_ms": 5, "memory_bytes": 7}]}'
)


def test_the_scenario_of_the_documentation_runs(tmp_path: Path) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    found = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert found is not None
    for name, content in {"shop.yaml": found[1], "task.yaml": TASK, "endpoint.yaml": ENDPOINT, "profiles.json": PROFILES}.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "stamps.csv").write_text("timestamp\n" + "".join(f"{25 * at}\n" for at in range(400)), encoding="utf-8")
    scenario = load_scenario(tmp_path / "shop.yaml", known(), {"duration_s": "10"})
    result = simulated(scenario, 1, create_optimizer("headrace", scenario.control.options))
    assert result.violations == ()
    assert result.total.offered > 300
    assert result.total.attainment > 0.9

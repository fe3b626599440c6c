"""Recorded snapshots through `headrace simulate --snapshots`, and the mistakes that can be made with trials at the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy.cli import run
from scaler.optimizers.snapshot import (
    Cost,
    EndpointDemand,
    FloorDemand,
    Snapshot,
    StageDemand,
    Variant,
    Worker,
)
from scaler.snapshot_recording import SnapshotRecording
from schemas.catalog import Catalog, EndpointSpec, TaskSpec, VariantSpec
from schemas.plan import Binding, Plan
from schemas.profile import Latency

LADDER = {"small": (0.80, 1.0), "large": (0.90, 4.0)}


def variant(name: str) -> Variant:
    accuracy, row_ms = LADDER[name]
    latency = {1: {1: Latency(row_ms, row_ms * 1.2, 9), 8: Latency(6 * row_ms, 7 * row_ms, 9)}}
    return Variant(key=f"t/{name}", task="t", accuracy=accuracy, costs={"box": Cost(latency=latency, load_ms=100.0, memory_bytes=10)})


def snapshot(at_ms: float, rate_rps: float = 40.0) -> Snapshot:
    keys = ("t/large", "t/small")
    binding = Binding(worker="w0", accelerator="cpu", lane=0, variants=keys)
    floors = (FloorDemand(floor=0.5, rate_rps=rate_rps, forecast_rps=rate_rps),)
    return Snapshot(
        at_ms=at_ms,
        endpoints=(EndpointDemand(endpoint="shop", stages=(StageDemand(name="", task="t"),), floors=floors, timeout_ms=300.0),),
        variants=(variant("small"), variant("large")),
        workers=(Worker(name="w0", accelerator="cpu", type="box", binding=binding, hosted=keys),),
        plan=Plan(epoch=3, bindings=(binding,)),
        interval_ms=2_000.0,
    )


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    variants = tuple(VariantSpec(name=name, file=name, sha256=name, accuracy=accuracy) for name, (accuracy, _) in LADDER.items())
    path = tmp_path / "snapshots.bin"
    taken = SnapshotRecording(path)
    taken.follow(Catalog({"t": TaskSpec(name="t", variants=variants)}, {"shop": EndpointSpec(name="shop", task="t")}))
    for number in range(8):
        taken.take(snapshot(2_000.0 * number), None, None, 2_000.0 * number)
    taken.close()
    return path


def test_recorded_snapshots_are_planned_again_and_a_worse_optimizer_is_found_worse(recording: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", "--snapshots", str(recording), "--compare", "static-accurate,static-fast", "--json"]) == 0
    report = json.loads(capfd.readouterr().out.strip().rpartition("\n")[2])
    accurate, fast = report["rows"]
    assert (report["snapshots"], report["compared"]) == (8, 6)
    assert (accurate["optimizer"], accurate["verdict"]) == ("static-accurate", None)
    assert accurate["accuracy_served"]["mean"] == pytest.approx(0.9)
    assert fast["accuracy_served"]["mean"] == pytest.approx(0.8)
    assert fast["planned_accuracy"]["mean"] == pytest.approx(0.8)
    assert fast["verdict"] == "worse"
    assert accurate["offered"] == fast["offered"] > 300


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["simulate", "--snapshots", "{recording}", "--compare", "lokki"], 2, "unknown optimizer 'lokki'; did you mean 'loki'?"),
        (["simulate", "--snapshots", "{recording}", "--seeds", "3"], 2, "--snapshots goes with --compare and --seed only"),
        (["simulate", "--snapshots", "{recording}.gone"], 1, "cannot be read"),
        (["simulate"], 2, "Missing argument 'FILE'"),
        (["optimizers", "trial", "lokki", "--kafka", "127.0.0.1:1"], 1, "optimizer 'lokki' is unknown; did you mean 'loki'?"),
        (["optimizers", "trial", "loki", "--for", "15s", "--kafka", "127.0.0.1:1"], 2, "is shorter than 2 intervals of 10s"),
        (["optimizers", "trial", "loki", "--for", "90s", "--switchback", "60s", "--kafka", "127.0.0.1:1"], 2, "is shorter than two turns of 60s"),
        (["optimizers", "trial", "loki", "--switchback", "60s", "--settle", "60s", "--kafka", "127.0.0.1:1"], 2, "leaves nothing of a turn"),
        (["optimizers", "trial", "loki", "--for", "soon", "--kafka", "127.0.0.1:1"], 2, "'soon' is no time above zero"),
    ],
)
def test_wrong_usage_is_told(recording: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], code: int, told: str) -> None:
    assert run([argument.replace("{recording}", str(recording)) for argument in arguments]) == code
    printed = capfd.readouterr()
    assert told in printed.err
    assert "Traceback" not in printed.err


def test_a_recording_of_too_few_snapshots_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    SnapshotRecording(tmp_path / "r").close()
    assert run(["simulate", "--snapshots", str(tmp_path / "r")]) == 1
    assert "has 0 snapshots; 3 are the least" in capfd.readouterr().err

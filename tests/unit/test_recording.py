"""A recording replays step by step as it was decided, in another process too; what differs, is cut off or is none, is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import msgspec
import policy_graph_stage
import pytest
from policy_graph_stage import GraphStage
from policy_stage import START_MS, Stage, catalog, plan, report, request

from broker.policy import events as ev
from broker.policy import recorded
from broker.policy.settings import DispatcherSettings
from broker.policy.watermark import Watermark
from broker.recording import RecordedPolicy, Recording, read_recording
from deploy.replaying import replay_file
from graphs.tensor import Tensor
from scaler.simulator.replay import replay
from schemas.errors import BadRequest, ConfigurationError
from schemas.graph import ForEachNode, GraphSpec, StageNode
from schemas.limits import Limits
from schemas.telemetry import Departed, DispatcherReport, Returned

Seen = tuple[dict[str, object], dict[str, Tensor]]


def nothing(_payload: object, _graph: object) -> Seen:
    return {}, {}


def recorded_policy(path: Path, limits: Limits | None = None, open_request=nothing, **recording: int) -> tuple[RecordedPolicy, Recording]:
    file = Recording(path, **recording)
    return RecordedPolicy("d0", DispatcherSettings(), limits or Limits(), open_request, file), file


def begin(policy: RecordedPolicy) -> None:
    for event in (
        ev.CatalogObserved(catalog()),
        ev.PlanObserved(plan("w0")),
        ev.TelemetryObserved(report("w0")),
        ev.ShardAssigned(0, Watermark(5, b"\x00\x01", 7)),
        ev.ShardRecovered(0),
    ):
        policy.step(event, START_MS)


def some_history(path: Path, **recording: int) -> RecordedPolicy:
    """A little of everything: answers, losses, dead letters, lost writes, other dispatchers, commits."""
    policy, file = recorded_policy(path, **recording)
    begin(policy)
    now = START_MS
    entries = [request(f"r{number}", offset=5 + number, timeout_ms=20_000) for number in range(6)]
    policy.step(ev.RecordsRead([ev.Arrived(0, entries, [11]), ev.Answered(0, [])]), now + 1)
    policy.step(ev.Answered(0, [b"r0"]), now + 20)
    policy.step(ev.SendsFailed(entries[1:3]), now + 21)
    policy.step(ev.TelemetryObserved(Returned(worker="w0", incarnation=1, ids=("r3",), reason="late", cause="late", at_ms=int(now))), now + 22)
    policy.step(ev.TelemetryObserved(DispatcherReport(dispatcher="d1", incarnation=1, at_ms=int(now), shards=(1,))), now + 23)
    policy.step(ev.OffsetsFinished(0, [11]), now + 24)
    for life in range(2, 6):
        at = int(now) + life * 100
        gone = Departed(role="worker", name="w0", incarnation=0, at_ms=at)
        for letter in policy.step(ev.TelemetryObserved(gone), at).dead_letters:
            policy.step(ev.DeadLettered(letter.entry), at + 1)
        policy.step(ev.TelemetryObserved(report("w0", incarnation=life)), at + 2)
        policy.commits()
    policy.step(ev.Ticked(), now + 30_000)
    policy.commits()
    policy.step(ev.ShardRevoked(0), now + 30_001)
    file.close()
    return policy


def test_every_event_can_be_recorded() -> None:
    assert set(get_args(ev.Event)) == set(recorded._CODECS)


def test_a_history_replays_as_it_was_decided(tmp_path: Path) -> None:
    policy = some_history(tmp_path / "one")
    told = replay_file(tmp_path / "one")
    assert told.identical
    assert told.differences == ()
    assert (told.dispatcher, told.requests) == ("d0", policy.arrived)
    assert told.sends > 6, "some were sent again"
    assert told.answers > 0
    assert told.kinds["DeadLettered"] > 0
    assert told.span_ms == 30_001


def test_another_process_decides_the_same_whatever_its_hashes(tmp_path: Path) -> None:
    stage = Stage(workers=("w0", "w1"))
    stage.policy, file = recorded_policy(tmp_path / "many")
    begin(stage.policy)
    stage.policy.step(ev.TelemetryObserved(report("w1")), START_MS)
    floors = (0.0, 0.85, 0.9, 0.93)
    arrivals = [
        request(f"{n}", START_MS + n, offset=n + 7, floor=floors[n % 4], timeout_ms=(50, 300)[n % 2], tenant=f"t{n % 3}") for n in range(1_000)
    ]
    stage.run(arrivals)
    file.close()
    assert stage.policy.arrived > 900
    code = (
        "from pathlib import Path; from deploy.replaying import replay_file;"
        f"told = replay_file(Path({str(tmp_path / 'many')!r})); print(told.identical, told.requests)"
    )
    for hashes in ("1", "2"):
        said = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": hashes}, capture_output=True, text=True, check=True, timeout=60
        )
        assert said.stdout.split() == ["True", str(stage.policy.arrived)]


def test_graphs_see_again_what_they_saw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    row = StageNode(task="fashion", inputs={"image": "row.image"})
    graph = GraphSpec(nodes={"each": ForEachNode(over={"image": "request.image"}, nodes={"read": row}, output="read")}, output="each")
    asked: list[object] = []

    def open_request(payload: object, _graph: object) -> Seen:
        asked.append(payload)
        if len(asked) == 2:
            raise BadRequest("its image is missing")
        return {"lang": "en"}, {"image": Tensor.of("image", np.zeros((3, 1, 28, 28), np.uint8))}

    files: list[Recording] = []

    def made(_name: str, _settings: DispatcherSettings, limits: Limits, _open: object) -> RecordedPolicy:
        policy, file = recorded_policy(tmp_path / "graph", limits, open_request)
        files.append(file)
        return policy

    monkeypatch.setattr(policy_graph_stage, "DispatcherPolicy", made)
    stage = GraphStage(graph, lambda send: np.ones((1, 10), np.float32))
    stage.ask("a", "b")
    stage.run()
    files[0].close()
    assert [answer.outcome for answer in stage.answers] == ["rejected", "completed"]
    told = replay_file(tmp_path / "graph")
    assert told.identical, told.differences
    assert (told.answers, len(asked)) == (2, 2)


def test_what_is_decided_otherwise_is_told(tmp_path: Path) -> None:
    some_history(tmp_path / "one")
    opening, steps = read_recording(tmp_path / "one")
    other = msgspec.structs.replace(opening, limits=Limits(attempts_max=1))
    told = replay(other, list(steps))
    assert not told.identical
    opening, steps = read_recording(tmp_path / "one")
    changed = [
        msgspec.structs.replace(step, made=msgspec.structs.replace(step.made, sends=step.made.sends[1:])) if step.made.sends else step
        for step in steps
    ]
    told = replay(opening, changed)
    first = told.differences[0]
    assert (first.kind, first.part) == ("RecordsRead", "sends")
    assert first.recorded.startswith("4, ")
    assert first.found.startswith("5, ")
    assert told.differing == sum(bool(step.made.sends) for step in read_recording(tmp_path / "one")[1])


def test_a_recording_that_is_cut_off_replays_up_to_there(tmp_path: Path) -> None:
    some_history(tmp_path / "one")
    whole = replay_file(tmp_path / "one")
    content = (tmp_path / "one").read_bytes()
    (tmp_path / "cut").write_bytes(content[: len(content) // 2])
    cut = replay_file(tmp_path / "cut")
    assert cut.identical
    assert 0 < cut.steps < whole.steps


def test_a_full_recording_ends_and_the_dispatcher_goes_on(tmp_path: Path) -> None:
    policy = some_history(tmp_path / "small", bytes_max=4_000)
    assert policy.arrived == 5
    assert (tmp_path / "small").stat().st_size <= 4_000
    told = replay_file(tmp_path / "small")
    assert told.identical
    assert told.requests in (0, 5)


@pytest.mark.parametrize("content", [b"", b"nothing of ours", b"\x05\x00\x00\x00hello"])
def test_what_is_no_recording_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(ConfigurationError, match="other is not the recording"):
        replay_file(tmp_path / "other")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        replay_file(tmp_path / "missing")
    with pytest.raises(ConfigurationError, match="cannot record"):
        Recording(tmp_path / "no" / "folder")

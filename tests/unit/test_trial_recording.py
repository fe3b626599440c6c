"""Recorded snapshots: what is written is read, and no recording ends a scaler."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from control_stage import catalog
from trial_stage import proposal_of, snapshot_of, with_rate

from scaler.optimizers.snapshot import Snapshot
from scaler.snapshot_recording import SnapshotRecording, SnapshotsBegin, read_snapshots
from schemas.catalog import Catalog, Defaults, EndpointSpec
from schemas.errors import ConfigurationError


def recorded(path: Path, snapshots: list[Snapshot], **limits: int) -> SnapshotRecording:
    recording = SnapshotRecording(path, scaler="s", **limits)
    recording.follow(catalog())
    for snapshot in snapshots:
        recording.take(snapshot, proposal_of("greedy", snapshot), None, snapshot.at_ms, "greedy")
    return recording


def test_what_is_recorded_is_read(tmp_path: Path) -> None:
    first, second = (with_rate(snapshot_of(), rate, at_ms) for rate, at_ms in ((10.0, 1_000.0), (20.0, 11_000.0)))
    recording = recorded(tmp_path / "r", [first])
    other = Catalog(catalog().tasks, {"shop": EndpointSpec(name="shop", task="t", defaults=Defaults(timeout_ms=7))})
    recording.follow(other)
    recording.take(second, None, first.plan, 11_000.0)
    recording.close()
    one, two = read_snapshots(tmp_path / "r")
    assert (one.taken.snapshot, one.taken.optimizer, one.taken.plan, one.catalog) == (first, "greedy", None, catalog())
    assert one.taken.proposal == proposal_of("greedy", first)
    assert (two.taken.snapshot, two.taken.proposal, two.taken.plan, two.catalog) == (second, None, first.plan, other)


def test_the_catalog_is_written_when_it_changes_and_not_else(tmp_path: Path) -> None:
    recording = recorded(tmp_path / "r", [])
    size = (tmp_path / "r").stat().st_size
    recording.follow(catalog())
    assert (tmp_path / "r").stat().st_size == size
    recording.follow(Catalog())
    assert (tmp_path / "r").stat().st_size > size
    recording.close()


def test_a_frame_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    snapshot = snapshot_of()
    recorded(tmp_path / "r", [snapshot, snapshot]).close()
    whole = (tmp_path / "r").read_bytes()
    for cut in (1, 50):
        (tmp_path / "cut").write_bytes(whole[:-cut])
        assert len(list(read_snapshots(tmp_path / "cut"))) == 1


def test_a_full_recording_ends_and_can_be_read(tmp_path: Path) -> None:
    snapshot = snapshot_of()
    recording = recorded(tmp_path / "r", [snapshot])
    size = (tmp_path / "r").stat().st_size
    recording.close()
    full = recorded(tmp_path / "full", [snapshot, snapshot, snapshot], bytes_max=size + 10)
    assert not full.takes_more
    full.follow(Catalog())
    full.take(snapshot, None, None, 0.0)
    assert (tmp_path / "full").stat().st_size == size
    assert len(list(read_snapshots(tmp_path / "full"))) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_ends_the_recording_and_not_the_scaler() -> None:
    recording = recorded(Path("/dev/full"), [snapshot_of()])
    assert not recording.takes_more
    recording.close()


def test_a_proposal_that_cannot_be_written_ends_the_recording_and_not_the_scaler(tmp_path: Path) -> None:
    recording = recorded(tmp_path / "r", [])
    snapshot = snapshot_of()
    strange = msgspec.structs.replace(proposal_of("greedy", snapshot), memory={"much": 1 << 80})  # type: ignore[dict-item]
    recording.take(snapshot, strange, None, 0.0)
    assert not recording.takes_more


@pytest.mark.parametrize("content", [b"", b"models:\n  tasks: []\n", bytes(range(7, 64)), b"\x03\x00\x00\x00abc"])
def test_what_is_no_recording_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"r: (is no recording of snapshots|frame 0 cannot be read)"):
        list(read_snapshots(tmp_path / "r"))


def test_a_later_version_and_an_absent_file_are_told(tmp_path: Path) -> None:
    frame = msgspec.msgpack.encode(SnapshotsBegin(version=9))
    (tmp_path / "r").write_bytes(len(frame).to_bytes(4, "little") + frame)
    with pytest.raises(ConfigurationError, match="version 9"):
        list(read_snapshots(tmp_path / "r"))
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        list(read_snapshots(tmp_path / "absent"))
    with pytest.raises(ConfigurationError, match="cannot record to"):
        SnapshotRecording(tmp_path / "no" / "folder")

"""Records the snapshots of a scaler, with what was proposed and what came into force, in one file of bounded size; and reads such files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from broker.frame_files import FILE_BYTES_MAX, FrameFile, read_frames
from scaler.optimizers.optimizer import Proposal
from scaler.optimizers.snapshot import Snapshot
from schemas.catalog import Catalog, EndpointSpec, TaskSpec
from schemas.errors import ConfigurationError
from schemas.plan import Plan

SNAPSHOTS_VERSION = 1


class SnapshotsBegin(msgspec.Struct, frozen=True, kw_only=True, tag_field="frame", tag="begin"):
    """The first frame."""

    scaler: str = ""
    at_ms: float = 0.0
    version: int = SNAPSHOTS_VERSION


class RecordedCatalog(msgspec.Struct, frozen=True, kw_only=True, tag_field="frame", tag="catalog"):
    """The catalog from here on."""

    tasks: dict[str, TaskSpec]
    endpoints: dict[str, EndpointSpec]


class RecordedSnapshot(msgspec.Struct, frozen=True, kw_only=True, tag_field="frame", tag="snapshot"):
    """One planning."""

    at_ms: float
    snapshot: Snapshot
    optimizer: str = ""
    proposal: Proposal | None = None
    """None: none was made in time."""
    plan: Plan | None = None
    """None: the one in force stayed."""


Frame = SnapshotsBegin | RecordedCatalog | RecordedSnapshot
_frame: msgspec.msgpack.Decoder[Frame] = msgspec.msgpack.Decoder(Frame)


class SnapshotRecording:
    """A file that takes snapshots until it is full or the disk refuses: then it says so once and takes no more. Once open it never raises."""

    def __init__(self, path: Path, *, scaler: str = "", at_ms: float = 0.0, bytes_max: int = FILE_BYTES_MAX) -> None:
        """Raises ConfigurationError where the file cannot be written."""
        self._file = FrameFile(path, bytes_max=bytes_max)
        self._catalog: RecordedCatalog | None = None
        self._write(SnapshotsBegin(scaler=scaler, at_ms=at_ms))

    @property
    def takes_more(self) -> bool:
        """False once it is full or was closed."""
        return self._file.takes_more

    def follow(self, catalog: Catalog) -> None:
        """The catalog that the next snapshots are about; written where it is another one than before."""
        if not self._file.takes_more:
            return
        frame = RecordedCatalog(tasks=dict(catalog.tasks), endpoints=dict(catalog.endpoints))
        if frame != self._catalog:
            self._catalog = frame
            self._write(frame)

    def take(self, snapshot: Snapshot, proposal: Proposal | None, plan: Plan | None, at_ms: float, optimizer: str = "") -> None:
        """One planning: what was known, what was proposed, and the plan that was published (None: none)."""
        self._write(RecordedSnapshot(at_ms=at_ms, snapshot=snapshot, optimizer=optimizer, proposal=proposal, plan=plan))

    def close(self) -> None:
        """Idempotent."""
        self._file.close()

    def _write(self, frame: Frame) -> None:
        # Once in seconds: whoever reads along finds whole frames.
        self._file.write(frame, flush=True)


class Recorded(msgspec.Struct, frozen=True):
    """One planning with the catalog of its time; None: none was recorded."""

    taken: RecordedSnapshot
    catalog: Catalog | None


def read_snapshots(path: Path) -> Iterator[Recorded]:
    """The plannings of a recording, as they are asked for; a last frame that was cut off is left out.

    Raises ConfigurationError for what is no recording of this version.
    """
    frames = _frames(path)
    first = next(frames, None)
    if not isinstance(first, SnapshotsBegin):
        raise ConfigurationError(f"{path}: is no recording of snapshots; `headrace scaler --record FILE` makes one")
    if first.version != SNAPSHOTS_VERSION:
        raise ConfigurationError(f"{path}: is a recording of version {first.version}; this Headrace reads version {SNAPSHOTS_VERSION}")
    catalog: Catalog | None = None
    for frame in frames:
        if isinstance(frame, RecordedCatalog):
            catalog = Catalog(frame.tasks, frame.endpoints)
        elif isinstance(frame, RecordedSnapshot):
            yield Recorded(frame, catalog)


def _frames(path: Path) -> Iterator[Frame]:
    for number, value in enumerate(read_frames(path)):
        try:
            yield _frame.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigurationError(f"{path}: frame {number} cannot be read as a recording of snapshots: {error}") from None

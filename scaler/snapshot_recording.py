"""Records the snapshots of a scaler, with what was proposed and what came into force, in one file of bounded size; and reads such files."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
import structlog

from scaler.optimizers.optimizer import Proposal
from scaler.optimizers.snapshot import Snapshot
from schemas.catalog import Catalog, EndpointSpec, TaskSpec
from schemas.errors import ConfigurationError
from schemas.plan import Plan

logger = structlog.get_logger()
SNAPSHOTS_VERSION = 1
RECORDING_BYTES_MAX = 1 << 30
"""A recording ends here; the scaler goes on."""
FRAME_BYTES_MAX = 256 << 20
_LENGTH = struct.Struct("<I")


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

    def __init__(self, path: Path, *, scaler: str = "", at_ms: float = 0.0, bytes_max: int = RECORDING_BYTES_MAX) -> None:
        """Raises ConfigurationError where the file cannot be written."""
        self._path, self._bytes_left = path, bytes_max
        self._catalog: RecordedCatalog | None = None
        try:
            self._file: BinaryIO | None = path.open("wb")
        except OSError as error:
            raise ConfigurationError(f"cannot record snapshots to {path}: {error.strerror}") from error
        self._encode = msgspec.msgpack.Encoder().encode
        self._write(SnapshotsBegin(scaler=scaler, at_ms=at_ms))

    @property
    def takes_more(self) -> bool:
        """False once it is full or was closed."""
        return self._file is not None

    def follow(self, catalog: Catalog) -> None:
        """The catalog that the next snapshots are about; written where it is another one than before."""
        if self._file is None:
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
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError as error:
                logger.warning("the end of the recording is lost", path=str(self._path), error=str(error))

    def _write(self, frame: Frame) -> None:
        if self._file is None:
            return
        try:
            value = self._encode(frame)
        except (OverflowError, TypeError, ValueError, RecursionError) as error:
            # A plug-in's proposal may hold what msgpack cannot: planning goes on.
            logger.warning("a snapshot cannot be recorded, the recording ends here", path=str(self._path), error=str(error))
            self.close()
            return
        self._bytes_left -= _LENGTH.size + len(value)
        if self._bytes_left < 0 or len(value) > FRAME_BYTES_MAX:
            logger.warning("the recording is full and ends here", path=str(self._path))
            self.close()
            return
        try:
            self._file.write(_LENGTH.pack(len(value)) + value)
            # Once in seconds: whoever reads along, or a kill, finds whole frames.
            self._file.flush()
        except OSError as error:
            logger.warning("the recording cannot be written and ends here", path=str(self._path), error=str(error))
            self.close()


class Recorded(msgspec.Struct, frozen=True):
    """One planning with the catalog of its time; None: none was recorded."""

    taken: RecordedSnapshot
    catalog: Catalog | None


def read_snapshots(path: Path) -> Iterator[Recorded]:
    """The plannings of a recording, as they are asked for; a last frame that was cut off is left out.

    Raises ConfigurationError for what is no recording of this version.
    """
    try:
        with path.open("rb") as file:
            yield from _recorded(path, file)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from error


def _recorded(path: Path, file: BinaryIO) -> Iterator[Recorded]:
    frames = _frames(path, file)
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


def _frames(path: Path, file: BinaryIO) -> Iterator[Frame]:
    number = 0
    while len(head := file.read(_LENGTH.size)) == _LENGTH.size:
        (length,) = _LENGTH.unpack(head)
        value = file.read(length) if length <= FRAME_BYTES_MAX else b""
        if len(value) < length:
            if not number:
                raise ConfigurationError(f"{path}: is no recording of snapshots; `headrace scaler --record FILE` makes one")
            return
        try:
            yield _frame.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigurationError(f"{path}: frame {number} cannot be read as a recording of snapshots: {error}") from None
        number += 1

"""Parquet files that appear whole, under their names: they grow by being replaced, and each says how far it goes, by shard."""

# pyarrow ships no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from broker.policy.tap_join import TapPosition
from broker.tap_sinks.parquet_layout import LAYOUT, LAYOUT_KEY, LAYOUT_VERSION, POSITIONS_KEY
from broker.tap_sinks.parquet_table import Table

SUFFIX = ".parquet"
PARTIAL = ".partial"
"""Hidden, so that nobody takes a file for whole that is being written."""
LOCKS = ".locks"

Positions = dict[int, TapPosition]


class Stored(msgspec.Struct, frozen=True):
    """How far a file goes: in the metadata of each."""

    prefix: str
    shards: dict[int, TapPosition]


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Stored, strict=False).decode


def write_file(path: Path, tables: Sequence[Table], stored: Stored) -> int:
    """Write all of it beside the path and put it in its place at once; its size in bytes. Raises OSError: the path is as it was."""
    hidden = path.with_name(f".{path.name}{PARTIAL}")
    schema = LAYOUT.with_metadata({LAYOUT_KEY: str(LAYOUT_VERSION).encode(), POSITIONS_KEY: _encode(stored)})
    try:
        with hidden.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # so that nobody sweeps it away meanwhile
            with pq.ParquetWriter(file, schema, compression="zstd", compression_level=1) as writer:
                for table in tables:
                    writer.write_table(table)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        hidden.replace(path)
        _sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            hidden.unlink(missing_ok=True)
        raise
    return size


def read_positions(folder: Path, prefix: str) -> Positions:
    """How far each shard of an installation is stored in the files of a folder. Files that are none of ours say nothing. Raises OSError."""
    found: Positions = {}
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        for shard, position in _positions_of(path, prefix).items():
            known = found.get(shard)
            if known is None or position.answers > known.answers:
                found[shard] = position
    return found


def _positions_of(path: Path, prefix: str) -> Positions:
    try:
        metadata = pq.read_schema(path).metadata or {}
        stored = _decode(metadata.get(POSITIONS_KEY, b"{}"))
    except (pa.ArrowInvalid, msgspec.DecodeError, FileNotFoundError):
        return {}
    return stored.shards if stored.prefix == prefix else {}


def sweep(folder: Path) -> None:
    """Remove what a killed writer left half-written; others' that are still being written are theirs, and younger."""
    for path in folder.glob(f".*{SUFFIX}{PARTIAL}"):
        with suppress(OSError), path.open("rb") as file:
            if _alone(file.fileno()):
                path.unlink()


class ShardLock:
    """One process at a time writes a shard of a folder; the kernel lets go of it when that process dies."""

    def __init__(self, folder: Path, shard: int) -> None:
        """Raises BlockingIOError where another process has it."""
        locks = folder / LOCKS
        locks.mkdir(exist_ok=True)
        self._file = os.open(locks / f"shard-{shard}", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise

    def release(self) -> None:
        """Let another process have it."""
        os.close(self._file)


def new_paths(folder: Path, stem: str) -> Iterator[Path]:
    """Paths that sort by time and that no other writer, and no other life of this one, has used."""
    for number in count():
        path = folder / f"{stem}-{number:06d}{SUFFIX}"
        if not path.exists():
            yield path


def _alone(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

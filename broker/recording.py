"""Records what a dispatcher decides, and reads such recordings: frames of msgpack, each behind its length, in one file of bounded size."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import structlog

from broker.policy import events as ev
from broker.policy.dispatcher import DispatcherPolicy
from broker.policy.entry import Commands, Entry
from broker.policy.graph_requests import Opened as Seen
from broker.policy.graph_requests import OpenRequest
from broker.policy.recorded import (
    COMMITS,
    RECORDING_VERSION,
    Identities,
    Made,
    Opened,
    Opening,
    Step,
    encode_event,
    made_of,
    opened_of,
)
from broker.policy.settings import DispatcherSettings
from graphs.compiled import Graph
from schemas.errors import ConfigurationError, RequestError
from schemas.limits import Limits

logger = structlog.get_logger()
RECORDING_BYTES_MAX = 1 << 30
"""A recording ends here; the dispatcher goes on."""
BUFFER_BYTES = 1 << 18
FLUSH_INTERVAL_MS = 500.0
_LENGTH = struct.Struct("<I")
_NOTHING = msgspec.Raw(msgspec.msgpack.encode(None))


class Recording:
    """A file that takes frames until it is full or the disk refuses: then it says so once and takes no more."""

    def __init__(self, path: Path, *, bytes_max: int = RECORDING_BYTES_MAX) -> None:
        """Raises ConfigurationError where the file cannot be written."""
        self._path, self._bytes_left = path, bytes_max
        try:
            self._file: BinaryIO | None = path.open("wb", buffering=BUFFER_BYTES)
        except OSError as error:
            raise ConfigurationError(f"cannot record to {path}: {error.strerror}") from error
        self._encode = msgspec.msgpack.Encoder().encode
        self._flushed_ms = 0.0

    @property
    def takes_more(self) -> bool:
        """False once it is full or was closed."""
        return self._file is not None

    def write(self, frame: Opening | Step, now_ms: float) -> None:
        """Add a frame."""
        if self._file is None:
            return
        try:
            value = self._encode(frame)
        except (OverflowError, TypeError, ValueError) as error:
            # A request's parameters may hold numbers that msgpack cannot: no request fails for a recording.
            logger.warning("a step cannot be recorded, the recording ends here", path=str(self._path), error=str(error))
            self.close()
            return
        self._bytes_left -= _LENGTH.size + len(value)
        if self._bytes_left < 0:
            logger.warning("the recording is full and ends here", path=str(self._path))
            self.close()
            return
        try:
            self._file.write(_LENGTH.pack(len(value)))
            self._file.write(value)
            if now_ms - self._flushed_ms >= FLUSH_INTERVAL_MS:
                self._flushed_ms = now_ms
                self._file.flush()
        except OSError as error:
            logger.warning("the recording cannot be written and ends here", path=str(self._path), error=str(error))
            self.close()

    def close(self) -> None:
        """Idempotent."""
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError as error:
                logger.warning("the end of the recording is lost", path=str(self._path), error=str(error))


class RecordedPolicy(DispatcherPolicy):
    """Decides as ever, and writes down what it was told and what it made of it."""

    def __init__(self, name: str, settings: DispatcherSettings, limits: Limits, open_request: OpenRequest, recording: Recording) -> None:
        super().__init__(name, settings, limits, self._open)
        self._really_open, self._recording = open_request, recording
        self._opened: list[Opened] = []
        self._who = Identities(self._is_current, lambda _key: None)
        recording.write(Opening(RECORDING_VERSION, name, settings, limits), 0.0)

    def _is_current(self, entry: Entry) -> bool:
        order = self.fleet.orders.get(entry.key)
        return order is not None and order.entry is entry

    def _open(self, payload: object, graph: Graph) -> Seen:
        if not self._recording.takes_more:
            return self._really_open(payload, graph)
        try:
            fields, tensors = self._really_open(payload, graph)
        except RequestError as error:
            self._opened.append(Opened(error_code=error.code, error_message=str(error)))
            raise
        self._opened.append(opened_of(fields, tensors))
        return fields, tensors

    def step(self, event: ev.Event, now_ms: float) -> Commands:
        if not self._recording.takes_more:
            return super().step(event, now_ms)
        said = msgspec.Raw(encode_event(event, self._who))
        commands = super().step(event, now_ms)
        self._who.made(commands)
        self._recording.write(Step(type(event).__name__, now_ms, said, self._opened, made_of(commands, self.next_wake_ms())), now_ms)
        self._opened = []
        return commands

    def commits(self) -> dict[int, tuple[int, str]]:
        found = super().commits()
        self._recording.write(Step(COMMITS, 0.0, _NOTHING, [], made_of_commits(found)), 0.0)
        return found


def made_of_commits(commits: Mapping[int, tuple[int, str]]) -> Made:
    """Commits in the form that is compared."""
    return Made(commits=[(shard, offset, metadata) for shard, (offset, metadata) in commits.items()])


def read_recording(path: Path) -> tuple[Opening, Iterator[Step]]:
    """(how the policy was made, its steps as they are asked for); a last frame that was cut off is left out.

    Raises ConfigurationError for what is no recording of this version.
    """
    try:
        frames = _frames(path.open("rb"))
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    first = next(frames, b"")
    try:
        opening = msgspec.msgpack.decode(first, type=Opening)
    except msgspec.DecodeError as error:
        raise ConfigurationError(f"{path} is not the recording of a dispatcher: {error}") from error
    if opening.version != RECORDING_VERSION:
        raise ConfigurationError(f"{path} is a recording of version {opening.version}, this is version {RECORDING_VERSION}")
    return opening, _steps(frames)


def _frames(file: Any) -> Iterator[bytes]:
    with file:
        while len(head := file.read(_LENGTH.size)) == _LENGTH.size:
            (size,) = _LENGTH.unpack(head)
            if size > RECORDING_BYTES_MAX or len(value := file.read(size)) < size:
                return
            yield value


def _steps(frames: Iterator[bytes]) -> Iterator[Step]:
    decode = msgspec.msgpack.Decoder(Step).decode
    for frame in frames:
        yield decode(frame)

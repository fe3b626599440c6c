"""Records what a dispatcher decides, in one file of bounded size, and reads such recordings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from broker.frame_files import FILE_BYTES_MAX, FrameFile, read_frames
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

FLUSH_INTERVAL_MS = 500.0
_NOTHING = msgspec.Raw(msgspec.msgpack.encode(None))


class Recording:
    """A file of what a dispatcher was told and made of it."""

    def __init__(self, path: Path, *, bytes_max: int = FILE_BYTES_MAX) -> None:
        """Raises ConfigurationError where the file cannot be written."""
        self._file = FrameFile(path, bytes_max=bytes_max)
        self._flushed_ms = 0.0

    @property
    def takes_more(self) -> bool:
        """False once it is full or was closed."""
        return self._file.takes_more

    def write(self, frame: Opening | Step, now_ms: float) -> None:
        """Add a frame."""
        flush = now_ms - self._flushed_ms >= FLUSH_INTERVAL_MS
        if flush:
            self._flushed_ms = now_ms
        self._file.write(frame, flush=flush)

    def close(self) -> None:
        """Idempotent."""
        self._file.close()


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
    frames = read_frames(path)
    first = next(frames, b"")
    try:
        opening = msgspec.msgpack.decode(first, type=Opening)
    except msgspec.DecodeError as error:
        raise ConfigurationError(f"{path} is not the recording of a dispatcher: {error}") from error
    if opening.version != RECORDING_VERSION:
        raise ConfigurationError(f"{path} is a recording of version {opening.version}, this is version {RECORDING_VERSION}")
    return opening, _steps(frames)


def _steps(frames: Iterator[bytes]) -> Iterator[Step]:
    decode = msgspec.msgpack.Decoder(Step).decode
    for frame in frames:
        yield decode(frame)

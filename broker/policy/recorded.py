"""What a recording of a dispatcher holds: each event with its time and what the policy made of it, as bytes that another process understands.

Events and commands share Entry objects, so identity is recorded too: entries are known by key, those in the dead letters by number.
Payloads stay where they are: the policy never looks inside, and what a graph saw of a request is recorded with the step that asked for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any
from zlib import crc32

import msgspec

from broker.policy import events as ev
from broker.policy.entry import Answer, Commands, Entry, Send, Tap
from broker.policy.graph_request import StageJob
from broker.policy.settings import DispatcherSettings
from broker.policy.watermark import restore
from graphs.tensor import Tensor
from schemas.catalog import Catalog
from schemas.limits import Limits
from schemas.plan import decode_plan, encode_plan
from schemas.stage import StageRecord
from schemas.telemetry import decode_telemetry, encode_telemetry

RECORDING_VERSION = 1
COMMITS = "commits"
"""The kind of a step that asked for the commits; all others are named after their event."""
BITMAP_BYTES_MAX = 1 << 20


class Opening(msgspec.Struct, frozen=True, array_like=True):
    """The first frame of a recording: how the policy was made."""

    version: int
    name: str
    settings: DispatcherSettings
    limits: Limits


class Opened(msgspec.Struct, frozen=True, array_like=True):
    """What a graph saw of a request, or why it saw nothing."""

    fields: dict[str, Any] = {}
    tensors: dict[str, tuple[str, str, tuple[int, ...], bytes]] = {}
    """(name, datatype, shape, bytes) by name."""
    error_code: str = ""
    error_message: str = ""


class Made(msgspec.Struct, frozen=True, array_like=True):
    """What a step commanded, without the payloads: these stand in as check sums."""

    sends: list[tuple[bytes, str, int, str, int, str, float, int, int]] = []
    answers: list[tuple[bytes, str, str, str, str | None, float | None, int]] = []
    letters: list[tuple[bytes, str]] = []
    taps: list[tuple[bytes, float, int]] = []
    wake_ms: float | None = None
    commits: list[tuple[int, int, str]] = []


class Step(msgspec.Struct, frozen=True, array_like=True):
    """One frame: what happened, when, and what followed."""

    kind: str
    now_ms: float
    event: msgspec.Raw
    opened: list[Opened]
    made: Made


class _Answered(msgspec.Struct, frozen=True, array_like=True):
    """As it is written; recordings of older versions end before `missed`."""

    shard: int
    keys: list[bytes]
    missed: list[bytes] = []


_FIELDS = (
    "key", "shard", "offset", "received_ms", "endpoint", "floor", "deadline_at_ms", "timeout_ms", "priority", "tenant", "rows", "bytes", "refused",
    "traceparent",
)  # fmt: skip
"""Of an entry as it arrives: the policy's own fields are empty then."""
_Request = tuple[
    bytes, int, int, int, str, float | None, int | None, int | None, int, str, int, int, tuple[str, str] | None, str | None
]  # fmt: skip
_told = attrgetter(*_FIELDS)

_encode = msgspec.msgpack.Encoder().encode


def _entry_of(found: _Request) -> Entry:
    values: dict[str, Any] = dict(zip(_FIELDS, found, strict=True))
    return Entry(**values, payload=None)


class Identities:
    """Who is who in events that come back with an Entry: the recorder asks for names, the replay for entries."""

    def __init__(self, is_current: Callable[[Entry], bool], current: Callable[[bytes], Entry | None]) -> None:
        """`is_current`: whether the entry's order is on the books as its own; `current`: whose order is, under this key."""
        self._is_current, self._current = is_current, current
        self._letters: dict[int, tuple[int, Entry]] = {}
        self._numbers = 0

    def made(self, commands: Commands) -> None:
        """Number the dead letters of a step."""
        for letter in commands.dead_letters:
            self._letters[self._numbers] = self._numbers, letter.entry
            self._numbers += 1

    def names(self, entries: Sequence[Entry]) -> list[tuple[bytes, bool]]:
        """(key, whether its order is still this entry's)."""
        return [(entry.key, self._is_current(entry)) for entry in entries]

    def entries(self, names: Sequence[tuple[bytes, bool]]) -> list[Entry]:
        """The same entries on this side; one whose order is another's by now is nobody here."""
        return [self._current(key) or _nobody(key) if current else _nobody(key) for key, current in names]

    def number(self, entry: Entry) -> int:
        """Of the dead letter that this is; it comes back once."""
        number = next(number for number, held in self._letters.values() if held is entry)
        del self._letters[number]
        return number

    def letter(self, number: int) -> Entry:
        """The entry of this dead letter; nobody where there was no such letter."""
        return self._letters.pop(number, (number, _nobody(b"")))[1]


def _nobody(key: bytes) -> Entry:
    return Entry(key, -1, -1, 0, "", None, None, None, 0, "", 0, 0, None)


def _encode_arrived(event: ev.Arrived, _who: Identities) -> object:
    return event.shard, [_told(entry) for entry in event.entries], event.burying


def _decode_arrived(raw: bytes, _who: Identities) -> ev.Event:
    shard, requests, burying = msgspec.msgpack.decode(raw, type=tuple[int, list[_Request], list[int]])
    return ev.Arrived(shard, [_entry_of(found) for found in requests], burying)


def _encode_assigned(event: ev.ShardAssigned, _who: Identities) -> object:
    watermark = event.watermark
    return event.shard, watermark.low, watermark.metadata(watermark.since_ms, BITMAP_BYTES_MAX)


def _decode_assigned(raw: bytes, _who: Identities) -> ev.Event:
    shard, low, metadata = msgspec.msgpack.decode(raw, type=tuple[int, int, str])
    return ev.ShardAssigned(shard, restore(low, metadata)[0])


def _encode_read(event: ev.RecordsRead, who: Identities) -> object:
    return [(type(part).__name__, msgspec.Raw(encode_event(part, who))) for part in event.events]


def _decode_read(raw: bytes, who: Identities) -> ev.Event:
    parts = msgspec.msgpack.decode(raw, type=list[tuple[str, msgspec.Raw]])
    return ev.RecordsRead([_decode_part(kind, bytes(said), who) for kind, said in parts])


def _decode_part(kind: str, raw: bytes, who: Identities) -> Any:
    return _CODECS[_KINDS[kind]][1](raw, who)


Encode = Callable[[Any, Identities], object]
Decode = Callable[[bytes, Identities], ev.Event]


def _decoded(kind: type[Any], make: Callable[[Any, Identities], ev.Event]) -> Decode:
    decode = msgspec.msgpack.Decoder(kind).decode
    return lambda raw, who: make(decode(raw), who)


_CODECS: dict[type[Any], tuple[Encode, Decode]] = {
    ev.Arrived: (_encode_arrived, _decode_arrived),
    ev.Answered: (
        lambda event, _who: _Answered(event.shard, event.keys, sorted(event.missed)),
        _decoded(_Answered, lambda found, _who: ev.Answered(found.shard, found.keys, frozenset(found.missed))),
    ),
    ev.StagesDone: (
        lambda event, _who: (event.shard, event.records),
        _decoded(tuple[int, list[tuple[bytes, StageRecord, bytes]]], lambda found, _who: ev.StagesDone(*found)),
    ),
    ev.Ticked: (lambda _event, _who: None, lambda _raw, _who: ev.Ticked()),
    ev.ShardAssigned: (_encode_assigned, _decode_assigned),
    ev.ShardRecovered: (lambda event, _who: event.shard, _decoded(int, lambda found, _who: ev.ShardRecovered(found))),
    ev.ShardRevoked: (lambda event, _who: event.shard, _decoded(int, lambda found, _who: ev.ShardRevoked(found))),
    ev.OffsetsFinished: (
        lambda event, _who: (event.shard, event.offsets),
        _decoded(tuple[int, list[int]], lambda found, _who: ev.OffsetsFinished(*found)),
    ),
    ev.TelemetryObserved: (
        lambda event, _who: encode_telemetry(event.record),
        _decoded(bytes, lambda found, _who: ev.TelemetryObserved(decode_telemetry(found))),
    ),
    ev.PlanObserved: (lambda event, _who: encode_plan(event.plan), _decoded(bytes, lambda found, _who: ev.PlanObserved(decode_plan(found)))),
    ev.CatalogObserved: (lambda event, _who: event.catalog, _decoded(Catalog, lambda found, _who: ev.CatalogObserved(found))),
    ev.SendsFailed: (
        lambda event, who: who.names(event.entries),
        _decoded(list[tuple[bytes, bool]], lambda found, who: ev.SendsFailed(who.entries(found))),
    ),
    ev.RecordsRead: (_encode_read, _decode_read),
    ev.DeadLettered: (lambda event, who: who.number(event.entry), _decoded(int, lambda found, who: ev.DeadLettered(who.letter(found)))),
}
_KINDS = {kind.__name__: kind for kind in _CODECS}


def encode_event(event: ev.Event, who: Identities) -> bytes:
    """Before the step: it changes entries and watermarks."""
    return _encode(_CODECS[type(event)][0](event, who))


def decode_event(step: Step, who: Identities) -> ev.Event:
    """Raises msgspec.DecodeError (KeyError for a kind that this version does not know)."""
    return _decode_part(step.kind, bytes(step.event), who)


def opened_of(fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Opened:
    """What a graph saw, to be seen again."""
    found = {key: (tensor.name, tensor.datatype, tensor.shape, bytes(tensor.data)) for key, tensor in tensors.items()}
    return Opened(dict(fields), found)


def made_of(commands: Commands, wake_ms: float | None) -> Made:
    """A step's commands in the form that is compared."""
    return Made(
        [_send_of(send) for send in commands.sends],
        [_answer_of(answer) for answer in commands.answers],
        [(letter.entry.key, letter.reason) for letter in commands.dead_letters],
        [_tap_of(tap) for tap in commands.taps],
        wake_ms,
    )


def _send_of(send: Send) -> tuple[bytes, str, int, str, int, str, float, int, int]:
    job = send.entry.payload
    said = 0
    if isinstance(job, StageJob):
        command = job.command
        said = crc32(_encode((command.instance, command.final, command.shadow, command.request_inputs)), _sum_of(command.tensors.values()))
    return send.entry.key, send.accelerator, send.lane, send.worker, send.incarnation, send.variant, send.accuracy, send.attempt, said


def _answer_of(answer: Answer) -> tuple[bytes, str, str, str, str | None, float | None, int]:
    said = crc32(_encode(answer.path), _sum_of(answer.tensors)) if answer.path or answer.tensors else 0
    return answer.entry.key, answer.outcome, answer.code, answer.message, answer.stage, answer.accuracy, said


def _tap_of(tap: Tap) -> tuple[bytes, float, int]:
    return tap.entry.key, tap.accuracy, crc32(_encode(tap.path), _sum_of(tap.tensors))


def _sum_of(tensors: Iterable[Tensor]) -> int:
    value = 0
    for tensor in tensors:
        value = crc32(tensor.data, crc32(_encode((tensor.name, tensor.datatype, tensor.shape)), value))
    return value

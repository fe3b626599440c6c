"""Everything that the log has of one request, in order: what `headrace trace` shows. Nothing of Headrace needs to run."""

from __future__ import annotations

import time

import msgspec

from broker.log import Log, Record
from broker.messages import is_shadow
from deploy.scanning import partitions_of, scan
from deploy.trace_events import TraceEvent, answered, arrived, buried, judged, order_of, reported, sent, stage_done
from schemas.errors import HeadraceError
from schemas.feedback import feedback_topic
from schemas.limits import Limits
from schemas.names import ACCELERATORS, Names
from schemas.plan_journal import decode_decision
from schemas.request import request_id_of
from schemas.terminal import TerminalHead, decode_terminal_head

MINUTE_MS = 60_000
AROUND_MS = 2_000
"""Clocks of records that are stamped by their writers may be off by so much."""
AFTERWARDS_MS = 5_000
"""How long after its answer something may still be written about a request: a shadow, a late completion."""


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """A request's timeline."""

    id: str
    outcome: str
    """Of the first answer; `pending` where there is none yet."""
    events: list[TraceEvent]
    plans: dict[int, str]
    """Why the plans that its orders name were made, by epoch."""
    notes: list[str]
    """What the log does not have any more."""


class _Found(msgspec.Struct):
    arrivals: list[Record] = []
    answers: list[Record] = []
    heads: list[TerminalHead] = []


async def trace_request(log: Log, names: Names, request_id: str, *, since_ms: int, limits: Limits | None = None) -> Trace:
    """Read the log from `since_ms` (Unix ms) on. Raises HeadraceError where nothing of the request is found there."""
    found = await _find(log, names, request_id, since_ms, limits or Limits())
    if not found.arrivals and not found.answers:
        minutes = (time.time() * 1000 - since_ms) / MINUTE_MS
        raise HeadraceError(f"nothing of request {request_id!r} in the last {minutes:.0f} minutes: look further back with --since MINUTES")
    events = [arrived(record, limits or Limits()) for record in found.arrivals[:1]]
    events += [msgspec.structs.replace(arrived(record, Limits()), what="ignored", detail="the same id again") for record in found.arrivals[1:]]
    events += [event for at, record in enumerate(found.answers) if (event := answered(record, first=at == 0)) is not None]
    begun_ms = min([*(record.timestamp for record in found.arrivals), *(head.received_ms for head in found.heads)])
    ended_ms = max((record.timestamp for record in found.answers), default=int(time.time() * 1000))
    around = (begun_ms - AROUND_MS, ended_ms + AFTERWARDS_MS)
    events += await _between(log, names, request_id, around)
    events += await _judgements(log, names, request_id, begun_ms)
    events.sort(key=lambda event: (event.at_ms, _RANK.get(event.what, 1)))
    notes: list[str] = []
    if found.heads and found.heads[0].attempts and not any(event.what == "sent" for event in events):
        notes.append("its orders are not in the log any more: lanes and telemetry keep an hour")
    if not found.arrivals:
        notes.append("its request record is older than where the search began: --since MINUTES goes further back")
    outcome = found.heads[0].outcome if found.heads else "pending"
    return Trace(id=request_id, outcome=outcome, events=events, plans=await _plans(log, names, events), notes=notes)


_RANK = {"arrived": 0, "answered": 2, "ignored": 3, "feedback": 4}
"""Of what happened in one millisecond."""


async def _find(log: Log, names: Names, request_id: str, since_ms: int, limits: Limits) -> _Found:
    """The records that say when it was: its arrivals and its answers."""
    found, key = _Found(), request_id.encode()
    async for record in scan(log, await partitions_of(log, [names.requests, names.responses]), since_ms):
        if record.topic == names.requests:
            if record.key == key or (record.key is None and _keyless_id(record, limits) == request_id):
                found.arrivals.append(record)
        elif record.key == key:
            try:
                found.heads.append(decode_terminal_head(record.value or b""))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue
            found.answers.append(record)
    return found


def _keyless_id(record: Record, limits: Limits) -> str | None:
    try:
        return request_id_of(None, record.value, record.headers, limits)
    except HeadraceError:
        return None


async def _between(log: Log, names: Names, request_id: str, around: tuple[int, int]) -> list[TraceEvent]:
    """Orders, stages, shadows, dead letters and telemetry of that time."""
    lanes = [names.work(accelerator) for accelerator in ACCELERATORS]
    stages = await log.topics(names.stages)
    topics = [*lanes, *stages, names.tap_responses, names.dead_letters, names.telemetry]
    events: list[TraceEvent] = []
    telemetry: list[Record] = []
    holders: dict[tuple[str, int], int] = {}
    key = request_id.encode()
    async for record in scan(log, await partitions_of(log, topics), *around):
        if record.topic == names.telemetry:
            telemetry.append(record)
        elif record.key != key:
            continue
        elif record.topic in lanes:
            order = order_of(record)
            if order is not None:
                holders.setdefault((order.worker, order.incarnation), record.timestamp)
                events.append(sent(record, order))
        else:
            event = _other(record, names)
            events += [event] if event is not None else []
    # Last: who had it is known by now.
    return events + [event for record in telemetry if (event := reported(record, request_id, holders)) is not None]


def _other(record: Record, names: Names) -> TraceEvent | None:
    if record.topic == names.tap_responses:
        # Taps copy answers there, too, which say nothing new.
        return answered(record, first=True, shadow=True) if is_shadow(record) else None
    return buried(record) if record.topic == names.dead_letters else stage_done(record)


async def _judgements(log: Log, names: Names, request_id: str, since_ms: int) -> list[TraceEvent]:
    key = request_id.encode()
    partitions = await partitions_of(log, [feedback_topic(names)])
    found = [judged(record) async for record in scan(log, partitions, since_ms - AROUND_MS) if record.key == key]
    return [event for event in found if event is not None]


async def _plans(log: Log, names: Names, events: list[TraceEvent]) -> dict[int, str]:
    epochs = {event.data["epoch"] for event in events if event.what == "sent"}
    found: dict[int, str] = {}
    if not epochs:
        return found
    async for record in scan(log, await partitions_of(log, [names.plan_history]), 0):
        try:
            decision = decode_decision(record.value or b"")
        except msgspec.DecodeError:
            continue
        if decision.epoch in epochs and decision.kind in ("published", "step", "mended"):
            found[decision.epoch] = f"{decision.trigger}: {decision.reason}" if decision.trigger else decision.reason
    return found

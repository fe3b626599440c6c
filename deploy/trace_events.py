"""What single records say of a request: the lines of its timeline. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from broker.arrivals import read_stage
from broker.log import Record
from schemas.errors import HeadraceError
from schemas.feedback import decode_feedback
from schemas.limits import Limits
from schemas.request import read_routing
from schemas.telemetry import Departed, Returned, decode_reported
from schemas.terminal import COMPLETED, PathStep, TerminalHead, decode_terminal_head
from schemas.work import INSTANCE_MARK, WORK_HEADER, WorkOrder, decode_order

MAIN = "main"


class TraceEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One line: when by the log's clock (Unix ms), what happened, in words, and the figures."""

    at_ms: int
    what: str
    """arrived, sent, returned, departed, stage, answered, ignored, shadow, dead letter, feedback."""
    detail: str
    stage: str = ""
    topic: str = ""
    partition: int = -1
    offset: int = -1
    data: dict[str, Any] = {}


def _event(record: Record, what: str, detail: str, *, stage: str = "", data: dict[str, Any] | None = None) -> TraceEvent:
    return TraceEvent(
        at_ms=record.timestamp,
        what=what,
        detail=detail,
        stage=stage,
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        data=data or {},
    )


def arrived(record: Record, limits: Limits) -> TraceEvent:
    """A record of {p}.requests."""
    try:
        routing = read_routing(record.value, record.headers, limits)
    except HeadraceError as error:
        return _event(record, "arrived", f"a request that cannot be routed: {error}", data={"bytes": len(record.value or b"")})
    wanted = "" if routing.min_accuracy is None else f", accuracy {routing.min_accuracy:g} or better"
    when = f", within {routing.timeout_ms} ms" if routing.timeout_ms is not None else ""
    when += f", by {routing.deadline_ms}" if routing.deadline_ms is not None else ""
    data: dict[str, Any] = {"bytes": len(record.value or b"")}
    for field in ("endpoint", "min_accuracy", "timeout_ms", "deadline_ms", "priority", "tenant", "traceparent"):
        stated = getattr(routing, field)
        if stated not in (None, "", 0):
            data[field] = stated
    return _event(record, "arrived", f"for endpoint {routing.endpoint!r}{wanted}{when}", data=data)


def order_of(record: Record) -> WorkOrder | None:
    """The order that a record of a lane carries."""
    for name, value in record.headers or ():
        if name == WORK_HEADER:
            try:
                return decode_order(value)
            except msgspec.DecodeError:
                return None
    return None


def sent(record: Record, order: WorkOrder) -> TraceEvent:
    """An order that was written to a lane."""
    stage = "" if order.part is None else order.part.instance
    left_ms = order.deadline_ms - record.timestamp
    where = f"{record.topic.rpartition('.')[2]} lane {record.partition}, {order.worker}"
    again = f", attempt {order.attempt}" if order.attempt > 1 else ""
    detail = f"{order.variant} (accuracy {order.accuracy:g}) on {where}, {left_ms} ms before the deadline, under plan {order.epoch}{again}"
    data = {name: getattr(order, name) for name in ("variant", "accuracy", "worker", "attempt", "epoch", "rows", "priority", "deadline_ms")}
    return _event(record, "sent", detail, stage=stage, data=data | {"left_ms": left_ms})


def stage_done(record: Record) -> TraceEvent | None:
    """A record of a stage topic."""
    found = read_stage(record)
    if found is None:
        return None
    data = {name: getattr(found, name) for name in ("variant", "accuracy", "worker", "attempt", "queued_ms", "computed_ms", "batch_size")}
    if found.error_code:
        return _event(record, "stage", f"{found.variant} failed on {found.worker}: {found.error_message}", stage=found.instance, data=data)
    detail = (
        f"{found.variant} on {found.worker}: queued {found.queued_ms:.1f} ms, computed {found.computed_ms:.1f} ms in a batch of {found.batch_size}"
    )
    return _event(record, "stage", detail, stage=found.instance, data=data)


def answered(record: Record, *, first: bool, shadow: bool = False) -> TraceEvent | None:
    """A terminal record of {p}.responses, or a shadow's answer."""
    try:
        head = decode_terminal_head(record.value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    what = "shadow" if shadow else "answered" if first else "ignored"
    data = {"outcome": head.outcome, "accuracy": head.accuracy, "attempts": head.attempts, "epoch": head.epoch}
    data["path"] = msgspec.to_builtins(head.path)
    if head.error is not None:
        data["error"] = msgspec.to_builtins(head.error)
    later = "" if first or shadow else "; the first answer counts"
    return _event(record, what, f"{_outcome(head)}{later}", data=data)


def _outcome(head: TerminalHead) -> str:
    took_ms = head.finished_ms - head.received_ms
    if head.outcome != COMPLETED:
        why = "" if head.error is None else f": {head.error.code}, {head.error.message}"
        return f"{head.outcome} after {took_ms} ms{why}"
    steps = ", ".join(f"{step.stage} by {step.variant} on {step.device} ({_took(step)})" for step in head.path)
    left = "" if head.deadline_ms is None else f", {head.deadline_ms - head.finished_ms} ms before the deadline"
    accuracy = "" if head.accuracy is None else f" with accuracy {head.accuracy:g}"
    return f"completed after {took_ms} ms{left}{accuracy}: {steps}"


def _took(step: PathStep) -> str:
    return f"queued {step.queued_ms:.1f} ms, computed {step.computed_ms:.1f} ms, batch of {step.batch_size}"


def reported(record: Record, request_id: str, holders: dict[tuple[str, int], int]) -> TraceEvent | None:
    """Telemetry that concerns the request: a worker handed it back, or one that had it (name and incarnation, since when) was lost."""
    try:
        said = decode_reported(record.value or b"")
    except msgspec.DecodeError:
        return None
    if isinstance(said, Returned):
        name = next((name for name in said.ids if name.partition(INSTANCE_MARK)[0] == request_id), None)
        if name is None:
            return None
        data = {"worker": said.worker, "cause": said.cause}
        return _event(record, "returned", f"{said.worker} hands it back: {said.reason}", stage=name.partition(INSTANCE_MARK)[2], data=data)
    if isinstance(said, Departed) and said.role == "worker":
        for (worker, incarnation), since_ms in holders.items():
            if worker == said.name and said.incarnation in (0, incarnation) and since_ms <= said.at_ms:
                return _event(record, "departed", f"{worker}, which had it, ended: its orders are sent elsewhere", data={"worker": worker})
    return None


def buried(record: Record) -> TraceEvent:
    """A dead letter."""
    reason = next((value.decode(errors="replace") for name, value in record.headers if name == "headrace-reason"), "")
    return _event(record, "dead letter", reason)


def judged(record: Record) -> TraceEvent | None:
    """Feedback."""
    try:
        said = msgspec.to_builtins(decode_feedback(record.value or b""))
    except msgspec.DecodeError:
        return None
    words = ", ".join(f"{name} {value}" for name, value in said.items() if name not in ("id", "output"))
    return _event(record, "feedback", words or "a correct tensor", data=said)

"""From a tapped request to the spans of its trace: one for the request, one for each stage of its path, under the `traceparent` that it brought."""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import blake2b

import msgspec

from broker.policy.tap_join import Exchange, routing_of
from schemas.limits import Limits
from schemas.terminal import COMPLETED, PathStep

_TRACEPARENT = re.compile(r"^[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
Attribute = str | int | float | bool


class Span(msgspec.Struct, frozen=True):
    """A span as W3C and OpenTelemetry count it: ids of 128 and 64 bits, times in Unix nanoseconds."""

    name: str
    trace_id: int
    span_id: int
    parent_id: int | None
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Attribute]
    error: str = ""


def spans_of(exchange: Exchange, limits: Limits) -> list[Span]:
    """Ids are hashes of the request's id: whoever gets a span twice has it once. Without a usable `traceparent` the trace is the request's own."""
    head, endpoint = exchange.head, exchange.endpoint
    routing = routing_of(exchange.asked, limits)
    trace_id, parent_id = _context(None if routing is None else routing.traceparent, head.id)
    root_id = _number(f"{head.id}/", 8)
    attributes: dict[str, Attribute] = {
        "headrace.request.id": head.id,
        "headrace.endpoint": endpoint.name,
        "headrace.graph.version": endpoint.revision,
        "headrace.outcome": head.outcome,
        "headrace.attempts": head.attempts,
        "headrace.shard": exchange.shard,
    }
    if head.accuracy is not None:
        attributes["headrace.accuracy"] = head.accuracy
    if head.deadline_ms:
        attributes["headrace.deadline_ms"] = head.deadline_ms
    error = "" if head.outcome == COMPLETED else f"{head.outcome}: {head.error.code if head.error else ''}"
    received_ms = float(exchange.asked.received_ms)
    ended_ms = max(float(head.finished_ms), received_ms)
    spans = [Span(f"headrace {endpoint.name}", trace_id, root_id, parent_id, _ns(received_ms), _ns(ended_ms), attributes, error)]
    for number, (step, start_ms, end_ms) in enumerate(_times(exchange, received_ms, ended_ms)):
        span_id = _number(f"{head.id}/{number}/{step.stage}", 8)
        spans.append(Span(step.stage, trace_id, span_id, root_id, _ns(start_ms), _ns(end_ms), _of_step(step)))
    return spans


def _times(exchange: Exchange, received_ms: float, ended_ms: float) -> list[tuple[PathStep, float, float]]:
    """When each step was computed: from its stage record where that was tapped, of the last step from the answer; between, one after the other."""
    known = {stage.record.instance: float(stage.record.finished_ms) for stage in exchange.asked.stages}
    path = exchange.head.path
    found: list[tuple[PathStep, float, float]] = []
    at_ms = received_ms
    for step in path:
        end_ms = known.get(step.stage)
        if end_ms is None:
            end_ms = ended_ms if step is path[-1] else at_ms + step.queued_ms + step.computed_ms
        start_ms = max(end_ms - step.computed_ms, received_ms)
        found.append((step, start_ms, max(end_ms, start_ms)))
        at_ms = end_ms
    return found


def _of_step(step: PathStep) -> dict[str, Attribute]:
    return {
        "headrace.stage": step.stage,
        "headrace.variant": step.variant,
        "headrace.accuracy": step.accuracy,
        "headrace.accelerator": step.accelerator,
        "headrace.device": step.device,
        "headrace.queued_ms": step.queued_ms,
        "headrace.batch_size": step.batch_size,
    }


def _context(traceparent: str | None, request_id: str) -> tuple[int, int | None]:
    found = _TRACEPARENT.match(traceparent or "")
    if found is not None and int(found[1], 16) and int(found[2], 16):
        return int(found[1], 16), int(found[2], 16)
    return _number(request_id, 16), None


def _number(text: str, size: int) -> int:
    """Never 0, which is no id."""
    return int.from_bytes(blake2b(text.encode(), digest_size=size, person=b"headrace-span").digest(), "big") or 1


def _ns(unix_ms: float) -> int:
    return int(unix_ms * 1_000) * 1_000

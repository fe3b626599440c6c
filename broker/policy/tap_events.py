"""From a tapped request to CloudEvents: the types and extensions of KServe's logger, and what only Headrace knows beside them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from broker.policy.tap_join import Asked, Exchange, TappedStage, routing_of
from broker.policy.tap_payload import Payload, shaped
from schemas.catalog import EndpointSpec
from schemas.cloud_event import BYTES_TYPE, SPEC_VERSION, Attributes, CloudEvent, instant
from schemas.limits import Limits
from schemas.request import Routing, answer_type_of
from schemas.tap import TapSpec
from schemas.terminal import JSON_TYPE, MSGPACK_TYPE, PathStep, Terminal, TerminalHead

REQUEST_TYPE = "org.kubeflow.serving.inference.request"
RESPONSE_TYPE = "org.kubeflow.serving.inference.response"
COMPONENT = "predictor"
"""KServe's name for what computes (beside transformers and explainers)."""
PROBLEM_CHARACTERS_MAX = 256

_encode = msgspec.json.Encoder().encode


class EventSource(msgspec.Struct, frozen=True):
    """Whose events these are."""

    prefix: str
    limits: Limits = Limits()

    def attributes(self, event_id: str, event_type: str, endpoint: str, unix_ms: float) -> Attributes:
        """What every event has, first what CloudEvents asks for, then what KServe's logger adds."""
        found: Attributes = {
            "specversion": SPEC_VERSION,
            "id": event_id,
            "source": f"/{self.prefix}/{endpoint}",
            "type": event_type,
        }
        time = instant(unix_ms)
        if time is not None:
            found["time"] = time
        found["inferenceservicename"] = endpoint
        found["namespace"] = self.prefix
        found["component"] = COMPONENT
        found["endpoint"] = endpoint
        return found


def events_of(exchange: Exchange, source: EventSource) -> tuple[CloudEvent, list[CloudEvent]]:
    """The request's event; and those of its stages, in the order in which they were computed, with the answer's behind them."""
    asked, head, endpoint = exchange.asked, exchange.head, exchange.endpoint
    taps = endpoint.taps or TapSpec()
    routing = routing_of(asked, source.limits)
    shared = _shared(exchange, routing)
    request = CloudEvent(asked.key, source.attributes(head.id, REQUEST_TYPE, endpoint.name, asked.received_ms))
    request.attributes |= {"metadata": _metadata(routing)} | shared
    _put(request, request_payload(asked, taps, readable=routing is not None))
    response = CloudEvent(asked.key, source.attributes(head.id, RESPONSE_TYPE, endpoint.name, exchange.answered_ms))
    response.attributes |= shared | answer_attributes(head)
    _put(response, shaped(exchange.answer, answer_type(exchange.answer), "outputs", taps))
    stages = [_stage_event(exchange, stage, source, shared) for stage in asked.stages]
    return request, [*stages, response]


def shadow_event(terminal: Terminal, body: bytes, node: str, graph_version: int, source: EventSource) -> CloudEvent:
    """The answer of a shadow's copy, whose node stands in the id where a stage's would."""
    event_id = f"{terminal.id}/{node}" if node else terminal.id
    event = CloudEvent(terminal.id.encode(), source.attributes(event_id, RESPONSE_TYPE, terminal.endpoint, terminal.finished_ms), body)
    event.attributes |= {"graphversion": graph_version, "shadow": True} | answer_attributes(terminal)
    if terminal.traceparent:
        event.attributes["traceparent"] = terminal.traceparent
    return event


def answer_attributes(answer: TerminalHead | Terminal) -> Attributes:
    """What an answer says of itself, as extensions."""
    found: Attributes = {"outcome": answer.outcome, "attempt": answer.attempts}
    if answer.path:
        found |= _step(answer.path[-1])
    if answer.accuracy is not None:
        found["accuracy"] = repr(answer.accuracy)
    if answer.error is not None:
        found["errorcode"] = answer.error.code
    deadline = instant(answer.deadline_ms) if answer.deadline_ms else None
    if deadline is not None:
        found["deadline"] = deadline
    return found


def answer_type(answer: bytes) -> str:
    """The content type of a terminal record: JSON objects begin with `{`, msgpack maps never do."""
    return JSON_TYPE if answer[:1] == b"{" else MSGPACK_TYPE


def request_payload(asked: Asked, taps: TapSpec, *, readable: bool = True) -> Payload:
    """What may be shown of the request's body; bytes with the reason, where it cannot be read."""
    if asked.shed:
        return Payload(None, JSON_TYPE, 0, problem="left out: too many requests waited for their answers")
    if asked.value is None:
        return Payload(None, JSON_TYPE, 0, problem="the request has no body")
    payload = shaped(asked.value, answer_type_of(asked.headers or ()), "inputs", taps)
    if not readable and not payload.problem:
        payload.content_type, payload.problem = BYTES_TYPE, "the request cannot be read"
    return payload


def floor_of(routing: Routing | None, endpoint: EndpointSpec) -> float:
    """The accuracy that was asked for."""
    stated = None if routing is None else routing.min_accuracy
    return endpoint.defaults.min_accuracy if stated is None else stated


def _shared(exchange: Exchange, routing: Routing | None) -> Attributes:
    """What the request's, the stages' and the answer's events all say."""
    endpoint = exchange.endpoint
    found: Attributes = {
        "graphversion": endpoint.revision,
        "outcome": exchange.head.outcome,
        "accuracyfloor": repr(floor_of(routing, endpoint)),
        "samplerate": repr(exchange.rate),
        "shadow": False,
    }
    deadline = instant(exchange.head.deadline_ms) if exchange.head.deadline_ms else None
    if deadline is not None:
        found["deadline"] = deadline
    if routing is not None and routing.traceparent:
        found["traceparent"] = routing.traceparent
    return found


def _metadata(routing: Routing | None) -> str:
    """KServe puts chosen request headers here: names to lists of values."""
    if routing is None:
        return "{}"
    stated = {"tenant": [routing.tenant] if routing.tenant else [], "priority": [str(routing.priority)] if routing.priority else []}
    return _encode({name: values for name, values in stated.items() if values}).decode()


def _step(step: PathStep) -> Attributes:
    return {"stage": step.stage, "variant": step.variant, "accelerator": step.accelerator}


def _put(event: CloudEvent, payload: Payload) -> None:
    event.data, event.content_type = payload.data, payload.content_type
    if payload.cut:
        event.attributes["truncated"] = payload.size_bytes
    if payload.redacted:
        event.attributes["redacted"] = ",".join(payload.redacted)
    if payload.problem:
        event.attributes["problem"] = payload.problem[:PROBLEM_CHARACTERS_MAX]


def _stage_event(exchange: Exchange, stage: TappedStage, source: EventSource, shared: Attributes) -> CloudEvent:
    record, endpoint = stage.record, exchange.endpoint
    taps = endpoint.taps or TapSpec()
    event_id = f"{exchange.head.id}/{record.instance}"
    event = CloudEvent(exchange.asked.key, source.attributes(event_id, RESPONSE_TYPE, endpoint.name, stage.written_ms))
    event.attributes |= shared | {
        "graphversion": record.revision,
        "stage": record.instance,
        "variant": record.variant,
        "accelerator": record.accelerator,
        "accuracy": repr(record.accuracy),
        "attempt": record.attempt,
    }
    if record.error_code:
        event.attributes["errorcode"] = record.error_code
    kept = [head for head in record.tensors if head.name not in taps.redact]
    event.attributes["tensors"] = _encode([[head.name, head.datatype, head.shape, head.size] for head in kept]).decode()
    redacted = tuple(head.name for head in record.tensors if head.name in taps.redact)
    if taps.payload == "metadata":
        _put(event, Payload(None, BYTES_TYPE, len(stage.value)))
        return event
    body = _parts(stage, kept) if redacted else stage.value
    cut = len(body) > taps.max_bytes
    _put(event, Payload(body[: taps.max_bytes], BYTES_TYPE, len(stage.value), cut=cut, redacted=redacted))
    return event


def _parts(stage: TappedStage, kept: Sequence[object]) -> bytes:
    parts: list[bytes] = []
    at = 0
    for head in stage.record.tensors:
        if head in kept:
            parts.append(stage.value[at : at + head.size])
        at += head.size
    return b"".join(parts)

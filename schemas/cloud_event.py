"""CloudEvents 1.0: an event with its attributes, in the binary and structured modes of the Kafka binding and in JSON."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence

import msgspec
import numpy as np

from schemas.terminal import JSON_TYPE

SPEC_VERSION = "1.0"
BINARY_PREFIX = "ce_"
CONTENT_TYPE = "content-type"
STRUCTURED_TYPE = "application/cloudevents+json"
BATCH_TYPE = "application/cloudevents-batch+json"
BYTES_TYPE = "application/octet-stream"
_INSTANT_MS_MAX = 253_402_300_799_999
"""The end of the year 9999: RFC 3339 goes no further."""

Message = tuple[bytes | None, bytes | None, Sequence[tuple[str, bytes]]]
Attributes = dict[str, str | int | bool]
"""Names of lower-case letters and digits, as CloudEvents wants them."""

_encode = msgspec.json.Encoder().encode
_json_of = msgspec.json.Decoder(msgspec.Raw).decode


class CloudEvent(msgspec.Struct, gc=False):
    """`attributes` without `datacontenttype`, which is the content type of `data`."""

    key: bytes
    attributes: Attributes
    data: bytes | None = None
    content_type: str = JSON_TYPE

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory and on the wire."""
        return len(self.data or b"") + 32 * len(self.attributes)


def instant(unix_ms: float) -> str | None:
    """RFC 3339 in UTC; None for what it cannot say."""
    if not 0 <= unix_ms <= _INSTANT_MS_MAX:
        return None
    return f"{np.datetime64(int(unix_ms), 'ms')}Z"


def kafka_binary(event: CloudEvent) -> Message:
    """Attributes in headers that begin with `ce_`; the data alone is the value."""
    headers = [(BINARY_PREFIX + name, value.encode() if type(value) is str else _text(value).encode()) for name, value in event.attributes.items()]
    if event.data is not None:
        headers.append((CONTENT_TYPE, event.content_type.encode()))
    return event.key, event.data, headers


def kafka_structured(event: CloudEvent) -> Message:
    """The whole event as JSON in the value."""
    return event.key, json_event(event), [(CONTENT_TYPE, STRUCTURED_TYPE.encode())]


def json_event(event: CloudEvent) -> bytes:
    """The JSON event format: JSON data as it is, all else in base64."""
    found: dict[str, object] = dict(event.attributes)
    data = event.data
    if data is not None:
        found["datacontenttype"] = event.content_type
        embedded = _embedded(data) if event.content_type == JSON_TYPE else None
        if embedded is None:
            found["data_base64"] = b64encode(data).decode()
        else:
            found["data"] = embedded
    return _encode(found)


def json_batch(events: Sequence[bytes]) -> bytes:
    """The JSON batch format of events that `json_event` made."""
    return b"[" + b",".join(events) + b"]"


def _embedded(data: bytes) -> msgspec.Raw | None:
    """None where the data is not JSON after all."""
    try:
        return msgspec.Raw(bytes(_json_of(data)))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _text(value: str | int | bool) -> str:  # noqa: FBT001 - a value
    """Booleans as CloudEvents writes them."""
    return value if isinstance(value, str) else "true" if value is True else "false" if value is False else str(value)

"""Alerts, {p}.alerts (key: endpoint, or empty): what detectors and Headrace itself want somebody, or a canary, to know."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from schemas.decoding import strict
from schemas.names import Names, TopicSpec

ALERT_VERSION = 1
Severity = Literal["info", "warning", "critical"]
INFO: Severity = "info"
RETENTION_MS = 7 * 24 * 3600 * 1000


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """One finding. Repeating it is the detector's business: every record is one alert."""

    source: str
    """Who says so: `accuracy`, `river`, ..."""
    kind: str
    """What was found: `accuracy`, `drift`, `adversarial`, ..."""
    message: str
    """For people."""
    endpoint: str = ""
    variant: str = ""
    """Variant key, where it concerns one."""
    severity: Severity = "warning"
    at_ms: int
    evidence: dict[str, Any] = {}
    """What the detector has seen: figures by name."""
    version: int = ALERT_VERSION


def alerts_topic(names: Names) -> str:
    """Of alerts."""
    return f"{names.prefix}.alerts"


def alerts_spec(names: Names, *, record_bytes_max: int = 2 << 20) -> TopicSpec:
    """To create it."""
    return TopicSpec(alerts_topic(names), 1, {"max.message.bytes": str(record_bytes_max), "retention.ms": str(RETENTION_MS)})


_encode = msgspec.json.Encoder().encode
_decode = strict(msgspec.json.Decoder(Alert).decode)


def encode_alert(alert: Alert) -> bytes:
    """The record's value."""
    return _encode(alert)


def decode_alert(value: bytes) -> Alert:
    """Raises msgspec.DecodeError (ValidationError) for anything else."""
    return _decode(value)

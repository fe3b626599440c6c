"""What requests of an endpoint are taken on by, looked up once for each catalog."""

from __future__ import annotations

import msgspec

from broker.policy.entry import Entry
from broker.policy.ladder import Ladder
from schemas.catalog import Defaults, Quota
from schemas.limits import DEFAULT_PRIORITY


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint with what it is answered by."""

    defaults: Defaults
    quotas: dict[str, Quota]
    """By tenant."""
    graph: bool
    task: str
    ladder: Ladder | None
    """None where the task is not in the catalog, or of a graph."""


def fill_in(entry: Entry, defaults: Defaults) -> int:
    """What the request leaves open: deadline, priority, floor. Returns how long after its arrival the deadline comes, in milliseconds."""
    absolute, timeout_ms, received_ms = entry.deadline_at_ms, entry.timeout_ms, entry.received_ms
    if absolute is None and timeout_ms is None:
        timeout_ms = entry.timeout_ms = defaults.timeout_ms
    deadline_ms = absolute if timeout_ms is None else received_ms + timeout_ms
    assert deadline_ms is not None
    if absolute is not None and absolute < deadline_ms:
        deadline_ms = absolute
    entry.deadline_ms = deadline_ms
    if not entry.priority:
        entry.priority = defaults.priority or DEFAULT_PRIORITY
    if entry.floor is None:
        entry.floor = defaults.min_accuracy
    return deadline_ms - received_ms

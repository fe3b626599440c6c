"""Every bound of the system, by name: nothing in Headrace grows without one of these."""

from __future__ import annotations

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds that an operator may change; the defaults are the documented ones."""

    payload_bytes_max: int = 1 << 20
    """Largest request body; larger ones are answered `too_large`."""
    record_bytes_max: int = 2 << 20
    """Largest Kafka record: above the payload limit, so that a payload over it can still be answered."""
    request_id_bytes_max: int = 128
    name_bytes_max: int = 128
    """Endpoint, tenant, task, variant and worker names."""
    tensors_max: int = 64
    rank_max: int = 8
    elements_max: int = 1 << 24
    """Elements of one tensor, from its shape, before anything is allocated."""
    rows_max: int = 1024
    """Rows (first axis) of one request."""
    headers_max: int = 64
    headers_bytes_max: int = 64 << 10
    """Names and values of a request's headers together: some travel on to the worker."""
    timeout_ms_max: int = 24 * 3600 * 1000
    """A deadline further away than this is a bad request."""
    priority_max: int = 9
    waiting_max: int = 200_000
    """Requests that wait in one dispatcher; above it arrivals are refused as overloaded."""
    waiting_bytes_max: int = 2 << 30
    attempts_max: int = 3
    recent_ids_max: int = 50_000
    """Finished request ids that one dispatcher remembers, to ignore a repeated id."""
    tenants_max: int = 10_000
    """Tenants that are told apart; further ones share one account."""
    commit_metadata_bytes_max: int = 4_000
    lane_rows_max: int = 4_096
    """Rows outstanding on one lane, whatever the worker's credits say."""
    worker_queue_rows_max: int = 16_384
    read_records_max: int = 1_000
    """Records taken from the log at once."""
    response_ttl_ms: int = 3_600_000
    response_ttl_ms_min: int = 600_000
    model_bytes_max: int = 4 << 30


DEFAULT_PRIORITY = 5
"""The level that priority 0 (unset) means; 1 is the highest, `priority_max` the lowest."""

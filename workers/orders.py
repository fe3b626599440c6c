"""Reads a work order from a record of a lane."""

from __future__ import annotations

import msgspec

from broker.log import Record
from schemas.request import answer_type_of
from schemas.work import WORK_HEADER, WorkOrder, decode_order, order_name
from workers.policy.batcher import QueuedOrder


def read_order(record: Record) -> QueuedOrder:
    """Raises ValueError for what is not a work order."""
    try:
        order = _decoded(record)
        request_id = (record.key or b"").decode()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from None
    if not request_id:
        raise ValueError("the record has no key")
    name = request_id if order.part is None else order_name(request_id, order.part.instance)
    return QueuedOrder(name, request_id, order, record.value or b"", answer_type_of(record.headers), record.partition, record.offset)


def _decoded(record: Record) -> WorkOrder:
    for name, value in record.headers:
        if name == WORK_HEADER:
            return decode_order(value)
    raise ValueError(f"the record has no {WORK_HEADER!r} header")

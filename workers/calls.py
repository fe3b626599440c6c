"""Runs Python tasks: one request at a time, whole, and whatever comes of it is that request's result."""

from __future__ import annotations

import time

from schemas.errors import BackendError, RequestError
from schemas.limits import Limits
from workers.computation import Computed, ComputedBatch, Served, asked, described
from workers.inputs import decode_call
from workers.policy.batcher import Batch, QueuedOrder


def compute_calls(served: Served, batch: Batch, limits: Limits) -> ComputedBatch:
    """Blocks: runs on the device thread. A batch of a Python task is one order, but nothing here depends on it."""
    started = time.perf_counter()
    results = [_call(served, queued, limits) for queued in batch.orders]
    rows = sum(result.rows for result in results)
    ended = time.perf_counter()
    return ComputedBatch(results, rows, (ended - started) * 1e3, ended)


def _call(served: Served, queued: QueuedOrder, limits: Limits) -> Computed:
    """The result's `rows` is 1: a request is one call, however many rows it has."""
    call = served.loaded.call
    assert call is not None
    try:
        decoded, parameters = decode_call(queued, served.loaded.spec, limits)
        started = time.perf_counter()
        outputs = dict(call(decoded.inputs, parameters))
        computed_ms = (time.perf_counter() - started) * 1e3
        return Computed(queued, outputs=asked(outputs, decoded.outputs), computed_ms=computed_ms, rows=1)
    except RequestError as error:
        return Computed(queued, error=error)
    except Exception as error:  # a plug-in's fault is this request's, as it is with models
        return Computed(queued, error=BackendError(described(served.variant, error)))

"""The columns of the Parquet files that the taps write: docs/taps.md describes them, readers rely on them."""

# pyarrow ships no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import pyarrow as pa

LAYOUT_VERSION = 1
"""In the metadata of each file. Columns are added, never renamed or given another type."""
LAYOUT_KEY, POSITIONS_KEY = b"headrace.layout", b"headrace.positions"

INSTANT = pa.timestamp("ms", tz="UTC")
TENSOR = pa.struct(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("datatype", pa.string(), nullable=False),
        pa.field("shape", pa.list_(pa.int64()), nullable=False),
        pa.field("data", pa.binary()),
    ]
)
PATH_STEP = pa.struct(
    [
        ("stage", pa.string()),
        ("variant", pa.string()),
        ("accuracy", pa.float64()),
        ("accelerator", pa.string()),
        ("device", pa.string()),
        ("queued_ms", pa.float64()),
        ("computed_ms", pa.float64()),
        ("batch_size", pa.int32()),
    ]
)
LAYOUT = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("endpoint", pa.string(), nullable=False),
        pa.field("graph_version", pa.int64(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
        ("min_accuracy", pa.float64()),
        ("accuracy", pa.float64()),
        ("stage", pa.string()),
        ("variant", pa.string()),
        ("accelerator", pa.string()),
        pa.field("attempts", pa.int32(), nullable=False),
        ("tenant", pa.string()),
        ("priority", pa.int32()),
        ("traceparent", pa.string()),
        pa.field("received_at", INSTANT, nullable=False),
        pa.field("finished_at", INSTANT, nullable=False),
        ("deadline_at", INSTANT),
        ("path", pa.list_(PATH_STEP)),
        ("parameters", pa.string()),
        ("inputs", pa.list_(TENSOR)),
        ("outputs", pa.list_(TENSOR)),
        ("request", pa.binary()),
        ("request_bytes", pa.int64()),
        ("request_problem", pa.string()),
        ("response", pa.binary()),
        ("response_bytes", pa.int64()),
        ("response_problem", pa.string()),
        pa.field("sample_rate", pa.float64(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
    ]
)

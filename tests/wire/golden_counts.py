"""The golden record of what a dispatcher counts of one endpoint."""

from __future__ import annotations

from schemas.telemetry import EndpointCounts, StageCounts

COUNTS = EndpointCounts(
    arrived={"0.0": 3, "0.93": 1},
    rows=5,
    ended=3,
    missed=1,
    waiting=1,
    timeout_ms=250.0,
    stages={
        "find": StageCounts(rows=4, done={"find/small": 4}, led_to={"find/small": {"lines/recognise": 23}}),
        "lines/recognise": StageCounts(rows=23, done={"recognise/large": 20}),
    },
)

"""What workers report, as golden bytes have it."""

import msgspec

from schemas.profile import Latency
from schemas.telemetry import BoardState, HostedVariant, WorkerReport

WORKER = WorkerReport(
    worker="worker-cpu-0",
    incarnation=1_700_000_000_000,
    accelerator="cpu",
    device="CPU",
    host="box",
    at_ms=1_700_000_001_000,
    lane=0,
    state="ready",
    epoch=7,
    credits=128,
    batch_size_max=32,
    variants={
        "fashion/cnn": HostedVariant(
            state="ready", latency={1: Latency(0.08, 0.1, 50), 32: Latency(2.0, 2.5, 40)}, load_ms=12.5, memory_bytes=4_096, computed_rows=9
        ),
        "fashion/wide": HostedVariant(state="failed", reason="wrong hash"),
    },
    waiting_rows=3,
    memory_bytes=1_000,
    memory_bytes_max=2_000,
    threads=2,
)
BOARD_WORKER = msgspec.structs.replace(
    WORKER,
    accelerator="fpga",
    device="board at 10.0.0.9 (real board, programmable logic fabric)",
    state="starting",
    reason="the board did not answer within 254 ms",
    board=BoardState(overlay="ab" * 32, clock_mhz=99.999, temperature_celsius=41.5, reconfiguration_ms=140.2, power_watts=3.25),
)
EARLIER_BOARD_WORKER = msgspec.structs.replace(
    BOARD_WORKER, board=BoardState(overlay="ab" * 32, clock_mhz=99.999, temperature_celsius=41.5, reconfiguration_ms=140.2)
)

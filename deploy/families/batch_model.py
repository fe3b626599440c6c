"""Latency by batch size where a table has one or two points: what is assumed, in one place.

Published tables give a GPU one large batch or two points, and a CPU batch 1. So:

- **GPU**: `overhead + rows x per row`. Two points fix both. With one large batch the overhead is OVERHEAD_MS, the time to launch kernels from
  Python, which does not depend on the device: between 5.7 to 7.6 ms, which the two points of the YOLOv5 models on a V100 give, and 1.7 to 6.7 ms,
  which Loki's authors published for EfficientNet on a GTX 1080 Ti.
- **Devices not measured**: the time per row times a factor from data sheets. RTX 3090 to V100: memory bandwidth (936 / 900 GB/s), as
  convolutional networks in mixed precision wait for memory. To GTX 1080 Ti: FP16 tensor throughput of the 3090 over FP32 of the 1080 Ti,
  which has no tensor cores (71 / 11.3 TFLOPS).
- **CPU**: CPU_FIXED_PART of the latency at batch 1 is paid once, the rest for each row: our own profiles (benchmarks/data/fashion) grow nearly
  linearly.
- **Cores** (type `cores`): Amdahl's law with PARALLEL_PART, from the measured time on all MEASURED_CORES.
- **p95** is P95_FACTOR x p50: tables have no spread.
- **Memory**: parameters in FP32 and a fifth more for activations. **Load**: LOAD_FIXED_MS, and the weights at 1 GB/s.
"""

from __future__ import annotations

from scaler.optimizers.snapshot import Cost
from schemas.profile import Latency

BATCHES = (1, 2, 4, 8, 16, 32)
OVERHEAD_MS = 4.0
RTX3090_TO_V100 = 936.0 / 900.0
RTX3090_TO_GTX1080TI = 71.0 / 11.3
V100_TO_GTX1080TI = RTX3090_TO_GTX1080TI / RTX3090_TO_V100
CPU_FIXED_PART = 0.1
PARALLEL_PART = 0.9
MEASURED_CORES = 14
"""Of the i9-10940X."""
CORES = (1, 2, 4, 8, 16)
P95_FACTOR = 1.1
BYTES_PER_PARAMETER = 4 * 1.2
LOAD_FIXED_MS = 200.0
LOAD_BYTES_PER_MS = 1e6

Batches = dict[int, Latency]


def affine(overhead_ms: float, row_ms: float) -> Batches:
    """Latencies of a device that pays `overhead_ms` once for each batch."""
    return {rows: _latency(overhead_ms + rows * row_ms) for rows in BATCHES}


def row_ms_of(rows_per_s: float, batch: int) -> float:
    """Time per row behind the throughput at one large batch."""
    return max(1_000.0 / rows_per_s - OVERHEAD_MS / batch, 1e-3)


def two_points(one_ms: float, many: int, many_ms: float) -> tuple[float, float]:
    """(overhead, time per row) through the latencies of one row and of `many`."""
    row_ms = (many_ms - one_ms) / (many - 1)
    return one_ms - row_ms, row_ms


def cpu_batches(one_ms: float) -> Batches:
    """Latencies of a CPU, from batch 1."""
    return affine(one_ms * CPU_FIXED_PART, one_ms * (1.0 - CPU_FIXED_PART))


def by_cores(one_ms: float) -> dict[int, Batches]:
    """Latencies by number of cores, from batch 1 on all cores."""
    return {cores: cpu_batches(one_ms * _amdahl(cores) / _amdahl(MEASURED_CORES)) for cores in CORES}


def cost(batches: Batches | dict[int, Batches], parameters_millions: float) -> Cost:
    """A cost with the memory and the load time of so many parameters; `batches` by threads, or of one."""
    needed = int(parameters_millions * 1e6 * BYTES_PER_PARAMETER)
    by_threads = {threads: value for threads, value in batches.items() if isinstance(value, dict)}
    alone = {rows: value for rows, value in batches.items() if isinstance(value, Latency)}
    return Cost(latency=by_threads or {1: alone}, load_ms=LOAD_FIXED_MS + needed / LOAD_BYTES_PER_MS, memory_bytes=needed)


def _amdahl(cores: int) -> float:
    return 1.0 - PARALLEL_PART + PARALLEL_PART / cores


def _latency(p50_ms: float) -> Latency:
    return Latency(round(p50_ms, 4), round(p50_ms * P95_FACTOR, 4))

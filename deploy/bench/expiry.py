"""Row: how late a request that expires is answered, with a worker that computes all the time and thousands of requests waiting."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from broker.log import TopicPartition
from deploy.bench.exchange import Answered, exchange
from deploy.bench.harness import BenchmarkFailed, Crew, Harness
from deploy.bench.prefilled import fill, json_body, publish_control, start_null_worker
from deploy.bench.rows import Figure, Measured, Sample, Say, Scale
from schemas.telemetry import DispatcherReport, decode_telemetry
from schemas.terminal import EXPIRED, decode_terminal_head

WAITING = 10_000
EXTRA = 1.06
"""More than that are published: some are computed, some have expired before the last has arrived."""
TIMEOUT_MS_MIN, TIMEOUT_MS_MAX = 3_000, 10_000
SPENDS_MS = 10.0
"""What the worker computes for each order, a hundred times what it says: so nearly all that was admitted expires."""
GRACE_S = 4.0
WARM_UP = 600
WARM_UP_MS_MIN, WARM_UP_MS_MAX = 1_500, 2_900
"""These expire before the others, and are not judged: the first records of a new topic take longer."""


async def lateness(harness: Harness, waiting: int) -> tuple[list[float], int]:
    """(milliseconds from each deadline to the log's time of its expired record, most requests that waited at once)."""
    async with harness.pinned() as cores, harness.crew() as crew:
        names = crew.names
        await publish_control(harness.log, names, lanes=1)
        await start_null_worker(harness, crew, spends_ms=SPENDS_MS, cores=cores.worker)
        await crew.role("dispatcher", "dispatcher", cores=cores.others)
        random = np.random.default_rng(1)
        timeouts = [
            *random.integers(WARM_UP_MS_MIN, WARM_UP_MS_MAX, WARM_UP),
            *random.integers(TIMEOUT_MS_MIN, TIMEOUT_MS_MAX, round(waiting * EXTRA)),
        ]
        async with exchange(harness.log, names) as opened:
            await fill(harness.log, names.requests, (json_body(int(timeout_ms)) for timeout_ms in timeouts))
            await opened.until_answered(len(timeouts), TIMEOUT_MS_MAX / 1000 + GRACE_S)
            crew.check()
            return _late_ms(opened.answers.values()), await _most_waiting(harness, crew)


def _late_ms(answers: Iterable[Answered]) -> list[float]:
    late_ms: list[float] = []
    for answer in answers:
        terminal = decode_terminal_head(answer.value)
        if terminal.outcome == EXPIRED and (terminal.deadline_ms or 0) - terminal.received_ms >= TIMEOUT_MS_MIN:
            late_ms.append(answer.written_ms - (terminal.deadline_ms or 0))
    if not late_ms:
        raise BenchmarkFailed("no request expired")
    return late_ms


async def _most_waiting(harness: Harness, crew: Crew) -> int:
    reader = harness.log.reader("bench-telemetry")
    await reader.start()
    try:
        telemetry = TopicPartition(crew.names.telemetry, 0)
        await reader.assign({telemetry: "earliest"})
        end = (await reader.end_offsets([telemetry]))[telemetry]
        most = 0
        while await reader.position(telemetry) < end:
            for record in (await reader.read(timeout_ms=1_000, records_max=1_000)).get(telemetry, ()):
                report = decode_telemetry(record.value or b"")
                most = max(most, report.waiting) if isinstance(report, DispatcherReport) else most
        return most
    finally:
        await reader.close()


class Expiry:
    """The row."""

    name = "expiry"
    title = f"expired record after its deadline, worker busy, {WAITING} requests waiting"
    once = False
    figures = (
        Figure(key="p99", what="lateness p99", unit="ms", limit=20.0, of_ratio=False),
        Figure(key="p50", what="lateness p50", unit="ms", of_ratio=False),
        Figure(key="waiting", what="requests waiting", unit="", of_ratio=False),
    )

    async def measure(self, harness: Harness, scale: Scale, run: int, say: Say) -> Measured:
        say(f"{WAITING} requests wait and expire")
        late_ms, most = await lateness(harness, WAITING)
        p50, p99 = (float(value) for value in np.quantile(late_ms, (0.5, 0.99)))
        details: dict[str, object] = {"expired": len(late_ms), "latest_ms": max(late_ms), "earliest_ms": min(late_ms)}
        return Measured({"p99": Sample(p99), "p50": Sample(p50), "waiting": Sample(most)}, details)

"""Unit: where the benchmark says that the time went, and why live and simulated differ."""

from __future__ import annotations

import pytest

from deploy.bench.report import differences, summarise
from deploy.bench.rows import Figure, Measured, Sample
from deploy.bench.scaling_parts import KAFKA, LOAD, OTHERS, Simulated, Used, parts_of, reasons
from schemas.profile import Latency
from schemas.terminal import TERMINAL_VERSION, PathStep, TerminalHead

PROFILES = {"small": {1: Latency(4.0, 5.0, 10), 4: Latency(8.0, 9.0, 10)}}


def answer(computed_ms: float, batch_size: int) -> TerminalHead:
    step = PathStep(
        stage="main", variant="t/small", accuracy=0.9, accelerator="cpu", device="d", queued_ms=1.0, computed_ms=computed_ms, batch_size=batch_size
    )
    return TerminalHead(id="a", outcome="completed", path=[step], received_ms=0, finished_ms=1, attempts=1, epoch=1, version=TERMINAL_VERSION)


BEFORE = Used(10.0, {"worker-1": 1.0, KAFKA: 5.0, LOAD: 2.0}, 100.0)
AFTER = Used(12.0, {"worker-1": 1.8, KAFKA: 5.2, LOAD: 2.3}, 102.0)


def test_an_answers_time_is_its_part_of_the_batch_and_is_compared_with_the_profile_of_that_batch() -> None:
    parts = parts_of([answer(8.0, 1), *[answer(24.0, 4)] * 4], PROFILES, BEFORE, AFTER, workers=1)
    assert parts is not None
    assert (parts.answers, parts.rate_rps) == (5, 2.5)
    assert parts.computed_ms == pytest.approx((8.0 + 24.0) / 5)
    assert parts.profiled_ms == pytest.approx((4.0 + 8.0) / 5)
    assert parts.stretch == pytest.approx(32 / 12)
    assert parts.busy == pytest.approx(0.032 / 2)
    assert parts.processor_ms == pytest.approx({"worker-1": 160.0, KAFKA: 40.0, LOAD: 60.0, OTHERS: 140.0})


def test_without_an_answer_nothing_is_said() -> None:
    assert parts_of([], PROFILES, BEFORE, AFTER, workers=1) is None


def test_reasons_are_made_of_what_was_measured() -> None:
    parts = parts_of([answer(8.0, 1)] * 200, PROFILES, BEFORE, AFTER, workers=1)
    assert parts is not None
    told = reasons(parts, Simulated(rate_rps=225.0, busy=0.9))
    assert told[0] == "a batch takes 2.00 x its profile"
    assert told[1] == "workers compute for 80% of the time, simulated ones for 90%"
    assert told[2] == "by the profiles an answer's variant and batch take 4.0 ms, simulated ones 4.0 ms"
    assert "worker-1 4.0" in told[3]


class Row:
    name, title, once = "r", "r", True
    figures = (Figure(key="x", what="x", unit="", of_ratio=False),)

    async def measure(self, harness: object, scale: object, run: int, say: object) -> Measured:
        raise NotImplementedError


@pytest.mark.parametrize(("ours", "told"), [(100.0, ()), (80.0, ("because",))])
def test_a_row_gives_reasons_where_it_is_off_its_prediction(ours: float, told: tuple[str, ...]) -> None:
    assert differences(summarise(Row(), [Measured({"x": Sample(ours, simulated=100.0)}, {"why": ["because"]})])) == told

"""The benchmark's judgements: medians, ratios, spreads and musts; and what counts as goodput."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

import pytest

from deploy.bench import computing, mix
from deploy.bench.exchange import Answered
from deploy.bench.report import COLUMNS, Line, cells, summarise
from deploy.bench.rows import Figure, Measured, Sample
from schemas.terminal import COMPLETED, JSON_TYPE, REJECTED, TERMINAL_VERSION, ErrorDetail, PathStep, Terminal, encode_terminal

START_S = 1_700_000_000.0


@dataclass
class FakeRow:
    name: str = "row"
    title: str = "a row"
    once: bool = False
    figures: tuple[Figure, ...] = field(default=())


def line(figure: Figure, *samples: Sample) -> Line:
    return summarise(FakeRow(figures=(figure,)), [Measured({figure.key: sample}) for sample in samples]).lines[0]


def figure(**fields: object) -> Figure:
    return Figure(**({"key": "f", "what": "figure", "unit": "us"} | fields))  # type: ignore[arg-type]


def test_the_median_of_the_ratios_decides_and_their_spread_is_shown() -> None:
    found = line(figure(limit=2.0), Sample(30.0, 20.0), Sample(50.0, 20.0), Sample(36.0, 20.0))
    assert (found.ratio, found.spread, found.met) == (1.8, (1.5, 2.5), True)
    assert (found.ours, found.baseline, found.must) == (36.0, 20.0, "<= 2 x")


def test_a_ratio_over_its_limit_is_not_met() -> None:
    assert line(figure(limit=2.0), Sample(41.0, 20.0)).met is False


@pytest.mark.parametrize(("ours", "met"), [(0.89, False), (0.91, True)])
def test_some_musts_are_least_values(ours: float, met: bool) -> None:
    found = line(figure(limit=0.9, at_least=True), Sample(ours, 1.0))
    assert (found.met, found.must) == (met, ">= 0.9 x")


def test_a_figure_without_a_baseline_is_judged_by_itself() -> None:
    found = line(figure(limit=20.0, of_ratio=False, unit="ms"), Sample(19.0), Sample(30.0), Sample(12.0))
    assert (found.ours, found.ratio, found.spread, found.met, found.must) == (19.0, None, (12.0, 30.0), True, "<= 20 ms")


def test_a_must_on_a_ratio_is_not_met_where_the_baseline_did_nothing() -> None:
    assert line(figure(limit=2.0, at_least=True), Sample(0.8, 0.0)).met is False


def test_what_is_not_asked_is_not_judged() -> None:
    found = line(figure(of_ratio=False), Sample(1.0))
    assert (found.met, cells(found)[-1]) == (None, "")


def test_a_table_line_has_a_cell_for_each_column() -> None:
    assert cells(line(figure(limit=2.0), Sample(30.0, 20.0))) == ("row", "figure", "20 us", "30 us", "1.50", "1.5..1.5", "<= 2 x", "yes")
    assert len(COLUMNS) == 8


def test_a_schedule_has_the_same_mix_in_every_stretch() -> None:
    planned = mix.schedule(200.0, 2.0, seed=3)
    floors = [planned.asks[request.message[0] or b""].floor for request in planned.requests]
    assert len(floors) == 400
    for at in range(0, len(floors), mix.BLOCK):
        assert sorted(floors[at : at + mix.BLOCK]) == sorted(floors[: mix.BLOCK])


def test_the_cheapest_variants_meet_their_floors() -> None:
    accuracy = {variant.name: variant.accuracy for variant in mix.fashion_task().variants}
    for floor, name in mix.cheapest_variants().items():
        assert accuracy[name] >= floor


def answer(key: bytes, outcome: str, *, after_ms: int, deadline_ms: int, accuracy: float | None = 0.95) -> Answered:
    now_ms = int(START_S * 1000) + after_ms
    step = PathStep(stage="main", variant="t/v", accuracy=0.95, accelerator="cpu", device="d", queued_ms=0.0, computed_ms=1.0, batch_size=8)
    terminal = Terminal(
        id=key.decode(),
        outcome=outcome,
        error=None if outcome == COMPLETED else ErrorDetail("overloaded", "no room"),
        path=[step] if outcome == COMPLETED else [],
        accuracy=accuracy,
        received_ms=int(START_S * 1000),
        finished_ms=now_ms,
        deadline_ms=int(START_S * 1000) + deadline_ms,
        attempts=1,
        epoch=1,
        version=TERMINAL_VERSION,
    )
    return Answered(now_ms / 1000, now_ms, encode_terminal(terminal, JSON_TYPE))


def test_goodput_counts_what_came_in_time_at_the_floor_while_the_offer_was_in_its_stride() -> None:
    keys = [uuid.uuid4().hex.encode() for _ in range(6)]
    schedule = mix.Schedule([], {key: mix.Ask(0.9, 500) for key in keys}, seconds=computing.LEAD_S + 10.0)
    lead_ms = int(computing.LEAD_S * 1000)
    answers = {
        keys[0]: answer(keys[0], COMPLETED, after_ms=lead_ms + 100, deadline_ms=lead_ms + 500),
        keys[1]: answer(keys[1], COMPLETED, after_ms=100, deadline_ms=500),
        keys[2]: answer(keys[2], COMPLETED, after_ms=lead_ms + 600, deadline_ms=lead_ms + 500),
        keys[3]: answer(keys[3], COMPLETED, after_ms=lead_ms + 100, deadline_ms=lead_ms + 500, accuracy=0.8),
        keys[4]: answer(keys[4], REJECTED, after_ms=lead_ms, deadline_ms=lead_ms + 500),
    }
    played = computing.judge(schedule, answers, START_S)
    assert played.goodput_rps == pytest.approx(0.1), "one in its stride; one before it; late, below its floor, refused and unanswered do not count"
    assert (played.completed, played.attainment) == (2, pytest.approx(2 / 6))
    assert played.outcomes == {COMPLETED: 2, "late": 1, "below its floor": 1, "rejected/overloaded": 1, "unanswered": 1}
    assert played.served_by_floor == {"0.9": pytest.approx(2 / 6)}

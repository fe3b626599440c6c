"""Replay of traces in the generators: scaled in rate and time, and what stamps are refused."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.random import default_rng

from scaler.simulator.scenario import Arrivals
from scaler.simulator.workloads.arrivals import arrival_chunks, arrivals
from scaler.simulator.workloads.errors import InvalidTrace
from scaler.simulator.workloads.replay import rate_of

RECORDED = arrivals(Arrivals(kind="mmpp", rates_rps=(20.0, 200.0), hold_s=5.0), 400.0, default_rng(1)) + 1_000_000.0


def replayed(rate_rps: float = 0.0, speed: float = 1.0, seed: int = 1, duration_s: float = 400.0) -> np.ndarray:
    return arrivals(Arrivals(kind="trace", rate_rps=rate_rps, speed=speed), duration_s, default_rng(seed), RECORDED)


def test_as_recorded_but_from_its_first_stamp_on() -> None:
    assert np.array_equal(replayed(), RECORDED - RECORDED[0])


def test_speed_squeezes_time() -> None:
    assert np.allclose(replayed(speed=4.0), (RECORDED - RECORDED[0]) / 4.0)
    assert replayed(speed=0.5)[-1] < 400_000.0
    assert len(replayed(speed=0.5)) < len(RECORDED)


def test_thinning_keeps_recorded_moments() -> None:
    thin = replayed(rate_of(RECORDED) / 4.0)
    assert len(thin) == pytest.approx(len(RECORDED) / 4.0, rel=0.05)
    assert np.isin(thin, RECORDED - RECORDED[0]).all()


@pytest.mark.parametrize("factor", [1.5, 3.0, 7.3])
def test_superposition_adds_between_the_recorded_moments(factor: float) -> None:
    thick = replayed(rate_of(RECORDED) * factor)
    assert len(thick) == pytest.approx(len(RECORDED) * factor, rel=0.03)
    assert np.isin(RECORDED - RECORDED[0], thick).all()
    assert (np.diff(thick) >= 0.0).all()
    assert thick[-1] <= RECORDED[-1] - RECORDED[0]


def test_bursts_stay_bursts_when_the_rate_is_scaled() -> None:
    recorded, thick = (np.bincount((stamps / 1000.0).astype(int), minlength=400) for stamps in (replayed(), replayed(rate_of(RECORDED) * 3.0)))
    assert np.corrcoef(recorded, thick)[0, 1] > 0.98


@pytest.mark.parametrize("factor", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("chunk", [1, 50, 1_000_000])
def test_the_size_of_the_pieces_changes_nothing_about_a_trace(factor: float, chunk: int) -> None:
    spec = Arrivals(kind="trace", rate_rps=rate_of(RECORDED) * factor)
    pieces = list(arrival_chunks(spec, 40.0, default_rng(3), RECORDED, chunk=chunk))
    whole = arrivals(spec, 40.0, default_rng(3), RECORDED)
    assert np.array_equal(np.concatenate(pieces), whole)
    assert len(whole) > 300


def test_a_seed_repeats_and_another_differs() -> None:
    assert np.array_equal(replayed(50.0), replayed(50.0))
    assert not np.array_equal(replayed(50.0), replayed(50.0, seed=2))


def test_duplicates_stay_several() -> None:
    stamps = np.array([5.0, 5.0, 5.0, 1_005.0])
    spec = Arrivals(kind="trace", rate_rps=0.0)
    assert arrivals(spec, 10.0, default_rng(1), stamps).tolist() == [0.0, 0.0, 0.0, 1_000.0]
    assert (arrivals(Arrivals(kind="trace", rate_rps=6.0), 10.0, default_rng(1), stamps) == 0.0).sum() >= 3


def test_an_arrival_at_the_end_comes_too_late() -> None:
    spec = Arrivals(kind="trace", rate_rps=0.0)
    assert arrivals(spec, 1.0, default_rng(1), np.array([0.0, 999.0, 1_000.0, 1_000.0])).tolist() == [0.0, 999.0]


def test_one_stamp_is_a_trace_without_a_rate() -> None:
    one = np.array([123.0])
    assert arrivals(Arrivals(kind="trace", rate_rps=0.0), 1.0, default_rng(1), one).tolist() == [0.0]
    with pytest.raises(InvalidTrace, match="rate_rps 0"):
        arrivals(Arrivals(kind="trace", rate_rps=10.0), 1.0, default_rng(1), one)


def test_a_speed_that_no_clock_resolves_is_refused() -> None:
    with pytest.raises(InvalidTrace, match="at speed"):
        replayed(100.0, speed=1e9)


@pytest.mark.parametrize(
    ("stamps", "said"),
    [
        (None, "was not read"),
        (np.array([]), "is empty"),
        (np.array([1.0, np.nan, 2.0]), "stamp 1 of the trace is no number"),
        (np.array([1.0, np.inf]), "no number"),
        (np.array([1.0, 3.0, 2.0]), "back in time at stamp 2: sort it first"),
    ],
)
def test_stamps_that_cannot_be_replayed_are_refused_at_once(stamps: np.ndarray | None, said: str) -> None:
    with pytest.raises(InvalidTrace, match=said):
        arrival_chunks(Arrivals(kind="trace"), 1.0, default_rng(1), stamps)

"""The generators of arrivals: their rates and shapes under fixed seeds, their pieces, and what they refuse."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from numpy.random import default_rng

from scaler.simulator.scenario import Arrivals
from scaler.simulator.workloads.arrivals import ARRIVALS_MAX, KINDS, arrival_chunks, arrivals
from scaler.simulator.workloads.errors import InvalidArrivals, InvalidTrace, InvalidWorkload
from schemas.errors import HeadraceError

EXAMPLES = {
    "constant": Arrivals(kind="constant", rate_rps=100.0),
    "poisson": Arrivals(kind="poisson", rate_rps=100.0),
    "gamma": Arrivals(kind="gamma", rate_rps=100.0, cv=3.0),
    "mmpp": Arrivals(kind="mmpp", rates_rps=(20.0, 300.0, 0.0), hold_s=2.0),
    "diurnal": Arrivals(kind="diurnal", rate_rps=100.0, period_s=60.0, amplitude=0.8),
    "flash": Arrivals(kind="flash", rate_rps=50.0, peak=6.0, at_s=100.0, lasts_s=30.0),
    "steps": Arrivals(kind="steps", rates_rps=(20.0, 0.0, 200.0), hold_s=50.0),
}
BAD_NUMBERS = (-1.0, float("nan"), float("inf"))


def counted(stamps: np.ndarray, begin_s: float, end_s: float) -> int:
    return int(((stamps >= begin_s * 1000.0) & (stamps < end_s * 1000.0)).sum())


def variation(stamps: np.ndarray) -> float:
    gaps = np.diff(stamps)
    return float(gaps.std() / gaps.mean())


def test_every_kind_has_an_example() -> None:
    assert set(EXAMPLES) | {"trace"} == set(KINDS)


@pytest.mark.parametrize("kind", EXAMPLES)
def test_arrivals_are_sorted_inside_the_run_and_come_out_again_under_the_seed(kind: str) -> None:
    once = arrivals(EXAMPLES[kind], 200.0, default_rng(7))
    assert once.dtype == np.float64
    assert len(once) > 1_000
    assert once[0] >= 0.0
    assert once[-1] < 200_000.0
    assert (np.diff(once) >= 0.0).all()
    assert np.array_equal(once, arrivals(EXAMPLES[kind], 200.0, default_rng(7)))
    if kind not in ("constant",):
        assert not np.array_equal(once[:50], arrivals(EXAMPLES[kind], 200.0, default_rng(8))[:50])


@pytest.mark.parametrize("kind", EXAMPLES)
@pytest.mark.parametrize("chunk", [1, 77, 100_000])
def test_the_size_of_the_pieces_changes_nothing(kind: str, chunk: int) -> None:
    pieces = list(arrival_chunks(EXAMPLES[kind], 60.0, default_rng(3), chunk=chunk))
    assert all(0 < len(piece) <= chunk for piece in pieces)
    assert np.array_equal(np.concatenate(pieces), arrivals(EXAMPLES[kind], 60.0, default_rng(3)))


@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_longer_run_begins_like_a_shorter_one(kind: str) -> None:
    short = arrivals(EXAMPLES[kind], 60.0, default_rng(5))
    if kind == "mmpp":
        assert len(short) > 0  # its states are drawn first, for the whole run
    else:
        assert np.array_equal(short, arrivals(EXAMPLES[kind], 90.0, default_rng(5))[: len(short)])


def test_constant_arrivals_are_exactly_as_many_as_asked_for() -> None:
    stamps = arrivals(Arrivals(kind="constant", rate_rps=8.0), 10.0, default_rng(1))
    assert len(stamps) == 80
    assert stamps[0] == 62.5
    assert np.allclose(np.diff(stamps), 125.0)


def test_poisson_has_its_rate_and_no_memory() -> None:
    stamps = arrivals(EXAMPLES["poisson"], 2_000.0, default_rng(11))
    assert len(stamps) == pytest.approx(200_000, rel=0.01)
    assert variation(stamps) == pytest.approx(1.0, abs=0.01)
    per_second = np.bincount((stamps / 1000.0).astype(int), minlength=2_000)
    assert per_second.var() / per_second.mean() == pytest.approx(1.0, abs=0.12)


@pytest.mark.parametrize("cv", [0.3, 1.0, 2.0, 4.0])
def test_gamma_has_its_rate_and_its_variation(cv: float) -> None:
    stamps = arrivals(Arrivals(kind="gamma", rate_rps=100.0, cv=cv), 4_000.0, default_rng(13))
    assert len(stamps) == pytest.approx(400_000, rel=0.01 * max(cv, 1.0))
    assert variation(stamps) == pytest.approx(cv, rel=0.04)


def test_gamma_without_variation_is_constant() -> None:
    stamps = arrivals(Arrivals(kind="gamma", rate_rps=10.0, cv=0.0), 10.0, default_rng(1))
    assert np.array_equal(stamps, arrivals(Arrivals(kind="constant", rate_rps=10.0), 10.0, default_rng(1)))


def test_gamma_has_its_full_rate_from_the_first_moment() -> None:
    spec = Arrivals(kind="gamma", rate_rps=10.0, cv=4.0)
    early = [len(arrivals(spec, 0.2, default_rng(seed))) for seed in range(4_000)]
    assert np.mean(early) == pytest.approx(2.0, abs=0.3)


def test_mmpp_stays_in_each_state_for_the_same_part_of_the_time() -> None:
    spec = Arrivals(kind="mmpp", rates_rps=(5.0, 500.0), hold_s=2.0)
    stamps = arrivals(spec, 10_000.0, default_rng(17))
    assert len(stamps) / 10_000.0 == pytest.approx(252.5, rel=0.05)
    per_second = np.bincount((stamps / 1000.0).astype(int), minlength=10_000)
    assert (per_second > 252.5).mean() == pytest.approx(0.5, abs=0.03)
    alike = [np.corrcoef(per_second[:-lag], per_second[lag:])[0, 1] for lag in (1, 2)]
    assert alike[1] / alike[0] == pytest.approx(np.exp(-1.0), abs=0.06)  # two states left every 2 s: exp(-2 lag / 2)


def test_mmpp_with_one_state_is_poisson() -> None:
    stamps = arrivals(Arrivals(kind="mmpp", rates_rps=(50.0,), hold_s=1.0), 1_000.0, default_rng(19))
    assert len(stamps) == pytest.approx(50_000, rel=0.02)
    assert variation(stamps) == pytest.approx(1.0, abs=0.02)


def test_diurnal_swings_around_its_mean_and_begins_at_its_lowest() -> None:
    stamps = arrivals(EXAMPLES["diurnal"], 1_200.0, default_rng(23))
    assert len(stamps) == pytest.approx(120_000, rel=0.01)
    phase = np.bincount((stamps / 1000.0 % 60.0).astype(int), minlength=60) / 20.0
    assert phase[[59, 0]].mean() == pytest.approx(20.0, abs=3.0)
    assert phase[[29, 30]].mean() == pytest.approx(180.0, abs=6.0)


def test_flash_crowd_comes_and_goes() -> None:
    stamps = arrivals(EXAMPLES["flash"], 230.0, default_rng(29))
    assert counted(stamps, 0, 100) == pytest.approx(5_000, rel=0.05)
    assert counted(stamps, 100, 130) == pytest.approx(9_000, rel=0.05)
    assert counted(stamps, 130, 230) == pytest.approx(5_000, rel=0.05)


def test_steps_hold_their_rates_and_the_last_one_stays() -> None:
    stamps = arrivals(EXAMPLES["steps"], 300.0, default_rng(31))
    assert counted(stamps, 0, 50) == pytest.approx(1_000, rel=0.1)
    assert counted(stamps, 50, 100) == 0
    assert counted(stamps, 100, 300) == pytest.approx(40_000, rel=0.02)


@pytest.mark.parametrize("kind", ["constant", "poisson", "gamma", "diurnal", "flash"])
def test_a_rate_of_zero_is_a_load_that_never_comes(kind: str) -> None:
    spec = Arrivals(kind=kind, rate_rps=0.0)
    assert len(arrivals(spec, 60.0, default_rng(1))) == 0
    assert list(arrival_chunks(spec, 60.0, default_rng(1))) == []


def test_states_of_rate_zero_are_silent() -> None:
    for kind in ("mmpp", "steps"):
        assert len(arrivals(Arrivals(kind=kind, rates_rps=(0.0, 0.0)), 60.0, default_rng(1))) == 0


@pytest.mark.parametrize("bad", BAD_NUMBERS)
@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("constant", "rate_rps"),
        ("poisson", "rate_rps"),
        ("gamma", "cv"),
        ("mmpp", "hold_s"),
        ("steps", "hold_s"),
        ("diurnal", "period_s"),
        ("diurnal", "amplitude"),
        ("flash", "peak"),
        ("flash", "at_s"),
        ("flash", "lasts_s"),
        ("trace", "speed"),
    ],
)
def test_what_is_no_rate_time_or_shape_is_refused_by_name(kind: str, field: str, bad: float) -> None:
    spec = msgspec.structs.replace(Arrivals(kind=kind, rates_rps=(1.0,)), **{field: bad})
    with pytest.raises(InvalidArrivals, match=field):
        arrival_chunks(spec, 10.0, default_rng(1), np.array([0.0, 1.0]))


@pytest.mark.parametrize("bad", BAD_NUMBERS)
def test_a_bad_state_and_a_bad_duration_are_refused(bad: float) -> None:
    with pytest.raises(InvalidArrivals, match="rates_rps"):
        arrivals(Arrivals(kind="mmpp", rates_rps=(1.0, bad)), 10.0, default_rng(1))
    with pytest.raises(InvalidArrivals, match="duration_s"):
        arrivals(Arrivals(), bad, default_rng(1))


@pytest.mark.parametrize(
    ("spec", "duration_s"),
    [(Arrivals(), 0.0), (Arrivals(kind="steps", rates_rps=(1.0,), hold_s=0.0), 1.0), (Arrivals(kind="trace", speed=0.0), 1.0)],
)
def test_a_duration_a_hold_and_a_speed_of_zero_are_refused(spec: Arrivals, duration_s: float) -> None:
    with pytest.raises(InvalidArrivals, match="above zero"):
        arrivals(spec, duration_s, default_rng(1), np.array([0.0]))


def test_an_unknown_kind_is_told_its_near_miss() -> None:
    with pytest.raises(InvalidArrivals, match=r"'poison': did you mean 'poisson'\?"):
        arrivals(Arrivals(kind="poison"), 1.0, default_rng(1))
    with pytest.raises(InvalidArrivals, match=r"there is constant, diurnal"):
        arrivals(Arrivals(kind="???"), 1.0, default_rng(1))


def test_states_without_rates_are_refused() -> None:
    with pytest.raises(InvalidArrivals, match="rates_rps: empty; mmpp"):
        arrivals(Arrivals(kind="mmpp"), 1.0, default_rng(1))


def test_nothing_is_made_without_bound() -> None:
    with pytest.raises(InvalidArrivals, match=str(ARRIVALS_MAX)):
        arrivals(Arrivals(rate_rps=1e6), 1_000.0, default_rng(1))
    assert len(next(arrival_chunks(Arrivals(rate_rps=1e6), 1_000.0, default_rng(1)))) < 100_000
    with pytest.raises(InvalidArrivals, match="at most"):
        arrivals(Arrivals(rate_rps=1e9), 1.0, default_rng(1))
    with pytest.raises(InvalidArrivals, match="hold it longer"):
        arrivals(Arrivals(kind="mmpp", rates_rps=(1.0, 2.0), hold_s=1e-6), 1_000.0, default_rng(1))
    with pytest.raises(InvalidArrivals, match="hold it longer"):
        arrivals(Arrivals(kind="diurnal", period_s=1e-3), 10_000.0, default_rng(1))
    with pytest.raises(InvalidArrivals, match="chunk"):
        arrival_chunks(Arrivals(), 1.0, default_rng(1), chunk=0)


def test_the_errors_are_one_tree() -> None:
    assert issubclass(InvalidArrivals, InvalidWorkload)
    assert issubclass(InvalidTrace, InvalidWorkload)
    assert issubclass(InvalidWorkload, HeadraceError)

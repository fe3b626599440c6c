"""The mix of floors, time-outs and tenants: shares by weight, the same in pieces, and what it refuses."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from numpy.random import default_rng

from scaler.simulator.scenario import Choice, Load
from scaler.simulator.workloads.errors import InvalidMix
from scaler.simulator.workloads.mix import mix

LOAD = Load(
    endpoint="fashion",
    floors=(Choice(0.8, 1.0), Choice(0.9, 2.0), Choice(0.95, 0.0), Choice(0.93, 1.0)),
    timeouts_ms=(Choice(200.0, 3.0), Choice(1_000.0, 1.0)),
    tenants={"red": 1.0, "blue": 4.0},
)


def share(values: np.ndarray, value: float) -> float:
    return float((values == value).mean())


def test_shares_follow_the_weights_and_a_weight_of_zero_never_comes() -> None:
    drawn = mix(LOAD, 100_000, default_rng(1))
    assert share(drawn.floors, 0.8) == pytest.approx(0.25, abs=0.01)
    assert share(drawn.floors, 0.9) == pytest.approx(0.5, abs=0.01)
    assert share(drawn.floors, 0.93) == pytest.approx(0.25, abs=0.01)
    assert share(drawn.floors, 0.95) == 0.0
    assert share(drawn.timeouts_ms, 200.0) == pytest.approx(0.75, abs=0.01)
    assert drawn.names == ("red", "blue")
    assert share(drawn.tenants, 1) == pytest.approx(0.8, abs=0.01)


def test_the_three_are_drawn_apart() -> None:
    drawn = mix(LOAD, 100_000, default_rng(2))
    urgent = drawn.timeouts_ms == 200.0
    assert share(drawn.floors[urgent], 0.9) == pytest.approx(share(drawn.floors[~urgent], 0.9), abs=0.02)
    assert share(drawn.tenants[urgent], 1) == pytest.approx(share(drawn.tenants[~urgent], 1), abs=0.02)


def test_pieces_are_the_same_as_the_whole() -> None:
    rng = default_rng(3)
    pieces = [mix(LOAD, count, rng) for count in (1, 99, 0, 400)]
    whole = mix(LOAD, 500, default_rng(3))
    assert np.array_equal(np.concatenate([piece.floors for piece in pieces]), whole.floors)
    assert np.array_equal(np.concatenate([piece.timeouts_ms for piece in pieces]), whole.timeouts_ms)
    assert np.array_equal(np.concatenate([piece.tenants for piece in pieces]), whole.tenants)


def test_a_load_that_says_nothing_has_one_of_each() -> None:
    drawn = mix(Load(endpoint="fashion"), 10, default_rng(1))
    assert set(drawn.floors) == {0.0}
    assert set(drawn.timeouts_ms) == {1_000.0}
    assert drawn.names == ("",)
    assert set(drawn.tenants) == {0}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"floors": (Choice(1.2),)}, "floor 1.2; an accuracy is in"),
        ({"floors": (Choice(float("nan")),)}, "floor nan"),
        ({"floors": ()}, "floors: empty"),
        ({"floors": (Choice(0.5, 0.0),)}, "no weight is above zero"),
        ({"floors": (Choice(0.5, -1.0), Choice(0.6, 2.0))}, "negative or no number: -1, 2"),
        ({"timeouts_ms": (Choice(0.0),)}, "time-out of 0 ms"),
        ({"timeouts_ms": (Choice(float("inf")),)}, "time-out of inf ms"),
        ({"timeouts_ms": ()}, "timeouts_ms: empty"),
        ({"tenants": {"red": float("nan")}}, "tenants: a weight"),
        ({"tenants": {"red": 0.0}}, "tenants: no weight"),
    ],
)
def test_what_means_nothing_is_refused(changed: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidMix, match=f"load of 'fashion': .*{said}"):
        mix(msgspec.structs.replace(Load(endpoint="fashion"), **changed), 10, default_rng(1))

"""The back-off of restarts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.local.restart import Backoff, RestartPolicy


def test_delays_double_from_a_tenth_of_a_second_to_ten_seconds():
    policy = RestartPolicy()
    assert [policy.died(50.0) for _ in range(9)] == [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]


def test_a_life_of_thirty_seconds_starts_the_back_off_again():
    policy = RestartPolicy()
    for _ in range(5):
        policy.died(0.0)
    assert policy.died(30_000.0) == 100
    assert policy.died(29_999.0) == 200


def test_deaths_in_row_and_restarts_are_counted_apart():
    policy = RestartPolicy()
    for lived_ms in (10.0, 10.0, 40_000.0, 10.0):
        policy.died(lived_ms)
    assert (policy.deaths_in_row, policy.restarts) == (2, 4)


@pytest.mark.parametrize("deaths", [1, 10_000])
def test_however_many_deaths_the_delay_stays_a_number_within_its_bounds(deaths: int):
    policy = RestartPolicy()
    for _ in range(deaths):
        delay_ms = policy.died(0.0)
    assert 100 <= delay_ms <= 10_000


@given(st.lists(st.floats(0, 60_000), min_size=1, max_size=50))
def test_delays_never_shrink_within_a_row_of_short_lives(lives_ms: list[float]):
    policy, last_ms = RestartPolicy(Backoff(first_ms=3.0, factor=1.5, max_ms=77.0, forgiven_after_ms=30_000.0)), 0.0
    for lived_ms in lives_ms:
        delay_ms = policy.died(lived_ms)
        assert delay_ms == 3.0 if lived_ms >= 30_000 else delay_ms >= last_ms
        assert delay_ms <= 77.0
        last_ms = delay_ms

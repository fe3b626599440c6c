"""Which requests are sampled: by id alone, in strata, and without a lean to other choices by hash."""

from __future__ import annotations

import pytest

from broker.policy.tap_sampling import ceiling, fraction, sampled
from schemas.catalog import EndpointSpec
from schemas.tap import TapSample, TapSpec

IDS = [f"request-{number}".encode() for number in range(4_000)]


def test_the_number_of_an_id_is_what_it_was() -> None:
    # A change would make running taps disagree with those of the version before.
    assert [round(fraction(each), 12) for each in (b"r1", b"request-7", "größe".encode())] == [0.759851203104, 0.424750050288, 0.402094698333]


@pytest.mark.parametrize("rate", [0.05, 0.25, 0.9])
def test_so_many_are_sampled_and_a_higher_rate_takes_the_same_and_more(rate: float) -> None:
    taken = {each for each in IDS if sampled(TapSpec(sample=TapSample(rate=rate)), fraction(each), "completed", "") is not None}
    assert abs(len(taken) / len(IDS) - rate) < 4 * (rate * (1 - rate) / len(IDS)) ** 0.5
    more = {each for each in IDS if sampled(TapSpec(sample=TapSample(rate=rate + 0.05)), fraction(each), "completed", "") is not None}
    assert taken < more


def test_nothing_and_everything() -> None:
    assert all(sampled(TapSpec(sample=TapSample(rate=0.0)), fraction(each), "completed", "") is None for each in IDS)
    assert all(sampled(TapSpec(), fraction(each), "completed", "") == 1.0 for each in IDS)


def test_strata_have_their_own_rates_and_the_higher_one_counts() -> None:
    sample = TapSample(rate=0.1, outcomes={"expired": 0.5, "completed": 0.02}, variants={"t/rare": 0.3})
    rates = [
        sample.rate_of(*each) for each in (("failed", ""), ("expired", ""), ("completed", "t/v"), ("completed", "t/rare"), ("expired", "t/rare"))
    ]
    assert rates == [0.1, 0.5, 0.02, 0.3, 0.5]
    assert sample.rate_max == 0.5


def test_the_ceiling_is_the_highest_rate_of_any_endpoint() -> None:
    def tapped(rate: float) -> EndpointSpec:
        return EndpointSpec(name="e", task="t", taps=TapSpec(sample=TapSample(rate=rate, outcomes={"failed": 2 * rate})))

    assert ceiling({"a": tapped(0.1), "b": tapped(0.2), "c": EndpointSpec(name="c", task="t")}) == 0.4
    assert ceiling({"c": EndpointSpec(name="c", task="t")}) == 0.0

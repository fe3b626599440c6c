"""A run adds up, repeats itself, and agrees with what can be reckoned by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from simulator_stage import catalog, scenario, variants

from scaler.simulator.result import EndpointResult
from scaler.simulator.run import simulate
from scaler.simulator.scenario import Arrivals, Choice, Hop, Load, Scenario, WorkerGroup


def ended(result: EndpointResult) -> int:
    return result.completed + result.expired + result.rejected + result.failed


def test_light_load_is_answered_whole_and_as_well_as_can_be() -> None:
    total = simulate(scenario(rate_rps=20.0), 1).total
    assert 60 < total.offered < 140
    assert total.completed == total.offered
    assert total.accuracy_served == pytest.approx(0.95, abs=0.01)
    assert total.latency_p50_ms is not None
    assert 20.0 < total.latency_p50_ms < 40.0


def test_under_load_accuracy_gives_way_first() -> None:
    light, heavy = (simulate(scenario(rate_rps=rate), 1).total for rate in (20.0, 700.0))
    assert heavy.attainment > 0.95
    assert light.accuracy_served is not None
    assert heavy.accuracy_served is not None
    assert heavy.accuracy_served < light.accuracy_served - 0.02


def test_offered_is_the_sum_of_the_outcomes_even_far_beyond_the_capacity() -> None:
    result = simulate(scenario(rate_rps=6_000.0, duration_s=3.0), 3)
    assert result.total.offered == ended(result.total)
    assert result.total.rejected > 0
    assert 0.0 < result.total.attainment < 0.9
    for window in result.total.windows:
        assert window.offered == window.completed + window.expired + window.rejected + window.failed
    assert result.utilisation["cpu"] > 0.9


def test_warm_up_is_left_out() -> None:
    whole = simulate(scenario(rate_rps=100.0), 4).total
    warm = simulate(msgspec.structs.replace(scenario(rate_rps=100.0), warm_up_s=2.0), 4).total
    assert warm.offered == sum(window.offered for window in whole.windows if window.at_s >= 2.0)
    assert [window.at_s for window in warm.windows] == [2.0, 3.0, 4.0]


def test_the_same_seed_gives_the_same_result_and_another_seed_another() -> None:
    first, again, other = (simulate(scenario(), seed) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_more_workers_change_no_arrival() -> None:
    few, many = (simulate(scenario(workers=count), 7).total for count in (1, 4))
    assert [window.offered for window in few.windows] == [window.offered for window in many.windows]


def test_the_result_does_not_depend_on_hash_randomisation() -> None:
    program = (
        "import hashlib, msgspec\nfrom simulator_stage import scenario\nfrom scaler.simulator.run import simulate\n"
        "print(hashlib.sha256(msgspec.json.encode(simulate(scenario(rate_rps=900.0, duration_s=1.0), 5))).hexdigest())"
    )
    here = Path(__file__).parent
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(here)},
            cwd=here.parents[1],
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "77")
    }
    assert len(printed) == 1


def test_windows_are_called_one_by_one() -> None:
    seen: list[float] = []
    simulate(scenario(rate_rps=10.0, duration_s=2.5), 1, on_window=seen.append)
    assert seen == [1.0, 2.0, 2.5]


def deterministic(rate_rps: float, service_ms: float) -> Scenario:
    """One worker, one variant, batches of one, fixed computing times, no way through the log."""
    ladder = (("only", 0.9, service_ms),)
    return Scenario(
        name="queue",
        catalog=catalog(ladder, batch_size_max=1),
        variants=variants(ladder),
        workers=(WorkerGroup(type="cpu"),),
        loads=(Load(endpoint="shop", arrivals=Arrivals(rate_rps=rate_rps), timeouts_ms=(Choice(60_000.0),)),),
        duration_s=120.0,
        warm_up_s=5.0,
        hop=Hop(p50_ms=0.0, p99_ms=0.0),
        noise=0.0,
    )


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_one_worker_without_batching_waits_like_an_m_d_1_queue(load: float) -> None:
    """Utilisation is exactly rate x service; the mean wait is service x load / (2 (1 - load)) (Pollaczek-Khinchine)."""
    service_ms = 10.0
    result = simulate(deterministic(load / service_ms * 1e3, service_ms), 11)
    assert result.total.completed == result.total.offered
    assert result.utilisation["cpu"] == pytest.approx(load, abs=0.03)
    assert result.total.latency_mean_ms is not None
    wait_ms = result.total.latency_mean_ms - service_ms
    expected_ms = service_ms * load / (2.0 * (1.0 - load))
    # Orders travel in turns of a few milliseconds: that is the way through the dispatcher, and no wait in a queue.
    assert expected_ms * 0.8 < wait_ms < expected_ms * 1.25 + 5.0

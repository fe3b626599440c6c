"""Early binding, no admission and other batchings: the systems that the papers compare with, in the same cluster."""

from __future__ import annotations

import msgspec
import pytest
from simulator_stage import scenario

from scaler.simulator.errors import InvalidScenario
from scaler.simulator.result import EndpointResult
from scaler.simulator.run import simulate
from scaler.simulator.scenario import Arrivals, Control


def run(rate_rps: float, *, floors: tuple[float, ...] = (0.5, 0.9), **control: object) -> EndpointResult:
    steered = msgspec.structs.replace(
        scenario(rate_rps=rate_rps, duration_s=3.0, floors=floors), control=msgspec.structs.replace(Control(), **control)
    )
    return simulate(steered, 2).total


@pytest.mark.parametrize("batching", ["headrace", "proteus", "nexus", "aimd"])
@pytest.mark.parametrize("binding", ["late", "early"])
def test_light_load_is_answered_in_time_by_everybody(binding: str, batching: str) -> None:
    total = run(40.0, binding=binding, batching=batching, admission=binding == "late")
    # Proteus puts one variant on a worker: here three wait on each, each until its last moment, and the device is then busy with another.
    assert total.attainment > (0.8 if batching == "proteus" else 0.97)


def test_proteus_waits_where_ours_does_not() -> None:
    ours, theirs = (run(40.0, batching=name) for name in ("headrace", "proteus"))
    assert ours.latency_p50_ms is not None
    assert theirs.latency_p50_ms is not None
    assert theirs.latency_p50_ms > 3.0 * ours.latency_p50_ms


def test_without_admission_nothing_is_refused_and_what_is_late_has_expired() -> None:
    total = run(4_000.0, admission=False)
    assert total.rejected == 0
    assert total.expired > 0
    assert total.offered == total.completed + total.expired + total.failed


def test_early_binding_misses_more_than_late_binding_under_load() -> None:
    late = run(2_000.0, floors=(0.9,))
    early = run(2_000.0, floors=(0.9,), binding="early", admission=False)
    assert late.attainment > early.attainment + 0.1


def test_a_flash_crowd_does_not_stay_in_the_lanes() -> None:
    crowd = scenario(duration_s=8.0)
    arrivals = Arrivals(kind="flash", rate_rps=100.0, peak=20.0, at_s=1.0, lasts_s=1.0)
    load = msgspec.structs.replace(crowd.loads[0], arrivals=arrivals)
    total = simulate(msgspec.structs.replace(crowd, loads=(load,)), 3).total
    assert sum(window.offered for window in total.windows[1:3]) > 1_500
    assert all(window.attainment > 0.9 for window in total.windows[4:])


def test_a_binding_that_there_is_not_is_said() -> None:
    with pytest.raises(InvalidScenario, match="binding is 'early' or 'late'"):
        run(10.0, binding="lazy")

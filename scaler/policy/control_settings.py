"""The control policy's constants in one place, with why each has its value."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from scaler.policy.forecasting.forecaster import Forecaster
from schemas.telemetry import WorkerReport

MakeForecaster = Callable[[], Forecaster]
TypeOf = Callable[[WorkerReport], str]
"""The worker type of a report: the key of `Variant.costs`."""


class ControlSettings(msgspec.Struct, frozen=True, kw_only=True):
    """All times in milliseconds."""

    name: str = "scaler"
    """Stands in the plan as its planner."""
    interval_ms: float = 10_000.0
    """Between periodic plans."""
    cool_down_ms: float = 2_000.0
    """Least time between two plans, whatever happens: loads of the one before are under way."""
    warm_up_ms: float = 2_500.0
    """A new leader listens for so long before its first plan: two reports of everybody."""
    demand_margin: float = 0.25
    """An endpoint whose rate is this part above what was planned for has shifted."""
    shift_deviations: float = 4.0
    """... and by so many standard deviations of Poisson arrivals: at few requests a second chance alone is a shift."""
    demand_floor_rps: float = 0.5
    """Below this, an endpoint's rate is noise."""
    attainment_target: float = 0.95
    attainment_window_ms: float = 3_000.0
    attainment_ended_min: int = 20
    """Requests that must have ended in the window before attainment says anything."""
    attainment_cool_down_ms: float = 5_000.0
    """Between plans for attainment alone: a plan needs time to show."""
    gain_min: float = 0.01
    """A plan must be expected to serve this much more of the forecast in time than the present one, or the present one stays;"""
    accuracy_gain_min: float = 0.003
    """... or, where that is the same, to answer this much more accurately."""
    blind_gain_min: float = 0.0002
    """... unless that was made while nothing was asked: then so much is enough, whatever the loads cost."""
    load_intervals: float = 6.0
    """A plan is expected to stay for so many intervals: what its loads cost is spread over them."""
    headroom: float = 1.25
    """Plans are compared at this multiple of the forecast: one that the forecast fills answers late, as queues grow without bound then."""
    quantile: float = 0.95
    """Of the forecast that is planned for."""
    hop_ms: float = 8.0
    lanes_per_class: int = 64
    dispatcher_lost_ms: float = 3_500.0
    worker_lost_ms: float = 3_500.0
    """As dispatchers see it."""
    worker_forget_ms: float = 60_000.0
    """A lost worker keeps its binding and its lane in the plan for so long: a restart must not cost a rebind."""
    flaps_max: int = 3
    """Incarnations (or losses) within the flap window that a worker may have; one with more is left out of plans for a time."""
    flap_window_ms: float = 60_000.0
    flap_back_off_ms: float = 15_000.0
    flap_back_off_ms_max: float = 300_000.0
    """The time left out doubles with each further flap, up to this."""
    refusal_ms: float = 60_000.0
    """A variant that could not be made ready on a worker is not planned there for so long; doubles with each further failure."""
    refusal_ms_max: float = 3_600_000.0
    loading_ms_max: float = 180_000.0
    """Loading for longer than this counts as failed."""
    step_ms_max: float = 60_000.0
    """A step of a rebinding whose variants are not ready by then is passed over."""
    memory_part: float = 0.9
    """Part of a worker's memory that a plan may fill; the rest is for what runs beside the models."""
    workers_max: int = 20_000
    endpoints_max: int = 1_000
    floors_max: int = 16
    """Floors of one endpoint that a snapshot tells apart; further ones count as the next one above."""
    rate_rps_max: float = 1e7
    latency_ms_max: float = 1e7
    memory_bytes_max: int = 1 << 50
    scouts_max: int = 2
    """Variants without a profile that a worker which serves others tries at once."""
    history_max: int = 256


def worker_type(report: WorkerReport) -> str:
    """Class, device and threads: workers that have these in common are taken to be alike."""
    return f"{report.accelerator}/{report.device}/{max(report.threads, 1)}"

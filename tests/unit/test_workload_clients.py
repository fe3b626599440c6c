"""Arrivals of recorded clients: counts as recorded, gaps of the recorded shape, and a span that can be prolonged."""

from __future__ import annotations

import numpy as np
import pytest

from scaler.simulator.workloads.clients import ClientWindow, client_arrivals
from scaler.simulator.workloads.errors import InvalidTrace

STEADY = tuple(ClientWindow(begin_s=600.0 * at, lasts_s=600.0, rate_rps=20.0, pattern="Gamma", shape=1.0) for at in range(4))
BURSTY = tuple(ClientWindow(begin_s=600.0 * at, lasts_s=600.0, rate_rps=10.0, pattern="Weibull", shape=0.4) for at in range(4))


def variation(stamps: np.ndarray) -> float:
    gaps = np.diff(stamps)
    return float(gaps.std() / gaps.mean())


def test_each_window_has_as_many_arrivals_as_were_recorded() -> None:
    stamps = client_arrivals([STEADY, BURSTY], 2_400.0, 1)
    assert len(stamps) == 4 * 600 * 30
    assert np.bincount((stamps // 600_000.0).astype(int)).tolist() == [18_000] * 4
    assert (np.diff(stamps) >= 0.0).all()


def test_gaps_have_the_recorded_shape() -> None:
    assert variation(client_arrivals([STEADY], 2_400.0, 1)) == pytest.approx(1.0, abs=0.03)
    assert variation(client_arrivals([BURSTY], 2_400.0, 1)) == pytest.approx(3.14, abs=0.35)  # of Weibull with shape 0.4


def test_a_longer_span_begins_like_a_shorter_one_and_clients_differ() -> None:
    short, long = client_arrivals([STEADY, STEADY], 900.0, 1), client_arrivals([STEADY, STEADY], 2_400.0, 1)
    assert np.array_equal(short, long[: len(short)])
    assert short[-1] < 900_000.0
    assert (np.diff(short) == 0.0).mean() < 0.01


def test_quiet_windows_are_quiet() -> None:
    quiet = ClientWindow(begin_s=0.0, lasts_s=600.0, rate_rps=0.0)
    assert len(client_arrivals([[quiet]], 600.0, 1)) == 0
    assert len(client_arrivals([], 600.0, 1)) == 0


@pytest.mark.parametrize(
    "window",
    [
        ClientWindow(begin_s=0.0, lasts_s=600.0, rate_rps=float("nan")),
        ClientWindow(begin_s=0.0, lasts_s=0.0, rate_rps=1.0),
        ClientWindow(begin_s=0.0, lasts_s=600.0, rate_rps=1.0, pattern="Gamma", shape=0.0),
        ClientWindow(begin_s=0.0, lasts_s=600.0, rate_rps=1.0, pattern="Zipf"),
    ],
)
def test_windows_that_mean_nothing_are_refused(window: ClientWindow) -> None:
    with pytest.raises(InvalidTrace, match="window of a client at 0 s"):
        client_arrivals([[window]], 600.0, 1)

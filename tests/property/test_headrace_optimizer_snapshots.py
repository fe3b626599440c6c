"""Whatever the snapshot, `headrace` proposes something valid."""

from __future__ import annotations

import time
from math import isfinite

import numpy as np
import pytest

from scaler.optimizers.checking import faults_of
from scaler.optimizers.headrace import HeadraceOptimizer
from scaler.optimizers.optimizer import Limits
from scaler.optimizers.random_snapshots import Shape, random_snapshot


@pytest.mark.parametrize("time_s", [0.0, 0.02, 1.0])
def test_any_snapshot_gives_a_valid_proposal(time_s: float) -> None:
    for seed in range(40):
        snapshot = random_snapshot(np.random.default_rng(seed), Shape(workers=6, stages=3, odd=0.3))
        proposal = HeadraceOptimizer().propose(snapshot, Limits(time_s=time_s, seed=seed, clock_s=time.perf_counter))
        assert faults_of(proposal, snapshot) == [], seed
        explanation = proposal.explanation
        figures = [*explanation.served.values(), *explanation.accuracy.values(), *explanation.load.values()]
        assert all(isfinite(figure) and 0.0 <= figure <= 1.0 + 1e-9 for figure in figures), (seed, explanation)

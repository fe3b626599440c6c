"""One definition of each service-level metric, used by demo, benchmarks, simulator and gauges alike.

*Offered* is all that arrived, *served* all that completed; a request that was dropped counts as missed.
"""

from __future__ import annotations

from collections.abc import Sequence


def attainment(completed_in_time: int, offered: int) -> float:
    """Completed in time / offered; 1.0 where nothing was offered."""
    return completed_in_time / offered if offered else 1.0


def violation_ratio(completed_in_time: int, offered: int) -> float:
    """(offered - completed in time) / offered."""
    return 1.0 - attainment(completed_in_time, offered)


def effective_accuracy_served(accuracies: Sequence[float]) -> float:
    """Mean accuracy of the variants that answered; 0.0 where nothing was answered."""
    return sum(accuracies) / len(accuracies) if accuracies else 0.0


def effective_accuracy_offered(accuracies: Sequence[float], offered: int) -> float:
    """Sum of the accuracies of the answers / offered; 0.0 where nothing was offered."""
    return sum(accuracies) / offered if offered else 0.0


def accuracy_drop_max(effective_accuracies: Sequence[float], best: float) -> float:
    """1 - the lowest effective accuracy of any window / the best possible; `effective_accuracies`: one per window. 0 where all are as good as that,
    but for rounding, or better than what was thought to be the best."""
    return max(1.0 - min(effective_accuracies) / best, 0.0) if effective_accuracies and best > 0.0 else 0.0


def goodput_rps(completed_in_time_at_floor: int, seconds: float) -> float:
    """Requests per second completed in time and at or above their accuracy floor."""
    return completed_in_time_at_floor / seconds if seconds > 0.0 else 0.0

"""Where to cut a model: of many places with their measured cost, those that make the parts about equal and carry little across."""

from __future__ import annotations

from collections.abc import Sequence

SLACK = 0.1
"""Parts may be this much longer than the best division's longest where that carries less."""


def choose_cuts(prefix_ms: Sequence[float], crossing_bytes: Sequence[int], whole_ms: float, parts: int) -> tuple[int, ...]:
    """Numbers of the places (ascending) that divide a model into `parts`.

    `prefix_ms[i]`: what the model costs up to place i; `crossing_bytes[i]`: what is carried across it. The longest part is as short as it can be
    but for SLACK, and of such divisions the one that carries least is taken. Raises ValueError where there are fewer places than cuts.
    """
    if parts < 1 or parts - 1 > len(prefix_ms):
        raise ValueError(f"{parts} parts need {max(parts - 1, 0)} places to cut, there are {len(prefix_ms)}")
    ends = _ascending([*prefix_ms, whole_ms])
    shortest = _longest_part(ends, parts)
    return _least_carried(ends, [*crossing_bytes, 0], parts, shortest * (1 + SLACK) + 1e-12)


def moves_towards(cuts: tuple[int, ...], part: int, places: int) -> list[tuple[int, ...]]:
    """The divisions that make one part (from 0) smaller by moving one of its two ends by one place."""
    found: list[tuple[int, ...]] = []
    if part > 0:
        found.append((*cuts[: part - 1], cuts[part - 1] + 1, *cuts[part:]))
    if part < len(cuts):
        found.append((*cuts[:part], cuts[part] - 1, *cuts[part + 1 :]))
    return [move for move in found if list(move) == sorted(set(move)) and move[0] >= 0 and move[-1] < places]


def _ascending(values: Sequence[float]) -> list[float]:
    """Measured costs fall now and then by noise; a longer prefix cannot cost less."""
    found: list[float] = []
    for value in values:
        found.append(max(value, found[-1]) if found else value)
    return found


def _longest_part(ends: Sequence[float], parts: int) -> float:
    """The least that the longest of so many parts can be (dynamic programming over the place of the last cut)."""
    best: list[float] = list(ends)
    for cuts in range(1, parts):
        best = [min((max(best[before], ends[at] - ends[before]) for before in range(cuts - 1, at)), default=float("inf")) for at in range(len(ends))]
    return best[-1]


def _least_carried(ends: Sequence[float], carried: Sequence[int], parts: int, longest: float) -> tuple[int, ...]:
    """Cuts of least traffic whose parts are all within `longest`."""
    best: list[tuple[float, tuple[int, ...]]] = [(0.0 if end <= longest else float("inf"), ()) for end in ends]
    for cuts in range(1, parts):
        following: list[tuple[float, tuple[int, ...]]] = []
        for at in range(len(ends)):
            choices = [
                (best[before][0] + carried[before], (*best[before][1], before))
                for before in range(cuts - 1, at)
                if ends[at] - ends[before] <= longest and best[before][0] < float("inf")
            ]
            following.append(min(choices, default=(float("inf"), ())))
        best = following
    return best[-1][1]

"""The demos of graphs: which catalog files each applies, what it asks, and what it shows beyond the table."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
import numpy as np

from broker.response import Response
from deploy.demo.play import EXAMPLE
from deploy.demo.report import Answered
from deploy.demo.traffic import Ask

FASHION = EXAMPLE / "task.yaml"
GRAPHS = EXAMPLE / "graphs"
SEED = 21


class GraphDemo(msgspec.Struct, frozen=True, kw_only=True):
    """One demo: requests with these floors, evenly mixed, at a steady rate."""

    endpoint: str
    files: tuple[Path, ...]
    floors: tuple[float, ...]
    timeout_ms: int
    requests: int
    rate_rps: float
    canary: bool = False
    """Starts the endpoint's canary and waits for its end."""
    rows: int = 1


DEMOS = {
    "cascade": GraphDemo(
        endpoint="fashion-cascade", files=(FASHION, GRAPHS / "cascade.yaml"), floors=(0.85, 0.9, 0.92), timeout_ms=1_000, requests=600, rate_rps=40
    ),
    "ensemble": GraphDemo(
        endpoint="fashion-ensemble",
        files=(FASHION, GRAPHS / "ensemble.yaml"),
        floors=(0.9,),
        timeout_ms=1_000,
        requests=400,
        rate_rps=30,
    ),
    "canary": GraphDemo(
        endpoint="fashion-canary", files=(FASHION, GRAPHS / "canary.yaml"), floors=(0.8,), timeout_ms=1_000, requests=2_000, rate_rps=60, canary=True
    ),
    "shadow": GraphDemo(
        endpoint="fashion-shadow",
        files=(FASHION, GRAPHS / "shadow.yaml"),
        floors=(0.85,),
        timeout_ms=1_000,
        requests=600,
        rate_rps=40,
    ),
}


def graph_schedule(demo: GraphDemo, requests: int, rate_rps: float, image_count: int) -> list[Ask]:
    """Poisson arrivals at one rate."""
    random = np.random.default_rng(SEED)
    at_s = np.cumsum(random.exponential(1.0 / rate_rps, requests))
    floors = random.choice(demo.floors, requests)
    images = random.integers(0, image_count, (requests, demo.rows))
    return [Ask(demo.endpoint, float(at_s[n]), float(floors[n]), demo.timeout_ms, images[n].tolist()) for n in range(requests)]


def path_of(response: Response) -> str:
    """The stages of an answer, each with its variant."""
    return " > ".join(f"{step.stage}={step.variant.partition('/')[2]}" for step in response.path)


def by_path(answered: list[Answered]) -> dict[str, dict[str, float]]:
    """For each path that requests took: how many, and what accuracy was declared and measured. Stages side by side may end in any order."""
    groups: dict[frozenset[str], list[Answered]] = {}
    for one in answered:
        if one.response.completed:
            groups.setdefault(frozenset(path_of(one.response).split(" > ")), []).append(one)
    found: dict[str, dict[str, float]] = {}
    for group in sorted(groups.values(), key=len, reverse=True):
        (path, _), *_ = Counter(path_of(one.response) for one in group).most_common(1)
        rows = sum(len(one.ask.images) for one in group)
        found[path] = {
            "answers": len(group),
            "declared": round(sum(one.response.accuracy or 0.0 for one in group) / len(group), 4),
            "measured": round(sum(one.right for one in group) / rows, 4),
        }
    return found

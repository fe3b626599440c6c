"""The requests of the rows that compute: eight images each, floors that need cheap to expensive variants, deadlines of 150 to 600 ms."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from broker.published import Request, publish
from deploy.bench.exchange import Timed
from deploy.catalog_files import load_catalog_files
from deploy.demo.play import EXAMPLE
from schemas.catalog import TaskSpec
from schemas.limits import Limits

TASK = ENDPOINT = "fashion"
FILES = (EXAMPLE / "task.yaml", EXAMPLE / "endpoint.yaml")
IMAGES = EXAMPLE / "test-2000.npz"
FLOORS = ((0.84, 0.10), (0.90, 0.20), (0.93, 0.25), (0.9335, 0.45))
"""(accuracy floor, part of the requests)."""
BLOCK = 20
TIMEOUT_MS_MIN, TIMEOUT_MS_MAX = 150, 600
ROWS = 8
BODIES = 64
"""Different bodies; requests take turns with them."""


class Ask(msgspec.Struct, frozen=True):
    """What one request asks for."""

    floor: float
    timeout_ms: int


class Schedule(msgspec.Struct, frozen=True):
    """Requests with their times, and what each asks, by key."""

    requests: list[Timed]
    asks: dict[bytes, Ask]
    seconds: float


def fashion_task() -> TaskSpec:
    """The example's task with its six variants."""
    return load_catalog_files(FILES).tasks[0]


def model_files() -> dict[str, Path]:
    """The example's models by SHA-256."""
    return load_catalog_files(FILES).models


def cheapest_variants() -> dict[float, str]:
    """By floor: the variant that meets it and costs least, as the example's ladder (sorted by cost) has it."""
    variants = fashion_task().variants
    return {floor: next(variant.name for variant in variants if variant.accuracy >= floor) for floor, _ in FLOORS}


def images() -> np.ndarray[Any, Any]:
    """Labelled test images, uint8 (2000, 1, 28, 28)."""
    with np.load(IMAGES) as arrays:
        return arrays["images"]


def schedule(rate_rps: float, seconds: float, seed: int, *, endpoint: str = ENDPOINT) -> Schedule:
    """Poisson arrivals of `rate_rps` for so long; the same seed gives the same requests, but for their ids: an id is answered once."""
    random = np.random.default_rng(seed)
    count = max(1, round(rate_rps * seconds))
    at_s = np.cumsum(random.exponential(1.0 / rate_rps, count))
    floors = _floors(count, random)
    timeouts = random.integers(TIMEOUT_MS_MIN, TIMEOUT_MS_MAX, count, endpoint=True)
    batches = _batches()
    requests: list[Timed] = []
    asks: dict[bytes, Ask] = {}
    for at in range(count):
        ask = Ask(floors[at], int(timeouts[at]))
        request = Request(
            endpoint=endpoint,
            inputs={"image": batches[at % BODIES]},
            min_accuracy=ask.floor,
            timeout_ms=ask.timeout_ms,
            request_id=uuid.uuid4().hex,
        )
        published = publish(request, "msgpack", Limits())
        requests.append(Timed(float(at_s[at]), published.message))
        asks[published.message[0] or b""] = ask
    return Schedule(requests, asks, float(at_s[-1]))


def _floors(count: int, random: np.random.Generator) -> list[float]:
    """In shuffled blocks of BLOCK that each have the very proportions of FLOORS: short stretches cost what long ones do."""
    block = [floor for floor, part in FLOORS for _ in range(round(part * BLOCK))]
    return [float(floor) for _ in range(count // BLOCK + 1) for floor in random.permutation(block)][:count]


def _batches() -> list[np.ndarray[Any, Any]]:
    chosen = images()[: BODIES * ROWS]
    return [chosen[at * ROWS : (at + 1) * ROWS] for at in range(BODIES)]

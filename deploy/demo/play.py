"""Plays a schedule against a client: publishes on time, collects every answer, shows progress."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from broker.client import Client
from broker.published import Request
from deploy.demo.report import Answered
from deploy.demo.traffic import Ask
from schemas.errors import ConfigurationError

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "fashion"
WARM_UP_REQUESTS = 20
GRACE_MS = 15_000.0


class Labelled:
    """The labelled images of the example: `images` uint8 (2000, 1, 28, 28), `labels` (2000,)."""

    def __init__(self, folder: Path = EXAMPLE) -> None:
        """Raises ConfigurationError where the example is not here."""
        file = folder / "test-2000.npz"
        if not file.is_file():
            raise ConfigurationError(f"{file} is missing: run the demo from a checkout of Headrace")
        with np.load(file) as arrays:
            self.images: np.ndarray[Any, Any] = arrays["images"]
            self.labels: np.ndarray[Any, Any] = arrays["labels"]


async def play(
    client: Client, asks: Sequence[Ask], data: Labelled, on_progress: Callable[[str, int, int], None], *, endpoint: str = "fashion"
) -> list[Answered]:
    """Publish every request at its time; returns each with its answer. `on_progress(phase, published, answered)`."""
    await _warm_up(client, data, endpoint)
    loop = asyncio.get_running_loop()
    answered: list[Answered] = []
    by_id: dict[str, Ask] = {}
    collecting: list[asyncio.Task[None]] = []

    async def collect(ids: list[str]) -> None:
        wait_ms = max(by_id[request_id].timeout_ms for request_id in ids) + GRACE_MS
        answered.extend([Answered(by_id[response.id], response, data.labels) async for response in client.results(ids, wait_ms=wait_ms)])

    started_s = loop.time() + 0.05
    at = 0
    while at < len(asks):
        delay_s = started_s + asks[at].at_s - loop.time()
        if delay_s > 0:
            await asyncio.sleep(delay_s)
        due_s = loop.time() - started_s
        batch: list[Ask] = []
        while at < len(asks) and asks[at].at_s <= due_s and len(batch) < 64:
            batch.append(asks[at])
            at += 1
        if not batch:
            continue
        ids = await client.submit_many(
            Request(endpoint=endpoint, inputs={"image": data.images[ask.images]}, min_accuracy=ask.floor, timeout_ms=ask.timeout_ms) for ask in batch
        )
        by_id.update(zip(ids, batch, strict=True))
        collecting.append(asyncio.create_task(collect(ids)))
        on_progress(batch[-1].phase, at, len(answered))
    for task in collecting:
        await task
        on_progress("answers", at, len(answered))
    return answered


async def _warm_up(client: Client, data: Labelled, endpoint: str) -> None:
    """First calls pay for connections and caches: they are not part of the figures."""
    for _ in range(WARM_UP_REQUESTS):
        request_id = await client.submit(endpoint, {"image": data.images[:1]}, min_accuracy=0.0, timeout_ms=5_000)
        async for _ in client.results([request_id], wait_ms=GRACE_MS):
            pass

"""Requests with the example's labelled images, at a steady rate: clean ones, shifted ones, attacked ones."""

from __future__ import annotations

import asyncio
import zlib
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from broker.log import Log
from headrace_mlops.dense_network import DenseNetwork, fgsm
from headrace_mlops.shifts import shifted
from schemas.names import Names
from schemas.tensors import encode_tensor

HEADERS = [("content-type", b"application/msgpack")]
FGSM_STRENGTH = 16.0


class Phase(NamedTuple):
    """A stretch of traffic: one image for each request, and which of them were attacked."""

    name: str
    images: NDArray[np.uint8]
    attacked: NDArray[np.bool_]


class Script(NamedTuple):
    """How many requests of each kind."""

    clean: int = 3_000
    shifted: int = 600
    back: int = 400
    """Clean ones, half of them attacked."""


def phases(images: NDArray[np.uint8], labels: NDArray[np.uint8], network: DenseNetwork, shift: str, script: Script, seed: int) -> list[Phase]:
    """Seeded draws of the labelled images; attacked ones by FGSM on the network."""
    random = np.random.default_rng(seed)

    def drawn(count: int) -> NDArray[np.intp]:
        return random.integers(0, len(images), count)

    last = drawn(script.back)
    attacked = random.random(script.back) < 0.5
    mixed = images[last].copy()
    mixed[attacked] = fgsm(network, mixed[attacked], labels[last][attacked].astype(int), FGSM_STRENGTH)
    none = np.zeros(0, bool)
    return [
        Phase("clean", images[drawn(script.clean)], np.resize(none, script.clean)),
        Phase(shift, shifted(images[drawn(script.shifted)], shift), np.resize(none, script.shifted)),
        Phase("attacked", mixed, attacked),
    ]


async def publish(log: Log, names: Names, endpoint: str, phase: Phase, rate_rps: float) -> list[str]:
    """Write the phase's requests; their ids, in order."""
    writer = log.writer("headrace-mlops-traffic")
    await writer.start()
    loop = asyncio.get_running_loop()
    shards = await log.partitions(names.requests)
    due_s = loop.time()
    ids: list[str] = []
    try:
        for number, image in enumerate(phase.images):
            ids.append(f"{phase.name}-{number}")
            body = {"endpoint": endpoint, "inputs": [encode_tensor("image", image[None], raw=True)]}
            key = ids[-1].encode()
            await writer.write(names.requests, zlib.crc32(key) % shards, [(key, msgspec.msgpack.encode(body), HEADERS)])
            due_s += 1.0 / rate_rps
            await asyncio.sleep(max(due_s - loop.time(), 0.0))
    finally:
        await writer.close()
    return ids

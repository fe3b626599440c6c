"""Requests of 1 kB with their answers, as a log would hold them for taps: nothing computes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import msgspec

from broker.log import Ack, Log, Message
from deploy.bench.prefilled import ACCURACY, ENDPOINT, PLAIN, TASK, TASKS, VARIANT_KEY, json_body, written
from schemas.catalog import catalog_key, encode_catalog
from schemas.names import SHARDS, Names
from schemas.tap import TapSpec
from schemas.terminal import COMPLETED, JSON_TYPE, TERMINAL_VERSION, OutputTensor, PathStep, Terminal, encode_terminal

TIMEOUT_MS = 600_000
BATCH = 500
BODY_BYTES = 1 << 10
_STEP = PathStep(stage="main", variant=VARIANT_KEY, accuracy=ACCURACY, accelerator="cpu", device="CPU", queued_ms=1.5, computed_ms=2.5, batch_size=4)


async def publish_tapped(log: Log, names: Names, taps: TapSpec | None = None) -> None:
    """The catalog: an endpoint whose every request is tapped."""
    endpoint = msgspec.structs.replace(PLAIN, taps=taps or TapSpec())
    async with written(log) as writer:
        await writer.write(names.catalog, 0, [(catalog_key(spec), encode_catalog(spec), ()) for spec in (TASKS[TASK], endpoint)])


async def fill_exchanges(log: Log, names: Names, count: int) -> None:
    """So many requests, each with its answer, over all shards."""
    body = json_body(TIMEOUT_MS)
    async with written(log) as writer:
        pending: list[asyncio.Future[Ack]] = []
        for begin in range(0, count, BATCH):
            shard = begin // BATCH % SHARDS
            ids = [f"request-{number}" for number in range(begin, min(begin + BATCH, count))]
            for topic, messages in _batch(names, ids, body).items():
                pending.append(asyncio.ensure_future(writer.write(topic, shard, messages)))
            if shard == SHARDS - 1:
                await asyncio.gather(*pending)
                pending.clear()
        await asyncio.gather(*pending)


def _batch(names: Names, ids: Sequence[str], body: bytes) -> Mapping[str, list[Message]]:
    return {
        names.requests: [(request_id.encode(), body, ()) for request_id in ids],
        names.responses: [(request_id.encode(), answer(request_id), ()) for request_id in ids],
    }


def answer(request_id: str) -> bytes:
    """An answer of 1 kB."""
    terminal = Terminal(
        id=request_id,
        outcome=COMPLETED,
        endpoint=ENDPOINT,
        outputs=[OutputTensor("probs", [1, 80], "FP32", [0.0125] * 80)],
        path=[_STEP],
        accuracy=ACCURACY,
        received_ms=1_700_000_000_000,
        finished_ms=1_700_000_000_005,
        deadline_ms=1_700_000_600_000,
        attempts=1,
        epoch=1,
        version=TERMINAL_VERSION,
    )
    return encode_terminal(terminal, JSON_TYPE)

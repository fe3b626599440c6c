# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (aiokafka ships no types, and a baseline is exactly what somebody would write with it directly)
"""The baselines that compute, as processes of their own: a closed loop without any broker, and the consumer that one writes in an afternoon.

`python -m deploy.bench.bare_models SETTINGS` with one of the settings below as JSON.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import msgspec
import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from deploy.bench import mix
from deploy.bench.harness import announce
from schemas.limits import Limits
from schemas.tensors import decode_inputs, encode_output
from schemas.terminal import COMPLETED, MSGPACK_TYPE, TERMINAL_VERSION, PathStep, Terminal, encode_terminal
from workers.backend import BackendOptions, Loaded
from workers.cpu.backend import CpuBackend

WARM_CALLS = 5
FETCH_WAIT_MS = 10
POLL_MS = 200


class ClosedLoop(msgspec.Struct, frozen=True, kw_only=True, tag="closed-loop"):
    """Answer one request of the mix after the other for so long: what the processor can do at most."""

    seconds: float
    seed: int
    result: str


class Fifo(msgspec.Struct, frozen=True, kw_only=True, tag="fifo"):
    """One consumer group, requests in the order of their arrival, each answered by the cheapest variant that meets its floor; no expiry."""

    kafka: str
    requests: str
    responses: str
    group: str
    ready: str


Settings = ClosedLoop | Fifo


class Answering:
    """Decode, infer, encode: the work on a request, without anything around it."""

    def __init__(self) -> None:
        self._backend = CpuBackend(BackendOptions(accelerator="cpu"))
        self._by_floor: dict[float, Loaded] = {}
        self._limits = Limits()
        files = mix.model_files()
        specs = {spec.name: spec for spec in mix.fashion_task().variants}
        example = mix.images()[: mix.ROWS]
        for floor, name in mix.cheapest_variants().items():
            spec = specs[name]
            self._by_floor[floor] = self._backend.load(name, spec, files[spec.sha256], batch_size_max=32, threads=1)
            for _ in range(WARM_CALLS):
                self._backend.infer(name, {"image": example}, mix.ROWS)

    def answer(self, key: bytes, body: bytes, floor: float, received_ms: int, timeout_ms: int) -> bytes:
        """The encoded terminal record."""
        loaded = self._by_floor[floor]
        spec = loaded.spec
        began_s = time.time()
        request = decode_inputs(body, MSGPACK_TYPE, spec.inputs, self._limits)
        outputs = self._backend.infer(spec.name, request.inputs, request.rows)
        ended_s = time.time()
        step = PathStep(
            stage="main",
            variant=spec.name,
            accuracy=spec.accuracy,
            accelerator="cpu",
            device=loaded.device,
            queued_ms=began_s * 1000 - received_ms,
            computed_ms=(ended_s - began_s) * 1000,
            batch_size=request.rows,
        )
        terminal = Terminal(
            id=key.decode(),
            outcome=COMPLETED,
            endpoint=mix.ENDPOINT,
            outputs=[encode_output(name, values, raw=True) for name, values in outputs.items()],
            path=[step],
            accuracy=spec.accuracy,
            received_ms=received_ms,
            finished_ms=int(ended_s * 1000),
            deadline_ms=received_ms + timeout_ms,
            attempts=1,
            epoch=0,
            version=TERMINAL_VERSION,
        )
        return encode_terminal(terminal, MSGPACK_TYPE)


def _closed_loop(settings: ClosedLoop) -> None:
    answering = Answering()
    planned = mix.schedule(1_000.0, 2.0, settings.seed)
    asked = [(request.message, planned.asks[request.message[0] or b""]) for request in planned.requests]
    count = 0
    began_s = time.perf_counter()
    while time.perf_counter() - began_s < settings.seconds:
        (key, body, _), ask = asked[count % len(asked)]
        answering.answer(key or b"", body or b"", ask.floor, int(time.time() * 1000), ask.timeout_ms)
        count += 1
    rate_rps = count / (time.perf_counter() - began_s)
    announce(settings.result, {"rate_rps": rate_rps})


async def _fifo(settings: Fifo) -> None:
    answering = await asyncio.to_thread(Answering)
    consumer: Any = AIOKafkaConsumer(
        settings.requests, bootstrap_servers=settings.kafka, group_id=settings.group, auto_offset_reset="latest", fetch_max_wait_ms=FETCH_WAIT_MS
    )
    producer: Any = AIOKafkaProducer(bootstrap_servers=settings.kafka, acks="all", enable_idempotence=True)
    await consumer.start()
    await producer.start()
    while not consumer.assignment():  # noqa: ASYNC110 - aiokafka tells in no other way
        await asyncio.sleep(0.05)
    for partition in consumer.assignment():
        await consumer.position(partition)
    announce(settings.ready)
    headers = [("content-type", MSGPACK_TYPE.encode())]
    loop = asyncio.get_running_loop()
    while True:
        for partition, records in (await consumer.getmany(timeout_ms=POLL_MS)).items():
            for record in records:
                stated = dict(record.headers)
                ask = (float(stated["min_accuracy"]), record.timestamp, int(stated["timeout_ms"]))
                value = await loop.run_in_executor(None, answering.answer, record.key, record.value, *ask)
                await producer.send(settings.responses, value, key=record.key, partition=partition.partition, headers=headers)


if __name__ == "__main__":
    chosen: Settings = msgspec.json.decode(sys.argv[1], type=Settings)
    if isinstance(chosen, ClosedLoop):
        _closed_loop(chosen)
    else:
        uvloop.run(_fifo(chosen))

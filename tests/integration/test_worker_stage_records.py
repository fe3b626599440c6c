"""Orders of graphs: what a worker computes on, and the stage records and terminal records that it answers with."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import numpy as np
import pytest
from worker_stage import BLANK, ScriptedBackend, Stage, committed, grey, image_body, serve

from broker.kafka import KafkaLog
from broker.log import Log
from broker.memory import MemoryLog
from schemas.errors import LogUnavailable
from schemas.limits import Limits
from schemas.stage import TensorHead
from schemas.tensors import decode_output, encode_tensor
from schemas.terminal import PathStep
from schemas.work import order_name

BEFORE = PathStep(stage="detect", variant="d/v", accuracy=0.8, accelerator="vpu", device="NPU", queued_ms=1.0, computed_ms=2.0, batch_size=3)


@pytest.fixture(params=["memory", "kafka"])
async def log(request: pytest.FixtureRequest) -> AsyncIterator[Log]:
    made = MemoryLog() if request.param == "memory" else KafkaLog(request.getfixturevalue("kafka_address"))
    yield made
    await made.close()


@pytest.fixture
async def memory() -> AsyncIterator[MemoryLog]:
    made = MemoryLog()
    yield made
    await made.close()


def level(value: int, rows: int = 1) -> dict[str, np.ndarray]:
    return {"image": np.full((rows, 1, 28, 28), value, np.uint8)}


def name(request_id: str, instance: str = "classify") -> str:
    return order_name(request_id, instance)


async def test_a_stage_hands_its_tensors_on(log: Log, prefix: str) -> None:
    async with Stage(log, prefix, ScriptedBackend()) as stage:
        await serve(stage, "a")
        other = encode_tensor("unused", np.zeros((5,), np.float32), raw=False) | {"data": "not looked at"}
        image = encode_tensor("photo", np.full((2, 1, 28, 28), 4, np.uint8), raw=False)
        body = msgspec.json.encode({"inputs": [other, image]})
        ready_ms = int(time.time() * 1e3)
        await stage.send(
            stage.part("raw", "a", tensors=level(7, 2), rows=2, shard=1, attempt=2, received_ms=5, ready_ms=ready_ms),
            stage.part("asked", "a", body=body, request_inputs={"image": "photo"}, outputs=()),
        )
        (raw, tensors), (asked, nothing) = await stage.stage_results(name("raw"), name("asked"))
        assert (raw.endpoint, raw.revision, raw.instance, raw.attempt, raw.variant) == ("fashion", 3, "classify", 2, "fashion/a")
        assert (raw.accuracy, raw.accelerator, raw.device, raw.worker, raw.error_code) == (0.9, "cpu", "scripted device", "w1", "")
        assert 0 <= raw.queued_ms < 5_000, "counted from when its inputs were there"
        assert raw.batch_size >= 2
        assert abs(raw.finished_ms - ready_ms) < 10_000
        assert tensors["probs"].tolist() == [[7.0] * 10] * 2
        (record,) = stage.staged[name("raw")]
        assert (record.key, record.partition, record.topic) == (b"raw", 1, stage.stage_topic)
        assert (asked.tensors, nothing, asked.error_code) == ((), {}, ""), "nobody downstream uses any of it"
        await committed(stage, 2)
        assert stage.answers == {}


async def test_the_last_stage_writes_the_terminal_record(memory: MemoryLog, prefix: str) -> None:
    async with Stage(memory, prefix, ScriptedBackend()) as stage:
        await serve(stage, "a")
        common: dict[str, Any] = {"final": True, "tensors": level(7), "path": (BEFORE,), "received_ms": 77}
        await stage.send(
            stage.part("json", "a", path_accuracy=0.72, answers={"scores": "probs"}, **common),
            stage.part("packed", "a", raw=True, shard=1, **common),
            stage.part("odd", "a", answers={"scores": "prob"}, **common),
        )
        one, two, odd = await stage.answered("json", "packed", "odd")
        assert (one.id, one.outcome, one.accuracy, one.received_ms) == ("json", "completed", 0.72, 77)
        assert [step.stage for step in one.path] == ["detect", "classify"]
        assert one.path[0] == BEFORE
        assert (one.outputs[0].name, decode_output(one.outputs[0]).tolist()) == ("scores", [[7.0] * 10])
        assert (two.accuracy, two.outputs[0].name, type(two.outputs[0].data)) == (0.9, "probs", bytes)
        assert (odd.outcome, odd.error.code, odd.error.stage, odd.accuracy) == ("failed", "backend_error", "classify", None)
        assert "output 'prob' is missing; 'probs' came" in odd.error.message
        assert odd.path == [BEFORE]
        assert stage.staged == {}


async def test_stages_of_several_requests_and_rows_of_one_run_together(memory: MemoryLog, prefix: str) -> None:
    gate = threading.Event()
    backend = ScriptedBackend(lambda _key, inputs, _rows: gate.wait(5) if inputs["image"][0, 0, 0, 0] == 1 else None)
    async with Stage(memory, prefix, backend) as stage:
        await serve(stage, "a")
        backend.armed = True
        await stage.send(stage.order("first", "a", body=grey(1)))
        await stage.until(lambda: backend.calls)
        rows = [stage.part("page", "a", instance=f"lines.read#{row}", tensors=level(10 + row)) for row in range(3)]
        asked = stage.part("asked", "a", tensors=level(31), instance="x")
        await stage.send(*rows, rows[0], asked, stage.order("single", "a", body=grey(40)), stage.part("asked", "a", instance="y", tensors=level(32)))
        await stage.until(lambda: stage.worker._serving.batcher.waiting_rows == 6)
        gate.set()
        names = [name("page", f"lines.read#{row}") for row in range(3)] + [name("asked", "x"), name("asked", "y")]
        results = await stage.stage_results(*names)
        assert [tensors["probs"][0, 0] for _, tensors in results] == [10, 11, 12, 31, 32]
        assert {record.batch_size for record, _ in results} == {6}
        assert (await stage.answered("single"))[0].outcome == "completed"
        await committed(stage, 8)
        assert [len(stage.staged[one]) for one in names] == [1] * 5, "the same row twice is computed once"


async def test_what_is_wrong_with_an_order_fails_that_stage_alone(memory: MemoryLog, prefix: str) -> None:
    async with Stage(memory, prefix, ScriptedBackend()) as stage:
        await serve(stage, "a")
        right = level(1)["image"]
        head = TensorHead("image", "UINT8", (1, 1, 28, 28), 784)
        wrong: dict[str, tuple[Any, str, str]] = {
            "shape": (
                stage.part("shape", "a", tensors={"image": right[0]}),
                "backend_error",
                r"tensor 'image' (datatype UINT8, shape [1, 28, 28]): expected",
            ),
            "datatype": (
                stage.part("datatype", "a", tensors={"image": right.astype(np.float32)}),
                "backend_error",
                "expected datatype UINT8, got FP32",
            ),
            "missing": (stage.part("missing", "a"), "backend_error", "input 'image' is missing; the task takes 'image' (UINT8 [-1, 1, 28, 28])"),
            "unknown": (stage.part("unknown", "a", tensors=level(1) | {"mask": right}), "backend_error", "unknown input 'mask'"),
            "size": (stage.part("size", "a", tensors=(), body=bytes(784), request_bytes=784), "backend_error", "input 'image' is missing"),
            "cut": (stage.part("cut", "a", body=bytes(700), request_bytes=0), "backend_error", "have 0 bytes, got 700"),
            "rows": (stage.part("rows", "a", tensors=level(1, 0)), "backend_error", "expected 1 to 1024 rows"),
            "body": (stage.part("body", "a", body=b"{", request_inputs={"image": "image"}), "bad_request", "not a valid application/json"),
            "name": (
                stage.part("name", "a", body=BLANK, request_inputs={"image": "imag"}),
                "bad_request",
                "input 'imag' is missing, did you mean 'image'?",
            ),
            "request": (
                stage.part("request", "a", body=image_body(right[0]), request_inputs={"image": "image"}),
                "bad_request",
                "input 'image' (datatype UINT8, shape [1, 28, 28]): expected shape [-1, 1, 28, 28]",
            ),
        }
        assert head.size == right.nbytes
        await stage.send(*(order for order, _, _ in wrong.values()), stage.part("good", "a", tensors=level(1)))
        for (record, tensors), (order, code, message) in zip(await stage.stage_results(*map(name, wrong)), wrong.values(), strict=True):
            assert (record.error_code, tensors) == (code, {}), order[0]
            assert record.error_message.startswith("stage 'classify': "), order[0]
            assert message in record.error_message, order[0]
        ((good, _),) = await stage.stage_results(name("good"))
        assert good.error_code == ""


async def test_failed_expired_and_too_large_are_stage_records_too(memory: MemoryLog, prefix: str) -> None:
    def act(_key: str, inputs: Any, _rows: int) -> None:
        if (inputs["image"][:, 0, 0, 0] == 66).any():
            raise RuntimeError("kernel panic")
        if inputs["image"][0, 0, 0, 0] == 1:
            time.sleep(0.15)

    backend = ScriptedBackend(act)
    limits = msgspec.structs.replace(Limits(), record_bytes_max=4_000)
    async with Stage(memory, prefix, backend, limits=limits) as stage:
        await serve(stage, "a")
        backend.armed = True
        await stage.send(stage.part("slow", "a", tensors=level(1), deadline_in_ms=100), stage.part("past", "a", tensors=level(2), deadline_in_ms=-1))
        await stage.until(lambda: backend.calls)
        await stage.send(stage.part("tight", "a", instance="x#1", tensors=level(3), deadline_in_ms=110))
        await stage.send(stage.part("broken", "a", tensors=level(66)), stage.part("large", "a", tensors=level(4, 200), rows=200))
        results = await stage.stage_results(*map(name, ("slow", "past", "broken", "large")))
        assert [record.error_code for record, _ in results] == ["deadline_exceeded", "deadline_exceeded", "backend_error", "too_large"]
        assert "ended after the deadline" in results[0][0].error_message
        assert "RuntimeError: kernel panic" in results[2][0].error_message
        assert all(tensors == {} for _, tensors in results)
        await stage.until(lambda: stage.returned)
        assert set(stage.returned) == {name("tight", "x#1")}, "handed back unstarted under the order's name"
        await stage.send(stage.part("later", "ghost", instance="y", tensors=level(3)))
        await stage.until(lambda: name("later", "y") in stage.returned)
        await committed(stage, 6)


async def test_stage_records_wait_for_the_log_as_answers_do(memory: MemoryLog, prefix: str) -> None:
    class Away:
        """Takes telemetry only, as long as it is away."""

        def __init__(self, writer: Any) -> None:
            self._writer, self.away = writer, True

        def write(self, topic: str, partition: int, messages: Any) -> Any:
            return self._refuse() if self.away else self._writer.write(topic, partition, messages)

        async def _refuse(self) -> None:
            raise LogUnavailable("away")

    async with Stage(memory, prefix, ScriptedBackend()) as stage:
        await serve(stage, "a")
        writer = Away(stage.worker._writer)
        stage.worker._answers._delivery._writer = writer
        await stage.send(stage.part("soon", "a", tensors=level(1), deadline_in_ms=100), stage.part("later", "a", tensors=level(2)))
        await stage.send(stage.part("last", "a", final=True, tensors=level(3)))
        await stage.until(lambda: stage.worker._answers.undelivered == 3)
        over_ms = time.time() * 1e3 + 130
        await stage.until(lambda: time.time() * 1e3 > over_ms)
        writer.away = False
        (soon, _), (later, tensors) = await stage.stage_results(name("soon"), name("later"))
        assert (soon.error_code, later.error_code) == ("deadline_exceeded", "")
        assert tensors["probs"][0, 0] == 2
        assert (await stage.answered("last"))[0].outcome == "completed"
        await stage.until(lambda: not stage.worker._answers.undelivered)


async def test_a_stopping_worker_hands_stages_back_by_their_names(memory: MemoryLog, prefix: str) -> None:
    gate = threading.Event()
    backend = ScriptedBackend(lambda *_: gate.wait(5))
    async with Stage(memory, prefix, backend, grace_ms=100) as stage:
        await serve(stage, "a", batch_size_max=1)
        backend.armed = True
        await stage.send(*(stage.part("r", "a", instance=f"s#{row}", tensors=level(row)) for row in range(3)))
        await stage.until(lambda: backend.calls and stage.worker._serving.batcher.waiting_rows == 2)
        stage.worker.stop()
        await stage.until_read(lambda: stage.returned)
        gate.set()
        await asyncio.wait_for(stage.running, 10)
        await stage.until_read(lambda: stage.staged)
        assert set(stage.returned) == {name("r", "s#1"), name("r", "s#2")}
        assert set(stage.staged) == {name("r", "s#0")}

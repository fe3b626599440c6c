"""A worker on both logs: answers, faults, plans and endings, as a dispatcher sees them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worker_stage import KnownProfiles, NoProfiles, ScriptedBackend, Stage, committed, fashion, grey, image_body, serve

from broker.kafka import KafkaLog
from broker.log import Log
from broker.memory import MemoryLog
from schemas.profile import Latency
from schemas.tensors import decode_output
from workers.backend import BackendOptions

MODELS = Path(__file__).parents[2] / "examples" / "fashion"


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


async def test_orders_are_answered_with_path_and_outputs(log: Log, prefix: str) -> None:
    backend = ScriptedBackend()
    async with Stage(log, prefix, backend) as stage:
        assert "starts" in stage.worker.unready() or "no plan" in stage.worker.unready()
        await serve(stage, "a", "b")
        assert stage.worker.unready() == ""
        raw = image_body(np.full((2, 1, 28, 28), 9, np.uint8), raw=True)
        await stage.send(
            stage.order("one", "a", body=grey(7), traceparent="00-1"), stage.order("two", "b", body=raw, raw=True, rows=2, shard=1, attempt=2)
        )
        one, two = await stage.answered("one", "two")
        assert (one.outcome, one.endpoint, one.accuracy, one.attempts, one.epoch, one.traceparent) == ("completed", "fashion", 0.9, 1, 1, "00-1")
        assert one.finished_ms <= one.deadline_ms
        (step,) = one.path
        assert (step.stage, step.variant, step.accelerator, step.device, step.batch_size) == ("main", "fashion/a", "cpu", "scripted device", 1)
        assert step.queued_ms >= 0
        assert decode_output(one.outputs[0]).tolist() == [[7.0] * 10]
        assert two.attempts == 2
        assert decode_output(two.outputs[0]).tolist() == [[9.0] * 10] * 2
        assert isinstance(two.outputs[0].data, bytes)
        report = stage.report
        assert (report.lane, report.state, report.epoch, report.device) == (0, "ready", 1, "scripted")
        assert report.credits > 0
        assert set(report.variants["fashion/a"].latency) == {1, 8, 32}
        stage.worker.stop()
        await stage.until_read(lambda: stage.report.state == "stopped")
        assert [stage.reports[-1].credits, stage.reports[-2].state] == [0, "draining"]


async def test_only_the_outputs_asked_for(memory: MemoryLog, prefix: str) -> None:
    async with Stage(memory, prefix, ScriptedBackend()) as stage:
        await serve(stage, "a")
        image = np.zeros((1, 1, 28, 28), np.uint8)
        await stage.send(
            stage.order("none", "a", body=image_body(image, outputs=[])),
            stage.order("probs", "a", body=image_body(image, outputs=[{"name": "probs"}])),
        )
        none, probs = await stage.answered("none", "probs")
        assert none.outputs == []
        assert [output.name for output in probs.outputs] == ["probs"]


async def test_batches_form_while_the_device_is_busy(memory: MemoryLog, prefix: str) -> None:
    gate = threading.Event()
    backend = ScriptedBackend(lambda _key, inputs, _rows: gate.wait(5) if inputs["image"][0, 0, 0, 0] == 1 else None, batch_sizes=(1, 2, 4, 8))
    async with Stage(memory, prefix, backend) as stage:
        await serve(stage, "a", batch_size_max=8)
        backend.armed = True
        await stage.send(stage.order("first", "a", body=grey(1)))
        await stage.until(lambda: backend.calls)
        await stage.send(*(stage.order(f"later{n}", "a", body=grey(10 + n)) for n in range(3)), stage.order("big", "a", body=grey(20, 11), rows=11))
        await stage.until(lambda: stage.worker._serving.batcher.waiting_rows == 14)
        gate.set()
        answers = await stage.answered("first", "later0", "later1", "later2", "big")
        assert [answer.path[0].batch_size for answer in answers] == [1, 3, 3, 3, 11]
        assert [decode_output(answer.outputs[0])[:, 0].tolist() for answer in answers] == [[1], [10], [11], [12], [20] * 11]
        assert backend.calls == [("fashion/a", 1), ("fashion/a", 4), ("fashion/a", 8), ("fashion/a", 4)]


async def test_the_same_id_twice_is_computed_once(memory: MemoryLog, prefix: str) -> None:
    gate = threading.Event()
    backend = ScriptedBackend(lambda *_: gate.wait(5))
    async with Stage(memory, prefix, backend) as stage:
        await serve(stage, "a")
        backend.armed = True
        await stage.send(stage.order("x", "a"), stage.order("y", "a"))
        await stage.send(stage.order("x", "a", attempt=2), stage.order("y", "a", attempt=2))
        await stage.until(lambda: stage.registry.get_sample_value("headrace_worker_orders_ignored_total", {"reason": "duplicate"}) == 2)
        gate.set()
        assert [answer.attempts for answer in await stage.answered("x", "y")] == [2, 2]
        await committed(stage, 4)
        assert [len(answers) for answers in stage.answers.values()] == [1, 1]


async def test_a_rebind_loses_nothing(log: Log, prefix: str) -> None:
    backend = ScriptedBackend()
    async with Stage(log, prefix, backend) as stage:
        await serve(stage, "old", "new")
        await stage.plan(2, "old")
        await stage.until(lambda: stage.states() == {"old": "ready"})
        sent: list[str] = []

        async def keep_sending() -> None:
            while True:
                name = next((name for name in ("new", "old") if stage.states().get(name) == "ready"), "old")
                sent.append(f"{name}{len(sent)}")
                await stage.send(stage.order(sent[-1], name))
                await asyncio.sleep(0.002)

        sender = asyncio.create_task(keep_sending())
        await stage.plan(3, "new")
        await stage.until(lambda: stage.states() == {"new": "ready"})
        await stage.plan(2, "old")
        await asyncio.sleep(0.2)
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)
        assert {answer.outcome for answer in await stage.answered(*sent)} == {"completed"}
        assert stage.states() == {"new": "ready"}, "an older epoch is ignored"
        assert stage.report.epoch == 3
        assert backend.unloaded.count("fashion/old") == 1


async def test_batches_have_their_turn_between_loads(memory: MemoryLog, prefix: str) -> None:
    backend = ScriptedBackend()
    async with Stage(memory, prefix, backend) as stage:
        await serve(stage, "a", "b", "c")
        await stage.plan(2, "a")
        await stage.until(lambda: stage.states() == {"a": "ready"})
        backend.events.clear()
        backend.load_seconds, backend.armed = 0.1, True
        await stage.plan(3, "a", "b", "c")
        await stage.until(lambda: "load b" in backend.events)
        await stage.send(stage.order("x", "a"))
        await stage.ready("a", "b", "c")
        assert backend.events.index("run fashion/a") < backend.events.index("load c")
        await stage.answered("x")


async def test_a_new_lane_is_read_from_its_end_and_the_old_one_for_a_while(log: Log, prefix: str) -> None:
    async with Stage(log, prefix, ScriptedBackend()) as stage:
        await stage.send(stage.order("before", "a"), lane=1)
        await serve(stage, "a")
        await stage.send(stage.order("x", "a"))
        await stage.plan(2, "a", lane=1)
        await stage.until(lambda: stage.report.lane == 1)
        await committed(stage, 1, lane=1)  # what lay there before is no lag of this worker
        await stage.send(stage.order("late", "a"), lane=0)
        await stage.send(stage.order("y", "a"), lane=1)
        assert {answer.outcome for answer in await stage.answered("x", "late", "y")} == {"completed"}
        await committed(stage, 2, lane=0)
        await committed(stage, 2, lane=1)
        assert "before" not in stage.answers


async def test_stopping_finishes_what_waits_and_hands_back_the_rest(log: Log, prefix: str) -> None:
    backend = ScriptedBackend(lambda *_: time.sleep(0.1))
    slow = KnownProfiles({1: Latency(100.0, 110.0, 100)})
    async with Stage(log, prefix, backend, profiles=slow, grace_ms=250) as stage:
        await serve(stage, "a", batch_size_max=1)
        backend.armed = True
        ids = [f"r{n}" for n in range(8)]
        await stage.send(*(stage.order(request_id, "a") for request_id in ids))
        await stage.until(lambda: backend.calls)
        stage.worker.stop()
        stage.worker.stop()
        assert stage.worker.unready() == "the worker stops" or stage.worker.unready() == ""
        await asyncio.wait_for(stage.running, 10)
        await stage.until_read(lambda: stage.report.state == "stopped" and len(stage.answers) + len(stage.returned) == 8)
        assert stage.answers
        assert set(stage.returned.values()) == {"the worker stops"}
        assert set(stage.answers).isdisjoint(stage.returned)
        assert {answers[0].outcome for answers in stage.answers.values()} == {"completed"}


async def test_a_restarted_worker_begins_a_new_life(memory: MemoryLog, prefix: str) -> None:
    async with Stage(memory, prefix, ScriptedBackend()) as stage:
        await serve(stage, "a")
        first = stage.report.incarnation
        old = stage.order("old", "a")
        stage.worker.stop()
        await asyncio.wait_for(stage.running, 10)
        await stage.send(old)
        stage.registry = type(stage.registry)()
        stage.start_worker()
        await stage.until(lambda: stage.report.incarnation > first and stage.report.state == "ready")
        await stage.send(old, stage.order("new", "a"))
        await stage.answered("new")
        assert "old" not in stage.answers


async def test_real_models_answer_as_accurately_as_they_say(log: Log, prefix: str) -> None:
    backends = pytest.importorskip("workers.cpu.backend")
    folder, samples = fashion_folder()
    specs = [fashion(name, folder) for name in ("linear", "resnet-int8")]
    paths = {spec.sha256: folder / spec.file for spec in specs}
    backend = backends.CpuBackend(BackendOptions(accelerator="cpu"))
    async with Stage(log, prefix, backend, profiles=NoProfiles(), resolve=paths.__getitem__, profile_ms=40.0) as stage:
        await stage.catalog(*specs)
        await stage.plan(1, *(spec.name for spec in specs))
        await stage.ready(*(spec.name for spec in specs))
        images, labels = samples["images"][:200], samples["labels"][:200]
        ids = [f"{spec.name}-{n}" for n in range(200) for spec in specs]
        orders = [
            stage.order(i, i.rpartition("-")[0], body=image_body(images[[int(i.rpartition("-")[2])]], raw=True), raw=True, deadline_in_ms=60_000)
            for i in ids
        ]
        for at in range(0, len(orders), 50):
            await stage.send(*orders[at : at + 50])
        answers = {answer.id: answer for answer in await stage.answered(*ids, timeout_s=60)}
        for spec, least in zip(specs, (0.78, 0.87), strict=True):
            right = [decode_output(answers[f"{spec.name}-{n}"].outputs[0]).argmax() == labels[n] for n in range(200)]
            assert np.mean(right) > least
        assert stage.registry.get_sample_value("headrace_worker_answers_total", {"outcome": "completed"}) == 400


def fashion_folder() -> tuple[Path, Any]:
    found = next((file for file in sorted(MODELS.rglob("test-2000.npz"))), None)
    if found is None:
        pytest.skip("the example's models are not here")
    models = next(file.parent for file in sorted(MODELS.rglob("linear.onnx")))
    return models, np.load(found)

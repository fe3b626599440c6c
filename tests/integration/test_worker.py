"""A worker on both logs: answers, faults, plans and endings, as a dispatcher sees them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from worker_stage import BLANK, KnownProfiles, NoProfiles, ScriptedBackend, Stage, fashion, image_body, variant

from broker.kafka import KafkaLog
from broker.log import Log, TopicPartition
from broker.memory import MemoryLog
from schemas.errors import LogUnavailable
from schemas.limits import Limits
from schemas.profile import Latency
from schemas.tensors import decode_output
from workers.backend import BackendOptions
from workers.serving import Hung

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


def grey(level: int, rows: int = 1) -> bytes:
    return image_body(np.full((rows, 1, 28, 28), level, np.uint8))


async def serve(stage: Stage, *names: str, **plan: Any) -> None:
    """Bind the worker to these variants, wait until they are ready, and let the scripted faults begin."""
    await stage.catalog(*(variant(name) for name in names))
    await stage.plan(1, *names, **plan)
    await stage.ready(*names)


def on_value(value: int, act: Callable[[], None]) -> Callable[[str, Any, int], None]:
    """Act where an image of this level is in the batch."""
    return lambda _key, inputs, _rows: act() if (inputs["image"].reshape(len(inputs["image"]), -1)[:, 0] == value).any() else None


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


async def test_each_bad_request_fails_alone(memory: MemoryLog, prefix: str) -> None:
    async with Stage(memory, prefix, ScriptedBackend()) as stage:
        await serve(stage, "a")
        wrong = image_body(np.zeros((1, 28), np.uint8))
        bodies = {
            "json": b"{",
            "packed": b"\xc1",
            "empty": b"",
            "wrong": wrong,
            "none": None,
            "asked": image_body(np.zeros((1, 1, 28, 28), np.uint8), outputs=[{"name": "prob"}]),
        }
        orders = [stage.order(name, "a", body=body, raw=name == "packed") for name, body in bodies.items()]
        await stage.send(*orders, stage.order("good", "a"))
        for answer in await stage.answered(*bodies):
            assert (answer.outcome, answer.error.code, answer.error.stage) == ("failed", "bad_request", "main"), answer.id
        assert "input 'image' (datatype UINT8, shape [1, 28])" in stage.answers["wrong"][0].error.message
        assert "did you mean 'probs'" in stage.answers["asked"][0].error.message
        assert (await stage.answered("good"))[0].outcome == "completed"


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


async def test_a_request_that_breaks_the_backend_fails_alone(memory: MemoryLog, prefix: str) -> None:
    def refuse() -> None:
        raise RuntimeError("kernel panic")

    backend = ScriptedBackend(on_value(66, refuse))
    async with Stage(memory, prefix, backend) as stage:
        await serve(stage, "a")
        backend.armed = True
        await stage.send(*(stage.order(str(level), "a", body=grey(level)) for level in (64, 65, 66, 67)))
        answers = await stage.answered("64", "65", "66", "67")
        assert [answer.outcome for answer in answers] == ["completed", "completed", "failed", "completed"]
        assert answers[2].error.code == "backend_error"
        assert "RuntimeError: kernel panic" in answers[2].error.message
        assert backend.calls[0] == ("fashion/a", 4), "they ran together first"


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


async def test_late_is_never_completed(memory: MemoryLog, prefix: str) -> None:
    backend = ScriptedBackend(lambda _key, inputs, _rows: time.sleep(0.15) if inputs["image"][0, 0, 0, 0] == 1 else None)
    async with Stage(memory, prefix, backend) as stage:
        await serve(stage, "a")
        backend.armed = True
        await stage.send(stage.order("slow", "a", body=grey(1), deadline_in_ms=100), stage.order("past", "a", deadline_in_ms=-1))
        await stage.until(lambda: backend.calls)
        await stage.send(stage.order("tight", "a", deadline_in_ms=60))
        slow, past, tight = await stage.answered("slow", "past", "tight")
        assert {answer.outcome for answer in (slow, past, tight)} == {"expired"}
        assert {answer.error.code for answer in (slow, past, tight)} == {"deadline_exceeded"}
        assert "ended after the deadline" in slow.error.message
        assert "could not have finished in time" in tight.error.message
        assert stage.answered_ms["tight"] <= tight.deadline_ms, "a timer drops it while the device computes"


async def test_a_call_that_hangs_ends_the_worker(memory: MemoryLog, prefix: str) -> None:
    release = threading.Event()
    backend = ScriptedBackend(lambda *_: release.wait(20))
    async with Stage(memory, prefix, backend, hang_ms_min=300.0, grace_ms=100) as stage:
        await serve(stage, "a")
        backend.armed = True
        await stage.send(stage.order("x", "a"))
        with pytest.raises(Hung, match=r"a batch of fashion/a has been on the device for \d+ ms"):
            await asyncio.wait_for(stage.running, 10)
        release.set()
        assert stage.worker.unhealthy()
        await stage.until_read(lambda: stage.report.state == "stopped")


async def test_orders_that_are_not_for_this_worker_now(log: Log, prefix: str) -> None:
    async with Stage(log, prefix, ScriptedBackend()) as stage:
        await serve(stage, "a")
        await stage.send(
            stage.order("other worker", "a", worker="w2"),
            stage.order("older life", "a", incarnation=1),
            stage.order("not hosted", "b"),
            (b"no header", BLANK, []),
            (b"bad header", BLANK, [("headrace", b"\xc1")]),
            (None, BLANK, stage.order("x", "a")[2]),
            stage.order("mine", "a"),
        )
        await stage.answered("mine")
        await stage.until(lambda: len(stage.dead) == 3 and stage.returned)
        assert stage.returned == {"not hosted": "the variant is not ready here"}
        assert set(stage.answers) == {"mine"}
        reasons = [dict(record.headers) for record in stage.dead]
        assert [record.key for record in stage.dead] == [b"no header", b"bad header", None]
        assert all(headers["headrace-reason"].startswith(b"not a work order") for headers in reasons)
        assert [int(headers["headrace-offset"]) for headers in reasons] == [3, 4, 5]
        await committed(stage, 7)


async def committed(stage: Stage, offset: int, lane: int = 0) -> None:
    """Until Kafka's own tools would say that the worker has finished so much."""
    group = stage.names.workers_group("cpu")
    reader = stage.log.reader("lag-tool", group=group)
    await reader.start()
    deadline = time.monotonic() + 10
    while (found := await reader.committed(TopicPartition(stage.names.work("cpu"), lane))) is None or found.offset != offset:
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.05)
    await reader.close()


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


async def test_unknown_and_broken_variants_are_failed_with_the_reason_and_the_rest_serves(memory: MemoryLog, prefix: str) -> None:
    backend = ScriptedBackend()
    backend.fail_load = {"broken": "not a model"}
    async with Stage(memory, prefix, backend) as stage:
        await stage.catalog(variant("broken"), variant("good"))
        await stage.plan(1, "ghost", "broken")
        await stage.until(lambda: stage.states() == {"ghost": "failed", "broken": "failed"})
        assert "not a model" in stage.worker.unready()
        assert stage.report.variants["fashion/ghost"].reason.startswith("unknown variant")
        await stage.plan(2, "ghost", "broken", "good")
        await stage.ready("good")
        assert stage.states() == {"ghost": "failed", "broken": "failed", "good": "ready"}
        await stage.send(stage.order("x", "good"), stage.order("y", "broken"))
        assert (await stage.answered("x"))[0].outcome == "completed"
        await stage.until(lambda: "y" in stage.returned)


async def test_a_model_that_does_not_run_is_failed_and_unloaded(memory: MemoryLog, prefix: str) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("illegal instruction")

    backend = ScriptedBackend(refuse)
    backend.armed = True
    async with Stage(memory, prefix, backend) as stage:
        await stage.catalog(variant("a"))
        await stage.plan(1, "a")
        await stage.until(lambda: stage.states() == {"a": "failed"})
        assert stage.report.variants["fashion/a"].reason == "illegal instruction"
        await stage.until(lambda: backend.unloaded == ["fashion/a"])


async def test_a_new_lane_is_read_from_its_end_and_the_old_one_for_a_while(log: Log, prefix: str) -> None:
    async with Stage(log, prefix, ScriptedBackend()) as stage:
        await stage.send(stage.order("before", "a"), lane=1)
        await serve(stage, "a")
        await stage.send(stage.order("x", "a"))
        await stage.plan(2, "a", lane=1)
        await stage.until(lambda: stage.report.lane == 1)
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


class Unreliable:
    """A writer that the log is away for, as long as `away` is set."""

    def __init__(self, writer: Any) -> None:
        self._writer, self.away = writer, False

    def write(self, topic: str, partition: int, messages: Any) -> Any:
        return self._refuse() if self.away and topic.endswith("responses") else self._writer.write(topic, partition, messages)

    async def _refuse(self) -> None:
        raise LogUnavailable("away")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)


async def unreliable(stage: Stage) -> Unreliable:
    writer = Unreliable(stage.worker._writer)
    stage.worker._answers._writer = writer
    return writer


async def test_answers_wait_for_the_log_and_late_ones_expire(memory: MemoryLog, prefix: str) -> None:
    async with Stage(memory, prefix, ScriptedBackend()) as stage:
        await serve(stage, "a")
        writer = await unreliable(stage)
        writer.away = True
        await stage.send(stage.order("soon", "a", deadline_in_ms=100), stage.order("later", "a", deadline_in_ms=60_000))
        await stage.until(lambda: stage.worker._answers.undelivered == 2)
        deadline_ms = time.time() * 1e3 + 130
        await stage.until(lambda: time.time() * 1e3 > deadline_ms)
        writer.away = False
        soon, later = await stage.answered("soon", "later")
        assert (soon.outcome, later.outcome) == ("expired", "completed")
        assert stage.worker._answers.undelivered == 0


async def test_a_log_that_stays_away_ends_the_worker(memory: MemoryLog, prefix: str) -> None:
    async with Stage(memory, prefix, ScriptedBackend(), delivery_ms_max=100.0, grace_ms=100) as stage:
        await serve(stage, "a")
        (await unreliable(stage)).away = True
        await stage.send(stage.order("x", "a"))
        with pytest.raises(LogUnavailable, match="1 answers could not be written for 100 ms"):
            await asyncio.wait_for(stage.running, 10)


async def test_an_answer_larger_than_a_record_fails(memory: MemoryLog, prefix: str) -> None:
    limits = msgspec.structs.replace(Limits(), record_bytes_max=4_000)
    async with Stage(memory, prefix, ScriptedBackend(), limits=limits) as stage:
        await serve(stage, "a")
        await stage.send(stage.order("big", "a", body=grey(1, 200), rows=200), stage.order("small", "a"))
        big, small = await stage.answered("big", "small")
        assert (big.outcome, big.error.code, small.outcome) == ("failed", "too_large", "completed")


async def test_a_full_queue_hands_back(memory: MemoryLog, prefix: str) -> None:
    gate = threading.Event()
    backend = ScriptedBackend(lambda *_: gate.wait(5))
    limits = msgspec.structs.replace(Limits(), worker_queue_rows_max=2)
    async with Stage(memory, prefix, backend, limits=limits) as stage:
        await serve(stage, "a")
        backend.armed = True
        await stage.send(stage.order("run", "a"))
        await stage.until(lambda: backend.calls)
        await stage.send(*(stage.order(str(n), "a") for n in range(4)))
        await stage.until(lambda: stage.returned)
        gate.set()
        assert stage.returned == dict.fromkeys(("2", "3"), "the queue is full")
        await stage.answered("run", "0", "1")


async def test_the_device_is_asked_before_anything_is_promised(memory: MemoryLog, prefix: str) -> None:
    class Absent(ScriptedBackend):
        def describe(self) -> Any:
            raise RuntimeError("no such device")

    async with Stage(memory, prefix, Absent()) as stage:
        with pytest.raises(RuntimeError, match="no such device"):
            await asyncio.wait_for(stage.running, 10)
        assert stage.reports == []


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

"""A worker that meets bad input, broken backends, broken models and a log that is away."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from worker_stage import BLANK, ScriptedBackend, Stage, committed, grey, image_body, serve, variant

from broker.memory import MemoryLog
from schemas.errors import DeviceUnavailable, LogUnavailable
from schemas.limits import Limits
from workers.backend import Device
from workers.serving import Hung


@pytest.fixture
async def memory() -> AsyncIterator[MemoryLog]:
    made = MemoryLog()
    yield made
    await made.close()


def on_value(value: int, act: Callable[[], None]) -> Callable[[str, Any, int], None]:
    """Act where an image of this level is in the batch."""
    return lambda _key, inputs, _rows: act() if (inputs["image"].reshape(len(inputs["image"]), -1)[:, 0] == value).any() else None


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


class Leaving(ScriptedBackend):
    """A device that may go, and come back."""

    gone = ""

    def describe(self) -> Device:
        if self.gone:
            raise DeviceUnavailable(self.gone)
        return super().describe()


async def test_an_idle_device_that_goes_is_told_of_and_used_again_when_it_is_back(memory: MemoryLog, prefix: str) -> None:
    backend = Leaving()
    async with Stage(memory, prefix, backend, look_ms=50.0) as stage:
        await serve(stage, "a")
        backend.gone = "somebody tripped over the cable"
        await stage.until(lambda: stage.report.reason == backend.gone)
        await stage.send(stage.order("1", "a"))
        await stage.until(lambda: "1" in stage.returned)
        backend.gone = ""
        await stage.until(lambda: stage.report.state == "ready" and not stage.report.reason)
        await stage.send(stage.order("2", "a"))
        assert (await stage.answered("2"))[0].outcome == "completed"


async def test_late_is_never_completed(memory: MemoryLog, prefix: str) -> None:
    backend = ScriptedBackend(lambda _key, inputs, _rows: time.sleep(0.15) if inputs["image"][0, 0, 0, 0] == 1 else None)
    async with Stage(memory, prefix, backend) as stage:
        await serve(stage, "a")
        backend.armed = True
        await stage.send(stage.order("slow", "a", body=grey(1), deadline_in_ms=100), stage.order("past", "a", deadline_in_ms=-1))
        await stage.until(lambda: backend.calls)
        await stage.send(stage.order("tight", "a", deadline_in_ms=60))
        slow, past = await stage.answered("slow", "past")
        assert {answer.outcome for answer in (slow, past)} == {"expired"}
        assert {answer.error.code for answer in (slow, past)} == {"deadline_exceeded"}
        assert "ended after the deadline" in slow.error.message


async def test_what_cannot_be_met_here_is_handed_back_while_another_may_still_meet_it(memory: MemoryLog, prefix: str) -> None:
    backend = ScriptedBackend(lambda _key, inputs, _rows: time.sleep(0.15) if inputs["image"][0, 0, 0, 0] == 1 else None)
    async with Stage(memory, prefix, backend) as stage:
        await serve(stage, "a")
        backend.armed = True
        await stage.send(stage.order("slow", "a", body=grey(1), deadline_in_ms=1000))
        await stage.until(lambda: backend.calls)
        deadline_ms = time.time() * 1000 + 60
        await stage.send(stage.order("tight", "a", deadline_in_ms=60))
        await stage.until(lambda: stage.returned)
        assert time.time() * 1000 < deadline_ms, "a timer drops it while the device computes"
        assert stage.returned == {"tight": "it could not finish in time here, even if it started now"}


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


async def test_orders_that_are_not_for_this_worker_now(memory: MemoryLog, prefix: str) -> None:
    async with Stage(memory, prefix, ScriptedBackend()) as stage:
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
    stage.worker._answers._delivery._writer = writer
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


HANGING = """
import asyncio, sys, threading
sys.path.insert(0, sys.argv[1])
from worker_stage import ScriptedBackend, Stage, serve
from broker.memory import MemoryLog

async def main():
    backend = ScriptedBackend(lambda *_: threading.Event().wait())
    async with Stage(MemoryLog(), "hang", backend, hang_ms_min=200.0) as stage:
        await serve(stage, "a")
        backend.armed = True
        await stage.send(stage.order("x", "a"))
        await stage.running

asyncio.run(main())
"""


def test_a_process_whose_device_hangs_ends_with_an_error() -> None:
    ended = subprocess.run([sys.executable, "-c", HANGING, str(Path(__file__).parent)], capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert "Hung: a batch of fashion/a has been on the device" in ended.stderr.splitlines()[-1]

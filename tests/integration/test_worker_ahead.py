"""A worker whose backend takes two batches at once: the second waits ready; what is lost with the device is handed back once."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest
from worker_stage import ScriptedBackend, Stage, grey, serve

from broker.memory import MemoryLog
from schemas.errors import DeviceUnavailable
from schemas.telemetry import BoardState
from workers.backend import Tensors

ROWS = 4


@pytest.fixture
async def memory() -> AsyncIterator[MemoryLog]:
    made = MemoryLog()
    yield made
    await made.close()


class InTurn(ScriptedBackend):
    """Takes two batches, computes one after the other, each for 30 ms; until `go` is set none comes back."""

    batches_at_once = 2

    def __init__(self) -> None:
        super().__init__()
        self.go, self._fabric, self.inside, self.most = threading.Event(), threading.Lock(), 0, 0
        self.lost = False

    def infer(self, key: str, inputs: Tensors, rows: int) -> Tensors:
        if not self.armed:
            return super().infer(key, inputs, rows)
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            with self._fabric:
                assert self.go.wait(10)
                if self.lost:
                    raise DeviceUnavailable("the board is gone")
                time.sleep(0.03)
                return super().infer(key, inputs, rows)
        finally:
            self.inside -= 1


def orders(stage: Stage, count: int) -> dict[str, object]:
    return {f"{number}": stage.order(f"{number}", "a", body=grey(number)) for number in range(count)}


async def test_the_next_full_batch_is_there_while_one_computes(memory: MemoryLog, prefix: str) -> None:
    backend = InTurn()
    async with Stage(memory, prefix, backend) as stage:
        await serve(stage, "a", batch_size_max=ROWS)
        backend.armed = True
        sent = orders(stage, 5 * ROWS)
        await stage.send(*sent.values())
        await stage.until(lambda: backend.inside == 2)
        backend.go.set()
        for answer in await stage.answered(*sent):
            assert answer.outcome == "completed"
            assert answer.outputs[0].data[0] == float(answer.id), "its own image's"
            # Not what it waited for the batch in front, which is as long again.
            assert answer.path[0].computed_ms < 55 or answer.path[0].batch_size < ROWS, answer.path
        assert backend.most == 2
        assert all(len(answers) == 1 for answers in stage.answers.values())


async def test_a_device_that_is_lost_hands_both_batches_back_once(memory: MemoryLog, prefix: str) -> None:
    backend = InTurn()
    async with Stage(memory, prefix, backend) as stage:
        await serve(stage, "a", batch_size_max=ROWS)
        backend.armed = True
        sent = orders(stage, 3 * ROWS)
        await stage.send(*sent.values())
        await stage.until(lambda: backend.inside == 2)
        backend.lost = True
        backend.go.set()
        await stage.until(lambda: len(stage.returned) == len(sent))
        assert set(stage.returned.values()) == {"the board is gone"}
        assert not stage.answers
        backend.lost = False
        await stage.until(lambda: stage.report.state == "ready" and not stage.report.reason)
        again = orders(stage, 3 * ROWS)
        await stage.send(*again.values())
        assert {answer.outcome for answer in await stage.answered(*again)} == {"completed"}


class WithOverlays(ScriptedBackend):
    """A board on which each variant is an overlay of its own."""

    def __init__(self) -> None:
        super().__init__(lambda _key, _inputs, _rows: time.sleep(0.01))

    def board_state(self) -> BoardState:
        return BoardState(overlay="one of them", reconfiguration_ms=100.0)

    def set_clock(self, clock_mhz: float | None) -> None:
        assert clock_mhz is None


async def test_a_board_does_not_change_its_overlay_with_each_batch(memory: MemoryLog, prefix: str) -> None:
    backend = WithOverlays()
    async with Stage(memory, prefix, backend) as stage:
        await serve(stage, "a", "b", batch_size_max=1)
        backend.armed = True
        await stage.send(stage.order("first", "a"))
        await stage.answered("first")
        # By their deadlines alone they would take turns.
        sent = {f"{number}": stage.order(f"{number}", "ab"[number % 2], deadline_in_ms=5_000 + 10 * number) for number in range(12)}
        await stage.send(*sent.values())
        assert {answer.outcome for answer in await stage.answered(*sent)} == {"completed"}
        variants = [key for key, _ in backend.calls]
        assert sum(before != after for before, after in pairwise(variants)) == 1, variants

"""What holds for every request, whatever died meanwhile; and a client that keeps asking."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from foreign import ForeignClient, image_tensor
from running_stack import EXAMPLE

FLOORS = (0.0, 0.85, 0.9, 0.93)


def load_images() -> tuple[np.ndarray, np.ndarray]:
    """Images and their labels."""
    with np.load(EXAMPLE / "test-2000.npz") as arrays:
        return arrays["images"], arrays["labels"]


class Kept:
    """The first answer of each request."""

    def __init__(self, first: dict[str, tuple[dict[str, Any], int]]) -> None:
        self.first = {request_id: answer for request_id, (answer, _) in first.items()}
        self.written_ms = {request_id: written_ms for request_id, (_, written_ms) in first.items()}
        self.outcomes = Counter((answer["outcome"], answer.get("error", {}).get("code", "")) for answer in self.first.values())
        self.completed = {request_id: answer for request_id, answer in self.first.items() if answer["outcome"] == "completed"}


def check_promises(client: ForeignClient, floors: Mapping[str, float], *, within_s: float, graph: bool = False) -> Kept:
    """Each request (its id, its floor) has one outcome, the same in the log and in the store; none completed late or below its floor."""
    stored = client.until_stored(floors, within_s=within_s)
    first = {request_id: answer for request_id, answer in client.first_answers().items() if request_id in floors}
    missing = [request_id for request_id in floors if request_id not in first]
    assert not missing, f"{len(missing)} of {len(floors)} requests have no terminal record, as {missing[:5]}"
    for request_id, (answer, written_ms) in first.items():
        assert stored[request_id] == answer, f"{request_id}: the store holds another answer than the first record"
        if answer["outcome"] == "completed":
            assert answer["finished_ms"] <= answer["deadline_ms"], answer
            assert answer["accuracy"] >= floors[request_id], answer
            assert graph or answer["path"][-1]["accuracy"] == answer["accuracy"], answer
        else:
            assert answer["error"]["code"], answer
        assert written_ms >= answer["received_ms"]
    return Kept(first)


@contextmanager
def beside(run: Callable[[], None], ended: threading.Event) -> Iterator[None]:
    """`run` on a thread of its own; `ended` is set, and the thread waited for, when the context is left."""
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Traffic:
    """Requests at a steady rate from a thread of its own, as long as the context lasts."""

    def __init__(self, client: ForeignClient, name: str, *, timeout_ms: int, rate_rps: float) -> None:
        self._client, self._name, self._timeout_ms, self._pause_s = client, name, timeout_ms, 1.0 / rate_rps
        self.floors: dict[str, float] = {}
        self.sent_ms: dict[str, float] = {}
        self._bodies = [json.dumps(image_tensor(image[None])) for image in load_images()[0][:50]]
        self._ended = threading.Event()

    @contextmanager
    def flowing(self) -> Iterator[None]:
        with beside(self._run, self._ended):
            yield
        self._client.flush()
        assert not self._client.unsent

    def _run(self) -> None:
        chance = random.Random(self._name)
        due_s = time.monotonic()
        while not self._ended.wait(max(due_s - time.monotonic(), 0.0)):
            number = len(self.floors)
            request_id, floor = f"{self._name}-{number}", chance.choice(FLOORS)
            tensor = self._bodies[number % len(self._bodies)]
            self.sent_ms[request_id] = time.time() * 1e3
            self.floors[request_id] = floor
            text = f'{{"endpoint":"fashion","min_accuracy":{floor},"timeout_ms":{self._timeout_ms},"inputs":[{tensor}]}}'
            self._client.publish(request_id, text.encode())
            due_s += self._pause_s

    def check(self, *, within_s: float = 60.0) -> Kept:
        return check_promises(self._client, self.floors, within_s=within_s)

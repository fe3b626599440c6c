"""A backend as whoever makes a variant ready beside the served ones sees it: what is measured has the device to itself, batch by batch."""

from __future__ import annotations

import time
from concurrent.futures import Future
from pathlib import Path

from schemas.catalog import VariantSpec
from workers.backend import Backend, Device, Loaded, Tensors
from workers.device_thread import DeviceThread


class InTurns:
    """Call it from any other thread than the device's.

    The first batch of each size, which is slow, runs at once, beside whatever is on the device. Each later one waits for its turn on the device
    thread: a served variant is kept waiting for one batch at most, and what is measured is not measured while another one computes.
    """

    def __init__(self, backend: Backend, thread: DeviceThread) -> None:
        self._backend, self._thread = backend, thread
        self._ran: set[tuple[str, int]] = set()
        self._waited_s = 0.0

    def clock(self) -> float:
        """Seconds, without those that were spent waiting for a turn."""
        return time.perf_counter() - self._waited_s

    def describe(self) -> Device:
        return self._backend.describe()

    def load(self, key: str, spec: VariantSpec, file: Path, *, batch_size_max: int, threads: int) -> Loaded:
        return self._backend.load(key, spec, file, batch_size_max=batch_size_max, threads=threads)

    def infer(self, key: str, inputs: Tensors, rows: int) -> Tensors:
        if (key, rows) not in self._ran:
            self._ran.add((key, rows))
            return self._backend.infer(key, inputs, rows)
        asked_s = time.perf_counter()
        outputs, spent_s = self._on_device(key, inputs, rows).result()
        self._waited_s += time.perf_counter() - asked_s - spent_s
        return outputs

    def unload(self, key: str) -> None:
        self._backend.unload(key)

    def _on_device(self, key: str, inputs: Tensors, rows: int) -> Future[tuple[Tensors, float]]:
        came: Future[tuple[Tensors, float]] = Future()

        def run() -> None:
            began_s = time.perf_counter()
            try:
                came.set_result((self._backend.infer(key, inputs, rows), time.perf_counter() - began_s))
            except BaseException as error:  # it belongs to whoever waits
                came.set_exception(error)

        self._thread.submit(run, _told)
        return came


def _told(_result: None, _error: BaseException | None) -> None:
    """Whoever waits was told on the thread."""

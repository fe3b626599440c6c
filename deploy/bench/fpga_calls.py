# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportAttributeAccessIssue=false
# (pynq carries no types, and is installed in an environment of its own)
"""A program of the benchmark: batches through the FPGA backend and through pynq's calls alone, in turn, on two boards that are alike.

The backend gets them as a worker gives them to it: one by one where there is little to do, and under load from as many threads as it allows.

`python -m deploy.bench.fpga_calls SETTINGS`; pynq's clocks belong to one device for the life of a process: each transport is a process of its own.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil

from deploy.bench.harness import announce, pin
from deploy.demo.boards import PACKAGE
from deploy.demo.play import Labelled
from schemas.catalog import VariantSpec
from workers.backend import BackendOptions, batches_at_once
from workers.fpga.backend import FpgaBackend
from workers.fpga.emulator.board import Counters
from workers.fpga.emulator.files import COUNTERS_FILE
from workers.fpga.flows import StreamDma
from workers.fpga.manifest import Package, sink_spec, source_spec
from workers.fpga.package_file import read_variant_model
from workers.fpga.registers_map import AP_START, CONTROL, ROWS

ROWS_A_BATCH = 32
BLOCK, KEPT = 10, 8
"""Batches of each in a row, and how many of them count."""
WARM_UP_TURNS = 3
Batch = np.ndarray[Any, Any]
Call = Callable[[Batch], Batch]
Block = Callable[[Sequence[Batch]], tuple[list[Batch], list[float]]]
"""Batches in a row -> their answers, and milliseconds: of each batch that counts, or one figure for all of them."""


class CallSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure."""

    ready: str
    result: str
    boards: tuple[str, ...]
    """Two addresses: of the board for pynq alone, and of the backend's; none: both are emulated in the process that drives them."""
    batches: int
    cache: str
    cores: tuple[int, ...] = ()
    """One for this program, one for the process that drives the backend's board; none: wherever there is room."""


class CallResult(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds of each batch, by who computed it; and what a batch cost the backend's board, where it is behind PYNQ.remote."""

    by_hand_ms: tuple[float, ...]
    driver_ms: tuple[float, ...]
    alone_ms: tuple[float, ...]
    """Of the backend, where the next batch comes when one is done."""
    loaded_ms: tuple[float, ...]
    """Of the backend under load: the mean time of a batch in each block."""
    registers: float = 0.0
    """Read and written."""
    calls: float = 0.0
    """RPCs."""


class BarePynq:
    """A board driven by pynq's calls and nothing else, in this process: with few register accesses, or as pynq's documentation does it."""

    def __init__(self, target: str, package: Package, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of every processor that is no Zynq
            import pynq  # noqa: PLC0415 - only in this environment
            import pynq.lib.dma  # noqa: PLC0415
        device = _device(target)
        pynq.Device.active_device = device
        manifest = package.manifest
        for suffix, data in ((".bit", package.bit), (".hwh", package.hwh)):
            (folder / f"bare{suffix}").write_bytes(data)
        self._overlay = pynq.Overlay(str(folder / "bare.bit"), device=device)
        pynq.Clocks.fclk0_mhz = manifest.clock_mhz
        self._dma, self._accelerator = getattr(self._overlay, manifest.ips["dma"]), getattr(self._overlay, manifest.ips["accelerator"])
        self._engine = StreamDma(self._dma, self._accelerator)
        self._post, width, classes = manifest.post, manifest.source.packing().elements, manifest.sink.packing().elements
        self._source = pynq.allocate((ROWS_A_BATCH, width), np.uint8, target=device)
        self._sink = pynq.allocate((ROWS_A_BATCH, classes), np.int32, target=device)
        self._addresses = (int(self._source.physical_address), int(self._sink.physical_address))

    def by_hand(self, images: Batch) -> Batch:
        """The calls that the backend makes, and no others."""
        self._source[:] = images.reshape(self._source.shape)
        self._source.flush()
        self._engine.start(self._addresses, ROWS_A_BATCH, (self._source.nbytes, self._sink.nbytes))
        while not self._engine.done():
            pass
        self._engine.check(self._sink.nbytes)
        self._sink.invalidate()
        return self._post.apply(np.array(self._sink))

    def driver(self, images: Batch) -> Batch:
        """Through pynq's DMA driver: transfers and waits."""
        self._source[:] = images.reshape(self._source.shape)
        self._source.flush()
        self._accelerator.write(ROWS, ROWS_A_BATCH)
        self._accelerator.write(CONTROL, AP_START)
        self._dma.recvchannel.transfer(self._sink)
        self._dma.sendchannel.transfer(self._source)
        self._dma.sendchannel.wait()
        self._dma.recvchannel.wait()
        self._sink.invalidate()
        return self._post.apply(np.array(self._sink))


def _device(target: str) -> Any:
    if target:
        from pynq.pl_server.remote_device import RemoteDevice  # noqa: PLC0415

        return RemoteDevice(0, target)
    from workers.fpga.emulator.board import BoardSettings, EmulatedBoard  # noqa: PLC0415
    from workers.fpga.emulator.device import EmulatedDevice  # noqa: PLC0415

    return EmulatedDevice(EmulatedBoard(BoardSettings()))


def counted(target: str) -> Counters:
    """What happened on the board so far, this question included."""
    return msgspec.json.decode(_device(target).read_file(COUNTERS_FILE), type=Counters)


def through_backend(target: str, package: Package, data: bytes, folder: Path) -> tuple[FpgaBackend, Call]:
    """The same batch as a worker computes it."""
    backend = FpgaBackend(BackendOptions(accelerator="fpga", device=target or "emulated", cache_folder=folder))
    source, sink = source_spec(package.manifest), sink_spec(package.manifest)
    spec = VariantSpec(name="fashion", file=PACKAGE.name, sha256="", accuracy=0.8, accelerators=("fpga",), inputs=(source,), outputs=(sink,))
    (folder / PACKAGE.name).write_bytes(data)
    backend.load("bench", spec, folder / PACKAGE.name, batch_size_max=ROWS_A_BATCH, threads=1)
    return backend, lambda images: np.asarray(backend.infer("bench", {source.name: images}, ROWS_A_BATCH)[sink.name])


def measure(settings: CallSettings, folder: Path) -> CallResult:
    """Raises ValueError where they do not all answer the same."""
    data = PACKAGE.read_bytes()
    package = read_variant_model(data, PACKAGE.name)
    images = Labelled().images
    targets = settings.boards or ("", "")
    bare = BarePynq(targets[0], package, folder)
    backend, ours = through_backend(targets[1], package, data, folder)
    for process, core in zip((psutil.Process(), *psutil.Process().children()), settings.cores, strict=False):
        pin(process.pid, (core,))
    spent: dict[str, list[float]] = {"by_hand_ms": [], "driver_ms": [], "alone_ms": [], "loaded_ms": []}
    before = after = question = Counters()
    with ThreadPoolExecutor(batches_at_once(backend)) as pool:
        blocks = (one_by_one(bare.by_hand), one_by_one(bare.driver), one_by_one(ours), at_once(ours, pool, batches_at_once(backend)))
        try:
            for turn in range(-WARM_UP_TURNS, settings.batches // KEPT):
                if settings.boards and not turn:
                    before, question = counted(targets[1]), counted(targets[1])
                _turn(turn, images, blocks, list(spent.values()))
            after = counted(targets[1]) if settings.boards else after
        finally:
            backend.close()
    asked, batches = question.calls - before.calls, 2 * (settings.batches // KEPT) * BLOCK
    return CallResult(
        **{name: tuple(times) for name, times in spent.items()},
        registers=(after.reads + after.writes - before.reads - before.writes) / batches,
        calls=(after.calls - before.calls - 2 * asked) / batches,
    )


def one_by_one(call: Call) -> Block:
    """The next one when one is done."""

    def block(batches: Sequence[Batch]) -> tuple[list[Batch], list[float]]:
        answers: list[Batch] = []
        times: list[float] = []
        for batch in batches:
            started_s = time.perf_counter()
            answers.append(call(batch))
            times.append((time.perf_counter() - started_s) * 1e3)
        return answers, times[-KEPT:]

    return block


def at_once(call: Call, pool: ThreadPoolExecutor, count: int) -> Block:
    """So many under way, as a worker under load keeps them: each thread takes the next one when its own is done."""

    def block(batches: Sequence[Batch]) -> tuple[list[Batch], list[float]]:
        answers: dict[int, Batch] = {}
        ended_s: list[float] = []
        numbers = iter(range(len(batches)))

        def take_turns() -> None:
            for number in numbers:
                answers[number] = call(batches[number])
                ended_s.append(time.perf_counter())

        for thread in [pool.submit(take_turns) for _ in range(count)]:
            thread.result()
        ended_s.sort()
        return [answers[number] for number in range(len(batches))], [(ended_s[-1] - ended_s[-1 - KEPT]) * 1e3 / KEPT]

    return block


def _turn(turn: int, images: Batch, blocks: Sequence[Block], times: Sequence[list[float]]) -> None:
    """A few batches in a row of each; the first ones fetch what the others drove out of the processor's caches."""
    at = turn * BLOCK * ROWS_A_BATCH
    places = [(at + ROWS_A_BATCH * number) % (len(images) - ROWS_A_BATCH) for number in range(BLOCK)]
    batches = [images[place : place + ROWS_A_BATCH] for place in places]
    answers: list[list[Batch]] = [[] for _ in blocks]
    for offset in range(len(blocks)):
        index = (turn + offset) % len(blocks)
        answers[index], spent_ms = blocks[index](batches)
        if turn >= 0:
            times[index].extend(spent_ms)
    if not all(np.array_equal(first, other) for some in answers[1:] for first, other in zip(answers[0], some, strict=True)):
        raise ValueError("the backend answers something else than pynq alone")


def main() -> None:
    """Measure, write the result, end."""
    settings = msgspec.json.decode(sys.argv[1], type=CallSettings)
    announce(settings.ready)
    with tempfile.TemporaryDirectory(prefix="headrace-fpga-", dir=settings.cache) as folder:
        result = measure(settings, Path(folder))
    announce(settings.result, result)


if __name__ == "__main__":
    main()

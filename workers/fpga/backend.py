"""The FPGA backend: variants are packages (bitfile, hand-off file, manifest), computed through genuine pynq in a process of its own."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from pathlib import Path
from queue import SimpleQueue

import msgspec
import structlog

from schemas.catalog import VariantSpec
from schemas.errors import DeviceUnavailable, ModelRefused
from schemas.telemetry import BoardState
from workers.backend import BackendOptions, Device, Loaded, Tensors
from workers.feeds import Feeds
from workers.fpga import board_messages as say
from workers.fpga.board_keeper import BoardKeeper
from workers.fpga.board_process import BoardProcess, Turn
from workers.fpga.boards import BoardChoice, read_choice
from workers.fpga.errors import BoardLost
from workers.fpga.latency_line import LatencyLine
from workers.fpga.manifest import Manifest, Package, check_fits
from workers.fpga.package_file import read_variant_model
from workers.fpga.packing import Array, Packing
from workers.onnx_files import read_variant

logger = structlog.get_logger()
LOAD_MS_MAX = 110_000.0
LOOK_MS_MAX = 2_000.0
"""A board that does not say by then how it is has died or hangs."""
MARGIN_MS = 250.0
"""Beyond the accelerator's own deadline: for getting tensors to the board and back."""
SWITCH_FACTOR, SWITCH_MS_FLOOR = 4.0, 2_000.0
"""A change of overlays has so many times what the last one took, and this beside it."""
LOOK_EARLY = 0.85
"""The first look at the board comes at this part of what a batch is expected to take."""


class _Variant(msgspec.Struct, eq=False):
    order: say.Load
    manifest: Manifest
    feeds: Feeds
    source: Packing
    sink: Packing
    latency: LatencyLine
    generation: int
    """Of the board's process that has it; another one must load it again."""


class FpgaBackend:
    """One board. `--device` says which: an address (PYNQ.remote), `emulated`, or nothing for the board that this runs on."""

    batches_at_once = say.SLOTS
    """One is packed, or its results are read, while the board computes another one."""

    def __init__(self, options: BackendOptions) -> None:
        self._choice: BoardChoice = read_choice(options.device)
        self._folder = (options.cache_folder or Path(tempfile.gettempdir()) / "headrace-fpga") / "fpga" / self._choice.folder_name
        order = say.Open(target=self._choice.target, board=self._choice.settings, cache_folder=str(self._folder.parent / "rtl"))
        self._keeper = BoardKeeper(order, self._folder)
        self._variants: dict[str, _Variant] = {}
        self._state = BoardState()
        self._clock_mhz = 0.0
        self._slots: SimpleQueue[int] = SimpleQueue()
        """The free ones."""
        for slot in range(self.batches_at_once):
            self._slots.put(slot)
        self._placing, self._ordering, self._telling = threading.Lock(), threading.Lock(), threading.Lock()
        self._ordered = (0, "")
        """Generation and overlay of what the board's process was asked for last."""

    def describe(self) -> Device:
        """Raises DeviceUnavailable (BoardLost) while the board is away or not as it was left; one that is back has its variants then."""
        opened = self._keeper.open()
        process = self._keeper.process()
        self._ask(process, say.Tell(), LOOK_MS_MAX)
        for variant in list(self._variants.values()):
            self._place(process, variant)
        return Device(accelerator="fpga", name=opened.device, runtime=opened.runtime)

    def load(self, key: str, spec: VariantSpec, file: Path, *, batch_size_max: int, threads: int) -> Loaded:
        del threads  # the fabric has none
        started = time.perf_counter()
        model = read_variant(spec, file)
        package = read_variant_model(model.data, file.name)
        manifest = package.manifest
        check_fits(manifest, model.spec, batch_size_max)
        opened = self._keeper.open()
        _check_board(package, opened, spec.name)
        source, sink = manifest.source.packing(), manifest.sink.packing()
        order = self._order(key, package, source, sink, batch_size_max)
        variant = _Variant(order, manifest, Feeds(model.spec), source, sink, LatencyLine(), -1)
        loaded = self._place(self._keeper.process(), variant)
        assert loaded is not None
        self._variants[key] = variant
        return Loaded(
            spec=model.spec,
            device=f"{opened.device}, overlay {manifest.bitfile_sha256[:12]} at {loaded.clock_mhz:.4g} MHz",
            memory_bytes=loaded.memory_bytes,
            load_ms=(time.perf_counter() - started) * 1e3,
        )

    def infer(self, key: str, inputs: Tensors, rows: int) -> Tensors:
        """Raises BoardLost where the board hangs or is gone; the batch has then no result, here or later."""
        variant = self._variants.get(key)
        if variant is None:
            raise KeyError(f"variant {key!r} is not loaded")
        if not 1 <= rows <= variant.order.rows_max:
            raise ValueError(f"{rows} rows: variant {key!r} was loaded for up to {variant.order.rows_max}")
        (array,) = variant.feeds.take(inputs, rows).values()
        if array.shape[1:] != variant.source.shape:
            raise ValueError(
                f"input {variant.manifest.source.name!r} has rows of shape {list(array.shape[1:])}, expected {list(variant.source.shape)}"
            )
        process = self._keeper.process()
        self._place(process, variant)
        slot = self._slots.get()
        try:
            return self._through(process, variant, array, slot)
        finally:
            self._slots.put(slot)

    def _through(self, process: BoardProcess, variant: _Variant, array: Array, slot: int) -> Tensors:
        """One batch through this slot of the memory that the process shares. Raises BoardLost."""
        rows, source, sink, post = array.shape[0], variant.source, variant.sink, variant.manifest.post
        source_area, sink_area = process.areas[slot]
        source.pack(array, source_area[: rows * source.row_bytes].reshape(rows, source.row_bytes))
        packed = sink_area[: rows * sink.row_bytes].reshape(rows, sink.row_bytes)
        deadline_ms = variant.latency.deadline_ms(rows)
        order = say.Run(
            key=variant.order.key,
            rows=rows,
            slot=slot,
            expected_ms=LOOK_EARLY * (variant.latency.expected_ms(rows) or 0.0),
            deadline_ms=deadline_ms,
            twice=self._choice.twice,
            clock_mhz=self._clock_mhz,
        )
        turn, switch_ms = self._send(process, variant, order)
        ran = self._receive(process, turn, (2 if self._choice.twice else 1) * deadline_ms + MARGIN_MS + switch_ms)
        assert isinstance(ran, say.Ran)
        with self._telling:
            self._seen(variant, ran.clock_mhz, ran.switched_ms, (ran.temperature_celsius, ran.power_watts))
            variant.latency.observe(rows, ran.accelerator_ms, looks=ran.polls)
        # The next batch is written over what is there: only what post-processing makes anew needs no copy.
        values = sink.unpack(packed) if post.as_it_is else sink.view(packed)
        return {variant.manifest.sink.name: post.apply(values)}

    def unload(self, key: str) -> None:
        if self._variants.pop(key, None) is None:
            return
        with contextlib.suppress(DeviceUnavailable):  # where the board is lost, so is what it held
            self._ask(self._keeper.process(), say.Unload(key=key), LOAD_MS_MAX)

    def tell(self) -> say.Told:
        """Clock, temperature, power and overlay of the board now. Raises BoardLost."""
        told = self._ask(self._keeper.process(), say.Tell(), LOAD_MS_MAX)
        assert isinstance(told, say.Told)
        return told

    def board_state(self) -> BoardState:
        """As of the last batch or load."""
        return self._state

    def set_clock(self, clock_mhz: float | None) -> None:
        """From the next batch on; not above what a variant's design says."""
        self._clock_mhz = clock_mhz or 0.0

    @property
    def away(self) -> str:
        """Why the board cannot be used now; empty while it can."""
        return self._keeper.reason

    def close(self) -> None:
        """Give the board back."""
        self._keeper.close()

    def _send(self, process: BoardProcess, variant: _Variant, order: say.Request) -> tuple[Turn, float]:
        """Also milliseconds for the change of overlays that comes first, where another one was asked for last: as such changes took, with room."""
        overlay = variant.manifest.bitfile_sha256
        with self._ordering:
            last, self._ordered = self._ordered, (process.generation, overlay)
            turn = process.send(order)
        return turn, 0.0 if last == self._ordered else SWITCH_MS_FLOOR + SWITCH_FACTOR * self._state.reconfiguration_ms

    def _seen(self, variant: _Variant, clock_mhz: float, switched_ms: float, sensors: tuple[float, float]) -> None:
        """`sensors`: degrees Celsius, watts."""
        state, overlay, clock_mhz = self._state, variant.manifest.bitfile_sha256, round(clock_mhz, 3)
        known = (state.overlay, state.clock_mhz, (state.temperature_celsius, state.power_watts))
        if (overlay, clock_mhz, sensors) == known and not switched_ms:
            return
        self._state = BoardState(
            overlay=overlay,
            clock_mhz=clock_mhz,
            temperature_celsius=sensors[0],
            power_watts=sensors[1],
            reconfiguration_ms=round(switched_ms or state.reconfiguration_ms, 1),
        )

    def _place(self, process: BoardProcess, variant: _Variant) -> say.Loaded | None:
        """Bring it onto the board; None where it is there. Raises ModelRefused, BoardLost."""
        if variant.generation == process.generation:
            return None
        with self._placing:
            if variant.generation == process.generation:
                return None
            turn, _ = self._send(process, variant, variant.order)
            reply = self._receive(process, turn, LOAD_MS_MAX)
            assert isinstance(reply, say.Loaded)
            variant.generation = process.generation
            with self._telling:
                self._seen(variant, reply.clock_mhz, reply.reconfigured_ms, (self._state.temperature_celsius, self._state.power_watts))
            return reply

    def _ask(self, process: BoardProcess, request: say.Request, timeout_ms: float) -> say.Reply:
        return self._receive(process, process.send(request), timeout_ms)

    def _receive(self, process: BoardProcess, turn: Turn, timeout_ms: float) -> say.Reply:
        try:
            reply = process.receive(turn, timeout_ms)
        except BoardLost as error:
            self._keeper.lost(process, str(error))
            raise
        if isinstance(reply, say.Refused):
            raise ModelRefused(reply.reason)
        return reply

    def _order(self, key: str, package: Package, source: Packing, sink: Packing, rows_max: int) -> say.Load:
        manifest = package.manifest
        if max(source.row_bytes, sink.row_bytes) * rows_max > say.AREA_BYTES:
            raise ModelRefused(f"{manifest.design}: {rows_max} rows take more than {say.AREA_BYTES} bytes: bind it with smaller batches")
        # Boards keep bitfiles by name: under its hash, one is never taken for another.
        bitfile = self._store(f"{manifest.bitfile_sha256}.bit", package.bit)
        self._store(f"{manifest.bitfile_sha256}.hwh", package.hwh)
        weights = tuple((one.ip, str(self._store(f"{one.sha256}.weights", package.weights[one.sha256]))) for one in manifest.weights)
        return say.Load(
            key=key,
            bitfile=str(bitfile),
            flow=manifest.flow,
            ips=manifest.ips,
            source_row_bytes=source.row_bytes,
            sink_row_bytes=sink.row_bytes,
            rows_max=rows_max,
            clock_mhz=manifest.clock_mhz,
            weights=weights,
        )

    def _store(self, name: str, data: bytes) -> Path:
        """Whole or not at all, and again each time: nobody else's file is trusted."""
        folder = self._folder / "overlays"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(prefix=".storing-", dir=folder)
            with os.fdopen(descriptor, "wb") as handle:
                handle.write(data)
            target = folder / name
            Path(temporary).replace(target)
        except OSError as error:
            raise DeviceUnavailable(f"bitfiles are kept in {folder}, and it cannot be written: {error.strerror}") from error
        return target


def _check_board(package: Package, opened: say.Opened, name: str) -> None:
    if package.emulated != (opened.kind == "emulated"):
        wanted = "an emulated board" if package.emulated else "a real board"
        raise ModelRefused(f"{name}: its bitfile is for {wanted}, and this is {opened.device}")
    if opened.part and opened.part != package.manifest.part:
        raise ModelRefused(f"{name}: its bitfile is for part {package.manifest.part}, and {opened.device} has {opened.part}")

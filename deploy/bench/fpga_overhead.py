"""Rows: what the FPGA worker adds to a batch of 32 rows over pynq's calls alone, on the board's own machine and through PYNQ.remote."""

from __future__ import annotations

import importlib.util
from statistics import fmean, median

import msgspec

from deploy.bench.fpga_calls import KEPT, ROWS_A_BATCH, CallResult, CallSettings
from deploy.bench.harness import BenchmarkFailed, Cores, Crew, Harness
from deploy.bench.rows import Figure, Measured, Sample, Say, Scale
from deploy.local.boards import free_addresses
from workers.fpga.emulator.board import BoardSettings

BATCHES, RESULT_S_MAX = 300, 240.0
IN_PROCESS_MAX, REMOTE_MAX = 1.15, 1.05
REGISTERS_MAX, CALLS_MAX = 24, 12
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
"""The board that is emulated in the program computes as the backend's does; the threads of a pool would go on spinning beside the backend."""
BY_HAND, DRIVER = "the same calls of pynq, by hand", "pynq's own DMA driver"


class BoardServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Of one emulated board behind PYNQ.remote (as its own module has them, which needs pynq)."""

    address: str
    cache_folder: str
    ready_file: str
    board: BoardSettings = BoardSettings()

    @property
    def ready(self) -> str:
        return self.ready_file


def need_pynq() -> None:
    """Raises BenchmarkFailed in the environment without it."""
    if importlib.util.find_spec("pynq") is None:
        raise BenchmarkFailed("the rows about FPGA boards need pynq: `make fpga-env`, and then `.venv-fpga/bin/headrace bench fpga`")


async def start_boards(crew: Crew, count: int) -> tuple[str, ...]:
    """Addresses of boards that listen."""
    addresses = tuple(free_addresses(count))
    for number, address in enumerate(addresses):
        settings = BoardServerSettings(address=address, cache_folder=crew.path("rtl"), ready_file=crew.path(f"board-{number}.ready"))
        await crew.program("workers.fpga.emulator", f"board-{number}", settings, variables=ONE_THREAD)
    return addresses


class FpgaOverhead:
    """The row of either transport."""

    once = False

    def __init__(self, *, remote: bool) -> None:
        self._remote = remote
        self.name = "fpga-remote" if remote else "fpga-in-process"
        where = "through PYNQ.remote" if remote else "in the process of the board"
        self.title = f"a batch of {ROWS_A_BATCH} rows {where}"
        limit = REMOTE_MAX if remote else IN_PROCESS_MAX
        self.figures = (
            Figure(key="batch", what="a batch under load, median", unit="ms", limit=limit, baseline=BY_HAND),
            Figure(key="undisturbed", what="a batch under load, first decile", unit="ms", baseline=BY_HAND),
            Figure(key="driver", what="a batch under load, median, against the driver", unit="ms", baseline=DRIVER),
            Figure(key="alone", what="a batch alone, median", unit="ms", baseline=BY_HAND),
        )
        if remote:
            self.figures += (
                Figure(key="registers", what="register round trips of a batch", unit="", limit=REGISTERS_MAX, of_ratio=False),
                Figure(key="calls", what="RPCs of a batch", unit="", limit=CALLS_MAX, of_ratio=False),
            )

    async def measure(self, harness: Harness, scale: Scale, run: int, say: Say) -> Measured:
        del run
        need_pynq()
        say("batches in turn")
        async with harness.bare_crew() as crew:
            boards = await start_boards(crew, 2) if self._remote else ()
            settings = CallSettings(
                ready=crew.path("calls.ready"),
                result=crew.path("calls.json"),
                boards=boards,
                batches=scale.count(BATCHES),
                cache=crew.path(""),
                # Behind the network the boards' own processes need room, too.
                cores=() if boards else Cores.split().all[:2],
            )
            await crew.program("deploy.bench.fpga_calls", "calls", settings, variables=ONE_THREAD)
            result = msgspec.convert(await crew.result(settings.result, RESULT_S_MAX), CallResult)
        loaded_ms, by_hand_ms, driver_ms = result.loaded_ms, _blocks(result.by_hand_ms), _blocks(result.driver_ms)
        samples = {
            "batch": Sample(median(loaded_ms), median(by_hand_ms)),
            "undisturbed": Sample(_decile(loaded_ms), _decile(by_hand_ms)),
            "driver": Sample(median(loaded_ms), median(driver_ms)),
            "alone": Sample(median(result.alone_ms), median(result.by_hand_ms)),
        }
        if self._remote:
            samples |= {"registers": Sample(result.registers), "calls": Sample(result.calls)}
        return Measured(samples)


def _blocks(values: tuple[float, ...]) -> tuple[float, ...]:
    """The mean of each block: what is done at once can be told of a block only, and is compared with its like."""
    return tuple(fmean(values[at : at + KEPT]) for at in range(0, len(values), KEPT))


def _decile(values: tuple[float, ...]) -> float:
    """What a batch takes where nobody else wants the processor."""
    return sorted(values)[len(values) // 10]

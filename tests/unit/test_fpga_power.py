"""Unit: what boards draw, from the kernel's files of a real one, and from the model of an emulated one."""

import pytest

from deploy.commands.state import _device
from schemas.telemetry import BoardState, WorkerReport
from workers.fpga.emulator.board import BoardSettings, EmulatedBoard
from workers.fpga.emulator.files import POWER_FILE, BoardFiles
from workers.fpga.emulator.power import BUSY_WATTS_A_MHZ, CLOCKED_WATTS_A_MHZ, IDLE_WATTS, PowerModel
from workers.fpga.telling import POWER_FOLDER, power_files, watts


def test_rails_are_found_among_other_sensors_and_added_up():
    names = {0: b"ina226_u76\n", 1: b"pwmfan\n", 2: b"ina260_u14\n", 4: b"ina226_u80\n"}

    def read(path):
        number = int(path.removeprefix(POWER_FOLDER).partition("/")[0])
        if number not in names:
            raise FileNotFoundError(path)
        return names[number]

    assert list(power_files(read)) == [f"{POWER_FOLDER}0/power1_input", f"{POWER_FOLDER}2/power1_input"], "numbers have no gap"
    assert watts([b"2500000\n", b"512500\n"]) == 3.01
    assert watts([]) == 0.0
    with pytest.raises(ValueError, match="could not convert"):
        watts([b"n/a"])


def test_a_board_without_sensors_has_none():
    def read(path):
        raise FileNotFoundError(path)

    assert list(power_files(read)) == []


def test_the_model_grows_with_clock_and_activity():
    model = PowerModel()
    assert model.watts(0.0, 0, 1.0) == IDLE_WATTS
    assert model.watts(100.0, 0, 2.0) == pytest.approx(IDLE_WATTS + 100 * CLOCKED_WATTS_A_MHZ)
    half = model.watts(100.0, 50_000_000, 3.0)
    assert half == pytest.approx(IDLE_WATTS + 100 * (CLOCKED_WATTS_A_MHZ + BUSY_WATTS_A_MHZ / 2))
    assert model.watts(200.0, 1_000_000_000, 4.0) == pytest.approx(IDLE_WATTS + 200 * (CLOCKED_WATTS_A_MHZ + BUSY_WATTS_A_MHZ)), "busy at most"


def test_an_emulated_board_has_a_sensor():
    files = BoardFiles(EmulatedBoard(BoardSettings()))
    assert list(power_files(files.read)) == [POWER_FILE]
    assert watts([files.read(POWER_FILE)]) == IDLE_WATTS


@pytest.mark.parametrize(("power_watts", "shown"), [(3.25, "41.5 °C, 3.25 W"), (0.0, "41.5 °C")])
def test_who_looks_at_workers_sees_it(power_watts, shown):
    board = BoardState(overlay="ab" * 32, clock_mhz=100.0, temperature_celsius=41.5, power_watts=power_watts)
    report = WorkerReport(
        worker="w", incarnation=1, accelerator="fpga", device="a board", host="h", at_ms=1, lane=0, state="ready", epoch=1, credits=1,
        batch_size_max=1, variants={}, board=board,
    )  # fmt: skip
    assert _device(report) == f"a board, overlay abababababab at 100 MHz, {shown}"

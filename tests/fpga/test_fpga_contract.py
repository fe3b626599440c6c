"""The contract suite of backends over emulated boards: in the process that drives them, and behind PYNQ.remote; and what each says of itself."""

import numpy as np
import pytest
from fpga_stage import BoardProcess, backend_on, contract_case

from workers.backend_contract import CHECKS
from workers.fpga.emulator.power import CLOCKED_WATTS_A_MHZ, IDLE_WATTS

FLOWS = ("axi-dma", "finn-iodma")


@pytest.fixture(scope="module")
def remote_board(tmp_path_factory):
    board = BoardProcess("127.0.0.21", tmp_path_factory.mktemp("board"))
    yield board
    board.kill()


@pytest.fixture(scope="module", params=["emulated", "remote"])
def backend(request, tmp_path_factory):
    device = "emulated" if request.param == "emulated" else request.getfixturevalue("remote_board").address
    made = backend_on(device, tmp_path_factory.mktemp("cache"))
    yield made
    made.close()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("flow", FLOWS)
def test_contract(backend, flow, check, tmp_path):
    check(backend, contract_case(tmp_path, flow=flow), tmp_path)


def test_an_emulated_board_says_so(backend, remote_board):
    device = backend.describe()
    assert device.accelerator == "fpga"
    assert "emulated board, numpy fabric" in device.name
    assert "real" not in device.name
    assert "pynq 4" in device.runtime


def test_two_overlays_take_turns(backend, tmp_path):
    cases = {seed: contract_case(tmp_path / str(seed), seed=seed) for seed in (1, 2) if not (tmp_path / str(seed)).mkdir()}
    for seed, case in cases.items():
        backend.load(f"turns/{seed}", case.spec, case.file, batch_size_max=4, threads=1)
    for _ in range(2):
        for seed, case in cases.items():
            batch = case.inputs(3)
            answer = backend.infer(f"turns/{seed}", batch, 3)
            assert np.array_equal(answer["y"], case.expected(batch)["y"])
    for seed in cases:
        backend.unload(f"turns/{seed}")


def test_the_board_tells_clock_temperature_and_overlay(backend, tmp_path):
    case = contract_case(tmp_path, clock_mhz=150.0)
    loaded = backend.load("told", case.spec, case.file, batch_size_max=4, threads=1)
    told = backend.tell()
    assert told.clock_mhz == pytest.approx(150, abs=1)
    assert told.temperature_celsius == pytest.approx(41.5, abs=0.1)
    assert told.power_watts == pytest.approx(IDLE_WATTS + 150 * CLOCKED_WATTS_A_MHZ, abs=0.1), "it has hardly computed"
    assert told.bitfile[:12] in loaded.device
    assert "at 150 MHz" in loaded.device
    backend.unload("told")


def test_the_plans_clock_is_set_and_told(backend, tmp_path):
    case = contract_case(tmp_path, clock_mhz=150.0)
    backend.load("clocked", case.spec, case.file, batch_size_max=4, threads=1)
    for wanted, found in ((50.0, 50.0), (500.0, 150.0), (None, 150.0)):
        backend.set_clock(wanted)
        batch = case.inputs(4)
        assert np.array_equal(backend.infer("clocked", batch, 4)["y"], case.expected(batch)["y"])
        assert backend.board_state().clock_mhz == pytest.approx(found, abs=1)
    state = backend.board_state()
    assert state.temperature_celsius == pytest.approx(41.5, abs=0.1)
    assert state.power_watts >= IDLE_WATTS
    assert state.reconfiguration_ms > 0
    assert len(state.overlay) == 64
    backend.unload("clocked")

"""Boards that freeze, hang, lie, reboot, die, fill up, or belong to somebody else: nothing wrong is answered, and they come back by themselves."""

import hashlib
import signal
import threading
import time

import msgspec
import numpy as np
import pytest
from fpga_stage import BoardProcess, backend_on, contract_case, inject, save_package, small_package

from schemas.errors import DeviceUnavailable, ModelRefused
from workers.fpga.bitfile import EMULATED
from workers.fpga.errors import BoardLost
from workers.fpga.pynq_copy import link_pynq

ROWS = 4
BACK_S_MAX = 10.0


@pytest.fixture(scope="module")
def only_board(tmp_path_factory):
    made = BoardProcess("127.0.0.22", tmp_path_factory.mktemp("board"))
    yield made
    made.signal(signal.SIGCONT)
    made.kill()


@pytest.fixture
def board(only_board):
    """Whole again, whatever the last test did to it."""
    only_board.signal(signal.SIGCONT)
    inject(only_board.address, kind="mend")
    return only_board


@pytest.fixture(scope="module")
def only_backend(only_board, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    backend = backend_on(only_board.address, folder)
    case = contract_case(folder)
    backend.load("v", case.spec, case.file, batch_size_max=8, threads=1)
    yield backend, case
    backend.close()


@pytest.fixture
def served(board, only_backend):
    """A backend with a variant on the board that computes, and how to ask it."""
    backend, case = only_backend
    batch = case.inputs(ROWS)

    def ask():
        return np.array_equal(backend.infer("v", batch, ROWS)["y"], case.expected(batch)["y"])

    assert back_within(ask, BACK_S_MAX)
    return backend, ask


def back_within(ask, seconds):
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        try:
            return ask()
        except BoardLost:
            time.sleep(0.02)
    pytest.fail(f"the board was not back within {seconds} s")


def test_a_frozen_board_is_given_up_in_time_and_back_by_itself(board, served):
    backend, ask = served
    board.signal(signal.SIGSTOP)
    started_s = time.monotonic()
    with pytest.raises(BoardLost, match="did not answer within"):
        ask()
    assert time.monotonic() - started_s < 3
    started_s = time.monotonic()
    with pytest.raises(BoardLost, match="is away"):
        ask()
    assert time.monotonic() - started_s < 0.1, "a board that is away must say so at once"
    assert backend.away
    board.signal(signal.SIGCONT)
    assert back_within(ask, BACK_S_MAX)
    assert not backend.away


def test_a_hung_accelerator_is_configured_again(board, served):
    _, ask = served
    inject(board.address, kind="hang")
    with pytest.raises(BoardLost, match="did not end within"):
        ask()
    assert back_within(ask, BACK_S_MAX)


def test_a_rebooted_board_forgets_its_objects_and_is_set_up_again(board, served):
    _, ask = served
    inject(board.address, kind="reboot")
    with pytest.raises(BoardLost, match="not found"):
        ask()
    assert back_within(ask, BACK_S_MAX)


@pytest.mark.parametrize("harm", ["frozen", "rebooted", "dead"])
def test_a_look_at_an_idle_board_finds_out(board, served, harm):
    backend, ask = served
    device = backend.describe()
    if harm == "rebooted":
        inject(board.address, kind="reboot")
    elif harm == "frozen":
        board.signal(signal.SIGSTOP)
    else:
        board.kill()
    started_s = time.monotonic()
    with pytest.raises(BoardLost):
        backend.describe()
    assert time.monotonic() - started_s < 3
    if harm == "frozen":
        board.signal(signal.SIGCONT)
    elif harm == "dead":
        board.start()
    assert back_within(ask, BACK_S_MAX)
    assert backend.describe() == device


def test_a_dead_board_is_waited_for(board, served):
    _, ask = served
    board.kill()
    with pytest.raises(BoardLost):
        ask()
    board.start()
    assert back_within(ask, BACK_S_MAX)


def test_another_board_in_its_place_is_not_taken_for_it(board, served, tmp_path):
    backend, ask = served
    board.kill()
    other = BoardProcess(board.address, tmp_path / "other", name="EMU-OTHER")
    try:
        with pytest.raises(BoardLost):
            ask()
        until_s = time.monotonic() + BACK_S_MAX
        while "another board is there" not in backend.away:
            assert time.monotonic() < until_s, backend.away
            time.sleep(0.02)
    finally:
        other.kill()
        board.start()


def test_a_slow_board_is_slow_and_right(board, served):
    _, ask = served
    inject(board.address, kind="slow", factor=50.0)
    assert ask()


def test_a_suspect_board_is_asked_twice(tmp_path):
    case = contract_case(tmp_path)
    board = BoardProcess("127.0.0.25", tmp_path)
    backend = backend_on(f"{board.address}+twice", tmp_path / "cache")
    try:
        backend.load("v", case.spec, case.file, batch_size_max=8, threads=1)
        batch = case.inputs(ROWS)
        assert np.array_equal(backend.infer("v", batch, ROWS)["y"], case.expected(batch)["y"])
        inject(board.address, kind="corrupt")
        with pytest.raises(BoardLost, match="other results the second time"):
            backend.infer("v", batch, ROWS)
    finally:
        backend.close()
        board.kill()


def test_without_memory_on_the_board_a_variant_is_refused(board, served, tmp_path):
    backend, ask = served
    inject(board.address, kind="memory")
    case = contract_case(tmp_path, seed=5)
    with pytest.raises((ModelRefused, BoardLost), match="memory"):
        backend.load("other", case.spec, case.file, batch_size_max=8, threads=1)
    inject(board.address, kind="mend")
    assert back_within(ask, BACK_S_MAX)


def test_two_workers_cannot_have_one_board(board, served, tmp_path):
    second = backend_on(board.address, tmp_path / "second")
    with pytest.raises(DeviceUnavailable, match="driven by another worker"):
        second.describe()
    second.close()
    assert served[1]()


def test_an_absent_board_is_named(tmp_path):
    backend = backend_on("127.0.0.23", tmp_path)
    with pytest.raises(DeviceUnavailable, match="no board answers at"):
        backend.describe()
    backend.close()


def test_a_board_that_reboots_within_a_batch_gives_no_answer(board, served):
    _, ask = served
    inject(board.address, kind="slow", factor=250_000.0)
    outcomes = []

    def asked():
        try:
            outcomes.append(ask())
        except BoardLost as error:
            outcomes.append(error)

    asking = threading.Thread(target=asked)
    asking.start()
    time.sleep(0.05)  # the batch takes three times that on the slow board
    inject(board.address, kind="reboot")
    asking.join(BACK_S_MAX)
    assert isinstance(outcomes[0], BoardLost), outcomes
    inject(board.address, kind="mend")
    assert back_within(ask, BACK_S_MAX)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    """Whoever runs as root may write anywhere, but not into a file."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DeviceUnavailable, match="needs a folder to write its metadata to"):
        link_pynq(tmp_path / "file" / "pynq")
    backend = backend_on("emulated", tmp_path / "file")
    with pytest.raises(DeviceUnavailable, match="Not a directory"):
        backend.describe()
    backend.close()


def test_a_package_for_another_part_or_another_kind_of_board_is_refused(tmp_path):
    case = contract_case(tmp_path)
    settings = tmp_path / "board.json"
    settings.write_text('{"part": "xck26-sfvc784-2lv-c", "name": "EMU-KV260"}')
    backend = backend_on(f"emulated:{settings}", tmp_path / "cache")
    with pytest.raises(ModelRefused, match=r"for part xczu7ev.*has xck26"):
        backend.load("v", case.spec, case.file, batch_size_max=4, threads=1)
    backend.close()


def test_the_bitfile_of_a_real_board_is_not_for_an_emulated_one(tmp_path):
    _, package = small_package()
    other = package.bit.replace(EMULATED.encode(), b"2024.2.1", 1)
    manifest = msgspec.structs.replace(package.manifest, bitfile_sha256=hashlib.sha256(other).hexdigest())
    spec, file = save_package(tmp_path, msgspec.structs.replace(package, manifest=manifest, bit=other))
    backend = backend_on("emulated", tmp_path / "cache")
    with pytest.raises(ModelRefused, match="its bitfile is for a real board"):
        backend.load("v", spec, file, batch_size_max=4, threads=1)
    backend.close()

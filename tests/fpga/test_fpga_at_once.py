"""Two batches on one board at once: right under changing overlays and clocks, and lost together where the board is lost."""

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fpga_stage import BoardProcess, backend_on, contract_case, inject

from workers.fpga.errors import BoardLost

BACK_S_MAX = 10.0


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    made = BoardProcess("127.0.0.26", tmp_path_factory.mktemp("board"))
    yield made
    made.signal(signal.SIGCONT)
    made.kill()


def serving(device, tmp_path_factory):
    """A backend with two variants, of an overlay each."""
    backend = backend_on(device, tmp_path_factory.mktemp("cache"))
    cases = {}
    for seed in (1, 2):
        cases[f"v{seed}"] = contract_case(tmp_path_factory.mktemp(f"v{seed}"), seed=seed)
        backend.load(f"v{seed}", cases[f"v{seed}"].spec, cases[f"v{seed}"].file, batch_size_max=8, threads=1)
    return backend, cases


@pytest.fixture(scope="module")
def served(board, tmp_path_factory):
    made = serving(f"{board.address}+twice", tmp_path_factory)
    yield made
    made[0].close()


@pytest.fixture(scope="module")
def served_here(tmp_path_factory):
    made = serving("emulated", tmp_path_factory)
    yield made
    made[0].close()


def right(backend, cases, key, number):
    case, rows = cases[key], 1 + number % 8
    batch = {"x": np.roll(case.inputs(8)["x"], number, axis=0)[:rows]}
    return np.array_equal(backend.infer(key, batch, rows)["y"], case.expected(batch)["y"])


@pytest.mark.parametrize("where", ["served", "served_here"])
def test_two_threads_with_two_overlays_get_their_own_answers(request, where):
    backend, cases = request.getfixturevalue(where)

    def ask(thread):
        for number in range(6):
            if thread:
                backend.set_clock((None, 50.0)[number % 2])
            assert right(backend, cases, f"v{1 + (number // 2 + thread) % 2}", number)

    with ThreadPoolExecutor(2) as pool:
        for asked in [pool.submit(ask, thread) for thread in range(2)]:
            asked.result(60)
    backend.set_clock(None)


@pytest.mark.parametrize("harm", ["frozen", "rebooted", "hung"])
def test_a_board_that_is_lost_takes_both_batches_with_it_and_comes_back(board, served, harm):
    backend, cases = served
    assert right(backend, cases, "v1", 7)
    outcomes = []
    both = threading.Barrier(2)

    def ask():
        both.wait()
        try:
            outcomes.append(right(backend, cases, "v1", 7))
        except BoardLost as error:
            outcomes.append(error)

    if harm == "frozen":
        board.signal(signal.SIGSTOP)
    else:
        inject(board.address, kind="reboot" if harm == "rebooted" else "hang")
    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BACK_S_MAX)
    board.signal(signal.SIGCONT)
    assert [type(outcome) for outcome in outcomes] == [BoardLost, BoardLost], outcomes
    until_s = time.monotonic() + BACK_S_MAX
    while True:
        try:
            assert right(backend, cases, "v2", 5)
            break
        except BoardLost:
            assert time.monotonic() < until_s, backend.away
            time.sleep(0.02)
    assert right(backend, cases, "v1", 3)

"""Genuine Kafka, two boards behind PYNQ.remote, all in processes: boards freeze, die and reboot under load; nothing is lost, late or wrong."""

import asyncio
import signal
import time
import uuid
from functools import partial

import numpy as np
import pytest
from finn_folder import finn_files, tfc_case, tfc_network, write_folder
from fpga_stage import inject, random_network
from live_stack import Load, fashion_files, package_document, running, worker_report

from deploy.catalog_apply import apply_files
from schemas.errors import DeadlineExceeded, InfeasibleAccuracy, InfeasibleDeadline, UnknownEndpoint
from workers.fpga.emulator.faults import REBOOT
from workers.fpga.packaging import PackageOptions, package_of

BACK_S_MAX = 10.0
FROZEN_S = 2.0
COMPLETED_MIN = 0.9
pytestmark = [pytest.mark.timeout(150)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory, kafka_address, redis_url):
    folder = tmp_path_factory.mktemp("live")
    with running(folder, kafka_address, redis_url, f"t{uuid.uuid4().hex[:12]}", fashion_files(folder)) as made:
        yield made


async def until_lost(client, worker, eventually):
    """The reason, as `headrace get workers` has it."""

    async def reason():
        report = await worker_report(client, worker)
        return report is not None and report.state != "ready" and report.reason

    return await eventually(reason, timeout_s=BACK_S_MAX)


async def back_s(client, load, worker, address, eventually):
    """Seconds until the worker is ready, and its board answers requests."""
    started_s, before = time.monotonic(), len(load.answered_by(address))

    async def ready():
        report = await worker_report(client, worker)
        return report is not None and report.state == "ready" and not report.reason and len(load.answered_by(address)) > before

    await eventually(ready, timeout_s=3 * BACK_S_MAX)
    return time.monotonic() - started_s


async def judged(load):
    outcomes = await load.check()
    assert outcomes["failed"] == 0, outcomes
    assert outcomes["completed"] > COMPLETED_MIN * len(load.asked), outcomes


async def both_answer(load, stack, eventually):
    await eventually(lambda: all(load.answered_by(address) for address in stack.addresses.values()), timeout_s=20.0)


async def test_a_frozen_board_loses_nothing_and_comes_back_by_itself(stack, eventually):
    async with stack.client() as client, Load(client).flowing() as load:
        await both_answer(load, stack, eventually)
        stack.signal("board-1", signal.SIGSTOP)
        try:
            assert "did not answer within" in await until_lost(client, "fpga-1", eventually)
            await asyncio.sleep(FROZEN_S)
        finally:
            stack.signal("board-1", signal.SIGCONT)
        assert await back_s(client, load, "fpga-1", stack.addresses["fpga-1"], eventually) < BACK_S_MAX
    await judged_after(stack, load)


async def judged_after(stack, load):
    async with stack.client() as client:
        load.use(client)
        await judged(load)


async def test_a_killed_board_is_started_again_and_found(stack, eventually):
    async with stack.client() as client, Load(client).flowing() as load:
        await both_answer(load, stack, eventually)
        pid = stack.pid("board-2")
        stack.signal("board-2", signal.SIGKILL)
        assert await until_lost(client, "fpga-2", eventually)
        await eventually(lambda: stack.pid("board-2") not in (None, pid), timeout_s=BACK_S_MAX)
        assert await back_s(client, load, "fpga-2", stack.addresses["fpga-2"], eventually) < BACK_S_MAX
    await judged_after(stack, load)


async def test_a_rebooted_board_is_set_up_again(stack, eventually):
    async with stack.client() as client, Load(client).flowing() as load:
        await both_answer(load, stack, eventually)
        await asyncio.to_thread(inject, stack.addresses["fpga-1"], kind=REBOOT)
        assert await until_lost(client, "fpga-1", eventually), (
            "between batches its objects are not found, within one its registers are not what they were"
        )
        assert await back_s(client, load, "fpga-1", stack.addresses["fpga-1"], eventually) < BACK_S_MAX
    await judged_after(stack, load)


async def test_finn_packages_answer_bit_for_bit_through_kafka(stack, eventually, tmp_path):
    """TFC-w1a1, and a package with runtime weights: other overlays on the same boards."""
    tfc, dense = tfc_network(), random_network((18, 9, 4), seed=3)
    digits = package_of(write_folder(tmp_path / "tfc", finn_files(tfc)), PackageOptions(name="tfc", input_name="image", output_name="digit"))
    files = finn_files(dense, odt="INT32", simd=6, runtime_weights=True)
    weights = package_of(write_folder(tmp_path / "dense", files), PackageOptions(name="dense"))
    documents = [package_document(name, package, tmp_path) for name, package in (("tfc", digits), ("dense", weights))]
    images, expected = tfc_case()
    rows = np.random.default_rng(0).integers(0, 256, (8, 18)).astype(np.uint8)
    async with stack.client() as client:
        await apply_files(client.log, client.names, documents, stack.folder / "models")
        for endpoint, inputs, right in (("tfc", {"image": images}, expected), ("dense", {"input": rows}, dense.run(rows))):
            response = await eventually(partial(completed, client, endpoint, inputs), timeout_s=40.0)
            (output,) = response.outputs.values()
            assert np.array_equal(output.reshape(right.shape), right)
            assert response.path[-1].accelerator == "fpga"


async def completed(client, endpoint, inputs):
    """None until the dispatcher has read of the endpoint, and until a plan has brought its variants onto a board."""
    try:
        return await client.infer(endpoint, inputs, timeout_ms=10_000)
    except (UnknownEndpoint, InfeasibleAccuracy, InfeasibleDeadline, DeadlineExceeded):
        return None

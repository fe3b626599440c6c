"""What a batch costs on the bus and on the network, counted at the board; and that the host's view of memory is not the board's."""

import numpy as np
import pytest
from fpga_stage import backend_on, contract_case

from workers.fpga.emulator.board import BoardSettings, EmulatedBoard
from workers.fpga.emulator.device import EmulatedDevice
from workers.fpga.emulator.server import BoardServer, ServerSettings
from workers.fpga.flows import FinnDma, StreamDma
from workers.fpga.package_file import read_variant_model

REGISTERS_MAX, RPCS_MAX = 24, 12
BATCHES = 40


@pytest.mark.parametrize("flow", ["axi-dma", "finn-iodma"])
def test_remote_calls_of_a_batch(flow, tmp_path):
    server = BoardServer(ServerSettings(address="127.0.0.24", cache_folder=str(tmp_path)))
    server.start()
    backend = backend_on("127.0.0.24", tmp_path)
    try:
        case = contract_case(tmp_path, flow=flow)
        backend.load("v", case.spec, case.file, batch_size_max=32, threads=1)
        calls = []
        for rows in (32, 8, 32, *(32,) * BATCHES):
            before = server.calls
            backend.infer("v", case.inputs(rows), rows)
            calls.append(server.calls - before)
        steady = sorted(calls[3:])
        assert steady[len(steady) // 2] <= RPCS_MAX, calls
        assert steady[0] >= 6, "fewer calls than a batch needs: the counter does not count"
    finally:
        backend.close()
        server.stop()


@pytest.fixture
def device():
    import pynq

    made = EmulatedDevice(EmulatedBoard(BoardSettings(paced=False)))
    before = pynq.Device.__dict__.get("_active_device")
    pynq.Device.active_device = made
    yield made
    pynq.Device.active_device = before


@pytest.mark.parametrize("flow", ["axi-dma", "finn-iodma"])
def test_register_round_trips_of_a_batch(flow, device, tmp_path):
    import pynq

    overlay, case, dma = on_device(device, flow, tmp_path)
    source = pynq.allocate((32, 12), np.uint8, target=device)
    sink = pynq.allocate((32, 20), np.uint8, target=device)
    counters = device.board.counters
    for rows in (32, 32, 5):
        batch = case.inputs(rows)
        source[:rows] = batch["x"].reshape(rows, 12).view(np.uint8)
        source.flush()
        before = counters.reads + counters.writes
        dma.start((source.physical_address, sink.physical_address), rows, (rows * 12, rows * 20))
        while not dma.done():
            pass
        dma.check(rows * 20)
        assert counters.reads + counters.writes - before <= REGISTERS_MAX
        sink.invalidate()
        assert np.array_equal(np.array(sink[:rows]).view("<i4"), case.expected(batch)["y"])
    del overlay


def on_device(device, flow, folder):
    import pynq

    case = contract_case(folder, flow=flow)
    package = read_variant_model(case.file.read_bytes(), "v")
    (folder / "v.bit").write_bytes(package.bit)
    (folder / "v.hwh").write_bytes(package.hwh)
    overlay = pynq.Overlay(str(folder / "v.bit"), device=device)
    ips = {role: getattr(overlay, name) for role, name in package.manifest.ips.items()}
    return overlay, case, StreamDma(ips["dma"], ips["accelerator"]) if flow == "axi-dma" else FinnDma(ips["idma"], ips["odma"])


def test_a_forgotten_flush_or_invalidate_shows_as_wrong_data(device, tmp_path):
    import pynq

    overlay, case, dma = on_device(device, "axi-dma", tmp_path)
    source = pynq.allocate((4, 12), np.uint8, target=device)
    sink = pynq.allocate((4, 20), np.uint8, target=device)
    batch = case.inputs(4)
    expected = case.expected(batch)["y"]

    def run():
        dma.start((source.physical_address, sink.physical_address), 4, (48, 80))
        while not dma.done():
            pass

    source[:] = batch["x"].reshape(4, 12).view(np.uint8)
    run()
    sink.invalidate()
    assert not np.array_equal(np.array(sink).view("<i4"), expected), "the board saw what was not flushed"
    source.flush()
    sink[:] = 0
    run()
    assert not np.array(sink).any(), "the host saw what was not invalidated"
    sink.invalidate()
    assert np.array_equal(np.array(sink).view("<i4"), expected)
    del overlay


def test_pynqs_own_dma_driver_clocks_and_register_map_work_on_the_board(device, tmp_path):
    """The naive way, as pynq's documentation has it, on the same board."""
    import pynq

    overlay, case, _ = on_device(device, "axi-dma", tmp_path)
    dma, accelerator = overlay.axi_dma_0, overlay.dense_network_0
    source = pynq.allocate((4, 12), np.int8, target=device)
    sink = pynq.allocate((4, 5), np.int32, target=device)
    batch = case.inputs(4)
    source[:] = batch["x"].reshape(4, 12)
    counters = device.board.counters
    before = counters.reads + counters.writes
    accelerator.register_map.batch = 4
    accelerator.register_map.CTRL.AP_START = 1
    dma.recvchannel.transfer(sink)
    dma.sendchannel.transfer(source)
    dma.sendchannel.wait()
    dma.recvchannel.wait()
    assert counters.reads + counters.writes - before > 20
    assert np.array_equal(np.array(sink), case.expected(batch)["y"])
    assert accelerator.register_map.CTRL.AP_DONE
    assert int(accelerator.register_map.in_features) == 12
    assert int(accelerator.read(0x28)) > 4 * 12, "cycles of the last batch"


def test_dma_errors_are_seen(device, tmp_path):
    import pynq

    from workers.fpga.flows import Hung

    overlay, _, dma = on_device(device, "axi-dma", tmp_path)

    source = pynq.allocate((1, 12), np.uint8, target=device)
    dma.start((source.physical_address, 0x20), 1, (12, 20))
    with pytest.raises(Hung, match="stopped with status"):
        dma.done()
    del overlay

"""cocotb's side of the tests of the RTL: runs inside the simulator, and drives the network's buses edge by edge."""

import random

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge

SEED = 3
ROWS = 5


async def reset(top):
    for name in ("awvalid", "wvalid", "arvalid", "rready", "bready", "s_axis_tvalid", "s_axis_tlast", "m_axis_tready"):
        getattr(top, name).value = 0
    cocotb.start_soon(Clock(top.clk, 10, "ns").start())
    top.rst.value = 1
    for _ in range(4):
        await FallingEdge(top.clk)
    top.rst.value = 0
    await FallingEdge(top.clk)


async def write(top, address, value):
    top.awaddr.value, top.wdata.value = address, value
    top.awvalid.value = top.wvalid.value = top.bready.value = 1
    while True:
        await FallingEdge(top.clk)
        if int(top.awready.value):
            break
    top.awvalid.value = top.wvalid.value = 0
    while int(top.bvalid.value):
        await FallingEdge(top.clk)


async def read(top, address):
    top.araddr.value = address
    top.arvalid.value = top.rready.value = 1
    while True:
        await FallingEdge(top.clk)
        if int(top.rvalid.value):
            break
    value = int(top.rdata.value)
    top.arvalid.value = 0
    await FallingEdge(top.clk)
    top.rready.value = 0
    return value


async def send(top, values, chance):
    """With gaps: the source is not always there."""
    rest = list(values)
    while rest:
        offers = random.random() < chance
        top.s_axis_tvalid.value, top.s_axis_tdata.value = int(offers), rest[0] & 0xFF
        top.s_axis_tlast.value = int(len(rest) == 1)
        await cocotb.triggers.ReadOnly()
        taken = offers and int(top.s_axis_tready.value)
        await FallingEdge(top.clk)
        if taken:
            rest.pop(0)
    top.s_axis_tvalid.value = 0


async def collect(top, count, chance):
    """With back-pressure; (values, places where TLAST stood)."""
    values, lasts = [], []
    while len(values) < count:
        takes = random.random() < chance
        top.m_axis_tready.value = int(takes)
        await cocotb.triggers.ReadOnly()
        if takes and int(top.m_axis_tvalid.value):
            if int(top.m_axis_tlast.value):
                lasts.append(len(values))
            values.append(top.m_axis_tdata.value.to_signed())
        await FallingEdge(top.clk)
    top.m_axis_tready.value = 0
    return values, lasts


def expected(top):
    """The same network in numpy; rtl_network is beside this module."""
    del top
    from rtl_network import NETWORK, inputs

    rows = inputs(ROWS)
    return rows, NETWORK.run(rows)


async def batch(top, chance_in, chance_out):
    rows, right = expected(top)
    await write(top, 0x10, ROWS)
    await write(top, 0x00, 1)
    sender = cocotb.start_soon(send(top, rows.ravel().tolist(), chance_in))
    values, lasts = await collect(top, right.size, chance_out)
    await sender
    assert values == right.ravel().tolist()
    assert lasts == [right.size - 1], "TLAST stands at the end of the batch, and nowhere else"


@cocotb.test()
async def a_batch_at_full_speed(top):
    await reset(top)
    await batch(top, 1.0, 1.0)
    control = await read(top, 0x00)
    assert control & 0b110 == 0b110, "done and idle"
    assert not (await read(top, 0x00)) & 0b010, "done is cleared when it is read"
    from rtl_network import NETWORK

    from workers.fpga.emulator.fabric import network_cycles

    assert await read(top, 0x28) == network_cycles(NETWORK, ROWS)


@cocotb.test()
async def batches_with_gaps_and_back_pressure(top):
    random.seed(SEED)
    await reset(top)
    for chances in ((0.5, 1.0), (1.0, 0.3), (0.4, 0.4)):
        await batch(top, *chances)


@cocotb.test()
async def nothing_moves_before_the_start(top):
    await reset(top)
    top.s_axis_tvalid.value = top.m_axis_tready.value = 1
    for _ in range(20):
        await FallingEdge(top.clk)
        assert not int(top.s_axis_tready.value)
        assert not int(top.m_axis_tvalid.value)
    assert await read(top, 0x18) == 6
    assert await read(top, 0x20) == 3

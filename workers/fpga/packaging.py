"""What `headrace fpga` does: makes the file for the catalog out of a quantised ONNX model, or of a FINN deployment package."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.errors import ModelRefused
from workers.fpga.binarized import is_binarized, read_binarized
from workers.fpga.building import BuildOptions, build_package
from workers.fpga.finn_package import is_finn, read_finn
from workers.fpga.manifest import Package, PostProcessing, TensorLayout
from workers.fpga.onnx_network import read_network, write_network
from workers.fpga.package_file import folder_files, unpack_files
from workers.fpga.quantizing import quantize
from workers.onnx_files import parse_model, read_file, signature_of

ARCHIVES = (".zip",)


class PackageOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the source does not say."""

    name: str
    batch_size_max: int = 64
    clock_mhz: float = 100.0
    input_name: str = "input"
    output_name: str = "output"
    """Of a FINN package, which has no names for tensors."""


def package_of(source: Path, options: PackageOptions) -> Package:
    """A FINN package (folder or .zip) as it is, or a quantised model built for an emulated board. Raises ModelRefused."""
    if source.is_dir() or source.suffix in ARCHIVES:
        files = folder_files(source) if source.is_dir() else unpack_files(read_file(source))
        if not is_finn(files):
            raise ModelRefused(f"{source} is no FINN package: it lacks a .bit, or driver/driver.py")
        names = (options.input_name, options.output_name)
        return read_finn(files, batch_size_max=options.batch_size_max, clock_mhz=options.clock_mhz, names=names, post=PostProcessing())
    model = parse_model(read_file(source), source.name)
    if is_binarized(model):
        signature = signature_of(model, source.name)
        network = read_binarized(model, source.name)
        layouts = (
            TensorLayout(name=signature.inputs[0].name, datatype="UINT8", shape=signature.inputs[0].shape[1:], inner=1),
            TensorLayout(name=signature.outputs[0].name, datatype="INT32", shape=(1,), inner=1),
        )
        return build_package(network, *layouts, _build_options(options, PostProcessing()))
    quantized = read_network(model, source.name)
    return build_package(quantized.network, quantized.source, quantized.sink, _build_options(options, quantized.post))


def quantized_model(source: Path, calibration: NDArray[np.uint8]) -> bytes:
    """A float model of dense layers as a quantised one. Raises ModelRefused."""
    model = parse_model(read_file(source), source.name)
    return write_network(quantize(model, source.name, calibration)).SerializeToString(deterministic=True)


def _build_options(options: PackageOptions, post: PostProcessing) -> BuildOptions:
    return BuildOptions(name=options.name, batch_size_max=options.batch_size_max, clock_mhz=options.clock_mhz, post=post)

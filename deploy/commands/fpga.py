"""`headrace fpga`: packages for FPGA boards, quantised models for them, and emulated boards to run them on."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np

from deploy.commands.command import Command, Group, option
from deploy.commands.fpga_demo import demo
from deploy.commands.output import Output
from deploy.configuration import Connection
from deploy.running_stack import CACHE
from schemas.catalog import TensorSpec
from schemas.errors import ModelRefused
from workers.fpga.bitfile import read_bit
from workers.fpga.design import decode_design
from workers.fpga.manifest import sink_spec, source_spec
from workers.fpga.package_file import read_variant_model, variant_model
from workers.fpga.packaging import PackageOptions, package_of, quantized_model
from workers.fpga.rtl.compiling import compiled

CALIBRATION_IMAGES = 256
FABRICS = ("numpy", "rtl")


_cache_option = option(
    "--cache", type=click.Path(file_okay=False, path_type=Path), default=CACHE, show_default=True, help="Folder of compiled fabrics."
)


class PackageReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `headrace fpga package` says."""

    file: str
    sha256: str
    size_bytes: int
    design: str
    part: str
    flow: str
    bitfile_sha256: str
    emulated: bool
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch_size_max: int
    clock_mhz: float


@click.group(cls=Group)
def fpga() -> None:
    """Make packages for FPGA boards, and emulate boards.

    \b
    headrace fpga quantize mlp128.onnx --images train-256.npz --output fashion-fpga.onnx
    headrace fpga package fashion-fpga.onnx
    headrace fpga board --address 127.0.0.2 --fabric rtl
    headrace worker --accelerator fpga --board 127.0.0.2
    """


@fpga.command(cls=Command)
@click.argument("source", metavar="MODEL.onnx|FINN_PACKAGE", type=click.Path(exists=True, path_type=Path))
@option("--output", "target", type=click.Path(dir_okay=False, path_type=Path), help="File to write (default: SOURCE's name with .fpga.onnx).")
@option("--name", default="", help="Name of the design (default: SOURCE's).")
@option("--batch-max", "batch_size_max", type=click.IntRange(1, 1024), default=64, show_default=True, help="Largest batch.")
@option("--clock", "clock_mhz", type=click.FloatRange(1, 1000), default=100.0, show_default=True, help="Clock of the fabric in MHz.")
@option("--input-name", default="input", show_default=True, help="Name of a FINN package's input.")
@option("--output-name", default="output", show_default=True, help="Name of a FINN package's output.")
def package(connection: Connection, output: Output, source: Path, target: Path | None, **options: Any) -> None:
    """Write the file for the catalog: from a quantised ONNX model (for emulated boards), or from a FINN deployment package.

    \b
    headrace fpga package fashion-fpga.onnx --output models/fashion.fpga.onnx
    headrace fpga package deploy-on-pynq.zip --batch-max 128 --input-name image --output-name label
    """
    del connection
    settings = msgspec.convert(options | {"name": options["name"] or source.stem}, PackageOptions)
    made = package_of(source, settings)
    data = variant_model(made)
    target = target or source.with_name(f"{source.stem}.fpga.onnx")
    target.write_bytes(data)
    manifest = made.manifest
    report = PackageReport(
        file=str(target),
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        design=manifest.design,
        part=manifest.part,
        flow=manifest.flow,
        bitfile_sha256=manifest.bitfile_sha256,
        emulated=made.emulated,
        inputs=(source_spec(manifest),),
        outputs=(sink_spec(manifest),),
        batch_size_max=manifest.batch_size_max,
        clock_mhz=manifest.clock_mhz,
    )
    output.table("", ("package", ""), [(name, str(getattr(report, name))) for name in report.__struct_fields__])
    output.result(report)


@fpga.command("quantize", cls=Command)
@click.argument("source", metavar="MODEL.onnx", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@option("--images", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Example inputs: a .npz with `images`.")
@option("--output", "target", required=True, type=click.Path(dir_okay=False, path_type=Path), help="File to write.")
def quantize_model(connection: Connection, output: Output, source: Path, images: Path, target: Path) -> None:
    """Make an int8 model of a float one of dense layers; it runs on ONNX Runtime and, packaged, on boards, with the same integers.

    \b
    headrace fpga quantize mlp128.onnx --images train-256.npz --output mlp128-int8.onnx
    """
    del connection
    try:
        with np.load(images) as examples:
            calibration = examples["images"][:CALIBRATION_IMAGES]
    except (OSError, ValueError, KeyError) as error:
        raise ModelRefused(f"{images} holds no `images`: {error}") from None
    data = quantized_model(source, calibration)
    target.write_bytes(data)
    output.say(f"wrote {target}")
    output.result({"file": str(target), "sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)})


@fpga.command(cls=Command)
@option("--address", required=True, help="Address to listen on, as 127.0.0.2: every board has one of its own, the port is PYNQ.remote's.")
@option("--fabric", type=click.Choice(FABRICS), default="numpy", show_default=True, help="What computes: numpy, or the project's RTL in Verilator.")
@option("--name", default="EMU-ZCU104", show_default=True, help="Name of the board.")
@option("--download-ms", type=click.FloatRange(0), default=120.0, show_default=True, help="What a configuration takes.")
@_cache_option
@option("--ready-file", type=click.Path(dir_okay=False, path_type=Path), help="Written when it listens.")
def board(connection: Connection, output: Output, address: str, cache: Path, ready_file: Path | None, **options: Any) -> None:
    """Be an emulated board behind PYNQ.remote, until ended.

    \b
    headrace fpga board --address 127.0.0.2 --fabric rtl
    """
    del connection, output
    settings = {"address": address, "cache_folder": str(cache / "rtl"), "ready_file": str(ready_file or ""), "board": options}
    argv = [sys.executable, "-m", "workers.fpga.emulator", msgspec.json.encode(settings).decode()]
    # In this process's place: who ends or freezes it means the board.
    os.execv(sys.executable, argv)  # noqa: S606 - this interpreter, and no shell


@fpga.command("compile", cls=Command)
@click.argument("source", metavar="PACKAGE.fpga.onnx", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_cache_option
def compile_fabric(connection: Connection, output: Output, source: Path, cache: Path) -> None:
    """Compile what the `rtl` fabric runs for a package, so that the first board with it need not.

    \b
    headrace fpga compile examples/fashion/fpga/mlp128-int8.fpga.onnx
    """
    del connection
    started_s = time.perf_counter()
    made = read_variant_model(source.read_bytes(), source.name)
    try:
        _, network = decode_design(read_bit(made.bit).payload)
    except ValueError as error:
        raise ModelRefused(f"{source}: only packages for emulated boards hold what can be compiled: {error}") from None
    library = compiled(network, cache / "rtl")
    output.say(f"{library} ({time.perf_counter() - started_s:.1f} s)")
    output.result({"file": str(library)})


fpga.add_command(demo)

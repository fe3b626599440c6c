"""What a variant for an FPGA board consists of: bitfile and hand-off file by SHA-256, how tensors are streamed, and what is done with the result."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import msgspec
import numpy as np

from schemas.catalog import TensorSpec, VariantSpec
from schemas.datatypes import DATATYPES
from schemas.errors import ModelRefused
from workers.fpga.bitfile import BitFile, read_bit
from workers.fpga.design import AXI_DMA, FINN_IODMA, FLOWS
from workers.fpga.hwh import Hardware, read_hwh
from workers.fpga.packing import Array, Packing, quantized_type

VERSION = 1
SOFTMAX, ARGMAX = "softmax", "argmax"
ROLES = {AXI_DMA: ("dma", "accelerator"), FINN_IODMA: ("idma", "odma")}
DMA_CORE = ":axi_dma:"
WORD_BYTES = 4


class TensorLayout(msgspec.Struct, frozen=True, kw_only=True):
    """How rows of one tensor are streamed."""

    name: str
    datatype: str
    """A qonnx name: UINT8, INT3, BIPOLAR, ..."""
    shape: tuple[int, ...]
    """Of one row, as a request has it."""
    inner: int
    """The innermost axis of the folded shape: so many elements are packed into whole bytes together."""

    def packing(self) -> Packing:
        """Raises ModelRefused where datatype, shape and folding do not fit each other."""
        try:
            return Packing(quantized_type(self.datatype), self.shape, self.inner)
        except ValueError as error:
            raise ModelRefused(f"tensor {self.name!r}: {error}") from None


class RuntimeWeights(msgspec.Struct, frozen=True, kw_only=True):
    """Words that are written into an IP's registers after the download."""

    ip: str
    sha256: str
    """Of the little-endian words."""
    words: int


class PostProcessing(msgspec.Struct, frozen=True, kw_only=True):
    """What is made of the numbers that the fabric gives; nothing, where all are defaults."""

    scale: float = 1.0
    then: str = ""
    """`softmax` (probabilities, FP32), `argmax` (INT64), or empty."""

    @property
    def as_it_is(self) -> bool:
        return not self.then and self.scale == 1.0

    def apply(self, values: Array) -> Array:
        """Rows in, rows out."""
        if self.then == ARGMAX:
            return values.argmax(-1, keepdims=True).astype(np.int64)
        if self.as_it_is:
            return values
        scaled = values.astype(np.float32) * np.float32(self.scale)
        if self.then != SOFTMAX:
            return scaled
        # The largest becomes 1 before the sum: nothing overflows.
        powers = np.exp(scaled - scaled.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """One variant. `ips` says by role which IP is which: `dma` and `accelerator` (axi-dma), `idma` and `odma` (finn-iodma)."""

    design: str
    bitfile_sha256: str
    hwh_sha256: str
    part: str
    flow: str
    ips: dict[str, str]
    source: TensorLayout
    sink: TensorLayout
    batch_size_max: int
    clock_mhz: float = 100.0
    weights: tuple[RuntimeWeights, ...] = ()
    post: PostProcessing = PostProcessing()
    version: int = VERSION


class Package(msgspec.Struct, frozen=True, kw_only=True):
    """A checked variant: the manifest with the bytes that it names."""

    manifest: Manifest
    bit: bytes
    hwh: bytes
    weights: dict[str, bytes] = {}
    """By SHA-256."""

    @property
    def emulated(self) -> bool:
        """It runs on emulated boards only."""
        return read_bit(self.bit).emulated


_decode = msgspec.json.Decoder(Manifest).decode


def encode_manifest(manifest: Manifest) -> bytes:
    """Readable JSON."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def decode_manifest(data: bytes) -> Manifest:
    """Raises ModelRefused for anything else."""
    try:
        return _decode(data)
    except msgspec.DecodeError as error:
        raise ModelRefused(f"the manifest cannot be read: {error}") from None


def sha256_of(data: bytes) -> str:
    """In hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def check_package(package: Package) -> None:
    """Raises ModelRefused with the first thing that is wrong: hashes, IPs, parts, datatypes, folding, weights."""
    manifest = package.manifest
    _check_manifest(manifest)
    for what, data, expected in (("bitfile", package.bit, manifest.bitfile_sha256), ("hand-off file", package.hwh, manifest.hwh_sha256)):
        if sha256_of(data) != expected:
            raise ModelRefused(f"{manifest.design}: the {what} has SHA-256 {sha256_of(data)}, the manifest says {expected}")
    bit, hardware = _readable(package)
    _check_part(manifest, bit, hardware)
    _check_ips(manifest, hardware)
    for weights in manifest.weights:
        data = package.weights.get(weights.sha256)
        if data is None or sha256_of(data) != weights.sha256:
            raise ModelRefused(f"{manifest.design}: the runtime weights of {weights.ip} are missing, or not those of the manifest")
        if len(data) != weights.words * WORD_BYTES:
            short = "short" if len(data) < weights.words * WORD_BYTES else "too long"
            raise ModelRefused(f"{manifest.design}: the runtime weights of {weights.ip} are {short}: {len(data)} bytes for {weights.words} words")


def _check_manifest(manifest: Manifest) -> None:
    if manifest.version > VERSION:
        raise ModelRefused(f"{manifest.design}: manifest version {manifest.version}, this release reads up to {VERSION}")
    if manifest.flow not in FLOWS:
        raise ModelRefused(f"{manifest.design}: flow {manifest.flow!r} is unknown: use one of {', '.join(FLOWS)}")
    missing = [role for role in ROLES[manifest.flow] if role not in manifest.ips]
    if missing:
        raise ModelRefused(f"{manifest.design}: flow {manifest.flow} needs an IP as {', '.join(missing)}")
    if manifest.batch_size_max < 1 or not 0 < manifest.clock_mhz <= 1_000:
        raise ModelRefused(f"{manifest.design}: batch_size_max {manifest.batch_size_max} and clock {manifest.clock_mhz} MHz cannot be")
    if manifest.post.then not in ("", SOFTMAX, ARGMAX) or not math.isfinite(manifest.post.scale):
        raise ModelRefused(f"{manifest.design}: post-processing {manifest.post.then!r} is unknown: use {SOFTMAX} or {ARGMAX}")
    manifest.source.packing()
    manifest.sink.packing()


def _readable(package: Package) -> tuple[BitFile, Hardware]:
    design = package.manifest.design
    try:
        bit = read_bit(package.bit)
    except ValueError as error:
        raise ModelRefused(f"{design}: the bitfile cannot be read: {error}") from None
    try:
        return bit, read_hwh(package.hwh)
    except ValueError as error:
        raise ModelRefused(f"{design}: the hand-off file cannot be read: {error}") from None


def _check_part(manifest: Manifest, bit: BitFile, hardware: Hardware) -> None:
    if bit.part != manifest.part:
        raise ModelRefused(f"{manifest.design}: the bitfile is for part {bit.part}, the manifest says {manifest.part}")
    if hardware.part and not bit.part.startswith(hardware.part):
        raise ModelRefused(f"{manifest.design}: the bitfile is for part {bit.part}, the hand-off file for {hardware.part}")


def _check_ips(manifest: Manifest, hardware: Hardware) -> None:
    for name in (*manifest.ips.values(), *(weights.ip for weights in manifest.weights)):
        if name not in hardware.ips:
            raise ModelRefused(f"{manifest.design}: IP {name!r} is not in the hand-off file, which has {', '.join(sorted(hardware.ips))}")
    if manifest.flow == AXI_DMA and DMA_CORE not in hardware.ips[manifest.ips["dma"]]:
        raise ModelRefused(f"{manifest.design}: IP {manifest.ips['dma']!r} is a {hardware.ips[manifest.ips['dma']]}, no AXI DMA")


def source_spec(manifest: Manifest) -> TensorSpec:
    """The input, as a request has it."""
    return _spec(manifest.source, quantized_type(manifest.source.datatype).container)


def sink_spec(manifest: Manifest) -> TensorSpec:
    """The output, after post-processing."""
    sink, post = manifest.sink, manifest.post
    if post.then == ARGMAX:
        return TensorSpec(sink.name, "INT64", (-1, *sink.shape[:-1], 1))
    dtype = quantized_type(sink.datatype).container if post.as_it_is else np.dtype("<f4")
    return _spec(sink, dtype)


def _spec(layout: TensorLayout, dtype: np.dtype[Any]) -> TensorSpec:
    name = next(datatype.name for datatype in DATATYPES.values() if datatype.dtype == dtype)
    return TensorSpec(layout.name, name, (-1, *layout.shape))


def check_fits(manifest: Manifest, spec: VariantSpec, batch_size_max: int) -> None:
    """Raises ModelRefused where the manifest is not what the catalog says of the variant."""
    differences: list[str] = []
    for role, stated, ours in (("input", spec.inputs, source_spec(manifest)), ("output", spec.outputs, sink_spec(manifest))):
        if len(stated) != 1:
            differences.append(f"{len(stated)} {role}s, the package has one")
        elif (stated[0].name, stated[0].datatype, stated[0].shape[1:]) != (ours.name, ours.datatype, ours.shape[1:]):
            differences.append(
                f"{role} {stated[0].name!r} ({stated[0].datatype} {list(stated[0].shape)}) is not the package's "
                f"{ours.name!r} ({ours.datatype} {list(ours.shape)})"
            )
    if batch_size_max > manifest.batch_size_max:
        differences.append(f"a batch of up to {batch_size_max} rows, the package takes {manifest.batch_size_max}")
    if differences:
        raise ModelRefused(f"{spec.name}: {'; '.join(differences)}")

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (protobuf's message classes carry no types)
"""The one file that a catalog names for an FPGA variant: an ONNX model of a single node, which holds the package.

So it is stored, hashed, limited and signed for like every other model: `kind: task` documents and the model repository know nothing of FPGAs.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import onnx
from onnx import TensorProto, helper

from schemas.catalog import TensorSpec
from schemas.errors import ModelRefused
from workers.fpga.manifest import Package, check_package, decode_manifest, encode_manifest, sink_spec, source_spec
from workers.onnx_files import parse_model

DOMAIN, OPERATOR, ATTRIBUTE = "headrace.fpga", "Package", "package"
MANIFEST_FILE = "manifest.json"
FILES_MAX = 256
UNPACKED_BYTES_MAX = 512 << 20
_ELEMENTS = {
    "UINT8": TensorProto.UINT8,
    "INT8": TensorProto.INT8,
    "UINT16": TensorProto.UINT16,
    "INT16": TensorProto.INT16,
    "UINT32": TensorProto.UINT32,
    "INT32": TensorProto.INT32,
    "UINT64": TensorProto.UINT64,
    "INT64": TensorProto.INT64,
    "FP32": TensorProto.FLOAT,
}


def pack_files(files: Mapping[str, bytes]) -> bytes:
    """An archive; equal files make equal bytes."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(files.items()):
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return target.getvalue()


def unpack_files(data: bytes) -> dict[str, bytes]:
    """Raises ModelRefused for what is no archive, or would unpack to too much."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            if len(entries) > FILES_MAX or sum(entry.file_size for entry in entries) > UNPACKED_BYTES_MAX:
                raise ModelRefused(f"the package holds more than {FILES_MAX} files or {UNPACKED_BYTES_MAX} bytes")
            return {_plain(entry.filename): archive.read(entry) for entry in entries}
    except (zipfile.BadZipFile, zipfile.LargeZipFile, RuntimeError, EOFError, OSError, NotImplementedError) as error:
        raise ModelRefused(f"the package is no archive that can be read: {error}") from None


def folder_files(folder: Path) -> dict[str, bytes]:
    """The plain files of a folder. Raises ModelRefused where they are too many or too large, or cannot be read."""
    files: dict[str, bytes] = {}
    total = 0
    try:
        for path in sorted(folder.rglob("*")):
            if path.is_symlink():
                raise ModelRefused(f"{path} is a symbolic link: packages hold plain files")
            if not path.is_file():
                continue
            total += path.stat().st_size
            if len(files) >= FILES_MAX or total > UNPACKED_BYTES_MAX:
                raise ModelRefused(f"{folder} holds more than {FILES_MAX} files or {UNPACKED_BYTES_MAX} bytes")
            files[path.relative_to(folder).as_posix()] = path.read_bytes()
    except OSError as error:
        raise ModelRefused(f"{folder} cannot be read: {error.strerror}") from None
    return files


def _plain(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ModelRefused(f"the package holds a file called {name!r}")
    return path.as_posix()


def package_files(package: Package) -> dict[str, bytes]:
    """The files of a package, bitfile and hand-off file under their hash."""
    manifest = package.manifest
    return {
        MANIFEST_FILE: encode_manifest(manifest),
        f"bitfile/{manifest.bitfile_sha256}.bit": package.bit,
        f"bitfile/{manifest.bitfile_sha256}.hwh": package.hwh,
        **{f"weights/{sha256}.bin": data for sha256, data in package.weights.items()},
    }


def read_files(files: Mapping[str, bytes]) -> Package:
    """The checked package of these files. Raises ModelRefused."""
    stated = files.get(MANIFEST_FILE)
    if stated is None:
        raise ModelRefused(f"the package has no {MANIFEST_FILE}")
    manifest = decode_manifest(stated)
    stem = f"bitfile/{manifest.bitfile_sha256}"
    bit, hwh = files.get(f"{stem}.bit"), files.get(f"{stem}.hwh")
    if bit is None or hwh is None:
        raise ModelRefused(f"{manifest.design}: the package lacks {stem}.bit or {stem}.hwh")
    weights = {weights.sha256: files.get(f"weights/{weights.sha256}.bin", b"") for weights in manifest.weights}
    package = Package(manifest=manifest, bit=bit, hwh=hwh, weights=weights)
    check_package(package)
    return package


def variant_model(package: Package) -> bytes:
    """The file for the catalog. Raises ModelRefused."""
    check_package(package)
    manifest = package.manifest
    node = helper.make_node(OPERATOR, [manifest.source.name], [manifest.sink.name], domain=DOMAIN)
    node.attribute.append(helper.make_attribute(ATTRIBUTE, pack_files(package_files(package))))
    graph = helper.make_graph([node], manifest.design, [_value(source_spec(manifest))], [_value(sink_spec(manifest))])
    versions = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=versions, ir_version=8, producer_name="headrace")
    return model.SerializeToString(deterministic=True)


def read_variant_model(data: bytes, name: str) -> Package:
    """The package in a catalog's file. Raises ModelRefused, for an ordinary ONNX model too."""
    model = parse_model(data, name)
    nodes = [node for node in model.graph.node if node.domain == DOMAIN and node.op_type == OPERATOR]
    if len(model.graph.node) != 1 or len(nodes) != 1:
        raise ModelRefused(f"{name} is an ordinary model: make an FPGA package of it (`headrace fpga package`)")
    held = [attribute.s for attribute in nodes[0].attribute if attribute.name == ATTRIBUTE]
    if len(held) != 1:
        raise ModelRefused(f"{name} holds no package")
    return read_files(unpack_files(held[0]))


def _value(spec: TensorSpec) -> onnx.ValueInfoProto:
    axes = [axis if axis > 0 else "rows" for axis in spec.shape]
    return helper.make_tensor_value_info(spec.name, _ELEMENTS[spec.datatype], axes)

"""Reads FINN's deployment packages as they are: bitfile/, driver/ (its io_shape_dict, never run), and runtime_weights/."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, cast

import numpy as np

from schemas.errors import ModelRefused
from workers.fpga.bitfile import read_bit
from workers.fpga.design import FINN_IODMA
from workers.fpga.manifest import Manifest, Package, PostProcessing, RuntimeWeights, TensorLayout, sha256_of

SHAPES = "io_shape_dict"
DRIVER_FILES = ("driver.py", "settings.json", "io_shape_dict.json")
WEIGHTS_FOLDER = "runtime_weights"
PARTITION = "StreamingDataflowPartition_"
WORD_DIGITS_MAX = 8


def is_finn(files: Mapping[str, bytes]) -> bool:
    """Whether this is such a package."""
    return _find(files, ".bit") is not None and any(PurePosixPath(name).name in DRIVER_FILES for name in files)


def read_finn(
    files: Mapping[str, bytes], *, batch_size_max: int, clock_mhz: float = 100.0, names: tuple[str, str] = ("input", "output"), post: PostProcessing
) -> Package:
    """FINN says nothing of batches and names: these are the caller's. Raises ModelRefused."""
    bit_name = _find(files, ".bit")
    hwh_name = _find(files, ".hwh")
    if bit_name is None or hwh_name is None:
        raise ModelRefused("a FINN package has a .bit and a .hwh in bitfile/")
    shapes = _shapes(files)
    weights = dict(_runtime_weights(files))
    try:
        part = read_bit(files[bit_name]).part
    except ValueError as error:
        raise ModelRefused(f"{bit_name} cannot be read: {error}") from None
    manifest = Manifest(
        design=PurePosixPath(bit_name).stem,
        bitfile_sha256=sha256_of(files[bit_name]),
        hwh_sha256=sha256_of(files[hwh_name]),
        part=part,
        flow=FINN_IODMA,
        ips={"idma": _only(shapes, "input_dma_name", "idma0"), "odma": _only(shapes, "output_dma_name", "odma0")},
        source=_layout(shapes, "i", names[0]),
        sink=_layout(shapes, "o", names[1]),
        batch_size_max=batch_size_max,
        clock_mhz=clock_mhz,
        weights=tuple(RuntimeWeights(ip=ip, sha256=sha256_of(data), words=len(data) // 4) for ip, data in weights.items()),
        post=post,
    )
    return Package(manifest=manifest, bit=files[bit_name], hwh=files[hwh_name], weights={sha256_of(data): data for data in weights.values()})


def _find(files: Mapping[str, bytes], suffix: str) -> str | None:
    return next((name for name in sorted(files) if name.endswith(suffix)), None)


def _shapes(files: Mapping[str, bytes]) -> dict[str, Any]:
    for wanted in DRIVER_FILES:
        for name, data in sorted(files.items()):
            if PurePosixPath(name).name != wanted:
                continue
            try:
                found = _from_python(data.decode()) if wanted.endswith(".py") else _from_json(data)
            except (ValueError, SyntaxError, UnicodeDecodeError, RecursionError) as error:
                raise ModelRefused(f"{name}: its {SHAPES} cannot be read: {error}") from None
            if found is not None:
                return found
    raise ModelRefused(f"a FINN package has a {SHAPES} in one of driver/{', driver/'.join(DRIVER_FILES)}")


def _from_json(data: bytes) -> dict[str, Any] | None:
    document: Any = json.loads(data)
    if not isinstance(document, dict):
        return None
    found: Any = cast("dict[str, Any]", document).get(SHAPES, document)
    return cast("dict[str, Any]", found) if isinstance(found, dict) and "idt" in found else None


def _from_python(source: str) -> dict[str, Any] | None:
    """The literal that is assigned to io_shape_dict; the module is parsed, and nothing of it is run."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and any(isinstance(target, ast.Name) and target.id == SHAPES for target in node.targets):
            return cast("dict[str, Any]", _literal(node.value))
    return None


def _literal(node: ast.expr) -> Any:
    """A literal in which datatypes stand as `DataType["UINT8"]` or `DataType.UINT8`."""
    if isinstance(node, ast.Dict):
        return {_literal(cast("ast.expr", key)): _literal(value) for key, value in zip(node.keys, node.values, strict=True)}
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(element) for element in node.elts]
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        return _literal(node.slice)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return node.attr
    if isinstance(node, ast.Constant):
        return node.value
    raise ValueError(f"line {node.lineno} is no literal")


def _only(shapes: Mapping[str, Any], key: str, default: str) -> str:
    names = _listed(shapes.get(key, default))
    if len(names) != 1:
        raise ModelRefused(f"{key} names {len(names)} DMA engines: packages with one input and one output are served")
    return str(names[0])


def _listed(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else [value]


def _layout(shapes: Mapping[str, Any], side: str, name: str) -> TensorLayout:
    """`side` is `i` or `o`, as FINN's keys begin."""
    try:
        datatype = str(_listed(shapes[f"{side}dt"])[0]).removeprefix("DataType[").strip("]'\"")
        normal, folded, packed = (_shape(shapes[f"{side}shape_{form}"]) for form in ("normal", "folded", "packed"))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ModelRefused(f"{SHAPES} lacks {error}, or it is no shape") from None
    layout = TensorLayout(name=name, datatype=datatype, shape=normal[1:], inner=folded[-1])
    packing = layout.packing()
    expected = (*folded[:-1], packing.group_bytes)
    if tuple(folded[:-1]) != tuple(packed[:-1]) or expected != tuple(packed) or packing.row_bytes != int(np.prod(packed[1:])):
        raise ModelRefused(f"{side}shape_packed {list(packed)} does not hold {datatype} folded as {list(folded)}: that takes {list(expected)}")
    return layout


def _shape(value: Any) -> tuple[int, ...]:
    listed = _listed(value)
    inner = _listed(listed[0]) if isinstance(listed[0], list) else listed
    shape = tuple(int(axis) for axis in cast("Sequence[Any]", inner))
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(f"a shape of {shape}")
    return shape


def _runtime_weights(files: Mapping[str, bytes]) -> list[tuple[str, bytes]]:
    """(IP, words) of each `<partition>_<layer>_<name>.dat`."""
    found: list[tuple[str, bytes]] = []
    for name, data in sorted(files.items()):
        path = PurePosixPath(name)
        if path.suffix != ".dat" or path.parent.name != WEIGHTS_FOLDER:
            continue
        try:
            words = [int(word, 16) for word in data.decode("ascii").split() if len(word) <= WORD_DIGITS_MAX]
            partition = int(path.name.split("_")[0])
        except (ValueError, UnicodeDecodeError) as error:
            raise ModelRefused(f"{name} holds no hexadecimal words: {error}") from None
        if len(words) != len(data.split()):
            raise ModelRefused(f"{name} holds words of more than 32 bits")
        found.append((f"{PARTITION}{partition}", np.array(words, "<u4").tobytes()))
    return found

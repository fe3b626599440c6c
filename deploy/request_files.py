"""Request files: a JSON v2 body as it is, or numpy arrays made into one; what `headrace send` publishes."""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from deploy.suggestions import did_you_mean
from schemas.errors import BadRequest
from schemas.limits import Limits
from schemas.tensors import encode_tensor
from schemas.terminal import JSON_TYPE, MSGPACK_TYPE

NPY_MAGIC, ZIP_MAGIC = b"\x93NUMPY", b"PK\x03\x04"
STDIN = "-"
_BODY_FIELDS = (
    "id",
    "parameters",
    "inputs",
    "outputs",
    "endpoint",
    "min_accuracy",
    "deadline_ms",
    "timeout_ms",
    "priority",
    "tenant",
    "traceparent",
    "rows",
)


class RequestBody(msgspec.Struct, frozen=True, kw_only=True):
    """A request's bytes with their content type, and the id that they state."""

    value: bytes
    content_type: str
    id: str | None = None


def read_request(file: str, input_name: Callable[[], str], limits: Limits | None = None) -> RequestBody:
    """Read FILE (`-`: stdin): JSON, .npy (one array, named by `input_name()`) or .npz (arrays by name).

    Raises BadRequest saying what is wrong, before anything is published.
    """
    limits = limits or Limits()
    content = _read(file, limits)
    if content.startswith(NPY_MAGIC):
        return _packed({input_name(): _load(content, file)})
    if content.startswith(ZIP_MAGIC):
        return _packed(_load_archive(content, file, limits))
    return _json(content, file)


def _read(file: str, limits: Limits) -> bytes:
    # An archive may be larger than the arrays in it only by its directory: one bound serves all formats.
    bytes_max = limits.record_bytes_max
    try:
        if file == STDIN:
            content = sys.stdin.buffer.read(bytes_max + 1)
        else:
            with Path(file).open("rb") as opened:
                content = opened.read(bytes_max + 1)
    except OSError as error:
        raise BadRequest(f"{file}: cannot be read: {error.strerror}") from None
    if len(content) > bytes_max:
        raise BadRequest(f"{file}: over {bytes_max} bytes; a request body has at most {limits.payload_bytes_max}")
    return content


def _json(content: bytes, file: str) -> RequestBody:
    try:
        body: Any = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"{file}: neither JSON nor .npy nor .npz: {error}") from None
    if not isinstance(body, dict):
        raise BadRequest(f"{file}: a request body is a JSON object with `inputs`")
    fields = cast("dict[str, Any]", body)
    if "inputs" not in fields:
        unknown = [key for key in fields if key not in _BODY_FIELDS]
        hint = did_you_mean(unknown[0], _BODY_FIELDS) if unknown else ""
        raise BadRequest(f"{file}: the body has no `inputs`: an Open Inference Protocol v2 request is expected{hint}")
    stated = fields.get("id")
    return RequestBody(value=content, content_type=JSON_TYPE, id=stated if isinstance(stated, str) else None)


def _packed(arrays: dict[str, NDArray[Any]]) -> RequestBody:
    inputs = [encode_tensor(name, values, raw=True) for name, values in arrays.items()]
    return RequestBody(value=msgspec.msgpack.encode({"inputs": inputs}), content_type=MSGPACK_TYPE)


def _load(content: bytes, file: str) -> NDArray[Any]:
    try:
        return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except ValueError as error:
        raise BadRequest(f"{file}: not a readable .npy file: {error}") from None


def _load_archive(content: bytes, file: str, limits: Limits) -> dict[str, NDArray[Any]]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > limits.record_bytes_max:
                raise BadRequest(
                    f"{file}: its arrays have over {limits.record_bytes_max} bytes; a request body has at most {limits.payload_bytes_max}"
                )
            return {entry.filename.removesuffix(".npy"): _load(archive.read(entry), file) for entry in archive.infolist()}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise BadRequest(f"{file}: not a readable .npz file: {error}") from None

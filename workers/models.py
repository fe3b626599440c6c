"""The model repository: one folder of ONNX files named by their SHA-256, and the only place that workers load models from.

`resolve` checks a file by reading and hashing it; backends read it once more through workers/onnx_files.py, check the hash of the very
bytes that they hand to their runtime, and never give a runtime the path. So a file that is changed after `resolve` is refused, not loaded.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from hashlib import sha256 as hash_sha256
from pathlib import Path, PurePosixPath

from schemas.errors import ModelRefused
from schemas.limits import Limits
from workers.onnx_files import parse_model, read_file

_SHA256 = re.compile(r"[0-9a-f]{64}")
SUFFIX = ".onnx"


def model_path(folder: Path, file: str) -> Path:
    """Where a catalog document's `file` lies: relative to the document, inside its folder, and reached through no link.

    Raises ModelRefused for an absolute path, for `..`, and for a symbolic link on the way.
    """
    relative = PurePosixPath(file)
    if not file or relative.is_absolute() or "\\" in file or "\0" in file:
        raise ModelRefused(f"model file {file!r} must be a path relative to the document that names it")
    if ".." in relative.parts:
        raise ModelRefused(f"model file {file!r} leaves the folder of the document that names it")
    at = folder
    for part in relative.parts:
        at = at / part
        if at.is_symlink():
            raise ModelRefused(f"{at} is a symbolic link: models are plain files")
    return at


class ModelRepository:
    """A folder of `<sha256>.onnx`."""

    def __init__(self, folder: Path, *, bytes_max: int = Limits().model_bytes_max) -> None:
        self._folder = folder
        self._bytes_max = bytes_max

    @property
    def folder(self) -> Path:
        return self._folder

    def add(self, path: Path, sha256: str | None = None) -> str:
        """Copy a model in and return its SHA-256; the copy appears whole or not at all. Raises ModelRefused with the reason."""
        if sha256 is not None:
            _check_digest(sha256)
        data = read_file(path, sha256=sha256, bytes_max=self._bytes_max)
        parse_model(data, path.name)
        digest = sha256 or hash_sha256(data).hexdigest()
        try:
            self.resolve(digest)
        except ModelRefused:
            # Not there yet, or damaged: what was just verified takes its place.
            self._write(data, self._file(digest))
        return digest

    def resolve(self, sha256: str) -> Path:
        """The file of a model, after reading all of it. Raises ModelRefused with the reason: missing, a link, another hash, external data, ..."""
        file = self._file(_check_digest(sha256))
        if not file.exists() and not file.is_symlink():
            raise ModelRefused(f"model {sha256} is not in the repository {self._folder}: apply its task, or give the folder that holds it")
        parse_model(read_file(file, sha256=sha256, bytes_max=self._bytes_max), file.name)
        return file

    def _file(self, digest: str) -> Path:
        return self._folder / f"{digest}{SUFFIX}"

    def _write(self, data: bytes, target: Path) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".adding-", dir=self._folder)
        try:
            with os.fdopen(descriptor, "wb") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
                # Read-only for everyone: workers may run under another account than whoever applies the catalog.
                os.fchmod(handle.fileno(), 0o444)
            Path(name).replace(target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                Path(name).unlink()
            raise


def _check_digest(sha256: str) -> str:
    if not _SHA256.fullmatch(sha256):
        raise ModelRefused(f"{sha256!r} is not a SHA-256: 64 lower-case hexadecimal digits")
    return sha256

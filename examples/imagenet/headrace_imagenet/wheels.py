"""Takes files out of wheels: pip fetches them by name, and they are opened and not installed; a folder keeps what was taken."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

FETCH_SECONDS = 300


class FilesMissing(Exception):
    """Files could not be fetched, or are other ones than this example was measured with."""


def take_files(requirement: str, hashes: Mapping[str, str], kept: Path) -> dict[str, bytes]:
    """Contents by path in the wheel of `requirement` (NAME==VERSION); `hashes` are SHA-256. Raises FilesMissing."""
    found = {path: (kept / digest).read_bytes() for path, digest in hashes.items() if (kept / digest).is_file()}
    if len(found) < len(hashes):
        found = _fetched(requirement, hashes)
    for path, digest in hashes.items():
        got = hashlib.sha256(found[path]).hexdigest()
        if got != digest:
            raise FilesMissing(f"{path} has SHA-256 {got}, expected {digest}: {requirement} has the one that was measured")
    kept.mkdir(parents=True, exist_ok=True)
    for path, digest in hashes.items():
        _keep(kept / digest, found[path])
    return found


def _fetched(requirement: str, paths: Mapping[str, str]) -> dict[str, bytes]:
    """Whatever else the package needs is not needed here."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder, requirement]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise FilesMissing(f"pip did not fetch {requirement} within {FETCH_SECONDS} s") from None
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise FilesMissing(f"pip could not fetch {requirement}: {done.stderr.strip()[-500:]}")
        try:
            with zipfile.ZipFile(wheels[0]) as wheel:
                return {path: wheel.read(path) for path in paths}
        except (KeyError, zipfile.BadZipFile) as error:
            raise FilesMissing(f"the wheel of {requirement} is another one than was measured: {error}") from None


def _keep(file: Path, data: bytes) -> None:
    """Whole or not at all: others may look for it at the same time."""
    if file.is_file():
        return
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".taking-", delete=False) as handle:
        handle.write(data)
    Path(handle.name).replace(file)

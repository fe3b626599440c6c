"""The stack that `headrace up` runs in this folder, as other commands see it: through .headrace/stack.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

FOLDER = Path(".headrace")
STATE = "stack.json"
MODELS = FOLDER / "models"
PROFILES = FOLDER / "profiles"
CACHE = FOLDER / "cache"


class RunningProcess(msgspec.Struct, frozen=True):
    """One process of the stack."""

    role: str
    name: str
    pid: int


class RunningStack(msgspec.Struct, frozen=True):
    """What other programs may rely on; more fields may stand beside these."""

    kafka: str
    redis: str
    prefix: str
    gateway: str | None = None
    processes: tuple[RunningProcess, ...] = ()


def read_stack(folder: Path = FOLDER) -> RunningStack | None:
    """None where no stack was started here; a file that cannot be read counts as none."""
    try:
        return msgspec.json.decode((folder / STATE).read_bytes(), type=RunningStack)
    except (OSError, msgspec.DecodeError):
        return None


def stack_settings(folder: Path = FOLDER) -> dict[str, Any]:
    """kafka, redis and prefix of the running stack; empty where there is none."""
    stack = read_stack(folder)
    return {} if stack is None else {"kafka": stack.kafka, "redis": stack.redis, "prefix": stack.prefix}

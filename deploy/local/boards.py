"""A stack with emulated FPGA boards: each is a process behind PYNQ.remote, with a worker of its own in the environment that has pynq."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from deploy.local.stack import RoleSpec, StackPlan
from deploy.stack_plan import UpOptions, plan_stack
from schemas.errors import ConfigurationError

PORT = 7967
"""PYNQ.remote's, on every board: so boards of one machine differ in their address."""
FPGA = "fpga"


class BoardPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Which boards, and where their compiled fabrics are kept."""

    fabrics: Sequence[str]
    """`numpy` or `rtl`, one for each board."""
    python: Path
    """Interpreter of the environment with pynq (`make fpga-env`)."""
    cache: Path
    download_ms: float = 120.0


def check_python(python: Path) -> Path:
    """Absolute, and not resolved: a virtual environment's interpreter is a link. Raises ConfigurationError where it is missing."""
    if not python.exists():
        raise ConfigurationError(f"{python} is missing: `make fpga-env` makes the environment with pynq, which is apart from this one")
    return python.absolute()


def free_addresses(count: int) -> list[str]:
    """Loopback addresses on which PYNQ.remote's port is free."""
    found: list[str] = []
    for address in _loopback():
        if len(found) == count:
            return found
        with socket.socket() as tried, suppress(OSError):
            tried.bind((address, PORT))
            found.append(address)
    raise ConfigurationError(f"fewer than {count} loopback addresses have port {PORT} free")


def plan_with_boards(folder: Path, options: UpOptions, boards: BoardPlan, *, kafka: str | None, redis: str | None, prefix: str) -> StackPlan:
    """The stack of `options`, and for each fabric a board (`board-1`, ...) and the worker that drives it (`fpga-1`, ...).

    Raises ConfigurationError.
    """
    python, addresses = str(check_python(boards.python)), free_addresses(len(boards.fabrics))
    workers = {**options.workers, FPGA: len(addresses)} if addresses else options.workers
    plan = plan_stack(folder, msgspec.structs.replace(options, workers=workers), kafka=kafka, redis=redis, prefix=prefix)
    drivers = [role for role in plan.roles if role.accelerator == FPGA]
    others = [role for role in plan.roles if role.accelerator != FPGA]
    driven = [_driven(role, python, address) for role, address in zip(drivers, addresses, strict=True)]
    served = [_board(number, python, boards, address) for number, address in enumerate(addresses)]
    return msgspec.structs.replace(plan, roles=[*served, *others, *driven])


def _loopback() -> Iterator[str]:
    yield from (f"127.0.0.{number}" for number in range(2, 255))


def _board(number: int, python: str, boards: BoardPlan, address: str) -> RoleSpec:
    """What `headrace fpga board` becomes, without the way there: a board that died is back the sooner."""
    board = {"fabric": boards.fabrics[number], "download_ms": boards.download_ms}
    settings = {"address": address, "cache_folder": str(boards.cache.resolve() / "rtl"), "ready_file": "{ready}", "board": board}
    argv = [python, "-P", "-m", "workers.fpga.emulator", msgspec.json.encode(settings).decode()]
    return RoleSpec(role="board", name=f"board-{number + 1}", argv=argv)


def _driven(role: RoleSpec, python: str, address: str) -> RoleSpec:
    """A worker of the other environment: what stands behind `--device-id` is another kind of device."""
    at = role.argv.index("--device-id")
    return msgspec.structs.replace(role, argv=[python, *role.argv[1:at], *role.argv[at + 2 :], "--board", address])

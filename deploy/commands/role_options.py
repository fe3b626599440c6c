"""What the commands of the roles have in common: the name of the process, and sizes in bytes."""

from __future__ import annotations

import os
import platform
import re
from typing import Any

import click

from deploy.commands.command import option
from schemas.names import NAME

_BYTES = re.compile(r"^(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?$", re.IGNORECASE)
_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}


class Bytes(click.ParamType):
    """A size in bytes: 512M, 2GiB, 1073741824 (units are powers of 1,024)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = _BYTES.match(str(value).strip())
        if found is None:
            self.fail(f"{value!r} is not a size: write 512M, 2GiB or a number of bytes", param, ctx)
        return int(float(found[1]) * (1 << _UNITS[found[2].lower()]))


def default_name(role: str) -> str:
    """Unlike any other process of this role; in a container the same after each restart (its process id is 1 there)."""
    return f"{role}-{platform.node() or 'localhost'}-{os.getpid()}"


def name_option(role: str) -> Any:
    """The option --name of this role's command."""
    return option("--name", callback=_checked, help=f"Name of this {role}, unlike any other's; a restart under the same name goes on at once.")


def _checked(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not NAME.fullmatch(value):
        raise click.BadParameter(f"{value!r}: letters, digits, `.`, `_`, `-`, a letter or digit first")
    return value

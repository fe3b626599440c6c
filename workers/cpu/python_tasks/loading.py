"""Finds the callable that a Python task names: `package.module:function`, or an entry point of the group `headrace.tasks`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

GROUP = "headrace.tasks"
TRUSTED_PACKAGE = "graphs."
"""What Headrace itself brings along runs in the worker's own process."""
FOREIGN = "calls_foreign_code"
"""A module of that package may define this: parameters -> whether a call would run somebody else's code, and so needs a process after all."""
Function = Callable[[dict[str, Any], dict[str, Any]], Any]


class NotLoadable(ValueError):
    """There is nothing to call under this name."""


def is_trusted(call: str) -> bool:
    """Whether it needs no process of its own."""
    return call.startswith(TRUSTED_PACKAGE) and ":" in call


def foreign_check(function: Function) -> Callable[[dict[str, Any]], bool]:
    """The module's own answer to whether a call runs somebody else's code; never, where it has none."""
    return getattr(sys.modules[function.__module__], FOREIGN, _never)


def _never(_parameters: dict[str, Any]) -> bool:
    return False


def load_function(call: str) -> Function:
    """Imports the module: that runs whatever it does at import. Raises NotLoadable with the reason."""
    module, colon, attribute = call.partition(":")
    if not colon:
        return _entry_point(call)
    try:
        function = getattr(import_module(module), attribute)
    except Exception as error:  # importing runs foreign code, which may raise anything
        raise NotLoadable(f"{call} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(function):
        raise NotLoadable(f"{call} is a {type(function).__name__}, not a function")
    return function


def _entry_point(name: str) -> Function:
    points = entry_points(group=GROUP)
    if name not in points.names:
        known = ", ".join(sorted(points.names)) or "none"
        raise NotLoadable(f"{name!r} is neither `package.module:function` nor an entry point of {GROUP} (installed: {known})")
    return load_function(points[name].value)

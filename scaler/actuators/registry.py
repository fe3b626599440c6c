"""Actuators by name: built-ins, and others through the entry-point group `headrace.actuators`, imported when they are asked for.

An entry point is a class or function that is called with (names, scaler) and returns an Actuator. Errors: ConfigurationError for a name that nobody
offers, and for a plug-in that cannot be loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from broker.log import Log
from scaler.actuators.actuator import ENTRY_POINTS, Actuator
from scaler.actuators.apart import ApartActuator
from scaler.actuators.fixed import FixedActuator
from scaler.actuators.local import LocalActuator
from schemas.errors import ConfigurationError
from schemas.names import Names

BUILT_IN = ("fixed", "local")
DEFAULT_ACTUATOR = "local"


def actuator_names() -> list[str]:
    """Every actuator that can be asked for here. Nothing is imported."""
    return [*BUILT_IN, *sorted(_plug_ins())]


def check_actuator(name: str) -> None:
    """Raises ConfigurationError where `create_actuator` would."""
    if name not in BUILT_IN:
        _loaded(_found(name))


def create_actuator(name: str, log: Log, names: Names, scaler: str) -> Actuator:
    """Build the named one for a scaler; a plug-in is loaded here and built when it starts. Raises ConfigurationError."""
    if name == "fixed":
        return FixedActuator()
    if name == "local":
        return LocalActuator(log, names, scaler)
    return ApartActuator(name, partial(_loaded(_found(name)), names, scaler))


def _plug_ins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS) if point.name not in BUILT_IN}


def _found(name: str) -> EntryPoint:
    point = _plug_ins().get(name)
    if point is None:
        raise ConfigurationError(f"actuator {name!r} is unknown; known: {', '.join(actuator_names())}")
    return point


def _loaded(point: EntryPoint) -> Callable[..., Any]:
    try:
        factory = point.load()
    except Exception as error:  # importing somebody's module may raise anything: it is named, and ends nothing else
        raise ConfigurationError(f"actuator {point.name!r} cannot be loaded ({type(error).__name__}: {error}); it is {point.value}") from error
    if not callable(factory):
        raise ConfigurationError(f"actuator {point.name!r} is {point.value}, which is no class or function that builds one")
    return factory

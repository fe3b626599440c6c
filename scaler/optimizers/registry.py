"""Optimizers by name: built-ins in a dict, others through the entry-point group `headrace.optimizers`, imported when they are asked for.

Errors: ConfigurationError for a name that nobody offers (it says which are near), for options that an optimizer does not take, and for a plug-in that
is broken (it is named); a broken plug-in ends nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from inspect import cleandoc
from typing import Any, cast

import msgspec

from scaler.optimizers.optimizer import ENTRY_POINTS, Optimizer
from schemas.errors import ConfigurationError

BUILT_IN = {
    "headrace": "scaler.optimizers.headrace:HeadraceOptimizer",
    "greedy": "scaler.optimizers.greedy:Greedy",
    "proteus": "scaler.optimizers.proteus:Proteus",
    "loki": "scaler.optimizers.loki:Loki",
    "themis": "scaler.optimizers.themis:Themis",
    "infaas": "scaler.optimizers.stepwise:Infaas",
    "sommelier": "scaler.optimizers.stepwise:Sommelier",
    "clipper-ha": "scaler.optimizers.static:ClipperHighAccuracy",
    "clipper-ht": "scaler.optimizers.static:ClipperHighThroughput",
    "horizontal-only": "scaler.optimizers.static:HorizontalOnly",
    "static-accurate": "scaler.optimizers.static:StaticAccurate",
    "static-fast": "scaler.optimizers.static:StaticFast",
}
"""In the order in which they are shown: pyproject.toml names the same, for tools that look there."""
DEFAULT_OPTIMIZER = "headrace"


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one optimizer."""

    name: str
    source: str = ""
    summary: str = ""
    """First line of its docstring."""
    description: str = ""
    """All of it."""
    package: str = ""
    """Distribution that it comes from."""
    fault: str = ""
    """Why it cannot be used; empty where it can."""


def optimizer_names() -> list[str]:
    """Every optimizer that can be asked for here: built in first, then installed ones by name. Nothing is imported."""
    return [*BUILT_IN, *sorted(_plug_ins())]


def create_optimizer(name: str, options: Mapping[str, float] | None = None) -> Optimizer:
    """Build the named optimizer; `options` become arguments of its constructor. Raises ConfigurationError."""
    factory = _factory(name)
    try:
        optimizer = factory(**(options or {}))
    except Exception as error:  # a plug-in's constructor may raise anything: it is named, and ends nothing else
        given = f" with the options {', '.join(options)}" if options else ""
        raise ConfigurationError(f"optimizer {name!r} cannot be built{given} ({type(error).__name__}: {error}){_of_package(name)}") from error
    if not callable(getattr(optimizer, "propose", None)):
        raise ConfigurationError(f"optimizer {name!r} has no propose(snapshot, limits){_of_package(name)}")
    return cast("Optimizer", optimizer)


def describe_optimizer(name: str) -> Described:
    """What is known of it; `fault` says why it cannot be built. Raises ConfigurationError for a name that nobody offers."""
    point = _plug_ins().get(name)
    package = point.dist.name if point is not None and point.dist is not None else "headrace"
    if point is None and name not in BUILT_IN:
        raise ConfigurationError(_unknown(name))
    try:
        optimizer = create_optimizer(name)
    except ConfigurationError as error:
        return Described(name=name, package=package, fault=str(error))
    text = cleandoc(type(optimizer).__doc__ or "")
    return Described(name=name, source=str(getattr(optimizer, "source", "")), summary=text.partition("\n")[0], description=text, package=package)


def describe_optimizers() -> list[Described]:
    """All of them, the broken ones too."""
    return [describe_optimizer(name) for name in optimizer_names()]


def _plug_ins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS) if point.name not in BUILT_IN}


def _factory(name: str) -> Callable[..., Any]:
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        return cast("Callable[..., Any]", getattr(import_module(module), attribute))
    point = _plug_ins().get(name)
    if point is None:
        raise ConfigurationError(_unknown(name))
    try:
        factory = point.load()
    except Exception as error:  # importing somebody's module may raise anything: it is named, and ends nothing else
        raise ConfigurationError(f"optimizer {name!r} cannot be loaded ({type(error).__name__}: {error}){_of_package(name)}") from error
    if not callable(factory):
        raise ConfigurationError(f"optimizer {name!r} is {point.value}, which is no class or function that builds one{_of_package(name)}")
    return cast("Callable[..., Any]", factory)


def _of_package(name: str) -> str:
    point = _plug_ins().get(name)
    return f"; it comes from {point.value} of {point.dist.name}" if point is not None and point.dist is not None else ""


def _unknown(name: str) -> str:
    names = optimizer_names()
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    hint = "did you mean " + " or ".join(repr(other) for other in near) + "?" if near else f"known: {', '.join(names)}"
    return f"optimizer {name!r} is unknown; {hint}"

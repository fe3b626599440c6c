"""Sinks of the taps by name: the built-in ones, and what others offer as entry points of the group `headrace.tap_sinks`.

An entry point names a function that takes a SinkContext and the sink's options as keywords, and returns a TapSink.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, cast

import msgspec

from broker.policy.tap_events import EventSource
from broker.tap_metrics import TapMetrics
from broker.tap_sinks.kafka import Transactions
from broker.tap_sinks.tap_sink import TapSink
from schemas.errors import ConfigurationError
from schemas.names import Names

GROUP = "headrace.tap_sinks"
BUILT_IN = {name: f"broker.tap_sinks.built_in:{name}_sink" for name in ("kafka", "parquet", "http", "otel")}


class SinkContext(msgspec.Struct, frozen=True):
    """What a sink may use of the tap that it is for."""

    names: Names
    source: EventSource
    metrics: TapMetrics
    transactions: Callable[[str], Transactions]
    """Kafka transactions under a transactional id."""
    group: str
    """The tap's consumer group."""
    stem: str
    """Unlike any other tap's, and any other life's of this one."""
    now_ms: Callable[[], float]
    """Measures time."""


MakeSink = Callable[..., TapSink]


def create_sink(name: str, context: SinkContext, options: Mapping[str, Any]) -> TapSink:
    """The sink of this name. Raises ConfigurationError where there is none, where its library is missing, or its options are wrong."""
    try:
        make = _find(name)
        return make(context, **options)
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"the sink {name!r} needs a package that is not here ({error.name}): pip install 'headrace[taps]'") from None
    except TypeError as error:
        raise ConfigurationError(f"the sink {name!r} does not take these options: {error}") from None


def known_sinks() -> list[str]:
    """Names of all that are installed."""
    return sorted({*BUILT_IN, *(point.name for point in entry_points(group=GROUP))})


def _find(name: str) -> MakeSink:
    target = BUILT_IN.get(name)
    if target is not None:
        module, _, attribute = target.partition(":")
        return cast("MakeSink", getattr(import_module(module), attribute))
    found = next((point for point in entry_points(group=GROUP) if point.name == name), None)
    if found is None:
        known = known_sinks()
        near = get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigurationError(f"there is no tap sink {name!r}{hint}; known: {', '.join(known)}")
    return cast("MakeSink", found.load())

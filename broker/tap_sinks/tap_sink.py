"""What every sink of the taps offers: it takes over shards, and stores what was tapped of them together with how far that goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from broker.policy.tap_join import Exchange, TapPosition
from schemas.errors import HeadraceError


class SinkUnavailable(HeadraceError):
    """A sink cannot store anything now; what was given to it is to be given again."""

    code = "tap_sink_unavailable"
    retryable = True


class TapBatch(msgspec.Struct, frozen=True):
    """What was tapped of one shard since the last batch, in order, and where the shard goes on after it."""

    exchanges: Sequence[Exchange]
    position: TapPosition


class TapSink(Protocol):
    """One place where tapped requests go. Its calls never overlap, but those of `open` for several shards."""

    async def start(self) -> None:
        """Raises ConfigurationError for what an operator has to put right."""
        ...

    async def open(self, shard: int) -> TapPosition | None:
        """Take a shard over: from now on nobody else stores anything of it. Raises SinkUnavailable or LogUnavailable where that cannot be had yet.

        Returns how far the shard is stored, where the sink knows that itself; None: as far as the consumer group has committed.
        """
        ...

    async def write(self, batches: Mapping[int, TapBatch]) -> set[int]:
        """Take what was tapped, by shard. Returns shards of which it is unknown what is stored: they are opened again.

        Raises SinkUnavailable: nothing was taken.
        """
        ...

    async def settle(self) -> Mapping[int, TapPosition]:
        """What is stored for good since the last call, to be committed for the group; sinks that commit themselves return nothing."""
        ...

    async def release(self, shards: Sequence[int]) -> None:
        """Give shards up; what was taken of them and is not stored may be forgotten."""
        ...

    async def close(self) -> None:
        """Store what can be stored in bounded time, and let everything go."""
        ...

    def buffered_bytes(self) -> int:
        """What was taken and is not stored yet."""
        ...

    def unready(self) -> str:
        """Why nothing can be stored now; empty where all is well."""
        ...

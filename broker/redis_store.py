# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# redis-py leaves its command replies and connection options untyped.
"""Responses in Redis or Valkey, by pipelined commands that may be repeated; the only place that imports redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from broker.store import Answer, Mark, State, belongs_to, state_of
from schemas.errors import ConfigurationError, StoreUnavailable
from schemas.names import Names

_log = structlog.get_logger(__name__)

DEFAULTS: Mapping[str, Any] = {
    "socket_timeout": 2.0,
    "socket_connect_timeout": 2.0,
    "socket_keepalive": True,
    "health_check_interval": 0,
    "retry_on_timeout": False,
    "retry_on_error": [],
    "max_connections": 16,
    "timeout": 2.0,
    "protocol": 2,
    "decode_responses": False,
    "driver_info": None,
}
"""Every one of these is said, because redis-py 8 changed what it does unasked. One repeat on a fresh connection, at once:
all commands here may be repeated, and a connection that the server closed while idle is not an outage."""
REPEATS = 1


class RedisStore:
    """The store on one Redis or Valkey (7 or later). Keys: `{p}:response:<id>`, `{p}:pending:<id>`, `{p}:filled:<name>`."""

    def __init__(self, url: str, names: Names, *, options: Mapping[str, Any] | None = None) -> None:
        """`options` go to redis-py's connections as they are (TLS, credentials, time-outs). Raises ConfigurationError."""
        self._names = names
        try:
            settings = {**DEFAULTS, "retry": Retry(NoBackoff(), REPEATS), **(options or {})}
            self._redis = Redis(connection_pool=BlockingConnectionPool.from_url(url, **settings))
        except (ValueError, TypeError, RedisError) as error:
            raise ConfigurationError(f"the Redis address or its options are wrong: {error}") from None

    async def ping(self) -> None:
        async with self._translated("ping"):
            await self._redis.execute_command("PING")

    async def put_responses(self, answers: Sequence[Answer]) -> list[bool]:
        if not answers:
            return []
        async with self._translated("put_responses"):
            pipeline = self._redis.pipeline(transaction=False)
            for request_id, value, ttl_ms in answers:
                pipeline.execute_command("SET", self._names.response_key(request_id), value, "NX", "PX", ttl_ms)
            pipeline.execute_command("DEL", *[self._names.pending_key(answer.request_id) for answer in answers])
            replies = await pipeline.execute()
            return [bool(reply) for reply in replies[:-1]]

    async def mark_pending(self, marks: Sequence[Mark]) -> None:
        if not marks:
            return
        async with self._translated("mark_pending"):
            answered = await self._answered([mark.request_id for mark in marks])
            pipeline = self._redis.pipeline(transaction=False)
            for request_id, ttl_ms in marks:
                if request_id not in answered:
                    pipeline.execute_command("SET", self._names.pending_key(request_id), b"", "PX", ttl_ms)
            await pipeline.execute()

    async def get(self, request_ids: Sequence[str]) -> list[bytes | None]:
        if not request_ids:
            return []
        keys = [self._names.response_key(request_id) for request_id in request_ids]
        values = await self._values(keys)
        if all(value is None or belongs_to(value, request_id) for request_id, value in zip(request_ids, values, strict=True)):
            return values
        # A cancelled command once left its reply on the connection for the next caller (CVE-2023-28858):
        # a record of another id means that no connection can be trusted.
        await self._reconnect()
        return [self._checked(request_id, value) for request_id, value in zip(request_ids, await self._values(keys), strict=True)]

    async def status(self, request_id: str) -> State:
        # One command, so that an answer which replaces its mark in between cannot look like neither.
        keys = [self._names.response_key(request_id), self._names.pending_key(request_id)]
        value, mark = await self._values(keys)
        if value is not None and not belongs_to(value, request_id):
            await self._reconnect()
            value, mark = await self._values(keys)
        return state_of(self._checked(request_id, value), pending=mark is not None)

    async def watermarks(self, names: Sequence[str]) -> list[int | None]:
        if not names:
            return []
        return [_offset(value) for value in await self._values([self._filled_key(name) for name in names])]

    async def set_watermark(self, name: str, offset: int) -> None:
        async with self._translated("set_watermark"):
            await self._redis.execute_command("SET", self._filled_key(name), offset)

    async def advance_watermarks(self, offsets: Mapping[str, int]) -> dict[str, int | None]:
        async with self._translated("advance_watermarks"):
            pipeline = self._redis.pipeline(transaction=False)
            for name, offset in offsets.items():
                # XX: a mark that is gone stays gone until the store was filled again.
                pipeline.set(self._filled_key(name), offset, xx=True, get=True)
            before = await pipeline.execute()
            return {name: _offset(value) for name, value in zip(offsets, before, strict=True)}

    async def close(self) -> None:
        await self._redis.aclose(close_connection_pool=True)

    def _filled_key(self, name: str) -> str:
        return f"{self._names.marker_key}:{name}"

    async def _answered(self, request_ids: Sequence[str]) -> set[str]:
        # One EXISTS over all of them says "none" in the usual case; only else it matters which.
        keys = [self._names.response_key(request_id) for request_id in request_ids]
        if not await self._redis.execute_command("EXISTS", *keys):
            return set()
        pipeline = self._redis.pipeline(transaction=False)
        for key in keys:
            pipeline.execute_command("EXISTS", key)
        return {request_id for request_id, exists in zip(request_ids, await pipeline.execute(), strict=True) if exists}

    async def _values(self, keys: Sequence[str]) -> list[bytes | None]:
        async with self._translated("mget"):
            values = await self._redis.execute_command("MGET", *keys)
        if not isinstance(values, list) or len(values) != len(keys):
            await self._reconnect()
            raise StoreUnavailable("the response store answered something else than what was asked: the connections were dropped")
        return values

    async def _reconnect(self) -> None:
        async with self._translated("reconnect"):
            await self._redis.connection_pool.disconnect()

    def _checked(self, request_id: str, value: bytes | None) -> bytes | None:
        if value is None or belongs_to(value, request_id):
            return value
        _log.error("response_corrupt", request_id=request_id, key=self._names.response_key(request_id), bytes=len(value))
        return None

    @asynccontextmanager
    async def _translated(self, operation: str) -> AsyncGenerator[None]:
        """Redis-py's errors as ours, and no cancellation lost: before Python 3.12 its writing (`asyncio.wait_for`) can swallow one."""
        task = asyncio.current_task()
        cancelled = task.cancelling() if task is not None else 0

        def see_cancelled() -> None:
            if task is not None and task.cancelling() > cancelled:
                raise asyncio.CancelledError

        try:
            yield
            see_cancelled()
        except (RedisError, OSError, TimeoutError) as error:
            see_cancelled()
            raise StoreUnavailable(f"the response store did not answer ({operation}): {type(error).__name__}: {error}") from error


def _offset(value: bytes | None) -> int | None:
    return int(value) if value is not None and value.isdigit() else None

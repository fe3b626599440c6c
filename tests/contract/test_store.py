"""One suite over both stores: what polling and the sink rely on."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import pytest
import redis.asyncio as redis

from broker.redis_store import RedisStore
from broker.store import Answer, Mark, MemoryStore, Store
from schemas.errors import ConfigurationError, StoreUnavailable
from schemas.names import Names
from schemas.terminal import JSON_TYPE, MSGPACK_TYPE, TERMINAL_VERSION, OutputTensor, Terminal, encode_terminal

TTL_MS = 60_000


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.valkey)])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    if request.param == "memory":
        yield MemoryStore()
        return
    names = Names(f"t{uuid.uuid4().hex[:12]}")
    opened = RedisStore(request.getfixturevalue("redis_url"), names)
    yield opened
    await opened.close()


def terminal(request_id: str, outcome: str = "completed", content_type: str = JSON_TYPE, *, label: int = 1) -> bytes:
    data = label.to_bytes(8, "little") if content_type == MSGPACK_TYPE else [label]
    outputs = [OutputTensor("label", [1], "INT64", data)] if outcome == "completed" else None
    record = Terminal(
        id=request_id, outcome=outcome, outputs=outputs, path=[], received_ms=1, finished_ms=2, attempts=1, epoch=1, version=TERMINAL_VERSION
    )
    return encode_terminal(record, content_type)


async def until(condition: Callable[[], Awaitable[bool]], *, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.005)


async def test_the_first_answer_of_an_id_stays(store: Store) -> None:
    first, late = terminal("a", "expired"), terminal("a", "completed")
    assert await store.put_responses([Answer("a", first, TTL_MS), Answer("b", terminal("b"), TTL_MS)]) == [True, True]
    assert await store.put_responses([Answer("a", late, TTL_MS), Answer("c", terminal("c"), TTL_MS)]) == [False, True]
    assert await store.get(["a", "missing", "c"]) == [first, None, terminal("c")]


async def test_the_first_of_two_in_one_batch_stays(store: Store) -> None:
    assert await store.put_responses([Answer("a", terminal("a", label=1), TTL_MS), Answer("a", terminal("a", label=2), TTL_MS)]) == [True, False]
    assert await store.get(["a"]) == [terminal("a", label=1)]


async def test_polling_tells_every_state_apart(store: Store) -> None:
    assert await store.status("a") == "unknown"
    await store.mark_pending([Mark("a", TTL_MS)])
    assert await store.status("a") == "pending"
    for outcome in ("completed", "expired", "rejected", "failed"):
        for content_type in (JSON_TYPE, MSGPACK_TYPE):
            request_id = f"{outcome}-{content_type}"
            await store.mark_pending([Mark(request_id, TTL_MS)])
            await store.put_responses([Answer(request_id, terminal(request_id, outcome, content_type), TTL_MS)])
            status = await store.status(request_id)
            assert isinstance(status, Terminal)
            assert (status.id, status.outcome) == (request_id, outcome)


async def test_a_mark_that_comes_late_hides_no_answer_and_does_not_stay(store: Store) -> None:
    await store.put_responses([Answer("a", terminal("a"), 80)])
    await store.mark_pending([Mark("a", TTL_MS), Mark("b", TTL_MS)])
    assert isinstance(await store.status("a"), Terminal)
    assert await store.status("b") == "pending"

    async def gone() -> bool:
        return await store.status("a") == "unknown"

    await until(gone)


async def test_an_answer_drops_its_mark(store: Store) -> None:
    await store.mark_pending([Mark("a", TTL_MS)])
    await store.put_responses([Answer("a", terminal("a"), 50)])

    async def gone() -> bool:
        return not isinstance(await store.status("a"), Terminal)

    await until(gone)
    assert await store.status("a") == "unknown"


async def test_answers_and_marks_end_with_their_time(store: Store) -> None:
    await store.put_responses([Answer("a", terminal("a"), 40), Answer("b", terminal("b"), TTL_MS)])
    await store.mark_pending([Mark("c", 40)])

    async def gone() -> bool:
        return await store.get(["a"]) == [None] and await store.status("c") == "unknown"

    await until(gone)
    assert await store.get(["b"]) == [terminal("b")]
    assert await store.put_responses([Answer("a", terminal("a", "failed"), TTL_MS)]) == [True]


async def test_a_record_of_another_id_is_never_handed_out(store: Store) -> None:
    await store.put_responses([Answer("b", terminal("b"), TTL_MS)])
    if isinstance(store, RedisStore):
        await store.put_responses([Answer("a", terminal("b"), TTL_MS), Answer("c", b"not a record", TTL_MS)])
        assert await store.get(["a", "b", "c"]) == [None, terminal("b"), None]
        assert await store.status("a") == "unknown"
    assert await store.get(["b"]) == [terminal("b")]


async def test_watermarks_tell_that_the_store_lost_something(store: Store) -> None:
    assert await store.watermarks(["responses:0", "responses:1"]) == [None, None]
    assert await store.advance_watermarks({"responses:0": 10}) == {"responses:0": None}
    assert await store.watermarks(["responses:0"]) == [None], "advancing must not create what the store lost"
    await store.set_watermark("responses:0", 10)
    assert await store.advance_watermarks({"responses:0": 12, "responses:1": 3}) == {"responses:0": 10, "responses:1": None}
    assert await store.watermarks(["responses:1", "responses:0"]) == [None, 12]


async def test_nothing_to_do_is_no_error(store: Store) -> None:
    await store.ping()
    assert await store.put_responses([]) == []
    assert await store.get([]) == []
    assert await store.watermarks([]) == []
    assert await store.advance_watermarks({}) == {}
    await store.mark_pending([])


async def test_the_memory_store_is_bounded() -> None:
    now_ms = 0.0
    store = MemoryStore(entries_max=3, bytes_max=10_000, now_ms=lambda: now_ms)
    await store.put_responses([Answer(str(number), terminal(str(number)), TTL_MS) for number in range(5)])
    assert [value is not None for value in await store.get(["0", "1", "2", "3", "4"])] == [False, False, True, True, True]
    await store.mark_pending([Mark(f"m{number}", TTL_MS) for number in range(5)])
    assert [await store.status(f"m{number}") for number in range(5)] == ["unknown", "unknown", "pending", "pending", "pending"]
    await store.put_responses([Answer("big", b"{" + b" " * 9_990, TTL_MS)])
    assert await store.get(["3", "4"]) == [None, None]
    now_ms = TTL_MS + 1.0
    assert await store.get(["big"]) == [None]


@pytest.mark.valkey
async def test_garbage_in_a_watermark_counts_as_lost(redis_url: str, prefix: str) -> None:
    store = RedisStore(redis_url, Names(prefix))
    foreign = redis.Redis.from_url(redis_url, protocol=2)
    await foreign.set(f"{prefix}:filled:responses:0", b"soon")
    assert await store.watermarks(["responses:0"]) == [None]
    await foreign.aclose()
    await store.close()


async def test_a_store_that_is_away_says_so_soon() -> None:
    store = RedisStore("redis://127.0.0.1:1", Names("away"), options={"socket_connect_timeout": 0.5})
    for call in (
        store.ping(),
        store.put_responses([Answer("a", b"{}", 1)]),
        store.mark_pending([Mark("a", 1)]),
        store.get(["a"]),
        store.status("a"),
        store.watermarks(["x"]),
        store.set_watermark("x", 1),
        store.advance_watermarks({"x": 1}),
    ):
        with pytest.raises(StoreUnavailable, match="did not answer"):
            await call
    await store.close()


def test_a_wrong_address_or_option_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError):
        RedisStore("http://somewhere", Names("x"))


ACTIONS: dict[str, Callable[[Store], Coroutine[Any, Any, object]]] = {
    "ping": lambda store: store.ping(),
    "put_responses": lambda store: store.put_responses([Answer("a", terminal("a"), TTL_MS)]),
    "mark_pending": lambda store: store.mark_pending([Mark("a", TTL_MS)]),
    "get": lambda store: store.get(["a"]),
    "status": lambda store: store.status("a"),
    "watermarks": lambda store: store.watermarks(["shard"]),
    "set_watermark": lambda store: store.set_watermark("shard", 1),
    "advance_watermarks": lambda store: store.advance_watermarks({"shard": 1}),
}


@pytest.mark.parametrize("action", ACTIONS)
async def test_a_cancellation_is_never_lost(store: Store, action: str) -> None:
    """A role that is told to end while it waits for the store ends, whichever turn of the loop that comes in."""
    await ACTIONS[action](store)
    for turns in range(30):
        task = asyncio.create_task(ACTIONS[action](store))
        for _ in range(turns):
            await asyncio.sleep(0)
        was_running = task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() == was_running, f"after {turns} turns"

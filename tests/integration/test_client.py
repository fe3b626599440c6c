"""The client over both pairs of log and store, answered by a responder that is told what to answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

import headrace
from broker.kafka import KafkaLog
from broker.log import Log, Record, TopicPartition
from broker.memory import MemoryLog
from broker.redis_store import RedisStore
from broker.sink import Sink, SinkSettings
from broker.store import MemoryStore, Store
from headrace import Client, Request, Response
from schemas.limits import Limits
from schemas.names import Names
from schemas.request import read_routing, request_id_of
from schemas.tensors import decode_inputs, encode_output
from schemas.terminal import MSGPACK_TYPE, TERMINAL_VERSION, ErrorDetail, PathStep, Terminal, encode_terminal

SHARDS = 2
STEP = PathStep(stage="s", variant="t/v", accuracy=0.9, accelerator="cpu", device="d", queued_ms=1.0, computed_ms=2.0, batch_size=1)


class Responder:
    """Reads requests and answers each as its tenant says: an outcome, or `silent`; completed answers hold the doubled input."""

    def __init__(self, log: Log, names: Names) -> None:
        self._log, self._names = log, names
        self.requests: dict[str, Record] = {}

    async def run(self) -> None:
        reader, writer = self._log.reader("responder"), self._log.writer("responder")
        await reader.start()
        await writer.start()
        await reader.assign({TopicPartition(self._names.requests, shard): "earliest" for shard in range(SHARDS)})
        try:
            while True:
                for partition, records in (await reader.read(timeout_ms=50, records_max=1000)).items():
                    answers = [answer for record in records if (answer := self._answer(record)) is not None]
                    if answers:
                        await writer.write(self._names.responses, partition.partition, answers)
        finally:
            await writer.close()
            await reader.close()

    def _answer(self, record: Record) -> tuple[bytes | None, bytes | None, list[tuple[str, bytes]]] | None:
        request_id = request_id_of(record.key, record.value, record.headers, Limits())
        self.requests[request_id] = record
        routing = read_routing(record.value, record.headers, Limits())
        outcome = routing.tenant or "completed"
        if outcome == "silent":
            return None
        content_type = dict(record.headers)["content-type"].decode()
        decoded = decode_inputs(record.value or b"", content_type, (), Limits())
        terminal = Terminal(
            id=request_id,
            outcome=outcome,
            endpoint=routing.endpoint,
            error=None if outcome == "completed" else ErrorDetail("deadline_exceeded" if outcome == "expired" else "overloaded", "told to", "s"),
            outputs=[encode_output("doubled", decoded.inputs["x"] * 2, raw=content_type == MSGPACK_TYPE)] if outcome == "completed" else None,
            path=[STEP],
            accuracy=0.9 if outcome == "completed" else None,
            received_ms=record.timestamp,
            finished_ms=record.timestamp + 3,
            attempts=1,
            epoch=1,
            version=TERMINAL_VERSION,
        )
        return request_id.encode(), encode_terminal(terminal, content_type), []


class Rig:
    """A log, a store, a sink and the responder."""

    def __init__(self, log: Log, store: Store, names: Names) -> None:
        self.log, self.store, self.names = log, store, names
        self.responder = Responder(log, names)


@pytest.fixture(params=["memory", pytest.param("genuine", marks=[pytest.mark.kafka, pytest.mark.valkey])])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    names = Names(request.getfixturevalue("prefix"))
    if request.param == "memory":
        log, store = MemoryLog(), MemoryStore()
    else:
        log, store = KafkaLog(request.getfixturevalue("kafka_address")), RedisStore(request.getfixturevalue("redis_url"), names)
    topics = [topic for topic in names.topics(shards=SHARDS) if topic.name in (names.requests, names.responses)]
    await log.create_topics(topics)
    rig = Rig(log, store, names)
    sink = Sink(log, store, names, settings=SinkSettings(read_wait_ms=20))
    tasks = [asyncio.create_task(sink.run()), asyncio.create_task(rig.responder.run())]
    yield rig
    sink.stop()
    tasks[1].cancel()
    await asyncio.wait(tasks)
    assert tasks[0].exception() is None
    await log.delete_topics([topic.name for topic in topics])
    await log.close()
    await store.close()


@pytest.fixture(params=["msgpack", "json"])
async def client(request: pytest.FixtureRequest, rig: Rig) -> AsyncIterator[Client]:
    async with Client.over(rig.log, rig.store, rig.names, encoding=request.param) as client:
        yield client


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + 15
    while not await condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        await asyncio.sleep(0.01)


def rows(*values: float) -> dict[str, np.ndarray]:
    return {"x": np.array(values, dtype=np.float32).reshape(-1, 1)}


async def test_infer_gives_the_answer_back_as_arrays(client: Client) -> None:
    response = await client.infer("fashion", rows(1, 2.5), min_accuracy=0.5, timeout_ms=10_000)
    assert response.outcome == "completed"
    assert response.completed
    assert response.outputs["doubled"].dtype == np.float32
    np.testing.assert_array_equal(response.outputs["doubled"], [[2.0], [5.0]])
    assert (response.accuracy, response.path, response.attempts, response.latency_ms) == (0.9, (STEP,), 1, 3)
    assert response.raise_for_outcome() is response


async def test_what_is_not_completed_raises_its_typed_error(client: Client) -> None:
    with pytest.raises(headrace.DeadlineExceeded, match="told to") as expired:
        await client.infer("fashion", rows(1), tenant="expired", deadline=datetime.now(UTC) + timedelta(seconds=10))
    assert expired.value.stage == "s"
    request_id = await client.submit("fashion", rows(1), tenant="rejected")
    with pytest.raises(headrace.Overloaded) as rejected:
        await client.result(request_id)
    assert rejected.value.request_id == request_id
    assert rejected.value.retryable


async def test_polling_tells_the_states_apart(client: Client) -> None:
    assert (await client.poll("never")).state == "unknown"
    ids = {
        state: await client.submit("fashion", rows(1), tenant=state, request_id=f"id-{state}")
        for state in ("silent", "completed", "expired", "failed")
    }
    assert ids["silent"] == "id-silent"
    for state, request_id in ids.items():
        wanted = "pending" if state == "silent" else state

        async def reached(request_id: str = request_id, wanted: str = wanted) -> bool:
            return (await client.poll(request_id)).state == wanted

        await until(reached, f"{request_id} is {wanted}")
    status = await client.poll("id-completed")
    assert status.response is not None
    np.testing.assert_array_equal(status.response.outputs["doubled"], [[2.0]])


async def test_a_wait_that_is_over_says_so(client: Client) -> None:
    request_id = await client.submit("fashion", rows(1), tenant="silent")
    started = time.monotonic()
    with pytest.raises(headrace.StillPending, match=request_id):
        await client.result(request_id, wait_ms=50)
    assert time.monotonic() - started < 1
    with pytest.raises(TimeoutError):
        await client.result("never", wait_ms=0)


async def test_many_are_submitted_in_batches_and_come_as_they_are_done(client: Client, rig: Rig) -> None:
    requests = [Request(endpoint="fashion", inputs=rows(number), tenant="expired" if number % 10 == 0 else "") for number in range(600)]
    ids = await client.submit_many([*requests, {"endpoint": "fashion", "inputs": rows(7), "request_id": "last"}])
    assert len(set(ids)) == 601
    assert ids[-1] == "last"
    found: dict[str, Response] = {}
    async for response in client.results(ids, wait_ms=20_000):
        assert response.id not in found
        found[response.id] = response
    for number, request_id in enumerate(ids[:-1]):
        response = found[request_id]
        if number % 10 == 0:
            assert response.error is not None
            assert response.error.code == "deadline_exceeded"
        else:
            assert response.outputs["doubled"].item() == 2 * number
    assert {record.partition for record in rig.responder.requests.values()} == {0, 1}


async def test_missing_results_are_counted(client: Client) -> None:
    ids = await client.submit_many([Request(endpoint="fashion", inputs=rows(1), tenant=tenant) for tenant in ("", "silent", "silent")])
    found: list[Response] = []

    async def collect() -> None:
        async for response in client.results(ids, wait_ms=1_000):
            found.append(response)

    with pytest.raises(headrace.StillPending, match="2 of 3"):
        await collect()
    assert [response.id for response in found] == ids[:1]


async def test_waiters_of_one_id_share_its_answer_and_may_leave(client: Client) -> None:
    request_id = "shared"
    waiting = [asyncio.create_task(client.result(request_id, wait_ms=20_000)) for _ in range(5)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await client.submit("fashion", rows(3), request_id=request_id)
    for response in await asyncio.gather(*waiting[1:]):
        assert response.id == request_id
    assert waiting[0].cancelled()


async def test_an_already_answered_id_keeps_its_first_answer(client: Client) -> None:
    await client.submit("fashion", rows(1), request_id="twice")
    first = await client.result("twice")
    await client.submit("fashion", rows(2), request_id="twice", tenant="failed")
    await client.submit("fashion", rows(2), request_id="after")
    await client.result("after")
    assert (await client.result("twice")).outputs["doubled"].item() == first.outputs["doubled"].item() == 2.0


async def test_bad_requests_are_refused_before_they_are_published(client: Client, rig: Rig) -> None:
    for refused in ({"priority": 99}, {"min_accuracy": 2.0}, {"deadline": datetime(2030, 1, 1)}, {"request_id": "x" * 200}):  # noqa: DTZ001
        with pytest.raises(headrace.BadRequest):
            await client.submit("fashion", rows(1), **refused)
    with pytest.raises(headrace.BadRequest, match="fields of a request"):
        await client.submit_many([{"endpoint": "fashion", "input": {}}])
    await client.infer("fashion", rows(1), request_id="only")
    assert list(rig.responder.requests) == ["only"]


async def test_whoever_waits_when_the_client_closes_is_told(rig: Rig) -> None:
    async with Client.over(rig.log, rig.store, rig.names) as client:
        waiting = asyncio.create_task(client.result("never"))
        await asyncio.sleep(0.01)
    with pytest.raises(headrace.HeadraceError, match="closed"):
        await waiting
    with pytest.raises(headrace.ConfigurationError, match="closed"):
        await client.submit("fashion", rows(1))


async def test_a_client_without_its_topics_says_what_to_do(rig: Rig) -> None:
    with pytest.raises(headrace.ConfigurationError, match="headrace up"):
        async with Client.over(rig.log, rig.store, Names("nobody-made-this")):
            pass
    with pytest.raises(headrace.ConfigurationError, match="encoding"):
        Client.over(rig.log, rig.store, rig.names, encoding="xml")


@pytest.mark.kafka
@pytest.mark.valkey
async def test_a_client_of_its_own_connections(kafka_address: str, redis_url: str, prefix: str) -> None:
    names = Names(prefix)
    log = KafkaLog(kafka_address)
    await log.create_topics([topic for topic in names.topics(shards=1) if topic.name == names.requests])
    async with Client(kafka=kafka_address, redis=redis_url, prefix=prefix, redis_options={"socket_timeout": 1.0}) as client:
        request_id = await client.submit("fashion", rows(1))
        assert (await client.poll(request_id)).state == "unknown", "nothing marks it: no sink runs"
    await log.delete_topics([names.requests])
    await log.close()


@pytest.mark.kafka
async def test_a_store_that_is_away_is_named_when_the_wait_is_over(kafka_address: str, prefix: str) -> None:
    log = MemoryLog()
    names = Names(prefix)
    await log.create_topics([topic for topic in names.topics(shards=1) if topic.name == names.requests])
    store = RedisStore("redis://127.0.0.1:1", names)
    async with Client.over(log, store, names) as client:
        with pytest.raises(headrace.StoreUnavailable):
            await client.result("a", wait_ms=100)
        with pytest.raises(headrace.StoreUnavailable):
            await client.poll("a")
    await store.close()

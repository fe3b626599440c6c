"""The client: publishes requests on the log and polls their answers from the response store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

from broker.kafka import KafkaLog
from broker.log import Log, Message, Writer
from broker.poller import Poller
from broker.published import Encoding, Published, Request, RequestOptions, deadline_ms_of, publish, shard_of
from broker.redis_store import RedisStore
from broker.response import Response, Status, status_of
from broker.store import Store
from schemas.errors import BadRequest, ConfigurationError, HeadraceError, StillPending
from schemas.limits import Limits
from schemas.names import Names

WAIT_MS = 30_000
"""How long a client waits for an answer where nothing says how long."""
MARGIN_MS = 2_000
"""How long after the deadline `infer` still waits: for the answer's way, and for a failover."""
BATCH_REQUESTS_MAX = 500
BATCH_BYTES_MAX = 4 << 20


class _Link:
    """What an open client holds."""

    def __init__(self, log: Log, store: Store, writer: Writer, poller: Poller, *, owned: bool) -> None:
        self.log = log
        self.store = store
        self.writer = writer
        self.poller = poller
        self.shards = 0
        self._owned = owned

    async def open(self, topic: str) -> None:
        self.shards = await self.log.partitions(topic)
        if not self.shards:
            raise ConfigurationError(f"topic {topic} does not exist: start Headrace (`headrace up`), or set the prefix that it runs with")
        await self.writer.start()

    async def close(self) -> None:
        await self.poller.close()
        await self.writer.close()
        if self._owned:
            await self.store.close()
            await self.log.close()


class Client:
    """Submits requests and fetches their answers; one per process is enough, for any number of tasks.

    ```python
    async with Client(kafka="localhost:9092", redis="redis://localhost:6379") as client:
        response = await client.infer("fashion", {"image": images}, min_accuracy=0.9, timeout_ms=300)
    ```

    Every method may raise LogUnavailable or StoreUnavailable; a LogUnavailable of `submit` means that it is unknown whether the
    request was published: submit it again under the same `request_id`.
    """

    def __init__(
        self,
        *,
        kafka: str,
        redis: str,
        prefix: str = "headrace",
        encoding: Encoding = "msgpack",
        kafka_options: Mapping[str, Any] | None = None,
        redis_options: Mapping[str, Any] | None = None,
        limits: Limits | None = None,
    ) -> None:
        """`kafka`: bootstrap servers. `redis`: a URL. The options go to the client libraries as they are (TLS, SASL, time-outs)."""
        names = Names(prefix)

        def connect() -> tuple[Log, Store]:
            return KafkaLog(kafka, options=kafka_options or {}), RedisStore(redis, names, options=redis_options)

        self._set_up(connect, names, encoding, limits, owned=True)

    @classmethod
    def over(cls, log: Log, store: Store, names: Names, *, owned: bool = False, encoding: Encoding = "msgpack", limits: Limits | None = None) -> Self:
        """A client over a log and a store that are there already; closes them only where `owned`."""
        client = cls.__new__(cls)
        client._set_up(lambda: (log, store), names, encoding, limits, owned=owned)  # noqa: SLF001 - its own class
        return client

    def _set_up(self, connect: Callable[[], tuple[Log, Store]], names: Names, encoding: Encoding, limits: Limits | None, *, owned: bool) -> None:
        if encoding not in ("json", "msgpack"):
            raise ConfigurationError(f"encoding {encoding!r} is neither 'json' nor 'msgpack'")
        self._connect = connect
        self._names = names
        self._encoding: Encoding = encoding
        self._limits = limits or Limits()
        self._owned = owned
        self._link: _Link | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        """Raises ConfigurationError where this installation's topics do not exist."""
        log, store = self._connect()
        link = _Link(log, store, log.writer(f"{self._names.prefix}-client"), Poller(store), owned=self._owned)
        try:
            await link.open(self._names.requests)
        except BaseException:
            await link.close()
            raise
        self._link = link
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Whoever still waits gets a HeadraceError; requests that were submitted go on."""
        link, self._link = self._link, None
        self._closed = True
        if link is not None:
            await link.close()

    @property
    def log(self) -> Log:
        """The log behind it, for tools that read other topics. Raises ConfigurationError where the client is not open."""
        return self._open().log

    @property
    def names(self) -> Names:
        """Of topics and keys."""
        return self._names

    async def submit(self, endpoint: str, inputs: Mapping[str, Any], **options: Unpack[RequestOptions]) -> str:
        """Publish a request; returns its id once the log has acknowledged it.

        `inputs`: arrays by tensor name, rows on the first axis (the same number in each); dtypes bool, (u)int8-64, float16-64, and str,
        bytes or object for BYTES. Options: see RequestOptions. Raises BadRequest or TooLarge before anything is published;
        every other refusal is the request's outcome.
        """
        (request_id,) = await self._publish([publish(Request(endpoint=endpoint, inputs=inputs, **options), self._encoding, self._limits)])
        return request_id

    async def submit_many(self, requests: Iterable[Request | Mapping[str, Any]]) -> list[str]:
        """Publish requests (or mappings with their fields) in batches; returns the ids in their order.

        Raises as `submit` does, at the first that is wrong: those before it may have been published.
        """
        ids: list[str] = []
        batch: list[Published] = []
        size_bytes = 0
        for request in requests:
            published = publish(request if isinstance(request, Request) else _request(request), self._encoding, self._limits)
            batch.append(published)
            size_bytes += published.size_bytes
            if len(batch) >= BATCH_REQUESTS_MAX or size_bytes >= BATCH_BYTES_MAX:
                ids += await self._publish(batch)
                batch, size_bytes = [], 0
        return ids + await self._publish(batch)

    async def poll(self, request_id: str) -> Status:
        """Where the request stands now. Unknown: never seen, or its answer's time is over (one hour by default)."""
        return status_of(request_id, await self._open().store.status(request_id))

    async def result(self, request_id: str, *, wait_ms: float = WAIT_MS) -> Response:
        """The answer of a completed request, waiting for it.

        Raises the RequestError of its error code where the outcome is another, and StillPending (a TimeoutError) when the wait is over.
        """
        return (await self._wait(request_id, wait_ms)).raise_for_outcome()

    async def infer(self, endpoint: str, inputs: Mapping[str, Any], **options: Unpack[RequestOptions]) -> Response:
        """Submit, and wait for the answer until a little after the deadline (30 s where the request names none). Raises as both do."""
        wait_ms = _wait_ms(options)
        return await self.result(await self.submit(endpoint, inputs, **options), wait_ms=wait_ms)

    async def results(self, request_ids: Iterable[str], *, wait_ms: float = WAIT_MS) -> AsyncIterator[Response]:
        """The answers as they come, in any order, whatever their outcome (see Response.error).

        Raises StillPending, saying how many are missing, when the wait for all of them is over.
        """
        poller = self._open().poller
        ids = list(dict.fromkeys(request_ids))
        futures = [poller.watch(request_id) for request_id in ids]
        done: asyncio.Queue[asyncio.Future[Response]] = asyncio.Queue()
        for future in futures:
            future.add_done_callback(done.put_nowait)
        ends = time.monotonic() + wait_ms / 1000
        try:
            for left in range(len(ids), 0, -1):
                try:
                    async with asyncio.timeout(max(ends - time.monotonic(), 0)):
                        future = await done.get()
                except TimeoutError:
                    raise self._late(f"{left} of {len(ids)} requests have", wait_ms) from None
                yield future.result()
        finally:
            for request_id, future in zip(ids, futures, strict=True):
                future.remove_done_callback(done.put_nowait)
                poller.release(request_id)

    async def _wait(self, request_id: str, wait_ms: float) -> Response:
        poller = self._open().poller
        future = poller.watch(request_id)
        try:
            done, _ = await asyncio.wait([future], timeout=wait_ms / 1000)
            if not done:
                raise self._late(f"request {request_id} has", wait_ms)
            return future.result()
        finally:
            poller.release(request_id)

    def _late(self, what: str, wait_ms: float) -> HeadraceError:
        problem = self._open().poller.problem
        return problem if problem is not None else StillPending(f"{what} no answer after {wait_ms:.0f} ms")

    async def _publish(self, batch: Sequence[Published]) -> list[str]:
        link = self._open()
        messages: dict[int, list[Message]] = {}
        for published in batch:
            messages.setdefault(shard_of(published.request_id, link.shards), []).append(published.message)
        await asyncio.gather(*(link.writer.write(self._names.requests, shard, found) for shard, found in messages.items()))
        return [published.request_id for published in batch]

    def _open(self) -> _Link:
        if self._link is None:
            state = "closed" if self._closed else "not open"
            raise ConfigurationError(f"the client is {state}: use it in `async with Client(...) as client:`")
        return self._link


def _request(fields: Mapping[str, Any]) -> Request:
    try:
        return Request(**fields)
    except TypeError as error:
        raise BadRequest(f"not the fields of a request: {error}") from None


def _wait_ms(options: RequestOptions) -> float:
    """Until the deadline, as far as the request itself tells it, with a margin."""
    waits: list[float] = []
    deadline_ms = deadline_ms_of(options.get("deadline"))
    if deadline_ms is not None:
        waits.append(deadline_ms - time.time() * 1000)
    timeout_ms = options.get("timeout_ms")
    if timeout_ms is not None:
        waits.append(timeout_ms)
    return max(min(waits), 0.0) + MARGIN_MS if waits else WAIT_MS

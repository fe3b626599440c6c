"""CloudEvents over HTTP in the batched content mode: a JSON array of events in each request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

import aiohttp

from broker.policy.tap_events import EventSource, events_of
from broker.policy.tap_join import Exchange
from broker.tap_metrics import TapMetrics
from broker.tap_sinks.buffered import Parcel, SinkRefused
from broker.tap_sinks.tap_sink import SinkUnavailable
from schemas.cloud_event import BATCH_TYPE, json_batch, json_event
from schemas.errors import ConfigurationError

TIMEOUT_S = 10.0
LATER = (408, 425, 429)
"""Statuses of the fourth hundred that are worth another attempt."""


class HttpCarrier:
    """The Carrier protocol."""

    kind = "event"

    def __init__(self, url: str, source: EventSource, metrics: TapMetrics, *, timeout_s: float = TIMEOUT_S) -> None:
        """Raises ConfigurationError for what is no HTTP address."""
        self._url = checked_url(url)
        self._source = source
        self._metrics = metrics
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Nothing is sent yet."""
        self._session = aiohttp.ClientSession(timeout=self._timeout)

    def parcels(self, exchange: Exchange) -> Iterable[Parcel]:
        request, responses = events_of(exchange, self._source)
        for event in (request, *responses):
            if "truncated" in event.attributes:
                self._metrics.truncated.inc()
            body = json_event(event)
            yield Parcel(body, len(body))

    async def deliver(self, parcels: Sequence[Parcel]) -> None:
        assert self._session is not None
        body = json_batch([parcel.content for parcel in parcels])
        try:
            async with self._session.post(self._url, data=body, headers={"content-type": BATCH_TYPE}) as answer:
                status = answer.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise SinkUnavailable(f"{self._url}: {error!r}") from None
        if status < 300:
            return
        if status >= 500 or status in LATER:
            raise SinkUnavailable(f"{self._url} answers {status}")
        raise SinkRefused(f"{self._url} answers {status}")

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


def checked_url(url: str) -> str:
    """The address. Raises ConfigurationError where it is none of HTTP."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(f"{url!r} is no address of a sink: write http://HOST:PORT/PATH")
    return url

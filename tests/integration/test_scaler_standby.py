"""A scaler that stands by for long still leads when the leader ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from broker.kafka import KafkaLog
from scaler import app
from scaler.control_loop_feed import Told
from schemas.names import Names

Eventually = Callable[..., Awaitable[Any]]
POLL_S_MAX = 5.0


class Listening:
    """Who leads, and what was told."""

    def __init__(self) -> None:
        self.leads = False
        self.offsets: list[int] = []

    def assigned(self) -> None:
        self.leads = True

    def revoked(self) -> None:
        self.leads = False

    def told(self, records: Sequence[Told]) -> None:
        self.offsets += [record.offset for record in records]


async def test_who_stands_by_for_longer_than_a_member_may_be_silent_still_leads(
    kafka_address: str, prefix: str, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "POLL_S_MAX", POLL_S_MAX)
    names = Names(prefix)
    log = KafkaLog(kafka_address)
    await log.create_topics(names.topics())
    writer = log.writer("test")
    await writer.start()
    listening = {name: Listening() for name in ("one", "two")}
    feeds = {name: app.FaustFeed(kafka_address, names, name=name) for name in listening}
    running = [asyncio.create_task(feeds["one"].run(listening["one"]))]
    try:
        await eventually(lambda: listening["one"].leads, timeout_s=30.0)
        running.append(asyncio.create_task(feeds["two"].run(listening["two"])))
        begun_s = asyncio.get_running_loop().time()
        written = 0

        async def stood_by() -> bool:
            nonlocal written
            written += 3
            await writer.write(names.telemetry, 0, [(b"k", b"{}", [])] * 3)
            return asyncio.get_running_loop().time() - begun_s > 2 * POLL_S_MAX

        await eventually(stood_by, timeout_s=30.0, interval_s=0.1)
        assert listening["one"].leads
        # Several records of a fetch are told in their order, each once.
        await eventually(lambda: max(listening["one"].offsets, default=-1) == written - 1, timeout_s=10.0)
        assert listening["one"].offsets == sorted(set(listening["one"].offsets))
        feeds["one"].stop()
        await eventually(lambda: listening["two"].leads, timeout_s=20.0)
        assert not listening["one"].leads
    finally:
        for feed in feeds.values():
            feed.stop()
        await asyncio.wait(running, timeout=10.0)
        await writer.close()
        await log.delete_topics([topic.name for topic in names.topics()])
        await log.close()

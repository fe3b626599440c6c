"""Watches canaries: reads catalog, commands and answers, and writes the endpoint's record where a share is to change.

Runs beside the planner and acts only while that leads. All decisions are CanaryBook's (broker/policy/canary.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge

from broker.log import Log, Record, Start, TopicPartition
from broker.messages import is_shadow
from broker.policy.canary import CanaryBook, Written
from broker.reading import is_behind, opened
from schemas.alerts import alerts_topic, decode_alert
from schemas.canary import (
    NODE_MARK,
    canary_topic,
    canary_topics,
    decode_command,
    decode_status,
    encode_canary,
    status_key,
)
from schemas.catalog import catalog_key, decode_endpoint, encode_catalog
from schemas.errors import LogUnavailable
from schemas.feedback import Labels, decode_feedback, feedback_topic, labels_of
from schemas.names import Names
from schemas.terminal import COMPLETED, TerminalHead, decode_terminal, decode_terminal_head

logger = structlog.get_logger()
READ_MS = 100
TURN_MS = 250
"""Where no canary is watched."""
STATE_WAIT_MS = 2_000
"""Commands are rare: the wait at the broker ends as soon as one is there."""
RECORDS_MAX = 2_000
STANDING_MS = 1_000.0
RETRY_S = 0.5


class CanaryControl:
    """A role. `leading` says whether this process decides; of several, one does."""

    def __init__(
        self,
        log: Log,
        names: Names,
        *,
        name: str,
        leading: Callable[[], bool],
        registry: CollectorRegistry,
        now_ms: Callable[[], float] = lambda: time.time() * 1000.0,
    ) -> None:
        self._log, self._names, self._leading, self._now_ms = log, names, leading, now_ms
        self._book = CanaryBook(name)
        self._state = log.reader(f"{name}-canary-state", fetch_wait_ms=STATE_WAIT_MS)
        self._answers = log.reader(f"{name}-canary", fetch_wait_ms=READ_MS)
        self._writer = log.writer(f"{name}-canary")
        self._following = False
        self._said_ms = 0.0
        self._started = False
        self._stopping = asyncio.Event()
        self._watched = Gauge("headrace_canaries", "Canaries that run and are judged here", registry=registry)
        self._decisions = Counter("headrace_canary_decisions", "Changes of a candidate's share", ["phase"], registry=registry)

    async def run(self) -> None:
        """Serve until stopped."""
        await self._log.create_topics([*self._names.topics(), *canary_topics(self._names)])
        control = [TopicPartition(self._names.catalog, 0), TopicPartition(canary_topic(self._names), 0)]
        async with opened(self._writer, self._state, self._answers):
            await self._state.assign(dict.fromkeys(control, "earliest"))
            await self._catch_up(control)
            self._started = True
            while not self._stopping.is_set():
                await self._turn()

    def stop(self) -> None:
        self._stopping.set()

    def unready(self) -> str:
        return "" if self._started else "reading the catalog"

    def unhealthy(self) -> str:
        return ""

    async def _catch_up(self, control: Sequence[TopicPartition]) -> None:
        while not self._stopping.is_set():
            try:
                # Over the connection on which nothing is fetched yet: the other one's answers wait for what it fetches.
                ends = await self._answers.end_offsets(control)
                while await is_behind(self._state, ends):
                    await self._read_state(READ_MS)
            except LogUnavailable as error:
                await self._bear(error)
            else:
                return

    async def _turn(self) -> None:
        try:
            await self._read_state(TURN_MS if not self._book.watches else 1)
            self._book.lead(leading=self._leading())
            await self._follow()
            if self._following:
                self._fold(await self._answers.read(timeout_ms=READ_MS, records_max=RECORDS_MAX))
            await self._write(self._book.step(self._now_ms()))
            await self._say()
        except LogUnavailable as error:
            await self._bear(error)

    async def _bear(self, error: LogUnavailable) -> None:
        logger.warning("the log does not answer", error=str(error))
        await asyncio.sleep(RETRY_S)

    async def _read_state(self, timeout_ms: int) -> None:
        for partition, records in (await self._state.read(timeout_ms=timeout_ms, records_max=RECORDS_MAX)).items():
            for record in records:
                try:
                    if partition.topic == self._names.catalog:
                        self._catalog_record(record)
                    else:
                        self._canary_record(record)
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    logger.warning("control record skipped", topic=record.topic, offset=record.offset, error=str(error))

    def _catalog_record(self, record: Record) -> None:
        name = (record.key or b"").decode()
        if name and NODE_MARK not in name:  # of endpoints: all other keys have a slash
            self._book.endpoint(name, None if record.value is None else decode_endpoint(record.value))

    def _canary_record(self, record: Record) -> None:
        key = (record.key or b"").decode()
        if record.value is None:
            return
        if NODE_MARK in key:
            self._book.status(decode_status(record.value))
        else:
            self._book.command(key, record.offset, decode_command(record.value))

    async def _follow(self) -> None:
        """Read answers while a canary runs, from where the last leader had counted, else from now on."""
        self._watched.set(len(self._book.watches))
        if bool(self._book.watches) == self._following:
            return
        self._following = bool(self._book.watches)
        starts = self._book.start_offsets()
        positions: dict[TopicPartition, Start] = {}
        topics = [self._names.responses, self._names.tap_responses, feedback_topic(self._names), alerts_topic(self._names)] if self._following else []
        for topic in topics:
            for number in range(await self._log.partitions(topic)):
                positions[TopicPartition(topic, number)] = starts.get(f"{topic}:{number}", "latest")
        await self._answers.assign(positions)

    def _fold(self, read: Mapping[TopicPartition, Sequence[Record]]) -> None:
        for partition, records in read.items():
            place = f"{partition.topic}:{partition.partition}"
            for record in records:
                try:
                    self._fold_record(place, record)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    # Anybody can write there; what is no record of ours says nothing about a canary.
                    continue

    def _fold_record(self, place: str, record: Record) -> None:
        if record.value is None:
            return
        if record.topic == feedback_topic(self._names):
            feedback = decode_feedback(record.value)
            self._book.feedback(place, record.offset, record.key.decode() if record.key else feedback.id or "", feedback)
            return
        if record.topic == alerts_topic(self._names):
            self._book.alert(place, record.offset, decode_alert(record.value))
            return
        if record.key is None:
            return
        if record.topic == self._names.tap_responses and not is_shadow(record):
            return
        head = decode_terminal_head(record.value)
        labels = self._labels(head, record.value)
        fold = self._book.shadow if record.topic == self._names.tap_responses else self._book.answer
        fold(place, record.offset, head, labels)

    def _labels(self, head: TerminalHead, value: bytes) -> Labels | None:
        """What an answer says, where that is asked for: the class (argmax) or the value of each row of its first output."""
        if head.outcome != COMPLETED or not self._book.compares or not any(key[0] == head.endpoint for key in self._book.watches):
            return None
        return labels_of(decode_terminal(value))

    async def _write(self, changes: Sequence[Written]) -> None:
        for problem in self._book.problems:
            logger.warning("canary command refused", problem=problem)
        self._book.problems.clear()
        for change in changes:
            status = change.status
            if change.endpoint is not None:
                await self._writer.write(self._names.catalog, 0, [(catalog_key(change.endpoint), encode_catalog(change.endpoint), ())])
            await self._writer.write(canary_topic(self._names), 0, [(status_key(status.endpoint, status.node), encode_canary(status), ())])
            self._decisions.labels(status.phase).inc()
            logger.info(
                "canary", endpoint=status.endpoint, node=status.node, phase=status.phase, percent=status.percent, reason=status.reason, by=status.by
            )

    async def _say(self) -> None:
        now_ms = self._now_ms()
        if now_ms - self._said_ms < STANDING_MS:
            return
        self._said_ms = now_ms
        messages = [(status_key(s.endpoint, s.node), encode_canary(s), ()) for s in self._book.standings(now_ms)]
        if messages:
            await self._writer.write(canary_topic(self._names), 0, messages)

"""Watches what answers are worth: reads feedback and answers, writes what was learned, and says where a promise is broken.

Runs beside the planner and acts only while that leads. All decisions are AccuracyBook's (scaler/policy/accuracy.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec
import structlog
from prometheus_client import CollectorRegistry

from broker.log import Log, Record, Start, TopicPartition
from broker.reading import is_behind, opened
from scaler.accuracy_metrics import AccuracyMetrics
from scaler.agreement import AgreementFeed
from scaler.policy.accuracy import AccuracyBook, Finding
from scaler.policy.accuracy_window import WindowSettings
from schemas.alerts import Alert, alerts_spec, alerts_topic, encode_alert
from schemas.catalog import Catalog
from schemas.errors import LogUnavailable
from schemas.feedback import decode_feedback, feedback_spec, feedback_topic
from schemas.learned import (
    LEARNED_KEY,
    STATE_KEY,
    AccuracyState,
    Learned,
    accuracy_spec,
    accuracy_topic,
    decode_accuracy_state,
    encode_learned,
)
from schemas.names import Names

logger = structlog.get_logger()
READ_MS = 100
TURN_MS = 250
"""Without feedback and answers a turn takes so long."""
FETCH_WAIT_MS = 1_000
"""How long Kafka holds a question to which it has no answer: what is written meanwhile is told at once."""
RECORDS_MAX = 2_000
TELL_MS = 1_000.0
RETRY_S = 0.5
CATCH_UP_READS = 200


class AccuracyControl:
    """A role. `leading` says whether this process judges; of several, one does."""

    def __init__(
        self,
        log: Log,
        names: Names,
        *,
        name: str,
        leading: Callable[[], bool],
        registry: CollectorRegistry,
        now_ms: Callable[[], float] = lambda: time.time() * 1000.0,
        window: WindowSettings | None = None,
    ) -> None:
        self._log, self._names, self._name, self._leading, self._now_ms = log, names, name, leading, now_ms
        self._window = window or WindowSettings()
        self._control = log.reader(f"{name}-accuracy-state", fetch_wait_ms=FETCH_WAIT_MS)
        self._records = log.reader(f"{name}-accuracy", fetch_wait_ms=FETCH_WAIT_MS)
        self._ends = log.reader(f"{name}-accuracy-ends")
        """Fetches nothing, so that its questions do not stand behind a long wait."""
        self._agreement = AgreementFeed(log, names, name)
        self._writer = log.writer(f"{name}-accuracy")
        self._control_partitions = [TopicPartition(names.catalog, 0), TopicPartition(accuracy_topic(names), 0)]
        self._feedback = TopicPartition(feedback_topic(names), 0)
        self._catalog = Catalog()
        self._state: AccuracyState | None = None
        self._book: AccuracyBook | None = None
        """While this process leads."""
        self._answers_followed = False
        self._heard_ms = 0.0
        """When feedback was read last."""
        self._told_ms = 0.0
        self._told = Learned()
        self._metrics = AccuracyMetrics(registry)
        self._started = False
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Serve until stopped."""
        await self._log.create_topics([*self._names.topics(), feedback_spec(self._names), accuracy_spec(self._names), alerts_spec(self._names)])
        async with opened(self._writer, self._control, self._records, self._ends, self._agreement.reader):
            await self._control.assign(dict.fromkeys(self._control_partitions, "earliest"))
            while not self._stopping.is_set():
                await self._turn()

    def stop(self) -> None:
        self._stopping.set()

    def unready(self) -> str:
        return "" if self._started else "reading what was learned"

    def unhealthy(self) -> str:
        return ""

    async def _turn(self) -> None:
        try:
            if not self._started:
                await self._catch_up()
                self._started = True
            await self._read_control(TURN_MS if self._book is None else 1)
            await self._lead()
            if self._book is not None:
                await self._fold(self._book)
                await self._follow_answers()
                await self._agreement.turn(self._window_from())
                await self._tell(self._book)
        except LogUnavailable as error:
            logger.warning("the log does not answer", error=str(error))
            await asyncio.sleep(RETRY_S)

    # -- control records

    async def _catch_up(self) -> None:
        ends = await self._ends.end_offsets(self._control_partitions)
        for _ in range(CATCH_UP_READS):
            if not await is_behind(self._control, ends):
                return
            await self._read_control(READ_MS)
        raise LogUnavailable("the ends of the catalog and of what was learned were not reached")

    async def _read_control(self, timeout_ms: int) -> None:
        changed = False
        for partition, records in (await self._control.read(timeout_ms=timeout_ms, records_max=RECORDS_MAX)).items():
            for record in records:
                try:
                    if partition.topic == self._names.catalog:
                        self._catalog.apply(record.key or b"", record.value)
                        changed |= record.key != LEARNED_KEY
                    elif record.key == STATE_KEY:
                        self._state = None if record.value is None else decode_accuracy_state(record.value)
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    logger.warning("control record skipped", topic=record.topic, offset=record.offset, error=str(error))
        if changed and self._book is not None:
            self._book.observe_catalog(self._catalog)
            if self._agreement.book is not None:
                self._agreement.book.observe_catalog(self._catalog)

    # -- leadership

    async def _lead(self) -> None:
        """Take over what the last leader knew, or let go."""
        if self._leading() == (self._book is not None):
            return
        if self._book is not None:
            self._book = None
            await self._records.assign({})
            await self._agreement.let_go()
            return
        await self._catch_up()
        state = await self._standing_state()
        book = AccuracyBook(state, self._window)
        book.observe_catalog(self._catalog)
        await self._records.assign({self._feedback: await self._ends.offset_at(self._feedback, self._window_from())})
        self._agreement.take_over(state, self._catalog)
        self._book, self._answers_followed, self._told = book, False, self._catalog.learned

    async def _standing_state(self) -> AccuracyState | None:
        """What the last leader wrote; offsets beyond a log's end are of a topic that is no more."""
        if self._state is None:
            return None
        told = self._state.offsets, self._state.agreement_offsets
        places = {place: TopicPartition(place.rpartition(":")[0], int(place.rpartition(":")[2])) for offsets in told for place in offsets}
        known = [partition for partition in places.values() if partition.partition < await self._log.partitions(partition.topic)]
        ends: Mapping[TopicPartition, int] = await self._ends.end_offsets(known) if known else {}
        counted, compared = ({place: offset for place, offset in offsets.items() if offset <= ends.get(places[place], -1)} for offsets in told)
        return msgspec.structs.replace(self._state, offsets=counted, agreement_offsets=compared)

    # -- answers and feedback

    async def _fold(self, book: AccuracyBook) -> None:
        for partition, records in (await self._records.read(timeout_ms=TURN_MS, records_max=RECORDS_MAX)).items():
            name = f"{partition.topic}:{partition.partition}"
            if partition == self._feedback:
                self._heard_ms = self._now_ms()
                for record in records:
                    _fold_feedback(book, (name, record.offset), record)
            else:
                for record in records:
                    if record.key is not None and record.value is not None:
                        book.answer((name, record.offset), record.timestamp, record.key, record.value)

    async def _follow_answers(self) -> None:
        """Answers are read while there is feedback, back to the beginning of the window: where nobody gives any, this costs nothing."""
        wanted = self._heard_ms > 0.0 and self._now_ms() - self._heard_ms <= self._window.window_ms
        if wanted == self._answers_followed:
            return
        positions: dict[TopicPartition, Start] = {self._feedback: await self._records.position(self._feedback)}
        if wanted:
            positions |= await self._answers_from()
        await self._records.assign(positions)
        self._answers_followed = wanted

    async def _answers_from(self) -> dict[TopicPartition, Start]:
        count = await self._log.partitions(self._names.responses)
        partitions = [TopicPartition(self._names.responses, number) for number in range(count)]
        ends = await self._ends.end_offsets(partitions)
        since_ms = self._window_from()
        kept = self._window.answers_max // max(count, 1)
        return {partition: max(await self._ends.offset_at(partition, since_ms), ends[partition] - kept) for partition in partitions}

    def _window_from(self) -> int:
        return int(self._now_ms() - self._window.window_ms)

    # -- what is told

    async def _tell(self, book: AccuracyBook) -> None:
        now_ms = self._now_ms()
        if now_ms - self._told_ms < TELL_MS and self._told_ms <= now_ms:
            return
        self._told_ms = now_ms
        book.settle()
        agreement = self._agreement.book
        if not book.changed and (agreement is None or not agreement.changed):
            return
        learned = book.learned()
        if learned != self._told:
            await self._writer.write(self._names.catalog, 0, [(LEARNED_KEY, encode_learned(learned), ())])
            self._told = learned
            logger.info("learned accuracies", variants={key: found.accuracy for key, found in learned.variants.items()})
        alerts = [alert for finding in book.findings for alert in alerts_of(finding, self._catalog, int(now_ms))]
        if alerts:
            await self._writer.write(alerts_topic(self._names), 0, [(alert.endpoint.encode(), encode_alert(alert), ()) for alert in alerts])
        for alert in alerts:
            logger.warning("accuracy", endpoint=alert.endpoint, variant=alert.variant, message=alert.message)
        # Last: what was told before a crash is told again, and nothing is left out.
        state = book.state(self._name, int(now_ms))
        if agreement is not None:
            agreement.settle()
            agreement.changed = False
            state = msgspec.structs.replace(state, agreements=agreement.tallies, agreement_offsets=agreement.offsets)
        await self._writer.write(accuracy_topic(self._names), 0, [(STATE_KEY, encode_learned(state), ())])
        book.findings.clear()
        book.changed = False
        self._metrics.observe(book, state.agreements)


def _fold_feedback(book: AccuracyBook, place: tuple[str, int], record: Record) -> None:
    if record.value is None:
        # A tombstone: nobody takes feedback back, it says something else instead.
        book.invalid(place)
        return
    try:
        feedback = decode_feedback(record.value)
    except msgspec.DecodeError:
        book.invalid(place)
        return
    book.feedback(place, record.timestamp, record.key or (feedback.id or "").encode(), feedback)


def alerts_of(finding: Finding, catalog: Catalog, at_ms: int) -> Sequence[Alert]:
    """One for the endpoint of a path, or for each endpoint whose task the variant is of."""
    tally, name = finding.tally, finding.name
    task = name.partition("/")[0]
    endpoints = [finding.endpoint] if finding.endpoint else [e.name for e in catalog.endpoints.values() if e.task == task] or [""]
    assert tally.mean is not None
    what = "falls below" if tally.flagged else "is back at"
    rows = tally.right + tally.wrong
    seen = f"{tally.mean:.4f} ({tally.low:.4f} to {tally.high:.4f}) over {rows:.0f} rows"
    message = f"{name} {what} what it promises: {seen}, {tally.promised:.4f} declared"
    evidence = {"mean": tally.mean, "low": tally.low, "high": tally.high, "rows": rows, "promised": tally.promised}
    return [
        Alert(
            source="accuracy",
            kind="accuracy",
            message=message,
            endpoint=endpoint,
            variant="" if finding.endpoint else name,
            severity="critical" if tally.flagged else "info",
            at_ms=at_ms,
            evidence=evidence,
        )
        for endpoint in endpoints
    ]

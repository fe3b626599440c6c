"""Sends recorded requests once more, under new ids and at the lowest priority, and compares the answers: what `headrace replay` does."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import msgspec

from broker.log import Log, Message, Record, Writer
from deploy.catalog_apply import write_catalog
from deploy.scanning import CLIENT_ID, partitions_of, scan
from deploy.snapshots import read_catalog
from deploy.suggestions import did_you_mean
from schemas.catalog import Catalog, Defaults, EndpointSpec, catalog_key, encode_catalog, split_variant_key
from schemas.errors import CatalogError, HeadraceError
from schemas.feedback import Labels, compared, labels_of
from schemas.graph import GraphSpec, StageNode
from schemas.limits import Limits
from schemas.names import Names
from schemas.request import read_routing, request_id_of
from schemas.terminal import COMPLETED, Terminal, decode_terminal

BYTES_MAX = 1 << 30
"""Of request bodies that one replay holds."""
MARK = "replay"
STAGE = "main"
_ROUTED = ("endpoint", "min_accuracy", "deadline_ms", "timeout_ms", "priority", "traceparent")
"""Headers that a replayed request has its own of, or none."""


class ReplayQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """Which requests, and against what: a variant (its key), another endpoint, or, with neither, the endpoint's present plan."""

    endpoint: str
    from_ms: int
    to_ms: int
    variant: str = ""
    against: str = ""
    rate_rps: float = 50.0
    timeout_ms: int = 30_000
    requests_max: int = 10_000


class Difference(msgspec.Struct, frozen=True):
    """A request that was answered otherwise, by its id; `before` and `now` are labels, or outcomes where there are none."""

    id: str
    before: str
    now: str


class ReplayReport(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    run: str
    requests: int
    before: dict[str, int]
    """Outcomes of the recorded answers."""
    now: dict[str, int]
    variants_before: dict[str, int]
    variants_now: dict[str, int]
    rows_compared: float
    rows_same: float
    differences: list[Difference]

    @property
    def agreement(self) -> float | None:
        """Share of compared rows that have the same label."""
        return self.rows_same / self.rows_compared if self.rows_compared else None


async def replay(
    log: Log, names: Names, question: ReplayQuestion, *, progress: Callable[[int, int], None], limits: Limits | None = None
) -> ReplayReport:
    """Raises CatalogError where there is no such endpoint or variant, HeadraceError where nothing was recorded or an answer does not come."""
    limits = limits or Limits()
    catalog = await read_catalog(log, names)
    _check(catalog, question)
    recorded, before = await _recorded(log, names, question, limits)
    if not recorded:
        raise HeadraceError(f"no request for {question.endpoint!r} between those times is in {names.requests} any more")
    run = uuid.uuid4().hex[:8]
    async with _target(log, names, catalog, question, run) as endpoint:
        begun_ms = int(time.time() * 1000)
        await _submit(log, names, _Resubmission(question, endpoint, run), recorded, progress)
        now = await _answers(log, names, {f"{MARK}-{run}-{request_id}": request_id for request_id in recorded}, begun_ms, question.timeout_ms)
    return _compared(run, recorded, before, now)


def _check(catalog: Catalog, question: ReplayQuestion) -> None:
    for name in filter(None, (question.endpoint, question.against)):
        if name not in catalog.endpoints:
            raise CatalogError(f"there is no endpoint {name!r}{did_you_mean(name, catalog.endpoints)}")
    if question.variant and question.variant not in catalog.variants():
        raise CatalogError(f"there is no variant {question.variant!r}{did_you_mean(question.variant, catalog.variants())}")


# -- what was


async def _recorded(log: Log, names: Names, question: ReplayQuestion, limits: Limits) -> tuple[dict[str, Record], dict[str, Terminal]]:
    """The requests by id, and their first answers."""
    found: dict[str, Record] = {}
    size = 0
    async for record in scan(log, await partitions_of(log, [names.requests]), question.from_ms, question.to_ms):
        try:
            request_id = request_id_of(record.key, record.value, record.headers, limits)
            endpoint = read_routing(record.value, record.headers, limits).endpoint
        except HeadraceError:
            continue
        if endpoint != question.endpoint or request_id in found or request_id.startswith(f"{MARK}-"):
            continue
        size += len(record.value or b"")
        if len(found) >= question.requests_max or size > BYTES_MAX:
            break
        found[request_id] = record
    return found, await _first_answers(log, names, {request_id: request_id for request_id in found}, question.from_ms)


async def _first_answers(log: Log, names: Names, wanted: dict[str, str], since_ms: int) -> dict[str, Terminal]:
    """By the id that `wanted` has for the answer's."""
    found: dict[str, Terminal] = {}
    async for record in scan(log, await partitions_of(log, [names.responses]), since_ms):
        request_id = wanted.get((record.key or b"").decode(errors="replace"))
        if request_id is None or request_id in found:
            continue
        try:
            found[request_id] = decode_terminal(record.value or b"")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
    return found


# -- what is asked


class _Resubmission(msgspec.Struct, frozen=True):
    question: ReplayQuestion
    endpoint: str
    run: str


@asynccontextmanager
async def _target(log: Log, names: Names, catalog: Catalog, question: ReplayQuestion, run: str) -> AsyncGenerator[str]:
    """The endpoint that is asked: for a variant one of this run's own, of one stage, which may use that variant alone."""
    if not question.variant:
        yield question.against or question.endpoint
        return
    task, name = split_variant_key(question.variant)
    spec = catalog.variants()[question.variant]
    stage = StageNode(task=task, inputs={tensor.name: f"request.{tensor.name}" for tensor in spec.inputs}, variants=(name,))
    endpoint = EndpointSpec(
        name=f"{MARK}-{run}", graph=GraphSpec(nodes={STAGE: stage}, output=STAGE), revision=1, defaults=Defaults(timeout_ms=question.timeout_ms)
    )
    await log.create_topics([names.stage_topic(endpoint.name, STAGE, partitions=await log.partitions(names.requests))])
    await write_catalog(log, names, [(catalog_key(endpoint), encode_catalog(endpoint), ())])
    try:
        yield endpoint.name
    finally:
        await write_catalog(log, names, [(catalog_key(endpoint), None, ())])


async def _submit(log: Log, names: Names, asked: _Resubmission, recorded: dict[str, Record], progress: Callable[[int, int], None]) -> None:
    writer: Writer = log.writer(CLIENT_ID)
    await writer.start()
    loop = asyncio.get_running_loop()
    due_s = loop.time()
    try:
        for number, (request_id, record) in enumerate(recorded.items()):
            await writer.write(names.requests, record.partition, [_message(asked, request_id, record)])
            progress(number + 1, len(recorded))
            due_s += 1.0 / asked.question.rate_rps
            await asyncio.sleep(max(due_s - loop.time(), 0.0))
    finally:
        await writer.close()


def _message(asked: _Resubmission, request_id: str, record: Record) -> Message:
    """The recorded bytes; headers win over the body, so that they say what is other: endpoint, deadline, priority, and for a variant the floor."""
    question = asked.question
    said = {"endpoint": asked.endpoint, "timeout_ms": str(question.timeout_ms), "priority": str(Limits().priority_max)}
    said["deadline_ms"] = str(int(time.time() * 1000) + question.timeout_ms)
    dropped = set(_ROUTED) if question.variant else set(_ROUTED) - {"min_accuracy"}
    if question.variant:
        said["min_accuracy"] = "0"
    headers = [header for header in record.headers if header[0] not in dropped]
    return f"{MARK}-{asked.run}-{request_id}".encode(), record.value, [*headers, *((name, value.encode()) for name, value in said.items())]


async def _answers(log: Log, names: Names, wanted: dict[str, str], since_ms: int, timeout_ms: int) -> dict[str, Terminal]:
    """Every request has one within its time-out."""
    give_up_s = time.monotonic() + timeout_ms / 1000 + 5.0
    while True:
        found = await _first_answers(log, names, wanted, since_ms)
        if len(found) == len(wanted):
            return found
        if time.monotonic() > give_up_s:
            raise HeadraceError(f"{len(wanted) - len(found)} of {len(wanted)} requests have no answer: does a dispatcher run?")
        await asyncio.sleep(0.5)


# -- what came of it


def _compared(run: str, recorded: dict[str, Record], before: dict[str, Terminal], now: dict[str, Terminal]) -> ReplayReport:
    rows = same = 0.0
    differences: list[Difference] = []
    for request_id in recorded:
        old, new = before.get(request_id), now[request_id]
        labels = (None if old is None else labels_of(old), labels_of(new))
        judged = None if labels[0] is None or labels[1] is None else compared(labels[0], labels[1])
        if judged is not None:
            rows, same = rows + judged.right + judged.wrong, same + judged.right
        if (judged is not None and judged.wrong) or (judged is None and (old is None or old.outcome != new.outcome)):
            differences.append(Difference(request_id, _words(old, labels[0]), _words(new, labels[1])))
    return ReplayReport(
        run=run,
        requests=len(recorded),
        before=Counter(terminal.outcome for terminal in before.values()),
        now=Counter(terminal.outcome for terminal in now.values()),
        variants_before=_variants(before),
        variants_now=_variants(now),
        rows_compared=rows,
        rows_same=same,
        differences=differences,
    )


def _variants(answers: dict[str, Terminal]) -> dict[str, int]:
    return Counter(terminal.path[-1].variant for terminal in answers.values() if terminal.outcome == COMPLETED and terminal.path)


def _words(terminal: Terminal | None, labels: Labels | None) -> str:
    if terminal is None:
        return "no answer in the log"
    if labels is not None:
        return ", ".join(map(str, labels))
    return terminal.outcome if terminal.error is None else f"{terminal.outcome}: {terminal.error.code}"

"""`headrace deadletter`: records that could not be attributed or given up, with their reasons; and sending them again."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Sequence

import click
import msgspec
import uvloop

from broker.log import Log, Record
from deploy.commands.command import Command, Group, option
from deploy.commands.output import Output
from deploy.configuration import Connection
from deploy.connections import open_log
from deploy.snapshots import CLIENT_ID, read_topic
from schemas.errors import HeadraceError
from schemas.names import Names
from schemas.work import WORK_HEADER

HEADER_PREFIX = "headrace-"
SHOWN_KEY_CHARACTERS = 40


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A record of {p}.dead-letters: where it lies, where it came from, and why it is here."""

    offset: int
    at_ms: int
    key: str | None
    reason: str
    topic: str
    original_partition: int | None
    original_offset: int | None
    value_bytes: int


@click.group(cls=Group)
def deadletter() -> None:
    """Show and replay records that were given up.

    \b
    headrace deadletter list
    headrace deadletter replay --id 3f1c
    """


@deadletter.command("list", cls=Command)
@option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Only the newest.")
def list_letters(connection: Connection, output: Output, limit: int) -> None:
    """The dead letters, oldest first.

    \b
    headrace deadletter list --limit 20
    headrace deadletter list --json | jq '.reasons'
    """
    letters = [describe(record) for record in uvloop.run(_read(connection))]
    reasons = Counter(letter.reason for letter in letters)
    rows = [
        (letter.offset, _short(letter.key), f"{letter.topic}-{letter.original_partition}@{letter.original_offset}", letter.value_bytes, letter.reason)
        for letter in letters[-limit:]
    ]
    output.table("", ("offset", "key", "from", "bytes", "reason"), rows)
    output.say(f"{len(letters)} dead letters" + (f", the newest {limit} shown" if len(letters) > limit else ""))
    output.result({"count": len(letters), "reasons": reasons, "dead_letters": letters[-limit:]})


@deadletter.command(cls=Command)
@option("--id", "keys", multiple=True, metavar="ID", help="Only these requests; may be given several times. Default: all.")
@option("--offset", "offsets", multiple=True, type=click.IntRange(0), help="Only the dead letters at these offsets (for those without a usable key).")
@option("--new-ids", is_flag=True, help="Give each a new request id.")
def replay(connection: Connection, output: Output, keys: tuple[str, ...], offsets: tuple[int, ...], *, new_ids: bool) -> None:
    """Write dead letters back to the topic and partition that they came from, without the headers that say why they are here.

    They also stay among the dead letters. The first answer of an id is its answer: a request that was already answered (`attempts_exhausted`)
    is ignored for as long as that answer is kept, unless it gets a new id with --new-ids.

    \b
    headrace deadletter replay --id 3f1c --new-ids
    """
    replayed = uvloop.run(_replay(connection, keys, offsets, new_ids=new_ids))
    output.table("", ("offset", "topic", "id"), [(item["offset"], item["topic"], item["id"]) for item in replayed])
    output.say(f"{len(replayed)} replayed")
    output.result({"replayed": replayed})


def describe(record: Record) -> DeadLetter:
    """What a dead letter says of itself; headers that are missing or unreadable leave gaps, not errors."""
    said = {name: value.decode(errors="replace") for name, value in record.headers if name.startswith(HEADER_PREFIX)}
    return DeadLetter(
        offset=record.offset,
        at_ms=record.timestamp,
        key=None if record.key is None else record.key.decode(errors="backslashreplace"),
        reason=said.get("headrace-reason", ""),
        topic=said.get("headrace-topic", ""),
        original_partition=_number(said.get("headrace-partition")),
        original_offset=_number(said.get("headrace-offset")),
        value_bytes=len(record.value or b""),
    )


def _is_ours(header: str) -> bool:
    return header.startswith(HEADER_PREFIX) or header == WORK_HEADER


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def _short(key: str | None) -> str:
    if key is None:
        return "(no key)"
    return key if len(key) <= SHOWN_KEY_CHARACTERS else f"{key[:SHOWN_KEY_CHARACTERS]}... ({len(key)} characters)"


async def _read(connection: Connection) -> list[Record]:
    async with open_log(connection) as log:
        return await read_topic(log, connection.names.dead_letters)


async def _replay(connection: Connection, keys: Sequence[str], offsets: Sequence[int], *, new_ids: bool) -> list[dict[str, object]]:
    async with open_log(connection) as log:
        records = await read_topic(log, connection.names.dead_letters)
        chosen = _choose(records, keys, offsets)
        return await _write_back(log, connection.names, chosen, new_ids=new_ids)


def _choose(records: Sequence[Record], keys: Sequence[str], offsets: Sequence[int]) -> list[Record]:
    if not keys and not offsets:
        return list(records)
    wanted = {key.encode() for key in keys}
    chosen = [record for record in records if record.key in wanted or record.offset in offsets]
    missing = [repr(key) for key in keys if key.encode() not in {record.key for record in chosen}]
    missing += [f"offset {offset}" for offset in offsets if offset not in {record.offset for record in chosen}]
    if missing:
        raise HeadraceError(f"not among the {len(records)} dead letters: {', '.join(missing)} (see `headrace deadletter list`)")
    return chosen


async def _write_back(log: Log, names: Names, records: Sequence[Record], *, new_ids: bool) -> list[dict[str, object]]:
    replayed: list[dict[str, object]] = []
    writer = log.writer(CLIENT_ID)
    await writer.start()
    try:
        for record in records:
            letter = describe(record)
            # Only where requests are read: what once came from elsewhere (a lane) starts over as a request.
            topic = letter.topic if letter.topic.startswith(f"{names.prefix}.stage.") else names.requests
            partitions = await log.partitions(topic)
            partition = letter.original_partition if letter.original_partition is not None and letter.original_partition < partitions else 0
            key = uuid.uuid4().hex.encode() if new_ids else record.key
            headers = [(name, value) for name, value in record.headers if not _is_ours(name)]
            await writer.write(topic, partition, [(key, record.value, headers)])
            replayed.append({"offset": record.offset, "topic": topic, "id": None if key is None else key.decode(errors="backslashreplace")})
    finally:
        await writer.close()
    return replayed

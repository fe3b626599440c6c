"""`headrace feedback`: says what answers should have been, so that accuracies are learned."""

from __future__ import annotations

from collections.abc import Sequence

import click
import uvloop

from broker.log import Message
from deploy.commands.command import Command
from deploy.commands.output import Output
from deploy.configuration import Connection
from deploy.connections import open_log
from deploy.feedback_files import read_feedback
from deploy.snapshots import CLIENT_ID
from schemas.feedback import feedback_spec, feedback_topic
from schemas.limits import Limits

BATCH = 1_000


@click.command(cls=Command)
@click.argument("file")
def feedback(connection: Connection, output: Output, file: str) -> None:
    """Say what answers should have been: FILE (- for stdin) has JSON lines, each with the request's id and one of these.

    \b
      {"id": "a", "label": 7}               the class, or the value, of its one row
      {"id": "b", "labels": [7, 2]}         of each row
      {"id": "c", "output": {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["INVOICE"]}}
      {"id": "d", "score": 0.8}             how right it was, 0 to 1
      {"id": "e", "correct": false}

    Nothing is written unless every line is right. `headrace get models` shows what was learned.

    \b
    headrace feedback labels.jsonl
    """
    messages = read_feedback(file, Limits())
    uvloop.run(_write(connection, messages))
    output.say(f"{len(messages)} judgements written")
    output.result({"written": len(messages)})


async def _write(connection: Connection, messages: Sequence[Message]) -> None:
    names = connection.names
    async with open_log(connection) as log:
        await log.create_topics([feedback_spec(names)])
        writer = log.writer(CLIENT_ID)
        await writer.start()
        try:
            for start in range(0, len(messages), BATCH):
                await writer.write(feedback_topic(names), 0, messages[start : start + BATCH])
        finally:
            await writer.close()

"""`headrace trace`: everything that happened to one request, from the log."""

from __future__ import annotations

import time

import click
import uvloop

from deploy.commands.command import Command, option
from deploy.commands.output import Output
from deploy.configuration import Connection
from deploy.connections import open_log
from deploy.tracing import MINUTE_MS, Trace, trace_request

MINUTES = click.FloatRange(0.0, min_open=True)


@click.command(cls=Command)
@click.argument("request_id", metavar="ID")
@option(
    "--since", "since_minutes", type=click.FloatRange(0.0, min_open=True), default=60.0, show_default=True, metavar="MINUTES", help="How far back."
)
def trace(connection: Connection, output: Output, request_id: str, since_minutes: float) -> None:
    """Show what happened to a request: arrival, each order with variant and reason, stages, attempts, answers, shadows, feedback.

    Times are the log's, in milliseconds from the arrival.

    \b
    headrace trace 3f1c
    headrace trace 3f1c --since 600 --json | jq '.events[].detail'
    """

    async def read() -> Trace:
        async with open_log(connection) as log:
            since_ms = int(time.time() * 1000 - since_minutes * MINUTE_MS)
            return await trace_request(log, connection.names, request_id, since_ms=since_ms, limits=connection.limits)

    found = uvloop.run(read())
    begun_ms = found.events[0].at_ms
    output.table("", ("ms", "what", "stage", ""), [(f"+{event.at_ms - begun_ms}", event.what, event.stage, event.detail) for event in found.events])
    for epoch, reason in sorted(found.plans.items()):
        output.say(f"plan {epoch} was made because: {reason}")
    for note in found.notes:
        output.say(note)
    output.say(f"{request_id}: {found.outcome}")
    output.result(found)

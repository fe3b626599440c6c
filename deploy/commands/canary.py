"""`headrace canary`: starts, shows, moves and ends the canaries of endpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import click
import uvloop

from deploy.canary import CanaryStanding, canary_standings, change_canary
from deploy.commands.command import Command, Group, option
from deploy.commands.output import Output
from deploy.configuration import Connection
from deploy.connections import open_log
from schemas.canary import CanaryCommand

Action = Literal["start", "set", "promote", "rollback"]


@click.group(cls=Group)
def canary() -> None:
    """Move traffic from a stable part of a graph to a candidate, step by step.

    A canary that was started moves by itself: the planner compares both arms' answers and goes on, back, or to the end.

    \b
    headrace canary start fashion
    headrace canary status
    headrace canary rollback fashion --reason "wrong labels"
    """


def _asking(function: Callable[..., Any]) -> Callable[..., Any]:
    for decorate in (
        option("--reason", default="", metavar="TEXT", help="Why; kept with the canary."),
        option("--node", default="", metavar="NAME", help="The canary's node, where the graph has several."),
        click.argument("endpoint"),
    ):
        function = decorate(function)
    return function


@canary.command("status", cls=Command)
@click.argument("endpoint", required=False, default="")
def status(connection: Connection, output: Output, endpoint: str) -> None:
    """Show how canaries stand: share, answers of the present step, and how strong the evidence against the candidate is (1 rolls back).

    \b
    headrace canary status
    headrace canary status fashion --json
    """

    async def read() -> list[CanaryStanding]:
        async with open_log(connection) as log:
            return await canary_standings(log, connection.names, endpoint)

    standings = uvloop.run(read())
    _show(output, standings)
    output.result({"canaries": standings})


@canary.command("start", cls=Command)
@_asking
@option("--percent", type=click.FloatRange(0, 100, min_open=True), metavar="P", help="Begin with this share instead of the first step.")
def start(connection: Connection, output: Output, endpoint: str, node: str, reason: str, percent: float | None) -> None:
    """Give the candidate the first step's share of the requests; from there it moves by itself.

    \b
    headrace canary start fashion
    headrace canary start fashion --percent 10
    """
    _change(connection, output, endpoint, CanaryCommand(action="start", percent=percent, node=node, reason=reason))


@canary.command("set", cls=Command)
@_asking
@option("--percent", type=click.FloatRange(0, 100), required=True, metavar="P", help="The candidate's share.")
def set_percent(connection: Connection, output: Output, endpoint: str, node: str, reason: str, percent: float) -> None:
    """Give the candidate this share; a new step begins there.

    \b
    headrace canary set fashion --percent 25
    """
    _change(connection, output, endpoint, CanaryCommand(action="set", percent=percent, node=node, reason=reason))


@canary.command("promote", cls=Command)
@_asking
def promote(connection: Connection, output: Output, endpoint: str, node: str, reason: str) -> None:
    """Give the candidate everything, and stop judging it.

    \b
    headrace canary promote fashion
    """
    _change(connection, output, endpoint, CanaryCommand(action="promote", node=node, reason=reason))


@canary.command("rollback", cls=Command)
@_asking
def rollback(connection: Connection, output: Output, endpoint: str, node: str, reason: str) -> None:
    """Give the candidate nothing any more.

    \b
    headrace canary rollback fashion --reason "wrong labels"
    """
    _change(connection, output, endpoint, CanaryCommand(action="rollback", node=node, reason=reason))


def _change(connection: Connection, output: Output, endpoint: str, command: CanaryCommand) -> None:
    async def changed() -> CanaryStanding:
        async with open_log(connection) as log:
            return await change_canary(log, connection.names, endpoint, command)

    standing = uvloop.run(changed())
    output.say(f"{standing.endpoint}: {standing.candidate} gets {standing.percent:g} % ({standing.phase})")
    output.result({"canary": standing})


def _show(output: Output, standings: Sequence[CanaryStanding]) -> None:
    if not standings:
        output.say("no endpoint has a canary in its graph")
        return
    columns = ("endpoint", "canary", "candidate", "phase", "percent", "answers", "strongest evidence", "reason")
    output.table("", columns, [_row(standing) for standing in standings])


def _row(standing: CanaryStanding) -> tuple[str, ...]:
    strongest = max(standing.evidence, key=lambda weighed: weighed.strength, default=None)
    return (
        standing.endpoint,
        standing.node,
        standing.candidate,
        standing.phase,
        f"{standing.percent:g}",
        f"{standing.candidate_answers}/{standing.step_requests}" if standing.phase == "running" else "",
        "" if strongest is None else f"{strongest.guardrail} {strongest.strength:.2f}",
        standing.reason,
    )

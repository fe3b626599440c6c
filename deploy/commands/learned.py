"""`headrace get models` and `headrace get alerts`: what variants are worth by feedback, and what detectors found."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime

import click
import msgspec
import uvloop

from deploy.commands.command import Command, option
from deploy.commands.output import Output
from deploy.configuration import Connection
from deploy.connections import open_log
from deploy.learned import Accuracies, ModelStanding, read_accuracies, read_alerts
from schemas.alerts import Alert
from schemas.learned import AccuracyTally, AgreementTally

MINUTE_MS = 60_000


@click.command(cls=Command)
def models(connection: Connection, output: Output) -> None:
    """The variants with the accuracy that each declares, what feedback says of it, what its endpoints go by, and how often the best one agrees.

    \b
    headrace get models
    headrace get models --json | jq '.models[] | select(.learned.flagged)'
    """

    async def read() -> Accuracies:
        async with open_log(connection) as log:
            return await read_accuracies(log, connection.names)

    found = uvloop.run(read())
    columns = ("variant", "declared", "learned", "95 % interval", "rows", "endpoints go by", "")
    output.table("", columns, [_model_row(model) for model in found.models])
    rows = [(name, path, *_seen(tally)) for name, paths in sorted(found.state.paths.items()) for path, tally in sorted(paths.items())]
    output.table("", ("endpoint", "path", "learned", "95 % interval", "rows", "claimed", ""), rows)
    agreeing = [(model.variant, *_agreed(model.agreement)) for model in found.models if model.agreement is not None]
    if agreeing:
        output.table("", ("variant", "agrees with", "agreement", "95 % interval", "rows"), agreeing)
    counts = {name: count for name, count in msgspec.structs.asdict(found.state.counts).items() if count}
    said = ", ".join(f"{count} {name}" for name, count in counts.items()) or "none yet: `headrace feedback FILE`"
    output.say(f"feedback: {said}" + (f", {found.state.waiting} waiting for their answers" if found.state.waiting else ""))
    output.result({"models": found.models, "paths": found.state.paths, "feedback": found.state.counts, "waiting": found.state.waiting})


def _model_row(model: ModelStanding) -> tuple[object, ...]:
    goes_by = ", ".join(f"{name} {accuracy:.4f}" for name, accuracy in model.goes_by.items())
    if model.learned is None:
        return model.variant, f"{model.declared:g}", "-", "-", 0, goes_by, ""
    learned, interval, rows, _, flag = _seen(model.learned)
    return model.variant, f"{model.declared:g}", learned, interval, rows, goes_by, flag


def _seen(tally: AccuracyTally) -> tuple[object, ...]:
    rows = f"{tally.right + tally.wrong:.0f}"
    if tally.mean is None or tally.low is None or tally.high is None:
        return "-", "-", rows, f"{tally.promised:.4f}", ""
    return f"{tally.mean:.4f}", f"{tally.low:.4f} to {tally.high:.4f}", rows, f"{tally.promised:.4f}", "BELOW" if tally.flagged else ""


def _agreed(tally: AgreementTally) -> tuple[object, ...]:
    return tally.reference, f"{tally.mean:.4f}", f"{tally.low:.4f} to {tally.high:.4f}", f"{tally.right + tally.wrong:.0f}"


@click.command(cls=Command)
@option("--endpoint", default="", metavar="NAME", help="Only alerts of this endpoint.")
@option("--since", "since_minutes", type=click.FloatRange(0.0, min_open=True), metavar="MINUTES", help="Only of the last so many minutes.")
@option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Only the newest.")
def alerts(connection: Connection, output: Output, endpoint: str, since_minutes: float | None, limit: int) -> None:
    """What detectors and Headrace itself found, oldest first.

    \b
    headrace get alerts
    headrace get alerts --endpoint fashion --since 10 --json
    """
    since_ms = None if since_minutes is None else int(time.time() * 1000 - since_minutes * MINUTE_MS)

    async def read() -> Sequence[Alert]:
        async with open_log(connection) as log:
            return await read_alerts(log, connection.names, since_ms=since_ms)

    found = [alert for alert in uvloop.run(read()) if endpoint in ("", alert.endpoint)]
    columns = ("at", "severity", "source", "kind", "endpoint", "what")
    output.table("", columns, [(_time(a.at_ms), a.severity, a.source, a.kind, a.endpoint, a.message) for a in found[-limit:]])
    output.say(f"{len(found)} alerts" + (f", the newest {limit} shown" if len(found) > limit else ""))
    output.result({"count": len(found), "alerts": found[-limit:]})


def _time(at_ms: int) -> str:
    try:
        return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):  # a foreign detector's clock
        return str(at_ms)

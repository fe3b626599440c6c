"""`headrace replay`: recorded requests once more, against another variant, endpoint or plan."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import Any

import click
import uvloop

from deploy.commands.command import Command, option
from deploy.commands.output import Output, with_progress
from deploy.configuration import Connection
from deploy.connections import open_log
from deploy.resubmitting import ReplayQuestion, ReplayReport, replay

AGO = re.compile(r"^(\d+(?:\.\d+)?)(s|m|h)$")
UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000}
SHOWN = 10


class Moment(click.ParamType):
    """`10m` ago (s, m, h), a date and time in ISO 8601 (UTC where it names no zone), or Unix milliseconds."""

    name = "when"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        ago = AGO.match(text)
        if ago is not None:
            return int(time.time() * 1000 - float(ago[1]) * UNITS_MS[ago[2]])
        if text.isdigit():
            return int(text)
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            self.fail(f"{text!r} is no time: write 10m (ago), 2026-11-23T10:00:00 or Unix milliseconds", param, ctx)
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


@click.command("replay", cls=Command)
@option("--from", "from_ms", type=Moment(), required=True, metavar="WHEN", help="10m (ago), an ISO date and time, or Unix ms.")
@option("--to", "to_ms", type=Moment(), default="0s", metavar="WHEN", help="The same; default: now.")
@option("--endpoint", required=True, metavar="NAME", help="Whose requests.")
@option("--variant", default="", metavar="TASK/NAME", help="Ask this variant alone.")
@option("--against", default="", metavar="NAME", help="Ask this endpoint; with neither: the same endpoint, under its present plan.")
@option("--rate", "rate_rps", type=click.FloatRange(0.1, 10_000), default=50.0, show_default=True, help="Requests a second.")
@option("--timeout", "timeout_ms", type=click.IntRange(1, 600_000), default=30_000, show_default=True, metavar="MS", help="Of each.")
@option("--limit", "requests_max", type=click.IntRange(1, 100_000), default=10_000, show_default=True, help="Requests at most.")
def replay_requests(connection: Connection, output: Output, **options: Any) -> None:
    """Send recorded requests once more and compare the answers: which were answered otherwise, by what.

    They get new ids (replay-RUN-ID) and the lowest priority. The answers of the clients stay as they are.

    \b
    headrace replay --from 10m --endpoint fashion --variant fashion/linear
    headrace replay --from 2026-11-23T10:00 --to 2026-11-23T10:05 --endpoint fashion --against fashion-next
    """
    question = ReplayQuestion(**options)
    if question.variant and question.against:
        raise click.UsageError("--variant or --against, not both")

    def work(told: Any) -> ReplayReport:
        async def run() -> ReplayReport:
            async with open_log(connection) as log:
                return await replay(log, connection.names, question, progress=lambda done, of: told(done / of, f"{done} of {of} sent"))

        return uvloop.run(run())

    report = with_progress(work)
    rows = [("before", report.before, report.variants_before), ("now", report.now, report.variants_now)]
    output.table("", ("", "outcomes", "answered by"), [(name, _counts(outcomes), _counts(variants)) for name, outcomes, variants in rows])
    shown = report.differences[:SHOWN]
    output.table("", ("answered otherwise", "before", "now"), [(difference.id, difference.before, difference.now) for difference in shown])
    more = len(report.differences) - len(shown)
    output.say(f"and {more} more (--json shows all)" if more else "")
    share = "nothing to compare" if report.agreement is None else f"{report.agreement:.2%} of {report.rows_compared:.0f} rows have the same label"
    output.say(f"{report.requests} requests: {share}")
    output.result({"agreement": report.agreement, "report": report})


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "-"

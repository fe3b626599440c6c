"""`headrace optimizers trial`: two optimizers compared on the live cluster, in the shadow or by taking turns."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import Sequence
from typing import Any

import click
import uvloop

from deploy.commands.command import Command, option
from deploy.commands.output import Output
from deploy.configuration import Connection
from deploy.connections import open_log
from deploy.snapshots import read_catalog, read_plan
from scaler.optimizers.registry import DEFAULT_OPTIMIZER, describe_optimizer
from scaler.policy.trial_arm import Measured
from scaler.policy.trial_report import Pair, Side, TrialReport
from scaler.policy.trial_statistics import TOO_LITTLE, Difference
from scaler.trial import INTERVALS_MIN, ShadowTrial, TrialSettings
from scaler.trial_comparing import TrialImpossible
from scaler.trial_switchback import Switchback, SwitchbackSettings
from schemas.errors import ConfigurationError

_TIME = re.compile(r"^(\d+(?:\.\d+)?)\s*(ms|s|m|h)?$", re.IGNORECASE)
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3_600.0}
TIME_S_MAX = 7 * 24 * 3_600.0
SETTLE_S, SETTLE_PART = 15.0, 1.0 / 3.0
"""After a switch: so long, or that part of a period where it is less."""


class Time(click.ParamType):
    """A time with its unit: 500ms, 60s, 10m, 2h; without one, seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        if isinstance(value, int | float):
            return float(value)
        found = _TIME.match(str(value).strip())
        seconds = float(found[1]) * _SECONDS[(found[2] or "s").lower()] if found else 0.0
        if not 0.0 < seconds <= TIME_S_MAX:
            self.fail(f"{value!r} is no time above zero and up to a week: write 60s, 10m or 2h", param, ctx)
        return seconds


@click.command("trial", cls=Command)
@click.argument("candidate")
@option("--for", "for_s", type=Time(), default="10m", show_default=True, metavar="TIME", help="How long the trial lasts.")
@option("--against", metavar="NAME", help="The optimizer that it is compared with. Default: the one that plans now.")
@option("--interval", "interval_s", type=Time(), default="10s", show_default=True, metavar="TIME", help="Between two snapshots, in the shadow.")
@option(
    "--switchback", "period_s", type=Time(), metavar="TIME", help="Let both plan for real in turns of this length, and compare what was measured."
)
@option("--settle", "settle_s", type=Time(), metavar="TIME", help="What does not count after each switch. Default: 15s, or a third of a turn.")
@option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of simulated arrivals, and of whose turn comes first.")
def trial(connection: Connection, output: Output, candidate: str, against: str | None, **options: Any) -> int:
    """Compare CANDIDATE with another optimizer on the live cluster, and say which one is better.

    In the shadow both propose at every snapshot, and both plans are rolled forward in the simulator over what was really asked: nothing live
    changes. With --switchback they take turns at planning for real; what was chosen before is chosen again at the end, and on Ctrl-C.

    \b
    headrace optimizers trial loki --for 10m
    headrace optimizers trial loki --against greedy --for 30m --switchback 60s
    """
    for name in (candidate, against) if against else (candidate,):
        fault = describe_optimizer(name).fault
        if fault:
            raise ConfigurationError(fault)
    connection.need_kafka()
    _check(options)
    report = uvloop.run(_run(connection, output, candidate, against, options))
    _show(output, report)
    output.result(report)
    return 1 if report.verdict == TOO_LITTLE else 0


def _check(options: dict[str, Any]) -> None:
    for_s, period_s, interval_s = options["for_s"], options["period_s"], options["interval_s"]
    if period_s is None:
        if options["settle_s"] is not None:
            raise click.UsageError("--settle belongs to --switchback")
        if for_s < INTERVALS_MIN * interval_s:
            raise click.UsageError(f"--for {for_s:g}s is shorter than {INTERVALS_MIN} intervals of {interval_s:g}s: nothing could be compared")
        return
    if for_s < 2.0 * period_s:
        raise click.UsageError(f"--for {for_s:g}s is shorter than two turns of {period_s:g}s: nothing could be compared")
    settle_s = options["settle_s"]
    if settle_s is not None and settle_s >= period_s:
        raise click.UsageError(f"--settle {settle_s:g}s leaves nothing of a turn of {period_s:g}s")


async def _run(connection: Connection, output: Output, candidate: str, against: str | None, options: dict[str, Any]) -> TrialReport:
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with open_log(connection) as log:
        names = connection.names
        other = against or (await read_catalog(log, names)).control.optimizer
        if not other:
            plan = await read_plan(log, names)
            other = (plan.optimizer if plan is not None else "") or DEFAULT_OPTIMIZER
        if other == candidate:
            raise TrialImpossible(f"{candidate} would be compared with itself, as it is the one that plans now: name another one with --against")

        def told(pair: Pair, number: int, count: int) -> None:
            output.say(f"{number}/{count}: {candidate} {_figures(pair.candidate)}; {other} {_figures(pair.against)}")

        period_s: float | None = options["period_s"]
        if period_s is None:
            settings = TrialSettings(duration_s=options["for_s"], interval_s=options["interval_s"], seed=options["seed"])
            output.say(f"{candidate} against {other} in the shadow, {settings.intervals} intervals of {settings.interval_s:g} s")
            return await ShadowTrial(log, names, candidate=candidate, against=other, settings=settings, on_pair=told).run(stopping)
        settle_s = options["settle_s"] or min(SETTLE_S, SETTLE_PART * period_s)
        turns = SwitchbackSettings(duration_s=options["for_s"], period_s=period_s, settle_s=settle_s, seed=options["seed"])
        output.say(f"{candidate} and {other} take turns, {turns.pairs} pairs of {period_s:g} s each, of which the first {settle_s:g} s do not count")
        return await Switchback(log, names, candidate=candidate, against=other, settings=turns, on_pair=told).run(stopping)


def _show(output: Output, report: TrialReport) -> None:
    rows = [_side_row(side) for side in (report.candidate, report.against)]
    output.table("", ("optimizer", "asked", "attainment", "accuracy served", "accuracy over all asked", "loads", "no proposal"), rows)
    differences = (("attainment", report.attainment), ("accuracy served", report.accuracy_served), ("accuracy over all asked", report.worth))
    found = [_difference_row(name, difference) for name, difference in differences if difference is not None]
    if found:
        title = f"{report.candidate.optimizer} minus {report.against.optimizer}, in points of a hundred"
        output.table(title, ("figure", "mean", "95 % interval", "p (flipped signs)", "pairs"), found)
    for note in report.notes:
        output.say(f"({note})")
    output.say(f"verdict: {report.text}")


def _side_row(side: Side) -> Sequence[object]:
    accuracy = "-" if side.accuracy_served is None else f"{side.accuracy_served:.4f}"
    failed = f"{side.failures} x, last: {side.last_failure}" if side.failures else "-"
    return side.optimizer, side.offered, f"{side.attainment:.2%}", accuracy, f"{side.worth:.4f}", side.loads, failed


def _difference_row(name: str, difference: Difference) -> Sequence[object]:
    between = "-" if difference.low is None or difference.high is None else f"{100 * difference.low:+.2f} .. {100 * difference.high:+.2f}"
    by_chance = "-" if difference.p_value is None else f"{difference.p_value:.3f}"
    return name, f"{100 * difference.mean:+.2f}", between, by_chance, difference.pairs


def _figures(measured: Measured) -> str:
    if measured.failure:
        return f"proposed nothing ({measured.failure})"
    accuracy = "" if measured.accuracy_served is None else f" at {measured.accuracy_served:.4f}"
    return f"{measured.attainment:.1%} of {measured.offered}{accuracy}"

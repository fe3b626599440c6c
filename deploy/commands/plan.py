"""`headrace plan`: the plan in force, why it is so, how it came about, and pinning it; all from topics, with nothing of ours running."""

from __future__ import annotations

from datetime import UTC, datetime

import click
import msgspec
import uvloop

from deploy.commands.command import Command, Group, option
from deploy.commands.output import Output
from deploy.configuration import Connection
from deploy.connections import create_topics, open_log
from deploy.control_changes import write_control
from deploy.plan_changes import PlanChange, changes_between
from deploy.snapshots import read_catalog, read_history, read_plan
from schemas.catalog import Catalog
from schemas.control import ControlSpec
from schemas.errors import HeadraceError
from schemas.plan import Plan
from schemas.plan_journal import PlanDecision

NO_PLAN = "there is no plan yet: a scaler makes one (`headrace scaler`, or `headrace up` for the whole stack)"


class PlanMissing(HeadraceError):
    """There is no such plan."""

    code = "plan_missing"


class Known(msgspec.Struct, frozen=True):
    """What the topics say of the plan."""

    plan: Plan | None
    catalog: Catalog
    history: list[PlanDecision]


@click.group(cls=Group)
def plan() -> None:
    """The plan: what it is, why, what came before it; pin and unpin it.

    \b
    headrace plan show
    headrace plan explain
    headrace plan history --last 20
    headrace plan diff 12 15
    """


@plan.command(cls=Command)
def show(connection: Connection, output: Output) -> None:
    """The plan in force, who made it with which optimizer, and whether it is pinned.

    \b
    headrace plan show --json
    """
    known = _known(connection)
    found, control = known.plan, known.catalog.control
    if found is None:
        output.say(NO_PLAN)
    else:
        show_plan(output, found)
        output.say(f"made {_when(found.made_ms)} by {found.planner or '-'} with the optimizer {found.optimizer or '-'}")
    if control.pinned:
        output.say(f"pinned{_by(control)}: {control.pin_reason or 'no reason given'}; `headrace plan unpin` lets it change again")
    output.result({"plan": found, "pinned": control.pinned, "control": control})


def show_plan(output: Output, found: Plan) -> None:
    """Tables of bindings and shares."""
    title = f"epoch {found.epoch}" + (f" by {found.planner}" if found.planner else "") + (f": {found.reason}" if found.reason else "")
    rows = [(b.worker, b.accelerator, b.lane, b.batch_size_max, b.threads, ", ".join(b.variants)) for b in found.bindings]
    output.table(title, ("worker", "class", "lane", "batch", "threads", "variants"), rows)
    shares = [(task, variant, f"{share:.0%}") for task, parts in found.shares.items() for variant, share in parts.items()]
    if shares:
        output.table("shares", ("task", "variant", "share"), shares)


@plan.command(cls=Command)
@click.argument("epoch", type=click.IntRange(0), required=False)
def explain(connection: Connection, output: Output, epoch: int | None) -> None:
    """Why the plan (or the one of EPOCH) is what it is: what made it due, what it was planned for, and what bounds it.

    \b
    headrace plan explain
    headrace plan explain 12
    """
    history = _known(connection).history
    at = next((number for number in reversed(range(len(history))) if _explains(history[number], epoch)), None)
    if at is None:
        raise PlanMissing(f"the history has no decision for epoch {epoch}" if epoch is not None else f"the history has no plan yet; {NO_PLAN}")
    made = history[at]
    later = next((decision for decision in reversed(history[at + 1 :]) if decision.explanation is not None), None) if epoch is None else None
    _explain(output, made)
    if later is not None:
        output.say(f"\nlast looked at {_when(later.at_ms)} ({later.trigger}): {later.kind}, {later.reason}")
    output.result({"decision": made, "latest": later})


def _explains(decision: PlanDecision, epoch: int | None) -> bool:
    return decision.explanation is not None and decision.plan is not None and epoch in (None, decision.epoch)


def _explain(output: Output, made: PlanDecision) -> None:
    output.say(f"epoch {made.epoch}, {_when(made.at_ms)}, by {made.scaler} with {made.optimizer or 'no optimizer'} in {made.proposed_ms:.0f} ms")
    output.say(f"due:  {made.trigger}\nwhy:  {made.reason}\ncost: {made.loads} loads of variants")
    for failure in made.failures:
        output.say(f"before that: {failure}")
    told = made.explanation
    if told is not None:
        gap = "" if told.gap is None else f", within {told.gap:.2%} of the best bound"
        output.say(f"{told.status}{gap}; bound by: {'; '.join(told.bound_by) or 'nothing'}")
        rows = [
            (
                name,
                f"{asked.rate_rps:.1f}",
                f"{asked.forecast_rps:.1f}",
                f"{asked.attainment:.1%}",
                asked.lag,
                _part(told.served.get(name)),
                "-" if name not in told.accuracy else f"{told.accuracy[name]:.4f}",
            )
            for name, asked in made.demand.items()
        ]
        output.table("", ("endpoint", "rate/s", "planned for", "attainment", "lag", "serves", "accuracy"), rows)
        if made.left_out:
            output.table("left out", ("what", "reason"), sorted(made.left_out.items()))
        if made.actuator:
            output.table("workers", ("class", "how many, and why"), sorted(made.actuator.items()))
        if told.load:
            output.table("", ("worker type", "used"), [(name, _part(used)) for name, used in told.load.items()])
    if made.rules is not None:
        rules = made.rules
        output.say(
            f"rules: a plan every {rules.interval_ms / 1e3:g} s, or at once when demand is {rules.demand_margin:.0%} above what was planned for, "
            f"attainment is below {rules.attainment_target:.0%} (again after {rules.attainment_cool_down_ms / 1e3:g} s), workers or the catalog "
            f"change; at least {rules.cool_down_ms / 1e3:g} s apart; it must serve {rules.gain_min:.0%} more than its loads cost, or be more accurate"
        )


def _part(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


@plan.command(cls=Command)
@option("--last", type=click.IntRange(1), default=20, show_default=True, help="How many of the latest decisions.")
@option("--all", "kept", is_flag=True, help="Also those that left everything as it was.")
def history(connection: Connection, output: Output, *, last: int, kept: bool) -> None:
    """What was decided, when and why: published plans, steps of rebindings, pins, optimizers, leaders.

    \b
    headrace plan history
    headrace plan history --all --last 100 --json
    """
    found = [decision for decision in _known(connection).history if kept or decision.kind != "kept"][-last:]
    rows = [(_when(d.at_ms), d.epoch, d.kind, d.optimizer, d.loads or "", d.trigger, d.reason) for d in found]
    output.table("", ("when", "epoch", "what", "optimizer", "loads", "because", "reason"), rows)
    if not found:
        output.say("nothing was decided yet" if kept else "nothing has changed yet; --all shows decisions that left all as it was")
    output.result({"decisions": found})


@plan.command(cls=Command)
@click.argument("old", type=click.IntRange(0), required=False)
@click.argument("new", type=click.IntRange(0), required=False)
def diff(connection: Connection, output: Output, old: int | None, new: int | None) -> None:
    """What changed between two epochs; without them, between the plan in force and the one before; with one, between that and the plan in force.

    \b
    headrace plan diff
    headrace plan diff 12 15
    """
    known = _known(connection)
    plans = {decision.plan.epoch: decision.plan for decision in known.history if decision.plan is not None}
    if known.plan is not None:
        plans[known.plan.epoch] = known.plan
    epochs = sorted(plans)
    if old is None and len(epochs) < 2:
        raise PlanMissing("the history has fewer than two plans")
    first = _plan_of(plans, epochs[-2] if old is None else old)
    second = _plan_of(plans, epochs[-1] if new is None else new)
    changes = changes_between(first, second)
    title = f"from epoch {first.epoch} to epoch {second.epoch}: {second.reason}"
    output.table(title, ("what", "name", "before", "after"), [_row(change) for change in changes])
    if not changes:
        output.say("nothing")
    output.result({"from": first.epoch, "to": second.epoch, "changes": changes})


def _plan_of(plans: dict[int, Plan], epoch: int) -> Plan:
    if epoch not in plans:
        known = f"it has {min(plans)} to {max(plans)}" if plans else "it has none"
        raise PlanMissing(f"the history has no plan of epoch {epoch}: {known}")
    return plans[epoch]


def _row(change: PlanChange) -> tuple[object, ...]:
    return change.kind, change.name, change.before or "-", change.after or "-"


@plan.command(cls=Command)
@option("--reason", default="", help="Shown to whoever wonders why nothing changes.")
def pin(connection: Connection, output: Output, reason: str) -> None:
    """Keep the present plan until `headrace plan unpin`; a rebinding that has begun is finished. Dispatchers go on to follow load within it.

    \b
    headrace plan pin --reason "measuring"
    """
    control = change_control(connection, pinned=True, pin_reason=reason)
    output.say("the plan is pinned")
    output.result({"control": control})


@plan.command(cls=Command)
def unpin(connection: Connection, output: Output) -> None:
    """Let the plan change again.

    \b
    headrace plan unpin
    """
    control = change_control(connection, pinned=False, pin_reason="")
    output.say("the plan may change again")
    output.result({"control": control})


def change_control(connection: Connection, **changes: object) -> ControlSpec:
    """Change what the catalog tells the control loop; what is not named stays. Raises LogUnavailable."""

    async def change() -> ControlSpec:
        async with open_log(connection) as log:
            await create_topics(log, connection)
            return await write_control(log, connection.names, **changes)

    return uvloop.run(change())


def _by(control: ControlSpec) -> str:
    return f" by {control.changed_by}" if control.changed_by else ""


def _when(at_ms: float) -> str:
    return datetime.fromtimestamp(at_ms / 1e3, tz=UTC).astimezone().strftime("%H:%M:%S.%f")[:-3] if at_ms else "-"


def _known(connection: Connection) -> Known:
    async def read() -> Known:
        async with open_log(connection) as log:
            names = connection.names
            return Known(await read_plan(log, names), await read_catalog(log, names), await read_history(log, names))

    return uvloop.run(read())

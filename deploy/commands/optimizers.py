"""`headrace optimizers`: which optimizers can be asked for here, and what each of them does."""

from __future__ import annotations

import click

from deploy.commands.command import Command, Group, option
from deploy.commands.optimizers_trial import trial
from deploy.commands.output import Output
from deploy.commands.plan import change_control
from deploy.configuration import Connection
from scaler.optimizers.registry import DEFAULT_OPTIMIZER, Described, create_optimizer, describe_optimizer, describe_optimizers
from schemas.errors import ConfigurationError


@click.group(cls=Group)
def optimizers() -> None:
    """The optimizers that can plan: built-in ones, and whatever is installed under the entry-point group headrace.optimizers.

    \b
    headrace optimizers list
    headrace optimizers describe loki
    """


@optimizers.command("list", cls=Command)
def list_(connection: Connection, output: Output) -> None:
    """Show every optimizer with the paper that it comes from; one that cannot be loaded is shown with the reason.

    \b
    headrace optimizers list
    headrace optimizers list --json
    """
    del connection
    found = describe_optimizers()
    rows = [(_marked(each), each.fault or each.source, "" if each.fault else each.summary, each.package) for each in found]
    output.table("", ("optimizer", "source", "what it does", "package"), rows)
    output.result({"optimizers": found, "default": DEFAULT_OPTIMIZER})


@optimizers.command("describe", cls=Command)
@click.argument("name", default=DEFAULT_OPTIMIZER)
def describe(connection: Connection, output: Output, name: str) -> None:
    """Show what one optimizer does, where it comes from, and what was chosen where its paper leaves something open.

    \b
    headrace optimizers describe
    headrace optimizers describe proteus --json
    """
    del connection
    found = describe_optimizer(name)
    if found.fault:
        raise ConfigurationError(found.fault)
    output.say(f"{_marked(found)} ({found.package})\nsource: {found.source}\n\n{found.description}")
    output.result({"optimizer": found, "default": found.name == DEFAULT_OPTIMIZER})


@optimizers.command("use", cls=Command)
@click.argument("name", required=False)
@option("--default", "default", is_flag=True, help="Go back to the optimizer that each scaler was started with.")
def use(connection: Connection, output: Output, name: str | None, *, default: bool) -> None:
    """Have another optimizer plan from now on: whoever leads switches at once, and asks it for a plan. Kept in the catalog, over restarts.

    \b
    headrace optimizers use loki
    headrace optimizers use --default
    """
    if bool(name) == default:
        raise click.UsageError("name an optimizer (`headrace optimizers list` shows them), or say --default")
    if name:
        create_optimizer(name)
    control = change_control(connection, optimizer=name or "")
    output.say(f"the optimizer is {name} now" if name else "each scaler plans with the optimizer that it was started with")
    output.result({"control": control})


optimizers.add_command(trial)


def _marked(found: Described) -> str:
    return f"{found.name} (default)" if found.name == DEFAULT_OPTIMIZER else found.name

"""`headrace scaler`: runs one as a process."""

from __future__ import annotations

import click

from deploy.commands.command import RoleCommand
from deploy.commands.role_options import default_name, name_option
from deploy.configuration import Connection, RunOptions
from deploy.roles.scaler import scaler_role
from deploy.run_role import run_role


@click.command(cls=RoleCommand)
@name_option("scaler")
def scaler(connection: Connection, running: RunOptions, name: str | None) -> int:
    """Run a scaler: it binds workers to variants and publishes the plan. Any number may run; one leads.

    \b
    headrace scaler --kafka kafka:9092
    """
    name = name or default_name("scaler")
    connection.need_kafka()
    return run_role("scaler", name, scaler_role(connection, name), running)

"""`headrace dispatcher`: runs one as a process."""

from __future__ import annotations

import click

from deploy.commands.command import RoleCommand
from deploy.commands.role_options import default_name, name_option
from deploy.configuration import Connection, RunOptions
from deploy.roles.dispatcher import dispatcher_role
from deploy.run_role import run_role


@click.command(cls=RoleCommand)
@name_option("dispatcher")
def dispatcher(connection: Connection, running: RunOptions, name: str | None) -> int:
    """Run a dispatcher: it owns requests from arrival to their terminal record.

    \b
    headrace dispatcher --kafka kafka:9092 --name dispatcher-1 --http 0.0.0.0:9100
    """
    name = name or default_name("dispatcher")
    connection.need_kafka()
    return run_role("dispatcher", name, dispatcher_role(connection, name), running)

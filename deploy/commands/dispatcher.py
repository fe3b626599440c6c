"""`headrace dispatcher`: runs one as a process."""

from __future__ import annotations

from pathlib import Path

import click

from deploy.commands.command import RoleCommand, option
from deploy.commands.role_options import default_name, name_option
from deploy.configuration import Connection, RunOptions
from deploy.roles.dispatcher import dispatcher_role
from deploy.run_role import run_role


@click.command(cls=RoleCommand)
@name_option("dispatcher")
@option("--record", type=click.Path(dir_okay=False, path_type=Path), help="Write all that it is told and decides to this file, to be replayed.")
def dispatcher(connection: Connection, running: RunOptions, name: str | None, record: Path | None) -> int:
    """Run a dispatcher: it owns requests from arrival to their terminal record.

    \b
    headrace dispatcher --kafka kafka:9092 --name dispatcher-1 --http 0.0.0.0:9100
    headrace dispatcher --record decisions.recording
    """
    name = name or default_name("dispatcher")
    connection.need_kafka()
    return run_role("dispatcher", name, dispatcher_role(connection, name, record), running)

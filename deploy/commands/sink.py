"""`headrace sink`: runs one as a process."""

from __future__ import annotations

import click

from deploy.commands.command import RoleCommand
from deploy.commands.role_options import default_name, name_option
from deploy.configuration import Connection, RunOptions
from deploy.roles.sink import sink_role
from deploy.run_role import run_role


@click.command(cls=RoleCommand)
@name_option("sink")
def sink(connection: Connection, running: RunOptions, name: str | None) -> int:
    """Run a sink: it moves terminal records from the log to Redis, where clients poll.

    \b
    headrace sink --kafka kafka:9092 --redis redis://redis:6379
    """
    name = name or default_name("sink")
    connection.need_kafka()
    connection.need_redis()
    return run_role("sink", name, sink_role(connection, name), running)

"""`headrace apply` and `headrace delete`: what changes the catalog."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import uvloop

from deploy.catalog_apply import Change, apply_files, write_catalog
from deploy.commands.command import Command, Group, option
from deploy.commands.output import Output
from deploy.configuration import Connection
from deploy.connections import create_topics, open_log
from deploy.running_stack import MODELS
from deploy.snapshots import read_catalog
from deploy.suggestions import did_you_mean
from schemas.errors import CatalogError


@click.command(cls=Command)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@option("--models", type=click.Path(file_okay=False, path_type=Path), default=MODELS, show_default=True, help="Model repository of the workers.")
def apply(connection: Connection, output: Output, files: tuple[Path, ...], models: Path) -> None:
    """Check YAML files, copy their models into the repository, and write their tasks and endpoints to the catalog.

    Nothing is written unless every document of every file is right.

    \b
    headrace apply examples/fashion/*.yaml
    headrace apply --kafka kafka:9092 --models /srv/models tasks.yaml endpoints.yaml
    """
    changes = uvloop.run(apply_to(connection, files, models))
    show_changes(output, changes)
    output.result({"applied": changes})


def show_changes(output: Output, changes: Sequence[Change]) -> None:
    """A table of what was created, changed and left as it was."""
    if changes:
        output.table("", ("kind", "name", "change", ""), [(c.kind, c.name, c.change, c.detail) for c in changes])


async def apply_to(connection: Connection, files: Sequence[Path], models: Path) -> list[Change]:
    """Apply files to an installation. Raises CatalogError, ModelRefused, LogUnavailable."""
    async with open_log(connection) as log:
        await create_topics(log, connection)
        return await apply_files(log, connection.names, files, models, replication=connection.replication)


@click.group(cls=Group)
def delete() -> None:
    """Remove something from the catalog."""


@delete.command("endpoint", cls=Command)
@click.argument("name")
def delete_endpoint(connection: Connection, output: Output, name: str) -> None:
    """Remove an endpoint: requests to it are rejected as `unknown_endpoint` from then on; its task stays.

    \b
    headrace delete endpoint fashion
    """
    uvloop.run(_delete_endpoint(connection, name))
    output.say(f"endpoint {name} deleted")
    output.result({"deleted": {"kind": "endpoint", "name": name}})


async def _delete_endpoint(connection: Connection, name: str) -> None:
    names = connection.names
    async with open_log(connection) as log:
        present = await read_catalog(log, names)
        if name not in present.endpoints:
            raise CatalogError(f"there is no endpoint {name!r}{did_you_mean(name, present.endpoints)}")
        await write_catalog(log, names, [(name.encode(), None, ())])

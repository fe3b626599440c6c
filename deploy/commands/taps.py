"""`headrace taps`: runs one as a process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from deploy.commands.command import RoleCommand, option
from deploy.commands.role_options import Bytes, default_name, name_option
from deploy.configuration import Connection, RunOptions
from deploy.roles.taps import TapOptions, taps_role
from deploy.run_role import run_role
from schemas.errors import ConfigurationError


@click.command(cls=RoleCommand)
@name_option("tap")
@option("--sink", default=None, help="Where to: kafka (the default), parquet, http, otel, or an entry point of headrace.tap_sinks.")
@option(
    "--parquet", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER", help="Parquet files in this folder: the same as --sink parquet."
)
@option("--url", default=None, help="Of the sinks http and otel: where events, or traces, are posted to.")
@option("--structured", is_flag=True, help="Whole events as JSON in the records' values, instead of attributes in headers.")
@option("--rotate-seconds", type=click.IntRange(1, 86_400), default=60, show_default=True, help="A new Parquet file begins after this time.")
@option("--rotate-bytes", type=Bytes(), default="64M", show_default=True, help="... or after so many bytes of decoded rows.")
@option(
    "--niceness", type=click.IntRange(0, 19), default=10, show_default=True, help="How far to stand back for others on this machine: 19 is the most."
)
@option("--group", default=None, help="Consumer group, where several taps of one kind are to go their own ways.")
def taps(connection: Connection, running: RunOptions, name: str | None, sink: str | None, niceness: int, **options: Any) -> int:
    """Run a tap: it copies sampled requests and answers, as the endpoints' `taps:` say, to those who watch models.

    It only reads what it copies, so it never delays a request. Each sink is a process (or several) of its own.

    \b
    headrace taps --kafka kafka:9092
    headrace taps --parquet /data/taps
    headrace taps --sink http --url http://collector:8080/
    """
    found = tap_options(sink, **options)
    connection.need_kafka()
    os.nice(niceness)
    name = name or default_name("taps")
    return run_role("taps", name, taps_role(connection, name, found), running)


def tap_options(sink: str | None, *, parquet: Path | None, group: str | None, **options: Any) -> TapOptions:
    """What the options say together. Raises ConfigurationError where they contradict each other."""
    if parquet is not None and sink not in (None, "parquet"):
        raise ConfigurationError(f"--parquet and --sink {sink} are two sinks: start two taps")
    sink = sink or ("parquet" if parquet is not None else "kafka")
    if sink == "parquet" and parquet is None:
        raise ConfigurationError("the sink parquet needs a folder: --parquet FOLDER")
    url = options["url"]
    if sink in ("http", "otel") and url is None:
        raise ConfigurationError(f"the sink {sink} needs an address: --url http://HOST:PORT/")
    stated: dict[str, dict[str, Any]] = {
        "kafka": {"structured": options["structured"]},
        "parquet": {"folder": parquet, "rotate_ms": options["rotate_seconds"] * 1_000.0, "rotate_bytes": options["rotate_bytes"]},
    }
    own = {} if url is None else {"url": url}
    return TapOptions(sink=sink, group=group, options=stated.get(sink, own))

"""`headrace scaler`: runs one as a process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deploy.commands.command import RoleCommand, option
from deploy.commands.role_options import default_name, name_option
from deploy.configuration import Connection, RunOptions
from deploy.roles.scaler import scaler_role
from deploy.run_role import run_role
from scaler.actuators.registry import DEFAULT_ACTUATOR, check_actuator
from scaler.control_loop_settings import LoopSettings
from scaler.optimizers.registry import DEFAULT_OPTIMIZER, create_optimizer
from scaler.policy.control_settings import ControlSettings
from scaler.policy.forecasting.forecaster import FORECASTERS


@click.command(cls=RoleCommand)
@name_option("scaler")
@option("--optimizer", default=DEFAULT_OPTIMIZER, show_default=True, help="Who plans, unless `headrace optimizers use` has named another.")
@option("--interval-s", type=click.FloatRange(1.0), default=10.0, show_default=True, help="Seconds between periodic plans.")
@option("--forecast", type=click.Choice(sorted(FORECASTERS)), default="ewma", show_default=True, help="How demand is expected to go on.")
@option(
    "--actuator",
    default=DEFAULT_ACTUATOR,
    show_default=True,
    help="Who starts and ends workers: fixed (nobody), local (`headrace up`), or a plug-in.",
)
@option(
    "--record",
    envvar="HEADRACE_RECORD_SNAPSHOTS",  # HEADRACE_RECORD is the dispatchers': one variable for a whole stack must not give two roles one file
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write every snapshot to this file, for `headrace simulate --snapshots`.",
)
def scaler(connection: Connection, running: RunOptions, name: str | None, *, interval_s: float, record: Path | None, **options: Any) -> int:
    """Run a scaler: it binds workers to variants and publishes the plan. Any number may run; one leads, the others stand by.

    \b
    headrace scaler --kafka kafka:9092
    headrace scaler --kafka kafka:9092 --optimizer static-accurate
    headrace scaler --record snapshots.bin
    """
    create_optimizer(options["optimizer"])
    check_actuator(options["actuator"])
    settings = LoopSettings(control=ControlSettings(interval_ms=interval_s * 1e3), **options)
    name = name or default_name("scaler")
    connection.need_kafka()
    return run_role("scaler", name, scaler_role(connection, name, settings, record), running)

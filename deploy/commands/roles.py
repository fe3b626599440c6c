"""The commands that run one role as a process: dispatcher, worker, sink, scaler."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import msgspec

from deploy import roles
from deploy.commands.command import RoleCommand, option
from deploy.configuration import Connection, RunOptions
from deploy.run_role import run_role
from deploy.running_stack import CACHE, MODELS, PROFILES
from schemas.names import ACCELERATORS, NAME

_BYTES = re.compile(r"^(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?$", re.IGNORECASE)
_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}


class Bytes(click.ParamType[int]):
    """A size in bytes: 512M, 2GiB, 1073741824 (units are powers of 1,024)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = _BYTES.match(str(value).strip())
        if found is None:
            self.fail(f"{value!r} is not a size: write 512M, 2GiB or a number of bytes", param, ctx)
        return int(float(found[1]) * (1 << _UNITS[found[2].lower()]))


def _checked_name(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not NAME.fullmatch(value):
        raise click.BadParameter(f"{value!r}: letters, digits, `.`, `_`, `-`, a letter or digit first")
    return value


def _name_option(role: str) -> Any:
    return option("--name", callback=_checked_name, help=f"Name of this {role}, unlike any other's; a restart under the same name goes on at once.")


@click.command(cls=RoleCommand)
@_name_option("dispatcher")
def dispatcher(connection: Connection, running: RunOptions, name: str | None) -> int:
    """Run a dispatcher: it owns requests from arrival to their terminal record.

    \b
    headrace dispatcher --kafka kafka:9092 --name dispatcher-1 --http 0.0.0.0:9100
    """
    name = name or roles.default_name("dispatcher")
    connection.need_kafka()
    return run_role("dispatcher", name, roles.dispatcher_role(connection, name), running)


@click.command(cls=RoleCommand)
@_name_option("worker")
@option("--accelerator", type=click.Choice(ACCELERATORS), required=True, help="Class of the lanes that it reads.")
@option("--device", help="Device as the runtime names it (vpu: NPU by default; CPU runs anywhere).")
@option("--device-id", type=click.IntRange(0), default=0, show_default=True, help="Which of several GPUs.")
@option("--allow-cpu", is_flag=True, help="Where the device is missing, compute on the CPU and say so, instead of refusing.")
@option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Processor threads to offer to the plan.")
@option("--models", type=click.Path(file_okay=False, path_type=Path), default=MODELS, show_default=True, help="Model repository.")
@option("--profiles", type=click.Path(file_okay=False, path_type=Path), default=PROFILES, show_default=True, help="Stored profiles.")
@option("--cache", type=click.Path(file_okay=False, path_type=Path), default=CACHE, show_default=True, help="Compiled models.")
@option("--memory-max", "memory_bytes_max", type=Bytes(), default=0, help="Device memory to use at most, as 2GiB; default: what is there.")
@option("--provider", "providers", multiple=True, help="GPU execution providers, in order; may be given several times.")
def worker(connection: Connection, running: RunOptions, name: str | None, **options: Any) -> int:
    """Run a worker: one process that owns one device and computes what the plan binds to it.

    \b
    headrace worker --accelerator cpu --threads 2
    headrace worker --accelerator vpu --device CPU --name vpu-1
    headrace worker --accelerator gpu --device-id 1 --memory-max 8GiB --provider TensorrtExecutionProvider --provider CUDAExecutionProvider
    """
    name = name or roles.default_name(options["accelerator"])
    connection.need_kafka()
    settings = msgspec.convert(options, roles.WorkerOptions, strict=False)
    return run_role("worker", name, roles.worker_role(connection, name, settings), running)


@click.command(cls=RoleCommand)
@_name_option("sink")
def sink(connection: Connection, running: RunOptions, name: str | None) -> int:
    """Run a sink: it moves terminal records from the log to Redis, where clients poll.

    \b
    headrace sink --kafka kafka:9092 --redis redis://redis:6379
    """
    name = name or roles.default_name("sink")
    connection.need_kafka()
    connection.need_redis()
    return run_role("sink", name, roles.sink_role(connection, name), running)


@click.command(cls=RoleCommand)
@_name_option("scaler")
def scaler(connection: Connection, running: RunOptions, name: str | None) -> int:
    """Run a scaler: it binds workers to variants and publishes the plan. Any number may run; one leads.

    \b
    headrace scaler --kafka kafka:9092
    """
    name = name or roles.default_name("scaler")
    connection.need_kafka()
    return run_role("scaler", name, roles.scaler_role(connection, name), running)

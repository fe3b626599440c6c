"""`headrace worker`: runs one as a process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from deploy.commands.command import RoleCommand, option
from deploy.commands.role_options import Bytes, default_name, name_option
from deploy.configuration import Connection, RunOptions
from deploy.roles.worker import WorkerOptions, worker_role
from deploy.run_role import run_role
from deploy.running_stack import CACHE, MODELS, PROFILES
from schemas.names import ACCELERATORS


@click.command(cls=RoleCommand)
@name_option("worker")
@option("--accelerator", type=click.Choice(ACCELERATORS), required=True, help="Class of the lanes that it reads.")
@option("--backend", help="Backend to compute with, as a plug-in of the group headrace.backends names itself; default: the class's own.")
@option("--device", help="Device as the runtime names it (vpu: NPU by default; CPU runs anywhere).")
@option("--board", metavar="ADDRESS", help="FPGA board to drive through PYNQ.remote; default: the one that this runs on.")
@option("--device-id", type=click.IntRange(0), default=0, show_default=True, help="Which of several GPUs.")
@option("--allow-cpu", is_flag=True, help="Where the device is missing, compute on the CPU and say so, instead of refusing.")
@option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Processor threads to offer to the plan.")
@option("--models", type=click.Path(file_okay=False, path_type=Path), default=MODELS, show_default=True, help="Model repository.")
@option("--profiles", type=click.Path(file_okay=False, path_type=Path), default=PROFILES, show_default=True, help="Stored profiles.")
@option("--cache", type=click.Path(file_okay=False, path_type=Path), default=CACHE, show_default=True, help="Compiled models.")
@option("--memory-max", "memory_bytes_max", type=Bytes(), default=0, help="Device memory to use at most, as 2GiB; default: what is there.")
@option("--provider", "providers", multiple=True, help="GPU execution providers, in order; may be given several times.")
def worker(connection: Connection, running: RunOptions, name: str | None, board: str | None, **options: Any) -> int:
    """Run a worker: one process that owns one device and computes what the plan binds to it.

    \b
    headrace worker --accelerator cpu --threads 2
    headrace worker --accelerator vpu --device CPU --name vpu-1
    headrace worker --accelerator fpga --board 192.168.2.99
    headrace worker --accelerator gpu --device-id 1 --memory-max 8GiB --provider TensorrtExecutionProvider --provider CUDAExecutionProvider
    """
    if board is not None:
        if options["accelerator"] != "fpga" or options["device"] is not None:
            raise click.UsageError("--board is the device of a worker with --accelerator fpga, in place of --device")
        options["device"] = board
    name = name or default_name(options["accelerator"])
    connection.need_kafka()
    settings = msgspec.convert(options, WorkerOptions, strict=False)
    return run_role("worker", name, worker_role(connection, name, settings), running)

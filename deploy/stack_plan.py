"""What `headrace up` runs: which roles, under which names, with which command lines."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from deploy.local.stack import RoleSpec, StackPlan
from schemas.errors import ConfigurationError
from schemas.names import ACCELERATORS

WORKERS_MAX = 16
"""Of one accelerator class: each needs a lane of its own."""
FREE_HTTP = "127.0.0.1:0"


class UpOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line of `up` says."""

    workers: Mapping[str, int]
    dispatchers: int = 1
    threads: int = 1
    vpu_device: str = "CPU"
    models: Path
    profiles: Path
    cache: Path
    kafka_home: str | None = None
    config: Path | None = None
    """Handed on to every role."""
    applies_files: bool = False
    """Files will be applied during the start: ready means that requests are served, not only that processes run."""
    owner_pid: int | None = None


def default_workers() -> dict[str, int]:
    """One worker on ONNX Runtime, and one on OpenVINO where that is installed."""
    return {"cpu": 1, "vpu": 1} if importlib.util.find_spec("openvino") else {"cpu": 1}


def parse_workers(text: str) -> dict[str, int]:
    """`cpu=2,vpu=1` as a mapping. Raises ConfigurationError saying what is wrong with it."""
    found: dict[str, int] = {}
    for part in text.split(","):
        accelerator, _, count = part.strip().partition("=")
        if accelerator not in ACCELERATORS:
            raise ConfigurationError(f"{part.strip()!r}: write CLASS=COUNT, as cpu=2,vpu=1; classes are {', '.join(ACCELERATORS)}")
        if accelerator in found:
            raise ConfigurationError(f"class {accelerator} is given twice")
        if not (count or "1").isdigit() or not 0 <= int(count or "1") <= WORKERS_MAX:
            raise ConfigurationError(f"{part.strip()!r}: 0 to {WORKERS_MAX} workers of a class")
        found[accelerator] = int(count or "1")
    return found


def plan_stack(folder: Path, options: UpOptions, *, kafka: str | None, redis: str | None, prefix: str) -> StackPlan:
    """The whole stack; addresses that are given are used, and no such server is started."""
    serving = "serving" if options.applies_files else "running"
    roles = [_role("scaler", "scaler-1", options), _role("sink", "sink-1", options, redis=True)]
    roles += [_role("dispatcher", f"dispatcher-{number + 1}", options, ready_when=serving) for number in range(options.dispatchers)]
    for accelerator, count in options.workers.items():
        roles += [_worker(accelerator, number, options, serving) for number in range(count)]
    return StackPlan(
        folder=folder,
        prefix=prefix,
        kafka=kafka,
        redis=redis,
        kafka_home=options.kafka_home,
        roles=roles,
        owner_pid=options.owner_pid,
    )


def _role(role: str, name: str, options: UpOptions, *, redis: bool = False, ready_when: str = "serving") -> RoleSpec:
    # -P: a folder named `deploy` in the working folder must not be taken for ours.
    argv = [sys.executable, "-P", "-m", "deploy.cli", role, "--name", name, "--kafka", "{kafka}", "--prefix", "{prefix}"]
    argv += ["--redis", "{redis}"] if redis else []
    argv += ["--http", FREE_HTTP, "--ready-file", "{ready}", "--ready-when", ready_when, "--log-format", "json"]
    argv += ["--config", str(options.config.resolve())] if options.config is not None else []
    return RoleSpec(role=role, name=name, argv=argv)


def _worker(accelerator: str, number: int, options: UpOptions, ready_when: str) -> RoleSpec:
    spec = _role("worker", f"{accelerator}-{number + 1}", options, ready_when=ready_when)
    argv = ["--accelerator", accelerator, "--threads", str(options.threads)]
    argv += ["--models", str(options.models.resolve()), "--profiles", str(options.profiles.resolve()), "--cache", str(options.cache.resolve())]
    if accelerator == "vpu":
        argv += ["--device", options.vpu_device]
    if accelerator in ("gpu", "fpga"):
        argv += ["--device-id", str(number)]
    return msgspec.structs.replace(spec, argv=[*spec.argv, *argv])

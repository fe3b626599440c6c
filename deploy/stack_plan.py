"""What `headrace up` runs: which roles, under which names, with which command lines."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from deploy.local.scaling import ScaleRange, ScaleRules
from deploy.local.stack import RoleSpec, StackPlan
from schemas.errors import ConfigurationError
from schemas.names import ACCELERATORS

WORKERS_MAX = 16
"""Of one accelerator class: each needs a lane of its own."""
FREE_HTTP = "127.0.0.1:0"


class UpOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line of `up` says."""

    workers: Mapping[str, int]
    """To start with."""
    scale: ScaleRules = ScaleRules()
    """Classes whose workers the scaler may have started and ended."""
    dispatchers: int = 1
    ha: bool = False
    """A scaler stands by."""
    optimizer: str | None = None
    """Who plans; None: whoever the catalog names."""
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
    taps: bool = False
    """Some endpoint of the files is tapped."""
    owner_pid: int | None = None


def options_within(folder: Path, workers: Mapping[str, int]) -> UpOptions:
    """Of a stack that ends with this process, and keeps all that it makes in `folder`."""
    models, profiles, cache = (folder / name for name in ("models", "profiles", "cache"))
    return UpOptions(workers=workers, models=models, profiles=profiles, cache=cache, applies_files=True, owner_pid=os.getpid())


def default_workers() -> dict[str, int]:
    """One worker on ONNX Runtime, and one on OpenVINO where that is installed."""
    return {"cpu": 1, "vpu": 1} if importlib.util.find_spec("openvino") else {"cpu": 1}


def start_counts(ranges: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """Workers to start with; of a range that begins at 0 one, or nobody would know what its variants cost."""
    return {name: max(least, 1) if most > least else least for name, (least, most) in ranges.items()}


def parse_ranges(text: str) -> dict[str, tuple[int, int]]:
    """`cpu=1..4,vpu=1` as (least, most) by class. Raises ConfigurationError."""
    found: dict[str, tuple[int, int]] = {}
    for part in text.split(","):
        accelerator, _, count = part.strip().partition("=")
        if accelerator not in ACCELERATORS:
            raise ConfigurationError(f"{part.strip()!r}: write CLASS=COUNT, as cpu=2,vpu=1; classes are {', '.join(ACCELERATORS)}")
        if accelerator in found:
            raise ConfigurationError(f"class {accelerator} is given twice")
        low, dots, high = (count or "1").partition("..")
        counts = [low, high if dots else low]
        if not all(each.isdigit() and 0 <= int(each) <= WORKERS_MAX for each in counts):
            raise ConfigurationError(f"{part.strip()!r}: 0 to {WORKERS_MAX} workers of a class, or a range of them as cpu=1..4")
        least, most = map(int, counts)
        if most < least:
            raise ConfigurationError(f"{part.strip()!r}: at most {most} workers are fewer than at least {least}; write {accelerator}={most}..{least}")
        found[accelerator] = (least, most)
    return found


def scale_rules(ranges: Mapping[str, tuple[int, int]], cores: int, threads: int) -> ScaleRules:
    """What the scaler may do; with cores and no range, as many cpu workers as there are cores. Raises ConfigurationError."""
    scaled = {name: (least, most) for name, (least, most) in ranges.items() if most > least}
    if cores and not scaled and "cpu" in ranges:
        scaled["cpu"] = (min(ranges["cpu"][0], cores), min(max(cores, ranges["cpu"][0]), WORKERS_MAX))
    least = sum(max(least, 1) for least, _ in scaled.values())
    if cores and least > cores:
        raise ConfigurationError(f"{least} workers to start with need more than {cores} cores: give more cores, or a smaller least count")
    found = [ScaleRange(accelerator=name, least=least, most=most, threads=threads) for name, (least, most) in scaled.items()]
    return ScaleRules(ranges=tuple(found), cores=cores if found else 0)


def plan_stack(folder: Path, options: UpOptions, *, kafka: str | None, redis: str | None, prefix: str) -> StackPlan:
    """The whole stack; addresses that are given are used, and no such server is started."""
    serving = "serving" if options.applies_files else "running"
    roles = [_role("scaler", f"scaler-{number + 1}", options) for number in range(2 if options.ha else 1)]
    roles += [_role("sink", "sink-1", options, redis=True)]
    roles += [_role("taps", "tap-1", options)] if options.taps else []
    roles += [_role("dispatcher", f"dispatcher-{number + 1}", options, ready_when=serving) for number in range(options.dispatchers)]
    most = {each.accelerator: each.most for each in options.scale.ranges}
    for accelerator, count in options.workers.items():
        workers = [_worker(accelerator, number, options, serving) for number in range(max(count, most.get(accelerator, 0)))]
        roles += [msgspec.structs.replace(worker, standby=number >= count) for number, worker in enumerate(workers)]
    return StackPlan(
        folder=folder,
        prefix=prefix,
        kafka=kafka,
        redis=redis,
        kafka_home=options.kafka_home,
        roles=roles,
        scale=options.scale,
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
    return msgspec.structs.replace(spec, argv=[*spec.argv, *argv], accelerator=accelerator)

"""`headrace profile`: measures what variants cost on a device of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from deploy.catalog_files import load_catalog_files
from deploy.catalog_tasks import BATCH_SIZE_MAX
from deploy.commands.command import Command, option
from deploy.commands.output import Output, with_progress, write_json
from deploy.configuration import Connection
from deploy.suggestions import did_you_mean
from schemas.catalog import VariantSpec, variant_key
from schemas.errors import CatalogError
from schemas.limits import Limits
from schemas.names import ACCELERATORS
from schemas.profile import Profile
from workers.backend import BackendOptions
from workers.backends import create_backend
from workers.host import host_name
from workers.onnx_files import read_variant
from workers.profile_store import ProfileStore
from workers.profiler import Profiler, ProfileSettings

Variants = dict[str, tuple[VariantSpec, Path]]
ALONE = "alone"
"""Task name of a model that is measured without a catalog document."""


class ProfileReport(msgspec.Struct, frozen=True):
    """What `headrace profile` writes."""

    host: str
    accelerator: str
    device: str
    runtime: str
    threads: int
    profiles: list[Profile]


@click.command(cls=Command)
@click.argument("file", type=click.Path(path_type=Path))
@option("--accelerator", type=click.Choice(ACCELERATORS), default="cpu", show_default=True)
@option("--device", help="Device as the runtime names it (vpu: NPU by default; CPU runs anywhere).")
@option("--device-id", type=click.IntRange(0), default=0, show_default=True, help="Which of several GPUs.")
@option("--allow-cpu", is_flag=True, help="Where the device is missing, measure the CPU and say so, instead of refusing.")
@option("--provider", "providers", multiple=True, help="GPU execution providers, in order; may be given several times.")
@option("--variant", "variants", multiple=True, metavar="NAME", help="Only these variants; may be given several times.")
@option("--batch", "batch_sizes", multiple=True, type=click.IntRange(1, Limits().rows_max), metavar="ROWS", help="Batch sizes; may be repeated.")
@option("--seconds", type=click.FloatRange(0.05, 3_600), default=1.5, show_default=True, help="Measuring time of each variant.")
@option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads to compute with.")
@option("--output", "output_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the profiles to this JSON file.")
@option("--profiles", type=click.Path(file_okay=False, path_type=Path), help="Store them here too, for workers to start with.")
def profile(connection: Connection, output: Output, file: Path, **options: Any) -> None:
    """Measure latency by batch size, load time and memory of the variants in FILE: catalog YAML, or one ONNX model.

    Variants are measured interleaved and repeatedly, so that a noisy minute shows as spread and is charged to none of them.

    \b
    headrace profile examples/fashion/task.yaml
    headrace profile model.onnx --accelerator vpu --device CPU --batch 1 --batch 8 --seconds 5 --output profile.json
    """
    del connection
    report = measure(_variants(file, options), options)
    if options["profiles"] is not None:
        store = ProfileStore(options["profiles"])
        for measured in report.profiles:
            store.put(measured)
    if options["output_file"] is not None:
        write_json(options["output_file"], report)
    _show(output, report)
    output.result(report)


def measure(variants: Variants, options: dict[str, Any]) -> ProfileReport:
    """Measure with a progress bar on stderr. Raises DeviceUnavailable, ModelRefused."""
    backend = create_backend(_backend_options(options))
    device = backend.describe()
    settings = ProfileSettings(
        budget_ms=options["seconds"] * 1000,
        batch_sizes=tuple(sorted(set(options["batch_sizes"]))),
        batch_size_max=max(options["batch_sizes"], default=ProfileSettings().batch_size_max),
        threads=options["threads"],
    )
    profiles = with_progress(lambda progress: Profiler(backend, settings).profile_variants(variants, progress))
    return ProfileReport(host_name(), device.accelerator, device.name, device.runtime, settings.threads, profiles)


def _backend_options(options: dict[str, Any]) -> BackendOptions:
    return BackendOptions(
        accelerator=options["accelerator"],
        device=options["device"],
        device_id=options["device_id"],
        allow_cpu=options["allow_cpu"],
        providers=options["providers"],
    )


def _variants(file: Path, options: dict[str, Any]) -> Variants:
    if file.suffix.lower() == ".onnx":
        found = _one_model(file, max(options["batch_sizes"], default=BATCH_SIZE_MAX))
    else:
        found = _of_catalog(file, options["accelerator"])
    wanted = set(options["variants"])
    names = {key.partition("/")[2] for key in found}
    for name in sorted(wanted - names):
        raise CatalogError(f"{file}: no variant {name!r} for {options['accelerator']}{did_you_mean(name, names)}")
    return {key: variant for key, variant in found.items() if not wanted or key.partition("/")[2] in wanted}


def _one_model(file: Path, batch_size_max: int) -> Variants:
    stated = VariantSpec(name=file.stem, file=file.name, sha256="", accuracy=0.0, batch_size_max=batch_size_max)
    return {variant_key(ALONE, file.stem): (read_variant(stated, file).spec, file)}


def _of_catalog(file: Path, accelerator: str) -> Variants:
    loaded = load_catalog_files([file])
    found: Variants = {}
    for task in loaded.tasks:
        for variant in task.variants:
            if variant.file and accelerator in variant.accelerators:
                found[variant_key(task.name, variant.name)] = (variant, loaded.models[variant.sha256])
    if not found:
        raise CatalogError(f"{file}: no variant of its tasks is for the accelerator {accelerator!r}")
    return found


def _show(output: Output, report: ProfileReport) -> None:
    rows = [
        (
            measured.variant.removeprefix(f"{ALONE}/"),
            rows,
            f"{latency.p50_ms:.3f}",
            f"{latency.p95_ms:.3f}",
            f"{rows / latency.p50_ms * 1000:,.0f}" if latency.p50_ms else "",
            f"{measured.spread:.0%}",
            f"{measured.load_ms:.0f}",
            f"{measured.memory_bytes / (1 << 20):.1f}",
        )
        for measured in report.profiles
        for rows, latency in sorted(measured.batches.items())
    ]
    title = f"{report.device} ({report.accelerator}, {report.threads} threads) on {report.host}"
    output.table(title, ("variant", "batch", "p50 ms", "p95 ms", "rows/s", "spread", "load ms", "memory MB"), rows)

"""`headrace split-model`: cuts one ONNX model into parts that run as stages on different workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from deploy.commands.command import Command, option
from deploy.commands.output import Output, with_progress
from deploy.configuration import Connection
from deploy.split_catalog import endpoint_name, part_file, write_split
from schemas.limits import Limits
from schemas.names import ACCELERATORS
from workers.backend import BackendOptions
from workers.backends import create_backend
from workers.model_splitting import PARTS_MAX, ModelSplitter, SplitModel, SplitSettings


class PartReport(msgspec.Struct, frozen=True, kw_only=True):
    """One part of a split."""

    file: str
    sha256: str
    size_bytes: int
    latency_ms: float
    share: float
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class SplitReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `headrace split-model` says."""

    folder: str
    catalog: str
    endpoint: str
    device: str
    whole_ms: float
    difference: float
    cuts: tuple[tuple[str, ...], ...]
    carried_row_bytes: tuple[int, ...]
    parts: tuple[PartReport, ...]


@click.command("split-model", cls=Command)
@click.argument("file", type=click.Path(path_type=Path))
@option("--at", "places", multiple=True, metavar="TENSOR[,TENSOR...]", help="Cut behind these tensors; repeat it for further cuts, in their order.")
@option("--parts", type=click.IntRange(2, PARTS_MAX), help="Cut into so many parts of about equal measured latency.")
@option("--output", "folder", type=click.Path(file_okay=False, path_type=Path), help="Folder to write to (default: FILE's name with -parts).")
@option("--name", default="", help="Name of the endpoint (default: FILE's).")
@option("--accuracy", type=click.FloatRange(0, 1), default=1.0, show_default=True, help="Of the whole model, for the catalog file.")
@option("--accelerator", type=click.Choice(ACCELERATORS), default="cpu", show_default=True, help="Where to measure and compare.")
@option("--device", help="Device as the runtime names it (vpu: NPU by default; CPU runs anywhere).")
@option("--batch", "rows", type=click.IntRange(1, Limits().rows_max), default=1, show_default=True, help="Rows to measure with.")
@option("--threads", type=click.IntRange(1), default=1, show_default=True)
@option("--seconds", type=click.FloatRange(0.02, 60), default=0.3, show_default=True, help="Measuring time of each place and part.")
def split_model(connection: Connection, output: Output, file: Path, **options: Any) -> None:
    """Cut one ONNX model into parts, compare the chained parts with the whole, and write them with a catalog file.

    Whatever crosses a cut travels raw from worker to worker; of a residual block that may be two tensors.

    \b
    headrace split-model resnet.onnx --parts 3 --output parts
    headrace split-model resnet.onnx --at /body/body.6/Add_output_0 --at /body/body.9/Relu_output_0
    headrace apply parts/split.yaml
    """
    del connection
    if bool(options["places"]) == bool(options["parts"]):
        raise click.UsageError("say either --at TENSOR (once for each cut) or --parts N")
    backend = create_backend(BackendOptions(accelerator=options["accelerator"], device=options["device"]))
    settings = SplitSettings(rows=options["rows"], threads=options["threads"], budget_ms=options["seconds"] * 1000)
    split = with_progress(lambda progress: _split(ModelSplitter(backend, settings, progress), file, options))
    folder: Path = options["folder"] or file.with_name(f"{file.stem}-parts")
    name: str = options["name"] or endpoint_name(file)
    catalog = write_split(split, folder, name, options["accuracy"])
    _say(output, split, folder)
    output.say(f"headrace apply {catalog}")
    output.result(_report(split, folder, catalog, name))


def _split(splitter: ModelSplitter, file: Path, options: dict[str, Any]) -> SplitModel:
    if options["parts"]:
        return splitter.split_evenly(file, options["parts"])
    return splitter.split_at(file, [[tensor.strip() for tensor in place.split(",")] for place in options["places"]])


def _say(output: Output, split: SplitModel, folder: Path) -> None:
    rows = [
        (
            folder / part_file(number),
            f"{part.latency_ms:.3f}",
            f"{part.share:.0%}",
            f"{len(part.data) / 1024:,.0f}",
            ", ".join(split.cuts[number - 1]) if number < len(split.parts) else "",
            f"{split.carried_row_bytes[number - 1]:,}" if number < len(split.parts) else "",
        )
        for number, part in enumerate(split.parts, start=1)
    ]
    output.table(f"{split.device}: the whole takes {split.whole_ms:.3f} ms", ("part", "p50 ms", "share", "KB", "carries", "bytes a row"), rows)
    output.say(f"the chained parts differ from the whole by at most {split.difference:.2g}")


def _report(split: SplitModel, folder: Path, catalog: Path, name: str) -> SplitReport:
    return SplitReport(
        folder=str(folder),
        catalog=str(catalog),
        endpoint=name,
        device=split.device,
        whole_ms=split.whole_ms,
        difference=split.difference,
        cuts=split.cuts,
        carried_row_bytes=split.carried_row_bytes,
        parts=tuple(
            PartReport(
                file=part_file(number),
                sha256=part.sha256,
                size_bytes=len(part.data),
                latency_ms=part.latency_ms,
                share=round(part.share, 4),
                inputs=tuple(tensor.name for tensor in part.inputs),
                outputs=tuple(tensor.name for tensor in part.outputs),
            )
            for number, part in enumerate(split.parts, start=1)
        ),
    )

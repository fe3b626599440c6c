"""`headrace measure`: end-to-end accuracy of an endpoint on labelled data, for every combination of variants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from deploy.catalog_files import CatalogFiles, load_catalog_files
from deploy.catalog_tasks import COMBINE
from deploy.commands.command import Command, option
from deploy.commands.output import Output, with_progress, write_json
from deploy.configuration import Connection
from deploy.graph_resolution import graph_of_task
from deploy.measuring import AccuracyMeasurer, MeasuredCombination, StageComputer, read_data, request_tensors
from deploy.suggestions import did_you_mean
from graphs.compiled import compile_graph
from schemas.catalog import EndpointSpec, TaskSpec
from schemas.errors import CatalogError
from schemas.names import ACCELERATORS
from workers.backend import BackendOptions
from workers.backends import create_backend


class MeasureReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `headrace measure` writes; `measured` is what a graph's `measured:` takes."""

    endpoint: str
    data: str
    requests: int
    measured: dict[str, float]
    combinations: list[MeasuredCombination]


@click.command(cls=Command)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="ENDPOINT_FILE...")
@option(
    "--data",
    "data_file",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE.npz",
    help="Arrays named as the request's tensors, and `labels`.",
)
@option("--endpoint", default="", metavar="NAME", help="Which one, where the files have several.")
@option("--input", "renamed", multiple=True, metavar="TENSOR=ARRAY", help="The array of the data that is this tensor of the request.")
@option("--only", multiple=True, metavar="STAGE=VARIANT", help="Only this variant of a stage; may be given several times.")
@option("--rows", "rows_max", type=click.IntRange(0), default=0, help="Only so many of the data's first rows (default: all).")
@option("--output", "output_file", type=click.Path(dir_okay=False, path_type=Path), default=Path("measured.json"), show_default=True)
@option("--accelerator", type=click.Choice(ACCELERATORS), default="cpu", show_default=True)
@option("--device", help="Device as the runtime names it (vpu: NPU by default; CPU runs anywhere).")
@option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads to compute with.")
def measure(connection: Connection, output: Output, files: tuple[Path, ...], **options: Any) -> None:
    """Run labelled data through a graph in this process, once for every combination of its stages' variants, and write what part was right.

    An answer is right where the argmax of its first output is the label. Give the files of the endpoint and of its tasks.

    \b
    headrace measure examples/fashion/task.yaml examples/fashion/graphs/ensemble.yaml --data examples/fashion/test-2000.npz
    """
    del connection
    loaded = load_catalog_files(files)
    endpoint = _endpoint(loaded, options["endpoint"])
    report = _measured(loaded, endpoint, options)
    write_json(options["output_file"], report)
    _show(output, report)
    output.say(f"wrote {options['output_file']}: name it as `measured:` of the graph")
    output.result(report)


def _measured(loaded: CatalogFiles, endpoint: EndpointSpec, options: dict[str, Any]) -> MeasureReport:
    tasks: dict[str, TaskSpec] = {task.name: task for task in (COMBINE, *loaded.tasks)}
    graph = endpoint.graph or graph_of_task(endpoint.task, tasks)
    backend = create_backend(BackendOptions(accelerator=options["accelerator"], device=options["device"]))
    computer = StageComputer(backend, tasks, loaded.models, threads=options["threads"])
    measurer = AccuracyMeasurer(graph, tasks, computer)
    combinations = measurer.combinations(_pairs(options["only"], "--only"))
    named = {tensor: arrays[-1] for tensor, arrays in _pairs(options["renamed"], "--input").items()}
    data = read_data(options["data_file"], request_tensors(compile_graph(graph, tasks)), named, options["rows_max"])
    try:
        found = with_progress(lambda progress: measurer.measure(data, combinations, progress))
    finally:
        computer.close()
    return MeasureReport(
        endpoint=endpoint.name,
        data=options["data_file"].name,
        requests=len(data.labels),
        measured={combination.key: round(combination.accuracy, 6) for combination in found},
        combinations=found,
    )


def _endpoint(loaded: CatalogFiles, name: str) -> EndpointSpec:
    known = {endpoint.name: endpoint for endpoint in loaded.endpoints}
    if name and name not in known:
        raise CatalogError(f"there is no endpoint {name!r} in these files{did_you_mean(name, known)}")
    if not name and len(known) != 1:
        raise CatalogError(f"the files have several endpoints: say --endpoint {' or '.join(known)}" if known else "the files have no endpoint")
    return known[name or next(iter(known))]


def _pairs(stated: Sequence[str], flag: str) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {}
    for pair in stated:
        left, equals, right = pair.partition("=")
        if not (left and equals and right):
            raise click.UsageError(f"{flag} {pair!r} is not LEFT=RIGHT")
        found.setdefault(left, []).append(right)
    return found


def _show(output: Output, report: MeasureReport) -> None:
    rows = [
        (combination.key, f"{combination.accuracy:.4f}", f"{combination.declared:.4f}", combination.failed, combination.failure)
        for combination in sorted(report.combinations, key=lambda combination: -combination.accuracy)
    ]
    title = f"{report.endpoint} on {report.requests} requests of {report.data}"
    output.table(title, ("combination", "measured", "declared", "failed", ""), rows)

"""`headrace graph`: what an endpoint's graph looks like, on the terminal, as Mermaid text or as an SVG picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import uvloop
from rich.text import Text
from rich.tree import Tree

from deploy.catalog_files import load_catalog_files
from deploy.commands.command import Command, Group, option
from deploy.commands.output import Output
from deploy.configuration import Connection
from deploy.connections import open_log
from deploy.graph_drawing import Box, Drawing, draw, mermaid
from deploy.graph_resolution import graph_of_task, tasks_of
from deploy.graph_svg import svg
from deploy.snapshots import read_catalog
from deploy.suggestions import did_you_mean
from schemas.catalog import Catalog, EndpointSpec
from schemas.errors import CatalogError, HeadraceError
from schemas.graph import GraphSpec

FILE_SUFFIXES = (".yaml", ".yml")


@click.group(cls=Group)
def graph() -> None:
    """Look at the graphs of endpoints.

    \b
    headrace graph show fashion-cascade
    headrace graph show examples/fashion/task.yaml examples/fashion/graphs/cascade.yaml
    """


@graph.command(cls=Command)
@click.argument("what", nargs=-1, required=True, metavar="NAME|FILE...")
@option("--mermaid", "as_mermaid", is_flag=True, help="Print Mermaid text, for Markdown pages.")
@option("--svg", "svg_file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write an SVG picture.")
def show(connection: Connection, output: Output, what: tuple[str, ...], *, as_mermaid: bool, svg_file: Path | None) -> None:
    """Draw graphs: NAMEs are endpoints of the catalog, or of FILEs (catalog files, with those of their tasks) where some are given.

    \b
    headrace graph show fashion-cascade
    headrace graph show fashion-cascade --mermaid
    headrace graph show examples/fashion/task.yaml examples/fashion/graphs/*.yaml fashion-everything --svg everything.svg
    """
    if as_mermaid and svg_file is not None:
        raise click.UsageError("either --mermaid or --svg")
    catalog, names = _read(connection, what)
    chosen = _chosen(catalog, names)
    graphs = {name: endpoint.graph or graph_of_task(endpoint.task, catalog.tasks) for name, endpoint in chosen.items()}
    if svg_file is not None:
        _write(svg_file, graphs)
        output.say(f"wrote {svg_file}")
    for name, found in graphs.items():
        unknown = sorted(tasks_of(found.nodes) - set(catalog.tasks))
        if unknown:
            told = f"{name}: inputs that are found by name are not shown: unknown here is task {', '.join(unknown)} (give its FILE too)"
            click.echo(told, err=True)
        if as_mermaid:
            output.console.print(Text(mermaid(draw(found))), end="")
        elif svg_file is None:
            output.console.print(_tree(chosen[name], draw(found)))
    output.result({"graphs": [{"endpoint": name, "revision": chosen[name].revision, "graph": found} for name, found in graphs.items()]})


def _read(connection: Connection, what: Sequence[str]) -> tuple[Catalog, list[str]]:
    """What the files say, else the catalog as it stands; and the names that were given."""
    files = [Path(word) for word in what if word.endswith(FILE_SUFFIXES) or Path(word).is_file()]
    names = [word for word in what if Path(word) not in files]
    if not files:
        return uvloop.run(_read_catalog(connection)), names
    stated = load_catalog_files(files)
    catalog = Catalog({task.name: task for task in stated.tasks}, {endpoint.name: endpoint for endpoint in stated.endpoints})
    return catalog, names or [endpoint.name for endpoint in stated.endpoints]


async def _read_catalog(connection: Connection) -> Catalog:
    async with open_log(connection) as log:
        return await read_catalog(log, connection.names)


def _chosen(catalog: Catalog, names: Sequence[str]) -> dict[str, EndpointSpec]:
    for name in names:
        if name not in catalog.endpoints:
            raise CatalogError(f"there is no endpoint {name!r}{did_you_mean(name, catalog.endpoints)}")
    if not names:
        raise CatalogError("there is no endpoint in these files")
    return {name: catalog.endpoints[name] for name in names}


def _write(file: Path, graphs: dict[str, GraphSpec]) -> None:
    if len(graphs) > 1:
        raise CatalogError(f"a picture shows one graph: name one of {', '.join(graphs)}")
    ((name, found),) = graphs.items()
    try:
        file.write_text(svg(draw(found), name), encoding="utf-8")
    except OSError as error:
        raise HeadraceError(f"{file}: cannot be written: {error.strerror}") from None


def _tree(endpoint: EndpointSpec, drawing: Drawing) -> Tree:
    """From the answer backwards, as the graph is evaluated; what is needed in several places is drawn at the first."""
    revision = f" revision {endpoint.revision}" if endpoint.revision else ""
    defaults = f": accuracy {endpoint.defaults.min_accuracy:g} within {endpoint.defaults.timeout_ms} ms by default"
    tree = Tree(Text.assemble((endpoint.name, "bold"), revision, defaults))
    _grow(tree, drawing, drawing.output, set())
    return tree


def _grow(tree: Tree, drawing: Drawing, target: str, drawn: set[str]) -> None:
    for arrow in drawing.arrows:
        if arrow.target != target or arrow.source not in drawing.boxes:
            continue
        box = drawing.boxes[arrow.source]
        label = Text.assemble((f"{arrow.label}: " if arrow.label else "", "cyan"), _words(box))
        if arrow.source in drawn and len(box.lines) > 1:
            label.append("  (above)", "dim")
        branch = tree.add(label)
        if arrow.source in drawn:
            continue
        drawn.add(arrow.source)
        if box.inner is not None:
            _grow_inner(branch, box.inner)
        _grow(branch, drawing, arrow.source, drawn)


def _grow_inner(tree: Tree, drawing: Drawing) -> None:
    box = drawing.boxes.get(drawing.output)
    if box is not None:
        branch = tree.add(Text.assemble(("each row: ", "cyan"), _words(box)))
        _grow(branch, drawing, drawing.output, {drawing.output})


def _words(box: Box) -> Text:
    name, *words = box.lines
    return Text.assemble((name, "bold"), f"  {': '.join(words)}") if words else Text(name)

"""The graphs of the rows about graphs, and their stage topics: made before the processes start, deleted after."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress

from broker.log import Log
from deploy.bench.harness import Crew, Harness
from deploy.bench.null_worker import OUTPUT
from deploy.bench.prefilled import ENDPOINT, TASK, TASKS
from deploy.catalog_checks import stage_topics
from schemas.catalog import EndpointSpec
from schemas.errors import HeadraceError
from schemas.graph import ForEachNode, GraphSpec, Node, StageNode
from schemas.names import Names

ROWS_MAX = 1_000
LINES = "lines"


def chain(length: int, *, fuse: bool = True) -> EndpointSpec:
    """So many stages of the null task; the first has the request's image, each other what the one before it gave."""
    nodes: dict[str, Node] = {"stage-1": StageNode(task=TASK, inputs={"image": "request.image"})}
    for at in range(2, length + 1):
        nodes[f"stage-{at}"] = StageNode(task=TASK, inputs={"image": f"stage-{at - 1}.{OUTPUT}"})
    return EndpointSpec(name=ENDPOINT, graph=GraphSpec(nodes=nodes, output=f"stage-{length}", fuse=fuse), revision=1)


def for_each() -> EndpointSpec:
    """The null task for each row of the request's tensor, joined to the answer."""
    inner = StageNode(task=TASK, inputs={"image": "row.line"})
    loop = ForEachNode(over={"line": f"request.{LINES}"}, nodes={"read": inner}, output="read", rows_max=ROWS_MAX)
    return EndpointSpec(name=ENDPOINT, graph=GraphSpec(nodes={"lines": loop}, output="lines"), revision=1)


@asynccontextmanager
async def graph_crew(harness: Harness, *endpoints: EndpointSpec) -> AsyncGenerator[Crew]:
    """A crew with the stage topics of these endpoints of the null task."""
    async with harness.crew() as crew, stages(harness.log, crew.names, [(endpoint, stage_topics(_graph(endpoint), TASKS)) for endpoint in endpoints]):
        yield crew


@asynccontextmanager
async def stages(log: Log, names: Names, wanted: Sequence[tuple[EndpointSpec, Sequence[str]]]) -> AsyncGenerator[None]:
    """Stage topics, by endpoint, for the length of a block."""
    topics = [names.stage_topic(endpoint.name, stage) for endpoint, found in wanted for stage in found]
    await log.create_topics(topics)
    try:
        yield
    finally:
        with suppress(HeadraceError):  # topics left over in a Kafka that is ending are nobody's loss
            await log.delete_topics([topic.name for topic in topics])


def _graph(endpoint: EndpointSpec) -> GraphSpec:
    assert endpoint.graph is not None
    return endpoint.graph

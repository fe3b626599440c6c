"""Applying graphs: revisions, canaries that go on, the topics of stages, the task that merges, and that examples and documentation can be applied."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from graph_files import PRESENT

from broker.memory import MemoryLog
from deploy.catalog_apply import apply_files, following, write_catalog
from deploy.catalog_checks import check_graph
from deploy.catalog_files import load_catalog_files
from deploy.catalog_graphs import read_graph
from deploy.catalog_tasks import COMBINE
from deploy.snapshots import read_catalog
from deploy.yaml_documents import Problems, as_fields, read_documents
from schemas.catalog import Catalog, EndpointSpec, catalog_key, encode_catalog
from schemas.graph import CanaryNode, GraphSpec, StageNode
from schemas.limits import Limits
from schemas.names import Names

ROOT = Path(__file__).resolve().parents[2]
FASHION = ROOT / "examples" / "fashion"
NAMES = Names("apply")
VOTE = """\
kind: endpoint
name: votes
graph:
  nodes:
    - name: a
      stage: {task: classify, variants: [small]}
    - name: b
      stage: {task: classify, variants: [large]}
    - name: vote
      ensemble: {members: [a, b]}
  output: vote
"""


def graph(variant: str = "small", percent: float = 0.0, step_requests: int = 200) -> GraphSpec:
    nodes = {
        "stable": StageNode(task="classify", inputs={"image": "request.image"}),
        "candidate": StageNode(task="classify", inputs={"image": "request.image"}, variants=(variant,)),
        "rollout": CanaryNode(stable="stable", candidate="candidate", percent=percent, step_requests=step_requests),
    }
    return GraphSpec(nodes=nodes, output="rollout")


def percent_of(endpoint: EndpointSpec) -> float:
    assert endpoint.graph is not None
    node = endpoint.graph.nodes["rollout"]
    assert isinstance(node, CanaryNode)
    return node.percent


def test_a_graph_that_changes_gets_the_next_revision() -> None:
    first = following(EndpointSpec(name="e", graph=graph()), None)
    same = following(EndpointSpec(name="e", graph=graph()), first)
    other = following(EndpointSpec(name="e", graph=graph("large")), same)
    plain = following(EndpointSpec(name="e", task="classify"), other)
    again = following(EndpointSpec(name="e", graph=graph()), plain)
    assert [each.revision for each in (first, same, other, plain, again)] == [1, 1, 2, 3, 4]
    assert following(EndpointSpec(name="e", task="classify"), EndpointSpec(name="e", task="other")).revision == 0


def test_who_comes_again_under_a_deleted_name_counts_on() -> None:
    catalog = Catalog()
    for spec in (EndpointSpec(name="e", graph=graph(), revision=3), EndpointSpec(name="plain", task="classify")):
        catalog.apply(catalog_key(spec), encode_catalog(spec))
        catalog.apply(catalog_key(spec), None)
    assert catalog.retired == {"e": 3}
    assert following(EndpointSpec(name="e", graph=graph()), None, catalog.retired["e"]).revision == 4
    # Without a graph nothing is counted, and nothing is forgotten.
    assert following(EndpointSpec(name="e", task="classify"), None, catalog.retired["e"]).revision == 3


def test_a_canary_goes_on_where_it_is_while_it_stays_the_same() -> None:
    present = EndpointSpec(name="e", graph=graph(percent=25.0), revision=4)
    same = following(EndpointSpec(name="e", graph=graph()), present)
    assert (percent_of(same), same.revision) == (25.0, 4)
    assert percent_of(following(EndpointSpec(name="e", graph=graph("large")), present)) == 0.0
    assert percent_of(following(EndpointSpec(name="e", graph=graph(step_requests=9)), present)) == 0.0


async def applied(log: MemoryLog, folder: Path, text: str) -> list[tuple[str, str, str]]:
    file = folder / "graphs.yaml"
    file.write_text(text)
    return [(change.kind, change.name, change.change) for change in await apply_files(log, NAMES, [file], folder / "models")]


async def catalog_log() -> MemoryLog:
    log = MemoryLog()
    await log.create_topics(NAMES.topics(shards=3))
    await write_catalog(log, NAMES, [(catalog_key(task), encode_catalog(task), ()) for task in PRESENT.tasks.values()])
    return log


async def test_stage_topics_and_the_merging_task_come_with_a_graph(tmp_path: Path) -> None:
    log = await catalog_log()
    assert await applied(log, tmp_path, VOTE) == [("task", "headrace.combine", "created"), ("endpoint", "votes", "created")]
    assert [await log.partitions(f"apply.stage.votes.{stage}") for stage in ("a", "b", "vote", "c")] == [3, 3, 3, 0]
    catalog = await read_catalog(log, NAMES)
    assert catalog.tasks["headrace.combine"] == COMBINE
    assert catalog.endpoints["votes"].revision == 1
    assert await applied(log, tmp_path, VOTE) == [("task", "headrace.combine", "unchanged"), ("endpoint", "votes", "unchanged")]
    assert await applied(log, tmp_path, VOTE.replace("members: [a, b]", "members: [b, a]")) == [
        ("task", "headrace.combine", "unchanged"),
        ("endpoint", "votes", "changed"),
    ]
    assert (await read_catalog(log, NAMES)).endpoints["votes"].revision == 2


async def test_a_graph_without_ensemble_needs_no_merging(tmp_path: Path) -> None:
    log = await catalog_log()
    single = "kind: endpoint\nname: one\ngraph:\n  nodes:\n    - name: a\n      stage: {task: classify}\n  output: a\n"
    assert await applied(log, tmp_path, single) == [("endpoint", "one", "created")]


def test_stage_topics_are_short_and_stamped_by_the_broker() -> None:
    topic = NAMES.stage_topic("votes", "lines.text", partitions=5, replication=3)
    assert (topic.name, topic.partitions) == ("apply.stage.votes.lines.text", 5)
    assert topic.config == {
        "max.message.bytes": str(2 << 20),
        "min.insync.replicas": "2",
        "message.timestamp.type": "LogAppendTime",
        "retention.ms": "3600000",
    }


def test_the_examples_can_be_applied_and_read_back() -> None:
    files = [FASHION / "task.yaml", FASHION / "endpoint.yaml", *sorted((FASHION / "graphs").glob("*.yaml"))]
    loaded = load_catalog_files(files, Catalog())
    assert {endpoint.name for endpoint in loaded.endpoints} >= {
        f"fashion-{name}" for name in ("cascade", "ensemble", "canary", "shadow", "everything")
    }
    catalog = Catalog()
    for endpoint in loaded.endpoints:
        catalog.apply(catalog_key(endpoint), encode_catalog(endpoint))
    assert tuple(catalog.endpoints.values()) == loaded.endpoints


def test_measured_examples_promise_what_was_measured() -> None:
    files = [FASHION / "task.yaml", FASHION / "graphs" / "cascade.yaml", FASHION / "graphs" / "ensemble.yaml"]
    loaded = load_catalog_files(files, Catalog())
    tasks = {task.name: task for task in (*loaded.tasks, COMBINE)}
    best = {endpoint.name: check_graph(endpoint.graph, tasks).best for endpoint in loaded.endpoints if endpoint.graph}
    assert best == {"fashion-cascade": pytest.approx(0.9293), "fashion-ensemble": pytest.approx(0.9355)}


def test_one_example_has_every_kind_of_node() -> None:
    loaded = load_catalog_files([FASHION / "task.yaml", FASHION / "graphs" / "everything.yaml"], Catalog())
    graph = loaded.endpoints[-1].graph
    assert graph is not None
    kinds = {type(node).__struct_config__.tag for node in graph.nodes.values()}
    assert kinds == {"stage", "switch", "splitter", "canary", "shadow", "ensemble", "for_each"}
    assert graph.calls == ("fashion-careful",)
    assert "fashion-contrast" in {node.task for node in graph.nodes.values() if isinstance(node, StageNode)}


def test_the_transform_of_the_example_stretches_contrast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FASHION))
    from fashion_transforms import stretch_contrast  # pyright: ignore[reportMissingImports]

    image = np.full((2, 1, 28, 28), 7, np.uint8)
    image[0, 0, 0, :2] = 100, 50
    (stretched,) = stretch_contrast({"image": image}, {"low": 10, "high": 210}).values()
    assert (stretched.dtype, stretched.shape) == (np.uint8, image.shape)
    assert (stretched[0].min(), stretched[0].max(), stretched[0, 0, 0, 1]) == (10, 210, 10 + round(43 / 93 * 200))
    assert np.array_equal(stretched[1], image[1])
    sys.modules.pop("fashion_transforms")


SNIPPETS = re.findall(r"^```yaml\n(.*?)^```$", (ROOT / "docs" / "graphs.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("text", SNIPPETS)
def test_snippets_of_the_documentation_are_graphs(tmp_path: Path, text: str) -> None:
    if text.startswith("- "):
        text = "kind: endpoint\nname: shown\ngraph:\n  nodes:\n" + "".join(f"    {line}\n" for line in text.splitlines()) + "  output: shown\n"
    elif text.startswith("measured"):
        text = "kind: endpoint\nname: shown\ngraph:\n  nodes: [{name: a, stage: {task: t}}]\n  output: a\n" + "".join(
            f"  {line}\n" for line in text.splitlines()
        )
    file = tmp_path / "shown.yaml"
    file.write_text(text)
    problems = Problems()
    ((source, node),) = read_documents(file, problems)
    fields = as_fields(source, node, "a document", None)
    assert fields is not None
    if "graph" in fields:
        graph = fields.mapping("graph", "`graph`", None)
        assert graph is not None
        assert read_graph(graph, Limits()) is not None
    problems.raise_if_any()


def test_the_snippets_show_every_kind_of_node() -> None:
    shown = "".join(SNIPPETS)
    assert all(f"  {kind}:" in shown for kind in ("stage", "switch", "splitter", "canary", "shadow", "ensemble", "for_each", "call"))


def test_endpoints_without_graph_are_written_as_before() -> None:
    fields = msgspec.json.decode(encode_catalog(EndpointSpec(name="e", task="t")))
    assert (fields["task"], fields["graph"]) == ("t", None)

"""Of each stage that only some variants may run, one is hosted, as long as there is room."""

from __future__ import annotations

import msgspec
import pytest
from control_stage import ControlStage

from scaler.optimizers.snapshot import Cost, Variant
from scaler.policy.control_needs import needs_of, with_needs
from schemas.catalog import EndpointSpec
from schemas.graph import Branch, ForEachNode, GraphSpec, Node, SplitterNode, StageNode
from schemas.plan import Binding
from schemas.profile import Latency


def endpoint(*variants: str) -> EndpointSpec:
    inner = StageNode(task="t", inputs={}, variants=variants)
    loop = ForEachNode(over={"row": "open.boxes"}, nodes={"read": inner}, output="read")
    split = SplitterNode(branches=(Branch(1.0, "open"), Branch(1.0, "lines")))
    nodes: dict[str, Node] = {"open": StageNode(task="t", inputs={}), "lines": loop, "split": split}
    return EndpointSpec(name="e", graph=GraphSpec(nodes=nodes, output="split"))


def test_needs_are_the_variants_that_stages_name() -> None:
    assert needs_of([endpoint("small", "large"), EndpointSpec(name="plain", task="t")]) == (frozenset({"t/small", "t/large"}),)
    assert needs_of([endpoint()]) == ()


@pytest.mark.parametrize(
    ("memory_bytes_max", "refused", "hosts"),
    [(0, {}, True), (10_000, {}, True), (1, {}, False), (0, {"t/large": "it cannot be loaded"}, False)],
    ids=["no limit", "room", "no room", "quarantined"],
)
def test_what_nobody_hosts_is_hosted_where_there_is_room(memory_bytes_max: int, refused: dict[str, str], hosts: bool) -> None:
    stage = ControlStage()
    stage.run(3)
    snapshot = stage.policy.snapshot(stage.now_ms)
    latency = {1: {1: Latency(1.0, 1.0, 9)}}
    costs = {worker.type: Cost(latency=latency, memory_bytes=100) for worker in snapshot.workers}
    snapshot = msgspec.structs.replace(
        snapshot, variants=tuple(Variant(key=f"t/{name}", task="t", accuracy=0.9, costs=costs) for name in ("small", "large"))
    )
    workers = tuple(msgspec.structs.replace(worker, memory_bytes_max=memory_bytes_max, refused=refused) for worker in snapshot.workers)
    bindings = tuple(Binding(worker=worker.name, accelerator="cpu", lane=at, variants=("t/small",)) for at, worker in enumerate(snapshot.workers))
    found = with_needs(bindings, [frozenset({"t/large"})], msgspec.structs.replace(snapshot, workers=workers))
    assert sum("t/large" in binding.variants for binding in found) == (1 if hosts else 0)
    assert all("t/small" in binding.variants for binding in found)
    assert with_needs(found, [frozenset({"t/large", "t/small"})], snapshot) == found

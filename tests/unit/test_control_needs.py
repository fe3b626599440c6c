"""What must be hosted is: of each stage that only some variants may run, and for the highest floor of each endpoint, as long as there is room."""

from __future__ import annotations

import msgspec
import pytest
from control_stage import ControlStage

from scaler.optimizers.snapshot import Cost, EndpointDemand, FloorDemand, Variant
from scaler.policy.control_needs import floor_needs, needs_of, with_needs
from schemas.catalog import Defaults, EndpointSpec
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


@pytest.mark.parametrize(
    ("asked", "default", "needs"),
    [
        ((0.8,), 0.8, {"t/small", "t/large"}),
        ((0.8,), 0.9, {"t/large"}),
        ((0.8, 0.9), 0.0, {"t/large"}),
        ((0.99,), 0.85, {"t/large"}),
        ((0.99,), 0.99, None),
        ((), 0.0, {"t/small", "t/large"}),
    ],
    ids=["all meet it", "by default", "asked now and then", "above all: the default", "above all", "nothing asked"],
)
def test_the_highest_floor_that_can_be_met_is_a_need(asked: tuple[float, ...], default: float, needs: set[str] | None) -> None:
    stage = ControlStage()
    stage.run(3)
    floors = tuple(FloorDemand(floor=floor, rate_rps=0.0, forecast_rps=0.0) for floor in asked)
    demand = EndpointDemand(endpoint="plain", stages=(), floors=floors, timeout_ms=500.0)
    variants = tuple(
        Variant(key=f"t/{name}", task="t", accuracy=accuracy, costs={}) for name, accuracy in (("tiny", -1.0), ("small", 0.8), ("large", 0.9))
    )
    snapshot = msgspec.structs.replace(stage.policy.snapshot(stage.now_ms), endpoints=(demand,), variants=variants)
    specs = [EndpointSpec(name="plain", task="t", defaults=Defaults(min_accuracy=default)), endpoint("small")]
    assert floor_needs(specs, snapshot) == (() if needs is None else (frozenset(needs),))

"""Requests on graphs: stages, fan-out and branches come out as the load says, over the dispatcher's own graphs."""

from __future__ import annotations

import msgspec
import pytest
from simulator_stage import SIZES

from scaler.optimizers.optimizer import FEASIBLE, Explanation, Limits, Proposal
from scaler.optimizers.snapshot import Cost, Snapshot, Variant
from scaler.simulator.checking.checkers import Checkers
from scaler.simulator.errors import InvalidScenario
from scaler.simulator.run import simulate
from scaler.simulator.scenario import Arrivals, Choice, Control, Fault, Hop, Load, Scenario, WorkerGroup
from schemas.catalog import Catalog, Defaults, EndpointSpec, TaskSpec, TensorSpec, VariantSpec, variant_key
from schemas.graph import Case, ForEachNode, GraphSpec, StageNode, SwitchNode
from schemas.plan import Binding
from schemas.profile import Latency

BOXES, FACE = TensorSpec("boxes", "FP32", (-1, 1)), TensorSpec("face", "FP32", (-1, 1))
IMAGE = TensorSpec("image", "FP32", (-1, 1))
TASKS = {
    "detect": (("quick", 0.8, 2.0), ("careful", 0.9, 6.0)),
    "name": (("small", 0.85, 1.0), ("large", 0.95, 3.0)),
}
GIVES = {"detect": BOXES, "name": FACE}

DETECT = StageNode(task="detect", inputs={"image": "request.image"})
NAME = StageNode(task="name", inputs={"image": "row.boxes"})
PIPELINE = GraphSpec(nodes={"find": DETECT, "people": ForEachNode(over={"boxes": "find.boxes"}, nodes={"who": NAME}, output="who")}, output="people")
LINE = GraphSpec(nodes={"find": DETECT, "who": StageNode(task="name", inputs={"image": "find.boxes"})}, output="who")
CASCADE = GraphSpec(
    nodes={
        "quick": StageNode(task="name", inputs={"image": "request.image"}, variants=("small",)),
        "again": StageNode(task="name", inputs={"image": "request.image"}, variants=("large",)),
        "sure": SwitchNode(cases=(Case("max(quick.face) >= 0.5", "quick"),), otherwise="again"),
    },
    output="sure",
)


def scenario(graph: GraphSpec, *, rate_rps: float = 60.0, duration_s: float = 6.0, **load: object) -> Scenario:
    specs = {
        task: TaskSpec(
            name=task,
            variants=tuple(
                VariantSpec(name=name, file="f", sha256=name, accuracy=accuracy, inputs=(IMAGE,), outputs=(GIVES[task],))
                for name, accuracy, _ in ladder
            ),
        )
        for task, ladder in TASKS.items()
    }
    variants = tuple(
        Variant(
            key=variant_key(task, name),
            task=task,
            accuracy=accuracy,
            costs={"cpu": Cost(latency={1: {rows: Latency(ms * (0.5 + 0.5 * rows), ms * (0.6 + 0.6 * rows), 50) for rows in SIZES}}, load_ms=20.0)},
        )
        for task, ladder in TASKS.items()
        for name, accuracy, ms in ladder
    )
    given = Load(endpoint="faces", arrivals=Arrivals(rate_rps=rate_rps), floors=(Choice(0.5),), timeouts_ms=(Choice(800.0),))
    return Scenario(
        name="faces",
        catalog=Catalog(specs, {"faces": EndpointSpec(name="faces", graph=graph, revision=1, defaults=Defaults(timeout_ms=800))}),
        variants=variants,
        workers=(WorkerGroup(type="cpu", count=3),),
        loads=(msgspec.structs.replace(given, **load),),
        duration_s=duration_s,
        hop=Hop(p50_ms=1.0, p99_ms=4.0),
    )


def test_a_pipeline_fans_out_by_what_the_detector_finds() -> None:
    few = scenario(PIPELINE, fan_out={"people": {"detect/quick": 1.0, "detect/careful": 3.0}})
    checkers = Checkers.of(few)
    result = simulate(few, 1, watchers=[checkers])
    assert checkers.violations == ()
    total = result.total
    assert total.offered == total.completed + total.expired + total.rejected + total.failed
    assert total.attainment > 0.97
    found = result.variants.get("detect/quick", 0), result.variants.get("detect/careful", 0)
    named = result.variants.get("name/small", 0) + result.variants.get("name/large", 0)
    assert sum(found) >= total.completed
    assert named == pytest.approx(found[0] * 1.0 + found[1] * 3.0, rel=0.15)
    assert total.accuracy_best == pytest.approx(0.9 * 0.95)
    assert total.accuracy_served is not None
    assert 0.8 * 0.85 - 1e-9 <= total.accuracy_served <= 0.9 + 1e-9, "a picture without faces has the accuracy of its detector alone"


def test_more_rows_are_more_work() -> None:
    one, many = (simulate(scenario(PIPELINE, fan_out={"people": {"*": rows}}), 2) for rows in (1.0, 6.0))
    named = [result.variants.get("name/small", 0) + result.variants.get("name/large", 0) for result in (one, many)]
    assert named[1] > 4.0 * named[0]
    assert many.utilisation["cpu"] > one.utilisation["cpu"]


@pytest.mark.parametrize("sure", [0.0, 0.7, 1.0])
def test_a_switch_takes_each_branch_as_often_as_the_load_says(sure: float) -> None:
    cascade = scenario(CASCADE, rate_rps=120.0, branches={"sure": {"quick": sure, "again": 1.0 - sure}})
    result = simulate(cascade, 3)
    assert result.total.completed == result.total.offered
    assert result.variants["name/small"] == result.total.offered
    assert result.variants.get("name/large", 0) / result.total.offered == pytest.approx(1.0 - sure, abs=0.05)


@pytest.mark.parametrize("graph", [PIPELINE, LINE], ids=["pipeline", "line"])
def test_graphs_survive_what_goes_wrong(graph: GraphSpec) -> None:
    fan_out = {"fan_out": {"people": {"*": 2.0}}} if graph is PIPELINE else {}
    faults = (
        Fault(kind="worker", at_s=1.0, lasts_s=1.0),
        Fault(kind="dispatcher", at_s=2.0, lasts_s=0.5),
        Fault(kind="duplicates", at_s=0.5, lasts_s=4.0, part=0.1),
        Fault(kind="delays", at_s=0.5, lasts_s=4.0, part=0.05, factor=5.0),
    )
    for seed in range(4):
        broken = msgspec.structs.replace(scenario(graph, **fan_out), faults=faults)
        checkers = Checkers.of(broken)
        result = simulate(broken, seed, watchers=[checkers])
        assert checkers.violations == ()
        total = result.total
        assert total.offered == total.completed + total.expired + total.rejected + total.failed
        assert total.completed > 0.6 * total.offered


def test_a_line_on_one_worker_saves_its_hand_overs() -> None:
    apart = msgspec.structs.replace(LINE, fuse=False)
    fused, handed = (simulate(scenario(graph, rate_rps=240.0), 4).total for graph in (LINE, apart))
    assert fused.completed == handed.completed == fused.offered
    assert (fused.accuracy_served or 0.0) >= (handed.accuracy_served or 0.0) - 0.01
    assert (fused.latency_p50_ms or 0.0) < 0.8 * (handed.latency_p50_ms or 0.0)


def test_the_same_seed_gives_the_same_result_on_a_graph() -> None:
    first, again = (simulate(scenario(PIPELINE, fan_out={"people": {"*": 2.0}}, rate_rps=30.0), 5) for _ in range(2))
    assert first == again


@pytest.mark.parametrize(
    ("load", "said"),
    [
        ({"fan_out": {"peple": {"*": 1.0}}}, "no for_each 'peple'"),
        ({"branches": {"sure": {"quick": 1.0}}}, "no switch 'sure'"),
    ],
)
def test_a_load_that_names_what_the_graph_has_not_is_said(load: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidScenario, match=said):
        simulate(scenario(PIPELINE, **load), 1)


def test_a_branch_that_a_switch_has_not_is_said() -> None:
    with pytest.raises(InvalidScenario, match="has the branches quick, again"):
        simulate(scenario(CASCADE, branches={"sure": {"slow": 1.0}}), 1)


class Apart:
    """An optimizer that gives each task workers of its own: one for the detector, all others for what follows on it."""

    name = "apart"
    source = "Headrace"

    def propose(self, snapshot: Snapshot, limits: Limits) -> Proposal:
        tasks = {task: tuple(sorted(variant.key for variant in snapshot.variants if variant.task == task)) for task in TASKS}
        bindings = tuple(
            Binding(worker=worker.name, accelerator="cpu", lane=lane, variants=tasks["detect" if lane == 0 else "name"])
            for lane, worker in enumerate(snapshot.workers)
        )
        return Proposal(bindings=bindings, explanation=Explanation(status=FEASIBLE))


def test_the_work_of_later_stages_is_promised_where_it_will_be_done() -> None:
    """The detector's one worker has room to spare: what its requests need later is nothing that stands in its way."""
    wide = scenario(PIPELINE, rate_rps=120.0, fan_out={"people": {"*": 20.0}}, timeouts_ms=(Choice(140.0),), floors=(Choice(0.6),))
    wide = msgspec.structs.replace(wide, workers=(WorkerGroup(type="cpu", count=6),), control=Control(optimizer=Apart.name))
    total = simulate(wide, 1, Apart()).total
    assert total.attainment > 0.995
    assert total.rejected == 0

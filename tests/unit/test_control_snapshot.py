"""What an optimizer is shown: stages, demand by floor, costs by type of worker; and that lies are bounded and counted."""

from __future__ import annotations

from math import inf, nan

import msgspec
import pytest
from control_stage import ControlStage, catalog, hosted

from scaler.optimizers.snapshot import ANY_VARIANT, Cost, Snapshot, Variant
from scaler.policy.control_settings import ControlSettings
from scaler.policy.observed_stages import Flow, stage_tree
from schemas.catalog import Catalog, EndpointSpec, TaskSpec, TensorSpec, VariantSpec
from schemas.graph import Branch, Case, EnsembleNode, ForEachNode, GraphSpec, ShadowNode, SplitterNode, StageNode, SwitchNode
from schemas.profile import Latency
from schemas.telemetry import DispatcherReport, EndpointCounts, HostedVariant

IMAGE, PROBS = TensorSpec("image", "UINT8", (-1, 8)), TensorSpec("probs", "FP32", (-1, 10))


def heard(stage: ControlStage, seconds: int = 6) -> Snapshot:
    stage.run(seconds)
    return stage.policy.snapshot(stage.now_ms)


def test_demand_is_told_by_floor_with_its_forecast() -> None:
    stage = ControlStage()
    stage.floors = ("0.8", "0.9")
    (endpoint,) = heard(stage, 12).endpoints
    assert [floor.floor for floor in endpoint.floors] == [0.8, 0.9]
    assert [floor.rate_rps for floor in endpoint.floors] == pytest.approx([25.0, 25.0], rel=0.1)
    assert endpoint.forecast_rps == pytest.approx(50.0)
    assert (endpoint.endpoint, endpoint.timeout_ms, [stage.task for stage in endpoint.stages]) == ("shop", 300.0, ["t"])


def test_an_endpoint_that_nobody_calls_is_there_with_its_default_floor() -> None:
    stage = ControlStage()
    stage.rate_rps = 0.0
    (endpoint,) = heard(stage).endpoints
    assert [(floor.floor, floor.forecast_rps) for floor in endpoint.floors] == [(0.8, 0.0)]
    assert (endpoint.attainment, endpoint.stages[0].rows) == (1.0, {ANY_VARIANT: 1.0})


def test_lag_backlog_and_attainment_are_told() -> None:
    stage = ControlStage()
    stage.missed_part = 0.2
    stage.run(6)
    stage.policy.observe_lag({"shop": 12, "other": 3})
    (endpoint,) = stage.policy.snapshot(stage.now_ms).endpoints
    assert (endpoint.lag, round(endpoint.attainment, 1)) == (12, 0.8)


def test_demand_of_several_dispatchers_is_added_and_a_lost_ones_fades() -> None:
    stage = ControlStage()
    for second in range(1, 6):
        stage.second()
        counts = EndpointCounts(arrived={"0.8": 10 * second}, rows=10 * second)
        stage.policy.observe_dispatcher(
            DispatcherReport(dispatcher="d1", incarnation=1, at_ms=0, shards=(1,), endpoints={"shop": counts}), stage.now_ms
        )
    assert stage.policy.snapshot(stage.now_ms + 1_000.0).endpoints[0].forecast_rps == pytest.approx(60.0)
    stage.run(6)
    assert stage.policy.snapshot(stage.now_ms).endpoints[0].forecast_rps == pytest.approx(50.0)


@pytest.mark.parametrize("clock_ms", [0.0, -3_600_000.0])
def test_reports_that_are_read_late_are_no_more_demand(clock_ms: float) -> None:
    stage = ControlStage()
    stage.rate_rps = 0.0
    stage.run(3)
    at_ms = stage.now_ms + clock_ms

    def told(second: int) -> DispatcherReport:
        counts = EndpointCounts(arrived={"0.8": 10 * second}, rows=10 * second)
        return DispatcherReport(dispatcher="d1", incarnation=1, at_ms=int(at_ms + 1_000 * second), shards=(1,), endpoints={"shop": counts})

    stage.policy.observe_dispatcher(told(1), stage.now_ms)
    stage.now_ms += 4_000.0
    for second in (2, 3, 4, 5):  # the scaler was paused, and reads all of them now
        stage.policy.observe_dispatcher(told(second), stage.now_ms)
    stage.now_ms += 250.0
    stage.policy.observe_dispatcher(told(6), stage.now_ms)
    stage.second()
    (endpoint,) = stage.policy.snapshot(stage.now_ms).endpoints
    assert sum(floor.rate_rps for floor in endpoint.floors) == pytest.approx(10.0, rel=0.15)


def test_a_restarted_dispatcher_counts_from_nothing_and_no_demand_is_made_of_that() -> None:
    stage = ControlStage()
    stage.run(5)
    again = msgspec.structs.replace(stage.counted(), incarnation=2, endpoints={"shop": EndpointCounts(arrived={"0.8": 9_000}, rows=9_000)})
    stage.policy.observe_dispatcher(again, stage.now_ms + 1_000.0)
    assert stage.policy.snapshot(stage.now_ms + 2_000.0).endpoints[0].forecast_rps <= 50.0


def test_costs_are_the_median_over_workers_of_a_type() -> None:
    names = tuple(f"w{at}" for at in range(5))
    stage = ControlStage(workers=names)
    stage.run(6)
    liar = HostedVariant(state="ready", latency={1: Latency(1e-3, 1e-3)}, load_ms=200.0, memory_bytes=100)
    stage.policy.observe_worker(stage.report("w0", variants={"t/small": liar}), stage.now_ms)
    snapshot = stage.policy.snapshot(stage.now_ms)
    (type_,) = {worker.type for worker in snapshot.workers}
    assert type_ == "cpu/box/1"
    small = next(variant for variant in snapshot.variants if variant.key == "t/small").costs[type_]
    assert small.latency[1][1].p50_ms == 1.0
    assert (small.load_ms, small.memory_bytes, small.learned) == (200.0, 100, True)


def test_a_profile_that_was_given_holds_until_telemetry_differs() -> None:
    given = Cost(latency={1: {1: Latency(1.0, 1.2), 8: Latency(6.0, 7.0)}}, load_ms=5.0)
    stage = ControlStage(costs=[Variant(key="t/small", task="t", accuracy=0.8, costs={"cpu/box/1": given})])
    small = next(variant for variant in heard(stage).variants if variant.key == "t/small").costs["cpu/box/1"]
    assert not small.learned
    drifted = HostedVariant(state="ready", latency={1: Latency(2.0, 2.4), 8: Latency(12.0, 14.0)})
    for name in ("w0", "w1"):
        stage.policy.observe_worker(stage.report(name, variants={"t/small": drifted}), stage.now_ms)
    small = next(variant for variant in stage.policy.snapshot(stage.now_ms).variants if variant.key == "t/small").costs["cpu/box/1"]
    assert small.learned
    assert small.latency[1][8].p95_ms == 14.0


def test_a_type_where_a_variant_was_never_seen_is_compared_with_one_where_it_was() -> None:
    stage = ControlStage()
    stage.run(6)
    slow = {"t/small": HostedVariant(state="ready", latency={1: Latency(3.0, 3.6), 8: Latency(18.0, 21.0)})}
    stage.incarnations["s0"] = 1
    stage.policy.observe_worker(stage.report("s0", device="slow", variants=slow), stage.now_ms)
    large = next(variant for variant in stage.policy.snapshot(stage.now_ms).variants if variant.key == "t/large")
    assert large.costs["cpu/slow/1"].latency[1][1].p50_ms == pytest.approx(12.0)


@pytest.mark.parametrize(
    ("latency", "lie"),
    [(Latency(nan, 1.0), True), (Latency(-1.0, 1.0), True), (Latency(1.0, inf), True), (Latency(0.0, 0.0), True), (Latency(2.0, 1.0), False)],
)
def test_impossible_latencies_are_dropped_and_counted(latency: Latency, lie: bool) -> None:
    stage = ControlStage()
    said = HostedVariant(state="ready", latency={1: latency, 8: Latency(0.5, 0.6)}, load_ms=nan, memory_bytes=1 << 60)
    stage.policy.observe_worker(stage.report("w0", variants={"t/small": said}, memory_bytes_max=-5, threads=-2), stage.now_ms)
    snapshot = stage.policy.snapshot(stage.now_ms)
    (small,) = snapshot.variants
    (cost,) = small.costs.values()
    assert (stage.policy.lies["impossible latency"] > 0) == lie
    assert (1 in next(iter(cost.latency.values()))) != lie
    assert all(0.0 < each.p50_ms <= each.p95_ms for sizes in cost.latency.values() for each in sizes.values())
    assert (cost.load_ms, cost.memory_bytes, snapshot.workers[0].memory_bytes_max, snapshot.workers[0].threads_max) == (0.0, 0, 0, 1)


def test_counts_that_cannot_be_make_no_demand() -> None:
    stage = ControlStage()
    stage.run(5)
    for counts in (
        EndpointCounts(arrived={"0.8": -(10**9), "nan": 5, "7": 9, "x": 1, "0.9": 10**15}, rows=1),
        EndpointCounts(arrived={}, ended=0),
    ):
        stage.now_ms += 1_000.0
        stage.policy.observe_dispatcher(msgspec.structs.replace(stage.counted(), endpoints={"shop": counts, "ghost": counts}), stage.now_ms)
    assert stage.policy.lies["impossible demand"] >= 5
    assert stage.policy.lies["counts that shrink"] >= 1
    assert stage.policy.snapshot(stage.now_ms + 1_000.0).endpoints[0].forecast_rps <= 50.0


def test_workers_beyond_the_limit_and_old_incarnations_are_counted_and_left() -> None:
    stage = ControlStage(settings=ControlSettings(workers_max=2))
    stage.incarnations |= {"w2": 1}
    stage.run(2)
    stage.policy.observe_worker(stage.report("w0", incarnation=0), stage.now_ms)
    assert [worker.name for worker in stage.policy.snapshot(stage.now_ms).workers] == ["w0", "w1"]
    assert (stage.policy.lies["more workers than can be"], stage.policy.lies["a report of an earlier incarnation"]) == (2, 1)


def test_a_new_file_is_measured_anew() -> None:
    stage = ControlStage()
    stage.run(6)
    changed = catalog()
    task = changed.tasks["t"]
    changed.tasks["t"] = msgspec.structs.replace(task, variants=(msgspec.structs.replace(task.variants[0], sha256="new"), task.variants[1]))
    stage.policy.observe_catalog(changed)
    assert [variant.key for variant in stage.policy.snapshot(stage.now_ms).variants] == ["t/large"]
    stage.policy.observe_worker(stage.report("w0", variants={"t/small": hosted("t/small")}), stage.now_ms)
    assert len(stage.policy.snapshot(stage.now_ms).variants) == 2


def graph_catalog(graph: GraphSpec) -> Catalog:
    tasks = {
        name: TaskSpec(name=name, variants=(VariantSpec(name="v", sha256=name, accuracy=0.9, inputs=(IMAGE,), outputs=(PROBS, IMAGE)),))
        for name in ("find", "read", "check")
    }
    tasks["headrace.combine"] = TaskSpec(name="headrace.combine", variants=(VariantSpec(name="combine", call="a:b", accuracy=1.0),))
    return Catalog(tasks, {"pages": EndpointSpec(name="pages", graph=graph)})


def tree_of(graph: GraphSpec) -> list[tuple[str, str | None, tuple[str, ...]]]:
    found = graph_catalog(graph)
    tree = stage_tree(found.endpoints["pages"], found)
    assert not tree.problem
    return [(place.name, place.after, place.fans) for place in tree.places]


def find(**fields: str) -> StageNode:
    return StageNode(task=fields.get("task", "find"), inputs={"image": fields.get("image", "request.image")})


def test_a_for_each_fans_out_below_the_stage_that_made_its_rows() -> None:
    lines = ForEachNode(over={"image": "find.image"}, nodes={"read": find(task="read", image="row.image")}, output="read")
    graph = GraphSpec(nodes={"find": find(), "lines": lines, "check": find(task="check", image="lines.image")}, output="check")
    assert tree_of(graph) == [("find", None, ()), ("lines/read", "find", ("lines",)), ("check", "lines/read", ())]


def test_a_switchs_branch_waits_for_what_its_condition_looks_at() -> None:
    graph = GraphSpec(
        nodes={
            "quick": find(),
            "slow": find(task="read"),
            "sure": SwitchNode(cases=(Case("max(quick.probs) >= 0.8", "quick"),), otherwise="slow"),
        },
        output="sure",
    )
    assert tree_of(graph) == [("quick", None, ()), ("slow", "quick", ())]


def test_branches_of_a_switch_in_a_for_each_say_so_and_those_of_a_cascade_do_not() -> None:
    rows = {"a": find(task="read", image="row.image"), "b": find(task="check", image="row.image")}
    kind = SwitchNode(cases=(Case("row.score >= 0.5", "a"),), otherwise="b")
    sure = SwitchNode(cases=(Case("max(a.probs) >= 0.5", "a"),), otherwise="b")
    for switch, named in ((kind, "lines/kind"), (sure, "")):
        lines = ForEachNode(over={"image": "find.image", "score": "find.probs"}, nodes={**rows, "kind": switch}, output="kind")
        found = graph_catalog(GraphSpec(nodes={"find": find(), "lines": lines}, output="lines"))
        tree = stage_tree(found.endpoints["pages"], found)
        assert not tree.problem
        assert {place.name: place.switch for place in tree.places} == {"find": "", "lines/a": named, "lines/b": named}
        assert [stage.switch for stage in tree.demand({}, {}, 1.0)] == ["", named, named]


def test_splitters_shadows_and_ensembles_have_their_place() -> None:
    graph = GraphSpec(
        nodes={
            "a": find(),
            "b": find(task="read"),
            "copy": find(task="check"),
            "split": SplitterNode(branches=(Branch(1.0, "a"), Branch(1.0, "b"))),
            "both": EnsembleNode(members=("split", "b"), tensors=("probs",)),
            "seen": ShadowNode(primary="both", copy="copy"),
        },
        output="seen",
    )
    assert tree_of(graph) == [("a", None, ()), ("b", None, ()), ("both", "b", ())]


def test_rows_are_those_seen_else_those_published_else_guessed() -> None:
    lines = ForEachNode(over={"image": "find.image"}, nodes={"read": find(task="read", image="row.image")}, output="read")
    found = graph_catalog(GraphSpec(nodes={"find": find(), "lines": lines}, output="lines"))
    tree = stage_tree(found.endpoints["pages"], found)
    (_, guessed) = tree.demand({}, {}, 1.0)
    assert guessed.rows == {ANY_VARIANT: 4.0}
    (_, published) = tree.demand({}, {"lines": (6.0, 9.0)}, 1.0)
    assert (published.rows, published.rows_upper) == ({ANY_VARIANT: 6.0}, {ANY_VARIANT: 9.0})
    flows = {"find": Flow(40.0, {"find/v": 40.0}, {"find/v": {"lines/read": 200.0}}), "lines/read": Flow(208.0)}
    (_, seen) = tree.demand(flows, {"lines": (6.0, 9.0)}, 1.0)
    assert seen.rows == {ANY_VARIANT: 5.2, "find/v": 5.0}
    assert seen.rows_upper[ANY_VARIANT] == pytest.approx(7.8)


def test_a_graph_that_does_not_fit_its_tasks_has_no_stages_and_says_why() -> None:
    found = graph_catalog(GraphSpec(nodes={"a": StageNode(task="gone", inputs={})}, output="a"))
    tree = stage_tree(found.endpoints["pages"], found)
    assert (tree.places, "gone" in tree.problem) == ((), True)

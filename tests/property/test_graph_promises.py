"""Random graphs under random workers: one outcome each, no row lost or repeated, no work for finished requests, no floor broken."""

from __future__ import annotations

from random import Random
from zlib import crc32

import numpy as np
from graph_world import DEADLINE_MS, RESERVE_MS, TASKS, World, graphs, real, shadowed_graphs, whole
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from graphs.commands import Fail, Finish, RunStage
from graphs.compiled import Graph, compile_graph
from graphs.events import StageDone, StageFailed, Started, Woken
from graphs.run import Run, advance
from graphs.tensor import Tensor
from schemas.graph import ForEachNode, GraphSpec, StageNode
from schemas.terminal import PathStep

QUICK = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much])


@settings(QUICK, max_examples=150)
@given(graph=graphs(), seed=st.integers(0, 2**32), floor=st.sampled_from([0.0, 0.4, 0.6, 0.8]), losses=st.sampled_from([0.0, 0.2]))
def test_every_request_ends_once_and_keeps_its_floor(graph: Graph, seed: int, floor: float, losses: float) -> None:
    world = World(graph, Random(seed), floor, losses=losses, restarts=False)
    world.go()
    (end,) = world.ends
    assert world.run.finished
    if isinstance(end, Finish):
        assert 0.0 <= end.accuracy <= 1.0
        if world.floor_holds:
            assert end.accuracy >= floor - 1e-6
    else:
        assert losses or end.code == "backend_error"
    nothing_is_left(world)


@settings(QUICK, max_examples=100)
@given(graph=graphs(), seed=st.integers(0, 2**32), losses=st.sampled_from([0.0, 0.1]))
def test_a_restart_from_the_log_at_any_event_ends_once(graph: Graph, seed: int, losses: float) -> None:
    world = World(graph, Random(seed), 0.0, losses=losses, restarts=True)
    world.go()
    assert len(world.ends) == 1
    nothing_is_left(world)


def nothing_is_left(world: World) -> None:
    assert world.run.idle
    assert world.run.snapshot() == {"states": 0, "bytes": 0, "flying": [], "early": 0, "copies": 0}
    assert not world.run.timed
    assert not world.run.passive
    assert not world.run.planned


@settings(QUICK, max_examples=60)
@given(graph=graphs(), seed=st.integers(0, 2**32))
def test_all_records_read_before_the_request_leave_nothing_to_do(graph: Graph, seed: int) -> None:
    """The whole log of a request that was nearly answered: nothing is computed a second time for the answer."""
    world = World(graph, Random(seed), 0.0, losses=0.0, restarts=False)
    world.go()
    if isinstance(world.ends[0], Fail):
        return
    again = Run(graph, "id", "tenant", 0.0, DEADLINE_MS, reserve_ms=RESERVE_MS)
    for record in world.done.values():
        assert advance(again, record, 0.0) == []
    commands = advance(again, Started({}, {"rows": whole("rows", [5, 6])}), DEADLINE_MS)
    new = [command.instance for command in commands if isinstance(command, RunStage) and not command.shadow]
    assert not set(new) & set(world.done)


@settings(QUICK, max_examples=150)
@given(graph=shadowed_graphs())
def test_without_its_shadows_a_graph_answers_the_same(graph: Graph) -> None:
    assume(graph.lean is not None)
    assert graph.lean is not None
    (whole_end, copies), (lean_end, none) = answered(graph), answered(graph.lean)
    assert whole_end == lean_end
    assert not none
    assert set(graph.stages) == set(graph.lean.stages), "their records go to the same topics"
    event(f"copies ran: {bool(copies)}")


def answered(graph: Graph) -> tuple[object, list[str]]:
    """What a run ends with whose stages say what their inputs' names and their own make of it; and the stages that ran for shadows only."""
    run = Run(graph, "id", "tenant", 0.0, DEADLINE_MS, reserve_ms=RESERVE_MS)
    waiting = advance(run, Started({}, {"rows": whole("rows", [5, 6])}), 0.0)
    ends: list[object] = []
    copies: list[str] = []
    while waiting:
        command = waiting.pop(0)
        if isinstance(command, Finish):
            ends.append(({tensor.name: tensor.data for tensor in command.tensors}, command.accuracy))
        elif isinstance(command, Fail):
            ends.append((command.code, command.message))
        elif isinstance(command, RunStage):
            copies += [command.instance] if command.shadow else []
            number = crc32(command.stage.path.encode())
            made = {"y": real("y", number % 100 / 100), "rows": whole("rows", list(range(number % 4)))}
            wanted = command.stage.outputs
            tensors = {name: tensor for name, tensor in made.items() if wanted is None or name in wanted}
            step = PathStep(
                stage=command.stage.path, variant="v", accuracy=0.9, accelerator="cpu", device="d", queued_ms=0.0, computed_ms=1.0, batch_size=1
            )
            waiting += advance(run, StageDone(command.instance, tensors, "t/v2", 0.9, step, 0.0), 0.0)
    (end,) = ends
    return end, copies


POLICIES = st.sampled_from(["all", "at_least", "best_by_deadline"])


@settings(QUICK, max_examples=150)
@given(
    count=st.integers(0, 9),
    policy=POLICIES,
    least=st.integers(1, 9),
    seed=st.integers(0, 2**32),
    losses=st.sampled_from([0.0, 0.3]),
    wakes=st.booleans(),
)
def test_a_join_neither_loses_nor_repeats_a_row(count: int, policy: str, least: int, seed: int, losses: float, wakes: bool) -> None:
    random = Random(seed)
    least = least if policy == "at_least" else 0
    inner = {"a": StageNode(task="t", inputs={"x": "row.x"}), "b": StageNode(task="t", inputs={"x": "a.y", "w": "row.x"})}
    node = ForEachNode(over={"x": "request.rows"}, nodes=inner, output="b", policy=policy, least=least)
    graph = compile_graph(GraphSpec(nodes={"each": node}, output="each"), TASKS)
    run = Run(graph, "id", "", 0.0, DEADLINE_MS, reserve_ms=RESERVE_MS)
    todo = advance(run, Started({}, {"rows": whole("rows", list(range(10, 10 + count)))}), 0.0)
    lost: set[int] = set()
    ends: list[Finish | Fail] = []
    waiting: list[RunStage] = []
    while True:
        ends += [command for command in todo if isinstance(command, Finish | Fail)]
        waiting += [command for command in todo if isinstance(command, RunStage)]
        if not waiting or ends:
            break
        command = waiting.pop(random.randrange(len(waiting)))
        row = int(command.instance.partition("#")[2])
        if random.random() < losses:
            lost.add(row)
            todo = advance(run, StageFailed(command.instance, "backend_error", "lost"), 1.0)
        else:
            todo = advance(run, done(command), 1.0)
            todo += advance(run, done(command), 1.0)
        if wakes and random.random() < 0.1:
            todo += advance(run, Woken(), DEADLINE_MS - RESERVE_MS)
            wakes = False
    (end,) = ends
    if isinstance(end, Fail):
        assert lost
        assert policy == "all" or count - len(lost) < max(min(least, count), 1)
        return
    tensors = {tensor.name: tensor for tensor in end.tensors}
    there = tensors["rows"].values().ravel().tolist()
    gone = tensors["missing"].values().ravel().tolist() if policy != "all" else []
    assert there == [10 + row for row in range(count) if row not in gone]
    assert lost <= set(gone) or not there
    assert len(there) + len(gone) == count
    if policy == "at_least" and count:
        assert len(there) >= min(least, count)


def done(command: RunStage) -> StageDone:
    """Each row gives its own value on."""
    source = command.tensors.get("w", command.tensors["x"])
    tensors = {"rows": source.named("rows"), "y": source.named("y")}
    step = PathStep(stage="s", variant="v", accuracy=1.0, accelerator="cpu", device="d", queued_ms=0.0, computed_ms=0.0, batch_size=1)
    return StageDone(command.instance, tensors, "t/v0", 1.0, step)


@given(
    rows=st.lists(st.lists(st.binary(max_size=6), min_size=2, max_size=2), min_size=1, max_size=6),
    numbers=st.lists(st.lists(st.integers(-9, 9), min_size=3, max_size=3), min_size=1, max_size=6),
)
def test_rows_joined_again_are_the_tensor(rows: list[list[bytes]], numbers: list[list[int]]) -> None:
    data = b"".join(len(element).to_bytes(4, "little") + element for row in rows for element in row)
    texts = Tensor("t", "BYTES", (len(rows), 2), data)
    array = np.array(numbers, "<i4")
    for tensor in (texts, Tensor("n", "INT32", array.shape, memoryview(array.tobytes()))):
        each = tensor.rows()
        assert [part.shape[0] for part in each] == [1] * tensor.shape[0]
        assert Tensor.join(each) == Tensor(tensor.name, tensor.datatype, tensor.shape, bytes(tensor.data))
        assert all(np.array_equal(tensor.row(index).values()[0], tensor.values()[index]) for index in range(tensor.shape[0]))

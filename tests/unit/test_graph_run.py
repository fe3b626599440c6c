"""One request on a graph: what is asked of workers when, and how it ends."""

from __future__ import annotations

import pytest
from graph_stage import DEADLINE_MS, RESERVE_MS, TASKS, Driven, Y, compiled, done, new_run, reals, run_stages, stage, task

from graphs.commands import Cancel, Fail, Finish, RunStage, ShadowDone, Wake
from graphs.compiled import compile_graph
from graphs.events import Abandoned, Answered, StageDone, StageFailed, Started, Woken
from graphs.run import advance
from graphs.tensor import Tensor
from schemas.catalog import TensorSpec
from schemas.graph import Branch, CanaryNode, Case, EnsembleNode, ForEachNode, GraphSpec, Node, ShadowNode, SplitterNode, SwitchNode

START = Started({}, {})
LATE_MS = DEADLINE_MS - RESERVE_MS
QUICK = stage("a", x="request.image")
CASCADE: dict[str, Node] = {
    "quick": QUICK,
    "large": stage("b", x="request.image", hint="quick.y"),
    "pick": SwitchNode(cases=(Case("max(quick.y) >= request.parameters.sure", "quick"),), otherwise="large"),
}
ENSEMBLE: dict[str, Node] = {name: stage("a", x="request.x") for name in ("m0", "m1", "m2")}


def test_a_sequence_hands_tensors_on_by_name() -> None:
    graph = compiled("two", {"one": QUICK, "two": stage("b", left="one.y", right="request.mask")}, outputs={"answer": "y"})
    driven = Driven(graph, lambda _: dict(Y))
    one, two = driven.stages
    assert (one.tensors, one.request_inputs, one.final) == ({}, {"x": "image"}, False)
    assert (two.tensors, two.request_inputs, two.final) == ({"left": Y["y"].named("left")}, {"right": "mask"}, True)
    assert isinstance(driven.end, Finish)
    assert driven.end.tensors == [Y["y"].named("answer")]
    assert driven.end.accuracy == pytest.approx(0.64)
    assert [step.stage for step in driven.end.path] == ["one", "two"]


def test_a_tensor_that_did_not_come_fails_the_request_by_name() -> None:
    graph = compiled("two", {"one": QUICK, "two": stage("b", x="one.z")})
    assert Driven(graph, lambda _: dict(Y)).end == Fail("backend_error", "stage 'two': node 'one' gave no tensor 'z'", "two")
    graph = compiled("one", {"one": QUICK}, outputs={"answer": "label"})
    assert Driven(graph, lambda _: dict(Y)).end == Fail("backend_error", "node 'one' gave no tensor 'label' for the answer", "one")


@pytest.mark.parametrize(("sure", "instances", "accuracy"), [(0.5, ["quick"], 0.8), (0.9, ["quick", "large"], 0.64)])
def test_a_switch_takes_one_branch_and_the_other_does_not_run(sure: float, instances: list[str], accuracy: float) -> None:
    driven = Driven(compiled("pick", CASCADE), lambda _: dict(Y), fields={"sure": sure})
    assert driven.instances == instances
    assert driven.run.choices == {"pick": instances[-1]}
    assert isinstance(driven.end, Finish)
    assert driven.end.accuracy == pytest.approx(accuracy)
    assert [command.final for command in driven.stages] == [False, True][: len(instances)]


def test_a_condition_that_cannot_be_told_fails_the_request() -> None:
    graph = compiled("pick", CASCADE)
    assert Driven(graph, lambda _: dict(Y)).end == Fail(
        "backend_error", "switch 'pick', condition 'max(quick.y) >= request.parameters.sure': the request has no parameter 'sure'", "pick"
    )
    end = Driven(graph, lambda _: {}, fields={"sure": 1}).end
    assert isinstance(end, Fail)
    assert "node 'quick' gave no tensor 'y'" in end.message
    end = Driven(graph, lambda _: dict(Y), fields={"sure": "very"}).end
    assert isinstance(end, Fail)
    assert (end.code, end.stage) == ("backend_error", "pick")


def test_conditions_read_request_tensors_and_text() -> None:
    texts = Tensor("lang", "BYTES", (1,), b"\x02\x00\x00\x00de")
    nodes: dict[str, Node] = {
        "de": QUICK,
        "en": stage("b", x="request.image"),
        "pick": SwitchNode(cases=(Case("request.lang[0] == 'de' and size(request.lang) == 1", "de"),), otherwise="en"),
    }
    assert Driven(compiled("pick", nodes), lambda _: dict(Y), tensors={"lang": texts}).instances == ["de"]


def test_a_splitter_is_sticky_and_keeps_to_its_weights() -> None:
    nodes: dict[str, Node] = {"one": QUICK, "two": stage("b", x="request.image")}
    split = SplitterNode(branches=(Branch(1.0, "one"), Branch(3.0, "two")), sticky="user")
    graph = compiled("pick", nodes | {"pick": split})
    taken = [Driven(graph, lambda _: dict(Y), fields={"user": f"u{user}"}).instances[0] for user in range(1_000)]
    assert 180 < taken.count("one") < 320
    assert [Driven(graph, lambda _: dict(Y), fields={"user": f"u{user}"}).instances[0] for user in range(50)] == taken[:50]
    canaries = [
        compiled("pick", nodes | {"pick": CanaryNode(stable="one", candidate="two", percent=p, sticky="id")}) for p in (0.0, 10.0, 50.0, 100.0)
    ]
    by_percent = [{index for index in range(400) if _first(graph, f"id{index}") == "two"} for graph in canaries]
    assert by_percent[0] == set()
    assert 20 < len(by_percent[1]) < 65
    assert by_percent[1] < by_percent[2] < by_percent[3]
    assert len(by_percent[3]) == 400


def _first(graph: object, request_id: str) -> str:
    (command,) = advance(new_run(graph, request_id=request_id), START, 0.0)  # type: ignore[arg-type]
    assert isinstance(command, RunStage)
    assert command.final
    return command.instance


def test_an_ensemble_waits_for_all_and_says_who_answered() -> None:
    graph = compiled("en", ENSEMBLE | {"en": EnsembleNode(members=("m0", "m1", "m2"))})
    driven = Driven(graph, lambda _: dict(Y))
    assert driven.instances == ["m0", "m1", "m2", "en"]
    assert sorted(driven.stages[-1].tensors) == ["0.y", "1.y", "2.y"]
    assert driven.stages[-1].final
    assert isinstance(driven.end, Finish)
    assert driven.end.accuracy == pytest.approx(0.8 * 0.8)


def test_an_ensemble_for_k_cancels_the_rest_and_goes_on_without_a_failed_member() -> None:
    run = new_run(compiled("en", ENSEMBLE | {"en": EnsembleNode(members=("m0", "m1", "m2"), wait=1)}))
    started = run_stages(advance(run, START, 0.0))
    assert advance(run, StageFailed("m1", "backend_error", "no"), 0.0) == []
    merging, cancel = advance(run, done(started["m2"], dict(Y)), 0.0)
    assert isinstance(merging, RunStage)
    assert list(merging.tensors) == ["2.y"]
    assert cancel == Cancel(("m0",))
    assert advance(run, done(started["m0"], dict(Y)), 0.0) == []
    assert run.snapshot() == {"states": 1, "bytes": 0, "flying": ["en"], "early": 0, "copies": 0}


def test_an_ensemble_that_cannot_have_enough_fails() -> None:
    run = new_run(compiled("en", ENSEMBLE | {"en": EnsembleNode(members=("m0", "m1", "m2"), wait=2)}))
    advance(run, START, 0.0)
    assert advance(run, StageFailed("m1", "backend_error", "no"), 0.0) == []
    fail, cancel = advance(run, StageFailed("m0", "backend_error", "no"), 0.0)
    assert isinstance(fail, Fail)
    assert "2 of 3 members failed and 2 are needed" in fail.message
    assert cancel == Cancel(("m2",))
    assert run.idle


def test_an_ensemble_by_deadline_goes_on_with_whom_it_has() -> None:
    run = new_run(compiled("en", ENSEMBLE | {"en": EnsembleNode(members=("m0", "m1", "m2"), by_deadline=True)}))
    commands = advance(run, START, 0.0)
    assert [command for command in commands if isinstance(command, Wake)] == [Wake(LATE_MS)]
    assert advance(run, Woken(), LATE_MS) == []
    merging, cancel = advance(run, done(run_stages(commands)["m1"], dict(Y)), LATE_MS + 1)
    assert isinstance(merging, RunStage)
    assert list(merging.tensors) == ["1.y"]
    assert cancel == Cancel(("m0", "m2"))


SHADOWED: dict[str, Node] = {
    "one": QUICK,
    "two": stage("b", x="one.y"),
    "other": stage("c", x="one.y"),
    "more": stage("d", x="other.y"),
    "out": ShadowNode(primary="two", copy="more"),
}


def test_a_shadow_runs_beside_and_after_the_answer() -> None:
    run = new_run(compiled("out", SHADOWED))
    one = run_stages(advance(run, START, 0.0))["one"]
    both = run_stages(advance(run, done(one, dict(Y)), 0.0))
    assert {name: (command.shadow, command.final) for name, command in both.items()} == {"two": (False, True), "other": (True, False)}
    (finish,) = advance(run, done(both["two"], dict(Y)), 0.0)
    assert isinstance(finish, Finish)
    assert [step.stage for step in finish.path] == ["one", "two"]
    assert run.finished
    assert not run.idle
    (more,) = advance(run, done(both["other"], dict(Y)), 0.0)
    assert isinstance(more, RunStage)
    assert more.shadow
    (shadow,) = advance(run, done(more, dict(Y)), 0.0)
    assert isinstance(shadow, ShadowDone)
    assert (shadow.node, [step.stage for step in shadow.path]) == ("out", ["other", "more"])
    assert run.idle


def test_a_shadow_that_fails_is_nobodys_and_one_that_is_not_chosen_does_not_run() -> None:
    run = new_run(compiled("out", SHADOWED))
    one = run_stages(advance(run, START, 0.0))["one"]
    both = run_stages(advance(run, done(one, dict(Y)), 0.0))
    assert advance(run, StageFailed("other", "backend_error", "no"), 0.0) == []
    assert isinstance(advance(run, done(both["two"], dict(Y)), 0.0)[0], Finish)
    assert run.idle
    none = compiled("out", SHADOWED | {"out": ShadowNode(primary="two", copy="more", share=0.0)})
    assert Driven(none, lambda _: dict(Y)).instances == ["one", "two"]


def test_a_shadow_never_starts_what_the_answer_may_need_before_the_answer_is_there() -> None:
    nodes = CASCADE | {"out": ShadowNode(primary="pick", copy="large")}
    driven = Driven(compiled("out", nodes), lambda _: dict(Y), fields={"sure": 0.5})
    assert driven.instances == ["quick", "large"]
    assert [command.shadow for command in driven.stages] == [False, True]
    assert [type(command) for command in driven.others] == [Finish, ShadowDone]


EACH: dict[str, Node] = {
    "find": QUICK,
    "each": ForEachNode(over={"box": "find.boxes"}, nodes={"read": stage("b", crop="row.box", page="find.y")}, output="read", rows_max=4),
}


def boxes(count: int) -> dict[str, Tensor]:
    return Y | {"boxes": reals("boxes", [[index, index] for index in range(count)] or [[0, 0]][:0])}


def test_a_for_each_runs_a_row_each_and_joins_in_order() -> None:
    driven = Driven(compiled("each", EACH), lambda command: boxes(3) if command.instance == "find" else {"y": command.tensors["crop"].named("y")})
    assert driven.instances == ["find", "each/read#0", "each/read#1", "each/read#2"]
    assert driven.stages[1].tensors["page"] == Y["y"].named("page")
    assert isinstance(driven.end, Finish)
    (joined,) = driven.end.tensors
    assert joined.values().tolist() == [[0, 0], [1, 1], [2, 2]]
    assert driven.end.accuracy == pytest.approx(0.64)
    assert [step.stage for step in driven.end.path] == ["find", "each/read"]


def test_too_many_rows_are_too_large_and_no_rows_have_the_declared_shape() -> None:
    fail = Driven(compiled("each", EACH), lambda _: boxes(5)).end
    assert fail == Fail("too_large", "for_each 'each': 5 rows, the limit is 4", "each")
    tasks = TASKS | {"b": task("b", outputs=(TensorSpec("text", "BYTES", (-1, 2, -1)),))}
    graph = compile_graph(GraphSpec(nodes=EACH, output="each"), tasks)
    empty = {"y": Y["y"], "boxes": Tensor("boxes", "FP32", (0, 2), b"")}
    end = Driven(graph, lambda _: empty).end
    assert isinstance(end, Finish)
    assert end.tensors == [Tensor("text", "BYTES", (0, 2, 0), b"")]


def test_rows_that_do_not_fit_each_other_fail_the_join() -> None:
    wide = iter([reals("y", [[1]]), reals("y", [[1, 2]])])
    end = Driven(compiled("each", EACH), lambda command: boxes(2) if command.instance == "find" else {"y": next(wide)}).end
    assert isinstance(end, Fail)
    assert "row 0 is FP32[1, 1] and row 1 is FP32[1, 2]" in end.message


def test_the_tensors_gone_over_have_as_many_rows() -> None:
    nodes = EACH | {"each": ForEachNode(over={"a": "find.boxes", "b": "find.y"}, nodes={"read": stage("b", x="row.a")}, output="read")}
    end = Driven(compiled("each", nodes), lambda _: boxes(2)).end
    assert isinstance(end, Fail)
    assert "no common number of rows: a [2, 2], b [1, 2]" in end.message


def test_for_eaches_inside_one_another_have_a_row_of_rows() -> None:
    inner = ForEachNode(over={"b": "row.a"}, nodes={"read": stage("b", x="row.b", y="row.a")}, output="read")
    graph = compiled("each", {"each": ForEachNode(over={"a": "request.a"}, nodes={"lines": inner}, output="lines")})
    driven = Driven(graph, lambda command: {"y": command.tensors["x"].named("y")}, tensors={"a": reals("a", [[1], [2]])})
    assert driven.instances == ["each/lines/read#0.0", "each/lines/read#1.0"]
    assert isinstance(driven.end, Finish)
    assert driven.end.tensors[0].values().tolist() == [[1], [2]]


def test_best_by_deadline_names_the_missing_rows_and_cancels_them() -> None:
    node = ForEachNode(over={"x": "request.x"}, nodes={"in": stage("a", x="row.x")}, output="in", policy="best_by_deadline")
    run = new_run(compiled("each", {"each": node}))
    commands = advance(run, Started({}, {"x": reals("x", [[0], [1], [2]])}), 0.0)
    rows = run_stages(commands)
    assert [command for command in commands if isinstance(command, Wake)] == [Wake(LATE_MS)]
    assert advance(run, done(rows["in" if "in" in rows else "each/in#1"], {"y": reals("y", [[7]])}), 1.0) == []
    end, cancel = sorted(advance(run, Woken(), LATE_MS), key=lambda command: type(command).__name__, reverse=True)
    assert isinstance(end, Finish)
    assert {tensor.name: tensor.values().tolist() for tensor in end.tensors} == {"y": [[7]], "missing": [0, 2]}
    assert cancel == Cancel(("each/in#0", "each/in#2"))
    assert run.idle


def test_unknown_and_repeated_news_change_nothing() -> None:
    run = new_run(compiled("two", {"one": QUICK, "two": stage("b", x="one.y")}))
    one = run_stages(advance(run, START, 0.0))["one"]
    news = done(one, dict(Y))
    for unknown in ("three", "one#0", "two#x", ""):
        assert advance(run, StageDone(unknown, Y, "a/v0", 1.0, news.step), 0.0) == []
    assert run.snapshot()["early"] == 0
    assert len(advance(run, news, 0.0)) == 1
    assert advance(run, news, 0.0) == []
    assert run.snapshot()["early"] == 0
    assert advance(run, StageFailed("one", "backend_error", "late"), 0.0) == []
    assert advance(run, START, 0.0) == []


def test_tensors_that_nobody_needs_are_let_go() -> None:
    run = new_run(compiled("three", {"one": QUICK, "two": stage("b", x="one.y"), "three": stage("c", x="two.y")}))
    one = run_stages(advance(run, START, 0.0))["one"]
    two = run_stages(advance(run, done(one, dict(Y)), 0.0))["two"]
    assert run.snapshot()["bytes"] == 0
    advance(run, done(two, dict(Y)), 0.0)
    assert run.snapshot() == {"states": 1, "bytes": 0, "flying": ["three"], "early": 0, "copies": 0}


def test_an_answer_by_somebody_else_ends_the_run() -> None:
    run = new_run(compiled("en", ENSEMBLE | {"en": EnsembleNode(members=("m0", "m1", "m2"))}))
    advance(run, START, 0.0)
    assert advance(run, Answered(), 0.0) == [Cancel(("m0", "m1", "m2"))]
    assert run.idle
    assert advance(run, Answered(), 0.0) == []


def test_a_request_whose_time_is_over_stops_its_shadows_too() -> None:
    run = new_run(compiled("out", SHADOWED))
    one = run_stages(advance(run, START, 0.0))["one"]
    both = run_stages(advance(run, done(one, dict(Y)), 0.0))
    advance(run, Answered(), 0.0)
    assert not run.idle
    assert advance(run, Abandoned(), DEADLINE_MS) == [Cancel(("other",))]
    assert run.idle
    assert advance(run, done(both["other"], dict(Y)), DEADLINE_MS) == []


def test_records_that_are_read_before_the_request_are_used_when_they_are_asked_for() -> None:
    graph = compiled("three", {"one": QUICK, "two": stage("b", x="one.y"), "three": stage("c", x="two.y")})
    first = Driven(graph, lambda _: dict(Y))
    one, two, _ = first.stages
    run = new_run(graph)
    for command in (two, one):
        assert advance(run, done(command, dict(Y)), 0.0) == []
    (three,) = advance(run, START, 0.0)
    assert isinstance(three, RunStage)
    assert (three.instance, three.final) == ("three", True)
    assert run.path_accuracy("three", 0.5) == pytest.approx(0.8 * 0.8 * 0.5)
    assert [step.stage for step in run.path()] == ["one", "two"]


def test_what_the_answer_no_longer_needs_is_the_shadows_alone() -> None:
    nodes: dict[str, Node] = {
        "one": QUICK,
        "two": stage("b", x="one.y"),
        "copy": stage("c", x="two.y"),
        "member": ShadowNode(primary="two", copy="copy"),
        "en": EnsembleNode(members=("one", "member"), wait=1),
    }
    run = new_run(compiled("en", nodes))
    one = run_stages(advance(run, START, 0.0))["one"]
    given = run_stages(advance(run, done(one, dict(Y)), 0.0))
    assert {name: command.shadow for name, command in given.items()} == {"two": True, "en": False}

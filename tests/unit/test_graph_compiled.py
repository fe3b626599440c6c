"""What `apply` says of graphs: every mistake with its node and key, and what a sound graph knows of itself."""

from __future__ import annotations

import msgspec
import pytest
from graph_stage import TASKS, compiled, stage, task

from graphs.compiled import compile_graph
from graphs.errors import GraphInvalid
from schemas.catalog import TaskSpec, TensorSpec
from schemas.graph import Branch, CanaryNode, Case, EnsembleNode, ForEachNode, GraphSpec, Node, ShadowNode, SplitterNode, StageNode, SwitchNode

A = stage("a", x="request.x")
B = stage("b", x="one.y")


def problems(output: str, nodes: dict[str, Node], tasks: dict[str, TaskSpec] | None = None, **more: object) -> list[tuple[str, str, str]]:
    with pytest.raises(GraphInvalid) as caught:
        compile_graph(GraphSpec(nodes=nodes, output=output, **more), TASKS if tasks is None else tasks)  # type: ignore[arg-type]
    return [("/".join(problem.node), problem.key, problem.message) for problem in caught.value.problems]


def each(nodes: dict[str, Node], output: str, **more: object) -> ForEachNode:
    return ForEachNode(over={"x": "request.x"}, nodes=nodes, output=output, **more)  # type: ignore[arg-type]


INNER: dict[str, Node] = {"in": stage("a", x="row.x")}


@pytest.mark.parametrize(
    ("output", "nodes", "node", "key", "words"),
    [
        ("two", {"one": A, "two": stage("b", x="ome.y")}, "two", "inputs.x", "'ome': did you mean 'one'?"),
        ("one", {"one": stage("aa", x="request.x")}, "one", "task", "'aa': did you mean 'a'?"),
        ("one", {"one": StageNode(task="a", inputs={"x": "request.x"}, variants=("v9",))}, "one", "variants", "no variant 'v9': there is v0"),
        ("one", {"one": StageNode(task="a", inputs={"x": "request.x"}, parameters={"k": 1})}, "one", "parameters", "for Python tasks"),
        ("one", {"one": stage("a")}, "one", "inputs", "at least one input"),
        ("one", {"one": stage("a", x="image")}, "one", "inputs.x", "write node.tensor"),
        ("one", {"one": stage("a", x="row.x")}, "one", "inputs.x", "inside a for_each only"),
        ("one", {"one": stage("a", x="two.y"), "two": stage("a", x="one.y")}, "one", "", "a cycle: one -> two -> one"),
        ("one", {"one": stage("a", x="one.y")}, "one", "", "a cycle: one -> one"),
        ("one", {"one": A, "two": B}, "two", "", "nothing that leads to the output"),
        ("tow", {"two": A}, "", "output", "'tow': did you mean 'two'?"),
        ("request", {"request": A}, "request", "", "reserved"),
        ("a/b", {"a/b": A}, "a/b", "", "is no name"),
        ("sw", {"one": A, "sw": SwitchNode(cases=(Case("max(one.y >", "one"),), otherwise="one")}, "sw", "cases.0.when", "does not parse"),
        ("sw", {"one": A, "sw": SwitchNode(cases=(Case("max(oen.y) > 1", "one"),), otherwise="one")}, "sw", "cases.0.when", "did you mean 'one'"),
        ("sw", {"one": A, "sw": SwitchNode(cases=(Case("open(one.y)", "one"),), otherwise="one")}, "sw", "cases.0.when", "no function"),
        ("sw", {"one": A, "sw": SwitchNode(cases=(), otherwise="one")}, "sw", "cases", "at least one case"),
        ("sp", {"one": A, "sp": SplitterNode(branches=(Branch(0.0, "one"),))}, "sp", "branches", "not all 0"),
        ("sp", {"one": A, "sp": SplitterNode(branches=(Branch(1.0, "on"),))}, "sp", "branches.0.then", "did you mean 'one'"),
        ("ca", {"one": A, "ca": CanaryNode(stable="one", candidate="one")}, "ca", "candidate", "are both"),
        ("ca", {"one": A, "two": B, "ca": CanaryNode(stable="one", candidate="two", steps=(5.0, 1.0))}, "ca", "steps", "rise"),
        ("sh", {"one": A, "two": B, "sh": ShadowNode(primary="one", copy="two", share=2.0)}, "sh", "share", "between 0 and 1"),
        ("en", {"en": EnsembleNode(members=())}, "en", "members", "at least one"),
        ("en", {"one": A, "en": EnsembleNode(members=("one", "one"))}, "en", "members", "named twice"),
        ("en", {"one": A, "en": EnsembleNode(members=("one",), weights=(1.0, 2.0))}, "en", "weights", "2 weights for 1"),
        ("en", {"one": A, "en": EnsembleNode(members=("one",), combiner="meen")}, "en", "combiner", "meen"),
        ("en", {"one": A, "en": EnsembleNode(members=("one",), wait=2)}, "en", "wait", "between 0"),
        ("f", {"f": each({}, "in")}, "f", "nodes", "at least one node inside"),
        ("f", {"f": each(INNER, "out")}, "f", "output", "no node 'out' inside"),
        ("f", {"f": each(INNER, "in", policy="al")}, "f", "policy", "did you mean 'all'"),
        ("f", {"f": each(INNER, "in", policy="at_least")}, "f", "least", "between 1"),
        ("f", {"f": each(INNER, "in", least=3)}, "f", "least", "only"),
        ("f", {"f": each(INNER, "in", rows_max=0)}, "f", "rows_max", "between 1"),
        ("f", {"f": each({"in": stage("a", x="row.z")}, "in")}, "f/in", "inputs.x", "no tensor 'z'"),
        ("f", {"f": each({"in": stage("a", x="f.y")}, "in")}, "f", "", "a cycle: f -> f/in -> f"),
        ("f", {"f": each({"f": stage("a", x="row.x")}, "f")}, "f/f", "", "name of a node outside"),
        ("f", {"f": each(INNER | {"s": ShadowNode(primary="in", copy="c"), "c": stage("b", x="in.y")}, "s")}, "f/s", "", "outside for_eaches"),
        ("f", {"f": each({"g": each(INNER, "in", rows_max=1_000)}, "g", rows_max=1_000)}, "f/g", "rows_max", "1000000 rows"),
        ("f.in", {"f.in": stage("a", x="f.y"), "f": each(INNER, "in")}, "f/in", "", "same topic"),
    ],
)
def test_a_mistake_is_told_with_its_place(output: str, nodes: dict[str, Node], node: str, key: str, words: str) -> None:
    found = problems(output, nodes)
    assert [problem for problem in found if problem[:2] == (node, key) and words in problem[2]], found


def test_all_mistakes_are_told_at_once() -> None:
    nodes = {"one": stage("zz", x="nobody.y"), "two": stage("a", x="two.y"), "three": EnsembleNode(members=())}
    assert {node for node, _, _ in problems("one", nodes)} == {"one", "two", "three"}


IMAGES = TensorSpec("x", "FP32", (-1, 28, 28))
SCORES = TensorSpec("y", "FP32", (-1, 10))
TYPED = {
    "a": task("a", inputs=(IMAGES,), outputs=(SCORES,)),
    "b": task("b", inputs=(TensorSpec("x", "FP32", (-1, 12)),)),
    "c": task("c", inputs=(TensorSpec("x", "INT64", (-1, 10)), TensorSpec("z", "FP32", (1,)))),
    "d": task("d", inputs=(TensorSpec("x", "FP32", (1, -1)),), outputs=(TensorSpec("t", "BYTES", (-1,)),)),
}


@pytest.mark.parametrize(
    ("two", "key", "words"),
    [
        (stage("b", x="one.y"), "inputs.x", "a/v0 gives FP32[-1, 10], b/v0 takes FP32[-1, 12] as 'x'"),
        (stage("c", x="one.y", z="request.z"), "inputs.x", "takes INT64"),
        (stage("c", x="one.y"), "inputs", "needs the input 'z'"),
        (stage("b", image="one.y"), "inputs.image", "no input 'image'"),
        (stage("b", x="one.why"), "inputs.x", "gives no tensor 'why'"),
        (stage("b", x="row.y"), "inputs.x", "inside a for_each only"),
    ],
)
def test_what_a_stage_gives_has_to_fit_the_next(two: Node, key: str, words: str) -> None:
    found = problems("two", {"one": A, "two": two}, TYPED)
    assert [problem for problem in found if problem[:2] == ("two", key) and words in problem[2]], found


def test_free_axes_fit_and_a_row_has_a_first_axis_of_one() -> None:
    compile_graph(GraphSpec(nodes={"one": A, "two": stage("d", x="one.y")}, output="two", outputs={"text": "t"}), TYPED)
    inner: dict[str, Node] = {"in": stage("d", x="row.r")}
    nodes: dict[str, Node] = {"one": A, "f": ForEachNode(over={"r": "one.y"}, nodes=inner, output="in")}
    compile_graph(GraphSpec(nodes=nodes, output="f", outputs={"text": "t"}), TYPED)
    assert problems("f", nodes, TYPED, outputs={"text": "text"}) == [("", "outputs.text", "node 'f' gives no tensor 'text': there is t")]


def test_branches_of_an_alias_are_all_looked_at() -> None:
    nodes: dict[str, Node] = {
        "one": A,
        "other": stage("d", x="request.x"),
        "sw": SwitchNode(cases=(Case("request.parameters.k > 1", "one"),), otherwise="other"),
        "two": stage("d", x="sw.y"),
    }
    assert [(node, key) for node, key, _ in problems("two", nodes, TYPED)] == [("two", "inputs.x")]


def test_measured_combinations_name_every_model_stage() -> None:
    nodes: dict[str, Node] = {"one": A, "two": B}
    compiled("two", nodes, measured={"one=v0,two=v1": 0.5})
    found = problems("two", nodes, measured={"two=v1": 0.5, "one=v0,two=v7": 0.5, "one=v0,two=v0": 1.5})
    assert [key for _, key, _ in found] == ["measured.two=v1", "measured.one=v0,two=v7", "measured.one=v0,two=v0"]


def test_a_graph_knows_its_stages_and_what_it_looks_at() -> None:
    nodes: dict[str, Node] = {
        "one": A,
        "each": ForEachNode(over={"r": "one.rows", "s": "request.sizes"}, nodes={"in": stage("b", x="row.r")}, output="in"),
        "en": EnsembleNode(members=("m1", "m2"), weights=(1.0, 3.0), combiner="weighted_mean"),
        "m1": stage("a", x="each.y"),
        "m2": stage("a", x="each.y"),
        "sp": SplitterNode(branches=(Branch(1.0, "en"), Branch(1.0, "sw")), sticky="user"),
        "sw": SwitchNode(cases=(Case("request.parameters.tier == 'gold' and max(request.image) > 0", "en"),), otherwise="m1"),
        "python": stage("python", x="sp.p"),
    }
    graph = compiled("python", nodes, outputs={"answer": "y"})
    assert set(graph.stages) == {"one", "each/in", "en", "m1", "m2", "python"}
    assert graph.fields == {"user", "tier"}
    assert graph.request_tensors == {"sizes", "image"}
    assert graph.final == "python"
    assert graph.stages["each/in"].topic == "each.in"
    assert graph.stages["each/in"].over == ("each",)
    assert graph.stages["each/in"].outputs == ("y",)
    assert graph.stages["one"].outputs == ("rows",)
    assert graph.stages["m1"].outputs == ("p",)
    assert graph.stages["python"].answers == {"answer": "y"}
    assert graph.stages["python"].outputs == ("y",)
    assert [graph.stages[path].model for path in ("one", "en", "python")] == [True, False, False]
    assert msgspec.msgpack.decode(graph.stages["en"].parameters) == {"combiner": "weighted_mean", "weights": [1.0, 3.0], "members": ["m1", "m2"]}


def test_names_of_graphs_put_into_a_graph_have_dots() -> None:
    graph = compiled("two", {"ocr.one": A, "two": stage("b", x="ocr.one.y.z")})
    assert graph.stages["ocr.one"].outputs == ("y.z",)


def test_only_an_answer_that_nobody_else_uses_is_final() -> None:
    assert compiled("one", {"one": A}).final == "one"
    assert compiled("f", {"f": each(INNER, "in")}).final is None
    assert compiled("sh", {"one": A, "two": stage("b", x="request.x"), "sh": ShadowNode(primary="one", copy="two")}).final == "one"
    assert compiled("sh", {"one": A, "two": B, "sh": ShadowNode(primary="one", copy="two")}).final is None

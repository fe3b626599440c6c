"""Graphs in catalog files: every kind of node, inputs found by name, endpoints that are called, and each fault with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from graph_files import BOXES, CASCADE, CROP, IMAGE, PRESENT, PROBS, A, B, endpoint, graph_of, loaded, problems, stage, task

from schemas.catalog import Catalog
from schemas.graph import (
    Branch,
    CanaryNode,
    Case,
    EnsembleNode,
    ForEachNode,
    GraphSpec,
    Guardrails,
    ShadowNode,
    SplitterNode,
    StageNode,
    SwitchNode,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


# What is right.


def test_a_cascade_becomes_stages_and_a_switch(folder: Path) -> None:
    made = loaded(folder, CASCADE)["cascade"]
    image = {"image": "request.image"}
    assert made.graph == GraphSpec(
        nodes={
            "quick": StageNode(task="classify", inputs=image, variants=("small",)),
            "careful": StageNode(task="classify", inputs=image, variants=("large",)),
            "sure": SwitchNode(cases=(Case("max(quick.probs) >= 0.9", "quick"),), otherwise="careful"),
        },
        output="sure",
    )
    assert (made.task, made.defaults.min_accuracy, made.defaults.timeout_ms, made.revision) == ("", 0.75, 300, 0)


@pytest.mark.parametrize(
    ("words", "node"),
    [
        ("splitter: {branches: [{weight: 90, then: a}, {weight: 10, then: b}]}", SplitterNode(branches=(Branch(90, "a"), Branch(10, "b")))),
        (
            "splitter: {sticky: tenant, branches: [{weight: 0.5, then: a}, {weight: 0.5, then: b}]}",
            SplitterNode(branches=(Branch(0.5, "a"), Branch(0.5, "b")), sticky="tenant"),
        ),
        ("canary: {stable: a, candidate: b}", CanaryNode(stable="a", candidate="b")),
        (
            "canary: {stable: a, candidate: b, steps: [10, 100], step_requests: 50, sticky: tenant, guardrails: {latency_p99: off, agreement: 0.9}}",
            CanaryNode(
                stable="a",
                candidate="b",
                steps=(10.0, 100.0),
                step_requests=50,
                sticky="tenant",
                guardrails=Guardrails(latency_p99=None, agreement=0.9),
            ),
        ),
        ("shadow: {primary: a, copy: b}", ShadowNode(primary="a", copy="b")),
        ("shadow: {primary: a, copy: b, share: 0.25}", ShadowNode(primary="a", copy="b", share=0.25)),
        ("ensemble: {members: [a, b]}", EnsembleNode(members=("a", "b"))),
        (
            "ensemble: {members: [a, b], combiner: weighted_mean, weights: [1, 2.5], wait: 1, tensors: [probs]}",
            EnsembleNode(members=("a", "b"), combiner="weighted_mean", weights=(1.0, 2.5), wait=1, tensors=("probs",)),
        ),
        (
            "ensemble: {members: [a, b], combiner: majority, wait: by_deadline}",
            EnsembleNode(members=("a", "b"), combiner="majority", by_deadline=True),
        ),
    ],
)
def test_nodes_that_choose_or_merge(folder: Path, words: str, node: object) -> None:
    made = graph_of(folder, endpoint(f"{A}{B}    - name: taken\n      {words}\n", "taken"))
    assert made.nodes["taken"] == node


@pytest.mark.parametrize(
    ("policy", "stated"),
    [
        ("", ("all", 0)),
        (", policy: all", ("all", 0)),
        (", policy: {at_least: 3}", ("at_least", 3)),
        (", policy: best_by_deadline", ("best_by_deadline", 0)),
    ],
)
def test_rows_run_inner_nodes_with_inputs_of_the_row(folder: Path, policy: str, stated: tuple[str, int]) -> None:
    each = (
        "    - name: lines\n      for_each: {over: {crop: detect.crop}, rows_max: 9, output: text, nodes: [{name: text, stage: {task: read}}]"
        + policy
        + "}\n"
    )
    made = graph_of(folder, endpoint(stage("detect", "task: detect") + each, "lines"))
    text = {"text": StageNode(task="read", inputs={"crop": "row.crop"})}
    assert made.nodes["lines"] == ForEachNode(over={"crop": "detect.crop"}, nodes=text, output="text", rows_max=9, policy=stated[0], least=stated[1])


def test_parameters_of_a_stage_are_handed_on_as_they_are(folder: Path) -> None:
    words = "task: tidy, inputs: {image: request.image}, parameters: {low: 1, high: 2.5, deep: [true, null, {word: '7'}]}"
    made = graph_of(folder, endpoint(stage("tidied", words), "tidied")).nodes["tidied"]
    assert isinstance(made, StageNode)
    assert made.parameters == {"low": 1, "high": 2.5, "deep": [True, None, {"word": "7"}]}


def test_outputs_rename_and_measured_accuracies_are_sorted(folder: Path) -> None:
    more = "  outputs: {scores: probs}\n  measured: {'b=large, a=small': 0.93, 'a=large,b=large': 0.94}\n"
    made = graph_of(folder, endpoint(f"{A}{B}    - name: vote\n      ensemble: {{members: [a, b]}}\n", "vote", more=more))
    assert made.outputs == {"scores": "probs"}
    assert made.measured == {"a=small,b=large": 0.93, "a=large,b=large": 0.94}


def test_measured_accuracies_may_stand_in_a_file_beside(folder: Path) -> None:
    (folder / "measured.json").write_text(json.dumps({"measured": {"a=small": 0.83}, "rows": 10_000}))
    assert graph_of(folder, endpoint(A, "a", more="  measured: measured.json\n")).measured == {"a=small": 0.83}


# Inputs by name.


def inputs_of(graph: GraphSpec, name: str) -> dict[str, str]:
    node = graph.nodes[name]
    assert isinstance(node, StageNode)
    return node.inputs


def test_an_input_comes_from_the_node_before_and_else_from_the_request(folder: Path) -> None:
    end = stage("end", "task: tidy, inputs: {text: text.text, kind: kind.probs}")
    made = graph_of(folder, endpoint(stage("detect", "task: detect") + stage("text", "task: read") + stage("kind", "task: classify") + end, "end"))
    assert inputs_of(made, "detect") == {"image": "request.image"}
    assert inputs_of(made, "text") == {"crop": "detect.crop"}
    assert inputs_of(made, "kind") == {"image": "request.image"}


def test_only_the_node_just_before_is_looked_at(folder: Path) -> None:
    end = stage("end", "task: tidy, inputs: {text: text.text, kind: a.probs, boxes: detect.boxes}")
    made = graph_of(folder, endpoint(stage("detect", "task: detect") + A + stage("text", "task: read") + end, "end"))
    assert inputs_of(made, "text") == {"crop": "request.crop"}


def test_a_node_that_is_another_has_the_tensors_that_all_it_may_be_have(folder: Path) -> None:
    wide = task("wide", (IMAGE,), (CROP,), one=0.9)
    present = Catalog(tasks=PRESENT.tasks | {"wide": wide})
    detectors = stage("near", "task: detect, inputs: {image: request.image}") + stage("far", "task: wide, inputs: {image: request.image}")
    split = "    - name: found\n      splitter: {branches: [{weight: 1, then: near}, {weight: 1, then: far}]}\n"
    boxes = task("boxes", (BOXES,), (PROBS,), one=0.9)
    present.tasks["boxes"] = boxes
    made = graph_of(folder, endpoint(detectors + split + stage("text", "task: read"), "text"), present=present)
    assert inputs_of(made, "text") == {"crop": "found.crop"}
    end = stage("end", "task: tidy, inputs: {crop: found.crop, kind: kind.probs}")
    made = graph_of(folder, endpoint(detectors + split + stage("kind", "task: boxes") + end, "end"), present=present)
    assert inputs_of(made, "kind") == {"boxes": "request.boxes"}


def test_a_python_task_that_declares_nothing_takes_what_comes(folder: Path) -> None:
    made = graph_of(folder, endpoint(stage("detect", "task: detect") + stage("tidied", "task: tidy"), "tidied"))
    assert inputs_of(made, "tidied") == {"boxes": "detect.boxes", "crop": "detect.crop"}


def test_a_python_task_of_which_nothing_is_known_needs_inputs(folder: Path) -> None:
    assert problems(folder, endpoint(stage("tidied", "task: tidy"), "tidied")) == [
        "5: stage 'tidied' needs `inputs`: task 'tidy' declares none, and what comes before it is not declared either"
    ]


def test_rows_see_the_row_then_the_request(folder: Path) -> None:
    end = "{name: end, stage: {task: tidy, inputs: {text: text.text, kind: kind.probs}}}"
    inner = f"[{{name: text, stage: {{task: read}}}}, {{name: kind, stage: {{task: classify}}}}, {end}]"
    each = f"    - name: lines\n      for_each: {{over: {{crop: detect.crop}}, output: end, nodes: {inner}}}\n"
    lines = graph_of(folder, endpoint(stage("detect", "task: detect") + each, "lines")).nodes["lines"]
    assert isinstance(lines, ForEachNode)
    inputs = {name: node.inputs for name, node in lines.nodes.items() if isinstance(node, StageNode)}
    assert (inputs["text"], inputs["kind"]) == ({"crop": "row.crop"}, {"image": "request.image"})


def test_tasks_that_are_not_known_yet_are_left_open(folder: Path) -> None:
    made = graph_of(folder, CASCADE, present=None)
    assert inputs_of(made, "quick") == {}


# Endpoints that are called.


def test_a_called_graph_stands_in_its_place(folder: Path) -> None:
    caller = endpoint(
        stage("tidied", "task: tidy, inputs: {image: request.image}")
        + "    - name: inner\n      call: {endpoint: cascade, inputs: {image: tidied.image}}\n"
        + stage("text", "task: tidy")
        + "    - name: taken\n      switch:\n        - {when: max(inner.probs) > 0.5 and request.parameters.text != 'inner.probs', then: inner}\n"
        + "        - {otherwise: text}\n",
        "taken",
    )
    made = graph_of(folder, CASCADE, caller)
    image = {"image": "tidied.image"}
    assert made.nodes == {
        "tidied": StageNode(task="tidy", inputs={"image": "request.image"}),
        "inner.quick": StageNode(task="classify", inputs=image, variants=("small",)),
        "inner.careful": StageNode(task="classify", inputs=image, variants=("large",)),
        "inner.sure": SwitchNode(cases=(Case("max(inner.quick.probs) >= 0.9", "inner.quick"),), otherwise="inner.careful"),
        "text": StageNode(task="tidy", inputs={"probs": "inner.sure.probs"}),
        "taken": SwitchNode(
            cases=(Case("max(inner.sure.probs) > 0.5 and request.parameters.text != 'inner.probs'", "inner.sure"),), otherwise="text"
        ),
    }
    assert made.calls == ("cascade",)


def test_a_call_takes_inputs_by_name_and_answers_by_its_renamed_outputs(folder: Path) -> None:
    finder = endpoint(stage("detect", "task: detect"), "detect", "finder", "  outputs: {crop: crop, places: boxes}\n")
    reader = endpoint("    - name: found\n      call: {endpoint: finder}\n" + stage("text", "task: read"), "text", "reader")
    made = graph_of(folder, finder, reader)
    assert inputs_of(made, "found.detect") == {"image": "request.image"}
    assert inputs_of(made, "text") == {"crop": "found.detect.crop"}
    answers = endpoint("    - name: found\n      call: {endpoint: finder}\n", "found", "answers")
    made = graph_of(folder, finder, answers)
    assert (made.output, made.outputs) == ("found.detect", {"crop": "crop", "places": "boxes"})
    some = endpoint("    - name: found\n      call: {endpoint: finder}\n", "found", "some", "  outputs: {where: places}\n")
    assert graph_of(folder, finder, some).outputs == {"where": "boxes"}


def test_an_endpoint_of_one_stage_can_be_called_and_calls_nest(folder: Path) -> None:
    plain = "kind: endpoint\nname: plain\ntask: classify\n"
    middle = endpoint("    - name: a\n      call: {endpoint: plain}\n", "a", "middle")
    outer = endpoint("    - name: b\n      call: {endpoint: middle}\n", "b", "outer")
    made = graph_of(folder, plain, outer, middle)
    assert graph_of(folder, outer, plain, middle).calls == made.calls
    by_name = loaded(folder, plain, outer, middle)
    outermost = by_name["outer"].graph
    assert outermost is not None
    assert (list(outermost.nodes), outermost.output, outermost.calls) == (["b.a.classify"], "b.a.classify", ("middle", "plain"))
    assert inputs_of(outermost, "b.a.classify") == {"image": "request.image"}


def test_calls_inside_rows_take_the_row(folder: Path) -> None:
    reader = endpoint(stage("text", "task: read"), "text", "reader")
    each = "    - name: lines\n      for_each: {over: {crop: detect.crop}, output: inner, nodes: [{name: inner, call: {endpoint: reader}}]}\n"
    lines = graph_of(folder, reader, endpoint(stage("detect", "task: detect") + each, "lines")).nodes["lines"]
    assert isinstance(lines, ForEachNode)
    assert (lines.nodes, lines.output) == ({"inner.text": StageNode(task="read", inputs={"crop": "row.crop"})}, "inner.text")


def test_an_endpoint_of_the_catalog_can_be_called(folder: Path) -> None:
    present = Catalog(tasks=PRESENT.tasks, endpoints=loaded(folder, CASCADE))
    made = graph_of(folder, endpoint("    - name: inner\n      call: {endpoint: cascade}\n", "inner"), present=present)
    assert made.output == "inner.sure"


def test_recursion_is_refused(folder: Path) -> None:
    itself = endpoint("    - name: a\n      call: {endpoint: one}\n", "a", "one")
    assert problems(folder, itself) == ["6: an endpoint cannot call itself: one calls one"]
    one, two = (endpoint(f"    - name: a\n      call: {{endpoint: {other}}}\n", "a", name) for name, other in (("one", "two"), ("two", "one")))
    assert problems(folder, one, two) == ["14: an endpoint cannot call itself: one calls two calls one"]


def test_recursion_through_the_catalog_is_refused(folder: Path) -> None:
    caller = endpoint("    - name: a\n      call: {endpoint: cascade}\n", "a", "caller")
    present = Catalog(tasks=PRESENT.tasks, endpoints=loaded(folder, CASCADE, caller))
    changed = endpoint("    - name: a\n      call: {endpoint: caller}\n", "a", "cascade")
    assert problems(folder, changed, present=present) == ["6: an endpoint cannot call itself: 'caller' calls 'cascade'"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("endpoint: cascde", "21: endpoint 'cascde' is neither in these files nor in the catalog; did you mean 'cascade'?"),
        ("endpoint: cascade, inputs: {imag: request.image}", "21: endpoint 'cascade' takes no tensor 'imag'; did you mean 'image'?"),
    ],
)
def test_calls_that_lead_nowhere_are_told(folder: Path, words: str, told: str) -> None:
    found = problems(folder, CASCADE, endpoint(f"    - name: a\n      call: {{{words}}}\n", "a"))
    assert found == [told]

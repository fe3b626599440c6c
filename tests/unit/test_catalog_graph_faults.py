"""Graphs and Python tasks in catalog files: each thing that is wrong is told with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from graph_files import CASCADE, IMAGE, PRESENT, A, B, endpoint, loaded, problems, written

from deploy.catalog_files import load_catalog_files
from schemas.catalog import Catalog, VariantSpec


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


KINDS = "`stage`, `switch`, `splitter`, `canary`, `shadow`, `ensemble`, `for_each`, `call`"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("graph:\n", "task: classify\ngraph:\n", "6: an endpoint has either `task` or `graph`"),
        ("graph:", "grph:", "4: unknown key 'grph' in an endpoint; did you mean 'graph'?"),
        ("  output: sure", "  outptu: sure", "14: unknown key 'outptu' in `graph`; did you mean 'output' or 'outputs'?"),
        ("stage: {task: classify, variants: [small]}", "stge: {}", "7: unknown key 'stge' in a node; did you mean 'stage'?"),
        ("variants: [small]", "varants: [small]", "7: unknown key 'varants' in stage 'quick'; did you mean 'variants'?"),
        ("task: classify, variants: [small]", "variants: [small]", "7: stage 'quick' needs `task`"),
        ("variants: [small]", "variants: []", "7: `variants` is empty: leave it out for all variants of the task"),
        ("variants: [small]", "inputs: [image]", "7: `inputs` of stage 'quick' is a mapping of keys to values, not a list"),
        ("variants: [small]", "parameters: 7", "7: `parameters` of stage 'quick' is a mapping of keys to values, not '7'"),
        ("name: careful", "name: quick", "8: node 'quick' stands twice in the graph"),
        ("name: careful", "name: row", "8: a node cannot be called 'row': that is what stands for the tensors of the row"),
        ("name: careful", "name: care-ful", "8: 'care-ful' is not a node's name: letters, digits, `_`, a letter first, 64 at most"),
        ("- name: careful\n", "- \n", "9: a node needs `name`"),
        ("        - {otherwise: careful}\n", "", "12: the last case of a switch is `{otherwise: NODE}`, for when no condition holds"),
        (", then: quick}", "}", "12: a case is `{when: CONDITION, then: NODE}`, and the last one `{otherwise: NODE}`"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(folder: Path, old: str, new: str, told: str) -> None:
    assert old in CASCADE
    assert told in problems(folder, CASCADE.replace(old, new, 1))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("splitter: {sticky: id}", "splitter 'taken' needs `branches`"),
        ("splitter: {branches: [{then: a}]}", "a branch needs `weight`"),
        ("splitter: {branches: [{weight: -1, then: a}]}", "`weight` of a branch is -1: it lies in 0..1000000000"),
        ("canary: {stable: a}", "canary 'taken' needs `candidate`"),
        (
            "canary: {stable: a, candidate: b, steps: [5, 1]}",
            "`steps` are rising percentages of the traffic, above 0 and up to 100: [1, 5, 25, 50, 100]",
        ),
        ("canary: {stable: a, candidate: b, steps: [x]}", "`steps` of canary 'taken' is a list of numbers"),
        ("canary: {stable: a, candidate: b, guardrails: {agrement: 1}}", "unknown key 'agrement' in `guardrails`; did you mean 'agreement'?"),
        ("canary: {stable: a, candidate: b, guardrails: {failed_share: 2}}", "`failed_share` of `guardrails` is 2: it lies in 0..1"),
        ("shadow: {primary: a}", "shadow 'taken' needs `copy`"),
        ("shadow: {primary: a, copy: b, share: 2}", "`share` of shadow 'taken' is 2: it lies in 0..1"),
        ("ensemble: {combiner: mean}", "ensemble 'taken' needs `members`"),
        ("ensemble: {members: [a, b], wait: 3}", "`wait` is `all`, `by_deadline`, or for how many of the 2 members"),
        ("ensemble: {members: [a, b], wait: some}", "`wait` is `all`, `by_deadline`, or for how many of the 2 members"),
        ("ensemble: {members: [a, b], weights: [1, x]}", "`weights` of ensemble 'taken' is a list of numbers"),
        ("for_each: {output: a, nodes: [{name: x, stage: {task: classify}}]}", "for_each 'taken' needs `over`"),
        ("for_each: {over: {image: request.image}, output: a}", "for_each 'taken' needs `nodes`"),
        ("for_each: {over: {image: request.image}, output: a, rows_max: 0}", "`rows_max` of for_each 'taken' is 0: it lies in 1..1024"),
        ("for_each: {policy: some}", "'some' is no policy: it is `all`, `{at_least: K}` or `best_by_deadline`"),
        ("for_each: {policy: {least: 1}}", "unknown key 'least' in `policy`; did you mean 'at_least'?"),
        ("call: {inputs: {}}", "call 'taken' needs `endpoint`"),
        ("call: cascade", "call 'taken' is a mapping of keys to values, not 'cascade'"),
        (
            "stage: {task: classify}\n      switch: []",
            "a node has a name and one of " + KINDS + ", not stage and switch together",
        ),
    ],
)
def test_what_is_wrong_with_a_node_is_told(folder: Path, words: str, told: str) -> None:
    found = problems(folder, endpoint(f"{A}{B}    - name: taken\n      {words}\n", "taken"))
    assert any(each.partition(": ")[2] == told and 9 <= int(each.partition(":")[0]) <= 10 for each in found), found


@pytest.mark.parametrize(
    ("measured", "told"),
    [
        ("{a=small: 1.5}", "`a=small` of `measured` is 1.5: it lies in 0..1"),
        ("nowhere.json", "nowhere.json: cannot be read: No such file or directory"),
        ("../measured.json", "measured file '../measured.json' leaves the folder of the document that names it"),
        ("odd.json", 'odd.json is not `{"measured": {"stage=variant,...": 0.9, ...}}`'),
    ],
)
def test_what_is_wrong_with_measured_accuracies_is_told(folder: Path, measured: str, told: str) -> None:
    (folder / "odd.json").write_text('{"measured": [1]}')
    (found,) = problems(folder, endpoint(A, "a", more=f"  measured: {measured}\n"))
    assert found.startswith(f"8: {told}"), found


def test_a_graph_nested_without_end_ends_early(folder: Path) -> None:
    inner = "nodes: [{name: a, stage: {task: classify}}]"
    for _ in range(300):
        inner = f"nodes: [{{name: a, for_each: {{over: {{image: row.image}}, output: a, {inner}}}}}]"
    text = f"kind: endpoint\nname: deep\ngraph: {{{inner}, output: a}}\n"
    assert any("more than 256 nodes" in told or "nested too deeply" in told for told in problems(folder, text))


def test_an_alias_bomb_in_a_graph_ends_early(folder: Path) -> None:
    aliases = ", ".join(["*a"] * 9)
    bombs = "".join(f"b{n}: &{'abcdefgh'[n + 1]} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(7))
    node = f"{{name: n, stage: {{task: t, parameters: {{p: [*h, {aliases}]}}}}}}"
    text = f"x: &a [1, 1, 1]\n{bombs}kind: endpoint\nname: bomb\ngraph:\n  nodes:\n    - {node}\n"
    assert any("more than 100000 fields" in told for told in problems(folder, text))


# Python tasks.

PYTHON = """\
kind: task
name: contrast
variants:
  - name: numpy
    call: fashion.transforms:contrast
"""


def test_a_python_task_needs_nothing_but_its_call(folder: Path) -> None:
    (made,) = load_catalog_files([written(folder, PYTHON)]).tasks
    assert made.variants == (VariantSpec(name="numpy", call="fashion.transforms:contrast", call_ms_max=10_000, accuracy=1.0),)


def test_a_python_task_may_say_more(folder: Path) -> None:
    more = "    call_ms_max: 50\n    accuracy: 0.9\n    accelerators: [cpu]\n    inputs: [{name: image, datatype: UINT8, shape: [-1, 1, 28, 28]}]\n"
    (made,) = load_catalog_files([written(folder, PYTHON + more)]).tasks
    assert made.variants[0].inputs == (IMAGE,)
    assert (made.variants[0].call_ms_max, made.variants[0].accuracy) == (50, 0.9)


@pytest.mark.parametrize("call", ["contrast", "my-transform"])
def test_an_entry_point_is_a_plain_name(folder: Path, call: str) -> None:
    (made,) = load_catalog_files([written(folder, PYTHON.replace("fashion.transforms:contrast", call))]).tasks
    assert made.variants[0].call == call


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "transforms:contrast",
            "transforms.contrast",
            "5: 'fashion.transforms.contrast' is neither `package.module:function` nor the name of an entry",
        ),
        ("fashion.transforms:contrast", "os:system('x')", "5: \"os:system('x')\" is neither"),
        ("contrast\n", "contrast\n    file: a.onnx\n", "6: `file` is of a model file, and the variant has `call`"),
        ("contrast\n", "contrast\n    batch_size_max: 4\n", "6: `batch_size_max` is of a model file"),
        ("contrast\n", "contrast\n    accelerators: [vpu]\n", "6: a `call` runs on CPU workers"),
        ("contrast\n", "contrast\n    call_ms_max: 0\n", "6: `call_ms_max` of a variant is 0"),
        ("name: contrast", "name: headrace.combine", "2: task 'headrace.combine': names that begin with `headrace.` are those of built-in tasks"),
        ("    call: fashion.transforms:contrast\n", "    accuracy: 1\n", "4: a variant needs `file`, or `call` for Python"),
    ],
)
def test_what_is_wrong_with_a_python_task_is_told(folder: Path, old: str, new: str, told: str) -> None:
    # The last "contrast\n" is the call's: the name stands in the line before the variants.
    head, tail = PYTHON.rsplit(old, 1)
    assert any(each.startswith(told) for each in problems(folder, head + new + tail))


def test_a_dotted_call_gets_its_near_miss(folder: Path) -> None:
    (told,) = problems(folder, PYTHON.replace(":contrast", ".contrast"))
    assert told.endswith("did you mean 'fashion.transforms:contrast'?")


# What is wrong with a graph as a whole: the line is that of the node's key.


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("then: quick", "then: quik", 12, "there is no node 'quik': did you mean 'quick'?"),
        ("otherwise: careful", "otherwise: carefull", 13, "there is no node 'carefull': did you mean 'careful'?"),
        ("max(quick.probs)", "max(quick.prob)", 12, "did you mean 'probs'?"),
        ("max(quick.probs) >=", "max(quick.probs >=", 12, "does not parse"),
        ("output: sure", "output: shure", 14, "there is no node 'shure': did you mean 'sure'?"),
        ("variants: [small]", "variants: [smal]", 7, "did you mean 'small'?"),
        ("task: classify, variants: [small]", "task: clasify", 7, "did you mean 'classify'?"),
        ("variants: [small]", "inputs: {image: careful.probs}", 7, ""),
        ("output: sure", "output: careful", 6, "needs this node"),
        ("0.75", "0.95", 3, "asks for an accuracy of 0.95 by default, but the best path of its graph reaches 0.8"),
    ],
)
def test_what_is_wrong_with_the_whole_graph_points_to_the_key(folder: Path, old: str, new: str, line: int, words: str) -> None:
    found = problems(folder, CASCADE.replace(old, new, 1))
    assert any(told.startswith(f"{line}: ") and words in told for told in found), found


def test_several_problems_of_one_graph_are_told_at_once(folder: Path) -> None:
    found = problems(folder, CASCADE.replace("then: quick", "then: quik").replace("output: sure", "output: shure").replace("[large]", "[lrge]"))
    assert [told.partition(":")[0] for told in found][:3] == ["9", "12", "14"]


def test_problems_inside_a_called_graph_point_to_the_call(folder: Path) -> None:
    call = "    - name: a\n      call:\n        endpoint: cascade\n        inputs: {image: found.boxes}\n"
    found = problems(folder, CASCADE, endpoint("    - name: found\n      stage: {task: detect}\n" + call, "a"))
    assert len(found) == 2
    assert all(told.startswith("25: ") and "image" in told for told in found), found


def test_an_endpoint_is_not_blamed_for_the_faults_of_its_tasks(folder: Path) -> None:
    broken = "kind: task\nname: classify\nvariants: []\n"
    assert problems(folder, CASCADE, broken) == ["16: a task needs `variants`"]


def test_a_task_that_changes_must_fit_the_graphs_of_the_catalog(folder: Path) -> None:
    present = Catalog(tasks=PRESENT.tasks, endpoints=loaded(folder, CASCADE))
    changed = "kind: task\nname: classify\nvariants:\n  - {name: small, call: classify}\n"
    (told,) = problems(folder, changed, present=present)
    assert told.startswith("4: with this task, node 'careful' of endpoint 'cascade' is wrong: ")
    lower = changed.replace("classify}", "classify, accuracy: 0.5}")
    lower += lower.splitlines()[-1].replace("small", "large")
    assert problems(folder, lower, present=present) == [
        "4: endpoint 'cascade' asks for an accuracy of 0.75 by default, but the best path of its graph reaches 0.5"
    ]


def test_the_best_branch_of_a_splitter_counts(folder: Path) -> None:
    both = "".join(f"    - name: {name}\n      stage: {{task: classify, variants: [{name}]}}\n" for name in ("small", "large"))
    split = "    - name: split\n      splitter: {branches: [{weight: 1, then: small}, {weight: 1, then: large}]}\n"
    text = endpoint(both + split, "split").replace("graph:", "defaults: {min_accuracy: 0.9}\ngraph:", 1)
    assert list(loaded(folder, text)) == ["made"]
    assert problems(folder, text.replace("0.9", "0.91"))[0].endswith("reaches 0.9")

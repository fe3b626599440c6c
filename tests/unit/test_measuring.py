"""End-to-end accuracy by combination: equal to a direct computation, failures counted, data and names checked."""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
import pytest

from deploy.catalog_files import load_catalog_files
from deploy.catalog_tasks import COMBINE
from deploy.commands.measure import measure
from deploy.measuring import AccuracyMeasurer, LabelledData, StageComputer, agrees, read_data, request_tensors
from graphs.compiled import compile_graph
from schemas.catalog import TaskSpec, VariantSpec
from schemas.errors import CatalogError, HeadraceError
from schemas.graph import Case, EnsembleNode, ForEachNode, GraphSpec, ShadowNode, StageNode, SwitchNode
from workers.backend import BackendOptions
from workers.backends import create_backend

FASHION = Path(__file__).parents[2] / "examples" / "fashion"
ROWS = 120


@pytest.fixture(scope="module")
def fashion():
    loaded = load_catalog_files([FASHION / "task.yaml"])
    tasks = {task.name: task for task in (COMBINE, *loaded.tasks)}
    return tasks, StageComputer(create_backend(BackendOptions(accelerator="cpu")), tasks, loaded.models)


@pytest.fixture(scope="module")
def data():
    labelled = np.load(FASHION / "test-2000.npz")
    return LabelledData({"image": labelled["images"][:ROWS]}, labelled["labels"][:ROWS])


def stage(*variants, task="fashion", **inputs):
    return StageNode(task=task, inputs=inputs or {"image": "request.image"}, variants=variants)


def probabilities(computer, variant, data):
    return computer.compute(f"fashion/{variant}", dict(data.inputs), b"")["probs"]


def measured(fashion, spec, data, only=None):
    tasks, computer = fashion
    measurer = AccuracyMeasurer(spec, tasks, computer)
    return {found.key: found for found in measurer.measure(data, measurer.combinations(only))}


def test_one_stage_is_as_accurate_as_its_model(fashion, data):
    found = measured(fashion, GraphSpec(nodes={"one": stage("linear", "mlp128")}, output="one"), data)
    assert list(found) == ["one=linear", "one=mlp128"]
    for variant in ("linear", "mlp128"):
        direct = float((probabilities(fashion[1], variant, data).argmax(axis=1) == data.labels).mean())
        assert found[f"one={variant}"].accuracy == pytest.approx(direct)
        assert found[f"one={variant}"].declared == pytest.approx(fashion[0]["fashion"].variant(variant).accuracy)
        assert (found[f"one={variant}"].requests, found[f"one={variant}"].failed) == (ROWS, 0)


def test_an_ensemble_is_its_members_mean(fashion, data):
    nodes = {"a": stage("linear"), "b": stage("mlp128", "cnn32-int8"), "vote": EnsembleNode(members=("a", "b"), combiner="mean")}
    found = measured(fashion, GraphSpec(nodes=nodes, output="vote", measured={"a=linear,b=mlp128": 0.5}), data)
    assert list(found) == ["a=linear,b=mlp128", "a=linear,b=cnn32-int8"]
    for second in ("mlp128", "cnn32-int8"):
        mean = (probabilities(fashion[1], "linear", data) + probabilities(fashion[1], second, data)) / 2
        one = found[f"a=linear,b={second}"]
        assert one.accuracy == pytest.approx(float((mean.argmax(axis=1) == data.labels).mean()))
        assert one.declared != 0.5, "what was measured before says nothing about what is declared"


def test_a_cascade_takes_each_request_its_own_way(fashion, data):
    nodes = {
        "quick": stage("linear"),
        "careful": stage("resnet-int8"),
        "sure": SwitchNode(cases=(Case("max(quick.probs) >= 0.8", "quick"),), otherwise="careful"),
    }
    (found,) = measured(fashion, GraphSpec(nodes=nodes, output="sure"), data).values()
    quick, careful = (probabilities(fashion[1], name, data) for name in ("linear", "resnet-int8"))
    taken = np.where(quick.max(axis=1) >= 0.8, quick.argmax(axis=1), careful.argmax(axis=1))
    assert 0 < (quick.max(axis=1) >= 0.8).sum() < ROWS
    assert found.accuracy == pytest.approx(float((taken == data.labels).mean()))


def test_shadows_do_not_run_and_are_no_part_of_a_combination(fashion, data):
    nodes = {"a": stage("linear"), "b": stage("wide"), "both": ShadowNode(primary="a", copy="b")}
    assert list(measured(fashion, GraphSpec(nodes=nodes, output="both"), data)) == ["a=linear"]


def test_rows_of_a_for_each_are_computed_and_joined(fashion, data):
    each = ForEachNode(over={"picture": "request.image"}, nodes={"one": stage("linear", image="row.picture")}, output="one")
    (found,) = measured(fashion, GraphSpec(nodes={"each": each}, output="each"), data).values()
    assert found.key == "each/one=linear"
    direct = float((probabilities(fashion[1], "linear", data).argmax(axis=1) == data.labels).mean())
    assert found.accuracy == pytest.approx(direct)


def broken(inputs, parameters):
    if inputs["image"].sum() % 2:
        raise ValueError("odd")
    return {"image": inputs["image"]}


def test_requests_that_fail_are_wrong_and_counted(fashion, data):
    tasks = fashion[0] | {"odd": TaskSpec(name="odd", variants=(VariantSpec(name="python", call=f"{__name__}:broken", accuracy=1.0),))}
    computer = StageComputer(create_backend(BackendOptions(accelerator="cpu")), tasks, fashion[1]._models)
    nodes = {"first": stage(task="odd"), "one": stage("linear", image="first.image")}
    (found,) = measured((tasks, computer), GraphSpec(nodes=nodes, output="one"), data).values()
    odd = (data.inputs["image"].reshape(ROWS, -1).sum(axis=1) % 2).astype(bool)
    right = (probabilities(fashion[1], "linear", data).argmax(axis=1) == data.labels) & ~odd
    assert found.key == "one=linear"
    assert found.failed == int(odd.sum()) > 0
    assert found.accuracy == pytest.approx(float(right.mean()))
    assert "raised ValueError: odd" in found.failure


def test_stages_are_narrowed_and_unknown_ones_refused(fashion, data):
    tasks, computer = fashion
    spec = GraphSpec(nodes={"one": stage()}, output="one")
    measurer = AccuracyMeasurer(spec, tasks, computer)
    assert measurer.combinations({"one": ["wide"]}) == [{"one": "wide"}]
    assert len(measurer.combinations()) == 6
    for only, said in [({"two": ["wide"]}, "no model stage 'two': it has one"), ({"one": ["wid"]}, "no variant 'wid': it has linear, ")]:
        with pytest.raises(CatalogError, match=said):
            measurer.combinations(only)
    many = GraphSpec(nodes={**{f"m{at}": stage() for at in range(4)}, "v": EnsembleNode(members=tuple(f"m{at}" for at in range(4)))}, output="v")
    with pytest.raises(CatalogError, match="1296 combinations, at most 1000"):
        AccuracyMeasurer(many, tasks, computer).combinations()


def test_what_a_variant_gives_is_computed_once(fashion, data):
    class Counting:
        def __init__(self, backend):
            self.backend, self.calls = backend, 0

        def __getattr__(self, name):
            return getattr(self.backend, name)

        def infer(self, *arguments):
            self.calls += 1
            return self.backend.infer(*arguments)

    counting = Counting(create_backend(BackendOptions(accelerator="cpu")))
    computer = StageComputer(counting, fashion[0], fashion[1]._models)
    nodes = {"a": stage("linear", "mlp128"), "b": stage("linear", "mlp128"), "v": EnsembleNode(members=("a", "b"))}
    few = LabelledData({"image": data.inputs["image"][:10]}, data.labels[:10])
    assert len(measured((fashion[0], computer), GraphSpec(nodes=nodes, output="v"), few)) == 4
    assert counting.calls == 2 * len(np.unique(few.inputs["image"], axis=0))
    computer.close()


def test_large_batches_are_cut_and_padded_for_devices_of_fixed_sizes(fashion, data):
    vpu = StageComputer(create_backend(BackendOptions(accelerator="vpu", device="CPU")), fashion[0], fashion[1]._models)
    batch = {"image": data.inputs["image"][:67]}
    found = vpu.compute("fashion/linear", batch, b"")["probs"]
    assert found.shape == (67, 10)
    assert np.allclose(found, fashion[1].compute("fashion/linear", batch, b"")["probs"], atol=1e-4)


@pytest.mark.parametrize(
    ("answer", "label", "right"),
    [
        (np.array([[0.1, 0.9]]), np.array([1], np.uint8), True),
        (np.array([[0.1, 0.9]]), np.array([0]), False),
        (np.array([7]), np.array([7]), True),
        (np.array([b"ab"], object), np.array(["ab"]), True),
        (np.array([1, 2]), np.array([1]), False),
    ],
)
def test_an_answer_is_right_where_it_says_the_label(answer, label, right):
    assert agrees(answer, label) is right


def test_data_is_checked(tmp_path):
    def saved(**arrays):
        np.savez(tmp_path / "d.npz", **arrays)
        return tmp_path / "d.npz"

    x, labels = np.zeros((3, 2)), np.arange(3)
    assert read_data(saved(anything=x, labels=labels), ["image"], {}).inputs["image"].shape == (3, 2)
    assert len(read_data(saved(a=x, b=x, labels=labels), ["b"], {}, 2).labels) == 2
    assert list(read_data(saved(a=x, b=x, labels=labels), ["image"], {"image": "a"}).inputs) == ["image"]
    for arrays, said in [
        ({"a": x}, "no array `labels`: it has a"),
        ({"a": x, "b": x, "labels": labels}, "no array 'image' for the request's tensor 'image': it has a, b"),
        ({"image": x[:2], "labels": labels}, "2 rows of 'image', 3 labels"),
    ]:
        with pytest.raises(HeadraceError, match=said):
            read_data(saved(**arrays), ["image"], {})
    (tmp_path / "no.npz").write_text("no")
    with pytest.raises(HeadraceError, match="can be read"):
        read_data(tmp_path / "no.npz", ["image"], {})
    np.save(tmp_path / "one.npy", x)
    with pytest.raises(HeadraceError, match="can be read"):
        read_data(tmp_path / "one.npy", ["image"], {})


def test_the_tensors_of_the_request_are_known(fashion):
    nodes = {
        "one": stage(),
        "which": SwitchNode(cases=(Case("size(request.text) > 3", "one"),), otherwise="one"),
    }
    assert request_tensors(compile_graph(GraphSpec(nodes=nodes, output="which"), fashion[0])) == ["image", "text"]


def test_the_command_writes_what_a_graph_takes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = """
kind: endpoint
name: two
graph:
  nodes:
    - {name: quick, stage: {task: fashion, variants: [mlp128]}}
    - {name: careful, stage: {task: fashion, variants: [wide, resnet], inputs: {image: request.image}}}
    - {name: sure, switch: [{when: max(quick.probs) >= 0.9, then: quick}, {otherwise: careful}]}
  output: sure
"""
    file = tmp_path / "two.yaml"
    file.write_text(text)
    arguments = [str(FASHION / "task.yaml"), str(file), "--data", str(FASHION / "test-2000.npz"), "--rows", "20"]
    measure.main([*arguments, "--only", "careful=wide", "--json"], standalone_mode=False)
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["measured"] == json.loads((tmp_path / "measured.json").read_text())["measured"]
    assert list(report["measured"]) == ["careful=wide,quick=mlp128"]
    file.write_text(text + "  measured: measured.json\n")
    (endpoint,) = load_catalog_files([FASHION / "task.yaml", file]).endpoints
    assert endpoint.graph.measured == report["measured"]
    for words, said in [(["--endpoint", "tow"], "did you mean 'two'"), (["--only", "careful"], "is not LEFT=RIGHT")]:
        with pytest.raises((CatalogError, click.UsageError), match=said):
            measure.main([*arguments, *words], standalone_mode=False)

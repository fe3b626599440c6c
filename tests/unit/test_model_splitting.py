"""Models cut into parts: the chain equals the whole, names and rows survive, skip connections are carried, and what cannot be cut says why."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from deploy.catalog_files import load_catalog_files
from deploy.split_catalog import catalog_text, endpoint_name, write_split
from schemas.catalog import TensorSpec
from schemas.errors import HeadraceError, ModelRefused
from workers.backend import BackendOptions
from workers.backends import create_backend
from workers.contract_cases import build_model
from workers.cpu.backend import CpuBackend
from workers.model_splitting import TOLERANCE, ModelSplitter, SplitSettings
from workers.onnx_cutting import SAFE_NAME, CuttableModel
from workers.onnx_files import parse_model
from workers.policy.splitting import choose_cuts, moves_towards

FASHION = Path(__file__).parents[2] / "examples" / "fashion" / "models"
QUICK = SplitSettings(budget_ms=4.0)
X, Y = TensorSpec("x", "FP32", (-1, 8)), TensorSpec("y", "FP32", (-1, 8))


def splitter(backend=None):
    return ModelSplitter(backend or create_backend(BackendOptions(accelerator="cpu")), QUICK)


def weights(name, seed):
    return numpy_helper.from_array(np.random.default_rng(seed).standard_normal((8, 8)).astype(np.float32) / 3, name)


def node(op, inputs, output, **attributes):
    return helper.make_node(op, inputs, [output], **attributes)


def residual(*, inputs=(X,), outputs=(Y,), extra=()):
    """x -> a -> (b + a) -> y, with names that no graph could state, and a constant that both halves use."""
    nodes = [
        node("Constant", [], "/half/const", value=numpy_helper.from_array(np.array(0.5, np.float32))),
        node("MatMul", ["x", "w0"], "/stem/MatMul.out"),
        node("Mul", ["/stem/MatMul.out", "/half/const"], "onnx::a:1"),
        node("MatMul", ["onnx::a:1", "w1"], "b"),
        node("Relu", ["b"], "b relu"),
        node("Add", ["b relu", "onnx::a:1"], "/sum"),
        node("Mul", ["/sum", "/half/const"], "halved"),
        node("MatMul", ["halved", "w0"], "y"),
        *extra,
    ]
    return build_model(nodes, inputs, outputs, [weights("w0", 0), weights("w1", 1)])


def saved(folder, model, name="model"):
    file = folder / f"{name}.onnx"
    file.write_bytes(model.SerializeToString())
    return file


def run_parts(split, inputs):
    """By ONNX Runtime alone, without any of the splitter's own code."""
    import onnxruntime

    known = dict(inputs)
    for part in split.parts:
        session = onnxruntime.InferenceSession(part.data, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]
        known |= dict(zip([value.name for value in session.get_outputs()], session.run(None, {name: known[name] for name in names}), strict=True))
    return known


def run_whole(file, inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
    return dict(zip([value.name for value in session.get_outputs()], session.run(None, inputs), strict=True))


def test_a_skip_connection_crosses_beside_what_was_asked_for(tmp_path):
    file = saved(tmp_path, residual())
    split = splitter().split_at(file, [["b relu"]])
    assert split.cuts == (("onnx::a:1", "b relu"),)
    assert split.carried_row_bytes == (64,)
    assert split.difference <= TOLERANCE
    first, second = split.parts
    assert set(second.sources) == {tensor.name for tensor in first.outputs}
    assert set(second.sources.values()) == {1}
    assert all(SAFE_NAME.match(tensor.name) for tensor in first.outputs)
    assert {tensor.shape for tensor in first.outputs} == {(-1, 8)}
    assert [hashlib.sha256(part.data).hexdigest() for part in split.parts] == [part.sha256 for part in split.parts]
    assert sum(part.share for part in split.parts) == pytest.approx(1.0)


@pytest.mark.parametrize("rows", [1, 3, 17])
def test_parts_equal_the_whole_in_onnx_runtime_alone(tmp_path, rows):
    file = saved(tmp_path, residual())
    split = splitter().split_at(file, [["/stem/MatMul.out"], ["b"], ["/sum"]])
    inputs = {"x": np.random.default_rng(rows).standard_normal((rows, 8)).astype(np.float32)}
    assert len(split.parts) == 4
    assert np.allclose(run_parts(split, inputs)["y"], run_whole(file, inputs)["y"], rtol=1e-5, atol=1e-5)


def test_initialisers_operator_set_and_input_names_survive(tmp_path):
    model = residual()
    split = splitter().split_at(saved(tmp_path, model), [["onnx::a:1"]])
    for part in split.parts:
        again = parse_model(part.data, "part")
        onnx.checker.check_model(again)
        assert again.opset_import == model.opset_import
        assert again.ir_version == model.ir_version
    first, second = (parse_model(part.data, "part") for part in split.parts)
    assert [tensor.name for tensor in first.graph.initializer] == ["w0"]
    assert [tensor.name for tensor in second.graph.initializer] == ["w0", "w1"]
    assert (split.parts[0].inputs[0].name, split.parts[1].outputs[0].name) == ("x", "y")


def test_outputs_computed_early_and_inputs_read_late_travel_by_themselves(tmp_path):
    other, early = TensorSpec("other", "FP32", (-1, 8)), TensorSpec("/sum", "FP32", (-1, 8))
    late = node("Add", ["y", "other"], "z")
    model = residual(inputs=(X, other), outputs=(TensorSpec("z", "FP32", (-1, 8)), early), extra=(late,))
    file = saved(tmp_path, model)
    split = splitter().split_at(file, [["halved"]])
    assert split.parts[1].sources["other"] == 0
    inputs = {name: np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32) for name in ("x", "other")}
    found, whole = run_parts(split, inputs), run_whole(file, inputs)
    assert [tensor.name for tensor in split.parts[-1].outputs] == ["z", "/sum"]
    assert all(np.allclose(found[name], whole[name], atol=1e-5) for name in whole)


def test_a_tensor_of_an_early_part_may_go_past_the_next(tmp_path):
    split = splitter().split_at(saved(tmp_path, residual()), [["onnx::a:1"], ["b relu"]])
    assert sorted(split.parts[2].sources.values()) == [1, 2]


def test_a_fixed_batch_stays_fixed(tmp_path):
    fixed = residual(inputs=(TensorSpec("x", "FP32", (4, 8)),), outputs=(TensorSpec("y", "FP32", (4, 8)),))
    split = splitter().split_at(saved(tmp_path, fixed), [["b"]])
    assert {tensor.shape for part in split.parts for tensor in (*part.inputs, *part.outputs)} == {(4, 8)}


def test_rows_stay_free_behind_a_reshape(tmp_path):
    nodes = [
        node("Reshape", ["x", "shape"], "narrow"),
        node("Relu", ["narrow"], "r"),
        node("Reshape", ["r", "back"], "wide"),
        node("MatMul", ["wide", "w0"], "y"),
    ]
    shapes = [numpy_helper.from_array(np.array(shape, np.int64), name) for name, shape in (("shape", [-1, 2, 4]), ("back", [-1, 8]))]
    split = splitter().split_at(saved(tmp_path, build_model(nodes, [X], [Y], [*shapes, weights("w0", 0)])), [["r"]])
    assert split.parts[1].inputs == (TensorSpec("r", "FP32", (-1, 2, 4)),)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (["nothing"], "no tensor 'nothing' is computed from the inputs; some that are: .*MatMul"),
        (["w0"], "no tensor 'w0'"),
        (["/half/const"], "no tensor '/half/const'"),
        (["y"], "nothing is left to compute behind y"),
    ],
)
def test_places_that_are_none_are_refused(tmp_path, tensors, said):
    with pytest.raises(ModelRefused, match=said):
        splitter().split_at(saved(tmp_path, residual()), [tensors])


def test_the_same_place_twice_is_refused(tmp_path):
    with pytest.raises(ModelRefused, match="nothing is computed between"):
        splitter().split_at(saved(tmp_path, residual()), [["b"], ["b"]])


def test_what_does_not_count_rows_cannot_cross(tmp_path):
    nodes = [node("Shape", ["x"], "shape"), node("Relu", ["x"], "r"), node("Reshape", ["r", "shape"], "y")]
    file = saved(tmp_path, build_model(nodes, [X], [Y]))
    with pytest.raises(ModelRefused, match="'shape' crosses the cut at r, shape, but its first axis does not count rows"):
        splitter().split_at(file, [["r", "shape"]])
    model = CuttableModel(parse_model(file.read_bytes(), "m"), "m")
    assert [cut.tensors for cut in model.cuts(4)] == []


def test_control_flow_and_models_too_short_are_refused(tmp_path):
    branch = helper.make_graph([node("Identity", ["x"], "out")], "branch", [], [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)])
    flag = node("Constant", [], "flag", value=numpy_helper.from_array(np.array(True)))
    forked = build_model([flag, node("If", ["flag"], "y", then_branch=branch, else_branch=branch)], [X], [Y])
    with pytest.raises(ModelRefused, match="control flow"):
        splitter().split_evenly(saved(tmp_path, forked), 2)
    with pytest.raises(ModelRefused, match="2 parts need 1 cuts, there are 0"):
        splitter().split_evenly(saved(tmp_path, build_model([node("Relu", ["x"], "y")], [X], [Y])), 2)
    with pytest.raises(ModelRefused, match="2 to 16"):
        splitter().split_evenly(saved(tmp_path, residual()), 17)


class Careless(CpuBackend):
    """Computes parts less exactly than wholes."""

    def infer(self, key, inputs, rows):
        found = super().infer(key, inputs, rows)
        return {name: tensor + 1e-3 if key.startswith("check") else tensor for name, tensor in found.items()}


def test_parts_that_compute_something_else_are_not_handed_out(tmp_path):
    careless = Careless(BackendOptions(accelerator="cpu"))
    with pytest.raises(ModelRefused, match=r"the parts differ from the whole by 0\.00"):
        splitter(careless).split_at(saved(tmp_path, residual()), [["b"]])
    with pytest.raises(ModelRefused, match="cut anywhere, its parts differ"):
        splitter(careless).split_evenly(saved(tmp_path, residual()), 2)


@pytest.mark.parametrize("name", ["resnet-int8", "cnn32-int8", "mlp128"])
def test_real_models_are_split_and_stay_equal(tmp_path, name):
    split = splitter().split_evenly(FASHION / f"{name}.onnx", 3)
    assert split.difference <= TOLERANCE
    images = np.load(FASHION.parent / "test-2000.npz")["images"][:20]
    found = run_parts(split, {"image": images})["probs"]
    assert np.abs(found - run_whole(FASHION / f"{name}.onnx", {"image": images})["probs"]).max() <= TOLERANCE
    if name.endswith("int8"):
        assert {tensor.datatype for part in split.parts[1:] for tensor in part.inputs} <= {"UINT8", "INT8"}, "cut between quantised operators"


def test_the_catalog_file_serves_what_was_split(tmp_path):
    file = saved(tmp_path, residual(), "my model (2)")
    split = splitter().split_at(file, [["b relu"]])
    catalog = write_split(split, tmp_path / "parts", endpoint_name(file), 0.91)
    loaded = load_catalog_files([catalog])
    (endpoint,) = loaded.endpoints
    assert endpoint.name == "my-model-2-"
    assert endpoint.graph is not None
    assert endpoint.graph.output == "part2"
    assert sorted(endpoint.graph.nodes) == ["part1", "part2"]
    assert [task.variants[0].accuracy for task in loaded.tasks] == [1.0, 0.91]
    assert set(endpoint.graph.nodes["part2"].inputs.values()) == {f"part1.{tensor.name}" for tensor in split.parts[0].outputs}
    assert "differ from the whole by at most" in catalog_text(split, "m", 1.0)


def test_odd_names_of_the_models_own_inputs_are_quoted(tmp_path):
    odd, answer = TensorSpec("input:0", "FP32", (-1, 8)), TensorSpec("out put", "FP32", (-1, 8))
    model = build_model([node("Relu", ["input:0"], "r"), node("Neg", ["r"], "out put")], [odd], [answer])
    split = splitter().split_at(saved(tmp_path, model), [["r"]])
    loaded = load_catalog_files([write_split(split, tmp_path / "parts", "odd", 1.0)])
    assert loaded.endpoints[0].graph.nodes["part1"].inputs == {"input:0": "request.input:0"}


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    split = splitter().split_at(saved(tmp_path, residual()), [["b"]])
    (tmp_path / "taken").write_text("")
    with pytest.raises(HeadraceError, match="cannot be written"):
        write_split(split, tmp_path / "taken", "m", 1.0)


# --- where to cut ---


def test_the_longest_part_is_as_short_as_it_can_be():
    assert choose_cuts([1, 2, 3, 4, 5], [1] * 5, 6, 3) == (1, 3)
    assert choose_cuts([5, 6, 7], [1] * 3, 8, 2) == (0,)


def test_of_almost_equal_divisions_the_one_that_carries_least_is_taken():
    assert choose_cuts([49, 50, 51], [10, 90, 1], 100, 2) == (2,)
    assert choose_cuts([40, 50, 60], [1, 90, 1], 100, 2) == (1,)


def test_costs_that_fall_by_noise_do_no_harm():
    assert choose_cuts([3.0, 2.9, 6.0], [1, 1, 1], 5.9, 2) in ((0,), (1,))


@pytest.mark.parametrize(("places", "parts"), [(1, 3), (0, 2), (3, 0)])
def test_too_few_places(places, parts):
    with pytest.raises(ValueError, match="places to cut"):
        choose_cuts([1.0] * places, [1] * places, 2.0, parts)


@given(
    st.lists(st.tuples(st.floats(0.01, 10), st.integers(0, 1000)), min_size=1, max_size=9).flatmap(
        lambda places: st.tuples(st.just(places), st.integers(1, len(places) + 1), st.floats(0.01, 10))
    )
)
def test_no_division_is_better_than_the_chosen_one(drawn):
    from itertools import combinations

    places, parts, last = drawn
    ends = np.cumsum([cost for cost, _ in places])
    whole = float(ends[-1] + last)

    def longest(cuts):
        return float(np.diff([0.0, *(ends[at] for at in cuts), whole]).max())

    chosen = choose_cuts(list(map(float, ends)), [size for _, size in places], whole, parts)
    every = list(combinations(range(len(places)), parts - 1))
    best = min(map(longest, every))
    assert list(chosen) == sorted(set(chosen))
    assert longest(chosen) <= best * 1.1 + 1e-9
    carried = min(sum(places[at][1] for at in cuts) for cuts in every if longest(cuts) <= best * 1.1)
    assert sum(places[at][1] for at in chosen) <= carried


def test_moves_shrink_the_part_and_stay_in_order():
    assert moves_towards((2, 5), 1, 9) == [(3, 5), (2, 4)]
    assert moves_towards((2, 5), 0, 9) == [(1, 5)]
    assert moves_towards((2, 8), 2, 9) == []
    assert moves_towards((2, 3), 1, 9) == []
    assert moves_towards((0, 3), 0, 9) == []

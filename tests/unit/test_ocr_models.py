"""The OCR example's fused models: around small networks whose answer can be reckoned, and with the real weights on rendered pages."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
from headrace_ocr.fetch import build
from headrace_ocr.fusing import build_classifier, build_detector, build_recogniser
from headrace_ocr.ladder import RECOGNISER_WIDTHS, combination, combinations, read_measured, stage_accuracies
from headrace_ocr.layout import LINE_HEIGHT, LINE_STEPS, LINE_WIDTH, NEUTRAL, PAGE_SIDE
from headrace_ocr.pipeline import Pipeline
from headrace_ocr.rendering import character_error, render_pages
from headrace_ocr.weights import FILES, WeightsMissing, read_weights
from onnx import TensorProto, helper, numpy_helper

from deploy.catalog_files import load_catalog_files

BLACK, WHITE = 0, 255
BAND = 32
"""Columns: four steps of the full width, two of the half."""


def network(nodes, constants, output_shape, metadata=""):
    """Input x (N, 3, H, W), output y, in the operator set of PP-OCR's own files."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output_shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=7)
    if metadata:
        model.metadata_props.add(key="character", value=metadata)
    return model.SerializeToString()


def mean_network():
    """y: a probability that rises with the mean of the channels, (N, 1, H, W)."""
    nodes = [helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1]), helper.make_node("Sigmoid", ["mean"], ["y"])]
    return network(nodes, {}, ["N", 1, "H", "W"])


def brightness_network():
    """Steps of eight columns; class 1 (`A`) is black, 2 (`B`) white, 3 (a space) a light grey, and what is neutral is blank."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["columns"], axes=[1, 2], keepdims=0),
        helper.make_node("Unsqueeze", ["columns"], ["one"], axes=[1]),
        helper.make_node("AveragePool", ["one"], ["pooled"], kernel_shape=[8], strides=[8]),
        helper.make_node("Transpose", ["pooled"], ["steps"], perm=[0, 2, 1]),
        helper.make_node("Sub", ["steps", "centres"], ["distance"]),
        helper.make_node("Mul", ["distance", "distance"], ["squared"]),
        helper.make_node("Mul", ["squared", "sharpness"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["y"], axis=2),
    ]
    constants = {"centres": np.array([[[0, -1, 1, 0.5]]], np.float32), "sharpness": np.float32(-50)}
    return network(nodes, constants, ["N", "T", 4], metadata="A\nB")


def run(model, inputs):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, inputs), strict=True))


def line_of(*bands):
    """A line of bands of one brightness each; the rest is neutral."""
    line = np.full((1, LINE_HEIGHT, LINE_WIDTH), NEUTRAL, np.uint8)
    for at, brightness in enumerate(bands):
        line[0, :, at * BAND : (at + 1) * BAND] = brightness
    return line


def read(model, line, turned=0.0):
    outputs = run(model, {"line": line, "turned": np.array([turned], np.float32)})
    assert outputs["codes"].shape == (1, LINE_STEPS)
    return "".join(chr(code) for code in outputs["codes"][0] if code), outputs


def test_a_detector_sees_the_page_shrunk_and_normalised():
    page = np.zeros((1, PAGE_SIDE, PAGE_SIDE), np.uint8)
    page[:, :, PAGE_SIDE // 2 :] = WHITE
    outputs = run(build_detector(mean_network(), 320), {"page": page})
    assert outputs["map"].shape == (1, 320, 320)
    assert outputs["map"].dtype == np.uint8
    means, deviations = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for column, brightness in ((20, 0), (300, 1)):
        mean = float(((brightness - means) / deviations).mean())
        assert outputs["map"][0, 100, column] == pytest.approx(255 / (1 + np.exp(-mean)), abs=1)


@pytest.mark.parametrize("side", [800, 640, 480, 320, 608])
def test_a_detectors_map_has_its_own_size(side):
    assert run(build_detector(mean_network(), side), {"page": np.zeros((2, PAGE_SIDE, PAGE_SIDE), np.uint8)})["map"].shape == (2, side, side)


def test_the_classifier_answers_one_probability_a_line():
    nodes = [helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1, 2, 3], keepdims=0)]
    nodes += [helper.make_node("Unsqueeze", ["mean"], ["second"], axes=[1]), helper.make_node("Sub", ["one", "second"], ["first"])]
    nodes += [helper.make_node("Concat", ["first", "second"], ["y"], axis=1)]
    model = build_classifier(network(nodes, {"one": np.float32(1)}, ["N", 2]))
    lines = np.concatenate([line_of(*[BLACK] * 30), line_of(*[WHITE] * 12, *[BLACK] * 18)])
    outputs = run(model, {"line": lines})
    # Only the beginning of the line is looked at: 12 bands of it.
    assert outputs["turned"] == pytest.approx([-1, 1], abs=0.01)


@pytest.mark.parametrize("width", RECOGNISER_WIDTHS.values())
def test_a_recogniser_drops_blanks_and_repeats(width):
    line = line_of(BLACK, BLACK, NEUTRAL, BLACK, WHITE, 191, WHITE, WHITE, NEUTRAL, WHITE)
    assert read(build_recogniser(brightness_network(), width), line)[0].replace(" ", "") == "AABBB"


def test_code_points_stand_where_the_step_was_and_the_rest_is_zero():
    _, outputs = read(build_recogniser(brightness_network(), 960), line_of(NEUTRAL, BLACK, 191))
    assert outputs["codes"].dtype == np.int32
    assert np.flatnonzero(outputs["codes"]).tolist() == [4, 8]
    assert outputs["codes"][0, [4, 8]].tolist() == [ord("A"), ord(" ")]


def test_confidence_is_that_of_the_characters_alone():
    model = build_recogniser(brightness_network(), 960)
    assert read(model, line_of(BLACK))[1]["confidence"] == pytest.approx([1], abs=1e-3)
    assert read(model, line_of())[1]["confidence"] == pytest.approx([0])
    doubtful = read(model, line_of(62, NEUTRAL, BLACK))[1]["confidence"][0]
    assert 0.8 < doubtful < 0.95


def test_a_line_is_turned_where_the_classifier_is_sure():
    model, line = build_recogniser(brightness_network(), 960), line_of(BLACK, NEUTRAL, BLACK, WHITE)
    for turned, expected, flag in ((0.0, "AAB", 0.0), (0.89, "AAB", 0.0), (0.95, "BAA", 1.0)):
        got, outputs = read(model, line, turned)
        assert got == expected
        assert outputs["upside_down"] == [flag]


def test_rows_are_independent():
    model = build_recogniser(brightness_network(), 960)
    lines = np.concatenate([line_of(BLACK), line_of(WHITE, NEUTRAL, WHITE), line_of(WHITE, BLACK)])
    outputs = run(model, {"line": lines, "turned": np.array([0, 0, 1], np.float32)})
    assert ["".join(chr(code) for code in row if code) for row in outputs["codes"]] == ["A", "BB", "AB"]


def test_openvino_computes_the_same():
    line = line_of(BLACK, NEUTRAL, WHITE, BLACK, 191, WHITE)
    for data, inputs in (
        (build_recogniser(brightness_network(), 640), {"line": line, "turned": np.array([1], np.float32)}),
        (build_detector(mean_network(), 480), {"page": np.arange(PAGE_SIDE, dtype=np.uint8)[None, None].repeat(PAGE_SIDE, 1)}),
    ):
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(data), "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
        expected = run(data, inputs)
        answered = compiled(inputs)
        for name, values in expected.items():
            # One step of grey apart where rounding meets the cast to bytes.
            assert np.abs(np.asarray(answered[name], np.float64) - values).max() <= (1 if name == "map" else 1e-5)


def test_the_same_weights_give_the_same_bytes():
    assert build_recogniser(brightness_network(), 480) == build_recogniser(brightness_network(), 480)
    onnx.load_model_from_string(build_recogniser(brightness_network(), 480))


def test_every_combination_was_measured():
    measured = read_measured()
    assert set(measured) == {combination(*variants) for variants in combinations()}
    assert max(measured.values()) >= 0.96
    assert min(measured.values()) < 0.9
    detectors, recognisers = stage_accuracies(measured)
    for detector, recogniser in combinations():
        assert detectors[detector] * recognisers[recogniser] == pytest.approx(measured[combination(detector, recogniser)], abs=0.06)


def test_other_weights_are_refused(monkeypatch):
    monkeypatch.setattr("headrace_ocr.weights._installed", lambda: dict.fromkeys(FILES, b"others"))
    with pytest.raises(WeightsMissing, match="expected"):
        read_weights()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    built = tmp_path_factory.mktemp("ocr")
    build(built)
    return built


def test_rendered_pages_are_read(folder):
    """The first stands upside down."""
    pages = render_pages(2)
    assert [page.upside_down for page in pages] == [True, False]
    pipeline = Pipeline(folder)
    for page in pages:
        edits, characters = character_error(pipeline.read(page.image, "side-800", "width-640"), page.lines)
        assert characters > 150
        assert edits / characters <= 0.04


def test_the_folder_is_a_catalog(folder):
    found = load_catalog_files(sorted(folder.glob("*.yaml")))
    assert [task.name for task in found.tasks] == ["ocr-decode", "ocr-detect", "ocr-cut", "ocr-orient", "ocr-recognise", "ocr-text"]
    (endpoint,) = found.endpoints
    assert endpoint.graph.measured == read_measured()
    detect = next(task for task in found.tasks if task.name == "ocr-detect")
    assert [variant.accuracy for variant in detect.variants] == list(stage_accuracies(read_measured())[0].values())


def test_the_same_seed_renders_the_same_pages():
    first, again, other = render_pages(1), render_pages(1), render_pages(1, seed=12)
    assert first == again
    assert first[0].lines != other[0].lines
    assert len(first[0].image) < 1 << 20

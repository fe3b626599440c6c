"""One contract suite over every backend that can run on this machine, and backends that break it, to see that the suite would notice."""

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from schemas.catalog import TensorSpec, VariantSpec
from schemas.errors import ConfigurationError, DeviceUnavailable, ModelRefused
from workers.backend import BackendOptions, Loaded
from workers.backend_contract import (
    CHECKS,
    ContractBroken,
    answers_every_batch_size,
    describes_its_device,
    hosts_variants_side_by_side,
    leaves_inputs_and_earlier_outputs_alone,
    refuses_bad_models,
    refuses_wrong_feeds,
    says_how_it_is_fed,
    unloads_and_loads_again,
)
from workers.backends import BUILT_IN, backend_factory, backend_names, create_backend, default_backend
from workers.contract_cases import CASES, affine, build_model, echo, product, save_variant
from workers.cpu.backend import CpuBackend
from workers.feeds import to_bytes, to_text
from workers.gpu.backend import CUDA, DIRECTML, GpuBackend, _provider_names
from workers.vpu.backend import VpuBackend

FASHION = Path(__file__).parents[2] / "examples" / "fashion"
OPTIONS = {
    "cpu": BackendOptions(accelerator="cpu"),
    "gpu on the CPU": BackendOptions(accelerator="gpu", allow_cpu=True),
    "vpu on the CPU": BackendOptions(accelerator="vpu", device="CPU"),
}
UNSUPPORTED = {("vpu on the CPU", "BYTES")}
PAIRS = [(name, case) for name in OPTIONS for case in CASES if (name, case) not in UNSUPPORTED]
DEVICES = Path("/dev")
GPU_HERE = any(node for pattern in ("nvidia[0-9]*", "kfd", "dxg") for node in DEVICES.glob(pattern))
NPU_HERE = any(DEVICES.glob("accel/accel*"))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(("name", "case"), PAIRS)
def test_contract(name, case, check, tmp_path):
    check(create_backend(OPTIONS[name]), CASES[case](tmp_path), tmp_path)


# --- the suite notices a backend that breaks the contract ---


class Aliasing(CpuBackend):
    """Gives the same memory out twice."""

    def infer(self, key, inputs, rows):
        answer = dict(super().infer(key, inputs, rows))
        self.memory = getattr(self, "memory", answer)
        for name, array in answer.items():
            self.memory[name][...] = array
        return self.memory


class OneRowShort(CpuBackend):
    def infer(self, key, inputs, rows):
        return {name: array[: max(rows - 1, 1)] for name, array in super().infer(key, inputs, rows).items()}


class Widening(CpuBackend):
    def infer(self, key, inputs, rows):
        return {name: array.astype(np.float64) for name, array in super().infer(key, inputs, rows).items()}


class Scribbling(CpuBackend):
    def infer(self, key, inputs, rows):
        answer = super().infer(key, inputs, rows)
        for array in inputs.values():
            array.setflags(write=True)
            array[...] += 1
        return answer


class Everlasting(CpuBackend):
    def unload(self, key):
        pass


class OnlyOne(CpuBackend):
    def load(self, key, spec, file, **limits):
        for other in list(self._sessions):
            self.unload(other)
        return super().load(key, spec, file, **limits)


class Gullible(CpuBackend):
    """Loads what it is told to, whatever the file is."""

    def load(self, key, spec, file, **limits):
        try:
            return super().load(key, spec, file, **limits)
        except ModelRefused:
            return Loaded(spec=spec, device="somewhere")


class Casting(CpuBackend):
    def infer(self, key, inputs, rows):
        return super().infer(key, {name: array.astype(np.float32) for name, array in inputs.items()}, rows)


class Nameless(CpuBackend):
    def describe(self):
        return type(super().describe())(accelerator="abacus", name="")


class Descending(CpuBackend):
    def load(self, key, spec, file, **limits):
        super().load(key, spec, file, **limits)
        return Loaded(spec=spec, device="somewhere", batch_sizes=(4, 2, 99))


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (Aliasing, leaves_inputs_and_earlier_outputs_alone),
        (Scribbling, leaves_inputs_and_earlier_outputs_alone),
        (OneRowShort, answers_every_batch_size),
        (Widening, answers_every_batch_size),
        (Everlasting, unloads_and_loads_again),
        (OnlyOne, hosts_variants_side_by_side),
        (Gullible, refuses_bad_models),
        (Casting, refuses_wrong_feeds),
        (Nameless, describes_its_device),
        (Descending, says_how_it_is_fed),
    ],
)
def test_a_broken_backend_is_noticed(broken, check, tmp_path):
    with pytest.raises((ContractBroken, KeyError)):
        check(broken(OPTIONS["cpu"]), affine(tmp_path), tmp_path)


# --- devices: nothing computes anywhere else in silence ---


@pytest.mark.skipif(GPU_HERE, reason="there may be a GPU here")
def test_without_a_gpu_the_backend_says_what_it_looked_for():
    with pytest.raises(DeviceUnavailable) as refused:
        GpuBackend(BackendOptions(accelerator="gpu")).describe()
    for named in ("CUDAExecutionProvider", "CPUExecutionProvider", "nvidia", "none", "--allow-cpu"):
        assert named in str(refused.value)


@pytest.mark.skipif(GPU_HERE, reason="there may be a GPU here")
def test_without_a_gpu_nothing_is_loaded(tmp_path):
    case = affine(tmp_path)
    with pytest.raises(DeviceUnavailable):
        GpuBackend(BackendOptions(accelerator="gpu")).load("k", case.spec, case.file, batch_size_max=4, threads=1)


@pytest.mark.skipif(GPU_HERE, reason="there may be a GPU here")
def test_a_gpu_backend_on_the_cpu_says_so(tmp_path):
    backend = create_backend(OPTIONS["gpu on the CPU"])
    case = affine(tmp_path)
    loaded = backend.load("k", case.spec, case.file, batch_size_max=4, threads=1)
    assert backend.describe().accelerator == "cpu"
    assert backend.describe().name == loaded.device
    assert "CPU in place of a GPU" in loaded.device


def test_gpu_providers_keep_the_configured_order_and_others_are_refused():
    assert _provider_names(["directml", "CUDAExecutionProvider"]) == (DIRECTML, CUDA)
    with pytest.raises(ConfigurationError, match="tensorrt, cuda, rocm"):
        _provider_names(["CPUExecutionProvider"])


def test_gpu_arena_gets_what_the_other_weights_leave(tmp_path):
    case = affine(tmp_path)
    size = case.file.stat().st_size
    backend = GpuBackend(BackendOptions(accelerator="gpu", allow_cpu=True, device_id=3, memory_bytes_max=size + size // 2))
    assert backend._provider(CUDA, 77)[1] == {"device_id": "3", "arena_extend_strategy": "kSameAsRequested", "gpu_mem_limit": "77"}
    assert backend._arena_bytes("a", "a", size) == size + size // 2
    backend.load("a", case.spec, case.file, batch_size_max=4, threads=1)
    with pytest.raises(ModelRefused, match=f"{size // 2} of {size + size // 2} are left"):
        backend.load("b", case.spec, case.file, batch_size_max=4, threads=1)
    backend.unload("a")
    for _ in range(2):
        backend.load("b", case.spec, case.file, batch_size_max=4, threads=1)


@pytest.mark.skipif(NPU_HERE, reason="there may be an NPU here")
def test_without_an_npu_the_backend_says_what_it_looked_for():
    with pytest.raises(DeviceUnavailable) as refused:
        VpuBackend(BackendOptions(accelerator="vpu")).describe()
    for named in ("NPU", "sees CPU", "/dev/accel", "--device CPU"):
        assert named in str(refused.value)


@pytest.mark.parametrize("device", ["AUTO", "AUTO:NPU,CPU", "HETERO:NPU,CPU", "MULTI:CPU", "CPU,NPU"])
def test_choices_that_may_end_on_the_cpu_are_refused(device):
    with pytest.raises(DeviceUnavailable, match="name one OpenVINO device"):
        VpuBackend(BackendOptions(accelerator="vpu", device=device)).describe()


def test_a_vpu_backend_on_the_cpu_publishes_the_device_that_ran(tmp_path):
    backend = create_backend(OPTIONS["vpu on the CPU"])
    case = affine(tmp_path)
    loaded = backend.load("k", case.spec, case.file, batch_size_max=6, threads=1)
    assert loaded.batch_sizes == (1, 2, 4, 6)
    assert loaded.device.endswith("(OpenVINO CPU)")
    assert backend.describe().accelerator == "vpu"
    assert backend.describe().runtime.endswith("f32")


@pytest.mark.parametrize("name", OPTIONS)
def test_fp32_is_computed_as_fp32(name, tmp_path):
    """bf16, which OpenVINO takes by itself on processors that have it, misses this tolerance by far."""
    answers_every_batch_size(create_backend(OPTIONS[name]), product(tmp_path), tmp_path)


def test_a_vpu_backend_keeps_compiled_models(tmp_path):
    cache = tmp_path / "cache"
    case = affine(tmp_path)
    VpuBackend(BackendOptions(accelerator="vpu", device="CPU", cache_folder=cache)).load("k", case.spec, case.file, batch_size_max=2, threads=1)
    assert len(list(cache.glob("*.blob"))) == 2


def test_a_vpu_backend_refuses_strings(tmp_path):
    case = echo(tmp_path)
    with pytest.raises(ModelRefused, match="'text' is BYTES"):
        create_backend(OPTIONS["vpu on the CPU"]).load("k", case.spec, case.file, batch_size_max=2, threads=1)


# --- models and batches ---


@pytest.mark.parametrize("name", OPTIONS)
def test_a_model_of_a_fixed_batch_is_fed_that_batch_only(name, tmp_path):
    case = affine(tmp_path, rows=4)
    backend = create_backend(OPTIONS[name])
    assert backend.load("k", case.spec, case.file, batch_size_max=8, threads=1).batch_sizes == (4,)
    with pytest.raises(ModelRefused, match="exactly 4 rows, the binding allows at most 2"):
        backend.load("k", case.spec, case.file, batch_size_max=2, threads=1)


@pytest.mark.parametrize("name", OPTIONS)
def test_what_the_catalog_leaves_out_is_read_from_the_model(name, tmp_path):
    case = affine(tmp_path)
    bare = VariantSpec(name="bare", file="", sha256=case.spec.sha256, accuracy=0.5)
    loaded = create_backend(OPTIONS[name]).load("k", bare, case.file, batch_size_max=2, threads=1)
    assert (loaded.spec.inputs, loaded.spec.outputs) == (case.spec.inputs, case.spec.outputs)


@pytest.mark.parametrize("name", OPTIONS)
def test_an_operator_that_the_runtime_does_not_know_is_refused(name, tmp_path):
    x, y = TensorSpec("x", "FP32", (-1, 3)), TensorSpec("y", "FP32", (-1, 3))
    node = helper.make_node("NoSuchOperator", ["x"], ["y"], domain="nowhere")
    model = build_model([node], [x], [y])
    model.opset_import.append(onnx.OperatorSetIdProto(domain="nowhere", version=1))
    spec, file = save_variant(tmp_path, "unknown", model, [x], [y])
    with pytest.raises(ModelRefused, match=r"unknown: .* cannot (load|compile) the model"):
        create_backend(OPTIONS[name]).load("k", spec, file, batch_size_max=2, threads=1)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("variant", ["linear", "cnn32-int8"])
def test_measured_accuracy_is_the_declared_one(name, variant):
    """Within what 2,000 images can tell: a wrong precision, scale or order of rows is far outside."""
    labelled = np.load(FASHION / "test-2000.npz")
    images, labels = labelled["images"], labelled["labels"]
    backend = create_backend(OPTIONS[name])
    spec = VariantSpec(name=variant, file="", sha256="", accuracy=0.0)
    backend.load("k", spec, FASHION / "models" / f"{variant}.onnx", batch_size_max=16, threads=1)
    right = 0
    for start in range(0, len(images), 16):
        probabilities = backend.infer("k", {"image": images[start : start + 16]}, 16)["probs"]
        right += int((probabilities.argmax(axis=1) == labels[start : start + 16]).sum())
    assert right / len(images) == pytest.approx({"linear": 0.8575, "cnn32-int8": 0.9075}[variant], abs=0.003)


# --- the registry ---


def test_built_in_backends_go_by_class_and_by_name():
    assert [default_backend(accelerator) for accelerator in ("cpu", "gpu", "vpu", "fpga")] == list(BUILT_IN)
    assert backend_factory("onnxruntime-cpu") is CpuBackend
    assert set(BUILT_IN) <= set(backend_names())


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ConfigurationError, match="onnxruntime-cpu, onnxruntime-gpu, openvino"):
        backend_factory("abacus")
    with pytest.raises(ConfigurationError, match="cpu, gpu, vpu, fpga"):
        default_backend("abacus")


def test_without_pynq_an_fpga_worker_says_what_is_missing(tmp_path):
    if importlib.util.find_spec("pynq") is None:
        with pytest.raises(DeviceUnavailable, match="pynq is not installed in this environment"):
            create_backend(BackendOptions(accelerator="fpga", device="emulated", cache_folder=tmp_path)).describe()


@pytest.fixture
def plug_in(tmp_path, monkeypatch):
    """A distribution with two backends: one that loads, one whose library is missing."""
    information = tmp_path / "abacus-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: abacus\nVersion: 1\n")
    (information / "entry_points.txt").write_text("[headrace.backends]\nabacus = abacus_plug_in:build\nlame = abacus_lame:build\n")
    (tmp_path / "abacus_plug_in.py").write_text("def build(options):\n    return ('abacus', options.accelerator)\n")
    (tmp_path / "abacus_lame.py").write_text("import abacus_library_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("plug_in")
def test_a_plug_in_is_found_by_its_entry_point():
    assert "abacus" in backend_names()
    assert create_backend(BackendOptions(accelerator="fpga"), "abacus") == ("abacus", "fpga")


@pytest.mark.usefixtures("plug_in")
def test_a_plug_in_without_its_library_is_an_unavailable_device():
    with pytest.raises(DeviceUnavailable, match=r"'lame' cannot be loaded .*abacus_library_that_is_missing"):
        backend_factory("lame")


def test_text_goes_both_ways_and_bytes_that_are_not_text_are_refused():
    words = np.array([[b"a", "grün".encode()]], dtype=object)
    assert np.array_equal(to_bytes(to_text(words)), words)
    with pytest.raises(UnicodeDecodeError):
        to_text(np.array([b"\xff"], dtype=object))

"""Python tasks without their processes: how a callable is found, what it may return, and those that need no process."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import pytest

from schemas.catalog import TensorSpec, VariantSpec
from schemas.errors import BackendError, ModelRefused
from workers.backend import BackendOptions
from workers.backends import create_backend
from workers.cpu.python_tasks.backend import WithPythonTasks
from workers.cpu.python_tasks.loading import NotLoadable, is_trusted, load_function
from workers.cpu.python_tasks.returned import WrongReturn, check_specs, checked_types

X = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("no_such_package.module:f", "no_such_package.module:f cannot be imported: ModuleNotFoundError"),
        ("json:no_such_function", "AttributeError: module 'json' has no attribute 'no_such_function'"),
        ("json:__name__", "json:__name__ is a str, not a function"),
        (":f", "cannot be imported: ValueError: Empty module name"),
        ("nobody", r"'nobody' is neither `package.module:function` nor an entry point of headrace.tasks \(installed: "),
    ],
)
def test_what_cannot_be_called_says_why(call: str, message: str) -> None:
    with pytest.raises(NotLoadable, match=message):
        load_function(call)


def test_a_callable_is_found_by_its_module_and_by_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    information = tmp_path / "steps-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: steps\nVersion: 1\n")
    (information / "entry_points.txt").write_text("[headrace.tasks]\nsteps.crop = steps_module:crop\n")
    (tmp_path / "steps_module.py").write_text("def crop(inputs, parameters):\n    return inputs\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_function("steps.crop") is load_function("steps_module:crop")


def test_only_headrace_itself_is_trusted() -> None:
    assert is_trusted("graphs.combiners:combine")
    assert [call for call in ("graphs_of_mine:f", "graphs.combine", "mygraphs.x:f", "workers.x:f") if is_trusted(call)] == []


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "it returned nothing, expected a dict"),
        ([X], "it returned a list, expected a dict of tensor names to numpy arrays"),
        ({"y": [1.0]}, "it returned a list as 'y', expected a numpy array"),
        ({"y": np.float32(1)}, "it returned a float32 as 'y'"),
        ({1: X}, "a tensor called '1': names are text"),
        ({"": X}, "a tensor called ''"),
        ({"y": X.astype(np.complex64)}, "it returned 'y': numpy complex64 has no"),
        ({"y": np.zeros((1,) * 9)}, "the limit is 8 axes"),
        ({str(number): X for number in range(65)}, "65 tensors, the limit is 64"),
    ],
)
def test_only_named_arrays_are_tensors(returned: Any, message: str) -> None:
    with pytest.raises(WrongReturn, match=message):
        checked_types(returned)


def test_anything_that_has_a_datatype_may_be_returned() -> None:
    tensors = {"x": X, "text": np.array(["a", "b"]), "none": np.zeros((0, 4), np.int64), "scalar": np.array(1.0)}
    assert checked_types(tensors) is tensors
    assert checked_types({}) == {}


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({}, "it returned no 'y'; nothing came"),
        ({"z": X}, "it returned no 'y'; 'z' came"),
        ({"y": X, "z": X}, r"it returned 'z', which its outputs do not declare \('y'\)"),
        ({"y": X.astype(np.float64)}, "it returned 'y': expected datatype FP32, got FP64"),
        ({"y": X[:, :2]}, r"it returned 'y': expected shape \[-1, 3\]"),
    ],
)
def test_declared_outputs_are_kept(outputs: dict[str, Any], message: str) -> None:
    specs = (TensorSpec("y", "FP32", (-1, 3)),)
    check_specs({"y": X}, specs)
    check_specs(outputs, ())
    with pytest.raises(WrongReturn, match=message):
        check_specs(outputs, specs)


# --- trusted tasks: in this process ---


def combine(inputs: dict[str, Any], parameters: dict[str, Any]) -> Any:
    if parameters.get("odd"):
        raise LookupError("odd parameters")
    return {"sum": sum(inputs.values())} if inputs else None


@pytest.fixture
def built_in(monkeypatch: pytest.MonkeyPatch) -> VariantSpec:
    module = ModuleType("graphs.made_for_a_test")
    module.combine = combine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return VariantSpec(name="combine", call="graphs.made_for_a_test:combine", accuracy=1.0)


def test_a_built_in_task_runs_in_this_process(built_in: VariantSpec) -> None:
    backend = create_backend(BackendOptions(accelerator="cpu"))
    loaded = backend.load("k", built_in, Path(), batch_size_max=8, threads=1)
    assert loaded.call is not None
    assert loaded.call({"a": X, "b": X}, b"")["sum"].tolist() == (X + X).tolist()
    assert backend.infer("k", {"a": X}, 2)["sum"].tolist() == X.tolist()
    with pytest.raises(BackendError, match=r"graphs.made_for_a_test:combine: it raised LookupError: odd parameters"):
        loaded.call({"a": X}, msgspec.msgpack.encode({"odd": True}))
    with pytest.raises(BackendError, match=r"graphs.made_for_a_test:combine: it returned nothing"):
        loaded.call({}, b"")
    with pytest.raises(BackendError, match="its parameters cannot be read"):
        loaded.call({"a": X}, b"\xc1")
    backend.unload("k")
    with pytest.raises(KeyError, match="'k' is not loaded"):
        backend.infer("k", {"a": X}, 2)


def test_a_built_in_task_that_would_run_foreign_code_does_so_in_a_process(built_in: VariantSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which this one cannot: the module exists in this process only, and so the child says that it does not."""
    module = sys.modules["graphs.made_for_a_test"]
    monkeypatch.setattr(module, "calls_foreign_code", lambda parameters: parameters.get("combiner") == "mine:f", raising=False)
    monkeypatch.setattr(combine, "__module__", module.__name__)
    backend = create_backend(BackendOptions(accelerator="cpu"))
    call = backend.load("k", built_in, Path(), batch_size_max=8, threads=1).call
    assert call is not None
    assert call({"a": X}, msgspec.msgpack.encode({"combiner": "mean"}))["sum"].tolist() == X.tolist()
    with pytest.raises(BackendError, match=r"graphs.made_for_a_test:combine cannot be imported: ModuleNotFoundError"):
        call({"a": X}, msgspec.msgpack.encode({"combiner": "mine:f"}))


def test_the_combiner_of_ensembles_is_such_a_task() -> None:
    spec = VariantSpec(name="combine", call="graphs.combiners:combine", accuracy=1.0)
    loaded = create_backend(BackendOptions(accelerator="cpu")).load("k", spec, Path(), batch_size_max=8, threads=1)
    assert loaded.call is not None
    merged = loaded.call({"0.probs": X, "1.probs": 3 * X}, msgspec.msgpack.encode({"combiner": "mean", "members": ["a", "b"]}))
    assert merged["probs"].tolist() == (2 * X).tolist()
    with pytest.raises(BackendError, match=r"graphs.combiners:combine: "):
        loaded.call({"0.probs": X}, msgspec.msgpack.encode({"combiner": "nobody's"}))


@pytest.mark.parametrize("accelerator", ["gpu", "vpu"])
def test_only_cpu_workers_run_python_tasks(accelerator: str, built_in: VariantSpec, tmp_path: Path) -> None:
    backend = create_backend(BackendOptions(accelerator=accelerator, allow_cpu=True, device="CPU" if accelerator == "vpu" else None))
    assert not isinstance(backend, WithPythonTasks)
    with pytest.raises(ModelRefused, match=r"combine is a Python task \(graphs.made_for_a_test:combine\): only CPU workers run those"):
        backend.load("k", built_in, tmp_path, batch_size_max=8, threads=1)


def test_a_task_without_time_is_refused(built_in: VariantSpec) -> None:
    backend = create_backend(BackendOptions(accelerator="cpu"))
    with pytest.raises(ModelRefused, match="call_ms_max 0 leaves no time"):
        backend.load("k", msgspec.structs.replace(built_in, call_ms_max=0), Path(), batch_size_max=8, threads=1)

"""Python tasks in their child processes: whatever the callable does, its caller gets an answer or the reason, and the next call works."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest

from schemas.catalog import TensorSpec, VariantSpec
from schemas.errors import BackendError, ModelRefused
from workers.backend import BackendOptions, Loaded
from workers.backends import create_backend
from workers.cpu.python_tasks import process
from workers.cpu.python_tasks.backend import WithPythonTasks

MODULE = """
import ctypes, os, re, subprocess, sys, threading, time
import numpy as np

def act(inputs, parameters):
    do = parameters.get("do", "double")
    return globals()[do](inputs, parameters)

def double(inputs, parameters):
    inputs["x"] *= 2
    return {"y": inputs["x"], "pid": np.array([os.getpid()])}

def mirror(inputs, parameters):
    return inputs

def said(inputs, parameters):
    return {"text": np.array([repr(sorted(parameters.items()))])}

def raising(inputs, parameters):
    raise LookupError("no line " + "in it " * 500)

def leaving(inputs, parameters):
    sys.exit(4)

class Mute(Exception):
    def __str__(self):
        raise RuntimeError

def mute(inputs, parameters):
    raise Mute

def dying(inputs, parameters):
    print("last words", file=sys.stderr, flush=True)
    os._exit(3)

def crashing(inputs, parameters):
    ctypes.string_at(0)

def hanging(inputs, parameters):
    subprocess.Popen(["sleep", "60"])
    threading.Event().wait()

def spinning(inputs, parameters):
    return re.match(r"(a+)+$", "a" * 60 + "b")

def wrong(inputs, parameters):
    return {"y": 1}

def undeclared(inputs, parameters):
    return {"z": inputs["x"]}

def noisy(inputs, parameters):
    for number in range(3000):
        print("noise", number, "x" * 100)
    sys.stdout.flush()
    os.close(1)
    os.close(2)
    return {"y": inputs["x"]}
"""
X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tasks")
    (made / "task_of_a_test.py").write_text(MODULE)
    (made / "task_that_raises.py").write_text("raise RuntimeError('no licence')\n")
    (made / "task_that_leaves.py").write_text("import sys\nsys.exit(9)\n")
    (made / "task_that_dies.py").write_text("import os\nprint('far too early', flush=True)\nos._exit(9)\n")
    return made


@pytest.fixture
def load(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Loaded]]:
    monkeypatch.syspath_prepend(folder)
    backend = create_backend(BackendOptions(accelerator="cpu"))

    def loaded(call: str = "task_of_a_test:act", **fields: Any) -> Loaded:
        spec = VariantSpec(name="v", call=call, accuracy=1.0, **{"call_ms_max": 5_000} | fields)
        return backend.load("k", spec, Path(), batch_size_max=8, threads=1)

    yield loaded
    backend.unload("k")


def do(loaded: Loaded, what: str, inputs: dict[str, Any] | None = None, **parameters: Any) -> Any:
    assert loaded.call is not None
    return loaded.call({"x": X} if inputs is None else inputs, msgspec.msgpack.encode({"do": what, **parameters}))


def test_tensors_and_parameters_reach_the_callable_and_come_back(load: Callable[..., Loaded]) -> None:
    loaded = load()
    assert loaded.load_ms > 0
    assert loaded.memory_bytes > 1 << 20
    assert loaded.call_ms_max >= 5_000 + process.LOAD_MS_MAX
    assert do(loaded, "double")["y"].tolist() == (2 * X).tolist()
    assert X.max() == 5, "what the callable does to its inputs stays there"
    everything = {"a": np.array([[b"\xff", b""]], dtype=object), "b": np.zeros((0, 3), np.int8), "c": np.array([True]), "d": np.array(2.5)}
    everything["large"] = np.random.default_rng(0).random((500, 1000)).astype(np.float16)
    mirrored = do(loaded, "mirror", everything)
    for name, array in everything.items():
        assert (mirrored[name].dtype, mirrored[name].shape) == (array.dtype, array.shape)
        assert np.array_equal(mirrored[name], array)
    assert do(loaded, "said", top=3)["text"].tolist() == [b"[('do', 'said'), ('top', 3)]"]
    assert loaded.call is not None
    assert loaded.call({"x": X}, b"")["y"].tolist() == (2 * X).tolist()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("raising", "task_of_a_test:act: it raised LookupError: no line in it"),
        ("leaving", "task_of_a_test:act: it raised SystemExit: 4"),
        ("mute", "task_of_a_test:act: it raised Mute"),
        ("wrong", "task_of_a_test:act: it returned a int as 'y', expected a numpy array"),
        ("undeclared", "task_of_a_test:act: it returned no 'y'; 'z' came"),
        ("no_such", "task_of_a_test:act: it raised KeyError: 'no_such'"),
    ],
)
def test_what_a_callable_raises_or_returns_wrong_is_that_calls_error(load: Callable[..., Loaded], what: str, message: str) -> None:
    loaded = load(outputs=(TensorSpec("y", "FP32", (-1, 3)), TensorSpec("pid", "INT64", (1,))))
    pid = do(loaded, "double")["pid"][0]
    with pytest.raises(BackendError) as refused:
        do(loaded, what)
    assert str(refused.value).startswith(message)
    assert len(str(refused.value)) < 500
    assert do(loaded, "double")["pid"][0] == pid, "its process serves on"


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("dying", r"task_of_a_test:act: its process ended with code 3 during the call \(last words\)"),
        ("crashing", "task_of_a_test:act: its process died of SIGSEGV during the call"),
        ("hanging", "task_of_a_test:act did not return within 300 ms: its process was replaced"),
    ],
)
def test_a_process_that_dies_or_hangs_is_replaced(load: Callable[..., Loaded], what: str, message: str) -> None:
    loaded = load(call_ms_max=300)
    pid = int(do(loaded, "double")["pid"][0])
    before = time.monotonic()
    with pytest.raises(BackendError, match=message):
        do(loaded, what)
    assert time.monotonic() - before < 3.0
    assert not psutil.pid_exists(pid)
    assert do(loaded, "double")["pid"][0] != pid


def test_what_it_prints_is_in_nobodys_way(load: Callable[..., Loaded], capfd: pytest.CaptureFixture[str]) -> None:
    loaded = load()
    assert do(loaded, "noisy")["y"].tolist() == X.tolist()
    assert do(loaded, "double")["y"].tolist() == (2 * X).tolist()
    printed, _ = capfd.readouterr()
    assert printed.count("noise") <= 60


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("task_of_a_test:absent", "task_of_a_test:absent cannot be imported: AttributeError"),
        ("task_that_raises:f", "task_that_raises:f cannot be imported: RuntimeError: no licence"),
        ("task_that_leaves:f", "task_that_leaves:f cannot be imported: SystemExit: 9"),
        ("task_that_dies:f", r"task_that_dies:f: its process ended with code 9 while it was imported \(far too early\)"),
        ("nobody", "'nobody' is neither `package.module:function` nor an entry point"),
    ],
)
def test_what_cannot_be_imported_is_refused_with_the_reason(load: Callable[..., Loaded], call: str, message: str) -> None:
    with pytest.raises(ModelRefused, match=message):
        load(call)


def test_an_import_that_hangs_ends(folder: Path, load: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "task_that_waits.py").write_text("import threading\nthreading.Event().wait()\n")
    monkeypatch.setattr(process, "LOAD_MS_MAX", 500.0)
    with pytest.raises(ModelRefused, match="task_that_waits:f was not imported within 500 ms"):
        load("task_that_waits:f")


def test_a_task_that_cannot_be_imported_again_fails_its_calls_and_comes_back(folder: Path, load: Callable[..., Loaded]) -> None:
    module = folder / "task_that_goes.py"
    module.write_text(MODULE)
    loaded = load("task_that_goes:act")
    module.unlink()
    with pytest.raises(BackendError, match="ended with code 3"):
        do(loaded, "dying")
    with pytest.raises(BackendError, match="task_that_goes:act cannot be imported: ModuleNotFoundError"):
        do(loaded, "double")
    module.write_text(MODULE)
    deadline = time.monotonic() + 10
    while True:  # the process that was started in between may have looked before the file was back
        try:
            assert do(loaded, "double")["y"].tolist() == (2 * X).tolist()
            break
        except BackendError:
            assert time.monotonic() < deadline


KILLED = """
import sys, threading
from pathlib import Path
import numpy as np
import msgspec
sys.path.insert(0, sys.argv[1])
from schemas.catalog import VariantSpec
from workers.backend import BackendOptions
from workers.backends import create_backend

backend = create_backend(BackendOptions(accelerator="cpu"))
spec = VariantSpec(name="v", call="task_of_a_test:act", accuracy=1.0, call_ms_max=2000)
idle, busy = (backend.load(key, spec, Path(), batch_size_max=1, threads=1).call for key in ("idle", "busy"))
print(*(int(call({"x": np.zeros((1, 1), np.float32)}, b"")["pid"][0]) for call in (idle, busy)), flush=True)
busy({"x": np.zeros((1, 1), np.float32)}, msgspec.msgpack.encode({"do": "spinning"}))
"""


def test_processes_end_with_a_worker_that_was_killed(folder: Path) -> None:
    """An idle one finds its worker gone; one that is busy for ever, and never lets go of the interpreter, is ended by the kernel."""
    worker = subprocess.Popen([sys.executable, "-c", KILLED, str(folder)], stdout=subprocess.PIPE)
    assert worker.stdout is not None
    pids = [int(pid) for pid in worker.stdout.readline().split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while psutil.Process(pids[1]).cpu_times().user < 0.2:  # it spins by now
        assert time.monotonic() < deadline
    worker.kill()
    worker.wait()
    worker.stdout.close()
    while any(runs(pid) for pid in pids):
        assert time.monotonic() < deadline


def runs(pid: int) -> bool:
    """Nobody may be there to collect an orphan."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_processes_end_with_their_variant_and_with_their_backend(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    mine = psutil.Process(os.getpid())
    before = {child.pid for child in mine.children(recursive=True)}
    backend: Any = create_backend(BackendOptions(accelerator="cpu"))
    assert isinstance(backend, WithPythonTasks)
    spec = VariantSpec(name="v", call="task_of_a_test:act", accuracy=1.0)
    pids = [int(backend.load(key, spec, Path(), batch_size_max=1, threads=1).call({"x": X}, b"")["pid"][0]) for key in ("a", "b", "a")]
    assert len(set(pids)) == 3
    assert not psutil.pid_exists(pids[0]), "loaded over"
    assert psutil.pid_exists(pids[1])
    backend.unload("b")
    assert not psutil.pid_exists(pids[1])
    del backend
    assert not psutil.pid_exists(pids[2])
    assert {child.pid for child in mine.children(recursive=True)} == before

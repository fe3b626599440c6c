"""The contract suite of backends: what every backend must do, as checks that a third party runs over its own.

With pytest, in the plug-in's own tests:

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_contract(check, tmp_path):
        check(MyBackend(options), my_case, tmp_path)

A check raises ContractBroken with one sentence where the backend breaks the contract.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.catalog import TensorSpec, VariantSpec
from schemas.errors import ModelRefused
from schemas.names import ACCELERATORS
from workers.backend import Backend, Loaded, Tensors, batches_at_once
from workers.buckets import batch_buckets

Arrays = dict[str, NDArray[Any]]


class ContractBroken(AssertionError):
    """The backend does not do what its protocol says."""


class ContractCase(msgspec.Struct, frozen=True, kw_only=True):
    """A model that the backend can run, with what goes in and what must come out."""

    spec: VariantSpec
    """With inputs, outputs and the file's SHA-256."""
    file: Path
    inputs: Callable[[int], Arrays]
    """Rows -> a batch; rows must differ from each other, and each row must depend on its own place only."""
    expected: Callable[[Arrays], Arrays]
    tolerance: float = 1e-4
    batch_size_max: int = 6
    threads: int = 1


Check = Callable[[Backend, ContractCase, Path], None]


def describes_its_device(backend: Backend, case: ContractCase, folder: Path) -> None:
    """Accelerator class and name are known before anything is loaded, and stay the same."""
    del case, folder
    device = backend.describe()
    _require(device.accelerator in ACCELERATORS, f"describe() names accelerator {device.accelerator!r}, not one of {', '.join(ACCELERATORS)}")
    _require(bool(device.name), "describe() names no device")
    _require(device.memory_bytes_max >= 0, "describe() gives a negative memory")
    _require(backend.describe() == device, "describe() says something else the second time")


def says_how_it_is_fed(backend: Backend, case: ContractCase, folder: Path) -> None:
    """Loaded names variant, device and the batch sizes, ascending and within the limit."""
    del folder
    loaded = _load(backend, "contract/fed", case)
    _require(loaded.spec == case.spec, f"load() answers with another variant: {loaded.spec}")
    _require(bool(loaded.device), "load() names no device")
    sizes = loaded.batch_sizes
    _require(list(sizes) == sorted(set(sizes)), f"batch_sizes {sizes} do not ascend")
    _require(all(1 <= rows <= case.batch_size_max for rows in sizes), f"batch_sizes {sizes} are not all in 1..{case.batch_size_max}")
    _require(loaded.memory_bytes >= 0 and loaded.load_ms >= 0, "load() gives negative memory or time")


def answers_every_batch_size(backend: Backend, case: ContractCase, folder: Path) -> None:
    """Each size gives as many rows as went in, of the declared datatypes, with the right values."""
    del folder
    loaded = _load(backend, "contract/sizes", case)
    for rows in _sizes(loaded, case):
        inputs = case.inputs(rows)
        _require_equal(backend.infer("contract/sizes", inputs, rows), case.expected(inputs), case, f"{rows} rows")


def leaves_inputs_and_earlier_outputs_alone(backend: Backend, case: ContractCase, folder: Path) -> None:
    """Read-only inputs are fine and stay as they are; an answer is not overwritten by the next batch."""
    del folder
    rows = _sizes(_load(backend, "contract/alone", case), case)[-1]
    inputs = case.inputs(rows)
    before = {name: array.copy() for name, array in inputs.items()}
    for array in inputs.values():
        array.setflags(write=False)
    first = backend.infer("contract/alone", inputs, rows)
    reversed_inputs = {name: np.ascontiguousarray(array[::-1]) for name, array in inputs.items()}
    second = backend.infer("contract/alone", reversed_inputs, rows)
    _require(all(np.array_equal(inputs[name], array) for name, array in before.items()), "infer() changed its inputs")
    _require_equal(first, case.expected(before), case, "the first answer after a second batch")
    _require_equal(second, case.expected(reversed_inputs), case, "the second batch")


def hosts_variants_side_by_side(backend: Backend, case: ContractCase, folder: Path) -> None:
    """Two keys are two variants: one is unloaded while the other serves on."""
    del folder
    rows = _sizes(_load(backend, "contract/left", case), case)[0]
    _load(backend, "contract/right", case)
    inputs = case.inputs(rows)
    _require_equal(backend.infer("contract/left", inputs, rows), case.expected(inputs), case, "the first of two variants")
    backend.unload("contract/left")
    _require_equal(backend.infer("contract/right", inputs, rows), case.expected(inputs), case, "the variant that stays")


def unloads_and_loads_again(backend: Backend, case: ContractCase, folder: Path) -> None:
    """An unloaded variant raises, an unknown key is no error, and loading again (or over itself) works."""
    del folder
    backend.unload("contract/never-loaded")
    rows = _sizes(_load(backend, "contract/again", case), case)[0]
    inputs = case.inputs(rows)
    backend.unload("contract/again")
    backend.unload("contract/again")
    _require(_raises(lambda: backend.infer("contract/again", inputs, rows)), "infer() answers for an unloaded variant")
    for _ in range(2):
        _load(backend, "contract/again", case)
        _require_equal(backend.infer("contract/again", inputs, rows), case.expected(inputs), case, "a variant that was loaded again")


def refuses_wrong_feeds(backend: Backend, case: ContractCase, folder: Path) -> None:
    """A missing input, another datatype or another number of rows raises; the next right batch is answered."""
    del folder
    rows = _sizes(_load(backend, "contract/feeds", case), case)[0]
    right = case.inputs(rows)
    name = next(iter(right))
    other = np.zeros(right[name].shape, np.float64 if right[name].dtype != np.float64 else np.float32)
    wrong: dict[str, Arrays] = {
        "a missing input": {key: array for key, array in right.items() if key != name},
        "another datatype": right | {name: other},
        "one row too many": right | {name: np.concatenate([right[name], right[name][:1]])},
    }
    for what, inputs in wrong.items():
        _require(_raises(lambda inputs=inputs: backend.infer("contract/feeds", inputs, rows)), f"infer() takes {what}")
        _require_equal(backend.infer("contract/feeds", right, rows), case.expected(right), case, f"the batch after {what}")


def refuses_bad_models(backend: Backend, case: ContractCase, folder: Path) -> None:
    """A damaged file, or one that differs from the catalog, is ModelRefused with the reason, and what was loaded serves on."""
    rows = _sizes(_load(backend, "contract/good", case), case)[0]
    damaged = folder / "damaged.onnx"
    damaged.write_bytes(case.file.read_bytes()[:-7] + b"garbage")
    unverified = msgspec.structs.replace(case.spec, sha256="")
    truncated = folder / "truncated.onnx"
    truncated.write_bytes(case.file.read_bytes()[: case.file.stat().st_size // 2])
    first = case.spec.inputs[0]
    renamed = (TensorSpec("contract_no_such_tensor", first.datatype, first.shape), *case.spec.inputs[1:])
    retyped = (TensorSpec(first.name, "INT16" if first.datatype != "INT16" else "FP32", first.shape), *case.spec.inputs[1:])
    attempts: list[tuple[str, VariantSpec, Path, str]] = [
        ("another file than its SHA-256 says", case.spec, damaged, ""),
        ("half a model", unverified, truncated, ""),
        ("a missing file", case.spec, folder / "missing.onnx", ""),
        ("an input that the model does not have", msgspec.structs.replace(case.spec, inputs=renamed), case.file, "contract_no_such_tensor"),
        ("an input of another datatype", msgspec.structs.replace(case.spec, inputs=retyped), case.file, first.name),
    ]
    for what, spec, file, named in attempts:
        message = _refusal(backend, spec, file, case)
        _require(message is not None, f"load() takes {what}")
        _require(named in (message or ""), f"load() refuses {what} without naming {named!r}: {message}")
    inputs = case.inputs(rows)
    _require_equal(backend.infer("contract/good", inputs, rows), case.expected(inputs), case, "a loaded variant after refusals")


def works_from_any_one_thread(backend: Backend, case: ContractCase, folder: Path) -> None:
    """Loaded on one thread and run on others, one call at a time."""
    del folder
    rows = _sizes(_load(backend, "contract/thread", case), case)[0]
    inputs = case.inputs(rows)
    for _ in range(2):
        with ThreadPoolExecutor(1) as pool:
            _require_equal(pool.submit(backend.infer, "contract/thread", inputs, rows).result(), case.expected(inputs), case, "another thread")


def takes_as_many_batches_at_once_as_it_says(backend: Backend, case: ContractCase, folder: Path) -> None:
    """Threads that compute two variants in turn each get their own rows back, and may ask how the device is."""
    del folder
    keys = ("contract/one", "contract/other")
    *_, loaded = [_load(backend, key, case) for key in keys]
    sizes = _sizes(loaded, case)
    threads = batches_at_once(backend)

    def compute(thread: int) -> None:
        for turn in range(4 * len(sizes)):
            rows = sizes[(turn + thread) % len(sizes)]
            # Rolled by another number of rows in each thread, so that nobody's answer is another's.
            inputs = {name: np.ascontiguousarray(np.roll(array, thread + turn, axis=0)) for name, array in case.inputs(rows).items()}
            answered = backend.infer(keys[(turn + thread) % len(keys)], inputs, rows)
            _require_equal(answered, case.expected(inputs), case, f"turn {turn} of thread {thread}, of {threads} at once")
        backend.describe()

    with ThreadPoolExecutor(threads) as pool:
        for came in [pool.submit(compute, thread) for thread in range(threads)]:
            came.result()


CHECKS: Sequence[Check] = (
    describes_its_device,
    says_how_it_is_fed,
    answers_every_batch_size,
    leaves_inputs_and_earlier_outputs_alone,
    hosts_variants_side_by_side,
    unloads_and_loads_again,
    refuses_wrong_feeds,
    refuses_bad_models,
    works_from_any_one_thread,
    takes_as_many_batches_at_once_as_it_says,
)


def _load(backend: Backend, key: str, case: ContractCase) -> Loaded:
    return backend.load(key, case.spec, case.file, batch_size_max=case.batch_size_max, threads=case.threads)


def _sizes(loaded: Loaded, case: ContractCase) -> tuple[int, ...]:
    return loaded.batch_sizes or (*batch_buckets(case.batch_size_max)[:-1], case.batch_size_max - 1, case.batch_size_max)


def _refusal(backend: Backend, spec: VariantSpec, file: Path, case: ContractCase) -> str | None:
    try:
        backend.load("contract/bad", spec, file, batch_size_max=case.batch_size_max, threads=case.threads)
    except ModelRefused as refused:
        return str(refused)
    return None


def _raises(call: Callable[[], object]) -> bool:
    try:
        call()
    except Exception:  # the protocol lets a runtime raise what it likes
        return True
    return False


def _require(condition: bool, message: str) -> None:  # noqa: FBT001 - the condition is the point
    if not condition:
        raise ContractBroken(message)


def _require_equal(answered: Tensors, expected: Arrays, case: ContractCase, what: str) -> None:
    _require(set(answered) == set(expected), f"{what}: outputs {sorted(answered)}, expected {sorted(expected)}")
    for name, right in expected.items():
        array = answered[name]
        _require(array.dtype == right.dtype, f"{what}: output {name!r} is {array.dtype}, expected {right.dtype}")
        _require(array.shape == right.shape, f"{what}: output {name!r} has shape {array.shape}, expected {right.shape}")
        close = np.allclose(array, right, rtol=case.tolerance, atol=case.tolerance) if right.dtype.kind == "f" else np.array_equal(array, right)
        _require(bool(close), f"{what}: output {name!r} has wrong values")

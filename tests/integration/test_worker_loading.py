"""A worker that loads a large model: the variants that it serves go on meanwhile."""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from worker_stage import ScriptedBackend, Stage, image_body, serve, variant

from broker.memory import MemoryLog
from schemas.catalog import VariantSpec
from schemas.plan import PLAN_KEY, Binding, Plan, encode_plan
from workers.backend import Backend, BackendOptions, Device, Loaded, Tensors

WIDTH, LAYERS = 10, 6_000


class Watched:
    """The CPU backend itself; notes when batches and loads begin and end, and on which thread."""

    loads_beside = True

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.loads: dict[str, tuple[float, float]] = {}
        self.batches: list[tuple[str, float, float, str]] = []

    def describe(self) -> Device:
        return self._backend.describe()

    def load(self, key: str, spec: VariantSpec, file: Path, *, batch_size_max: int, threads: int) -> Loaded:
        began_s = time.monotonic()
        loaded = self._backend.load(key, spec, file, batch_size_max=batch_size_max, threads=threads)
        self.loads[key] = began_s, time.monotonic()
        return loaded

    def infer(self, key: str, inputs: Tensors, rows: int) -> Tensors:
        began_s = time.monotonic()
        outputs = self._backend.infer(key, inputs, rows)
        self.batches.append((key, began_s, time.monotonic(), threading.current_thread().name))
        return outputs

    def unload(self, key: str) -> None:
        self._backend.unload(key)


def model(path: Path, layers: int) -> VariantSpec:
    """So many small layers one after the other: what takes time is the runtime's optimising of the graph."""
    weights = np.eye(WIDTH, dtype=np.float32)
    nodes = [
        helper.make_node("Cast", ["image"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["cast"], ["flat"]),
        helper.make_node("MatMul", ["flat", "first"], ["x0"]),
    ]
    for number in range(layers):
        nodes.append(helper.make_node("MatMul", [f"x{number}", "eye"], [f"m{number}"]))
        nodes.append(helper.make_node("Relu", [f"m{number}"], [f"x{number + 1}"]))
    nodes.append(helper.make_node("Softmax", [f"x{layers}"], ["probs"]))
    first = np.full((784, WIDTH), 1e-3, np.float32)
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["rows", 1, 28, 28])],
        [helper.make_tensor_value_info("probs", TensorProto.FLOAT, ["rows", 10])],
        [numpy_helper.from_array(weights, "eye"), numpy_helper.from_array(first, "first")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return variant(path.stem, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


async def test_others_are_served_while_a_large_model_loads_and_warms(tmp_path: Path, prefix: str) -> None:
    backends = pytest.importorskip("workers.cpu.backend")
    small, large = model(tmp_path / "small.onnx", 2), model(tmp_path / "large.onnx", LAYERS)
    paths = {spec.sha256: tmp_path / spec.file for spec in (small, large)}
    backend = Watched(backends.CpuBackend(BackendOptions(accelerator="cpu")))
    log = MemoryLog()
    body = image_body(np.zeros((1, 1, 28, 28), np.uint8), raw=True)
    async with Stage(log, prefix, backend, resolve=paths.__getitem__) as stage:
        await stage.catalog(small, large)
        await stage.plan(1, "small")
        await stage.ready("small")
        await stage.plan(2, "small", "large")
        sent: list[str] = []
        while stage.states().get("large") != "ready":
            sent.append(f"r{len(sent)}")
            await stage.send(stage.order(sent[-1], "small", body=body, raw=True))
            await stage.answered(sent[-1])
        assert {answer.outcome for answer in await stage.answered(*sent)} == {"completed"}
    await log.close()
    began_s, ended_s = backend.loads["fashion/large"]
    during = [(at_s, thread) for key, at_s, to_s, thread in backend.batches if key == "fashion/small" and began_s < at_s and to_s < ended_s]
    assert ended_s - began_s > 0.1, "too small a model to show anything"
    assert len(during) >= 10
    assert {thread for _, thread in during} == {"device-w1"}


async def test_a_change_of_threads_loses_no_order(prefix: str) -> None:
    backend = ScriptedBackend()
    log = MemoryLog()
    async with Stage(log, prefix, backend) as stage:
        await serve(stage, "a")
        sent: list[str] = []
        epoch = 1
        for threads in (2, 3, 4):
            epoch += 1
            binding = Binding(worker="w1", accelerator="cpu", lane=0, variants=("fashion/a",), threads=threads)
            loads = backend.events.count("load a")
            await stage.write(stage.names.plan, 0, (PLAN_KEY, encode_plan(Plan(epoch=epoch, bindings=(binding,))), ()))
            while backend.events.count("load a") == loads or len(sent) % 40:
                sent += [f"t{threads}-{len(sent)}", f"t{threads}-{len(sent) + 1}"]
                await stage.send(*[stage.order(name, "a") for name in sent[-2:]])
                await stage.answered(sent[-2])  # the other one is still on its way
        answers = await stage.answered(*sent)
        assert {answer.outcome for answer in answers} == {"completed"}
        assert all(len(stage.answers[name]) == 1 for name in sent)
        assert not stage.returned
        assert all(report.variants["fashion/a"].state == "ready" for report in stage.reports if report.epoch >= 1 and report.state == "ready")
    assert backend.threads[-3:] == [2, 3, 4]
    await log.close()

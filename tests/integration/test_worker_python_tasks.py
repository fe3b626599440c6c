"""A CPU worker with Python tasks beside its models: parameters in, tensors out, and faults that stay with their request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from worker_stage import ScriptedBackend, Stage, committed, python_task, variant

from broker.memory import MemoryLog
from schemas.catalog import TensorSpec
from schemas.errors import ModelRefused
from schemas.tensors import decode_output, encode_tensor
from schemas.work import NextStage, order_name
from workers.cpu.python_tasks.backend import WithPythonTasks

MODULE = """
import os, threading
import numpy as np

def crop(inputs, parameters):
    do = parameters.get("do")
    if do == "raise":
        raise LookupError("no box")
    if do == "die":
        os._exit(3)
    if do == "wait":
        threading.Event().wait(0.15)
    if do == "hang":
        threading.Event().wait()
    rows, factor = inputs["boxes"].shape[0], parameters.get("factor", 1)
    return {"crops": np.full((rows, 1, 28, 28), inputs["level"][0] * factor, np.uint8), "count": np.array([rows])}
"""
LEVEL = TensorSpec("level", "INT64", (1,))
BOXES = TensorSpec("boxes", "FP32", (-1, 4))
CROPS = (TensorSpec("crops", "UINT8", (-1, 1, 28, 28)), TensorSpec("count", "INT64", (1,)))


def no_file(sha256: str) -> Path:
    """A Python task has no model file, and nobody may ask for one."""
    if not sha256:
        raise ModelRefused("asked for the file of a Python task")
    return Path("unused")


@pytest.fixture
async def stage(tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    (tmp_path / "crop_of_a_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    log = MemoryLog()
    async with Stage(log, prefix, WithPythonTasks(ScriptedBackend()), resolve=no_file, hang_ms_min=200.0) as made:
        crop = python_task("crop", "crop_of_a_test:crop", inputs=(LEVEL, BOXES), outputs=CROPS, call_ms_max=400)
        await made.catalog(variant("model"), crop, python_task("absent", "crop_of_a_test:absent"))
        await made.plan(1, "model", "crop", "absent")
        await made.until(lambda: made.states() == {"model": "ready", "crop": "ready", "absent": "failed"})
        yield made
    await log.close()


def boxes(rows: int) -> dict[str, np.ndarray]:
    return {"level": np.array([5]), "boxes": np.zeros((rows, 4), np.float32)}


def parameters(**fields: object) -> bytes:
    return msgspec.msgpack.encode(fields)


def classify(variant: str, deadline_ms: float) -> NextStage:
    return NextStage("classify", f"fashion/{variant}", 0.93, int(deadline_ms), {"image": "crops"}, model=True, path_accuracy=0.84)


async def test_a_worker_goes_on_with_the_next_stage_where_it_stands(stage: Stage) -> None:
    later_ms = time.time() * 1e3 + 10_000
    await stage.send(
        stage.part("r", "crop", instance="crop", tensors=boxes(3), outputs=("crops",), then=(classify("model", later_ms),)),
        stage.part("broken", "crop", instance="crop", tensors=boxes(1), parameters=parameters(do="raise"), then=(classify("model", later_ms),)),
        stage.part("unhosted", "crop", instance="crop", tensors=boxes(1), then=(classify("absent", later_ms),)),
    )
    names = [order_name(request_id, "crop") for request_id in ("r", "broken", "unhosted")]
    (crop, crops), (broken, _), (unhosted, _) = await stage.stage_results(*names)
    assert (crop.fused, crops["crops"].shape) == (True, (3, 1, 28, 28))
    assert (broken.fused, broken.error_code) == (False, "backend_error")
    assert (unhosted.fused, unhosted.error_code) == (False, "")
    (answer,) = await stage.answered("r")
    assert (answer.outcome, answer.accuracy, [step.stage for step in answer.path]) == ("completed", 0.84, ["crop", "classify"])
    assert answer.path[1].batch_size == 3
    assert 0.0 <= answer.path[1].queued_ms < answer.finished_ms - answer.received_ms + 1.0
    await committed(stage, 3)
    assert set(stage.answers) == {"r"}


async def test_a_next_stage_that_would_be_late_is_handed_back(stage: Stage) -> None:
    passed_ms = time.time() * 1e3 + 1_000
    await stage.send(
        stage.part("slow", "crop", instance="crop", tensors=boxes(1), parameters=parameters(do="wait"), then=(classify("model", passed_ms - 900),))
    )
    ((slow, _),) = await stage.stage_results(order_name("slow", "crop"))
    assert slow.fused
    await stage.until(lambda: stage.returned or "slow" in stage.answers)
    assert [answer.outcome for answer in stage.answers.get("slow", [])] in ([], ["expired"])


async def test_a_task_is_a_stage_like_any_other(stage: Stage) -> None:
    assert "crop_of_a_test:absent cannot be imported: AttributeError" in stage.report.variants["fashion/absent"].reason
    shown = stage.report.variants["fashion/crop"]
    assert (shown.latency[1].p50_ms, shown.latency[1].p95_ms, set(shown.latency)) == (1.0, 3.0, {1})
    assert shown.memory_bytes > 0
    asked = msgspec.json.encode({"inputs": [encode_tensor("grey", np.array([9]), raw=False)]})
    await stage.send(
        stage.part("r", "crop", instance="crop", tensors=boxes(3), parameters=parameters(factor=2), rows=3),
        stage.part("r", "crop", instance="none", tensors=boxes(0)),
        stage.part("mixed", "crop", instance="crop", tensors={"boxes": boxes(2)["boxes"]}, body=asked, request_inputs={"level": "grey"}),
        stage.part("last", "crop", instance="crop", final=True, tensors=boxes(1), outputs=("count",)),
    )
    names = [order_name("r", "crop"), order_name("r", "none"), order_name("mixed", "crop")]
    (crop, three), (_, none), (_, mixed) = await stage.stage_results(*names)
    assert (three["crops"].shape, three["crops"].max(), three["count"].tolist()) == ((3, 1, 28, 28), 10, [3])
    assert (crop.accuracy, crop.device, crop.batch_size, crop.variant) == (0.9, "scripted", 1, "fashion/crop")
    assert none["crops"].shape == (0, 1, 28, 28)
    assert mixed["crops"].max() == 9
    (last,) = await stage.answered("last")
    assert [(output.name, decode_output(output).tolist()) for output in last.outputs] == [("count", [1])]
    assert stage.worker._serving.policy.shown()["fashion/crop"].computed_rows == 4


async def test_faults_of_a_task_stay_with_their_request(stage: Stage) -> None:
    await stage.send(
        *(stage.part(what, "crop", tensors=boxes(1), parameters=parameters(do=what)) for what in ("raise", "die", "hang")),
        stage.part("misfit", "crop", tensors=boxes(1) | {"boxes": np.zeros((1, 3), np.float32)}),
        stage.part("odd", "crop", tensors=boxes(1), parameters=b"\xc1"),
        stage.part("good", "crop", tensors=boxes(1)),
        stage.part("model", "model", tensors={"image": np.zeros((1, 1, 28, 28), np.uint8)}),
    )
    names = [order_name(request_id, "classify") for request_id in ("raise", "die", "hang", "misfit", "odd", "good", "model")]
    records = [record for record, _ in await stage.stage_results(*names)]
    assert [record.error_code for record in records] == ["backend_error"] * 5 + ["", ""]
    for record, message in zip(
        records,
        (
            "crop_of_a_test:crop: it raised LookupError: no box",
            "crop_of_a_test:crop: its process ended with code 3",
            "crop_of_a_test:crop did not return within 400 ms",
            "tensor 'boxes' (datatype FP32, shape [1, 3]): expected shape [-1, 4]",
            "crop_of_a_test:crop: what it was given cannot be read",
        ),
        strict=False,
    ):
        assert message in record.error_message
    assert not stage.running.done(), "the worker lives, although a call took longer than hang_ms_min"
    await committed(stage, 7)


async def test_an_endpoint_of_one_python_task_gets_the_requests_own_parameters(stage: Stage) -> None:
    tensors = [encode_tensor(name, array, raw=True) for name, array in boxes(1).items()]
    body = msgspec.msgpack.encode({"inputs": tensors, "parameters": {"factor": 3}, "outputs": [{"name": "count"}]})
    await stage.send(stage.order("one", "crop", body=body, raw=True))
    (one,) = await stage.answered("one")
    assert [(output.name, decode_output(output).tolist()) for output in one.outputs] == [("count", [1])]


async def test_a_slow_task_is_found_out_within_a_few_calls(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "slow_of_a_test.py").write_text("import time\ndef f(inputs, parameters):\n    time.sleep(0.1)\n    return {}\n")
    await stage.catalog(variant("model"), python_task("slow", "slow_of_a_test:f"))
    await stage.plan(2, "model", "slow")
    await stage.ready("slow")
    for number in range(4):
        await stage.send(stage.part(f"r{number}", "slow", tensors=boxes(1)))
        await stage.stage_results(order_name(f"r{number}", "classify"))
    assert stage.worker._serving.policy.shown()["fashion/slow"].latency[1].p50_ms > 70


async def test_the_processes_of_tasks_end_with_the_worker(stage: Stage) -> None:
    tasks = stage.worker._backend._tasks
    process = tasks["fashion/crop"]._process._process
    assert process.poll() is None
    stage.worker.stop()
    await asyncio.wait_for(stage.running, 10)
    await stage.until_read(lambda: process.poll() is not None)

"""A model cut into three parts that run on workers of different classes answers what the whole model answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from foreign import ForeignClient, image_tensor
from promises import check_promises, load_images
from running_stack import EXAMPLE, RunningStack

MODEL = EXAMPLE / "models" / "wide.onnx"
CLASSES = ("cpu", "vpu", "cpu")
"""Where each part runs."""
WITHIN_S = 60.0
pytestmark = pytest.mark.timeout(180)


class Parts:
    """The split model, and the stack that serves it."""

    def __init__(self, stack: RunningStack) -> None:
        self.stack = stack
        options = ("--parts", "3", "--accuracy", "0.9338", "--seconds", "0.05", "--output", "parts")
        self.report: dict[str, Any] = stack.headrace("split-model", str(MODEL), *options)
        self.catalog = stack.folder / "parts" / "split.yaml"

    def bind(self) -> str:
        """Each part to its class alone."""
        tasks = self.catalog.read_text().split("accelerators: [cpu, gpu, vpu]")
        assert len(tasks) == len(CLASSES) + 1
        text = tasks[0] + "".join(f"accelerators: [{name}]{task}" for name, task in zip(CLASSES, tasks[1:], strict=True))
        file = self.catalog.with_name("bound.yaml")
        file.write_text(text)
        return str(file)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, kafka_address: str, redis_url: str, module_prefix: str) -> Iterator[Parts]:
    pytest.importorskip("openvino")
    made = Parts(RunningStack(tmp_path_factory.mktemp("stack"), module_prefix))
    servers = ("--kafka", kafka_address, "--redis", redis_url)
    with made.stack.up(*servers, "--workers", "cpu=1,vpu=1", "--vpu-device", "CPU", made.bind()):
        yield made


def test_the_parts_are_about_equal_and_together_the_whole(parts: Parts) -> None:
    report = parts.report
    assert (report["endpoint"], len(report["parts"]), len(report["cuts"])) == ("wide", 3, 2)
    assert report["difference"] <= 1e-5
    # A third each where nothing else runs; what else runs meanwhile is measured, too.
    assert all(part["share"] < 0.9 for part in report["parts"]), report["parts"]
    for number, part in enumerate(report["parts"], start=1):
        assert (Path(parts.stack.folder) / "parts" / f"part-{number}.onnx").stat().st_size == part["size_bytes"]


def test_parts_on_two_classes_answer_what_the_whole_model_answers(parts: Parts, client: ForeignClient) -> None:
    images = load_images()[0]
    batches = {f"split-{number}": images[number * 3 : number * 3 + 1 + number % 3] for number in range(40)}
    for request_id, batch in batches.items():
        body = {"endpoint": "wide", "min_accuracy": 0.93, "timeout_ms": 30_000, "inputs": [image_tensor(batch)]}
        client.publish(request_id, json.dumps(body).encode())
    client.flush()
    kept = check_promises(client, dict.fromkeys(batches, 0.93), within_s=WITHIN_S, graph=True)
    assert kept.outcomes == {("completed", ""): len(batches)}, kept.outcomes
    whole = onnxruntime.InferenceSession(MODEL.read_bytes(), providers=["CPUExecutionProvider"])
    for request_id, batch in batches.items():
        answer = kept.first[request_id]
        (output,) = answer["outputs"]
        assert (output["name"], output["shape"]) == ("probs", [len(batch), 10])
        (expected,) = whole.run(["probs"], {"image": batch})
        np.testing.assert_allclose(np.array(output["data"]).reshape(output["shape"]), np.asarray(expected), rtol=0, atol=1e-5)
        assert [(step["stage"], step["accelerator"]) for step in answer["path"]] == [(f"part{n}", name) for n, name in enumerate(CLASSES, start=1)]
        assert answer["accuracy"] == 0.9338
    devices = {step["accelerator"]: step["device"] for answer in kept.first.values() for step in answer["path"]}
    assert devices["cpu"] != devices["vpu"], devices

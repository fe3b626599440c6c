"""Requests through a graph that has every kind of node, while dispatcher and workers are killed with -9 in turn: one outcome each, nothing left."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from foreign import ForeignClient, image_tensor
from killing import killing
from promises import check_promises, load_images
from running_stack import EXAMPLE, RunningStack

REQUESTS = 2_000
RATE_RPS = 80.0
KILL_EVERY_S = 6.0
TIMEOUTS_MS = (1_000, 2_000, 4_000)
FLOORS = (0.0, 0.8)
FILES = (str(EXAMPLE / "task.yaml"), str(EXAMPLE / "graphs" / "everything.yaml"))


@pytest.fixture
def stack(tmp_path: Path, kafka_address: str, redis_url: str, prefix: str) -> Iterator[RunningStack]:
    made = RunningStack(tmp_path, prefix, {"PYTHONPATH": str(EXAMPLE)})
    with made.up("--kafka", kafka_address, "--redis", redis_url, "--workers", "cpu=2", *FILES):
        yield made


@pytest.mark.timeout(300)
def test_every_request_on_a_graph_has_one_outcome_while_roles_are_killed(
    stack: RunningStack, kafka_address: str, redis_url: str, prefix: str
) -> None:
    client = ForeignClient(kafka_address, redis_url, prefix)
    images, _ = load_images()
    tensors = [json.dumps(image_tensor(images[at : at + 1 + at % 2])) for at in range(50)]
    chance = random.Random(7)
    floors: dict[str, float] = {}
    for number in killing(stack, ("dispatcher", "worker"), count=REQUESTS, rate_rps=RATE_RPS, every_s=KILL_EVERY_S, chance=chance):
        floor, timeout_ms = chance.choice(FLOORS), chance.choice(TIMEOUTS_MS)
        request_id = f"graph-{number}"
        floors[request_id] = floor
        fields = {"endpoint": "fashion-everything", "min_accuracy": floor, "timeout_ms": timeout_ms, "tenant": f"tenant-{number % 7}"}
        client.publish(request_id, f'{json.dumps(fields)[:-1]}, "inputs":[{tensors[number % 50]}]}}'.encode())
    client.flush()
    assert not client.unsent
    kept = check_promises(client, floors, within_s=60, graph=True)
    assert len(kept.completed) > REQUESTS * 0.2, kept.outcomes
    stages = {step["stage"].partition("#")[0] for answer in kept.completed.values() for step in answer["path"]}
    assert {"contrast", "quick", "answer"} <= stages, stages
    assert len(client.topics("stage.")) > 8
    deadline_s = time.monotonic() + 30.0
    while (lag := client.stage_lag()) and time.monotonic() < deadline_s:
        time.sleep(0.5)
    assert not lag
    while (live := stack.metric("dispatcher-1", "headrace_requests_live")) and time.monotonic() < deadline_s:
        time.sleep(0.5)
    assert live == 0

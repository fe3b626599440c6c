"""What a dispatcher on a genuine Kafka was told and decided, recorded while a worker is killed, is decided again in the same way by a replay."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import pytest
from foreign import ForeignClient, image_tensor
from promises import FLOORS, check_promises, load_images
from running_stack import FILES, RunningStack, until

from deploy.replaying import replay_file

REQUESTS = 600
RATE_RPS = 150.0
TIMEOUTS_MS = (60, 150, 300, 2_000)


@pytest.mark.timeout(120)
def test_a_live_run_replays_identically(tmp_path: Path, kafka_address: str, redis_url: str, prefix: str) -> None:
    recording = tmp_path / "decisions.recording"
    stack = RunningStack(tmp_path, prefix, {"HEADRACE_RECORD": str(recording)})
    with stack.up("--kafka", kafka_address, "--redis", redis_url, "--workers", "cpu=2", *FILES):
        client = ForeignClient(kafka_address, redis_url, prefix)
        floors = publish(client, stack)
        kept = check_promises(client, floors, within_s=30)
        assert len(kept.completed) > REQUESTS * 0.2, kept.outcomes
        until(lambda: all(stack.is_ready(name) for name in stack.names("worker")), "the worker that was killed is back")
    told = replay_file(recording)
    assert told.differing == 0, told.differences[:3]
    assert told.requests == REQUESTS
    assert told.sends >= len(kept.completed)
    assert told.answers > 0, "some were refused, or expired"
    assert {"RecordsRead", "TelemetryObserved", "CatalogObserved", "PlanObserved", "ShardAssigned", "Ticked", "commits"} <= set(told.kinds)


def publish(client: ForeignClient, stack: RunningStack) -> dict[str, float]:
    """Requests at a steady rate; half way a worker is killed. Their floors."""
    images, _ = load_images()
    tensors = [json.dumps(image_tensor(image[None])) for image in images[:50]]
    chance, floors = random.Random(11), dict[str, float]()
    started_s = time.monotonic()
    for number in range(REQUESTS):
        while (left_s := started_s + number / RATE_RPS - time.monotonic()) > 0:
            time.sleep(min(left_s, 0.002))
        if number == REQUESTS // 2:
            stack.signal(stack.names("worker")[0], signal.SIGKILL)
        request_id = f"replay-{number}"
        floors[request_id] = chance.choice(FLOORS)
        timeout_ms, tensor = chance.choice(TIMEOUTS_MS), tensors[number % len(tensors)]
        body = f'{{"endpoint":"fashion","min_accuracy":{floors[request_id]},"timeout_ms":{timeout_ms},"inputs":[{tensor}]}}'
        client.publish(request_id, body.encode())
    client.flush()
    assert not client.unsent
    return floors

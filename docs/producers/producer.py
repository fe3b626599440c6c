# ruff: noqa: T201
"""Publish labelled images with confluent-kafka as msgpack, and poll the answers from Redis or Valkey.

pip install confluent-kafka redis msgspec numpy
python docs/producers/producer.py HOST:PORT redis://HOST:PORT [PREFIX]
"""

from __future__ import annotations

import sys
import time
import uuid
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import redis
from confluent_kafka import Producer

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "fashion" / "test-2000.npz"
REQUESTS = 200
WAIT_S = 5.0


def main(kafka: str, redis_url: str, prefix: str = "headrace") -> None:
    """Send, collect, and compare with the labels."""
    with np.load(EXAMPLE) as arrays:
        images, labels = arrays["images"][:REQUESTS], arrays["labels"][:REQUESTS]
    producer = Producer({"bootstrap.servers": kafka, "enable.idempotence": True})
    ids = [uuid.uuid4().hex for _ in images]
    for request_id, image in zip(ids, images, strict=True):
        # Raw little-endian bytes in row-major order: nothing is converted to text on the way.
        tensor = {"name": "image", "datatype": "UINT8", "shape": [1, *image.shape], "data": image.tobytes()}
        headers = {"content-type": "application/msgpack", "endpoint": "fashion", "min_accuracy": "0.9", "timeout_ms": "1000"}
        producer.produce(f"{prefix}.requests", key=request_id, value=msgspec.msgpack.encode({"inputs": [tensor]}), headers=headers)
        producer.poll(0)
    producer.flush()
    answers = collect(redis.Redis.from_url(redis_url), prefix, ids)
    right = 0
    accuracies: list[float] = []
    others: Counter[str] = Counter()
    for request_id, label in zip(ids, labels, strict=True):
        answer = answers.get(request_id)
        if answer is None or answer["outcome"] != "completed":
            others["no answer" if answer is None else f"{answer['outcome']}: {answer['error']['code']}"] += 1
            continue
        probabilities = np.frombuffer(answer["outputs"][0]["data"], "<f4")
        right += int(probabilities.argmax() == label)
        accuracies.append(answer["accuracy"])
    if accuracies:
        print(
            f"{len(accuracies)} of {len(ids)} completed, lowest accuracy {min(accuracies):.4f}, {right / len(accuracies):.3f} of the labels are right"
        )
    for what, count in others.items():
        print(f"{count} {what}")


def collect(store: redis.Redis, prefix: str, ids: list[str]) -> dict[str, dict]:
    """The answers by id, as far as they came in time."""
    give_up = time.monotonic() + WAIT_S
    answers: dict[str, dict] = {}
    while len(answers) < len(ids) and time.monotonic() < give_up:
        missing = [request_id for request_id in ids if request_id not in answers]
        values = store.mget([f"{prefix}:response:{request_id}" for request_id in missing])
        answers |= {request_id: msgspec.msgpack.decode(value) for request_id, value in zip(missing, values, strict=True) if value is not None}
        time.sleep(0.01)
    return answers


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A detector over the tap topics of genuine Kafka: what it reads, what it tells, and that it goes on with the latest where it fell behind."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import headrace_mlops.events as events
import msgspec
import numpy as np
import pytest
from headrace_mlops.events import Observed, follow
from headrace_mlops.watching import watch

from broker.kafka import KafkaLog
from broker.tap_sinks.parquet_layout import LAYOUT
from deploy.learned import read_alerts
from schemas.alerts import Alert
from schemas.cloud_event import CloudEvent, kafka_binary
from schemas.names import Names
from schemas.tensors import encode_tensor
from schemas.terminal import MSGPACK_TYPE, OutputTensor, Terminal, encode_terminal

ROOT = Path(__file__).resolve().parents[2]


def exchange(number: int, image: Any, endpoint: str = "watched") -> list[tuple[str, Any]]:
    """The two events of one request, by topic."""
    key = f"r{number}"
    said: dict[str, Any] = {"id": key, "endpoint": endpoint, "shadow": False, "variant": "t/v"}
    body = msgspec.msgpack.encode({"inputs": [encode_tensor("image", image, raw=True)]})
    outputs = [OutputTensor("probs", [1, 2], "FP32", np.array([0.9, 0.1], "<f4").tobytes())]
    fields: dict[str, Any] = {"outcome": "completed", "received_ms": 0, "finished_ms": 1, "attempts": 1, "epoch": 1, "version": 1, "path": []}
    terminal = encode_terminal(Terminal(id=key, endpoint=endpoint, outputs=outputs, **fields), MSGPACK_TYPE)
    return [
        ("requests", kafka_binary(CloudEvent(key.encode(), said, body, MSGPACK_TYPE))),
        ("responses", kafka_binary(CloudEvent(key.encode(), said, terminal, MSGPACK_TYPE))),
    ]


@pytest.fixture
async def log(kafka_address: str) -> AsyncIterator[KafkaLog]:
    made = KafkaLog(kafka_address)
    yield made
    await made.close()


async def write(log: KafkaLog, names: Names, numbers: range, *, endpoint: str = "watched") -> None:
    writer = log.writer("test")
    await writer.start()
    parts: dict[str, list[Any]] = {"requests": [], "responses": []}
    for number in numbers:
        for topic, message in exchange(number, np.full((1, 1, 4, 4), number % 250, np.uint8), endpoint):
            parts[topic].append(message)
    await writer.write(names.tap_responses, 0, parts["responses"])
    await writer.write(names.tap_requests, 1, parts["requests"])
    await writer.close()


class EveryTenth:
    """Tells something of every tenth request."""

    endpoint = "watched"

    def observe(self, observed: Observed) -> Sequence[Alert]:
        number = int(observed.id[1:])
        return [Alert(source="test", kind="tenth", message=observed.id, endpoint="watched", at_ms=1)] if number % 10 == 0 else []


async def test_what_was_tapped_is_watched_and_alerts_are_written(log: KafkaLog, kafka_address: str, prefix: str, eventually: Any) -> None:
    names = Names(prefix)
    await log.create_topics(names.topics(shards=2))
    await write(log, names, range(30))
    await write(log, names, range(100, 105), endpoint="other")
    told: list[Alert] = []
    task = asyncio.create_task(watch(log, kafka_address, names, EveryTenth(), told=told.append, beginning=True))
    await eventually(lambda: len(told) == 3)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert sorted(alert.message for alert in await read_alerts(log, names)) == ["r0", "r10", "r20"]


async def test_a_detector_that_falls_behind_says_so_and_goes_on(
    log: KafkaLog, kafka_address: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "BEHIND_MAX", 20)
    monkeypatch.setattr(events, "BATCH", 5)
    names = Names(prefix)
    await log.create_topics(names.topics(shards=2))
    following = follow(log, kafka_address, names, "watched")
    assert await anext(following) == []
    await write(log, names, range(60))
    skipped = 0
    async with asyncio.timeout(20):
        async for batch in following:
            if isinstance(batch, int):
                skipped = batch
                break
    assert skipped > 20
    await following.aclose()  # pyright: ignore[reportAttributeAccessIssue]


def test_evidentlys_page_shows_the_columns_that_drifted(tmp_path: Path, mlops_python: Path) -> None:
    """In the environment of its own."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    random = np.random.default_rng(1)
    rows = []
    for number in range(600):
        image = random.integers(0, 120 if number < 400 else 250, (1, 1, 8, 8), np.uint8)
        tensors = {"inputs": ("image", "UINT8", image), "outputs": ("probs", "FP32", np.array([[0.8, 0.2]], np.float32))}
        row: dict[str, Any] = {"id": str(number), "endpoint": "watched", "outcome": "completed", "variant": "t/v", "received_at": number}
        row |= {
            column: [{"name": name, "datatype": kind, "shape": list(array.shape), "data": array.tobytes()}]
            for column, (name, kind, array) in tensors.items()
        }
        rows.append(row)
    for row in rows:
        row |= {"graph_version": 0, "attempts": 1, "finished_at": 1, "sample_rate": 1.0, "shard": 0, "offset": 0}
    (tmp_path / "taps").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=LAYOUT), tmp_path / "taps" / "a.parquet")
    argv = [mlops_python, "-m", "headrace_mlops.report", tmp_path / "taps", tmp_path / "page.html", "--reference", "400", "--current", "200"]
    done = subprocess.run([*map(str, argv)], env={"PYTHONPATH": str(ROOT / "examples" / "mlops")}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = msgspec.json.decode(done.stdout.strip().rpartition("\n")[2])
    assert {"brightness", "contrast"} <= set(found["drifted"])
    assert "confidence" not in found["drifted"]
    assert (tmp_path / "page.html").stat().st_size > 100_000

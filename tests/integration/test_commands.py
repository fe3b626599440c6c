"""The commands on genuine servers: catalog, requests, answers, dead letters, lag, and roles as processes of their own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from broker.kafka import KafkaLog
from broker.log import Committed, Headers, TopicPartition
from broker.redis_store import RedisStore
from broker.store import Answer, Mark
from deploy.cli import run
from deploy.snapshots import read_topic
from schemas.names import Names
from schemas.terminal import COMPLETED, JSON_TYPE, MSGPACK_TYPE, OutputTensor, PathStep, Terminal, encode_terminal

FASHION = Path(__file__).parents[2] / "examples" / "fashion"
FILES = [str(FASHION / "task.yaml"), str(FASHION / "endpoint.yaml")]
Eventually = Callable[..., Awaitable[Any]]
Run = Callable[..., Awaitable[tuple[int, Any]]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def names(prefix: str) -> Names:
    return Names(prefix)


@pytest.fixture
async def log(kafka_address: str):
    log = KafkaLog(kafka_address)
    yield log
    await log.close()


@pytest.fixture
async def headrace(kafka_address: str, redis_url: str, names: Names, capsys: pytest.CaptureFixture[str], log: KafkaLog):
    """Runs a command with --json: (exit code, what its last line says)."""

    async def run_command(*words: str) -> tuple[int, Any]:
        capsys.readouterr()
        arguments = [*words, "--kafka", kafka_address, "--redis", redis_url, "--prefix", names.prefix, "--json"]
        code = await asyncio.to_thread(run, arguments)
        lines = capsys.readouterr().out.splitlines()
        return code, json.loads(lines[-1]) if lines else None

    yield run_command
    await log.delete_topics([topic.name for topic in names.topics()])


async def write(log: KafkaLog, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Headers = ()) -> None:
    writer = log.writer("test")
    await writer.start()
    await writer.write(topic, partition, [(key, value, headers)])
    await writer.close()


async def test_the_catalog_is_applied_shown_and_deleted_from(headrace: Run, folder: Path) -> None:
    code, first = await headrace("apply", *FILES)
    assert code == 0
    assert [(change["kind"], change["change"]) for change in first["applied"]] == [("task", "created"), ("endpoint", "created")]
    _, shown = await headrace("get", "endpoints")
    variants = shown["tasks"][0]["variants"]
    assert {variant["sha256"] for variant in variants} == {file.stem for file in (folder / ".headrace" / "models").glob("*.onnx")}
    assert shown["endpoints"][0]["defaults"]["timeout_ms"] == 500

    changed = folder / "endpoint.yaml"
    changed.write_text((FASHION / "endpoint.yaml").read_text().replace("timeout_ms: 500", "timeout_ms: 600"))
    _, second = await headrace("apply", FILES[0], str(changed))
    assert [change["change"] for change in second["applied"]] == ["unchanged", "changed"]

    code, refused = await headrace("delete", "endpoint", "fashoin")
    assert code == 1
    assert "did you mean 'fashion'?" in refused["error"]["message"]
    assert (await headrace("delete", "endpoint", "fashion"))[0] == 0
    _, empty = await headrace("get", "endpoints")
    assert empty["endpoints"] == []
    assert [task["name"] for task in empty["tasks"]] == ["fashion"]


async def test_one_wrong_document_keeps_everything_out(headrace: Run, folder: Path) -> None:
    wrong = folder / "wrong.yaml"
    wrong.write_text("kind: endpoint\nname: other\ntask: fashoin\n")
    code, refused = await headrace("apply", *FILES, str(wrong))
    assert code == 1
    assert refused["error"]["message"] == f"{wrong}:3: task 'fashoin' is neither in these files nor in the catalog; did you mean 'fashion'?"
    _, shown = await headrace("get", "endpoints")
    assert shown == {"endpoints": [], "tasks": [], "running": {}}
    assert not (folder / ".headrace").exists()


async def test_a_request_goes_out_with_its_routing_in_headers(headrace: Run, log: KafkaLog, names: Names, folder: Path) -> None:
    await headrace("apply", *FILES)
    image = np.full((1, 1, 28, 28), 7, dtype=np.uint8)
    np.save(folder / "image.npy", image)
    (folder / "image.json").write_text('{"id": "mine", "inputs": []}')
    options = ["--min-accuracy", "0.9", "--timeout", "300", "--tenant", "acme", "--priority", "1"]
    code, sent = await headrace("send", "fashion", "image.npy", *options)
    assert code == 0
    assert await headrace("send", "fashion", "image.json") == (0, {"id": "mine"})
    records = {record.key: record for record in await read_topic(log, names.requests)}
    first, second = records[sent["id"].encode()], records[b"mine"]
    assert dict(first.headers) == {
        "endpoint": b"fashion",
        "content-type": MSGPACK_TYPE.encode(),
        "min_accuracy": b"0.9",
        "timeout_ms": b"300",
        "tenant": b"acme",
        "priority": b"1",
    }
    assert image.tobytes() in (first.value or b"")
    assert second.value == b'{"id": "mine", "inputs": []}'
    assert dict(second.headers) == {"endpoint": b"fashion", "content-type": JSON_TYPE.encode()}


async def test_a_request_that_cannot_work_is_not_sent(headrace: Run, log: KafkaLog, names: Names, folder: Path) -> None:
    (folder / "image.json").write_text('{"inputs": []}')
    assert "is --prefix right" in (await headrace("send", "fashion", "image.json"))[1]["error"]["message"]
    await headrace("apply", *FILES)
    code, refused = await headrace("send", "fashoin", "image.json")
    assert (code, refused["error"]["code"]) == (1, "unknown_endpoint")
    assert (await headrace("send", "fashion", "none.json"))[1]["error"]["code"] == "bad_request"
    assert (await headrace("send", "fashion", "image.json", "--id", "x" * 129))[1]["error"]["code"] == "bad_request"
    assert await read_topic(log, names.requests) == []


def terminal(request_id: str) -> Terminal:
    step = PathStep(stage="main", variant="fashion/wide", accuracy=0.9, accelerator="cpu", device="d", queued_ms=1.0, computed_ms=2.0, batch_size=1)
    outputs = [
        OutputTensor("probs", [1, 2], "FP32", np.array([0.25, 0.75], "<f4").tobytes()),
        OutputTensor("label", [1], "BYTES", b"\2\0\0\0ab"),
    ]
    times = {"received_ms": 1, "finished_ms": 5, "attempts": 1, "epoch": 1, "version": 1}
    return Terminal(id=request_id, outcome=COMPLETED, endpoint="fashion", outputs=outputs, path=[step], accuracy=0.9, **times)


async def test_polling_tells_unknown_pending_and_answered_apart(headrace: Run, redis_url: str, names: Names) -> None:
    store = RedisStore(redis_url, names)
    await store.put_responses([Answer("done", encode_terminal(terminal("done"), MSGPACK_TYPE), 60_000)])
    await store.mark_pending([Mark("waiting", 60_000)])
    assert await headrace("poll", "never") == (1, {"id": "never", "state": "unknown"})
    assert await headrace("poll", "waiting", "--wait", "30") == (1, {"id": "waiting", "state": "pending"})
    code, answer = await headrace("poll", "done")
    assert (code, answer["outcome"], answer["path"][0]["variant"]) == (0, "completed", "fashion/wide")
    assert [tensor["data"] for tensor in answer["outputs"]] == [[0.25, 0.75], ["ab"]]

    polling = asyncio.create_task(headrace("poll", "late", "--wait", "20000"))
    await asyncio.sleep(0)
    await store.put_responses([Answer("late", encode_terminal(terminal("late"), MSGPACK_TYPE), 60_000)])
    assert (await polling)[0] == 0
    await store.close()


async def dead_letters(log: KafkaLog, names: Names) -> None:
    await log.create_topics(names.topics())
    for at, (key, topic) in enumerate([(b"one", names.requests), (None, names.requests), (b"two", names.work("cpu"))]):
        reasons = {"reason": f"reason {at}", "topic": topic, "partition": "3", "offset": str(40 + at)}
        headers = [("endpoint", b"fashion"), ("headrace", b"order"), *((f"headrace-{name}", text.encode()) for name, text in reasons.items())]
        await write(log, names.dead_letters, 0, key, b"body %d" % at, headers)


async def test_dead_letters_are_listed_with_their_reasons(headrace: Run, log: KafkaLog, names: Names) -> None:
    await dead_letters(log, names)
    _, listed = await headrace("deadletter", "list", "--limit", "2")
    assert listed["count"] == 3
    assert listed["reasons"] == {"reason 0": 1, "reason 1": 1, "reason 2": 1}
    last = listed["dead_letters"][-1]
    assert (last["key"], last["reason"], last["topic"], last["value_bytes"]) == ("two", "reason 2", names.work("cpu"), 6)
    assert (last["original_partition"], last["original_offset"]) == (3, 42)


async def test_a_dead_letter_is_replayed_where_it_came_from_without_its_reasons(headrace: Run, log: KafkaLog, names: Names) -> None:
    await dead_letters(log, names)
    code, replayed = await headrace("deadletter", "replay", "--id", "one")
    assert (code, replayed) == (0, {"replayed": [{"offset": 0, "topic": names.requests, "id": "one"}]})
    (record,) = await read_topic(log, names.requests)
    assert (record.partition, record.key, record.value, list(record.headers)) == (3, b"one", b"body 0", [("endpoint", b"fashion")])

    code, refused = await headrace("deadletter", "replay", "--id", "one", "--id", "three")
    assert code == 1
    assert "not among the 3 dead letters: 'three'" in refused["error"]["message"]
    assert len(await read_topic(log, names.requests)) == 1


async def test_replayed_letters_may_get_new_ids(headrace: Run, log: KafkaLog, names: Names) -> None:
    await dead_letters(log, names)
    _, replayed = await headrace("deadletter", "replay", "--new-ids")
    ids = [item["id"] for item in replayed["replayed"]]
    assert len(set(ids)) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", request_id) for request_id in ids)
    assert [record.value for record in await read_topic(log, names.requests)] == [b"body 0", b"body 1", b"body 2"]
    _, one = await headrace("deadletter", "replay", "--offset", "1")
    assert one["replayed"] == [{"offset": 1, "topic": names.requests, "id": None}]


async def test_lag_is_log_end_minus_committed(headrace: Run, log: KafkaLog, names: Names) -> None:
    await log.create_topics(names.topics())
    for value in (b"a", b"b", b"c"):
        await write(log, names.requests, 2, b"key", value)
    await write(log, names.responses, 0, b"key", b"d")
    reader = log.reader("test", group=names.dispatchers_group)
    await reader.start()
    partition = TopicPartition(names.requests, 2)
    await reader.assign({partition: "earliest"})
    await reader.commit({partition: Committed(1, "")})
    await reader.close()
    _, lag = await headrace("get", "lag")
    assert lag["lag_messages"][names.dispatchers_group] == 2
    assert lag["lag_messages"][names.sink_group] == 4, "it reads requests for the marks of what is pending"
    committed = {(item["group"], item["topic"], item["partition"]): (item["end"], item["committed"]) for item in lag["partitions"]}
    assert committed[names.dispatchers_group, names.requests, 2] == (3, 1)
    assert committed[names.sink_group, names.requests, 2] == (3, None)
    assert committed[names.sink_group, names.responses, 0] == (1, None)


async def test_what_nobody_has_said_yet_is_shown_as_such(headrace: Run) -> None:
    assert await headrace("get", "plan") == (0, {"plan": None})
    assert await headrace("get", "workers") == (0, {"workers": []})
    assert await headrace("get", "lag") == (0, {"lag_messages": {}, "partitions": []})


class Role:
    """A role as a process of its own."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.ready_file = folder / f"{words[0]}.ready"
        self.log_file = folder / f"{words[0]}.log"
        argv = [sys.executable, "-m", "deploy.cli", *words, "--ready-file", str(self.ready_file), "--http", "127.0.0.1:0"]
        with self.log_file.open("wb") as output:
            self.process = subprocess.Popen(argv, stdout=output, stderr=output, cwd=folder)

    def note(self) -> dict[str, Any] | None:
        assert self.process.poll() is None, self.log_file.read_text()
        return json.loads(self.ready_file.read_bytes()) if self.ready_file.exists() else None

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log_file.read_text().splitlines()]

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    async def ended(self) -> int:
        return await asyncio.to_thread(self.process.wait, 30)


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Role]]:
    started: list[Role] = []

    def start(*words: str) -> Role:
        started.append(Role(folder, *words))
        return started[-1]

    yield start
    for role in started:
        role.kill()


def fetch(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def test_roles_serve_a_request_and_stop_in_order(
    headrace: Run, start: Callable[..., Role], eventually: Eventually, kafka_address: str, redis_url: str, names: Names, folder: Path
) -> None:
    common = ["--kafka", kafka_address, "--redis", redis_url, "--prefix", names.prefix, "--log-level", "info"]
    roles = [start("dispatcher", "--name", "dispatcher-1", "--ready-when", "running", *common)]
    roles += [start(role, "--name", f"{role}-1", *common) for role in ("sink", "scaler")]
    address = (await eventually(roles[0].note, timeout_s=60))["http"]
    assert fetch(address, "/healthz") == (200, "ok\n")
    status, reason = fetch(address, "/readyz")
    assert status == 503
    assert reason.strip()

    await headrace("apply", *FILES)
    roles.append(start("worker", "--accelerator", "cpu", "--name", "cpu-1", *common))
    notes = [await eventually(role.note, timeout_s=60) for role in roles]
    assert [(note["role"], note["name"], note["pid"]) for note in notes] == [
        *((role, f"{role}-1", at.process.pid) for role, at in zip(("dispatcher", "sink", "scaler"), roles, strict=False)),
        ("worker", "cpu-1", roles[-1].process.pid),
    ]
    await eventually(lambda: fetch(address, "/readyz") == (200, "ok\n"))
    assert "headrace_loop_lag_seconds_count" in fetch(address, "/metrics")[1]

    np.save(folder / "image.npy", np.zeros((2, 1, 28, 28), np.uint8))
    code, answer = await headrace("send", "fashion", "image.npy", "--timeout", "20000", "--wait", "30000")
    assert (code, answer.get("outcome")) == (0, "completed"), answer
    assert answer["outputs"][0]["shape"] == [2, 10]
    _, shown = await headrace("get", "workers")
    assert [(worker["worker"], worker["accelerator"], worker["state"]) for worker in shown["workers"]] == [("cpu-1", "cpu", "ready")]
    _, shown = await headrace("get", "plan")
    assert shown["plan"]["bindings"][0]["worker"] == "cpu-1"

    for role in roles:
        role.process.send_signal(signal.SIGTERM)
    assert [await role.ended() for role in roles] == [0, 0, 0, 0]
    assert not any(role.ready_file.exists() for role in roles)
    lines = roles[1].lines()
    assert lines[-1]["event"] == "stopped"
    assert all(line["role"] == "sink" and line["name"] == "sink-1" for line in lines)


def test_up_starts_everything_applies_files_and_down_leaves_no_process(
    kafka_address: str, redis_url: str, names: Names, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    def command(*words: str) -> tuple[int, Any]:
        capsys.readouterr()
        code = run([*words, "--json"])
        printed = capsys.readouterr()
        assert printed.out, printed.err
        return code, json.loads(printed.out.splitlines()[-1])

    servers = ["--kafka", kafka_address, "--redis", redis_url, "--prefix", names.prefix]
    np.save(folder / "image.npy", np.zeros((1, 1, 28, 28), np.uint8))
    try:
        code, up = command("up", "--detach", "--workers", "cpu=1", *servers, *FILES)
        assert code == 0, up
        assert [change["change"] for change in up["applied"]] == ["created", "created"]
        assert [process["role"] for process in up["processes"]] == ["supervisor", "scaler", "sink", "dispatcher", "worker"]
        # From here on the stack of this folder is where the commands go by themselves.
        code, answer = command("send", "fashion", "image.npy", "--timeout", "20000", "--wait", "30000")
        assert (code, answer.get("outcome")) == (0, "completed"), answer
        code, status = command("status")
        assert (code, status["state"], status["leader"], status["prefix"]) == (0, "ready", "scaler-1", names.prefix)
        assert fetch(next(p["http"] for p in status["processes"] if p["role"] == "dispatcher"), "/readyz")[0] == 200
        code, refused = command("up", "--detach", *servers)
        assert code == 1
        assert "a stack already runs" in refused["error"]["message"]
    finally:
        code, down = command("down")
    assert code == 0
    assert set(down["ended"]) == {process["pid"] for process in up["processes"]}
    assert not any(runs(pid) for pid in down["ended"])
    assert command("status")[0] == 1
    asyncio.run(delete_topics(kafka_address, names))


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def delete_topics(kafka_address: str, names: Names) -> None:
    log = KafkaLog(kafka_address)
    await log.delete_topics([topic.name for topic in names.topics()])
    await log.close()


async def test_a_role_that_cannot_start_says_why_in_one_line_and_fails(start: Callable[..., Role]) -> None:
    role = start("dispatcher", "--kafka", "127.0.0.1:1", "--log-format", "json", "--log-level", "error")
    assert await role.ended() == 1
    (line,) = role.lines()
    assert (line["event"], line["code"]) == ("failed", "log_unavailable")


async def test_a_worker_without_its_device_says_what_it_looked_for(start: Callable[..., Role], kafka_address: str) -> None:
    role = start("worker", "--accelerator", "gpu", "--kafka", kafka_address, "--log-level", "error")
    assert await role.ended() == 1
    (line,) = role.lines()
    assert (line["event"], line["code"]) == ("failed", "device_unavailable")


async def test_a_second_signal_ends_a_role_at_once(start: Callable[..., Role], eventually: Eventually, kafka_address: str, prefix: str) -> None:
    role = start("scaler", "--kafka", kafka_address, "--prefix", prefix)
    await eventually(role.note, timeout_s=60)
    # Stopped, it finds both signals when it goes on: the first has not ended it before the second comes.
    for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
        os.kill(role.process.pid, number)
    assert await role.ended() == 1
    assert [line["event"] for line in role.lines()][-2:] == ["stopping", "second signal: leaving at once, without draining"]

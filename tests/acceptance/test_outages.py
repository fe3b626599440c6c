"""Processes that are ended, killed, stopped, hung or misled, and servers that go away: each request has its outcome, and everything goes on."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import moody_backend
import onnx
import pytest
from foreign import ForeignClient, image_tensor
from promises import Traffic, check_promises, load_images
from running_stack import EXAMPLE, FILES, RunningStack, until

PATIENT_MS = 30_000
WITHIN_S = 60.0
AWAY_S = 10.0
pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("local_servers")]


@pytest.fixture(scope="module")
def plug_in(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a stack whose workers compute with the moody backend, found as an installed plug-in is found."""
    folder = tmp_path_factory.mktemp("plug-in")
    installed = folder / "moody-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: moody\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[headrace.backends]\nmoody = moody_backend:MoodyBackend\n")
    return {"PYTHONPATH": os.pathsep.join((str(folder), str(Path(moody_backend.__file__).parent))), "HEADRACE_BACKEND": "moody"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, local_servers: None, plug_in: dict[str, str]) -> Iterator[RunningStack]:
    """Two dispatchers and two workers with a Kafka and a Valkey of their own, which may be broken."""
    made = RunningStack(tmp_path_factory.mktemp("stack"), f"t{uuid.uuid4().hex[:12]}", plug_in)
    with made.up("--workers", "cpu=2", "--dispatchers", "2", *FILES):
        yield made


@pytest.fixture(scope="module")
def client(stack: RunningStack) -> ForeignClient:
    state = stack.state()
    return ForeignClient(state["kafka"], state["redis"], stack.prefix)


@pytest.fixture
def traffic(client: ForeignClient, request: pytest.FixtureRequest) -> Traffic:
    """Patient requests: whatever happens to them on the way, there is time to answer them."""
    return Traffic(client, request.node.name.removeprefix("test_")[:60], timeout_ms=PATIENT_MS, rate_rps=60.0)


@pytest.fixture(autouse=True)
def whole(stack: RunningStack) -> None:
    """Each test finds everything running and ready."""
    wanted = {"kafka", "valkey", "dispatcher-1", "dispatcher-2", "cpu-1", "cpu-2", "sink-1", "scaler-1"}
    until(lambda: wanted <= stack.processes().keys(), "every process runs", within_s=WITHIN_S)
    until(lambda: all(stack.is_ready(name) for name in wanted - {"kafka", "valkey"}), "every role is ready", within_s=WITHIN_S)


def all_completed(traffic: Traffic) -> None:
    kept = traffic.check(within_s=WITHIN_S)
    assert kept.outcomes == {("completed", ""): len(traffic.floors)}, kept.outcomes


def exits(stack: RunningStack) -> list[tuple[str, int]]:
    """Names and exit codes of the processes that the supervisor saw end."""
    return [(line["process"], line["exit_code"]) for line in stack.log("supervisor") if line["event"] == "process died"]


def restarted(stack: RunningStack, name: str, pid: int) -> None:
    """Until it runs anew, and is ready."""
    until(lambda: stack.pids().get(name, pid) != pid and stack.is_ready(name), f"{name} is back", within_s=WITHIN_S)


def test_sigterm_drains_every_role(stack: RunningStack, traffic: Traffic) -> None:
    names = ("dispatcher-1", "cpu-1", "sink-1", "scaler-1", "dispatcher-2", "cpu-2")
    before = len(exits(stack))
    with traffic.flowing():
        for name in names:
            restarted(stack, name, stack.signal(name, signal.SIGTERM))
    all_completed(traffic)
    assert exits(stack)[before:] == [(name, 0) for name in names]


def test_what_is_killed_is_soon_replaced(stack: RunningStack, traffic: Traffic, record_property: Any) -> None:
    """With time-outs of half a minute nothing expires: leases move, shards are taken up again, and how long that took shows in the answers."""
    killed_ms: dict[str, float] = {}
    with traffic.flowing():
        for name in ("cpu-1", "dispatcher-1", "sink-1", "cpu-2"):
            time.sleep(0.5)
            killed_ms[name] = time.time() * 1e3
            restarted(stack, name, stack.signal(name, signal.SIGKILL))
    all_completed(traffic)
    first = traffic.check().first
    for name, at_ms in killed_ms.items():
        near = [answer["finished_ms"] - answer["received_ms"] for answer in first.values() if at_ms - 1_000 < answer["received_ms"] < at_ms + 8_000]
        record_property(f"slowest around the kill of {name}", max(near))
        assert max(near) < 15_000, (name, max(near))


def test_valkey_away_and_back_and_back_empty(stack: RunningStack, client: ForeignClient, traffic: Traffic) -> None:
    with traffic.flowing():
        with stack.paused("valkey"):
            time.sleep(AWAY_S)
            # Nobody but the sink needs it.
            answered = client.first_answers().keys() & traffic.floors.keys()
            assert len(answered) > AWAY_S * 60.0 * 0.5
        client.until_stored(list(answered), within_s=WITHIN_S)
        pid = stack.signal("valkey", signal.SIGKILL)
        until(lambda: stack.pids().get("valkey", pid) != pid, "valkey is back", within_s=WITHIN_S)
    all_completed(traffic)


def test_kafka_away_and_back(stack: RunningStack, traffic: Traffic) -> None:
    with traffic.flowing():
        time.sleep(0.5)
        with stack.paused("kafka"):
            time.sleep(AWAY_S)
        time.sleep(2.0)
        pid = stack.signal("kafka", signal.SIGKILL)
        until(lambda: stack.pids().get("kafka", pid) != pid, "kafka is back", within_s=WITHIN_S)
        time.sleep(5.0)
    kept = traffic.check(within_s=WITHIN_S)
    assert {outcome for outcome, _ in kept.outcomes} <= {"completed", "expired", "rejected"}, kept.outcomes
    # Half a minute is more than both outages took.
    assert len(kept.completed) > 0.9 * len(traffic.floors), kept.outcomes


def test_a_worker_that_sleeps_and_wakes_does_no_harm(stack: RunningStack, client: ForeignClient, traffic: Traffic) -> None:
    before = answered_by(stack)
    with traffic.flowing():
        time.sleep(1.0)
        now = answered_by(stack)
        # With little load, one of the two may have nothing to do.
        busier = max(now, key=lambda name: now[name] - before[name])
        with stack.paused(busier):
            time.sleep(6.0)
        time.sleep(1.0)
    all_completed(traffic)
    retried = [answer["id"] for answer, _ in client.first_answers().values() if answer["id"] in traffic.floors and answer["attempts"] > 1]
    assert retried, "what it had when it fell asleep was answered by the other one"


def answered_by(stack: RunningStack) -> dict[str, float]:
    """Answers so far, by worker."""
    return {name: stack.metric(name, "headrace_worker_answers_total") for name in ("cpu-1", "cpu-2")}


def mood(number: int, **fields: Any) -> bytes:
    image = load_images()[0][:1].copy()
    image.reshape(-1)[:4] = (*moody_backend.SUMMONS, number)
    return json.dumps({"endpoint": "fashion", "timeout_ms": PATIENT_MS, "inputs": [image_tensor(image)]} | fields).encode()


def test_backends_that_raise_hang_die_and_dawdle(stack: RunningStack, client: ForeignClient, traffic: Traffic) -> None:
    before = len(exits(stack))
    client.publish("kills", mood(moody_backend.DIES, timeout_ms=120_000))
    until(lambda: len(exits(stack)) >= before + 3, "it killed three workers", within_s=WITHIN_S)
    until(lambda: stack.is_ready("cpu-1") and stack.is_ready("cpu-2"), "both are back", within_s=WITHIN_S)
    with traffic.flowing():
        client.publish("raises", mood(moody_backend.RAISES))
        client.publish("dawdles", mood(moody_backend.DAWDLES))
        time.sleep(moody_backend.DAWDLE_S)
        client.publish("hangs", mood(moody_backend.HANGS, timeout_ms=3_000))
        until(lambda: len(exits(stack)) >= before + 4, "it hung a worker until that gave up", within_s=WITHIN_S)
    kept = check_promises(client, dict.fromkeys(("raises", "dawdles", "kills", "hangs"), 0.0), within_s=WITHIN_S)
    answers = kept.first
    assert (answers["raises"]["outcome"], answers["raises"]["error"]["code"]) == ("failed", "backend_error")
    assert "RuntimeError: kernel panic" in answers["raises"]["error"]["message"]
    assert answers["dawdles"]["outcome"] == "completed", "its answer came after its lease, and before its deadline"
    assert (answers["kills"]["outcome"], answers["kills"]["error"]["code"]) == ("failed", "attempts_exhausted")
    assert (answers["hangs"]["outcome"], answers["hangs"]["error"]["code"]) == ("expired", "deadline_exceeded")
    letters = {letter["key"]: letter for letter in stack.headrace("deadletter", "list", "--limit", "100")["dead_letters"]}
    assert letters["kills"]["reason"].startswith("attempts_exhausted: 3 attempts")
    told = stack.headrace("trace", "kills")
    what = Counter(event["what"] for event in told["events"])
    assert (told["outcome"], what["sent"], what["departed"], what["dead letter"], what["answered"]) == ("failed", 3, 3, 1, 1), told
    ended = exits(stack)[before:]
    assert [code for _, code in ended[:3]] == [86] * 3
    # What hung one was sent to the other when its lease was over.
    assert {code for _, code in ended[3:]} == {1}
    for name, _ in ended[3:]:
        (*_, said) = [line for line in stack.log(name) if line["level"] == "error"]
        assert (said["code"], "has been on the device for" in said["reason"]) == ("hung", True), said
    # Whoever shared a device with them was computed elsewhere.
    all_completed(traffic)


TASK = """
kind: task
name: extra
variants:
  - {{name: whole, file: whole.onnx, sha256: {whole}, accuracy: 0.5}}
  - {{name: corrupt, file: corrupt.onnx, sha256: {corrupt}, accuracy: 0.6}}
  - {{name: unloadable, file: unloadable.onnx, sha256: {unloadable}, accuracy: 0.7}}
---
kind: endpoint
name: extra
task: extra
"""


def test_misled_workers(stack: RunningStack, client: ForeignClient, traffic: Traffic) -> None:
    """A plan that names an unknown variant and puts two workers on one lane; models that are corrupt or do not load. What can serve, serves."""
    plan = stack.headrace("get", "plan")["plan"]
    with stack.paused("scaler-1"):
        bindings = [binding | {"lane": 0, "variants": [*binding["variants"], "fashion/ghost"]} for binding in plan["bindings"]]
        wrong = plan | {"epoch": plan["epoch"] + 1, "bindings": bindings, "planner": "somebody"}
        client.produce("plan", json.dumps(wrong).encode(), key="plan")
        client.flush()

        def misled() -> bool:
            workers = stack.workers().values()
            return all(worker["lane"] == 0 and worker["state"] == "ready" and "fashion/ghost" in worker["variants"] for worker in workers)

        until(misled, "both workers follow the plan", within_s=WITHIN_S)
        for worker in stack.workers().values():
            ghost = worker["variants"].pop("fashion/ghost")
            assert ghost["state"] == "failed"
            assert "unknown variant" in ghost["reason"]
            assert {variant["state"] for variant in worker["variants"].values()} == {"ready"}
        with traffic.flowing():
            time.sleep(2.0)
        all_completed(traffic)
        apply_extra(stack)
    until(lambda: stack.headrace("get", "plan")["plan"]["epoch"] > wrong["epoch"], "a better plan", within_s=WITHIN_S)
    healed = stack.headrace("get", "plan")["plan"]
    assert sorted(binding["lane"] for binding in healed["bindings"]) == [0, 1]
    assert not any("fashion/ghost" in binding["variants"] for binding in healed["bindings"])

    def states() -> list[dict[str, str]]:
        return [{key: variant["state"] for key, variant in worker["variants"].items()} for worker in stack.workers().values()]

    def left_out() -> dict[str, str]:
        decisions = stack.headrace("plan", "history", "--all")["decisions"]
        return {key.partition(": ")[2]: reason for decision in decisions for key, reason in decision["left_out"].items()}

    until(lambda: any(worker.get("extra/whole") == "ready" for worker in states()), "the whole model serves", within_s=WITHIN_S)
    until(lambda: {"extra/corrupt", "extra/unloadable"} <= left_out().keys(), "the others are quarantined", within_s=WITHIN_S)
    assert "SHA-256" in left_out()["extra/corrupt"]
    assert "out of device memory" in left_out()["extra/unloadable"]
    tensor = image_tensor(load_images()[0][:1])
    for request_id, floor in (("extra-low", 0.5), ("extra-high", 0.7)):
        body = {"endpoint": "extra", "min_accuracy": floor, "timeout_ms": 1_000, "inputs": [tensor]}
        client.publish(request_id, json.dumps(body).encode())
    client.flush()
    answers = check_promises(client, {"extra-low": 0.5, "extra-high": 0.7}, within_s=WITHIN_S).first
    assert answers["extra-low"]["path"][0]["variant"] == "extra/whole"
    assert (answers["extra-high"]["outcome"], answers["extra-high"]["error"]["code"]) == ("rejected", "overloaded")
    stack.headrace("delete", "endpoint", "extra")


def apply_extra(stack: RunningStack) -> None:
    """Apply a task of three variants, and damage the file of one before any worker loads it."""
    digests: dict[str, str] = {}
    for name in ("whole", "corrupt", "unloadable"):
        model = onnx.load(EXAMPLE / "models" / "linear.onnx")
        model.doc_string = name
        content = model.SerializeToString()
        (stack.folder / f"{name}.onnx").write_bytes(content)
        digests[name] = hashlib.sha256(content).hexdigest()
    file = stack.folder / "extra.yaml"
    file.write_text(TASK.format(**digests))
    stack.headrace("apply", str(file))
    corrupt = stack.folder / ".headrace" / "models" / f"{digests['corrupt']}.onnx"
    corrupt.chmod(0o644)
    content = bytearray(corrupt.read_bytes())
    content[len(content) // 2] ^= 0xFF
    corrupt.write_bytes(content)

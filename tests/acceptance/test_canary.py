"""Canaries on genuine Kafka: a bad candidate goes back by itself, a good one is kept, and people and other systems move them."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from foreign import ForeignClient, image_tensor
from promises import check_promises, load_images
from running_stack import EXAMPLE, RunningStack, until

REQUESTS_MAX = 2_000
RATE_RPS = 150.0
PATIENT_MS = 20_000
WITHIN_S = 60.0
MSGPACK = {"content-type": "application/msgpack"}
FILES = (EXAMPLE / "task.yaml", EXAMPLE / "graphs" / "canary.yaml", Path(__file__).parent / "canaries.yaml")
pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, kafka_address: str, redis_url: str, module_prefix: str) -> Iterator[RunningStack]:
    """One dispatcher and one worker over the session's servers."""
    made = RunningStack(tmp_path_factory.mktemp("stack"), module_prefix)
    with made.up("--kafka", kafka_address, "--redis", redis_url, "--workers", "cpu=1", *map(str, FILES)):
        yield made


class Standings:
    """What {p}.canary says, without a process for each look."""

    def __init__(self, client: ForeignClient) -> None:
        self._client = client

    def of(self, endpoint: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for message in self._client.records("canary"):
            if message.key().decode() == f"{endpoint}/rollout":
                found = json.loads(message.value())
        return found


@pytest.fixture
def standings(client: ForeignClient) -> Standings:
    return Standings(client)


class Questions:
    """Requests with the labelled images in their order, at a steady rate."""

    def __init__(self, client: ForeignClient, endpoint: str) -> None:
        self._client, self._endpoint = client, endpoint
        self._images = load_images()[0]
        self.ids: list[str] = []

    def ask(self, count: int, name: str) -> list[str]:
        due_s = time.monotonic()
        asked: list[str] = []
        for _ in range(count):
            number = len(self.ids)
            images = self._images[number % len(self._images)][None]
            tensor = image_tensor(images, data=images.tobytes())
            body = msgspec.msgpack.encode({"endpoint": self._endpoint, "timeout_ms": PATIENT_MS, "inputs": [tensor]})
            asked.append(f"{name}-{number}")
            self.ids.append(asked[-1])
            self._client.publish(asked[-1], body, headers=MSGPACK)
            due_s += 1 / RATE_RPS
            time.sleep(max(due_s - time.monotonic(), 0.0))
        self._client.flush()
        return asked

    def arms(self, ids: list[str]) -> Counter[str]:
        """All have been answered; by which arm."""
        kept = check_promises(self._client, dict.fromkeys(ids, 0.0), within_s=WITHIN_S, graph=True)
        assert kept.outcomes == {("completed", ""): len(ids)}, kept.outcomes
        return Counter(answer["path"][0]["stage"] for answer in kept.completed.values())


def test_a_bad_candidate_is_rolled_back_by_itself(stack: RunningStack, client: ForeignClient, standings: Standings, record_property: Any) -> None:
    questions = Questions(client, "fashion-canary")
    assert questions.arms(questions.ask(30, "before")) == {"stable": 30}, "nothing goes to a candidate that nobody started"
    started = stack.headrace("canary", "start", "fashion-canary")["canary"]
    assert (started["phase"], started["percent"]) == ("running", 10)
    asked: list[str] = []
    while len(asked) < REQUESTS_MAX and standings.of("fashion-canary")["phase"] == "running":
        asked += questions.ask(100, "bad")
    status = standings.of("fashion-canary")
    assert (status["phase"], status["percent"]) == ("rolled_back", 0), status
    assert "differ from stable's" in status["reason"], status["reason"]
    (shown,) = stack.headrace("canary", "status", "fashion-canary")["canaries"]
    assert (shown["phase"], shown["percent"], shown["reason"]) == ("rolled_back", 0, status["reason"])
    assert max(weighed["strength"] for weighed in shown["evidence"]) >= 1.0
    arms = questions.arms(asked)
    record_property("requests until it was rolled back", len(asked))
    assert 20 < arms["candidate"] < len(asked) / 2, arms
    assert questions.arms(questions.ask(50, "after")) == {"stable": 50}


def test_a_good_candidate_is_kept_and_promoted(stack: RunningStack, client: ForeignClient, standings: Standings, record_property: Any) -> None:
    questions = Questions(client, "good")
    stack.headrace("canary", "start", "good")
    asked: list[str] = []
    while len(asked) < REQUESTS_MAX and standings.of("good")["phase"] == "running":
        asked += questions.ask(50, "good")
    status = standings.of("good")
    assert (status["phase"], status["percent"]) == ("promoted", 100), status
    (shown,) = stack.headrace("canary", "status", "good")["canaries"]
    assert (shown["phase"], shown["percent"]) == ("promoted", 100)
    arms = questions.arms(asked)
    record_property("requests until it was promoted", len(asked))
    assert arms.keys() == {"stable", "candidate"}
    assert questions.arms(questions.ask(50, "promoted")) == {"candidate": 50}
    taps = {message.key().decode(): message for message in client.records("tap.responses") if message.key().decode() in asked}
    assert taps, "stable was run beside the candidate, to compare"
    for message in taps.values():
        assert dict(message.headers())["headrace-shadow"] == b"true"
        assert [step["stage"] for step in json.loads(message.value())["path"]] == ["stable"]


def shares(questions: Questions, name: str) -> float:
    """The part of 80 requests that the candidate answers."""
    return questions.arms(questions.ask(80, name))["candidate"] / 80


def test_people_move_canaries(stack: RunningStack, client: ForeignClient) -> None:
    questions = Questions(client, "by-hand")

    def canary(*words: str, code: int = 0) -> Any:
        return stack.headrace("canary", *words, code=code)

    (off,) = canary("status", "by-hand")["canaries"]
    assert (off["phase"], off["stable"], off["candidate"], off["node"]) == ("off", "stable", "candidate", "rollout")
    assert canary("start", "by-hand", "--percent", "25")["canary"]["percent"] == 25
    assert 0.1 < shares(questions, "started") < 0.4
    assert "runs already" in canary("start", "by-hand", code=1)["error"]["message"]
    assert canary("set", "by-hand", "--percent", "60")["canary"]["percent"] == 60
    assert 0.4 < shares(questions, "set") < 0.8
    assert canary("rollback", "by-hand", "--reason", "wrong labels")["canary"]["phase"] == "rolled_back"
    assert shares(questions, "rolled-back") == 0.0
    (shown,) = canary("status", "by-hand")["canaries"]
    assert (shown["phase"], shown["reason"]) == ("rolled_back", "wrong labels")
    assert canary("promote", "by-hand")["canary"]["phase"] == "promoted"
    assert shares(questions, "promoted") == 1.0


def test_other_systems_move_canaries(stack: RunningStack, client: ForeignClient, standings: Standings) -> None:
    """By a record in {p}.canary; what makes no sense changes nothing."""
    questions = Questions(client, "by-hand")

    def command(**fields: Any) -> None:
        client.produce("canary", json.dumps(fields).encode(), key="by-hand")
        client.flush()

    def stands(phase: str, percent: float) -> None:
        def reached() -> bool:
            found = standings.of("by-hand")
            return (found["phase"], found["percent"]) == (phase, percent)

        until(reached, f"{phase} at {percent} %", within_s=20)

    command(action="start", percent=50)
    stands("running", 50)
    assert 0.3 < shares(questions, "foreign") < 0.7
    client.produce("canary", b"{", key="by-hand")
    command(action="set", percent=250)
    command(action="set", percent=20, reason="carefully")
    stands("running", 20)
    command(action="rollback", reason="a drift detector said so")
    stands("rolled_back", 0)
    assert standings.of("by-hand")["reason"] == "a drift detector said so"
    assert shares(questions, "foreign-back") == 0.0
    command(action="promote")
    stands("promoted", 100)
    (shown,) = stack.headrace("canary", "status", "by-hand")["canaries"]
    assert (shown["phase"], shown["percent"]) == ("promoted", 100)

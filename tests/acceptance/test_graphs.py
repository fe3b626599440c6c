"""Graphs that go wrong at run time, and graphs that are replaced or deleted under load: one clear outcome each, and nothing is left behind."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import moody_tasks
import numpy as np
import onnx
import onnxruntime
import pytest
from foreign import ForeignClient, image_tensor
from promises import beside, check_promises, load_images
from running_stack import EXAMPLE, RunningStack, until

from broker.kafka import KafkaLog
from deploy.tracing import Trace, trace_request
from schemas.names import Names

HERE = Path(__file__).parent
WITHIN_S = 60.0
LATE_MS = 1_000
"""What a record may come after its deadline on a machine that does much else; the promise itself is measured elsewhere."""
MODELS = EXAMPLE / "models"
ENSEMBLE, SHADOW = (EXAMPLE / "graphs" / f"{name}.yaml" for name in ("ensemble", "shadow"))
pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, kafka_address: str, redis_url: str, module_prefix: str) -> Iterator[RunningStack]:
    """One dispatcher and one worker, which finds the moody tasks on its path."""
    folder = tmp_path_factory.mktemp("stack")
    model = onnx.load(MODELS / "linear.onnx")
    model.graph.node[-1].op_type = "Impossible"
    content = model.SerializeToString()
    (folder / "dead.onnx").write_bytes(content)
    faults = folder / "faults.yaml"
    faults.write_text((HERE / "graph_faults.yaml").read_text().replace("DIGEST", hashlib.sha256(content).hexdigest()))
    made = RunningStack(folder, module_prefix, {"PYTHONPATH": str(HERE)})
    files = map(str, (EXAMPLE / "task.yaml", faults, ENSEMBLE, SHADOW))
    with made.up("--kafka", kafka_address, "--redis", redis_url, "--workers", "cpu=1", *files):
        yield made


@pytest.fixture(autouse=True)
def nothing_left(stack: RunningStack) -> Iterator[None]:
    """After each test, whatever went wrong in it."""
    yield
    until(lambda: stack.metric("dispatcher-1", "headrace_requests_live") == 0, "no request is live", within_s=WITHIN_S)
    until(lambda: stack.metric("dispatcher-1", "headrace_requests_waiting") == 0, "nothing waits", within_s=WITHIN_S)


def image(*firsts: int) -> np.ndarray:
    """One row for each, all of this value but for the last pixel."""
    images = np.zeros((len(firsts), 1, 28, 28), np.uint8)
    for number, first in enumerate(firsts):
        images[number] = first
    return images


def ask(client: ForeignClient, request_id: str, endpoint: str, images: np.ndarray, **fields: Any) -> None:
    body = {"endpoint": endpoint, "inputs": [image_tensor(images)]} | fields
    client.publish(request_id, json.dumps(body).encode())


def answered(client: ForeignClient, *request_ids: str) -> dict[str, dict[str, Any]]:
    """The one outcome of each: once in the log, the same in the store, none long after its deadline."""
    client.flush()
    kept = check_promises(client, dict.fromkeys(request_ids, 0.0), within_s=WITHIN_S, graph=True)
    for request_id, answer in kept.first.items():
        assert answer["outcome"] == "rejected" or kept.written_ms[request_id] <= answer["deadline_ms"] + LATE_MS, answer
    return kept.first


def fault(answer: dict[str, Any]) -> tuple[str, str, str | None]:
    return answer["outcome"], answer["error"]["code"], answer["error"].get("stage")


def value(answer: dict[str, Any], name: str) -> np.ndarray:
    tensor = next(output for output in answer["outputs"] if output["name"] == name)
    return np.array(tensor["data"]).reshape(tensor["shape"])


def computed(model: str, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession((MODELS / f"{model}.onnx").read_bytes(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["probs"], {"image": images})[0])


def test_python_tasks_that_raise_hang_and_die_fail_their_request_alone(stack: RunningStack, client: ForeignClient) -> None:
    pid = stack.pids()["cpu-1"]
    moods = ("raise", "hang", "die", "none")
    for mood in moods:
        ask(client, f"mood-{mood}", "moods", image(7), parameters={"do": mood})
    answers = answered(client, *(f"mood-{mood}" for mood in moods))
    assert fault(answers["mood-raise"]) == ("failed", "backend_error", "raises")
    assert "LookupError: no garment in sight" in answers["mood-raise"]["error"]["message"]
    assert fault(answers["mood-hang"]) == ("failed", "backend_error", "hangs")
    assert "700 ms" in answers["mood-hang"]["error"]["message"]
    assert fault(answers["mood-die"]) == ("failed", "backend_error", "dies")
    assert "86" in answers["mood-die"]["error"]["message"]
    assert answers["mood-none"]["outcome"] == "completed"
    assert [step["stage"] for step in answers["mood-none"]["path"]] == ["calm", "answer"]
    assert stack.pids()["cpu-1"] == pid, "the worker lives on"


def test_a_task_that_hangs_beyond_the_deadline_does_not_keep_its_request(client: ForeignClient) -> None:
    ask(client, "hangs-long", "moods", image(7), parameters={"do": "hang"}, timeout_ms=500)
    assert fault(answered(client, "hangs-long")["hangs-long"])[:2] == ("expired", "deadline_exceeded")


def test_conditions_on_what_is_not_there(client: ForeignClient) -> None:
    """A parameter that the request does not have, and a tensor that a stage did not give."""
    ask(client, "no-parameter", "moods", image(7))
    ask(client, "no-tensor", "moods", image(7), parameters={"do": "look"})
    answers = answered(client, "no-parameter", "no-tensor")
    assert fault(answers["no-parameter"]) == ("failed", "backend_error", "mood")
    assert "no parameter 'do'" in answers["no-parameter"]["error"]["message"]
    assert answers["no-tensor"]["error"]["code"] == "backend_error"
    assert answers["no-tensor"]["error"]["stage"] in ("bright", "mute")
    assert "'light'" in answers["no-tensor"]["error"]["message"]


def test_rows_up_to_the_limit_and_above(client: ForeignClient) -> None:
    images = load_images()[0][:4]
    ask(client, "rows-3", "rows", images[:3])
    ask(client, "rows-4", "rows", images)
    answers = answered(client, "rows-3", "rows-4")
    np.testing.assert_allclose(value(answers["rows-3"], "probs"), computed("linear", images[:3]), atol=1e-5)
    assert answers["rows-4"]["error"] == {"code": "too_large", "message": "for_each 'each': 4 rows, the limit is 3", "stage": "each"}


def test_rows_that_never_come_are_named(client: ForeignClient) -> None:
    """Black rows go to a model that no worker can load."""
    ask(client, "some-rows", "lost-rows", image(9, 0, 30, 0, 80))
    ask(client, "all-rows", "lost-rows", image(9, 30))
    ask(client, "no-rows", "lost-rows", image(0))
    answers = answered(client, "some-rows", "all-rows", "no-rows")
    some = answers["some-rows"]
    assert some["outcome"] == "completed", some
    assert value(some, "missing").tolist() == [1, 3]
    np.testing.assert_allclose(value(some, "probs"), computed("linear", image(9, 30, 80)), atol=1e-5)
    assert value(answers["all-rows"], "missing").tolist() == []
    assert answers["all-rows"]["finished_ms"] < answers["all-rows"]["deadline_ms"] - 500, "nobody waited"
    assert fault(answers["no-rows"])[:2] == ("expired", "deadline_exceeded")


def test_a_combiner_that_raises(client: ForeignClient) -> None:
    ask(client, "broken-vote", "broken-vote", image(7))
    answer = answered(client, "broken-vote")["broken-vote"]
    assert fault(answer) == ("failed", "backend_error", "vote")
    assert "ArithmeticError: 2 members are too many for me" in answer["error"]["message"]


def test_half_an_ensemble_is_dead(stack: RunningStack, client: ForeignClient) -> None:
    def quarantined() -> str | None:
        decisions = stack.headrace("plan", "history", "--all")["decisions"]
        return next((why for decision in decisions for key, why in decision["left_out"].items() if key.endswith(": wreck/dead")), None)

    assert "Impossible" in until(quarantined, "it is quarantined", within_s=WITHIN_S)
    ids = ("half-waits-for-one", "half-by-deadline", "half-waits-for-all")
    for name in ids:
        ask(client, name, name, image(7))
    answers = answered(client, *ids)
    for name in ids[:2]:
        assert answers[name]["outcome"] == "completed", answers[name]
        assert value(answers[name], "answered").tolist() == [[0, -1]]
        np.testing.assert_allclose(value(answers[name], "probs"), computed("mlp128", image(7)), atol=1e-5)
    first, last = answers[ids[0]], answers[ids[1]]
    assert first["finished_ms"] < first["deadline_ms"] - 2_000, "one was enough"
    assert last["finished_ms"] > last["deadline_ms"] - 1_000, "it waited for the other as long as it could"
    assert fault(answers[ids[2]])[:2] == ("expired", "deadline_exceeded")


def test_an_ensemble_answers_what_its_models_say_directly(client: ForeignClient) -> None:
    images = load_images()[0][:60]
    parts = [images[at : at + 1 + at % 3] for at in range(0, 57, 3)]
    for number, part in enumerate(parts):
        ask(client, f"ensemble-{number}", "fashion-ensemble", part, timeout_ms=20_000)
    answers = answered(client, *(f"ensemble-{number}" for number in range(len(parts))))
    for number, part in enumerate(parts):
        answer = answers[f"ensemble-{number}"]
        assert answer["outcome"] == "completed", answer
        weighted = (computed("mlp128", part) + 2 * computed("resnet-int8", part) + 4 * computed("wide", part)) / 7
        np.testing.assert_allclose(value(answer, "probs"), weighted, atol=1e-5)
        assert answer["accuracy"] == 0.9355
        assert value(answer, "answered").tolist() == [[0, 1, 2]] * len(part)


def test_a_shadow_is_in_the_taps_and_nowhere_else(client: ForeignClient) -> None:
    images = load_images()[0][:30]
    ids = [f"shadow-{number}" for number in range(30)]
    for number, request_id in enumerate(ids):
        ask(client, request_id, "fashion-shadow", images[number : number + 1], timeout_ms=20_000)
        time.sleep(0.02)
    answers = answered(client, *ids)

    def taps() -> list[Any]:
        return [message for message in client.records("tap.responses") if message.key().decode() in answers]

    until(lambda: len({message.key() for message in taps()}) >= len(ids) // 2, "shadows' answers", within_s=WITHIN_S)
    for message in taps():
        number = int(message.key().decode().removeprefix("shadow-"))
        shadow = json.loads(message.value())
        assert dict(message.headers())["headrace-shadow"] == b"true"
        assert [step["variant"] for step in shadow["path"]] == ["fashion/wide"]
        np.testing.assert_allclose(value(shadow, "probs"), computed("wide", images[number : number + 1]), atol=1e-5)
    every = client.answers()
    stored = client.stored(ids)
    for number, request_id in enumerate(ids):
        assert len(every[request_id]) == 1, "one record for each request"
        assert [step["variant"] for step in answers[request_id]["path"]] == ["fashion/resnet-int8"]
        assert stored[request_id] == answers[request_id]
        np.testing.assert_allclose(value(answers[request_id], "probs"), computed("resnet-int8", images[number : number + 1]), atol=1e-5)


class Moving:
    """Requests to `moving` at a steady rate; those of a burst take their time, so that something runs whenever one looks."""

    def __init__(self, client: ForeignClient, name: str) -> None:
        self._client, self._name, self.ids = client, name, list[str]()
        self._ended = threading.Event()
        self._lock = threading.Lock()

    def send(self, pixel: int) -> None:
        with self._lock:
            request_id = f"{self._name}-{len(self.ids)}"
            self.ids.append(request_id)
        # By what a slow one takes, admission thinks that all do: there has to be time for that.
        ask(self._client, request_id, "moving", image(pixel), timeout_ms=120_000)

    def flowing(self) -> AbstractContextManager[None]:
        return beside(self._run, self._ended)

    def _run(self) -> None:
        while not self._ended.wait(0.06):
            self.send(7)

    def burst(self, stack: RunningStack) -> None:
        """Work for as long as a few commands take on this machine at this moment."""
        began_s = time.monotonic()
        moving_endpoint(stack)
        lasts_s = max(6.0, 5.0 * (time.monotonic() - began_s))
        for _ in range(int(lasts_s / moody_tasks.PAUSE_S)):
            self.send(moody_tasks.PAUSES)
        self._client.flush()


def moving_endpoint(stack: RunningStack) -> tuple[int | None, dict[str, int]]:
    """(revision, how many run on which) as `headrace get endpoints` says."""
    shown = stack.headrace("get", "endpoints")
    revisions = {endpoint["name"]: endpoint["revision"] for endpoint in shown["endpoints"]}
    return revisions.get("moving"), shown["running"].get("moving", {})


def write_moving(stack: RunningStack, *, first: str) -> str:
    file = stack.folder / f"moving-{first}.yaml"
    text = (stack.folder / "faults.yaml").read_text().rpartition("---\n")[2]
    assert "name: moving" in text
    file.write_text(text.replace("name: first", f"name: {first}").replace("first.image", f"{first}.image"))
    return str(file)


def test_a_graph_is_replaced_under_load(stack: RunningStack, client: ForeignClient) -> None:
    assert moving_endpoint(stack)[0] == 1
    assert client.topics("stage.moving.") == ["stage.moving.answer", "stage.moving.first"]
    traffic = Moving(client, "replaced")
    with traffic.flowing():
        traffic.burst(stack)
        (change,) = stack.headrace("apply", write_moving(stack, first="other"))["applied"]
        assert change["change"] == "changed"
        assert moving_endpoint(stack)[0] == 2
        # What runs is said once a second.
        until(lambda: {"1", "2"} <= moving_endpoint(stack)[1].keys(), "requests of both revisions run", within_s=WITHIN_S)
        until(lambda: moving_endpoint(stack)[1].keys() <= {"2"}, "the last request of the first revision ends", within_s=WITHIN_S)
        time.sleep(0.5)
    answers = answered(client, *traffic.ids)
    assert Counter(answer["outcome"] for answer in answers.values()) == {"completed": len(traffic.ids)}
    paths = Counter(tuple(step["stage"] for step in answer["path"]) for answer in answers.values())
    assert paths.keys() == {("first", "answer"), ("other", "answer")}, paths
    until(lambda: client.topics("stage.moving.") == ["stage.moving.answer", "stage.moving.other"], "the old stage's topic goes", within_s=30)


def test_a_graph_is_deleted_under_load_and_made_again(stack: RunningStack, client: ForeignClient) -> None:
    traffic = Moving(client, "deleted")
    with traffic.flowing():
        traffic.burst(stack)
        stack.headrace("delete", "endpoint", "moving")
        revision, running = moving_endpoint(stack)
        assert revision is None
        assert sum(running.values()) > 0, "what was accepted runs on"
        time.sleep(0.5)
    answers = answered(client, *traffic.ids)
    outcomes = Counter((answer["outcome"], answer.get("error", {}).get("code", "")) for answer in answers.values())
    assert outcomes.keys() == {("completed", ""), ("rejected", "unknown_endpoint")}, outcomes
    assert outcomes["completed", ""] >= 10
    until(lambda: not client.topics("stage.moving."), "its stage topics go", within_s=30)
    stack.headrace("apply", write_moving(stack, first="again"))
    until(lambda: moving_endpoint(stack)[0] in (2, 3), "it is there again, of the revision after its last")
    ask(client, "made-again", "moving", image(7))
    assert answered(client, "made-again")["made-again"]["outcome"] == "completed"


def test_at_the_end_the_log_explains_a_request_of_each_kind(stack: RunningStack, client: ForeignClient, kafka_address: str) -> None:
    """What this test asks for, and one request of each endpoint and end that the others have had."""
    ask(client, "told-done", "moods", image(7), parameters={"do": "none"})
    ask(client, "told-failed", "moods", image(7), parameters={"do": "raise"})
    ask(client, "told-expired", "moods", image(7), parameters={"do": "hang"}, timeout_ms=400)
    ask(client, "told-rejected", "moods", image(7), min_accuracy=1.0)
    ask(client, "told-unknown", "nobody", image(7))
    ask(client, "told-shadow", "fashion-shadow", image(7), timeout_ms=20_000)
    answered(client, *(f"told-{end}" for end in ("done", "failed", "expired", "rejected", "unknown", "shadow")))
    until(lambda: any(message.key() == b"told-shadow" for message in client.records("tap.responses")), "the shadow", within_s=WITHIN_S)
    kinds: dict[tuple[str, ...], str] = {}
    first = client.first_answers()
    for request_id, (answer, _) in sorted(first.items(), key=lambda item: not item[0].startswith("told-")):
        code = answer.get("error", {}).get("code", "")
        kinds.setdefault((answer["endpoint"], answer["outcome"], code), request_id)
    assert {outcome for _, outcome, _ in kinds} == {"completed", "failed", "expired", "rejected"}

    async def traces() -> dict[str, Trace]:
        log = KafkaLog(kafka_address)
        try:
            return {name: await trace_request(log, Names(client.prefix), name, since_ms=0) for name in kinds.values()}
        finally:
            await log.close()

    found = asyncio.run(traces())
    for (endpoint, outcome, code), name in kinds.items():
        events = found[name].events
        said = [event.what for event in events]
        assert (found[name].outcome, said[0], said.count("answered")) == (outcome, "arrived", 1), found[name]
        assert repr(endpoint) in events[0].detail
        end = next(event for event in events if event.what == "answered")
        assert code in end.detail
        handed_out = bool(first[name][0]["attempts"])
        assert ("sent" in said) == handed_out, found[name]
        assert outcome != "rejected" or not handed_out
    stages = {name: {event.stage for event in trace.events if event.what in ("sent", "stage")} for name, trace in found.items()}
    assert stages["told-done"] == {"calm", "answer"}, "each stage has its line"
    assert [event.what for event in found["told-rejected"].events] == ["arrived", "answered"]
    assert "LookupError" in next(event for event in found["told-failed"].events if event.what == "stage").detail
    (shadow,) = [event for event in found["told-shadow"].events if event.what == "shadow"]
    assert shadow.data["path"][0]["variant"] == "fashion/wide"
    shown = stack.headrace("trace", "told-done")
    assert [event["what"] for event in shown["events"]] == [event.what for event in found["told-done"].events]


def test_at_the_end_every_stage_record_has_been_read(client: ForeignClient) -> None:
    assert len(client.topics("stage.")) > 10
    until(lambda: not client.stage_lag(), "the stage topics have no lag", within_s=WITHIN_S)

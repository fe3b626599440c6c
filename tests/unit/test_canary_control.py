"""The watcher of canaries and `headrace canary` on the log in memory: a bad candidate goes back by itself, commands and labels are heard."""

from __future__ import annotations

import asyncio
import time

import pytest
from prometheus_client import CollectorRegistry

from broker.canary import CanaryControl
from broker.memory import MemoryLog
from deploy.canary import canary_standings, change_canary
from deploy.snapshots import read_catalog, read_topic
from schemas.canary import PROMOTED, ROLLED_BACK, RUNNING, CanaryCommand, canary_topic, canary_topics, encode_canary
from schemas.catalog import EndpointSpec, catalog_key, encode_catalog
from schemas.errors import CatalogError
from schemas.feedback import feedback_topic, labels_of
from schemas.graph import CanaryNode, GraphSpec, Guardrails, StageNode
from schemas.names import Names
from schemas.tap import SHADOW_HEADER
from schemas.terminal import JSON_TYPE, MSGPACK_TYPE, OutputTensor, PathStep, Terminal, decode_terminal, encode_terminal

NAMES = Names("canary-test")
STAGE = StageNode(task="t", inputs={"image": "request.image"})


def endpoint(percent=0.0, **rails):
    which = CanaryNode(
        stable="old", candidate="new", steps=(20.0, 60.0), step_requests=20, percent=percent, guardrails=Guardrails(latency_p99=None, **rails)
    )
    return EndpointSpec(name="e", graph=GraphSpec(nodes={"old": STAGE, "new": STAGE, "which": which}, output="which"), revision=1)


def terminal(request_id, stage, *, outcome="completed", label=1, encoding=JSON_TYPE):
    scores = [1.0 if at == label else 0.0 for at in range(3)]
    step = PathStep(stage=stage, variant="t/v", accuracy=1, accelerator="cpu", device="d", queued_ms=0, computed_ms=1, batch_size=1)
    answer = Terminal(
        id=request_id,
        outcome=outcome,
        endpoint="e",
        outputs=[OutputTensor("probs", [1, 3], "FP64", scores)] if outcome == "completed" else None,
        path=[step],
        received_ms=0,
        finished_ms=9,
        attempts=1,
        epoch=1,
        version=1,
    )
    return (request_id.encode(), encode_terminal(answer, encoding), ())


class Stage:
    def __init__(self, log):
        self.log, self.leading, self.running = log, True, []
        self.writer = log.writer("test")

    async def start(self, spec):
        await self.log.create_topics([*NAMES.topics(shards=2), *canary_topics(NAMES)])
        await self.writer.start()
        await self.put(NAMES.catalog, (catalog_key(spec), encode_catalog(spec), ()))

    async def control(self, name="planner", leading=None):
        made = CanaryControl(self.log, NAMES, name=name, leading=leading or (lambda: self.leading), registry=CollectorRegistry())
        task = asyncio.create_task(made.run())
        self.running.append((made, task))
        await until(lambda: not made.unready(), "started")
        return made

    async def put(self, topic, *messages, partition=0):
        await self.writer.write(topic, partition, messages)

    async def standing(self):
        (found,) = await canary_standings(self.log, NAMES)
        return found

    async def stop(self):
        for made, task in self.running:
            made.stop()
            await task
        await self.log.close()


async def until(condition, what, seconds=10.0):
    give_up = time.monotonic() + seconds
    while True:
        found = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < give_up, what
        await asyncio.sleep(0.01)


@pytest.fixture
async def stage():
    made = Stage(MemoryLog())
    yield made
    await made.stop()


def watching(control):
    return lambda: control._following


async def test_a_bad_candidate_goes_back_by_itself_and_says_why(stage):
    await stage.start(endpoint(60.0))
    control = await stage.control()
    await until(watching(control), "watched")
    await stage.put(NAMES.responses, *(terminal(f"o{at}", "old") for at in range(100)), partition=1)
    await stage.put(NAMES.responses, (b"x", b"garbage", ()), (b"x", None, ()), *(terminal(f"n{at}", "new", outcome="failed") for at in range(15)))

    async def back():
        return (await stage.standing()).phase == ROLLED_BACK

    await until(back, "rolled back")
    standing = await stage.standing()
    assert standing.percent == 0.0
    assert "candidate answers failed" in standing.reason
    assert max(weighed.strength for weighed in standing.evidence) >= 1
    await until(lambda: not control._following, "answers are read no more")


async def test_a_good_candidate_is_promoted_step_by_step(stage):
    await stage.start(endpoint(0.0))
    control = await stage.control()
    assert (await change_canary(stage.log, NAMES, "e", CanaryCommand(action="start"))).percent == 20.0
    await until(watching(control), "watched")
    for percent in (60.0, 100.0):
        await stage.put(
            NAMES.responses, *(terminal(f"o{percent}{at}", "old") for at in range(40)), *(terminal(f"n{percent}{at}", "new") for at in range(20))
        )

        async def moved(percent=percent):
            return (await stage.standing()).percent == percent

        await until(moved, f"{percent} %")
    assert (await stage.standing()).phase == PROMOTED


async def test_a_successor_goes_on_with_what_was_counted(stage):
    await stage.start(endpoint(60.0))
    first = await stage.control("first")
    await until(watching(first), "watched")
    await stage.put(NAMES.responses, *(terminal(f"n{at}", "new") for at in range(7)))

    async def counted():
        return (await stage.standing()).candidate_answers == 7

    await until(counted, "seven were counted and said")
    stage.leading = False
    await until(lambda: not first._book.watches, "leads no more")
    await stage.put(NAMES.responses, *(terminal(f"m{at}", "new") for at in range(5)))
    second = await stage.control("second", leading=lambda: True)
    await until(lambda: second._book.watches and second._book.watches["e", "which"].judge.state.candidate.answered == 12, "goes on at seven")


async def test_commands_are_heard_on_the_topic(stage):
    await stage.start(endpoint(0.0))
    await stage.control()
    await stage.put(
        canary_topic(NAMES), (b"e", b'{"action": "jump"}', ()), (b"e", encode_canary(CanaryCommand(action="set", percent=25.0, reason="mlops")), ())
    )

    async def moved():
        return (await read_catalog(stage.log, NAMES)).endpoints["e"].graph.nodes["which"].percent == 25.0

    await until(moved, "25 %")
    assert (await stage.standing()).reason in ("mlops", "0 of 20 candidate answers of this step")


async def test_shadows_and_labels_are_compared(stage):
    await stage.start(endpoint(60.0, agreement=0.9))
    control = await stage.control()
    await until(watching(control), "watched")
    await stage.put(NAMES.responses, *(terminal(f"n{at}", "new", label=at % 2) for at in range(10)))
    # Answers that are tapped say nothing about agreement.
    await stage.put(NAMES.tap_responses, *(terminal(f"n{at}", "old", label=at % 2) for at in range(10)))
    shadows = [terminal(f"n{at}", "old", label=1) for at in range(10)]
    await stage.put(NAMES.tap_responses, *((key, value, [(SHADOW_HEADER, b"true")]) for key, value, _ in shadows))
    state = control._book.watches["e", "which"].judge.state
    await until(lambda: state.pairs == 10, "paired")
    assert state.disagreed == 5
    await stage.put(feedback_topic(NAMES), (b"n1", b'{"labels": [1]}', ()), (b"n2", b'{"correct": false}', ()), (b"n3", b'{"labels": [0]}', ()))
    await until(lambda: state.candidate.labelled == 3, "labelled")
    assert state.candidate.wrong == 2


async def test_by_hand_without_anything_running(stage):
    await stage.start(endpoint(0.0))
    assert (await stage.standing()).phase == "off"
    for command, percent, phase in [
        (CanaryCommand(action="start"), 20.0, RUNNING),
        (CanaryCommand(action="set", percent=42.0), 42.0, RUNNING),
        (CanaryCommand(action="rollback", reason="no good"), 0.0, ROLLED_BACK),
        (CanaryCommand(action="promote"), 100.0, PROMOTED),
    ]:
        await change_canary(stage.log, NAMES, "e", command)
        standing = await stage.standing()
        assert (standing.percent, standing.phase) == (percent, phase)
    assert (await read_catalog(stage.log, NAMES)).endpoints["e"].revision == 1


async def test_wrong_commands_by_hand_are_refused_in_words(stage):
    await stage.start(endpoint(20.0))
    for name, command, said in [
        ("ee", CanaryCommand(action="start"), "did you mean 'e'|known: e"),
        ("e", CanaryCommand(action="start", node="wich"), "did you mean 'which'"),
        ("e", CanaryCommand(action="set"), "--percent"),
    ]:
        with pytest.raises(CatalogError, match=said):
            await change_canary(stage.log, NAMES, name, command)
    await change_canary(stage.log, NAMES, "e", CanaryCommand(action="set", percent=30.0))
    with pytest.raises(CatalogError, match="runs already, at 30 %"):
        await change_canary(stage.log, NAMES, "e", CanaryCommand(action="start"))
    assert len(await read_topic(stage.log, canary_topic(NAMES))) == 1


def test_labels_are_argmax_of_scores_or_the_values():
    def of(tensor, encoding=JSON_TYPE):
        answer = Terminal(
            id="a", outcome="completed", outputs=[tensor] if tensor else None, path=[], received_ms=0, finished_ms=1, attempts=1, epoch=1, version=1
        )
        return labels_of(decode_terminal(encode_terminal(answer, encoding)))

    assert of(OutputTensor("p", [2, 3], "FP32", [0, 1, 0, 5, 2, 3])) == (1, 0)
    assert of(OutputTensor("l", [2], "INT64", [7, 8])) == (7, 8)
    assert of(OutputTensor("t", [1], "BYTES", b"\x02\x00\x00\x00ab"), MSGPACK_TYPE) == ("ab",)
    assert of(OutputTensor("p", [2, 3], "FP32", [0])) is None
    assert of(None) is None

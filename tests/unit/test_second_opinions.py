"""A sampled answer of a plain endpoint is asked of the most accurate variant, too: as a shadow that waits for room, and that nothing hangs on."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from policy_graph_stage import fashion
from policy_stage import START_MS, plan, report, request

from broker.messages import tap_message, work_message
from broker.policy import events as ev
from broker.policy.dispatcher import DispatcherPolicy
from broker.policy.entry import SHADOW_PRIORITY, Commands, Send
from broker.policy.graph_requests import SECOND_OPINIONS_MAX
from broker.policy.settings import DispatcherSettings
from broker.policy.watermark import Watermark
from graphs.second_opinion import AGREEMENT, is_sampled
from scaler.policy.stage_topics import needed_topics, orphans
from schemas.catalog import AgreementSpec, Catalog, EndpointSpec, TaskSpec
from schemas.limits import Limits
from schemas.names import Names
from schemas.stage import STAGE_VERSION, StageRecord, TensorHead
from schemas.tap import SHADOW_HEADER
from schemas.telemetry import Departed
from schemas.terminal import decode_terminal
from schemas.work import WORK_HEADER, decode_order

NAMES = Names("p")


class AnyRecord(msgspec.Struct):
    """What the shell reads."""

    value: bytes = b"{}"
    headers: tuple[tuple[str, bytes], ...] = ()


def catalog(share: float = 1.0, task: TaskSpec | None = None) -> Catalog:
    endpoint = EndpointSpec(name="fashion", task="fashion", agreement=AgreementSpec(sample=share))
    return Catalog({"fashion": task or fashion()}, {"fashion": endpoint})


class Stage:
    """One dispatcher, and one worker whose plan is to answer with the cheapest variant that the floor allows."""

    def __init__(self, share: float = 1.0, task: TaskSpec | None = None) -> None:
        self.now_ms = START_MS
        self.policy = DispatcherPolicy("d0", DispatcherSettings(), Limits())
        self.policy.step(ev.CatalogObserved(catalog(share, task)), START_MS)
        self.policy.step(ev.PlanObserved(plan("w0", shares={"fashion": {"fashion/linear": 1.0}})), START_MS)
        self.policy.step(ev.TelemetryObserved(report("w0")), START_MS)
        self.policy.step(ev.ShardAssigned(0, Watermark()), START_MS)
        self.policy.step(ev.ShardRecovered(0), START_MS)

    def step(self, event: ev.Event, after_ms: float = 1.0) -> Commands:
        self.now_ms += after_ms
        return self.policy.step(event, self.now_ms)

    def ask(self, key: str, floor: float = 0.8) -> Send:
        entry = request(key, self.now_ms, floor=floor, payload=AnyRecord())
        entry.offset = self.policy.shards[0].next_offset
        # What else waits goes when its turn comes.
        return next(send for send in self.step(ev.Arrived(0, [entry])).sends if send.entry is entry)

    def answered(self, *keys: str, missed: tuple[str, ...] = ()) -> list[Send]:
        done = ev.Answered(0, [key.encode() for key in keys], frozenset(key.encode() for key in missed))
        return self.step(done).sends

    def opinion(self, send: Send, values: np.ndarray, *, error: str = "") -> Commands:
        data = values.astype("<f4").tobytes()
        record = StageRecord(
            STAGE_VERSION,
            "fashion",
            0,
            send.entry.instance,
            1,
            send.variant,
            send.accuracy,
            "cpu",
            "cpu0",
            1,
            2,
            1,
            int(self.now_ms),
            tensors=() if error else (TensorHead("probs", "FP32", values.shape, len(data)),),
            error_code=error,
        )
        return self.step(ev.StagesDone(0, [(b"a", record, b"" if error else data)]))


def test_what_a_cheaper_variant_answered_is_asked_of_the_best_one_when_there_is_room() -> None:
    stage = Stage()
    assert stage.ask("a").variant != "fashion/wide"
    (send,) = stage.answered("a")
    assert (send.variant, send.entry.priority, send.entry.instance) == ("fashion/wide", SHADOW_PRIORITY, AGREEMENT)
    assert stage.policy.live == 0, "the request itself is done"
    assert stage.policy.commits()[0][0] == 1, "and the watermark past it"
    key, value, headers = work_message(send, 1, NAMES)
    order = decode_order(dict(headers)[WORK_HEADER])
    assert (key, value) == (b"a", b"{}")
    assert order.part is not None
    assert (order.part.topic, order.part.request_inputs, order.part.answers) == ("p.stage.fashion.agreement", {"image": "image"}, {})
    commands = stage.opinion(send, np.eye(1, 10))
    (tap,) = commands.taps
    assert (commands.answers, commands.dead_letters) == ([], [])
    key, value, headers = tap_message(tap, 1, stage.now_ms, NAMES)
    said = decode_terminal(value or b"")
    assert (key, said.id, said.endpoint, said.outcome) == (b"a", "a", "fashion", "completed")
    assert [step.variant for step in said.path] == ["fashion/wide"]
    assert dict(headers)[SHADOW_HEADER] == b"true"
    assert dict(headers)["ce_id"] == b"a/agreement"
    assert len(stage.policy.graphs) == 0


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_ids_alone_decide_which(share: float) -> None:
    stage = Stage(share)
    keys = [f"r{number}" for number in range(200)]
    asked: set[str] = set()
    for key in keys:
        stage.ask(key)
        asked |= {send.entry.root.key.decode() for send in stage.answered(key) if send.entry.root is not None}
        stage.policy.graphs.stage_topics()
    waiting = {request.entry.key.decode() for request in stage.policy.graphs._requests.values()}
    assert asked | waiting == {key for key in keys if is_sampled(key, share)}
    assert len(asked | waiting) == pytest.approx(200 * share, abs=30 * (0 < share < 1))


def test_nothing_is_compared_of_the_best_variants_own_answers_nor_of_what_was_not_completed() -> None:
    stage = Stage()
    assert stage.ask("best", floor=0.933).variant == "fashion/wide"
    assert stage.answered("best") == []
    stage.ask("late")
    assert stage.answered("late", missed=("late",)) == []
    assert len(stage.policy.graphs) == 0


def test_a_second_opinion_waits_for_an_empty_lane_and_is_given_up_after_as_long_as_the_request_had() -> None:
    stage = Stage()
    others = [f"other-{number}" for number in range(20)]
    for key in ("a", *others):
        stage.ask(key, floor=0.8 if key == "a" else 0.933)
    assert stage.answered("a") == [], "the lane has work"
    assert (len(stage.policy.graphs), stage.policy.waiting) == (1, 1)
    turns = [bool(stage.answered(key)) for key in others]
    assert turns.count(True) == 1
    assert turns.index(True) > 10, "what clients wait for comes first"
    stage = Stage()
    for key in ("a", *others):
        stage.ask(key, floor=0.8 if key == "a" else 0.933)
    assert stage.answered("a") == []
    commands = stage.step(ev.Ticked(), after_ms=2_100.0)
    assert (len(stage.policy.graphs), stage.policy.waiting, commands.taps) == (0, 0, [])
    assert {answer.entry.key.decode() for answer in commands.answers} == set(others), "nothing more is said of what has its answer"


def test_one_that_fails_or_loses_its_workers_ends_in_silence() -> None:
    stage = Stage()
    stage.ask("a")
    (send,) = stage.answered("a")
    commands = stage.opinion(send, np.eye(1, 10), error="backend_error")
    assert (commands.taps, commands.answers, commands.dead_letters) == ([], [], [])
    stage = Stage()
    stage.ask("a")
    sends, incarnation = stage.answered("a"), 1
    for _ in range(5):
        letters = stage.step(ev.TelemetryObserved(Departed(role="worker", name="w0", incarnation=incarnation, at_ms=int(stage.now_ms)))).dead_letters
        assert letters == []
        incarnation += 1
        sends += stage.step(ev.TelemetryObserved(report("w0", incarnation=incarnation))).sends
    assert len(sends) == 3, "three attempts, as everything has"
    assert all(send.entry.instance == AGREEMENT for send in sends)


def test_a_crowd_of_second_opinions_is_bounded() -> None:
    stage = Stage()
    for number in range(SECOND_OPINIONS_MAX + 50):
        stage.ask(f"r{number}")
    stage.answered(*(f"r{number}" for number in range(SECOND_OPINIONS_MAX + 50)))
    assert len(stage.policy.graphs) == SECOND_OPINIONS_MAX
    assert stage.policy.graphs.running() == {}, "they run on no graph of the endpoint's"


def test_nothing_is_asked_where_there_is_nothing_to_compare_with() -> None:
    (only, *_) = fashion().variants
    stage = Stage(task=TaskSpec(name="fashion", variants=(only,)))
    stage.ask("a", floor=0.0)
    assert stage.answered("a") == []
    bare = TaskSpec(name="fashion", variants=tuple(msgspec.structs.replace(variant, inputs=()) for variant in fashion().variants))
    stage = Stage(task=bare)
    stage.ask("a")
    assert stage.answered("a") == [], "nobody knows which tensors it takes"


def test_its_topic_is_kept_while_the_endpoint_asks_for_it() -> None:
    topic = NAMES.stage("fashion", AGREEMENT)
    assert needed_topics(catalog(), NAMES) == {"fashion": {topic}}
    assert orphans([topic], catalog(), [{}], NAMES) == []
    plain = Catalog({"fashion": fashion()}, {"fashion": EndpointSpec(name="fashion", task="fashion")})
    assert orphans([topic], plain, [{}], NAMES) == [topic]

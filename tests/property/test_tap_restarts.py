"""Whatever the interleaving of reading, and however often a tap is killed and restarted: the same requests are given out, each once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.policy.tap_join import TapJoin, TapJoinLimits, TapPosition
from broker.policy.tap_sampling import ceiling, fraction
from schemas.catalog import EndpointSpec
from schemas.tap import TapSample, TapSpec
from schemas.terminal import TERMINAL_VERSION, PathStep, Terminal, encode_terminal

SAMPLE = TapSample(rate=0.4, outcomes={"expired": 0.9, "rejected": 0.1}, variants={"t/b": 0.7})
ENDPOINTS = {"e": EndpointSpec(name="e", task="t", taps=TapSpec(sample=SAMPLE))}
REQUESTS = "requests"


def answered(request_id: str, outcome: str, variant: str) -> bytes:
    step = PathStep(stage="main", variant=variant, accuracy=1, accelerator="cpu", device="d", queued_ms=0, computed_ms=0, batch_size=1)
    path = [step] if outcome == "completed" else []
    return encode_terminal(
        Terminal(
            id=request_id, outcome=outcome, endpoint="e", path=path, received_ms=0, finished_ms=0, attempts=1, epoch=1, version=TERMINAL_VERSION
        ),
        "application/json",
    )


@dataclass
class Log:
    """A shard: requests and answers, each in its order; an answer is written after its request."""

    requests: list[bytes] = field(default_factory=list)
    answers: list[tuple[bytes, bytes, int]] = field(default_factory=list)
    """Key, value, and how many requests were in the log then."""
    expected: set[str] = field(default_factory=set)


@st.composite
def logs(draw: st.DrawFn) -> Log:
    log = Log()
    waiting: list[str] = []
    for number in range(draw(st.integers(1, 40))):
        request_id = f"r{number}"
        log.requests += [request_id.encode()] * draw(st.sampled_from([1, 1, 1, 2]))
        waiting.append(request_id)
        while waiting and draw(st.booleans()):
            one = waiting.pop(draw(st.integers(0, len(waiting) - 1)))
            outcome = draw(st.sampled_from(["completed", "expired", "rejected", "failed"]))
            variant = draw(st.sampled_from(["t/a", "t/b"]))
            for repeated in range(draw(st.sampled_from([1, 1, 2]))):
                # A late second answer says something else.
                log.answers.append((one.encode(), answered(one, outcome if not repeated else "failed", variant), len(log.requests)))
            if fraction(one.encode()) < SAMPLE.rate_of(outcome, variant if outcome == "completed" else ""):
                log.expected.add(one)
    return log


class Tap:
    """Reads a log as the shell does, in turns; what was stored survives its death."""

    def __init__(self) -> None:
        self.stored: list[str] = []
        self.position = TapPosition(0, 0, {REQUESTS: 0})
        self.start()

    def start(self) -> None:
        self.join = TapJoin(0, self.position, TapJoinLimits(remembered=6))
        self.join.endpoints, self.join.ceiling = ENDPOINTS, ceiling(ENDPOINTS)
        self.asked, self.next = self.position.low[REQUESTS], self.position.answers_low

    def turn(self, log: Log, answers: int, ahead: int, *, dies: bool) -> None:
        batch = log.answers[self.next : self.next + answers]
        self.join.begin(self.next, {REQUESTS: self.asked})
        end = len(log.requests)
        read_to = max([0, *(written for _, _, written in batch)]) + ahead
        while self.asked < end and (self.asked < read_to or any(self.join.misses(key, self.next + at) for at, (key, _, _) in enumerate(batch))):
            self.join.ask(log.requests[self.asked], b"{}", (), 0)
            self.asked += 1
        given_out = [self.join.answer(key, value, 0, self.next + at) for at, (key, value, _) in enumerate(batch)]
        self.next += len(batch)
        if dies:
            self.start()
            return
        self.stored += [exchange.head.id for exchange in given_out if exchange is not None]
        self.position = self.join.position(self.next)


TURNS = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 5), st.booleans()), max_size=40)


@settings(max_examples=300, deadline=None)
@given(log=logs(), lives=st.lists(TURNS, min_size=2, max_size=2), restarts=st.booleans())
def test_two_taps_give_out_the_same_requests_each_once(log: Log, lives: list[list[tuple[int, int, bool]]], *, restarts: bool) -> None:
    found: list[Counter[str]] = []
    for turns in lives:
        tap = Tap()
        for answers, ahead, dies in turns:
            tap.turn(log, answers, ahead, dies=dies)
            if restarts:
                tap.start()
        while tap.next < len(log.answers) or tap.position.answers < len(log.answers):
            tap.turn(log, 10, 0, dies=False)
        found.append(Counter(tap.stored))
    assert found[0] == found[1] == Counter(log.expected)

"""Which tallies feedback counts in: late, repeated, conflicting and unknown ids, other models and labels, and what a successor counts."""

from __future__ import annotations

import msgspec
import pytest
from accuracy_stage import TASK, answer, catalog, step_of

from scaler.policy.accuracy import AccuracyBook
from scaler.policy.accuracy_window import WindowSettings
from schemas.catalog import EndpointSpec
from schemas.feedback import Feedback
from schemas.graph import GraphSpec, StageNode
from schemas.learned import decode_accuracy_state, encode_learned
from schemas.terminal import MSGPACK_TYPE, OutputTensor


class Stage:
    """Feeds a book at rising offsets."""

    def __init__(self, book=None, present=None, **settings):
        self.book = book or AccuracyBook(settings=WindowSettings(**settings))
        self.book.observe_catalog(present or catalog())
        self.offsets = {"responses:0": 0, "feedback:0": 0}

    def place(self, topic):
        at = self.offsets[topic]
        self.offsets[topic] += 1
        return topic, at

    def answer(self, request_id, *labels, at_ms=0, **stated):
        self.book.answer(self.place("responses:0"), at_ms, request_id.encode(), answer(request_id, *labels, **stated))

    def say(self, request_id, *labels, at_ms=0, **stated):
        feedback = Feedback(labels=labels or None, **stated)
        self.book.feedback(self.place("feedback:0"), at_ms, request_id.encode(), feedback)
        self.book.settle()

    def tally(self, key="t/small"):
        tally = self.book.variants.get(key)
        return (0.0, 0.0) if tally is None else (tally.right, tally.wrong)

    @property
    def counts(self):
        return {name: count for name, count in msgspec.structs.asdict(self.book.counts).items() if count}


@pytest.fixture
def stage():
    return Stage()


def test_rows_are_judged_one_by_one(stage):
    stage.answer("a", 1, 2, 3)
    stage.say("a", 1, 2, 0)
    assert stage.tally() == (2.0, 1.0)
    assert stage.counts == {"credited": 1}


def test_feedback_may_come_before_the_answer(stage):
    stage.say("a", 1)
    assert (stage.book.state("me", 0).waiting, stage.tally()) == (1, (0.0, 0.0))
    stage.answer("a", 1)
    assert (stage.book.state("me", 0).waiting, stage.tally()) == (0, (1.0, 0.0))


def test_said_again_it_counts_once(stage):
    stage.answer("a", 1)
    stage.say("a", 1)
    stage.say("a", 1)
    assert (stage.tally(), stage.counts) == ((1.0, 0.0), {"credited": 1, "repeated": 1})


def test_the_last_word_counts_within_the_window(stage):
    stage.answer("a", 1)
    stage.say("a", 1)
    stage.say("a", 2)
    assert (stage.tally(), stage.counts) == ((0.0, 1.0), {"credited": 1, "conflicting": 1})
    stage.say("b", 0)
    stage.say("b", 3)
    stage.answer("b", 3)
    assert (stage.tally(), stage.counts) == ((1.0, 1.0), {"credited": 2, "conflicting": 2})


def test_what_nobody_asked_is_kept_until_the_windows_end_and_counted():
    stage = Stage(window_ms=1_000)
    stage.say("nobody", 1, at_ms=0)
    stage.answer("other", 1, at_ms=1_000)
    assert stage.counts == {}
    stage.answer("another", 1, at_ms=1_001)
    stage.book.settle()
    assert stage.counts == {"unmatched": 1}


def test_feedback_that_comes_after_the_window_changes_nothing():
    stage = Stage(window_ms=1_000)
    stage.answer("a", 1, at_ms=0)
    stage.say("a", 1, at_ms=1_001)
    stage.answer("b", 1, at_ms=3_000)
    stage.book.settle()
    assert (stage.tally(), stage.counts) == ((0.0, 0.0), {"unmatched": 1})


def test_a_clock_that_jumps_back_forgets_nothing():
    stage = Stage(window_ms=1_000)
    stage.answer("a", 1, at_ms=5_000)
    stage.say("a", 1, at_ms=10)
    assert stage.tally() == (1.0, 0.0)


def test_the_window_is_bounded_in_number_and_bytes():
    stage = Stage(answers_max=3)
    for at in range(4):
        stage.answer(f"r{at}", 1)
    stage.say("r0", 1)
    stage.say("r1", 1)
    assert stage.tally() == (1.0, 0.0)
    small = Stage(answers_bytes_max=len(answer("r0", 1)) * 2 + 1)
    for at in range(3):
        small.answer(f"r{at}", 1)
    small.say("r0", 1)
    small.say("r2", 1)
    assert small.tally() == (1.0, 0.0)
    waiting = Stage(waiting_max=2)
    for at in range(5):
        waiting.say(f"w{at}", 1)
    assert (waiting.book.state("me", 0).waiting, waiting.counts) == (2, {"unmatched": 3})


@pytest.mark.parametrize("outcome", ["expired", "rejected", "failed"])
def test_feedback_for_what_has_no_answer_is_counted_as_that(stage, outcome):
    stage.answer("a", outcome=outcome)
    stage.say("a", 1)
    assert (stage.tally(), stage.counts) == ((0.0, 0.0), {"unanswered": 1})


def test_the_first_answer_is_the_one_that_is_judged(stage):
    stage.answer("a", outcome="expired")
    stage.answer("a", 1)
    stage.say("a", 1)
    assert stage.counts == {"unanswered": 1}


@pytest.mark.parametrize("said", [{"labels": (1, 2)}, {"labels": ("Sneaker",)}, {"output": OutputTensor("logits", [1], "INT64", [1])}])
def test_labels_of_another_kind_judge_nothing(stage, said):
    stage.answer("a", 1)
    stage.book.feedback(stage.place("feedback:0"), 0, b"a", Feedback(**said))
    assert (stage.tally(), stage.counts) == ((0.0, 0.0), {"incomparable": 1})


def test_scores_and_whole_judgements_and_correct_tensors(stage):
    stage.answer("a", 1)
    stage.answer("b", 1)
    stage.answer("c", 1, 2, encoding=MSGPACK_TYPE)
    stage.answer("d", 2)
    stage.say("a", score=0.75)
    stage.say("b", correct=False)
    stage.say("c", output=OutputTensor("probs", [2, 4], "FP64", [0.0, 1.0005, 0.0, 0.0, 0.0, 0.9, 0.1, 0.0]))
    stage.say("d", label=2)
    assert stage.tally() == (0.75 + 0.0 + 1.0 + 1.0, 0.25 + 1.0 + 1.0)


def test_what_is_no_feedback_or_no_answer_is_counted_or_passed_over(stage):
    stage.say("a")
    stage.book.feedback(stage.place("feedback:0"), 0, b"", Feedback(correct=True))
    stage.book.invalid(stage.place("feedback:0"))
    stage.book.answer(stage.place("responses:0"), 0, b"x", b"not a record")
    stage.say("x", 1)
    assert stage.counts == {"invalid": 3, "unanswered": 1}


def test_graphs_are_judged_by_path_and_their_variants_are_not():
    node = StageNode(task="t", inputs={})
    present = catalog()
    present.endpoints["g"] = EndpointSpec(name="g", graph=GraphSpec(nodes={"one": node, "two": node}, output="two"))
    stage = Stage(present=present)
    path = [step_of("t/cut", "zero"), step_of("t/small", "one"), step_of("t/large", "two#1"), step_of("t/large", "two#0")]
    stage.answer("a", 1, endpoint="g", path=path)
    stage.say("a", 1)
    assert stage.book.variants == {}
    assert [(p, t.right, t.promised) for p, t in stage.book.paths["g"].items()] == [("one=small,two=large", 1.0, 0.9)]


def test_another_model_begins_anew_and_what_is_gone_is_forgotten(stage):
    stage.answer("a", 1)
    stage.say("a", 1)
    stage.answer("b", 1, variant="t/large")
    stage.say("b", 1)
    changed = tuple(msgspec.structs.replace(v, sha256="cc") if v.name == "small" else v for v in TASK.variants if v.name != "large")
    stage.book.observe_catalog(catalog(msgspec.structs.replace(TASK, variants=changed)))
    assert {key: (t.right, t.model) for key, t in stage.book.variants.items()} == {"t/small": (0.0, "cc")}


def test_a_successor_counts_nothing_twice_and_leaves_nothing_out(stage):
    stage.answer("a", 1)
    stage.answer("b", 1)
    stage.say("a", 1)
    stage.say("late", 2)
    state = decode_accuracy_state(encode_learned(stage.book.state("me", 5)))
    successor = Stage(AccuracyBook(state))
    successor.answer("a", 1)
    successor.answer("b", 1)
    successor.say("a", 1)
    successor.say("late", 2)
    assert (successor.tally(), successor.counts) == ((1.0, 0.0), {"credited": 1})
    successor.say("b", 2)
    successor.answer("late", 2)
    successor.say("a", 3)
    assert (successor.tally(), successor.counts) == ((1.0, 2.0), {"credited": 3, "conflicting": 1})


def test_a_variant_below_its_promise_is_found_and_told_once(stage):
    for at in range(300):
        stage.answer(f"r{at}", 1, variant="t/large")
        stage.say(f"r{at}", 1 if at % 5 else 2)
    (found,) = stage.book.findings
    assert (found.name, found.tally.flagged, found.tally.promised) == ("t/large", True, 0.95)
    assert stage.book.learned().variants["t/large"].model == "bb"
    assert abs(stage.book.learned().variants["t/large"].accuracy - 0.8) < 0.05

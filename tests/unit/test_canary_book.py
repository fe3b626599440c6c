"""Which canaries are watched and what is written: catalog, commands, answers of both arms, and a change of leaders."""

from __future__ import annotations

import msgspec
import pytest

from broker.policy.canary import CanaryBook
from graphs.advance import advance
from graphs.canary_arms import arms, canaries, with_percent
from graphs.compiled import compile_graph
from graphs.events import Started
from graphs.run import Run
from schemas.alerts import Alert
from schemas.canary import PROMOTED, ROLLED_BACK, RUNNING, CanaryCommand, CanaryStatus, decode_status, encode_canary
from schemas.catalog import EndpointSpec, TaskSpec, VariantSpec
from schemas.feedback import Feedback
from schemas.graph import CanaryNode, Case, EnsembleNode, ForEachNode, GraphSpec, Guardrails, ShadowNode, StageNode, SwitchNode
from schemas.terminal import ErrorDetail, PathStep, TerminalHead

STAGE = StageNode(task="t", inputs={"image": "request.image"})


def graph(percent=0.0, **changes):
    stated = {"steps": (10.0, 50.0, 100.0), "step_requests": 10, "guardrails": Guardrails(failed_share=0.02, latency_p99=None)}
    return GraphSpec(
        nodes={"old": STAGE, "new": STAGE, "which": CanaryNode(stable="old", candidate="new", percent=percent, **(stated | changes))}, output="which"
    )


def endpoint(percent=0.0, name="e", **changes):
    return EndpointSpec(name=name, graph=graph(percent, **changes), revision=3)


def step_of(stage):
    return PathStep(stage=stage, variant="t/v", accuracy=1, accelerator="cpu", device="d", queued_ms=0, computed_ms=1, batch_size=1)


def head(stage, outcome="completed", request_id="r", name="e", error=None):
    return TerminalHead(
        id=request_id,
        outcome=outcome,
        path=[step_of(stage)] if stage else [],
        received_ms=1_000,
        finished_ms=1_010,
        attempts=1,
        epoch=1,
        version=1,
        endpoint=name,
        error=error,
    )


class Answers:
    """Feeds a book with answers at rising offsets."""

    def __init__(self, book, place="responses:0"):
        self.book, self.place, self.offset = book, place, 0

    def __call__(self, stage, count=1, **stated):
        for _ in range(count):
            self.book.answer(self.place, self.offset, head(stage, **stated), None)
            self.offset += 1


@pytest.fixture
def book():
    made = CanaryBook("me")
    made.lead(leading=True)
    return made


def percent_of(written):
    assert written.endpoint is not None
    assert written.endpoint.graph is not None
    return written.endpoint.graph.nodes["which"].percent


def test_a_canary_is_watched_while_the_catalog_gives_it_requests(book):
    book.endpoint("e", endpoint(0.0))
    assert book.watches == {}
    book.endpoint("e", endpoint(10.0))
    assert list(book.watches) == [("e", "which")]
    assert book.watches["e", "which"].judge.state.percent == 10.0
    book.endpoint("e", None)
    assert book.watches == {}


def test_a_good_candidate_goes_through_all_steps_and_is_promoted(book):
    book.endpoint("e", endpoint(10.0))
    answers, percents = Answers(book), []
    for _ in range(3):
        answers("old", 20)
        answers("new", 10)
        (written,) = book.step(5.0)
        percents.append((written.status.phase, written.status.percent))
        if written.endpoint is not None:
            book.endpoint("e", written.endpoint)
    assert percents == [(RUNNING, 50.0), (RUNNING, 100.0), (PROMOTED, 100.0)]
    assert book.watches == {}
    assert book.step(6.0) == []


def test_a_bad_candidate_is_rolled_back_with_the_evidence(book):
    book.endpoint("e", endpoint(50.0))
    answers = Answers(book)
    answers("old", 200)
    answers("new", 10, outcome="failed")
    (written,) = book.step(5.0)
    assert percent_of(written) == 0.0
    assert written.endpoint.revision == 3
    assert (written.status.phase, written.status.changed_ms, written.status.by) == (ROLLED_BACK, 5, "me")
    assert written.status.evidence[0].strength >= 1
    assert decode_status(encode_canary(written.status)) == written.status
    assert book.watches == {}


def test_an_arm_is_told_by_what_ran_or_failed_and_other_endpoints_do_not_count(book):
    book.endpoint("e", endpoint(50.0))
    answers = Answers(book)
    answers("new", 2, name="other")
    answers("", 3, outcome="failed", error=ErrorDetail("backend_error", "broke", "new"))
    answers("", 4, outcome="rejected")
    answers("elsewhere", 2)
    watch = book.watches["e", "which"]
    assert (watch.judge.state.candidate.failed, watch.unattributed) == (3, 6)


def test_what_ended_before_it_ran_counts_for_the_arm_that_the_dispatcher_chose(book):
    spec = endpoint(30.0)
    book.endpoint("e", spec)
    compiled = compile_graph(spec.graph, {"t": TaskSpec(name="t", variants=(VariantSpec(name="v", accuracy=1.0),))})
    chosen = {"old": 0, "new": 0}
    for at in range(200):
        run = Run(compiled, f"r{at}", "", 0.0, 1e12)
        (command,) = advance(run, Started({}, {}), 0.0)
        chosen[command.instance] += 1
        book.answer("responses:0", at, head("", outcome="expired", request_id=f"r{at}"), None)
    state = book.watches["e", "which"].judge.state
    assert (state.stable.late, state.candidate.late) == (chosen["old"], chosen["new"])
    assert 30 < chosen["new"] < 90


def test_without_the_id_to_go_by_such_an_answer_counts_for_nobody(book):
    book.endpoint("e", endpoint(30.0, sticky="tenant"))
    Answers(book)("", 3, outcome="expired")
    assert book.watches["e", "which"].unattributed == 3


def test_a_command_is_carried_out_once_whoever_leads(book):
    book.endpoint("e", endpoint(0.0))
    book.command("e", 7, CanaryCommand(action="start", reason="try it"))
    (written,) = book.step(1.0)
    assert (percent_of(written), written.status.reason, written.status.command) == (10.0, "try it", 7)
    book.command("e", 7, CanaryCommand(action="start"))
    assert book.step(2.0) == []
    successor = CanaryBook("next")
    successor.command("e", 7, CanaryCommand(action="start"))
    successor.endpoint("e", written.endpoint)
    successor.status(written.status)
    successor.lead(leading=True)
    assert successor.step(3.0) == []


@pytest.mark.parametrize(
    ("command", "percent", "phase"),
    [
        (CanaryCommand(action="set", percent=25.0), 25.0, RUNNING),
        (CanaryCommand(action="set", percent=0.0), 0.0, ROLLED_BACK),
        (CanaryCommand(action="promote"), 100.0, PROMOTED),
        (CanaryCommand(action="rollback"), 0.0, ROLLED_BACK),
        (CanaryCommand(action="start", percent=3.0, node="which"), 3.0, RUNNING),
    ],
)
def test_commands(book, command, percent, phase):
    book.endpoint("e", endpoint(10.0))
    book.command("e", 1, command)
    (written,) = book.step(1.0)
    assert (percent_of(written), written.status.phase) == (percent, phase)
    assert (("e", "which") in book.watches) == (phase == RUNNING)


def test_what_cannot_be_carried_out_is_said(book):
    book.endpoint("e", endpoint(10.0))
    for at, (name, command) in enumerate(
        [("gone", CanaryCommand(action="start")), ("e", CanaryCommand(action="set")), ("e", CanaryCommand(action="start", node="old"))]
    ):
        book.command(name, at, command)
        assert book.step(1.0) == []
    assert [problem.split(":")[0] for problem in book.problems] == ["start of endpoint 'gone'", "set of endpoint 'e'", "start of endpoint 'e'"]


def test_a_new_leader_goes_on_where_the_last_one_was(book):
    book.endpoint("e", endpoint(50.0))
    answers = Answers(book)
    answers("old", 30)
    answers("new", 4, outcome="failed")
    (standing,) = book.standings(1.0)
    successor = CanaryBook("next")
    successor.endpoint("e", endpoint(50.0))
    successor.status(decode_status(encode_canary(standing)))
    successor.lead(leading=True)
    assert successor.start_offsets() == {"responses:0": 34}
    again = Answers(successor)
    again("new", 36, outcome="failed")
    assert successor.watches["e", "which"].judge.state.candidate.failed == 6, "34 of these were counted before"
    assert book.watches["e", "which"].judge.state.candidate.failed == 4


def test_a_share_set_by_somebody_else_begins_a_step(book):
    book.endpoint("e", endpoint(10.0))
    Answers(book)("new", 5)
    book.endpoint("e", endpoint(25.0))
    state = book.watches["e", "which"].judge.state
    assert (state.percent, state.step, state.candidate.answered) == (25.0, 2, 0)


def test_a_promoted_canary_is_left_alone_even_by_a_successor():
    book = CanaryBook("next")
    book.endpoint("e", endpoint(100.0))
    book.status(CanaryStatus(endpoint="e", node="which", phase=PROMOTED, percent=100.0))
    book.lead(leading=True)
    assert book.watches == {}


def test_promotion_and_restart_by_hand_reach_the_leader(book):
    book.endpoint("e", endpoint(100.0))
    Answers(book)("new", 3)
    book.status(CanaryStatus(endpoint="e", node="which", phase=PROMOTED, percent=100.0, by="headrace canary"))
    assert book.watches == {}
    book.endpoint("e", endpoint(10.0))
    book.status(CanaryStatus(endpoint="e", node="which", phase=RUNNING, percent=10.0, by="headrace canary"))
    assert book.watches["e", "which"].judge.state.step == 1


def test_its_own_standing_that_comes_back_changes_nothing(book):
    book.endpoint("e", endpoint(50.0))
    answers = Answers(book)
    answers("new", 3)
    (standing,) = book.standings(1.0)
    answers("new", 3)
    book.status(decode_status(encode_canary(standing)))
    assert book.watches["e", "which"].judge.state.candidate.answered == 6


def test_who_does_not_lead_neither_watches_nor_writes(book):
    book.lead(leading=False)
    book.endpoint("e", endpoint(50.0))
    book.command("e", 1, CanaryCommand(action="rollback"))
    assert (book.step(1.0), book.watches, book.standings(1.0)) == ([], {}, [])
    book.lead(leading=True)
    assert [written.status.phase for written in book.step(1.0)] == [ROLLED_BACK]


def test_another_graph_under_the_same_name_begins_again(book):
    book.endpoint("e", endpoint(50.0))
    Answers(book)("new", 3)
    nodes = dict(graph(50.0).nodes) | {"newer": STAGE}
    nodes["which"] = msgspec.structs.replace(nodes["which"], candidate="newer")
    book.endpoint("e", EndpointSpec(name="e", graph=GraphSpec(nodes=nodes, output="which"), revision=4))
    assert book.watches["e", "which"].judge.state.candidate.answered == 0


def test_pairs_come_of_shadows_on_the_same_request(book):
    book.endpoint("e", endpoint(50.0, guardrails=Guardrails(agreement=0.9)))
    assert book.compares
    for at in range(6):
        book.answer("responses:0", at, head("new", request_id=f"r{at}"), (at,))
        book.shadow("tap:0", at, head("old", request_id=f"r{at}"), (0,))
        book.shadow("tap:1", at, head("elsewhere", request_id=f"r{at}"), (9,))
    state = book.watches["e", "which"].judge.state
    assert (state.pairs, state.disagreed) == (6, 5)
    assert (state.candidate.answered, state.stable.answered) == (6, 0), "a shadow's answer counts for agreement alone"


def test_a_shadow_that_is_read_first_pairs_too_and_takes_no_label(book):
    book.endpoint("e", endpoint(50.0, guardrails=Guardrails(agreement=0.9)))
    book.shadow("tap:0", 0, head("old"), (1,))
    book.answer("responses:0", 0, head("new"), (1,))
    book.answer("responses:0", 1, head("new"), (1,))
    book.feedback("feedback:0", 0, "r", Feedback(correct=False))
    state = book.watches["e", "which"].judge.state
    assert (state.pairs, state.disagreed, state.candidate.wrong, state.stable.labelled) == (1, 0, 1, 0)


def test_feedback_counts_for_the_arm_that_answered(book):
    book.endpoint("e", endpoint(50.0))
    book.answer("responses:0", 0, head("new", request_id="a"), (3,))
    book.answer("responses:0", 1, head("old", request_id="b"), (3,))
    said = [
        ("a", Feedback(labels=(4,))),
        ("b", Feedback(labels=(3,))),
        ("a", Feedback(correct=True)),
        ("x", Feedback(correct=True)),
        ("a", Feedback()),
    ]
    for at, (request_id, feedback) in enumerate(said):
        book.feedback("feedback:0", at, request_id, feedback)
    state = book.watches["e", "which"].judge.state
    assert (state.candidate.labelled, state.candidate.wrong, state.stable.labelled, state.stable.wrong) == (1, 1, 1, 0), "the first word counts"


# --- where canaries are, and what tells their arms ---


def nested():
    inner = {"read": STAGE, "read2": STAGE, "reader": CanaryNode(stable="read", candidate="read2")}
    nodes = {
        "shared": STAGE,
        "small": StageNode(task="t", inputs={"image": "shared.probs"}),
        "large": StageNode(task="t", inputs={"image": "shared.probs"}),
        "other": StageNode(task="t", inputs={"image": "shared.probs"}),
        "sure": SwitchNode(cases=(Case("max(small.probs) > 0.8", "small"),), otherwise="large"),
        "both": EnsembleNode(members=("large", "other")),
        "seen": ShadowNode(primary="both", copy="sure"),
        "which": CanaryNode(stable="sure", candidate="seen"),
        "lines": ForEachNode(over={"line": "which.lines"}, nodes=inner, output="reader"),
    }
    return GraphSpec(nodes=nodes, output="lines")


def test_arms_are_what_only_one_of_them_needs():
    told = arms(nested(), "which")
    assert told.stable == {"sure", "small"}
    assert told.candidate == {"seen", "both", "other"}
    assert told.of(["shared", "large", "other"]) == "candidate"
    assert told.of(["shared", "large"]) is None
    assert told.of(["small", "other"]) is None


def test_canaries_inside_a_for_each_have_paths():
    spec = nested()
    assert list(canaries(spec)) == ["which", "lines/reader"]
    told = arms(spec, "lines/reader")
    assert told.of(["lines/read2#3"]) == told.of(["lines/read2"]) == "candidate"
    changed = with_percent(spec, "lines/reader", 5.0)
    assert canaries(changed)["lines/reader"].percent == 5.0
    assert canaries(changed)["which"].percent == 0.0
    for path in ("lines/none", "which/reader", "lines/read"):
        with pytest.raises(KeyError):
            arms(spec, path)
    with pytest.raises(KeyError):
        with_percent(spec, "lines/read", 5.0)


def test_a_for_each_as_an_arm_is_told_by_the_stages_inside_it():
    inner = {"read": STAGE}
    nodes = {
        "rows": ForEachNode(over={"line": "request.lines"}, nodes=inner, output="read"),
        "whole": STAGE,
        "which": CanaryNode(stable="rows", candidate="whole"),
    }
    assert arms(GraphSpec(nodes=nodes, output="which"), "which").of(["rows/read#12"]) == "stable"


def found(endpoint="e", severity="warning"):
    return Alert(source="river", kind="drift", message="confidence has drifted", endpoint=endpoint, severity=severity, at_ms=1)


def test_an_alert_takes_a_candidate_back_where_that_is_asked_for(book):
    book.endpoint("e", endpoint(50.0))
    book.alert("alerts:0", 0, found())
    assert book.step(1.0) == [], "nobody asked for it"
    book.endpoint("e", endpoint(50.0, alerts=True))
    book.alert("alerts:0", 1, found(severity="info"))
    book.alert("alerts:0", 2, found(endpoint="other"))
    book.alert("alerts:0", 0, found())
    assert book.step(2.0) == [], "neither what is told for information, nor of others, nor twice"
    book.alert("alerts:0", 3, found())
    (written,) = book.step(3.0)
    assert (written.status.phase, percent_of(written)) == (ROLLED_BACK, 0.0)
    assert written.status.reason == "river alerts (drift): confidence has drifted"

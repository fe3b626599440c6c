"""What a dispatcher tells of each endpoint: demand by floor, what ended and how, and where its graph's rows went."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from policy_graph_stage import GraphStage, probs
from policy_stage import START_MS, dispatcher, request

from broker.policy import events as ev
from broker.policy.endpoint_counts import FLOORS_MAX, EndpointCounters
from broker.policy.report import dispatcher_report
from broker.policy.settings import DispatcherSettings
from schemas.graph import Case, ForEachNode, GraphSpec, StageNode, SwitchNode
from schemas.telemetry import EndpointCounts, decode_telemetry, encode_telemetry
from schemas.terminal import JSON_TYPE, MSGPACK_TYPE, OUTCOMES, TERMINAL_VERSION, Terminal, encode_terminal, outcome_of

CASCADE = GraphSpec(
    nodes={
        "quick": StageNode(task="fashion", inputs={"image": "request.image"}, variants=("linear", "cnn")),
        "sure": SwitchNode(cases=(Case("max(quick.probs) >= 0.8", "quick"),), otherwise="slow"),
        "slow": StageNode(task="fashion", inputs={"image": "request.image"}),
    },
    output="sure",
)


def counts_of(policy: object, name: str, now_ms: float = START_MS) -> EndpointCounts:
    said = dispatcher_report(policy, "d0", 1, now_ms, (0,))  # type: ignore[arg-type]
    assert decode_telemetry(encode_telemetry(said)) == said
    return said.endpoints[name]


def test_demand_is_counted_by_floor_and_mistakes_are_not_demand() -> None:
    policy = dispatcher("w0")
    entries = [
        request("a", floor=0.9),
        request("b", floor=0.9, rows=4, timeout_ms=500),
        request("c"),
        request("too-good", floor=0.99),
        request("nobody", endpoint="nobody"),
        request("hurry", timeout_ms=1),
    ]
    policy.step(ev.Arrived(0, entries), START_MS)
    said = dispatcher_report(policy, "d0", 1, START_MS, (0,))
    counts = said.endpoints["fashion"]
    assert counts.arrived == {"0.9": 2, "0.0": 2}
    assert (counts.rows, counts.missed, counts.ended, counts.timeout_ms) == (7, 1, 0, 1.0)
    assert said.arrived == {"fashion": {"fashion/cnn": 2, "fashion/linear": 2}}
    assert set(said.endpoints) == {"fashion"}


def test_what_ended_is_counted_and_what_came_late_or_expired_was_missed() -> None:
    policy = dispatcher("w0")
    policy.step(ev.Arrived(0, [request("in-time"), request("late"), request("expired"), request("never")]), START_MS)
    policy.step(ev.Answered(0, [b"in-time"]), START_MS + 100.0)
    policy.step(ev.Answered(0, [b"late"]), START_MS + 1_020.0)
    answers = policy.step(ev.Ticked(), START_MS + 1_100.0).answers
    assert {answer.entry.key for answer in answers} == {b"expired", b"never"}
    policy.step(ev.Answered(0, [b"expired"]), START_MS + 1_101.0)
    counts = counts_of(policy, "fashion", START_MS + 1_200.0)
    assert (counts.ended, counts.missed) == (3, 3)


def test_what_a_worker_failed_or_expired_was_missed() -> None:
    policy = dispatcher("w0")
    policy.step(ev.Arrived(0, [request("a"), request("b"), request("c")]), START_MS)
    policy.step(ev.Answered(0, [b"a", b"b", b"c"], frozenset({b"a", b"c"})), START_MS + 100.0)
    counts = counts_of(policy, "fashion", START_MS + 200.0)
    assert (counts.ended, counts.missed) == (3, 2)


@pytest.mark.parametrize("content_type", [JSON_TYPE, MSGPACK_TYPE])
@pytest.mark.parametrize("outcome", OUTCOMES)
def test_a_terminal_record_says_its_outcome(outcome: Any, content_type: str) -> None:
    terminal = Terminal(id="a", endpoint="e", outcome=outcome, path=[], received_ms=1, finished_ms=2, attempts=1, epoch=1, version=TERMINAL_VERSION)
    value = encode_terminal(terminal, content_type)
    assert outcome_of(value, b"a") == outcome
    assert outcome_of(value, b"b") is None
    assert outcome_of(b"{", b"a") is None


def test_what_waits_is_counted_by_endpoint() -> None:
    policy = dispatcher()
    policy.step(ev.Arrived(0, [request(f"r{at}", timeout_ms=60_000) for at in range(7)]), START_MS)
    assert counts_of(policy, "fashion").waiting == 7


def test_rows_of_a_graph_are_followed_from_stage_to_stage_by_variant() -> None:
    unsure = {"q2", "q3", "q4"}
    stage = GraphStage(CASCADE, lambda send: probs(0.6 if send.entry.root.key.decode() in unsure else 0.9))  # type: ignore[union-attr]
    stage.ask(*(f"q{at}" for at in range(6)), floor=0.0)
    stage.run()
    stages = counts_of(stage.policy, "garment", stage.now_ms).stages
    assert stages["quick"].rows == sum(stages["quick"].done.values()) == 6
    assert stages["slow"].rows == sum(led.get("slow", 0) for led in stages["quick"].led_to.values()) == 3


def test_rows_inside_a_for_each_count_each() -> None:
    graph = GraphSpec(
        nodes={
            "rows": ForEachNode(
                over={"image": "request.image"}, nodes={"look": StageNode(task="fashion", inputs={"image": "row.image"})}, output="look"
            )
        },
        output="rows",
    )
    stage = GraphStage(graph, lambda _: probs(0.9))
    stage.ask("one", "two")
    stage.run()
    counts = counts_of(stage.policy, "garment", stage.now_ms)
    assert counts.stages["rows/look"].rows == sum(counts.stages["rows/look"].done.values()) == 6


def test_floors_without_end_are_counted_at_the_next_above() -> None:
    counters = EndpointCounters(DispatcherSettings())
    floors = [at / 1000.0 for at in range(2 * FLOORS_MAX)]
    for floor in [*floors[::2], *floors[1::2]]:
        counters.arrived(msgspec.structs.replace(request("x", floor=floor), deadline_ms=9), None, {"fashion"})
    told = counters.published([], 0, {"fashion"})["fashion"].arrived
    assert len(told) == FLOORS_MAX
    assert sum(told.values()) == 2 * FLOORS_MAX
    assert told["0.062"] == 3  # its own, the one below, and the one above, for which there is none higher
    assert counters.published([], 0, set()) == {}

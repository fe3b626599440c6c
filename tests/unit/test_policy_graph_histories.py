"""Random histories of requests on graphs: workers die, orders are lost, records come twice, the dispatcher starts anew; each request ends once."""

from __future__ import annotations

from random import Random

import pytest
from policy_graph_stage import GraphStage, probs
from policy_stage import report
from test_policy_graphs import CHAIN, EACH, EMPTY, ENSEMBLE, SHADOW

from broker.policy import events as ev
from broker.policy.entry import Entry
from schemas.graph import GraphSpec
from schemas.telemetry import Departed

GRAPHS = {"chain": CHAIN, "ensemble": ENSEMBLE, "shadow": SHADOW, "each": EACH}


class History:
    """One seeded run; `terminals` counts the records that each request would have in the log."""

    def __init__(self, graph: GraphSpec, seed: int) -> None:
        self.random = Random(seed)
        self.stage = GraphStage(graph, lambda send: None if self.random.random() < 0.03 else probs(self.random.random()))
        self.incarnation = 1
        self.asked: list[Entry] = []

    def run(self, steps: int) -> None:
        operations = [self.ask] * 3 + [self.work] * 8 + [self.tick] * 2 + [self.again, self.lose, self.die, self.restart]
        for _ in range(steps):
            self.random.choice(operations)()
        for _ in range(50):
            self.stage.run()
            self.stage.tick(500.0)
            self.come_back()

    def ask(self) -> None:
        timeout_ms = self.random.choice((50, 300, 3_000))
        self.asked += self.stage.ask(f"r{len(self.asked)}", floor=self.random.choice((0.0, 0.85)), timeout_ms=timeout_ms)

    def work(self) -> None:
        if self.stage.due:
            self.stage.work(self.stage.due.pop(self.random.randrange(len(self.stage.due))))

    def tick(self) -> None:
        self.stage.tick(self.random.uniform(1.0, 60.0))

    def again(self) -> None:
        if self.stage.log:
            self.stage.step(ev.StagesDone(0, [self.random.choice(self.stage.log)]))

    def lose(self) -> None:
        """An order never reaches its worker."""
        if self.stage.due:
            self.stage.due.pop(self.random.randrange(len(self.stage.due)))

    def die(self) -> None:
        self.stage.due.clear()
        at_ms = int(self.stage.now_ms)
        self.stage.step(ev.TelemetryObserved(Departed(role="worker", name="w0", incarnation=self.incarnation, at_ms=at_ms)))
        self.come_back()

    def come_back(self) -> None:
        self.incarnation += 1
        self.stage.now_ms += 5.0
        self.stage.heard(report("w0", incarnation=self.incarnation, at_ms=int(self.stage.now_ms)))

    def restart(self) -> None:
        """A successor reads the requests that have no terminal record again, and the stage records from the beginning."""
        self.stage.incarnation = self.incarnation
        ended = {answer.entry.key for answer in self.stage.answers} | {send.entry.root.key for send in self.stage.finals if send.entry.root}
        self.stage.policy = self.stage.started(recovered=False)
        self.stage.due.clear()
        fresh = [
            Entry(old.key, 0, at, old.received_ms, "garment", old.floor, None, old.timeout_ms, 0, "", 1, 100, object())
            for at, old in enumerate(self.asked)
        ]
        self.stage.step(ev.Answered(0, sorted(ended)))
        self.stage.step(ev.Arrived(0, fresh))
        self.stage.step(ev.StagesDone(0, list(self.stage.log)))
        self.stage.step(ev.ShardRecovered(0))


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("seed", range(40))
def test_every_request_ends_once_whatever_happens(name: str, seed: int) -> None:
    history = History(GRAPHS[name], seed)
    history.run(120)
    first: dict[bytes, str] = {}
    for key, outcome in history.stage.terminals:
        first.setdefault(key, outcome)
    assert set(first) == {entry.key for entry in history.asked}
    assert history.stage.left() == EMPTY
    for answer in history.stage.answers:
        if answer.outcome == "completed":
            assert (answer.accuracy or 0.0) >= (answer.entry.floor or 0.0) - 1e-9

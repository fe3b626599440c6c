"""Each checker of the simulator sees what it is for, in histories made by hand; a history in which all is well it lets pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from policy_stage import LADDER, START_MS, plan, request

from broker.policy.entry import Entry, Send
from broker.policy.watermark import Watermark
from scaler.simulator.checking.bounds import Bounds, bounds_of
from scaler.simulator.checking.checkers import Checkers
from scaler.simulator.records import Request
from scaler.simulator.scenario import Fault, Hop, Scenario
from scaler.simulator.watching import Ended
from schemas.catalog import Catalog, EndpointSpec, TaskSpec, VariantSpec
from schemas.graph import ForEachNode, GraphSpec, StageNode
from schemas.work import order_name

T = START_MS
CNN, WIDE = "fashion/cnn", "fashion/wide"
ACCURACY = {f"fashion/{name}": accuracy for name, (accuracy, _) in LADDER.items()}


def catalog() -> Catalog:
    variants = tuple(VariantSpec(name=name, accuracy=accuracy) for name, (accuracy, _) in LADDER.items())
    row = StageNode(task="fashion", inputs={})
    graph = GraphSpec(nodes={"lines": ForEachNode(over={}, nodes={"read": row}, output="read")}, output="lines")
    endpoints = {"fashion": EndpointSpec(name="fashion", task="fashion"), "page": EndpointSpec(name="page", graph=graph)}
    return Catalog({"fashion": TaskSpec(name="fashion", variants=variants)}, endpoints)


class History:
    """Tells the checkers a story with one dispatcher and one worker; times are milliseconds of the story."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        self.checkers = Checkers(catalog(), bounds=bounds, memory_bytes_max={"w0": 100}, p95_ms={CNN: 5.0})
        self.entries: dict[str, Entry] = {}
        self.offsets = 0
        self.checkers.dispatcher(T, "d0", True)
        self.checkers.planned(T, plan("w0"))
        self.start("w0", 1)

    def start(self, name: str, incarnation: int, at: float = 0.0) -> None:
        self.checkers.worker(T + at, name, incarnation, True)
        self.checkers.hosted(T + at, name, incarnation, {CNN: 40, WIDE: 50}, 90)

    def offer(self, key: str, at: float = 0.0, *, floor: float = 0.0, timeout: int = 1_000, endpoint: str = "fashion") -> None:
        self.entries[key] = request(key, T + at, endpoint=endpoint)
        self.checkers.offered([(T + at, Request(key.encode(), int(T + at), endpoint, floor, timeout, "", 1), 0, self.offsets)])
        self.offsets += 1

    def send(self, key: str, at: float = 10.0, *, attempt: int = 1, worker: str = "w0", variant: str = CNN, row: str = "") -> None:
        entry = self.entries[key]
        if row:
            name = order_name(key, row).encode()
            entry = Entry(name, 0, -1, entry.received_ms, "page", 0.0, None, None, 0, "", 1, 0, None, root=entry, instance=row)
        life = self.checkers._book.workers.get(worker)
        self.checkers.sent(T + at, "d0", [Send(entry, "cpu", 0, worker, life.incarnation if life else 1, variant, ACCURACY[variant], attempt)])

    def compute(self, *keys: str, at: float = 20.0, worker: str = "w0", variant: str = CNN, incarnation: int = 1, rows: int = 0) -> None:
        self.checkers.computing(T + at, worker, incarnation, variant, keys, rows or len(keys))

    def end(
        self, key: str, outcome: str = "completed", at: float = 30.0, *, accuracy: float | None = None, by: str = "w0", finished: float = 0
    ) -> None:
        completed = outcome == "completed"
        reached = (ACCURACY[CNN] if accuracy is None else accuracy) if completed else None
        path = [(CNN, ACCURACY[CNN])] if completed else []
        self.checkers.terminal([Ended(T + at, key.encode(), outcome, reached, T + (finished or at), by, path)])

    def whole(self, key: str, at: float = 0.0) -> None:
        """A request's good life."""
        self.offer(key, at)
        self.send(key, at + 1)
        self.compute(key, at=at + 2)
        self.end(key, at=at + 3)

    def commit(self, offset: int, finished: tuple[int, ...] = (), at: float = 50.0) -> None:
        watermark = Watermark(offset)
        for one in finished:
            watermark.finish(one)
        self.checkers.committed(T + at, "d0", 0, watermark.low, watermark.metadata(0, 4_000))

    def found(self) -> set[str]:
        return {violation.checker for violation in self.checkers.violations}


def test_nothing_is_said_of_a_history_in_which_all_is_well() -> None:
    story = History()
    for number in range(5):
        story.whole(f"r{number}", at=number * 10.0)
    story.commit(3, (4,))
    story.offer("late", 60, timeout=100)
    story.end("late", "expired", 170, by="d0")
    story.offer("refused", 60)
    story.end("refused", "rejected", 61, by="d0")
    story.offer("twice", 200)
    story.send("twice", 201)
    story.checkers.worker(T + 210, "w0", 1, False)
    story.start("w0", 2, 300)
    story.send("twice", 310, attempt=2)
    story.compute("twice", at=320, incarnation=2)
    story.end("twice", at=330)
    story.end("twice", "expired", 400)
    story.commit(8)
    story.checkers.planned(T + 500, plan("w0", epoch=2))
    story.checkers.ended(T + 5_000)
    assert story.checkers.violations == ()


def late_completion(story: History) -> None:
    story.offer("a", timeout=100)
    story.send("a")
    story.compute("a")
    story.end("a", at=190, finished=99)


def finished_late(story: History) -> None:
    story.offer("a", timeout=100)
    story.send("a")
    story.compute("a")
    story.end("a", at=110)


def below_the_floor(story: History) -> None:
    story.offer("a", floor=0.92)
    story.send("a")
    story.compute("a")
    story.end("a")


def dishonest(story: History) -> None:
    story.offer("a")
    story.send("a")
    story.compute("a")
    story.end("a", accuracy=0.93)


def never_computed(story: History) -> None:
    story.offer("a")
    story.send("a")
    story.end("a")


def no_outcome(story: History) -> None:
    story.whole("a")
    story.offer("b")
    story.checkers.ended(T + 9_000)


def answered_for_nobody(story: History) -> None:
    story.end("ghost")


def rejected_after_work(story: History) -> None:
    story.offer("a")
    story.send("a")
    story.end("a", "rejected", by="d0")


def expired_late(story: History) -> None:
    story.offer("a", timeout=100)
    story.end("a", "expired", 400, by="d0")


def not_hosted(story: History) -> None:
    story.offer("a")
    story.send("a")
    story.checkers.hosted(T + 15, "w0", 1, {WIDE: 50}, 90)
    story.compute("a")


def dead_worker(story: History) -> None:
    story.offer("a")
    story.send("a")
    story.checkers.worker(T + 15, "w0", 1, False)
    story.compute("a")


def sent_to_the_unready(story: History) -> None:
    story.offer("a")
    story.send("a", variant="fashion/resnet")


def sent_to_nobody(story: History) -> None:
    story.offer("a")
    story.send("a", worker="w7")


def too_much_memory(story: History) -> None:
    story.checkers.hosted(T + 15, "w0", 1, {CNN: 40, WIDE: 50}, 140)


def too_large_a_batch(story: History) -> None:
    keys = [f"k{number}" for number in range(33)]
    for key in keys:
        story.offer(key)
        story.send(key)
    story.compute(*keys)


def a_fourth_attempt(story: History) -> None:
    story.offer("a")
    for attempt in range(1, 5):
        story.send("a", attempt * 10.0, attempt=attempt)


def an_attempt_uncounted(story: History) -> None:
    story.offer("a")
    story.send("a")
    story.compute("a")
    story.start("w0", 2, 25)
    story.send("a", 40)


def two_leases_at_once(story: History) -> None:
    story.offer("a")
    story.start("w1", 1)
    story.send("a")
    story.send("a", 12, worker="w1")


def computed_unasked(story: History) -> None:
    story.offer("a")
    story.compute("a")


def sent_after_the_end(story: History) -> None:
    story.whole("a")
    story.send("a", 900, attempt=2)


def a_watermark_too_high(story: History) -> None:
    story.whole("a")
    story.offer("b")
    story.whole("c")
    story.commit(2)


def a_bitmap_that_lies(story: History) -> None:
    story.offer("a")
    story.whole("b")
    story.offer("c")
    story.commit(0, (1, 2))


def a_watermark_beyond_the_log(story: History) -> None:
    story.whole("a")
    story.commit(2)


def an_old_epoch(story: History) -> None:
    story.checkers.planned(T + 10, plan("w0", epoch=1))


def an_old_incarnation(story: History) -> None:
    story.checkers.worker(T + 10, "w0", 1, True)


def turned_away_by_the_idle(story: History) -> None:
    story.whole("a")
    story.offer("b", 6_000, timeout=3_000)
    story.end("b", "rejected", 6_001, by="d0")


def an_order_lost(story: History) -> None:
    story.offer("a", timeout=20_000)
    story.send("a")
    story.end("a", "expired", 20_010, by="d0")


def sent_to_an_earlier_life(story: History) -> None:
    story.offer("a", 4_000)
    story.start("w0", 2, 1_000)
    entry = story.entries["a"]
    story.checkers.sent(T + 4_010, "d0", [Send(entry, "cpu", 0, "w0", 1, CNN, ACCURACY[CNN], 1)])


def came_back_for_nothing(story: History) -> None:
    story.start("w1", 1)
    story.checkers.planned(T + 1, plan("w0", "w1", epoch=2))
    story.offer("a", 5_000, timeout=3_000)
    story.send("a", 5_001)
    story.checkers.returned(T + 5_100, "w0", 1, ["a"])
    story.end("a", "expired", 8_010, by="d0")


def a_row_lost(story: History) -> None:
    story.offer("p", endpoint="page")
    for row in ("lines/read#0", "lines/read#1"):
        story.send("p", row=row)
    story.compute(order_name("p", "lines/read#0"))
    story.end("p", by="d0")


def a_row_left_out(story: History) -> None:
    story.offer("p", endpoint="page")
    for row in ("lines/read#0", "lines/read#2"):
        story.send("p", row=row)
        story.compute(order_name("p", row))
    story.end("p", by="d0")


WRONG: list[tuple[Callable[[History], None], str]] = [
    (late_completion, "completed"),
    (finished_late, "completed"),
    (below_the_floor, "floor"),
    (dishonest, "floor"),
    (never_computed, "completed"),
    (no_outcome, "outcome"),
    (answered_for_nobody, "outcome"),
    (rejected_after_work, "outcome"),
    (expired_late, "expiry"),
    (not_hosted, "hosting"),
    (dead_worker, "hosting"),
    (sent_to_the_unready, "hosting"),
    (sent_to_nobody, "hosting"),
    (too_much_memory, "memory"),
    (too_large_a_batch, "batch"),
    (a_fourth_attempt, "attempts"),
    (an_attempt_uncounted, "attempts"),
    (two_leases_at_once, "lease"),
    (computed_unasked, "lease"),
    (sent_after_the_end, "waste"),
    (a_watermark_too_high, "watermark"),
    (a_bitmap_that_lies, "watermark"),
    (a_watermark_beyond_the_log, "watermark"),
    (an_old_epoch, "epoch"),
    (an_old_incarnation, "epoch"),
    (turned_away_by_the_idle, "idle"),
    (an_order_lost, "lost"),
    (sent_to_an_earlier_life, "hosting"),
    (came_back_for_nothing, "lost"),
    (a_row_lost, "join"),
    (a_row_left_out, "join"),
]


@pytest.mark.parametrize(("tell", "checker"), WRONG, ids=lambda value: value.__name__ if callable(value) else value)
def test_what_must_not_be_is_seen(tell: Callable[[History], None], checker: str) -> None:
    story = History()
    tell(story)
    assert story.found() == {checker}, story.checkers.violations


def test_an_order_that_came_back_may_be_sent_again_as_the_same_attempt() -> None:
    story = History()
    story.start("w1", 1)
    story.offer("a")
    story.send("a")
    story.checkers.returned(T + 12, "w0", 1, ["a"])
    story.send("a", 14, worker="w1")
    assert story.checkers.violations == ()


def test_a_dead_dispatcher_explains_a_late_answer_for_a_while() -> None:
    story = History()
    story.offer("a", timeout=100)
    story.checkers.dispatcher(T + 50, "d0", False)
    story.checkers.dispatcher(T + 500, "d0", True)
    story.end("a", "expired", 900, by="d0")
    assert story.checkers.violations == ()
    story.offer("b", 10_000, timeout=100)
    story.end("b", "expired", 10_900, by="d0")
    assert story.found() == {"expiry"}


def test_an_id_that_comes_again_is_the_same_request() -> None:
    story = History()
    story.offer("a")
    story.offer("a", 5)
    story.commit(1)
    story.send("a")
    story.compute("a")
    story.end("a")
    story.checkers.ended(T + 5_000)
    assert story.checkers.violations == ()


def test_memory_does_not_grow_with_what_is_finished() -> None:
    story = History(Bounds(finished_max=10, violations_max=3))
    for number in range(100):
        story.whole(f"r{number}", at=number * 10.0)
    book = story.checkers._book
    assert (len(book.live), len(book.finished), len(book.open[0]), book.offered) == (0, 10, 0, 100)
    for number in range(5):
        story.checkers.planned(T, plan("w0", epoch=0))
        assert len(story.checkers.violations) == min(number + 1, 3)
    assert story.checkers.seen == 5


def test_bounds_follow_from_the_scenario() -> None:
    common = {"name": "s", "catalog": Catalog(), "variants": (), "workers": (), "loads": ()}
    calm = bounds_of(Scenario(**common, hop=Hop(p50_ms=1.0, p99_ms=2.0)))
    faults = (Fault(kind="delays", at_s=1, factor=10.0), Fault(kind="skew", at_s=1, skew_ms=-30.0))
    rough = bounds_of(Scenario(**common, hop=Hop(p50_ms=1.0, p99_ms=2.0), faults=faults))
    assert rough.completed_late_ms - calm.completed_late_ms == pytest.approx(9 * 4 * 2.0 + 30.0)

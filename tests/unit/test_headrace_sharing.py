"""Which tasks `headrace` lets share workers: their requests must get through behind a batch of the other."""

from __future__ import annotations

from msgspec.structs import replace
from test_headrace_dedicating import READ, graph, tasks_of
from test_headrace_optimizer import LADDER, demand, in_force, propose, snapshot, variant, workers

from scaler.optimizers.capacity import Capacity
from scaler.optimizers.headrace.hosting import Reserve
from scaler.optimizers.headrace.routes import routes_of
from scaler.optimizers.headrace.settings import HeadraceSettings
from scaler.optimizers.headrace.sharing import sharing_of
from scaler.optimizers.snapshot import EndpointDemand

BOTH = {"look", "read"}


def together(endpoints: tuple[EndpointDemand, ...], memory: int = 0, variants_max: int = 32) -> set[frozenset[str]]:
    """Tasks that may share workers."""
    asked = snapshot(endpoints, workers(4, memory=memory), LADDER + READ)
    capacity = Capacity(asked)
    routes = routes_of(asked, capacity, HeadraceSettings())
    nothing: list[dict[str, float]] = [{} for _ in routes.crews]
    named = sharing_of(asked, routes, capacity, Reserve(nothing, nothing, 60_000.0, variants_max))
    return {frozenset(task for task, name in named.items() if name == wanted) for wanted in named.values()}


def test_tasks_with_time_to_wait_for_each_other_share_all_workers() -> None:
    asked = (demand({0.0: 60.0}), demand({0.0: 10.0}, "desk", "read"))
    assert together(asked) == {frozenset(BOTH)}
    assert all(each == BOTH for each in tasks_of(propose(snapshot(asked, workers(8), LADDER + READ))))


def test_a_batch_of_the_other_must_not_make_either_late() -> None:
    slow, urgent = demand({0.0: 60.0}), demand({0.0: 10.0}, "desk", "read", timeout_ms=60.0)
    assert together((slow, urgent)) == {frozenset({"look"}), frozenset({"read"})}
    assert together((replace(slow, timeout_ms=60.0), replace(urgent, timeout_ms=500.0))) == {frozenset({"look"}), frozenset({"read"})}
    assert together((slow, replace(urgent, timeout_ms=500.0))) == {frozenset(BOTH)}


def test_stages_of_a_graph_are_never_apart() -> None:
    assert together((graph(10.0),)) == {frozenset(BOTH)}


def test_every_stage_waits() -> None:
    """A graph needs more time to share than its stages need computing."""
    other = variant("skim", 0, 40.0, 0.8)

    def parts(asked: EndpointDemand) -> int:
        both = snapshot((asked, demand({0.0: 5.0}, "news", "skim", 3_000.0)), workers(6), (*LADDER, *READ, other))
        capacity = Capacity(both)
        routes = routes_of(both, capacity, HeadraceSettings())
        nothing: list[dict[str, float]] = [{} for _ in routes.crews]
        return len(set(sharing_of(both, routes, capacity, Reserve(nothing, nothing, 60_000.0, 32)).values()))

    def apart_ms(asked: EndpointDemand) -> float:
        """The longest time-out at which it may not share."""
        return max(timeout_ms for timeout_ms in range(50, 2_000, 10) if parts(replace(asked, timeout_ms=float(timeout_ms))) > 1)

    single_ms, graph_ms = apart_ms(demand({0.0: 5.0})), apart_ms(graph(5.0))
    waited_ms = 150.0
    """The other's batch takes more than that."""
    assert single_ms > waited_ms
    assert graph_ms >= single_ms + waited_ms / 2.0


def test_tasks_that_nobody_asks_for_share_where_every_worker_has_room_for_everything() -> None:
    idle = (demand({0.0: 0.0}), demand({0.0: 0.0}, "desk", "read"))
    apart = {frozenset({"look"}), frozenset({"read"})}
    assert together(idle) == {frozenset(BOTH)}
    assert together(idle, memory=500) == {frozenset(BOTH)}
    assert together(idle, memory=400) == apart, "five variants of 100 bytes"
    assert together(idle, variants_max=4) == apart


def test_what_was_shared_while_nobody_asked_is_parted_without_a_load() -> None:
    idle = snapshot((demand({0.0: 0.0}), demand({0.0: 0.0}, "desk", "read")), workers(8), LADDER + READ)
    first = propose(idle)
    assert all(each == BOTH for each in tasks_of(first))
    had = {binding.worker: set(binding.variants) for binding in first.bindings}
    asked = replace(in_force(idle, first), endpoints=(demand({0.0: 60.0}), demand({0.0: 10.0}, "desk", "read", timeout_ms=60.0)))
    then = propose(asked)
    assert all(len(each) == 1 for each in tasks_of(then))
    assert all(set(binding.variants) <= had[binding.worker] for binding in then.bindings)


def test_only_graphs_get_shares() -> None:
    asked = (graph(10.0), demand({0.0: 5.0}, "news", "skim"))
    assert propose(snapshot(asked, workers(6), (*LADDER, *READ, variant("skim", 0, 10.0, 0.8)))).shares.keys() == BOTH

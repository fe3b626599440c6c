"""How many workers of each class, and with how many threads: Themis's rule over what is offered. Pure, with all time coming in.

Threads at once while the load rises, as far as the cores go, and workers where threads are not enough; workers for the threads when it has settled.
Who is to end leaves first: nothing is planned on it any more, the others load what they take over, then a plan unbinds it, and drained it ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from scaler.optimizers.snapshot import LOST, READY, Snapshot, Worker
from scaler.policy.actuating_leaving import Leaving, drained, taken_over, victims
from scaler.policy.actuating_needs import Needed, Room, needed
from scaler.policy.actuating_settings import ActuatingSettings
from schemas.plan import Plan
from schemas.scale import ScaleOffer, ScaleOrder

VERTICAL, HORIZONTAL = "vertical", "horizontal"
NEVER = float("-inf")


class Adjustment(msgspec.Struct, frozen=True, kw_only=True):
    """What the plan in force is to have otherwise, now."""

    unbound: frozenset[str] = frozenset()
    threads: dict[str, int] = {}
    """By worker."""
    reason: str = ""


class ClassState(msgspec.Struct):
    """What is remembered of one class."""

    wanted: int
    changed_ms: float = NEVER
    fewer: int = 0
    """Decisions running that need fewer."""
    fewer_at_most: int = 0
    """The most that one of these needs."""
    reason: str = "as it was found"
    leaving: dict[str, Leaving] = {}
    ended: tuple[str, ...] = ()
    """Those that the last order ends."""
    start_ms: float = 0.0
    """From the order for a worker until it served, the last time."""
    ordered_ms: float | None = None

    @property
    def staying(self) -> int:
        return self.wanted - len(self.leaving)


class ActuatingPolicy:
    """The caller tells `offered`, calls `look` once a second, shows planners `seen`, carries out `orders` and `adjustment`."""

    def __init__(self, settings: ActuatingSettings | None = None) -> None:
        self.settings = settings or ActuatingSettings()
        self.mode = HORIZONTAL
        self.calm = 0
        self._peak = 0
        self._offers: dict[str, tuple[ScaleOffer, float]] = {}
        self._states: dict[str, ClassState] = {}
        self._templates: dict[str, Worker] = {}
        """By class: the last worker that was ready."""
        self._known: dict[str, Snapshot] = {}
        self._threads: dict[str, int] = {}
        """By class: what bindings may have now."""
        self._stretched: set[str] = set()
        self._asked_ms = NEVER
        self._needed = Needed(counts={})

    # -- what is told

    def offered(self, offers: Iterable[ScaleOffer], now_ms: float) -> None:
        """What can be asked for, whenever it was said again."""
        for offer in offers:
            if offer.least <= offer.most:
                self._offers[offer.accelerator] = (offer, now_ms)
                self._states.setdefault(offer.accelerator, ClassState(min(max(offer.wanted, offer.least), offer.most)))

    # -- what is asked

    def look(self, snapshot: Snapshot, now_ms: float, *, rebinding: bool = False) -> Adjustment | None:
        """Decide; what the plan is to have otherwise at once, if anything. `rebinding`: steps of a plan are still to come."""
        offers = self._current(now_ms)
        if not offers:
            return None
        snapshot = self._without_ended(snapshot, now_ms)
        self._learn(snapshot, offers, now_ms)
        targets = self._targets(snapshot, offers, now_ms)
        for name, target in targets.items():
            self._follow(self._states[name], offers[name], target, snapshot, now_ms)
        self._end_drained(snapshot, now_ms)
        return None if rebinding else self._adjustment(snapshot, offers, now_ms)

    def seen(self, snapshot: Snapshot, now_ms: float) -> Snapshot:
        """The snapshot as planners are to see it: who leaves is lost, and nobody has more threads than it may have now."""
        snapshot = self._without_ended(snapshot, now_ms)
        # Where nothing is offered any more nobody would end whom nothing is planned on.
        leaving = {who: entry for name in self._current(now_ms) for who, entry in self._states[name].leaving.items()}
        for entry in leaving.values():
            entry.seen = True
        workers = tuple(_lost(worker) if worker.name in leaving else self._limited(worker, snapshot) for worker in snapshot.workers)
        return msgspec.structs.replace(snapshot, workers=workers)

    def planned(self) -> None:
        """It was decided about a plan for what `seen` showed last: taken, or the one in force is as good."""
        for state in self._leaving().values():
            state.planned = state.planned or state.seen

    def orders(self, plan: Plan, now_ms: float) -> dict[str, ScaleOrder]:
        """By class: what is wanted now."""
        return {
            name: ScaleOrder(
                accelerator=name,
                wanted=self._states[name].wanted,
                leaving=self._states[name].ended,
                epoch=plan.epoch,
                reason=self._states[name].reason,
                made_ms=int(now_ms),
            )
            for name in self._current(now_ms)
        }

    @property
    def leaving(self) -> frozenset[str]:
        """Workers that nothing is planned on any more."""
        return frozenset(self._leaving())

    def explained(self, now_ms: float) -> dict[str, str]:
        """By class, in words."""
        told: dict[str, str] = {}
        for name, offer in self._current(now_ms).items():
            state = self._states[name]
            failing = f"; workers do not start: {offer.failing}" if offer.failing else ""
            short = "; the forecast needs more than is allowed" if self._needed.short else ""
            told[name] = f"{state.wanted} of {offer.least} to {offer.most} wanted, {offer.running} run, {self.mode}: {state.reason}{short}{failing}"
        return told

    # -- within

    def _leaving(self) -> dict[str, Leaving]:
        return {name: entry for state in self._states.values() for name, entry in state.leaving.items()}

    def _without_ended(self, snapshot: Snapshot, now_ms: float) -> Snapshot:
        """Whose end is ordered counts as lost, though it may be heard of a little longer."""
        states = self._states.values()
        ended = {name for state in states if now_ms - state.changed_ms < self.settings.end_ms_max for name in state.ended}
        workers = tuple(_lost(worker) if worker.name in ended else worker for worker in snapshot.workers)
        return msgspec.structs.replace(snapshot, workers=workers) if ended else snapshot

    def _current(self, now_ms: float) -> dict[str, ScaleOffer]:
        return {name: offer for name, (offer, at_ms) in sorted(self._offers.items()) if now_ms - at_ms <= self.settings.offer_ms_max}

    def _learn(self, snapshot: Snapshot, offers: Mapping[str, ScaleOffer], now_ms: float) -> None:
        for name in offers:
            state = self._states[name]
            ready = _ready(snapshot, name)
            if ready:
                self._templates[name] = ready[0]
                self._known[name] = snapshot
            serving = [worker for worker in ready if worker.hosted]
            if state.ordered_ms is not None and len(serving) >= state.wanted:
                state.start_ms, state.ordered_ms = now_ms - state.ordered_ms, None
            state.leaving = {who: leaving for who, leaving in state.leaving.items() if any(who == worker.name for worker in ready)}
        if any(floor.rate_rps > 0.0 for endpoint in snapshot.endpoints for floor in endpoint.floors) or _backlog(snapshot):
            self._asked_ms = now_ms
        elif self._asked_ms == NEVER:
            self._asked_ms = now_ms  # a leader that has just come knows nothing of before

    def _targets(self, snapshot: Snapshot, offers: Mapping[str, ScaleOffer], now_ms: float) -> dict[str, int]:
        """By class, and the mode."""
        present = {name: self._states[name].staying for name in offers}
        cores = max((offer.cores for offer in offers.values()), default=0)
        base = self._needed = self._need(snapshot, offers, dict.fromkeys(offers, 1), {}, cores)
        asked = now_ms - self._asked_ms < self.settings.idle_ms
        if base.unknown and asked:
            # Nobody knows what they cost: whoever is there stays, to find out.
            return _not_none({name: max(present[name], count) for name, count in base.counts.items()}, offers)
        total, now = sum(base.counts.values()), sum(present.values())
        stretch = {name: _stretch(offer, now, cores) for name, offer in offers.items()}
        self._advance(total, now, can_stretch=any(threads > 1 for threads in stretch.values()) and now > 0)
        if self.mode == VERTICAL:
            more = self._need(snapshot, offers, stretch, present, cores)
            targets = {name: max(more.counts.get(name, 0), present[name]) for name in offers} if more.counts else present
            self._threads = stretch
        else:
            targets = {name: base.counts.get(name, 0) for name in offers}
            after = sum(targets.values())
            self._threads = {name: _stretch(offer, after, cores) if base.short else 1 for name, offer in offers.items()}
        return _not_none(targets, offers) if asked else {name: offers[name].least for name in offers}

    def _need(self, snapshot: Snapshot, offers: Mapping[str, ScaleOffer], threads: Mapping[str, int], least: Mapping[str, int], cores: int) -> Needed:
        rooms: dict[str, Room] = {}
        for name, offer in offers.items():
            worker = self._templates.get(name)
            if worker is None:
                continue
            live = len(_ready(snapshot, name))
            most = min(offer.most, live) if offer.failing else offer.most
            floor = max(offer.least, least.get(name, 0))
            rooms[name] = Room(worker=worker, least=floor, most=max(most, floor), threads=threads[name])
        if not rooms:
            asked = tuple(sorted({stage.task for endpoint in snapshot.endpoints for stage in endpoint.stages}))
            return Needed(counts={name: offer.least for name, offer in offers.items()}, unknown=asked)
        found = needed(self._with_costs(snapshot, rooms), rooms, headroom=self.settings.headroom, cores=cores)
        others = {name: offers[name].least for name in offers if name not in rooms}
        return msgspec.structs.replace(found, counts={**others, **found.counts})

    def _with_costs(self, snapshot: Snapshot, rooms: Mapping[str, Room]) -> Snapshot:
        """A class without workers has its costs from when it had some."""
        variants = {variant.key: variant for variant in snapshot.variants}
        for name, room in rooms.items():
            for known in self._known[name].variants:
                here = variants.get(known.key)
                cost = known.costs.get(room.worker.type)
                if here is not None and cost is not None and room.worker.type not in here.costs:
                    variants[known.key] = msgspec.structs.replace(here, costs={**here.costs, room.worker.type: cost})
        return msgspec.structs.replace(snapshot, variants=tuple(variants.values()))

    def _advance(self, total: int, now: int, *, can_stretch: bool) -> None:
        """Vertical when more workers of one core are needed than there are; horizontal when the need has not grown for ten decisions."""
        if self.mode == HORIZONTAL:
            if total > now and can_stretch:
                self.mode, self.calm, self._peak = VERTICAL, 0, total
                self._stretched.clear()
            return
        self.calm = 0 if total > self._peak else self.calm + 1
        self._peak = max(self._peak, total)
        if self.calm >= self.settings.calm_decisions:
            self.mode = HORIZONTAL

    def _follow(self, state: ClassState, offer: ScaleOffer, target: int, snapshot: Snapshot, now_ms: float) -> None:
        """Bring what is wanted of a class towards the target."""
        target = min(max(target, offer.least), offer.most)
        if target >= state.staying:
            state.fewer = 0
        if target > state.staying:
            for name in sorted(state.leaving)[: target - state.staying]:
                del state.leaving[name]
            ready = now_ms - state.changed_ms >= self.settings.up_cool_down_ms or not state.wanted
            if target > state.wanted and ready and not offer.failing:
                state.reason = f"{target} workers of {self._asked_for(snapshot)}"
                state.wanted, state.changed_ms, state.ordered_ms, state.ended = target, now_ms, now_ms, ()
        elif target < state.staying:
            state.fewer_at_most = max(state.fewer_at_most, target) if state.fewer else target
            state.fewer += 1
            rest_ms = max(self.settings.down_cool_down_ms, self.settings.start_cost_factor * state.start_ms)
            if state.fewer >= self.settings.calm_decisions and now_ms - state.changed_ms >= rest_ms:
                self._send_away(state, offer, snapshot, now_ms)

    def _send_away(self, state: ClassState, offer: ScaleOffer, snapshot: Snapshot, now_ms: float) -> None:
        ready = [worker for worker in _ready(snapshot, offer.accelerator) if worker.name not in state.leaving]
        if len(ready) < state.staying and not offer.failing:
            return  # some are still starting: who they are is not known yet
        count = state.staying - state.fewer_at_most
        absent = state.staying - len(ready)
        if absent > 0:  # they fail to start: they are given up before anybody who serves
            given_up = min(absent, count)
            state.wanted, state.changed_ms, state.reason = state.wanted - given_up, now_ms, "workers that do not start are given up"
            count -= given_up
        for worker in victims(ready, count):
            state.leaving[worker.name] = Leaving(since_ms=now_ms)
        state.fewer = 0

    def _end_drained(self, snapshot: Snapshot, now_ms: float) -> None:
        workers = {worker.name: worker for worker in snapshot.workers}
        for state in self._states.values():
            gone = sorted(name for name, leaving in state.leaving.items() if drained(leaving, workers.get(name), self.settings, now_ms))
            if gone:
                state.wanted -= len(gone)
                state.changed_ms, state.ended = now_ms, tuple(gone)
                state.reason = f"{', '.join(gone)} drained; {state.wanted} workers are enough for {self._asked_for(snapshot)}"
                state.leaving = {name: leaving for name, leaving in state.leaving.items() if name not in gone}
            late = [name for name, leaving in state.leaving.items() if leaving.stuck(self.settings, now_ms)]
            for name in late:
                del state.leaving[name]
                state.changed_ms, state.reason = now_ms, f"{name} stays: no plan came without it"

    def _adjustment(self, snapshot: Snapshot, offers: Mapping[str, ScaleOffer], now_ms: float) -> Adjustment | None:
        leaving = self._leaving()
        unbound = frozenset(name for name, entry in leaving.items() if entry.unbound_ms is None and taken_over(entry, leaving.keys(), snapshot))
        for name in unbound:
            leaving[name].unbound_ms = now_ms
        bound = {binding.worker for binding in snapshot.plan.bindings}
        threads: dict[str, int] = {}
        for name, offer in offers.items():
            allowed = min(self._threads.get(name, 1), offer.threads)
            complete = len(_ready(snapshot, name)) >= self._states[name].wanted
            for worker in _ready(snapshot, name):
                if worker.binding is None or worker.name in leaving:
                    continue
                if worker.binding.threads < allowed and worker.name not in self._stretched:
                    self._stretched.add(worker.name)
                    threads[worker.name] = allowed
                elif worker.binding.threads > allowed and complete:
                    self._stretched.discard(worker.name)
                    threads[worker.name] = allowed
        if not (unbound & bound) and not threads:
            return None
        said = [f"{', '.join(sorted(unbound))} leaves"] if unbound else []
        said += [f"{worker} gets {count} threads" for worker, count in sorted(threads.items())]
        return Adjustment(unbound=unbound, threads=threads, reason=f"{self.mode} scaling: {'; '.join(said)}")

    def _limited(self, worker: Worker, snapshot: Snapshot) -> Worker:
        allowed = self._threads.get(worker.accelerator) if worker.accelerator in self._states else None
        if allowed is None or allowed >= worker.threads_max:
            return worker
        costs = [variant.costs[worker.type] for variant in snapshot.variants if worker.type in variant.costs]
        if any(all(threads > allowed for threads in cost.latency) for cost in costs):
            return worker  # a variant that was never measured so could not be planned at all
        return msgspec.structs.replace(worker, threads_max=allowed)

    def _asked_for(self, snapshot: Snapshot) -> str:
        return f"a forecast of {sum(endpoint.forecast_rps for endpoint in snapshot.endpoints):.1f}/s"


def adjusted(plan: Plan, adjustment: Adjustment, now_ms: float) -> Plan | None:
    """The plan with this changed, and nothing else; None where nothing is."""
    bindings = tuple(
        msgspec.structs.replace(binding, threads=adjustment.threads.get(binding.worker, binding.threads))
        for binding in plan.bindings
        if binding.worker not in adjustment.unbound
    )
    if bindings == plan.bindings:
        return None
    return msgspec.structs.replace(plan, epoch=plan.epoch + 1, bindings=bindings, reason=adjustment.reason, made_ms=int(now_ms))


def _lost(worker: Worker) -> Worker:
    return msgspec.structs.replace(worker, state=LOST)


def _ready(snapshot: Snapshot, accelerator: str) -> list[Worker]:
    return [worker for worker in snapshot.workers if worker.accelerator == accelerator and worker.state == READY]


def _backlog(snapshot: Snapshot) -> bool:
    return any(endpoint.backlog > 0 for endpoint in snapshot.endpoints)


def _stretch(offer: ScaleOffer, workers: int, cores: int) -> int:
    """Threads that each of so many workers may have."""
    return max(min(offer.threads, cores // max(workers, 1)) if cores else offer.threads, 1)


def _not_none(targets: Mapping[str, int], offers: Mapping[str, ScaleOffer]) -> dict[str, int]:
    """While something is asked somebody serves."""
    found = dict(targets)
    if not any(found.values()):
        first = next((name for name, offer in offers.items() if offer.most and not offer.failing), None)
        if first is not None:
            found[first] = 1
    return found

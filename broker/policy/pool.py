"""A pool: tasks that share lanes, directly or through others, with the requests that wait for them and the load they make."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import exp

import msgspec
import numpy as np
from numpy.typing import NDArray

from broker.policy.aims import Aims
from broker.policy.entry import Entry
from broker.policy.fairness import Fairness
from broker.policy.filling import fill
from broker.policy.ladder import Ladder
from broker.policy.lanes import Lane, Option
from broker.policy.laxity import Laxity
from broker.policy.open_lanes import OpenLanes
from broker.policy.serving import Serving, hosts
from broker.policy.settings import DispatcherSettings
from broker.policy.tuning import Group, Mix, Rung, allocate
from broker.policy.waiting import Waiting
from graphs.planning import Choice

ROWS_WEIGHT = 0.05
PARTS_MS = 100.0
"""For so long many lanes stay divided as they were."""
LANES_FEW = 64
"""Over so many lanes mean costs are worked out whenever they are asked for; of more, one lane's say little, and work is saved."""


class Terms(msgspec.Struct, gc=False):
    """What one kind of request costs, and what is there for it."""

    cheapest: Option
    work_ms: float
    least_ms: float
    """From now to the answer, in the 95th percentile, with the way there and back."""
    capacity: float


class Pool:
    """Capacity, load and choice for a connected set of tasks and lanes."""

    def __init__(self, tasks: frozenset[str], ladders: dict[str, Ladder], lanes: list[Lane], settings: DispatcherSettings, tenants_max: int) -> None:
        self.tasks = tasks
        self.lanes = lanes
        self.pressed = False
        """Requests at their floors leave no room for better answers, and so none for shadows."""
        self.waiting = Waiting()
        self.fairness = Fairness(tenants_max)
        self.promised_ms: dict[str, float] = {}
        """By task: work of later stages of requests that were taken on."""
        self.share = 1.0
        """This dispatcher's part of the lanes' credits."""
        self.shares: dict[str, dict[str, float]] = {}
        """The plan's routing shares by task; without an entry the load decides."""
        self._ladders = ladders
        self._settings = settings
        self._aims = Aims(ladders)
        self._queued: set[Group] = set()
        """Of which more waits than their lanes take at once."""
        self._arrived_rows: dict[Group, int] = {}
        self._rows_each: dict[Group, float] = {}
        """Rows of a request, on average: a request's overhead is shared by its rows."""
        self._rates: dict[Group, float] = {}
        self._counted_since_ms = 0.0
        self._tuned_ms = 0.0
        self._parts: NDArray[np.float64] | None = None
        """How lanes that some classes share were divided, and for which kinds of lanes, until when that is good enough."""
        self._parts_of: NDArray[np.float64] | None = None
        self._parts_until_ms = 0.0
        self._stale = True
        """The mixes follow from lanes that have changed."""
        self._cheapest: dict[Group, Option | None] = {}
        self._laxity: dict[tuple[int, int], Laxity] = {}
        """Of this step, by priority and lanes."""
        self._means: dict[Group, list[tuple[str, float, float]]] = {}
        """Where there are many lanes: what variants cost, on average, as when costs were told to have changed."""
        self._capacities: dict[Group, float] = {}
        self._busy_ms: float | None = None
        self.known_terms: dict[tuple[str, int, int], Terms] = {}
        """Of this step."""
        self._changed: set[Lane] = set(lanes)
        """Lanes that are not as the next four say."""
        self._outstanding_ms = [0.0] * len(lanes)
        self._speeds = [0.0] * len(lanes)
        self._windows_ms = [0.0] * len(lanes)
        self._hostings = [lane.hostings for lane in lanes]
        self._serving = Serving(lanes)
        self._open_lanes = OpenLanes(lanes)
        self._unsettled: set[Lane] = set()
        """Lanes that have changed since open ones were asked for."""
        for at, lane in enumerate(lanes):
            lane.at, lane.changed = at, self._changed
        self.lanes_changed()

    def lanes_changed(self) -> None:
        """What the lanes host or cost has changed."""
        self.costs_changed()
        self._stale = True

    def costs_changed(self) -> None:
        """What the lanes' variants cost has changed, not which they host."""
        self._cheapest.clear()
        self._means.clear()
        self._capacities.clear()
        self.known_terms.clear()

    def new_step(self) -> None:
        """Room by deadline, capacity and load are worked out at most once per step, before it sends anything."""
        if self._laxity:
            self._laxity = {}
        self._capacities.clear()
        self.known_terms.clear()
        self._busy_ms = None

    def _look(self) -> None:
        """Bring what is kept of the lanes in line with those that have changed."""
        changed = self._changed
        for lane in changed:
            at = lane.at
            self._outstanding_ms[at] = lane.outstanding_ms
            self._speeds[at] = lane.speed if lane.ready else 0.0
            self._windows_ms[at] = lane.window_ms if lane.ready else 0.0
            if lane.hostings != self._hostings[at]:
                self._hostings[at] = lane.hostings
                self._serving.forget()
                self._open_lanes.forget()
                self._unsettled.update(self.lanes)
        self._unsettled |= changed
        changed.clear()

    def open_lanes(self) -> OpenLanes:
        """Those that can be sent to, as they are now."""
        self._look()
        self._open_lanes.look(self._unsettled)
        self._unsettled.clear()
        return self._open_lanes

    def terms(self, task: str, rung: int, rows: int) -> Terms | None:
        """What admission needs to know of requests that are alike, at most once per step; None where no ready lane hosts any variant for them."""
        cheapest = self.cheapest(task, rung)
        if cheapest is None:
            return None
        settings = self._settings
        terms = self.known_terms[(task, rung, rows)] = Terms(
            cheapest, cheapest.row_ms * rows + settings.overhead_ms, cheapest.p95_ms(rows) + 2.0 * settings.hop_ms, self.capacity(task, rung)
        )
        return terms

    @property
    def busy_ms(self) -> float:
        """Work outstanding on all lanes, and promised to requests on graphs."""
        if self._busy_ms is None:
            self._look()
            self._busy_ms = sum(self._outstanding_ms) + max(sum(self.promised_ms.values()), 0.0)
        return self._busy_ms

    def capacity(self, task: str, rung: int) -> float:
        """Milliseconds of work per millisecond that lanes able to answer this class do for this dispatcher."""
        group = (task, rung)
        capacity = self._capacities.get(group)
        if capacity is None:
            self._look()
            speeds, serving = self._speeds, self._serving.places(group)
            capacity = self._capacities[group] = self.share * sum(speeds if len(serving) == len(speeds) else [speeds[at] for at in serving])
        return capacity

    def cheapest(self, task: str, rung: int) -> Option | None:
        """The variant that costs least among those at or above the rung, over all lanes; None where no ready lane hosts any."""
        group = (task, rung)
        if group not in self._cheapest:
            candidates = [lane.options[task][rung][-1] for lane in self.lanes if _serves(lane, task, rung)]
            self._cheapest[group] = min(candidates, key=lambda option: option.row_ms, default=None)
        return self._cheapest[group]

    def laxity(self, priority: int, task: str, rung: int, now_ms: float) -> Laxity:
        """Room by deadline on the lanes that answer this class, shared by all decisions of a step.

        Of what others wait for, that part counts which these lanes are of all that could answer it.
        """
        self._look()
        serving, lanes = self._serving, self._serving.lanes_of((task, rung))
        laxity = self._laxity.get((priority, lanes))
        if laxity is None:
            busy_ms = sum([self._outstanding_ms[at] for at in serving.places((task, rung))])
            promised_ms = sum([max(each_ms, 0.0) * serving.part((other, 0), lanes) for other, each_ms in self.promised_ms.items()])
            laxity = self._laxity[priority, lanes] = Laxity(
                self.waiting,
                priority,
                capacity=self.capacity(task, rung),
                busy_ms=busy_ms + promised_ms,
                now_ms=now_ms,
                slack=self._settings.slack,
                hop_ms=self._settings.hop_ms,
                part=lambda group: serving.part(group, lanes),
            )
        return laxity

    def take(self, entry: Entry) -> None:
        """Count a request that was admitted where there was little room; it does not wait yet."""
        for (priority, lanes), laxity in self._laxity.items():
            if priority == entry.priority and (part := self._serving.part((entry.task, entry.rung), lanes)):
                laxity.take(entry.deadline_ms, part * entry.work_ms)

    def arrived(self, entry: Entry) -> None:
        """Count an admitted request towards its class's rate."""
        group, count = (entry.task, entry.rung), entry.rows
        arrived = self._arrived_rows
        arrived[group] = arrived.get(group, 0) + count
        rows = self._rows_each.get(group)
        if rows != count:
            self._rows_each[group] = count if rows is None else rows + ROWS_WEIGHT * (count - rows)

    def tune(self, now_ms: float) -> None:
        """Decide how accurate answers may be now: from what waits, what has been arriving, and the lanes' real speed."""
        settings = self._settings
        if now_ms - self._tuned_ms < settings.tune_interval_ms and not self._stale:
            return
        self._tuned_ms, self._stale = now_ms, False
        self._count_rates(now_ms)
        self._look()
        self.fairness.fade(now_ms)
        self.waiting.compact()
        groups = [*self._rates, *(group for group in self.waiting.rows if group not in self._rates)]
        self._aims.set(self._allocate(groups, now_ms))

    def _allocate(self, groups: list[Group], now_ms: float) -> dict[Group, Mix]:
        """Share the lanes' computing time out among classes; together among those that the same lanes answer."""
        settings = self._settings
        ladders = {group: self._rungs(*group) for group in groups}
        kinds = self._serving.kinds(groups)
        speeds, outstanding_ms, windows_ms = kinds.sum(self._speeds), kinds.sum(self._outstanding_ms), kinds.sum(self._windows_ms)
        parts = self._parts if kinds.hosting is self._parts_of and now_ms < self._parts_until_ms else None
        if kinds.of_lane is None:
            parts = kinds.hosting
        elif parts is None:
            demand = self._demand(groups, settings.rate_window_ms)
            least_ms = np.array([sum([demand[group] * _least_ms(ladders[group]) for group in same]) for same in kinds.sets])
            most_ms = np.array([sum([demand[group] * _most_ms(ladders[group]) for group in same]) for same in kinds.sets])
            room_ms = self.share * settings.rate_window_ms * settings.utilisation * speeds - outstanding_ms
            parts = self._parts = fill(kinds.hosting, kinds.lanes, room_ms, least_ms, most_ms)
            self._parts_of, self._parts_until_ms = kinds.hosting, now_ms + (PARTS_MS if len(self.lanes) > LANES_FEW else 0.0)
        mixes: dict[Group, Mix] = {}
        self.pressed = False
        self._queued.clear()
        for same, part in zip(kinds.sets, parts, strict=True):
            horizon_ms, busy_ms = settings.rate_window_ms, float(part @ outstanding_ms)
            work_ms, mean_deadline_ms = self.waiting.backlog(None if kinds.of_lane is None else same)
            if work_ms > 0.0 and work_ms + busy_ms > float(part @ windows_ms):
                self._queued.update(same)
                horizon_ms = min(max(settings.backlog_part * (mean_deadline_ms - now_ms), settings.horizon_ms_min), settings.horizon_ms_max)
            # What is promised to stages that are still to come waits for nobody yet, and arrives at a rate that is counted.
            demand = self._demand(same, horizon_ms)
            capacity_ms = self.share * float(part @ speeds) * horizon_ms * settings.utilisation - busy_ms
            self.pressed = self.pressed or capacity_ms < sum([rows * _least_ms(ladders[group]) for group, rows in demand.items()])
            mixes |= allocate(demand, ladders, capacity_ms)
        return mixes

    def _demand(self, groups: Iterable[Group], horizon_ms: float) -> dict[Group, float]:
        """Rows that want an answer within the horizon."""
        return {group: self.waiting.rows.get(group, 0) + self._rates.get(group, 0.0) * horizon_ms for group in groups}

    def _count_rates(self, now_ms: float) -> None:
        """Fading arrival rates, in rows per millisecond."""
        passed_ms = now_ms - self._counted_since_ms
        if passed_ms < self._settings.tune_interval_ms:
            return
        if self._counted_since_ms:
            weight = 1.0 - exp(-passed_ms / self._settings.rate_window_ms)
            for group in self._rates.keys() | self._arrived_rows.keys():
                rate = self._rates.get(group, 0.0)
                rate += weight * (self._arrived_rows.get(group, 0) / passed_ms - rate)
                self._rates[group] = rate if rate > 1e-6 else 0.0
        self._arrived_rows.clear()
        self._counted_since_ms = now_ms

    def _rungs(self, task: str, rung: int) -> list[Rung]:
        """The variants at or above a rung, at their mean cost over the lanes that host them."""
        group = (task, rung)
        means = self._means.get(group)
        if means is None:
            means = self._mean_costs(task, rung)
            if len(self.lanes) > LANES_FEW:
                self._means[group] = means
        overhead_ms = self._settings.overhead_ms / self._rows_each.get(group, 1.0)
        return [Rung(key, accuracy, row_ms + overhead_ms) for key, accuracy, row_ms in means]

    def _mean_costs(self, task: str, rung: int) -> list[tuple[str, float, float]]:
        """(variant, accuracy, milliseconds of a row)"""
        costs: dict[str, list[Option]] = {}
        for lane in self.lanes:
            if _serves(lane, task, rung):
                for option in lane.options[task][rung]:
                    costs.setdefault(option.key, []).append(option)
        return [(key, options[0].accuracy, sum([option.row_ms for option in options]) / len(options)) for key, options in costs.items()]

    def choose(self, lane: Lane, entry: Entry, now_ms: float) -> Option | None:
        """The variant that this lane should answer with: what the shares or the load allow, stepping down to what still meets the deadline."""
        options: Sequence[Option] = lane.options[entry.task][entry.rung]
        if entry.late:
            options = _in_time(lane, entry)
            if not options:
                return None
        settings, rows = self._settings, entry.rows
        wanted = self._wanted(entry) if self.shares else self._aims.affordable((entry.task, entry.rung))
        left_ms = entry.deadline_ms - now_ms - 2.0 * settings.hop_ms - lane.wait_ms
        # A better answer is worth a try only where there is time for it to go wrong; the cheapest is what there is.
        easily_ms = left_ms / settings.upgrade_margin
        for option in options:
            if option.accuracy <= wanted and (option.known_p95_ms.get(rows) or option.p95_ms(rows)) <= easily_ms:
                return option
        cheapest = options[-1]
        return cheapest if cheapest.p95_ms(rows) <= left_ms else None

    def choose_ahead(self, lane: Lane, entry: Entry, left_ms: float, choices: Sequence[Choice], hop_ms: float) -> Option | None:
        """The variant for a stage that begins on this lane with `left_ms` to its deadline, where nothing could be gained by deciding when it begins:

        the load alone bounds how accurate it is, and no other lane has a better one, or the same so much sooner. `choices`: the stage's
        variants over all lanes, `hop_ms` away.
        """
        wanted = self._wanted(entry) if self.shares else self._aims.affordable((entry.task, entry.rung))
        options: Sequence[Option] = lane.options[entry.task][entry.rung]
        found = next((option for option in options if option.accuracy <= wanted), options[-1])
        takes_ms, accuracy = found.p95_ms(entry.rows), found.accuracy
        if takes_ms * self._settings.upgrade_margin > left_ms:
            return None
        for choice in choices:
            better, other_ms = choice.accuracy, choice.time_ms + hop_ms
            if accuracy <= better and (other_ms < takes_ms if better == accuracy else better <= wanted):
                return None
        return found

    def _wanted(self, entry: Entry) -> float:
        """The accuracy aimed at by the plan, or by the load where the plan says nothing."""
        group = (entry.task, entry.rung)
        planned = self.shares.get(entry.task)
        if not planned:
            return self._aims.affordable(group)
        wanted = self._aims.planned(group, planned)
        # Between two plans, and with nobody to plan, the load decides as soon as a queue stands: it was not planned for.
        return min(wanted, self._aims.affordable(group)) if group in self._queued else wanted

    def fits_somewhere(self, entry: Entry, now_ms: float) -> bool:
        """Whether any lane, once free, could still answer in time."""
        left_ms = entry.deadline_ms - now_ms - 2.0 * self._settings.hop_ms
        return any(
            (options := _in_time(lane, entry)) and options[-1].p95_ms(entry.rows) + lane.wait_ms <= left_ms
            for lane in self.lanes
            if _serves(lane, entry.task, entry.rung) and not lane.stalled
        )


def _least_ms(ladder: Sequence[Rung]) -> float:
    return min([rung.row_ms for rung in ladder], default=0.0)


def _most_ms(ladder: Sequence[Rung]) -> float:
    return max([rung.row_ms for rung in ladder], default=0.0)


def _serves(lane: Lane, task: str, rung: int) -> bool:
    return lane.ready and hosts(lane, task, rung)


def _in_time(lane: Lane, entry: Entry) -> Sequence[Option]:
    """Without what has handed this request back as too late."""
    options = lane.options[entry.task][entry.rung]
    if not entry.late:
        return options
    return [option for option in options if (lane.worker, option.key) not in entry.late]

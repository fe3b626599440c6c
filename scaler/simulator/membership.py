"""Which dispatcher owns which shards: a group of static members, as Kafka's coordinator keeps it."""

from __future__ import annotations

from collections.abc import Sequence

from scaler.simulator.agenda import Agenda
from scaler.simulator.dispatching import SimulatedDispatcher

SESSION_MS = 6_000.0
"""Who comes back within this time goes on with its shards; after it they are others'."""


class Membership:
    """Shards are dealt in turn to the members."""

    def __init__(self, agenda: Agenda, dispatchers: Sequence[SimulatedDispatcher], shards: int) -> None:
        self._agenda, self._dispatchers, self._shards = agenda, dispatchers, shards
        self._members = list(dispatchers)
        self._deaths = dict.fromkeys((dispatcher.name for dispatcher in dispatchers), 0)

    def start(self) -> None:
        """All begin."""
        for dispatcher in self._dispatchers:
            dispatcher.start()
        self._deal()

    def die(self, dispatcher: SimulatedDispatcher) -> None:
        """It is gone; the group sees it when its session is over."""
        if dispatcher.alive:
            dispatcher.die()
            self._deaths[dispatcher.name] += 1
            self._agenda.schedule(self._agenda.now_ms + SESSION_MS, self._over, (dispatcher, self._deaths[dispatcher.name]))

    def come_back(self, dispatcher: SimulatedDispatcher) -> None:
        """It starts again, and takes its shards, or joins anew."""
        if dispatcher.alive:
            return
        dispatcher.start()
        if dispatcher in self._members:
            dispatcher.assign(self._dealt(dispatcher))
        else:
            self._members = [member for member in self._dispatchers if member in self._members or member is dispatcher]
            self._deal()

    def _over(self, session: tuple[SimulatedDispatcher, int]) -> None:
        dispatcher, death = session
        if not dispatcher.alive and self._deaths[dispatcher.name] == death:
            self._members.remove(dispatcher)
            self._deal()

    def _dealt(self, dispatcher: SimulatedDispatcher) -> range:
        return range(self._members.index(dispatcher), self._shards, len(self._members))

    def _deal(self) -> None:
        """Who loses a shard does so before somebody else gets it."""
        alive = [member for member in self._members if member.alive]
        for member in alive:
            member.give_up(self._dealt(member))
        for member in alive:
            member.assign(self._dealt(member))

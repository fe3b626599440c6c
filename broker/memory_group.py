"""Consumer groups of the in-process log: range assignment, eager rebalances, static members, committed offsets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from broker.log import Committed, TopicPartition


class Participant(Protocol):
    """A reader, as its group sees it."""

    async def give_up(self) -> None:
        """Run the hook for what is held, then hold nothing."""
        ...

    async def take_over(self, partitions: Sequence[TopicPartition]) -> None:
        """Run the hook for these, then read them."""
        ...

    def fence(self) -> None:
        """Another member has come with the same instance id."""
        ...


class Member:
    """A member; a static one outlives its participant for the session time-out."""

    def __init__(self, name: str, topics: Sequence[str], participant: Participant) -> None:
        self.name = name
        self.topics = tuple(topics)
        self.participant: Participant | None = participant
        self.served: Participant | None = None
        """Who was given `partitions`."""
        self.partitions: list[TopicPartition] = []
        self.leaving: asyncio.TimerHandle | None = None


def assign_ranges(members: Mapping[str, Sequence[str]], partitions: Callable[[str], int]) -> dict[str, list[TopicPartition]]:
    """Kafka's RangeAssignor: each topic is cut into contiguous ranges, the first members get one more; equal topics are cut equally."""
    assigned: dict[str, list[TopicPartition]] = {name: [] for name in members}
    for topic in sorted({topic for topics in members.values() for topic in topics}):
        takers = sorted(name for name, topics in members.items() if topic in topics)
        each, more = divmod(partitions(topic), len(takers))
        first = 0
        for index, name in enumerate(takers):
            count = each + (index < more)
            assigned[name] += [TopicPartition(topic, number) for number in range(first, first + count)]
            first += count
    return assigned


class MemoryGroup:
    """One consumer group."""

    def __init__(self, partitions: Callable[[str], int], session_timeout_ms: int) -> None:
        self.offsets: dict[TopicPartition, Committed] = {}
        self._partitions = partitions
        self._session_timeout = session_timeout_ms / 1000
        self._members: dict[str, Member] = {}
        self._joined = 0
        self._wanted = 0
        self._task: asyncio.Task[None] | None = None
        self._handovers: set[asyncio.Task[None]] = set()

    @property
    def exists(self) -> bool:
        """Somebody has committed or joined; who only asks makes no group."""
        return bool(self.offsets or self._members)

    def join(self, participant: Participant, topics: Sequence[str], instance_id: str | None) -> Member:
        """A static member that comes back in time has its partitions back, and nobody else notices."""
        self._joined += 1
        name = instance_id if instance_id is not None else f"~{self._joined:09}"  # sorts behind the static ones
        member = self._members.get(name)
        if member is None:
            member = self._members[name] = Member(name, topics, participant)
            self.rebalance()
            return member
        if member.leaving is not None:
            member.leaving.cancel()
            member.leaving = None
        if member.participant is not None:
            member.participant.fence()
        member.participant = participant
        if member.topics != tuple(topics):
            member.topics = tuple(topics)
            self.rebalance()
        else:
            task = asyncio.get_running_loop().create_task(self._hand_over(member, participant))
            self._handovers.add(task)
            task.add_done_callback(self._handovers.discard)
        return member

    def leave(self, member: Member, participant: Participant, *, static: bool) -> None:
        if member.participant is not participant:  # fenced: the place is another's
            return
        member.participant = None
        if static:
            member.leaving = asyncio.get_running_loop().call_later(self._session_timeout, self._expel, member)
        else:
            self._expel(member)

    def rebalance(self) -> None:
        """Everybody gives everything up, then gets the new share: as with Kafka's eager protocol."""
        self._wanted += 1
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._rebalance())

    def concerns(self, topics: Sequence[str]) -> bool:
        return any(topic in member.topics for member in self._members.values() for topic in topics)

    def close(self) -> None:
        for member in self._members.values():
            if member.leaving is not None:
                member.leaving.cancel()
        for task in (self._task, *self._handovers):
            if task is not None:
                task.cancel()

    def _expel(self, member: Member) -> None:
        if self._members.get(member.name) is member:
            del self._members[member.name]
            if self._members:
                self.rebalance()

    async def _hand_over(self, member: Member, participant: Participant) -> None:
        if self._task is not None:
            await asyncio.wait([self._task])
        if member.participant is participant and member.served is not participant:
            await self._serve(member)

    async def _serve(self, member: Member) -> None:
        member.served = member.participant
        if member.participant is not None:
            await member.participant.take_over(member.partitions)

    async def _rebalance(self) -> None:
        done = 0
        while done != self._wanted:
            done = self._wanted
            await asyncio.gather(*(m.participant.give_up() for m in self._members.values() if m.participant is not None))
            shares = assign_ranges({m.name: m.topics for m in self._members.values()}, self._partitions)
            members = [member for member in self._members.values() if member.name in shares]
            for member in members:
                member.partitions = shares[member.name]
            await asyncio.gather(*(self._serve(member) for member in members))
        self._task = None

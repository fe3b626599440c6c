"""Reads the lane that the plan assigns, and commits what is finished, for the tools that watch lag."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import structlog

from broker.log import Committed, Log, Record, Start, TopicPartition
from schemas.errors import LogUnavailable
from schemas.names import Names
from workers.policy.progress import LaneProgress
from workers.settings import WorkerSettings

logger = structlog.get_logger()
READ_WAIT_MS = 200
RETRY_SECONDS = 0.1
LEAVE_SECONDS = 2.0
"""A lane that was given up is read for so long on: dispatchers that have not seen the new plan still write to it."""


class Lanes:
    """The lanes of one worker: the one that it is bound to, and for a moment the one before.

    A new lane is read from its end: what lies there was written for whoever had it before, and comes again when its leases end.
    """

    def __init__(
        self,
        log: Log,
        names: Names,
        settings: WorkerSettings,
        *,
        on_orders: Callable[[Sequence[Record], bool], None],
        on_assigned: Callable[[], None],
    ) -> None:
        """`on_orders(records, arriving)`: `arriving` says that more are there to be read at once."""
        self._topic = names.work(settings.accelerator)
        self._settings = settings
        self._reader = log.reader(f"{settings.name}-lane", group=names.workers_group(settings.accelerator))
        self._on_orders, self._on_assigned = on_orders, on_assigned
        self._progress: dict[int, LaneProgress] = {}
        self._committed: dict[int, int] = {}
        self._leave_at: dict[int, float] = {}
        self._wanted: int | None = None
        self._changed = asyncio.Event()
        self.lane: int | None = None
        """The lane that orders may be written to."""

    async def start(self) -> None:
        await self._reader.start()

    def want(self, lane: int | None) -> None:
        """Read this lane from now on; None: no lane."""
        if lane != self._wanted:
            self._wanted = lane
            self._changed.set()

    def finish(self, lane: int, offset: int) -> None:
        """This order needs no more work here."""
        progress = self._progress.get(lane)
        if progress is not None:
            progress.finish(offset)

    async def run(self) -> None:
        """Read for ever. Raises nothing for a log that is away: it comes back."""
        while True:
            try:
                await self._follow()
                if self._progress:
                    self._take(await self._reader.read(timeout_ms=READ_WAIT_MS, records_max=self._settings.limits.read_records_max))
                else:
                    await self._changed.wait()
            except LogUnavailable as error:
                logger.warning("the lane cannot be read", lane=self.lane, error=str(error))
                await asyncio.sleep(RETRY_SECONDS)

    def _take(self, read: Mapping[TopicPartition, Sequence[Record]]) -> None:
        count = 0
        for partition, records in read.items():
            progress = self._progress.get(partition.partition)
            if progress is None:
                continue
            for record in records:
                progress.read(record.offset)
            count += len(records)
            self._on_orders(records, count >= self._settings.limits.read_records_max)

    async def _follow(self) -> None:
        """Assign what is wanted, and give up what has been left for long enough."""
        now = asyncio.get_running_loop().time()
        if self._changed.is_set():
            self._changed.clear()
            try:
                await self._assign(now)
            except LogUnavailable:
                self._changed.set()
                raise
        over = [lane for lane, at in self._leave_at.items() if now >= at]
        if over:
            await self.commit()
            for lane in over:
                del self._leave_at[lane], self._progress[lane]
                self._committed.pop(lane, None)
            await self._reader.assign(await self._positions())

    async def _assign(self, now: float) -> None:
        wanted = self._wanted
        positions = await self._positions()
        if wanted is not None and wanted not in self._progress:
            partition = TopicPartition(self._topic, wanted)
            end = (await self._reader.end_offsets([partition]))[partition]
            await self._reader.assign(positions | {partition: end})
            await self._reader.commit({partition: Committed(end, "")})
            self._progress[wanted] = LaneProgress(end)
            self._committed[wanted] = end
        for lane in self._progress:
            if lane == wanted:
                self._leave_at.pop(lane, None)
            else:
                self._leave_at.setdefault(lane, now + LEAVE_SECONDS)
        self.lane = wanted
        self._on_assigned()

    async def _positions(self) -> dict[TopicPartition, Start]:
        partitions = [TopicPartition(self._topic, lane) for lane in self._progress]
        return {partition: await self._reader.position(partition) for partition in partitions}

    async def keep_committing(self) -> None:
        """Commit for ever, now and then."""
        while True:
            await asyncio.sleep(self._settings.commit_interval_ms / 1e3)
            await self.commit()

    async def commit(self) -> None:
        """Commit what moved; a log that is away only means that tools see it later."""
        marks = {lane: progress.watermark() for lane, progress in self._progress.items()}
        moved = {lane: mark for lane, mark in marks.items() if mark != self._committed.get(lane)}
        if not moved:
            return
        try:
            await self._reader.commit({TopicPartition(self._topic, lane): Committed(mark, "") for lane, mark in moved.items()})
        except LogUnavailable as error:
            logger.warning("lane offsets cannot be committed", error=str(error))
        else:
            self._committed |= moved

    async def close(self) -> None:
        await self._reader.close()

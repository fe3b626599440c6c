"""Follows {p}.catalog and {p}.plan, and writes plans: never over a newer one, and never twice."""

from __future__ import annotations

import msgspec
import structlog

from broker.log import Log, TopicPartition, Writer
from broker.reading import is_behind
from schemas.catalog import Catalog
from schemas.errors import LogUnavailable
from schemas.learned_costs import LEARNED_COSTS_KEY, LearnedCosts, decode_learned_costs
from schemas.names import Names
from schemas.plan import PLAN_KEY, Plan, decode_plan, encode_plan

logger = structlog.get_logger()
FETCH_WAIT_MS = 2_000
"""Control records are rare: a long wait at the broker costs little, and ends as soon as one is there."""
READ_MS = 100
CATCH_UP_READS = 200


class ControlState:
    """What the control topics say."""

    def __init__(self, log: Log, names: Names, writer: Writer, *, name: str) -> None:
        self._names, self._writer = names, writer
        self._reader = log.reader(f"{name}-state", fetch_wait_ms=FETCH_WAIT_MS)
        self._ends = log.reader(f"{name}-ends")
        """Fetches nothing, so that its questions do not stand behind a long wait: a plan would be written so much later."""
        self._partitions = [TopicPartition(names.catalog, 0), TopicPartition(names.plan, 0)]
        self.catalog = Catalog()
        self.catalog_version = 0
        """Counts the records of the catalog that were read."""
        self.costs = LearnedCosts()
        """What an earlier leader knew of what variants cost."""
        self.plan = Plan()
        """Of the highest epoch; of equal ones, the last in the log, as all readers have it."""
        self.last = Plan()
        """The last record in the log, whatever its epoch: what is left of the topic when it is compacted."""

    async def start(self) -> None:
        """Read both to their present ends. Raises LogUnavailable."""
        await self._reader.start()
        await self._ends.start()
        await self._reader.assign(dict.fromkeys(self._partitions, "earliest"))
        await self.catch_up()

    async def close(self) -> None:
        """Stop reading."""
        await self._reader.close()
        await self._ends.close()

    async def catch_up(self) -> None:
        """Read what is there at this moment. Raises LogUnavailable."""
        ends = await self._ends.end_offsets(self._partitions)
        for _ in range(CATCH_UP_READS):
            if not await is_behind(self._reader, ends):
                return
            await self.read(timeout_ms=READ_MS)
        raise LogUnavailable("the ends of the catalog and the plan were not reached")

    async def read(self, *, timeout_ms: int) -> None:
        """Take in what was written since. Raises LogUnavailable."""
        for partition, records in (await self._reader.read(timeout_ms=timeout_ms, records_max=500)).items():
            for record in records:
                try:
                    if record.key == LEARNED_COSTS_KEY:
                        self.costs = decode_learned_costs(record.value) if record.value is not None else LearnedCosts()
                    elif partition.topic == self._names.catalog:
                        self.catalog_version += self.catalog.apply(record.key or b"", record.value)
                    elif record.value is not None:
                        self._plan_read(decode_plan(record.value))
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    logger.warning("control record skipped", topic=record.topic, offset=record.offset, error=str(error))

    def _plan_read(self, plan: Plan) -> None:
        if plan == self.last:  # our own, read back: the same object stays, so that nobody compares a thousand bindings again and again
            return
        self.last = plan
        if plan.epoch >= self.plan.epoch:
            self.plan = plan

    async def publish(self, plan: Plan) -> bool:
        """Write a plan, if nobody has written one of its epoch or later; True where it stands in the log, also when an earlier try put it there.

        Raises LogUnavailable: whether it was written is unknown, and the next try finds out. Between the look and the write another leader can
        write: the log's order decides then, alike for all readers, and whoever leads sees it and writes the next epoch.
        """
        await self.catch_up()
        if self.plan.epoch >= plan.epoch:
            return self.plan == plan
        await self._writer.write(self._names.plan, 0, [(PLAN_KEY, encode_plan(plan), [])])
        self._plan_read(plan)
        return True

    def stale(self, plan: Plan) -> bool:
        """Whether the log ends with something else than this plan, which is not newer: who reads it from its beginning later would follow that."""
        return self.last.epoch <= plan.epoch and self.last is not plan and self.last != plan and plan.epoch > 0

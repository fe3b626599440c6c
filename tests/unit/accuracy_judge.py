"""The judge of accuracies on the log in memory, and who writes what it reads."""

from __future__ import annotations

import asyncio
import time

from accuracy_stage import TASK, answer, catalog
from prometheus_client import CollectorRegistry

from deploy.learned import read_accuracies
from scaler.accuracy import AccuracyControl
from schemas.catalog import catalog_key, encode_catalog
from schemas.feedback import Feedback, encode_feedback, feedback_spec, feedback_topic
from schemas.names import Names

NAMES = Names("accuracy-test")


class Stage:
    def __init__(self, log):
        self.log, self.leader, self.running = log, "first", []
        self.writer = log.writer("test")

    async def start(self):
        await self.log.create_topics([*NAMES.topics(shards=2), feedback_spec(NAMES)])
        await self.writer.start()
        present = catalog(wise="learned", sure="declared")
        for spec in (TASK, *present.endpoints.values()):
            await self.put(NAMES.catalog, (catalog_key(spec), encode_catalog(spec), ()))

    async def control(self, name="first"):
        registry = CollectorRegistry()
        made = AccuracyControl(self.log, NAMES, name=name, leading=lambda: self.leader == name, registry=registry)
        task = asyncio.create_task(made.run())
        self.running.append((made, task))
        await until(lambda: not made.unready(), "started")
        return made, registry

    async def put(self, topic, *messages, partition=0):
        await self.writer.write(topic, partition, messages)

    async def answer(self, *ids, variant="t/large", shard=0):
        await self.put(NAMES.responses, *((i.encode(), answer(i, 1, variant=variant, endpoint="wise"), ()) for i in ids), partition=shard)

    async def say(self, **labels):
        await self.put(feedback_topic(NAMES), *((i.encode(), encode_feedback(Feedback(label=label)), ()) for i, label in labels.items()))

    async def rows(self):
        state = (await read_accuracies(self.log, NAMES)).state
        return {key: (tally.right, tally.wrong) for key, tally in state.variants.items()}

    async def stop(self):
        for made, task in self.running:
            made.stop()
            await task
        await self.log.close()


async def until(condition, what, within_s=10.0):
    give_up = time.monotonic() + within_s
    while True:
        found = condition()
        found = await found if asyncio.iscoroutine(found) else found
        if found:
            return found
        assert time.monotonic() < give_up, what
        await asyncio.sleep(0.02)

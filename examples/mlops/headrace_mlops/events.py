"""Reads the tap topics as any consumer would, and puts each request together with its answer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from numpy.typing import NDArray

from broker.log import Log
from schemas.errors import BadRequest, HeadraceError
from schemas.limits import Limits
from schemas.names import Names
from schemas.tensors import decode_inputs, decode_output
from schemas.terminal import JSON_TYPE, decode_terminal

PENDING_MAX = 10_000
"""Requests that wait for their answers, or answers for their requests."""
BEHIND_MAX = 50_000
"""Events that a detector may be behind: above it, it goes to the end and says so, as old drift is no news."""
BATCH = 500
LIMITS = Limits()
_attribute = {"endpoint": "ce_endpoint", "shadow": "ce_shadow", "outcome": "ce_outcome", "variant": "ce_variant"}


class Observed(NamedTuple):
    """A request with its answer; outputs are empty where it was not completed."""

    id: str
    endpoint: str
    at_ms: int
    outcome: str
    variant: str
    inputs: dict[str, NDArray[Any]]
    outputs: dict[str, NDArray[Any]]


class Joining:
    """Pairs events by id, whichever comes first; bounded, the oldest gives way."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, tuple[bool, Any]] = OrderedDict()
        self.unreadable = 0
        """Events whose data cannot be decoded: cut, redacted whole, or none of ours."""

    def observe(self, record: Any, *, answer: bool) -> Observed | None:
        """An event in binary mode. Stage events and shadows' answers are passed over."""
        headers = {name: (value or b"").decode(errors="replace") for name, value in record.headers}
        key = (record.key or b"").decode(errors="replace")
        if headers.get(_attribute["shadow"]) == "true" or headers.get("ce_id", key) != key or headers.get("ce_problem"):
            return None
        other = self._waiting.pop(key, None)
        if other is None or other[0] == answer:
            self._waiting[key] = (answer, (record, headers))
            while len(self._waiting) > PENDING_MAX:
                self._waiting.popitem(last=False)
            return None
        request, answered = (other[1], (record, headers)) if answer else ((record, headers), other[1])
        try:
            return _together(key, request, answered)
        except (HeadraceError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.unreadable += 1
            return None


def _together(key: str, request: Any, answered: Any) -> Observed:
    (asked, asked_headers), (said, said_headers) = request, answered
    decoded = decode_inputs(asked.value or b"", asked_headers.get("content-type", JSON_TYPE), (), LIMITS)
    terminal = decode_terminal(said.value or b"")
    if not decoded.inputs:
        raise BadRequest("no inputs")
    return Observed(
        key,
        said_headers.get(_attribute["endpoint"], terminal.endpoint),
        said.timestamp,
        terminal.outcome,
        said_headers.get(_attribute["variant"], ""),
        decoded.inputs,
        {output.name: decode_output(output) for output in terminal.outputs or ()},
    )


async def follow(log: Log, kafka: str, names: Names, endpoint: str, *, beginning: bool = False) -> AsyncIterator[list[Observed] | int]:
    """Batches of what was tapped of an endpoint, in the order of the answers; an int says how many events were passed over for being behind.

    An empty batch says that nothing came for a fifth of a second. `log` tells how many partitions there are.
    `beginning`: from what the topics still hold, else from now on.
    """
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka, isolation_level="read_committed", enable_auto_commit=False, fetch_max_wait_ms=100)
    await consumer.start()
    try:
        topics = (names.tap_requests, names.tap_responses)
        partitions = [TopicPartition(topic, number) for topic in topics for number in range(await log.partitions(topic))]
        consumer.assign(partitions)
        await (consumer.seek_to_beginning() if beginning else consumer.seek_to_end())
        joining = Joining()
        while True:
            observed: list[Observed] = []
            for partition, records in (await consumer.getmany(timeout_ms=200, max_records=BATCH)).items():
                found = (joining.observe(record, answer=partition.topic == names.tap_responses) for record in records)
                observed += [one for one in found if one is not None and one.endpoint == endpoint]
            yield observed
            skipped = 0 if beginning else await _catch_up(consumer, partitions)
            if skipped:
                joining = Joining()
                yield skipped
    finally:
        await consumer.stop()


async def _catch_up(consumer: Any, partitions: list[TopicPartition]) -> int:
    """Events passed over; 0 while the consumer keeps up, as far as its last fetches tell."""
    behind = sum([max((consumer.highwater(partition) or 0) - await consumer.position(partition), 0) for partition in partitions])
    if behind <= BEHIND_MAX:
        return 0
    await consumer.seek_to_end()
    return behind

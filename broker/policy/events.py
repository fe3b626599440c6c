"""What can happen to a dispatcher. Events carry batches: the cost of a step is shared by all that came together."""

from __future__ import annotations

import msgspec

from broker.policy.entry import Entry
from broker.policy.watermark import Watermark
from schemas.catalog import Catalog
from schemas.plan import Plan
from schemas.stage import StageRecord
from schemas.telemetry import Telemetry


class ShardAssigned(msgspec.Struct):
    """A shard is ours; requests that arrive are held back until ShardRecovered, while its terminal records are read again."""

    shard: int
    watermark: Watermark


class ShardRecovered(msgspec.Struct):
    """Every terminal record that was in the log when the shard became ours has been seen."""

    shard: int


class ShardRevoked(msgspec.Struct):
    """The shard is somebody else's from now on."""

    shard: int


class Arrived(msgspec.Struct):
    """Request records of one shard, in the order of their offsets."""

    shard: int
    entries: list[Entry]
    burying: list[int] = []
    """Offsets among them of records without a usable id: OffsetsFinished follows when the dead letters have them."""


class Answered(msgspec.Struct):
    """Keys of terminal records that were read from a shard of {p}.responses, in their order."""

    shard: int
    keys: list[bytes]
    missed: frozenset[bytes] = frozenset()
    """Of these: whose record does not say `completed`."""


class StagesDone(msgspec.Struct):
    """Stage records that were read from a shard of the stage topics: (request id, record, tensors' bytes)."""

    shard: int
    records: list[tuple[bytes, StageRecord, bytes]]


class RecordsRead(msgspec.Struct):
    """All that one read of the log has brought, of every shard: what follows from it is decided once."""

    events: list[Arrived | Answered | StagesDone | TelemetryObserved]


class OffsetsFinished(msgspec.Struct):
    """Records that have no request id are in the dead letters."""

    shard: int
    offsets: list[int]


class TelemetryObserved(msgspec.Struct):
    """One telemetry record."""

    record: Telemetry


class PlanObserved(msgspec.Struct):
    """A plan was published."""

    plan: Plan


class CatalogObserved(msgspec.Struct):
    """The catalog as it stands now."""

    catalog: Catalog


class SendsFailed(msgspec.Struct):
    """The log did not acknowledge these orders: whether a worker gets them is unknown."""

    entries: list[Entry]


class DeadLettered(msgspec.Struct):
    """The dead letters have this request."""

    entry: Entry


class Ticked(msgspec.Struct):
    """Time has passed."""


Event = (
    ShardAssigned
    | ShardRecovered
    | ShardRevoked
    | Arrived
    | Answered
    | StagesDone
    | RecordsRead
    | OffsetsFinished
    | TelemetryObserved
    | PlanObserved
    | CatalogObserved
    | SendsFailed
    | DeadLettered
    | Ticked
)

"""How far a shard of the taps is, as the committed offsets of a consumer group say it: lag tools see it, and a restart goes on from there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from broker.log import Committed, Reader, TopicPartition
from broker.policy.tap_join import TapPosition

_LOW = "low="


def offsets_of(shard: int, position: TapPosition, responses: str) -> dict[TopicPartition, Committed]:
    """What to commit: of {p}.responses the answers given out, of every other topic from where it must be read again."""
    answered = Committed(position.answers, f"{_LOW}{position.answers_low}")
    return {TopicPartition(responses, shard): answered} | {
        TopicPartition(topic, shard): Committed(offset, "") for topic, offset in position.low.items()
    }


def position_of(shard: int, committed: Mapping[TopicPartition, Committed], responses: str) -> TapPosition | None:
    """What `offsets_of` said; None where nothing was committed of {p}.responses."""
    answered = committed.get(TopicPartition(responses, shard))
    if answered is None:
        return None
    text = answered.metadata.removeprefix(_LOW)
    low = int(text) if text.isdecimal() else answered.offset
    others = {p.topic: at.offset for p, at in committed.items() if p.partition == shard and p.topic != responses}
    return TapPosition(answered.offset, min(low, answered.offset), others)


async def committed_position(reader: Reader, shard: int, responses: str, others: Sequence[str]) -> TapPosition | None:
    """Ask the group. Raises LogUnavailable."""
    partitions = [TopicPartition(topic, shard) for topic in (responses, *others)]
    return position_of(shard, await reader.committed_all(partitions), responses)

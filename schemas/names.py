"""Topic, consumer-group and key names under one prefix, and which names users may choose."""

from __future__ import annotations

import re

import msgspec

NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
ACCELERATORS = ("cpu", "gpu", "vpu", "fpga")
LANES_PER_CLASS = 16
SHARDS = 8
STAMPED = {"message.timestamp.type": "LogAppendTime"}
SHORT = {"retention.ms": "3600000"}
HISTORY = {"retention.ms": str(7 * 24 * 3600 * 1000), "retention.bytes": str(128 << 20)}
DEAD_LETTER_BYTES = 64 << 10
"""What a dead letter may have beyond the record that it keeps: the reason, and where it came from."""


class TopicSpec(msgspec.Struct, frozen=True):
    """A topic to create: name, partitions and its Kafka configuration."""

    name: str
    partitions: int
    config: dict[str, str]


class Names(msgspec.Struct, frozen=True):
    """All names of one installation; `prefix` keeps installations on one Kafka apart."""

    prefix: str = "headrace"

    @property
    def requests(self) -> str:
        return f"{self.prefix}.requests"

    @property
    def responses(self) -> str:
        return f"{self.prefix}.responses"

    @property
    def telemetry(self) -> str:
        return f"{self.prefix}.telemetry"

    @property
    def plan(self) -> str:
        return f"{self.prefix}.plan"

    @property
    def plan_history(self) -> str:
        return f"{self.prefix}.plan-history"

    @property
    def scale(self) -> str:
        return f"{self.prefix}.scale"

    @property
    def catalog(self) -> str:
        return f"{self.prefix}.catalog"

    @property
    def dead_letters(self) -> str:
        return f"{self.prefix}.dead-letters"

    def work(self, accelerator: str) -> str:
        return f"{self.prefix}.work.{accelerator}"

    @property
    def stages(self) -> str:
        """What the names of all stage topics begin with."""
        return f"{self.prefix}.stage."

    def stage(self, endpoint: str, stage: str) -> str:
        """Topic of the outputs of a stage; `stage` is the node's path, with dots."""
        return f"{self.prefix}.stage.{endpoint}.{stage}"

    @property
    def tap_requests(self) -> str:
        return f"{self.prefix}.tap.requests"

    @property
    def tap_responses(self) -> str:
        return f"{self.prefix}.tap.responses"

    @property
    def dispatchers_group(self) -> str:
        return f"{self.prefix}.dispatchers"

    @property
    def sink_group(self) -> str:
        return f"{self.prefix}.sink"

    def taps_group(self, sink: str = "kafka") -> str:
        """Each sink of the taps goes its own way through the log."""
        return f"{self.prefix}.taps" if sink == "kafka" else f"{self.prefix}.taps.{sink}"

    @property
    def planners_group(self) -> str:
        return f"{self.prefix}.scalers"

    def workers_group(self, accelerator: str) -> str:
        return f"{self.prefix}.workers.{accelerator}"

    def response_key(self, request_id: str) -> str:
        return f"{self.prefix}:response:{request_id}"

    def pending_key(self, request_id: str) -> str:
        return f"{self.prefix}:pending:{request_id}"

    @property
    def marker_key(self) -> str:
        """Exists while the store holds what the log holds; gone means: fill the store again."""
        return f"{self.prefix}:filled"

    def topics(
        self,
        *,
        shards: int = SHARDS,
        lanes: int = LANES_PER_CLASS,
        record_bytes_max: int = 2 << 20,
        response_retention_ms: int = 24 * 3600 * 1000,
        replication: int = 1,
    ) -> list[TopicSpec]:
        """Every topic of an installation, as `up` and each role make sure that they exist."""
        common = _common(record_bytes_max, replication)
        stamped = common | STAMPED
        compacted = common | {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.1"}
        short = common | SHORT
        kept = stamped | {"retention.ms": str(response_retention_ms)}
        return [
            TopicSpec(self.requests, shards, kept),
            TopicSpec(self.responses, shards, kept),
            TopicSpec(self.tap_requests, shards, kept),
            TopicSpec(self.tap_responses, shards, kept),
            TopicSpec(self.telemetry, 1, short),
            TopicSpec(self.plan, 1, compacted),
            TopicSpec(self.plan_history, 1, common | HISTORY),
            TopicSpec(self.scale, 1, compacted),
            TopicSpec(self.catalog, 1, compacted),
            TopicSpec(self.dead_letters, 1, common | {"max.message.bytes": str(record_bytes_max + DEAD_LETTER_BYTES)}),
            *(TopicSpec(self.work(accelerator), lanes, short | stamped) for accelerator in ACCELERATORS),
        ]

    def stage_topic(self, endpoint: str, stage: str, *, partitions: int = SHARDS, record_bytes_max: int = 2 << 20, replication: int = 1) -> TopicSpec:
        """The topic of one stage, as `apply` makes sure that it exists: as many partitions as {p}.requests has."""
        return TopicSpec(self.stage(endpoint, stage), partitions, _common(record_bytes_max, replication) | STAMPED | SHORT)


def _common(record_bytes_max: int, replication: int) -> dict[str, str]:
    common = {"max.message.bytes": str(record_bytes_max)}
    if replication > 2:
        common["min.insync.replicas"] = "2"
    return common

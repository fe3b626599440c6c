"""How long tapped events are kept: as `headrace apply` says, whatever else was set of the topics."""

from __future__ import annotations

from pathlib import Path

from confluent_kafka.admin import AdminClient, ConfigResource

from broker.kafka import KafkaLog
from deploy.catalog_apply import apply_files
from schemas.names import Names

TASK = """
kind: task
name: t
variants:
  - {name: v, call: "json:dumps", accuracy: 0.9}
---
"""
ENDPOINT = "kind: endpoint\nname: %s\ntask: t\n%s\n---\n"


def settings(address: str, topic: str) -> dict[str, str]:
    administrator = AdminClient({"bootstrap.servers": address})
    (asked,) = administrator.describe_configs([ConfigResource("topic", topic)]).values()
    return {name: entry.value for name, entry in asked.result(10).items()}


async def test_the_longest_retention_of_any_endpoint_holds(kafka_address: str, prefix: str, tmp_path: Path) -> None:
    names, log = Names(prefix), KafkaLog(kafka_address)
    wanted = {names.catalog, names.requests, names.tap_requests, names.tap_responses}
    await log.create_topics([topic for topic in names.topics(shards=1) if topic.name in wanted])
    before = settings(kafka_address, names.tap_requests)

    async def apply(*endpoints: tuple[str, str]) -> dict[str, str]:
        file = tmp_path / "c.yaml"
        file.write_text(TASK + "".join(ENDPOINT % each for each in endpoints))
        await apply_files(log, names, [file], tmp_path / "models")
        found = settings(kafka_address, names.tap_requests)
        assert found == settings(kafka_address, names.tap_responses)
        assert {name for name in found if found[name] != before[name]} <= {"retention.ms"}
        return found

    try:
        assert (await apply(("a", "taps: {}")))["retention.ms"] == "86400000"
        assert (await apply(("a", "taps: {retention_hours: 2}"), ("b", "taps: {retention_hours: 72}")))["retention.ms"] == str(72 * 3_600_000)
        assert (await apply(("b", "taps: {}")))["retention.ms"] == str(2 * 3_600_000), "what stands in the catalog counts too"
        assert (await apply(("a", "")))["retention.ms"] == "86400000"
    finally:
        await log.close()

"""Taps on a genuine Kafka: what is sampled appears once, in both topics, as CloudEvents."""

from __future__ import annotations

from tap_rig import headers_of, tap_rig

from broker.policy.tap_sampling import fraction
from schemas.tap import TapSample, TapSpec


async def test_what_is_sampled_appears_once_in_both_topics(kafka_address: str, prefix: str) -> None:
    ids = [f"r{number}" for number in range(400)]
    sampled = {each for each in ids if fraction(each.encode()) < 0.25}
    assert 60 < len(sampled) < 140
    async with tap_rig(kafka_address, prefix, TapSpec(sample=TapSample(rate=0.25))) as rig:
        await rig.exchange(ids[:200])
        rig.tap()
        await rig.exchange(ids[200:])
        responses = await rig.until_events(rig.names.tap_responses, len(sampled))
        requests = rig.events(rig.names.tap_requests)
        assert sorted(headers_of(message)["ce_id"] for message in requests) == sorted(sampled)
        assert sorted(headers_of(message)["ce_id"] for message in responses) == sorted(sampled)

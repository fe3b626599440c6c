"""Taps as processes that die with kill -9, again and again: the tap topics and the Parquet rows hold exactly the sampled requests, each once."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from pathlib import Path

from tap_process import TapProcess, running, until_rows
from tap_rig import TapRig, headers_of, rows, tap_rig

from broker.policy.tap_sampling import fraction
from schemas.tap import TapSample, TapSpec

REQUESTS = int(os.environ.get("HEADRACE_TEST_TAP_REQUESTS", "4000"))
KILLS = 3
RATE = 0.25
WRITE = 100


async def test_killed_taps_tap_each_sampled_request_once(kafka_address: str, prefix: str, tmp_path: Path) -> None:
    ids = [f"{prefix}-{number}" for number in range(REQUESTS)]
    sampled = Counter(each for each in ids if fraction(each.encode()) < RATE)
    chance = random.Random(7)
    folder = tmp_path / "rows"
    async with tap_rig(kafka_address, prefix, TapSpec(sample=TapSample(rate=RATE))) as rig:
        kafka = TapProcess(rig, "tap-kafka", tmp_path)
        parquet = TapProcess(rig, "tap-parquet", tmp_path, "--parquet", str(folder), "--rotate-seconds", "3")
        with running(kafka, parquet):
            pieces = [ids[at : at + WRITE] for at in range(0, len(ids), WRITE)]
            kills = {round((number + 1) * len(pieces) / (KILLS + 1)) for number in range(KILLS)}
            for number, piece in enumerate(pieces):
                await rig.exchange(piece)
                await asyncio.sleep(0.08)
                if number in kills:
                    await until_something(rig, folder)
                    # In the middle of something: half of a turn's time later.
                    await asyncio.sleep(chance.uniform(0, 0.2))
                    for tap in (kafka, parquet):
                        tap.kill()
                        tap.start()
            requests = await rig.until_events(rig.names.tap_requests, len(sampled), seconds=40)
            responses = await rig.until_events(rig.names.tap_responses, len(sampled), seconds=40)
            await until_rows(folder, len(sampled))
            kafka.check()
            parquet.check()
    assert Counter(headers_of(message)["ce_id"] for message in requests) == sampled
    assert Counter(headers_of(message)["ce_id"] for message in responses) == sampled
    found = rows(folder)
    assert Counter(row["id"] for row in found) == sampled
    assert all(row["inputs"] and row["outputs"] for row in found)
    assert len(list(folder.glob("*.parquet"))) > 1


async def until_something(rig: TapRig, folder: Path) -> None:
    """Both taps have stored some of it: what is killed is at work."""
    await rig.until_events(rig.names.tap_responses, 1, seconds=40)
    await until_rows(folder, 1)

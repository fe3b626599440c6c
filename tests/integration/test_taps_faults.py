"""What goes wrong around taps on a genuine Kafka: odd records, clocks that jump, sinks that are slow or dead, a full disk, a kill in mid-file."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web
from confluent_kafka import Producer
from prometheus_client import CollectorRegistry
from tap_process import TapProcess, running, until_rows
from tap_rig import SHARDS, TapRig, answer, headers_of, request, rows, tap_rig

from broker.tap_sinks.parquet_files import PARTIAL, SUFFIX, Stored, read_positions
from deploy.local.ports import free_ports
from deploy.roles.taps import TapOptions
from scaler.lag import LagReader
from schemas.catalog import EndpointSpec, catalog_key, encode_catalog
from schemas.tap import TapSpec

Eventually = Callable[..., Awaitable[Any]]
DAY_MS = 24 * 3_600_000
LATER = b',"a_field_of_version_9":{"x":[1]}}'
"""At the end of a record: as a version that is not there yet would write it."""


def odd(request_id: str) -> tuple[Any, Any]:
    """A request with its answer."""
    asked, answered = request(request_id), answer(request_id)
    if request_id == "undecodable":
        return (asked[0], b"\xff\x00no json", []), answer(request_id, "rejected")
    if request_id == "tombstone":
        return (asked[0], None, []), answer(request_id, "rejected")
    if request_id == "endless":
        return (asked[0], b"[" * 100_000, []), answer(request_id, "rejected")
    if request_id == "later":
        return (asked[0], asked[1][:-1] + LATER, []), (answered[0], answered[1][:-1] + LATER, answered[2])
    if request_id == "another-shape":
        tensor = {"name": "pixels", "shape": [2, 3], "datatype": "INT64", "data": [1, 2, 3, 4, 5, 6]}
        return request(request_id, inputs=[tensor]), answer(request_id, finished_ms=1 << 52, deadline_ms=1 << 52)
    return asked, answered


ODD = ("undecodable", "tombstone", "endless", "later", "another-shape")


class SlowCollector:
    """Takes nothing before it is told to."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.wakes = asyncio.Event()

    async def take(self, asked: web.Request) -> web.Response:
        body = json.loads(await asked.read())
        await self.wakes.wait()
        self.ids += [event["id"] for event in body]
        return web.Response()


@asynccontextmanager
async def slow_collector() -> AsyncIterator[tuple[SlowCollector, str]]:
    made = SlowCollector()
    application = web.Application(client_max_size=1 << 26)
    application.router.add_post("/", made.take)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield made, f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        made.wakes.set()
        await runner.cleanup()


def publish(rig: TapRig, ids: Sequence[str], stamps_ms: Callable[[int], int]) -> None:
    """With stamps of our own, where the topics allow that: as a log whose clock is set."""
    producer = Producer({"bootstrap.servers": rig.address, "linger.ms": 5})
    for number, request_id in enumerate(ids):
        for topic, (key, value, headers) in zip((rig.names.requests, rig.names.responses), odd(request_id), strict=True):
            producer.produce(topic, value=value, key=key, headers=list(headers), partition=number % SHARDS, timestamp=stamps_ms(number))
    assert producer.flush(20) == 0


async def test_odd_records_and_clocks_reach_each_sink_once_while_others_are_slow_or_dead(
    kafka_address: str, prefix: str, tmp_path: Path, eventually: Eventually
) -> None:
    now_ms = 1_700_000_000_000
    ids = [*ODD, *(f"r{number}" for number in range(300))]
    (nobody,) = free_ports(1)
    dead = CollectorRegistry()
    async with tap_rig(kafka_address, prefix, TapSpec()) as rig, slow_collector() as (slow, address):
        names = rig.names
        await rig.log.configure_topics({topic: {"message.timestamp.type": "CreateTime"} for topic in (names.requests, names.responses)})
        rig.tap("dead", TapOptions(sink="http", group=names.taps_group("dead"), options={"url": f"http://127.0.0.1:{nobody}/"}), dead)
        rig.tap("slow", TapOptions(sink="http", group=names.taps_group("slow"), options={"url": address}))
        rig.tap("kafka")
        rig.tap("parquet", TapOptions(sink="parquet", options={"folder": tmp_path / "rows"}))
        # Forward by a day, back by two, and forward again.
        publish(rig, ids[:150], lambda number: now_ms + (DAY_MS if 50 <= number < 100 else 0))
        catalog = EndpointSpec(name="fashion", task="fashion", taps=TapSpec())
        await rig.write(names.catalog, 0, [(catalog_key(catalog), encode_catalog(catalog)[:-1] + LATER, [])])
        publish(rig, ids[150:], lambda number: now_ms - (DAY_MS if number < 50 else 0))
        responses = await rig.until_events(names.tap_responses, len(ids))
        requests = {headers_of(message)["ce_id"]: message for message in rig.events(names.tap_requests)}
        await until_rows(tmp_path / "rows", len(ids))
        assert slow.ids == [], "the others did not wait for the slow one"
        slow.wakes.set()
        await eventually(lambda: len(set(slow.ids)) == len(ids), timeout_s=30)
        lags = LagReader(rig.log, names, "test")
        # HTTP has no place where it must be: what waits for a dead one is in its buffer, and it has read to the end.
        await eventually(lambda: dead.get_sample_value("headrace_tap_buffered_bytes"))
        groups = {lag.group for lag in await lags.read_all()}
        await lags.close()
    assert {names.taps_group(), names.taps_group("slow")} <= groups
    assert Counter(headers_of(message)["ce_id"] for message in responses) == Counter(ids)
    assert requests.keys() == set(ids)
    table = rows(tmp_path / "rows")
    assert Counter(row["id"] for row in table) == Counter(ids)
    check_odd({name: requests[name] for name in ODD}, {row["id"]: row for row in table})


def check_odd(events: dict[str, Any], table: dict[str, dict[str, Any]]) -> None:
    """Each as bytes with the reason, or read as far as this version knows."""
    for name, value in (("undecodable", b"\xff\x00no json"), ("endless", b"[" * 100_000)):
        assert (events[name].value(), table[name]["request"]) == (value, value)
        assert headers_of(events[name])["ce_problem"]
        assert headers_of(events[name])["content-type"] == "application/octet-stream"
        assert table[name]["request_problem"]
        assert table[name]["inputs"] is None
        assert table[name]["outcome"] == "rejected"
    assert not events["tombstone"].value()
    assert (table["tombstone"]["inputs"], table["tombstone"]["request"]) == (None, None)
    assert "a_field_of_version_9" in events["later"].value().decode()
    assert table["later"]["inputs"] == table["r0"]["inputs"]
    assert table["later"]["outputs"] == table["r0"]["outputs"]
    (tensor,) = table["another-shape"]["inputs"]
    assert (tensor["name"], tensor["datatype"], tensor["shape"], len(tensor["data"])) == ("pixels", "INT64", [2, 3], 48)


def readiness(ready_file: Path) -> tuple[int, str]:
    address = msgspec.json.decode(ready_file.read_bytes())["http"]
    try:
        with urllib.request.urlopen(f"http://{address}/readyz", timeout=10) as said:
            return said.status, said.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def test_a_disk_that_takes_no_more_is_waited_for_and_nothing_is_missing(
    kafka_address: str, prefix: str, tmp_path: Path, eventually: Eventually
) -> None:
    """The kernel refuses what goes beyond a size, as it does where there is no room."""
    ids = [f"r{number}" for number in range(400)]
    folder = tmp_path / "rows"
    async with tap_rig(kafka_address, prefix, TapSpec()) as rig:
        tap = TapProcess(rig, "tap-parquet", tmp_path, "--parquet", str(folder), "--http", "127.0.0.1:0", silent=True)
        with running(tap):
            await rig.exchange(ids[:100])
            await until_rows(folder, 100)
            await eventually(tap.ready_file.exists, timeout_s=20)
            resource.prlimit(tap.pid, resource.RLIMIT_FSIZE, (1_000, resource.RLIM_INFINITY))
            await rig.exchange(ids[100:])
            status, words = await eventually(lambda: next((said for said in [readiness(tap.ready_file)] if said[0] != 200), None), timeout_s=20)
            assert (status, "File too large" in words) == (503, True), words
            assert len(rows(folder)) == 100, "what was stored stays, and can be read"
            assert not list(folder.glob(f".*{PARTIAL}"))
            resource.prlimit(tap.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            await until_rows(folder, len(ids))
            await eventually(lambda: readiness(tap.ready_file)[0] == 200, timeout_s=20)
            tap.check()
    assert Counter(row["id"] for row in rows(folder)) == Counter(ids)


WRITES_HALF = """
import signal, sys
from pathlib import Path
import msgspec
from broker.tap_sinks.parquet_files import Stored, write_file
import pyarrow.parquet

def tables():
    table = pyarrow.parquet.read_table(sys.argv[1])
    for _ in range(50):
        yield table
    signal.pause()

write_file(Path(sys.argv[1]), tables(), msgspec.json.decode(sys.argv[2], type=Stored, strict=False))
"""


async def test_a_kill_in_the_middle_of_a_file_leaves_the_rows_before_it_and_loses_none(
    kafka_address: str, prefix: str, tmp_path: Path, eventually: Eventually
) -> None:
    ids = [f"r{number}" for number in range(200)]
    options = TapOptions(sink="parquet", options={"folder": tmp_path})
    async with tap_rig(kafka_address, prefix, TapSpec()) as rig:
        rig.tap("one", options)
        await rig.exchange(ids[:100])
        await until_rows(tmp_path, 100)
        await rig.stop_taps()
        await rig.exchange(ids[100:])
        (path,) = tmp_path.glob(f"*{SUFFIX}")
        ends = read_positions(tmp_path, prefix)
        ahead = {shard: msgspec.structs.replace(position, answers=position.answers + 50) for shard, position in ends.items()}
        stored = msgspec.json.encode(Stored(prefix, ahead)).decode()
        writer = subprocess.Popen([sys.executable, "-c", WRITES_HALF, str(path), stored])
        hidden = path.with_name(f".{path.name}{PARTIAL}")
        try:
            await eventually(lambda: hidden.exists() and hidden.stat().st_size > 0, timeout_s=20)
        finally:
            writer.kill()
        assert await asyncio.to_thread(writer.wait, 10) == -signal.SIGKILL
        assert hidden.exists(), "half a file is left"
        assert len(rows(tmp_path)) == 100
        assert read_positions(tmp_path, prefix) == ends, "and says nothing to anybody"
        rig.tap("one", options)
        await until_rows(tmp_path, len(ids))
        assert not hidden.exists()
    assert Counter(row["id"] for row in rows(tmp_path)) == Counter(ids)

"""Parquet files of taps: rows as pyarrow, pandas and polars read them; files that are torn, locked, of another layout, or do not fit the disk."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from prometheus_client import CollectorRegistry
from tap_exchanges import ANSWERED_MS, MSGPACK_HEADERS, RECEIVED_MS, answer, body, exchange

from broker.policy.tap_join import Exchange, TapPosition
from broker.tap_metrics import TapMetrics
from broker.tap_sinks import parquet as parquet_module
from broker.tap_sinks.parquet import ParquetSettings, ParquetTapSink
from broker.tap_sinks.parquet_files import LOCKS, ShardLock, Stored, read_positions, sweep, write_file
from broker.tap_sinks.parquet_layout import LAYOUT
from broker.tap_sinks.parquet_rows import row_of
from broker.tap_sinks.parquet_table import table_of
from broker.tap_sinks.tap_sink import SinkUnavailable, TapBatch
from schemas.errors import ConfigurationError
from schemas.limits import Limits
from schemas.tap import TapSpec
from schemas.terminal import MSGPACK_TYPE


def row(one: Exchange) -> dict[str, Any]:
    (found,) = table_of([row_of(one, Limits())])[0].to_pylist()
    return found


def position(answers: int) -> TapPosition:
    return TapPosition(answers, 0, {"requests": 1})


class Clock:
    def __init__(self) -> None:
        self.now_ms = 0.0

    def __call__(self) -> float:
        return self.now_ms


class Desk:
    """A sink over a folder, with a clock of its own."""

    def __init__(self, folder: Path, stem: str = "t", **settings: Any) -> None:
        self.clock, self.registry = Clock(), CollectorRegistry()
        self.sink = ParquetTapSink(
            folder, "p", TapMetrics(self.registry), stem=stem, now_ms=self.clock, settings=ParquetSettings(**settings) if settings else None
        )

    async def put(self, *ids: str, shard: int = 0, answers: int = 1) -> None:
        exchanges = [exchange(each) for each in ids]
        for each in exchanges:
            each.shard = shard
        await self.sink.write({shard: TapBatch(exchanges, position(answers))})


@pytest.mark.parametrize("content_type", ["application/json", MSGPACK_TYPE])
def test_a_row_has_request_and_answer_decoded(content_type: str) -> None:
    headers = MSGPACK_HEADERS if content_type == MSGPACK_TYPE else ()
    request = body(content_type, parameters={"k": 1}, traceparent="00-x")
    found = row(exchange(request=request, headers=headers, reply=answer("r1", content_type=content_type)))
    plain = {key: value for key, value in found.items() if key not in ("inputs", "outputs", "path", "received_at", "finished_at", "deadline_at")}
    assert plain == {
        "id": "r1",
        "endpoint": "fashion",
        "graph_version": 3,
        "outcome": "completed",
        "error_code": None,
        "error_message": None,
        "min_accuracy": 0.8,
        "accuracy": 0.9,
        "stage": "main",
        "variant": "fashion/cnn",
        "accelerator": "cpu",
        "attempts": 1,
        "tenant": "acme",
        "priority": 2,
        "traceparent": "00-x",
        "parameters": '{"k":1}',
        "request": None,
        "request_bytes": len(request),
        "request_problem": None,
        "response": None,
        "response_bytes": len(answer("r1", content_type=content_type)),
        "response_problem": None,
        "sample_rate": 1.0,
        "shard": 0,
        "offset": 17,
    }
    image, age = found["inputs"]
    assert np.frombuffer(image["data"], np.float32).reshape(image["shape"]).tolist() == [[1.0, 2.0]]
    assert (age["name"], age["datatype"], np.frombuffer(age["data"], np.int64).tolist()) == ("age", "INT64", [41])
    assert np.frombuffer(found["outputs"][0]["data"], np.int64).tolist() == [7]
    assert found["path"][0] == {
        "stage": "main",
        "variant": "fashion/cnn",
        "accuracy": 0.9,
        "accelerator": "cpu",
        "device": "CPU",
        "queued_ms": 1.5,
        "computed_ms": 2.5,
        "batch_size": 4,
    }
    times = [found[name].timestamp() * 1000 for name in ("received_at", "finished_at", "deadline_at")]
    assert times == [RECEIVED_MS, ANSWERED_MS - 3, RECEIVED_MS + 500]


def test_times_that_no_calendar_has_do_not_make_a_file_unreadable() -> None:
    found = row(exchange(reply=answer("r1", finished_ms=1 << 52, deadline_ms=1 << 52)))
    assert (found["finished_at"].timestamp() * 1000, found["deadline_at"]) == (ANSWERED_MS, None)
    found = row(exchange(reply=answer("r1", finished_ms=-5)))
    assert found["finished_at"].timestamp() * 1000 == ANSWERED_MS


def test_what_cannot_be_decoded_is_kept_as_bytes_with_the_reason() -> None:
    found = row(exchange(request=b'{"endpoint": "fashion", "inputs": [', reply=answer("r1", "rejected")))
    assert (found["request"], found["inputs"], found["min_accuracy"]) == (b'{"endpoint": "fashion", "inputs": [', None, 0.7)
    assert "not a valid application/json inference request" in found["request_problem"]
    assert (found["outcome"], found["error_code"], found["outputs"], found["path"]) == ("rejected", "deadline_exceeded", None, [])
    torn = row(exchange(reply=answer("r1").replace(b'"data":[7]', b'"data":[7,8]')))
    assert "7" not in torn["response_problem"] or "label" in torn["response_problem"]
    assert torn["response"].startswith(b"{")
    assert torn["outputs"] is None


def test_redaction_cuts_and_metadata() -> None:
    found = row(exchange(taps=TapSpec(redact=("image", "label"))))
    assert [(each["name"], each["data"]) for each in (*found["inputs"], *found["outputs"])][::2] == [("image", None), ("label", None)]
    assert found["inputs"][1]["data"] is not None
    hidden = row(exchange(taps=TapSpec(redact=("image",)), request=b'{"endpoint": "fashion", "inputs": [{"name": "image", "data": [9]'))
    assert hidden["request"] is None
    assert "redacted" in hidden["request_problem"]
    cut = row(exchange(taps=TapSpec(max_bytes=8)))
    assert (cut["request"], cut["inputs"]) == (body()[:8], None)
    assert cut["request_problem"] == f"cut to 8 of {len(body())} bytes"
    bare = row(exchange(taps=TapSpec(payload="metadata")))
    assert (bare["request"], bare["inputs"], bare["outputs"], bare["request_bytes"]) == (None, None, None, len(body()))


def test_a_forged_answer_that_fits_no_column_costs_its_own_row_only() -> None:
    rows = [row_of(exchange("a"), Limits()), row_of(exchange("b", reply=answer("b", attempts=1 << 40)), Limits()), row_of(exchange("c"), Limits())]
    table, misfits = table_of(rows)
    assert (table.column("id").to_pylist(), misfits) == (["a", "c"], 1)
    assert table_of([])[0].schema == LAYOUT


async def test_rows_are_there_after_a_while_and_the_file_grows_until_it_is_rotated(tmp_path: Path) -> None:
    desk = Desk(tmp_path, flush_ms=100.0, rotate_ms=1_000.0)
    await desk.sink.start()
    assert await desk.sink.open(0) is None
    await desk.put("a", answers=1)
    assert desk.sink.buffered_bytes() > 0
    desk.clock.now_ms = 100
    assert await desk.sink.settle() == {0: position(1)}
    (first,) = tmp_path.glob("*.parquet")
    await desk.put("b", answers=2)
    assert await desk.sink.settle() == {}, "not yet"
    desk.clock.now_ms = 300
    assert await desk.sink.settle() == {0: position(2)}
    assert [path.name for path in tmp_path.glob("*.parquet")] == [first.name]
    assert pq.read_table(first).column("id").to_pylist() == ["a", "b"]
    desk.clock.now_ms = 1_300
    await desk.put("c", answers=3)
    await desk.sink.settle()
    await desk.put("d", answers=4)
    await desk.sink.close()
    assert len(list(tmp_path.glob("*.parquet"))) == 2
    assert ds.dataset(tmp_path, format="parquet").to_table().column("id").to_pylist() == ["a", "b", "c", "d"]
    assert pl.read_parquet(tmp_path / "*.parquet")["id"].to_list() == ["a", "b", "c", "d"]
    frame = pq.read_table(first).to_pandas()
    assert frame.loc[frame["id"] == "b", "outcome"].tolist() == ["completed"]
    assert read_positions(tmp_path, "p") == {0: position(4)}
    assert read_positions(tmp_path, "another") == {}


async def test_a_successor_goes_on_where_the_files_end(tmp_path: Path) -> None:
    desk = Desk(tmp_path, flush_ms=100.0)
    await desk.sink.start()
    await desk.sink.open(0)
    await desk.put("a", answers=7)
    desk.clock.now_ms = 100
    await desk.sink.settle()
    await desk.put("lost", answers=9)
    # As after kill -9: nothing is closed, a file is half-written, and its lock is gone with its process.
    (tmp_path / ".t-000009.parquet.partial").write_bytes(b"PAR1 half of a fi")
    desk.sink._locks[0].release()
    after = Desk(tmp_path, "u")
    await after.sink.start()
    assert await after.sink.open(0) == position(7)
    assert [path.name for path in tmp_path.glob(".*.partial")] == []
    assert ds.dataset(tmp_path, format="parquet").to_table().column("id").to_pylist() == ["a"]
    await after.sink.close()


def test_a_file_that_is_being_written_is_not_swept_away(tmp_path: Path) -> None:
    import fcntl

    hidden = tmp_path / ".x.parquet.partial"
    with hidden.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        sweep(tmp_path)
        assert hidden.exists()
    sweep(tmp_path)
    assert not hidden.exists()


async def test_a_shard_has_one_writer_at_a_time(tmp_path: Path) -> None:
    one, two = Desk(tmp_path, "one"), Desk(tmp_path, "two")
    await one.sink.start()
    await one.sink.open(3)
    await one.put("a", shard=3, answers=4)
    with pytest.raises(SinkUnavailable, match="another process still writes shard 3"):
        await two.sink.open(3)
    assert await two.sink.open(4) is None
    await one.sink.release([3])
    assert await two.sink.open(3) == position(4), "what was taken is stored when the shard is given up"
    assert (tmp_path / LOCKS / "shard-3").exists()
    await two.sink.close()


async def test_a_full_disk_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = True

    def writing(*arguments: Any) -> int:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_file(*arguments)

    monkeypatch.setattr(parquet_module, "write_file", writing)
    desk = Desk(tmp_path, flush_ms=100.0, flush_bytes=1)
    await desk.sink.start()
    await desk.sink.open(0)
    await desk.put("a", answers=1)
    with pytest.raises(SinkUnavailable, match="No space left on device"):
        await desk.put("b", answers=2)
    desk.clock.now_ms = 5_000
    assert await desk.sink.settle() == {}
    assert "No space left" in desk.sink.unready()
    full = False
    await desk.put("b", answers=2)
    await desk.sink.close()
    assert desk.sink.unready() == ""
    assert ds.dataset(tmp_path, format="parquet").to_table().column("id").to_pylist() == ["a", "b"]
    assert read_positions(tmp_path, "p") == {0: position(2)}


async def test_rows_of_a_shard_that_goes_while_the_disk_is_full_are_its_next_owner_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    desk = Desk(tmp_path, flush_ms=100.0)
    await desk.sink.start()
    for shard in (0, 1):
        await desk.sink.open(shard)
        await desk.put(f"s{shard}", shard=shard, answers=1)
    with monkeypatch.context() as patched:
        patched.setattr(parquet_module, "write_file", full)
        await desk.sink.release([0])
    await desk.sink.close()
    assert ds.dataset(tmp_path, format="parquet").to_table().column("id").to_pylist() == ["s1"]
    assert read_positions(tmp_path, "p") == {1: position(1)}


async def test_a_folder_that_cannot_be_written_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigurationError, match="cannot be written there"):
        await Desk(tmp_path / "file" / "folder").sink.start()


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.parquet"
    table, _ = table_of([row_of(exchange("a"), Limits())])
    write_file(path, [table], Stored("p", {0: position(1)}))
    before = path.read_bytes()

    def failing(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", failing)
    with pytest.raises(OSError, match="No space"):
        write_file(path, [table, table], Stored("p", {0: position(2)}))
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["t.parquet"]


def test_files_of_other_layouts_are_read_beside_ours(tmp_path: Path) -> None:
    table, _ = table_of([row_of(exchange("new"), Limits())])
    write_file(tmp_path / "b.parquet", [table], Stored("p", {0: position(5)}))
    older = table_of([row_of(exchange("old"), Limits())])[0].drop_columns(["sample_rate", "accelerator"])
    pq.write_table(older, tmp_path / "a.parquet")
    later = table_of([row_of(exchange("later"), Limits())])[0].append_column("of_version_9", pa.array(["x"]))
    pq.write_table(later, tmp_path / "c.parquet")
    (tmp_path / "foreign.parquet").write_bytes(b"no parquet at all")
    assert read_positions(tmp_path, "p") == {0: position(5)}
    (tmp_path / "foreign.parquet").unlink()
    found = ds.dataset(tmp_path, format="parquet", schema=LAYOUT.remove_metadata()).to_table()
    assert found.column("id").to_pylist() == ["old", "new", "later"]
    assert found.column("accelerator").to_pylist() == [None, "cpu", "cpu"]


def test_the_layout_of_the_page_is_the_layout() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "taps.md").read_text()
    table = page.split("| column | type | |\n|---|---|---|\n")[1].split("\n\n")[0]
    import re

    stated = [name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line.split("|")[1])]
    assert sorted(stated) == sorted(LAYOUT.names)


def test_a_lock_is_let_go(tmp_path: Path) -> None:
    lock = ShardLock(tmp_path, 1)
    with pytest.raises(BlockingIOError):
        ShardLock(tmp_path, 1)
    lock.release()
    ShardLock(tmp_path, 1).release()

"""Reading traces: formats, units, columns, and what a report says of a file that is not quite right."""

from __future__ import annotations

from pathlib import Path
from time import tzset

import numpy as np
import pytest

from deploy.traces import DATA, KNOWN, Trace, read_trace, spread
from scaler.simulator.workloads.errors import InvalidTrace


def written(folder: Path, text: str, name: str = "trace.csv") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def stamps(trace: Trace) -> list[float]:
    return trace.stamps_ms.round(6).tolist()


@pytest.mark.parametrize(
    ("name", "arrivals", "rate_rps"),
    [("azure-conv", 19_366, 5.53), ("azure-code", 8_819, 2.57), ("mooncake-conversation", 12_031, 3.40)],
)
def test_the_known_traces_are_what_their_authors_published(name: str, arrivals: int, rate_rps: float) -> None:
    trace = read_trace(name)
    assert len(trace.stamps_ms) == trace.report.arrivals == arrivals
    assert trace.report.rate_rps == pytest.approx(rate_rps, abs=0.01)
    assert trace.report.span_s == pytest.approx(3_500.0, abs=70.0)
    assert trace.stamps_ms[0] == 0.0
    assert (np.diff(trace.stamps_ms) >= 0.0).all()
    assert "CC-BY-4.0" in trace.report.provenance or "Apache-2.0" in trace.report.provenance


def test_azure_stamps_are_dates(tmp_path: Path) -> None:
    text = "TIMESTAMP,ContextTokens\n2023-11-16 18:17:03.9799600,4808\n2023-11-16 18:17:04.0319600,3180\n2023-11-16T18:17:05+00:00,1\n"
    trace = read_trace(written(tmp_path, text))
    assert stamps(trace) == pytest.approx([0.0, 52.0, 1_020.04], abs=0.01)
    assert (trace.report.column, trace.report.unit, trace.report.warnings) == ("TIMESTAMP", "iso", ())


def test_zones_of_dates_count(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, "time\n2024-01-01T00:00:00Z\n2024-01-01T01:00:01+01:00\n"))
    assert stamps(trace) == [0.0, 1_000.0]


def test_dates_without_a_zone_are_not_those_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "time\n2024-01-01 00:00:00\n2024-01-01T00:00:02Z\n")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    tzset()
    try:
        assert stamps(read_trace(path)) == [0.0, 2_000.0]
    finally:
        monkeypatch.undo()
        tzset()


def test_mooncake_stamps_are_milliseconds_whose_ticks_are_spread() -> None:
    trace = read_trace("mooncake-conversation")
    assert trace.report.unit == "ms"
    assert trace.report.duplicates == 10_851
    assert trace.report.warnings == ("10851 equal stamps were spread evenly to the next one",)
    assert (np.diff(trace.stamps_ms) > 0.0).all()


def test_servegen_windows_become_arrivals_with_their_rates() -> None:
    trace = read_trace("servegen-m-small", span_s=1_200.0, seed=3)
    files = sorted((DATA / KNOWN["servegen-m-small"].path).glob("*-trace.csv"))
    assert len(files) == 8
    rates_rps = [float(line.split(",")[1]) for file in files for line in file.read_text().splitlines()[:2]]
    assert len(trace.stamps_ms) == sum(round(600 * rate) for rate in rates_rps)
    assert trace.stamps_ms[-1] < 1_200_000.0
    assert np.array_equal(trace.stamps_ms, read_trace("servegen-m-small", span_s=1_200.0, seed=3).stamps_ms)
    assert not np.array_equal(trace.stamps_ms[:100], read_trace("servegen-m-small", span_s=1_200.0, seed=4).stamps_ms[:100])


def test_a_servegen_file_alone_is_one_client(tmp_path: Path) -> None:
    rows = "0,0.1,1.0,Gamma,1.0,0.01\n600,0.0,0,,0,0\n1200,0.05,5.0,Weibull,0.4,0.2\n"
    trace = read_trace(written(tmp_path, rows, "chunk-1-trace.csv"), span_s=1_800.0)
    assert len(trace.stamps_ms) == 60 + 30
    gaps = np.diff(trace.stamps_ms)
    assert gaps.max() > 600_000.0
    with pytest.raises(InvalidTrace, match=r"chunk-1-trace.csv:2: no window of a ServeGen client"):
        read_trace(written(tmp_path, rows.replace("600,0.0", "600,none"), "chunk-1-trace.csv"))
    with pytest.raises(InvalidTrace, match="no pattern 'Pareto'"):
        read_trace(written(tmp_path, rows.replace("Gamma", "Pareto"), "chunk-1-trace.csv"))
    with pytest.raises(InvalidTrace, match=r"-0\.1 requests/s"):
        read_trace(written(tmp_path, rows.replace("0,0.1", "0,-0.1"), "chunk-1-trace.csv"))
    with pytest.raises(InvalidTrace, match="ask for less time"):
        read_trace(written(tmp_path, rows.replace("0,0.1", "0,1e9"), "chunk-1-trace.csv"))


@pytest.mark.parametrize(
    ("text", "expected", "column", "unit"),
    [
        ("arrival_time,x\n1,a\n2.5,b\n", [0.0, 1_500.0], "arrival_time", "s"),
        ("x,arrival_ms\na,1\nb,2.5\n", [0.0, 1.5], "arrival_ms", "ms"),
        ("Time_us\n1000\n3000\n", [0.0, 2.0], "Time_us", "us"),
        ("timestamp\n1700000000\n1700000001\n", [0.0, 1_000.0], "timestamp", "s"),
        ("timestamp\n1700000000000000\n1700000001000000\n", [0.0, 1_000.0], "timestamp", "us"),
        ("timestamp\n1700000000000\n1700000001000\n", [0.0, 1_000.0], "timestamp", "ms"),
        ("timestamp\n1700000000000000000\n1700000001000000000\n", [0.0, 1_000.0], "timestamp", "ns"),
        ("\ufefftimestamp\n0\n1\n", [0.0, 1_000.0], "timestamp", "s"),
        ("0.5\n0.75\n", [0.0, 250.0], "column 1", "s"),
        ("GET,7\nGET,9\n", [0.0, 2_000.0], "column 2", "s"),
    ],
)
def test_columns_and_units_are_found(tmp_path: Path, text: str, expected: list[float], column: str, unit: str) -> None:
    trace = read_trace(written(tmp_path, text))
    assert stamps(trace) == pytest.approx(expected, abs=1e-3)
    assert (trace.report.column, trace.report.unit) == (column, unit)


def test_a_column_can_be_named_with_its_unit(tmp_path: Path) -> None:
    path = written(tmp_path, "timestamp,begun\n1,10\n2,30\n")
    assert stamps(read_trace(path, "begun")) == [0.0, 20_000.0]
    assert stamps(read_trace(path, "begun:ms")) == [0.0, 20.0]
    with pytest.raises(InvalidTrace, match=r"no column 'begum'; did you mean 'begun'\?"):
        read_trace(path, "begum")
    with pytest.raises(InvalidTrace, match="no unit 'h'; known: ns, us, ms, s"):
        read_trace(path, "begun:h")
    with pytest.raises(InvalidTrace, match="no header"):
        read_trace(written(tmp_path, "1\n2\n", "bare.csv"), "begun")


def test_json_lines_count_in_milliseconds(tmp_path: Path) -> None:
    path = written(tmp_path, '{"timestamp": 5, "n": 1}\n\n{"timestamp": 8}\n', "trace.jsonl")
    assert stamps(read_trace(path)) == [0.0, 3.0]
    assert stamps(read_trace(path, "timestamp:s")) == [0.0, 3_000.0]
    with pytest.raises(InvalidTrace, match=r"trace.jsonl:2: no JSON"):
        read_trace(written(tmp_path, '{"timestamp": 5}\n{"timest', "trace.jsonl"))
    with pytest.raises(InvalidTrace, match=r"trace.jsonl:1: an object"):
        read_trace(written(tmp_path, "[1]\n", "trace.jsonl"))


def test_unsorted_stamps_are_sorted_and_duplicates_kept_and_both_are_said(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, "time\n3\n1\n2\n2\n2\n"))
    assert stamps(trace) == [0.0, 1_000.0, 1_000.0, 1_000.0, 2_000.0]
    assert (trace.report.backwards, trace.report.duplicates) == (1, 2)
    assert "1 stamps were below the one before: the trace was sorted" in trace.report.warnings
    assert any("they stay, and arrive at once" in warning for warning in trace.report.warnings)


def test_rows_without_a_time_are_left_out_and_counted(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, "time,x\n1,a\n,b\nnan,c\n2,d\n3\n2024-01-01,e\n"))
    assert stamps(trace) == [0.0, 1_000.0, 2_000.0]
    assert trace.report.skipped == 3
    assert trace.report.warnings == ("3 rows have no time in 'time' and were left out",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty"),
        ("time\n", "no arrivals in it"),
        ("time\nsoon\nlater\n", "none of 2 rows has a time in 'time'"),
        ("time\n1\nsoon\nlater\n", "2 of 3 rows have no time in 'time'; is it the right column"),
        ("a,b\nx,y\n", "no column looks like a time"),
    ],
)
def test_files_that_are_no_traces_are_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InvalidTrace, match=said):
        read_trace(written(tmp_path, text))


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidTrace, match=r"no known trace of this name; did you mean 'azure-conv'"):
        read_trace("azure-con")
    with pytest.raises(InvalidTrace, match="a folder without ServeGen files"):
        read_trace(tmp_path)
    path = tmp_path / "binary.csv"
    path.write_bytes(b"time\n\xff\xfe\x00\n")
    with pytest.raises(InvalidTrace, match="cannot be read"):
        read_trace(path)


def test_equal_stamps_are_spread_to_the_next_one() -> None:
    assert spread(np.array([0.0, 0.0, 100.0, 300.0, 300.0])).tolist() == [0.0, 50.0, 100.0, 300.0, 375.0]
    assert spread(np.array([5.0, 5.0])).tolist() == [5.0, 5.0]


def test_every_known_trace_is_there() -> None:
    for name in KNOWN:
        assert read_trace(name, span_s=60.0).report.arrivals > 100

"""Reads recorded arrivals: Azure LLM, Mooncake, ServeGen, and any CSV or JSON-lines file with a column of time stamps."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from deploy.suggestions import did_you_mean
from scaler.simulator.workloads.clients import ClientWindow, client_arrivals
from scaler.simulator.workloads.errors import InvalidTrace
from scaler.simulator.workloads.replay import rate_of

DATA = Path(__file__).resolve().parents[1] / "benchmarks" / "data"
ROWS_MAX = 20_000_000
SPAN_S = 3_600.0
"""How much of a trace is generated that says nothing but rates, where nobody asks for more."""
SERVEGEN_WINDOW_S = 600.0
SERVEGEN_FILES = "*-trace.csv"
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
COLUMNS = ("timestamp", "time", "arrival", "arrival_time", "arrived_at", "arrival_timestamp", "ts", "datetime", "date", "created_at", "start_time")
MS_PER_UNIT = {"ns": 1e-6, "us": 1e-3, "ms": 1.0, "s": 1e3}
ISO = "iso"
EPOCHS = (("ns", 1e17), ("us", 1e14), ("ms", 1e11), ("s", 1e8))
"""Numbers this large are Unix time in this unit; smaller ones count from the beginning of the trace."""
DUPLICATES_TOLD = 0.01


class Known(msgspec.Struct, frozen=True):
    """A trace that the repository holds."""

    path: str
    provenance: str
    spread: bool = False
    """Its clock ticks seldom: equal stamps are spread evenly to the next one."""


KNOWN = {
    "azure-conv": Known("azure/conv.csv", "Azure LLM inference trace 2023, conversation (CC-BY-4.0; Splitwise, ISCA'24)"),
    "azure-code": Known("azure/code.csv", "Azure LLM inference trace 2023, code (CC-BY-4.0; Splitwise, ISCA'24)"),
    "mooncake-conversation": Known(
        "mooncake/conversation.jsonl", "Mooncake FAST'25 conversation trace (Apache-2.0), its ticks of 3 s spread", spread=True
    ),
    "servegen-m-small": Known("servegen/m-small", "ServeGen m-small, eight clients, first two days (Apache-2.0; arXiv 2505.09999), generated"),
}


class TraceReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was found in the file."""

    source: str
    provenance: str = ""
    column: str
    unit: str
    arrivals: int
    span_s: float
    rate_rps: float
    skipped: int = 0
    """Rows without a usable stamp."""
    backwards: int = 0
    """Stamps below the one before: sorted."""
    duplicates: int = 0
    """Stamps equal to the one before: kept."""
    warnings: tuple[str, ...] = ()


class Trace(msgspec.Struct, frozen=True):
    """Sorted stamps in ms, the first one 0."""

    stamps_ms: NDArray[np.float64]
    report: TraceReport


class _Column(msgspec.Struct):
    name: str
    unit: str
    stamps: list[float]
    skipped: int = 0


def read_trace(file: Path | str, column: str = "", *, span_s: float = SPAN_S, seed: int = 0) -> Trace:
    """Read a trace by the path of its file or folder, or by its name in KNOWN.

    `column`: where the stamps are; found by its name or its values where empty. `name:ms` (ns, us, ms, s) says the unit too, which else comes from
    the column's ending, from the size of the numbers (Unix time), or is seconds in a CSV file and milliseconds in JSON lines.
    `span_s` and `seed` count for traces that are generated from rates (ServeGen). Raises InvalidTrace.
    """
    known = KNOWN.get(str(file)) if not Path(file).exists() else None
    path = DATA / known.path if known is not None else Path(file)
    if not path.exists():
        raise InvalidTrace(f"{file}: there is no such file, and no known trace of this name{did_you_mean(str(file), KNOWN)}")
    servegen = sorted(path.glob(SERVEGEN_FILES)) if path.is_dir() else [path] if path.match(SERVEGEN_FILES) and _is_servegen(path) else []
    try:
        if servegen:
            read = _Column("clients", "s", client_arrivals([_client(each) for each in servegen], span_s, seed).tolist())
        elif path.is_dir():
            raise InvalidTrace(f"{path}: a folder without ServeGen files ({SERVEGEN_FILES})")
        else:
            read = _json_lines(path, column) if path.suffix in JSON_SUFFIXES else _csv(path, column)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidTrace(f"{path}: cannot be read: {error}") from None
    return _trace(str(file), known, read)


def _trace(source: str, known: Known | None, read: _Column) -> Trace:
    stamps = np.asarray(read.stamps, np.float64)
    if not len(stamps):
        raise InvalidTrace(f"{source}: no arrivals in it" + (f": none of {read.skipped} rows has a time in {read.name!r}" if read.skipped else ""))
    if read.skipped > len(stamps):
        raise InvalidTrace(f"{source}: {read.skipped} of {read.skipped + len(stamps)} rows have no time in {read.name!r}; is it the right column?")
    backwards = int((np.diff(stamps) < 0.0).sum())
    stamps.sort()
    stamps -= stamps[0]
    duplicates = int((np.diff(stamps) == 0.0).sum())
    warnings: list[str] = []
    if read.skipped:
        warnings.append(f"{read.skipped} rows have no time in {read.name!r} and were left out")
    if backwards:
        warnings.append(f"{backwards} stamps were below the one before: the trace was sorted")
    if known is not None and known.spread:
        stamps = spread(stamps)
        warnings.append(f"{duplicates} equal stamps were spread evenly to the next one")
    elif duplicates > DUPLICATES_TOLD * len(stamps):
        warnings.append(f"{duplicates} stamps are equal to the one before; they stay, and arrive at once")
    report = TraceReport(
        source=source,
        provenance=known.provenance if known is not None else "",
        column=read.name,
        unit=read.unit,
        arrivals=len(stamps),
        span_s=float(stamps[-1]) / 1000.0,
        rate_rps=rate_of(stamps),
        skipped=read.skipped,
        backwards=backwards,
        duplicates=duplicates,
        warnings=tuple(warnings),
    )
    return Trace(stamps, report)


def spread(stamps_ms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Equal stamps at even distances up to the next one (the last ones: as far as the mean tick), for a clock that ticks seldom."""
    ticks, first, counts = np.unique(stamps_ms, return_index=True, return_counts=True)
    if len(ticks) < 2:
        return stamps_ms
    lengths = np.append(np.diff(ticks), (ticks[-1] - ticks[0]) / (len(ticks) - 1))
    place = np.arange(len(stamps_ms)) - np.repeat(first, counts)
    return np.repeat(ticks, counts) + place * np.repeat(lengths / counts, counts)


def _csv(path: Path, column: str) -> _Column:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file)
        first = next(rows, None)
        if first is None:
            raise InvalidTrace(f"{path}: the file is empty")
        header = [cell.strip() for cell in first]
        if all(_moment(cell) is None for cell in header):
            at, unit = _place(path, header, column)
            cells = (row[at] if at < len(row) else None for row in rows if row)
            return _converted(header[at], unit or _ending(header[at]), _limited(path, cells), "s")
        if column:
            raise InvalidTrace(f"{path}: the first row is no header, so there is no column {column!r}")
        at = next(place for place, cell in enumerate(header) if _moment(cell) is not None)
        cells = (row[at] if at < len(row) else None for row in chain((first,), rows) if row)
        return _converted(f"column {at + 1}", "", _limited(path, cells), "s")


def _json_lines(path: Path, column: str) -> _Column:
    with path.open(encoding="utf-8-sig") as file:
        rows = (_object(path, number, line) for number, line in enumerate(file, 1) if line.strip())
        first = next(rows, None)
        if first is None:
            raise InvalidTrace(f"{path}: the file is empty")
        at, unit = _place(path, list(first), column)
        name = list(first)[at]
        return _converted(name, unit or _ending(name), _limited(path, (row.get(name) for row in chain((first,), rows))), "ms")


def _object(path: Path, number: int, line: str) -> Mapping[str, Any]:
    try:
        value: Any = json.loads(line)
    except ValueError as error:
        raise InvalidTrace(f"{path}:{number}: no JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidTrace(f"{path}:{number}: an object is expected on each line")
    return value  # pyright: ignore[reportUnknownVariableType] - what JSON holds


def _limited(path: Path, cells: Iterator[Any]) -> Iterator[Any]:
    for number, cell in enumerate(cells):
        if number >= ROWS_MAX:
            raise InvalidTrace(f"{path}: more than {ROWS_MAX} rows")
        yield cell


def _place(path: Path, names: Sequence[str], column: str) -> tuple[int, str]:
    """(place of the column, its unit or nothing)."""
    wanted, _, unit = column.partition(":")
    if unit and unit not in MS_PER_UNIT:
        raise InvalidTrace(f"{path}: no unit {unit!r}; known: {', '.join(MS_PER_UNIT)}")
    if wanted:
        if wanted not in names:
            raise InvalidTrace(f"{path}: no column {wanted!r}{did_you_mean(wanted, names)}")
        return list(names).index(wanted), unit
    lowered = [_stem(name) for name in names]
    for known in COLUMNS:
        if known in lowered:
            return lowered.index(known), unit
    raise InvalidTrace(f"{path}: no column looks like a time ({', '.join(names[:8])}); name it")


def _stem(name: str) -> str:
    stem, _, ending = name.lower().rpartition("_")
    return stem if ending in MS_PER_UNIT else name.lower()


def _ending(name: str) -> str:
    ending = name.lower().rpartition("_")[2]
    return ending if ending in MS_PER_UNIT else ""


def _converted(name: str, unit: str, cells: Iterator[Any], otherwise: str) -> _Column:
    read = _Column(name, unit, [])
    numbers = True
    for cell in cells:
        moment = _moment(cell)
        if moment is None or (read.stamps and moment[1] is not numbers):
            read.skipped += 1
            continue
        read.stamps.append(moment[0])
        numbers = moment[1]
    if not numbers:
        read.unit = ISO
        return read
    largest = max(map(abs, read.stamps), default=0.0)
    read.unit = unit or next((epoch for epoch, least in EPOCHS if largest >= least), otherwise)
    read.stamps = [stamp * MS_PER_UNIT[read.unit] for stamp in read.stamps]
    return read


def _moment(cell: Any) -> tuple[float, bool] | None:
    """(number, True), or (Unix ms of an ISO date, False; UTC where it names no zone), or None."""
    if isinstance(cell, bool) or not isinstance(cell, str | int | float):
        return None
    try:
        number = float(cell)
    except ValueError:
        pass
    else:
        return (number, True) if isfinite(number) else None
    try:
        moment = datetime.fromisoformat(str(cell).strip())
    except ValueError:
        return None
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp() * 1000.0, False


def _is_servegen(path: Path) -> bool:
    with path.open(encoding="utf-8") as file:
        cells = file.readline().strip().split(",")
    return len(cells) == 6 and all(not cell or _moment(cell) is not None for place, cell in enumerate(cells) if place != 3)


def _client(path: Path) -> list[ClientWindow]:
    """Rows of ServeGen: begin in s, rate, coefficient of variation, pattern, shape and scale of the gaps."""
    with path.open(newline="", encoding="utf-8") as file:
        return [_client_window(path, number, row) for number, row in enumerate(csv.reader(file), 1) if row]


def _client_window(path: Path, number: int, row: list[str]) -> ClientWindow:
    try:
        begin, rate, _, pattern, shape, _ = row
        return ClientWindow(
            begin_s=float(begin), lasts_s=SERVEGEN_WINDOW_S, rate_rps=float(rate), pattern=pattern, shape=float(shape) if float(shape) > 0.0 else 1.0
        )
    except ValueError:
        raise InvalidTrace(f"{path}:{number}: no window of a ServeGen client: {','.join(row)}") from None

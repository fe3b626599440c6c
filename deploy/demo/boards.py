"""The demo with boards: what it asks, and the table of who answered: share, latency and measured accuracy, by class and by device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from deploy.demo.play import EXAMPLE
from deploy.demo.report import Answered
from schemas import slo
from schemas.terminal import PathStep

CATALOG = (EXAMPLE / "boards.yml",)
PACKAGE = EXAMPLE / "fpga" / "mlp128-int8.fpga.onnx"
FABRICS = ("numpy", "rtl")
FLOORS = ((0.80, 0.35), (0.88, 0.40), (0.90, 0.15), (0.93, 0.10))
"""(accuracy floor, part of the requests); boards meet the first two."""


def by_class(answered: Sequence[Answered]) -> dict[str, dict[str, Any]]:
    """Figures of each accelerator class."""
    return _grouped(answered, lambda step: step.accelerator)


def by_device(answered: Sequence[Answered]) -> dict[str, dict[str, Any]]:
    """Figures of each device; a board says which one it is, what its fabric is, and that it is emulated."""
    return _grouped(answered, lambda step: step.device)


def _grouped(answered: Sequence[Answered], name_of: Callable[[PathStep], str]) -> dict[str, dict[str, Any]]:
    completed = [one for one in answered if one.response.completed]
    groups: dict[str, list[Answered]] = {}
    for one in completed:
        groups.setdefault(name_of(one.response.path[-1]), []).append(one)
    return {name: _figures(group, len(completed)) for name, group in sorted(groups.items())}


def _figures(group: Sequence[Answered], of: int) -> dict[str, Any]:
    rows = sum(len(one.ask.images) for one in group)
    latencies = [one.response.latency_ms for one in group]
    computed = [one.response.path[-1].computed_ms for one in group]
    return {
        "answers": len(group),
        "share": round(len(group) / of, 4),
        "latency_ms": {"p50": round(float(np.quantile(latencies, 0.5)), 1), "p95": round(float(np.quantile(latencies, 0.95)), 1)},
        "computed_ms_p50": round(float(np.quantile(computed, 0.5)), 2),
        "declared_accuracy": round(slo.effective_accuracy_served([one.response.accuracy or 0.0 for one in group]), 4),
        "measured_accuracy": round(sum(one.right for one in group) / rows, 4),
    }


def table(title: str, figures: dict[str, dict[str, Any]]) -> Table:
    """Of by_class or by_device."""
    shown = Table(title=title, title_justify="left")
    columns = ("", "answers", "share", "p50 ms", "p95 ms", "computed ms", "declared accuracy", "measured")
    for column in columns:
        shown.add_column(column, justify="right" if column else "left")
    for name, one in figures.items():
        shown.add_row(
            name,
            str(one["answers"]),
            f"{one['share']:.1%}",
            str(one["latency_ms"]["p50"]),
            str(one["latency_ms"]["p95"]),
            str(one["computed_ms_p50"]),
            f"{one['declared_accuracy']:.4f}",
            f"{one['measured_accuracy']:.4f}",
        )
    return shown

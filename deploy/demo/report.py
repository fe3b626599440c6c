"""What the demo found: counts, attainment, accuracy declared and measured, latency, shares, and the slowest request's timeline."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from rich.console import Console, Group
from rich.table import Table

from broker.response import Response
from deploy.demo.traffic import Ask
from schemas import slo
from schemas.terminal import COMPLETED, EXPIRED, FAILED, OUTCOMES, REJECTED


class Answered:
    """A request with its answer."""

    __slots__ = ("ask", "response", "right")

    def __init__(self, ask: Ask, response: Response, labels: np.ndarray[Any, Any]) -> None:
        self.ask = ask
        self.response = response
        self.right = 0
        if response.completed:
            self.right = int((response.outputs["probs"].argmax(axis=1) == labels[ask.images]).sum())


def summary(log: str, answered: list[Answered]) -> dict[str, Any]:
    """The object that `demo --json` prints."""
    outcomes = Counter(one.response.outcome for one in answered)
    completed = [one for one in answered if one.response.completed]
    latencies = [one.response.latency_ms for one in completed]
    rows = sum(len(one.ask.images) for one in completed)
    steps = [one.response.path[-1] for one in completed]
    return {
        "log": log,
        "offered": len(answered),
        **{outcome: outcomes.get(outcome, 0) for outcome in (COMPLETED, EXPIRED, REJECTED, FAILED)},
        "slo_attainment": round(slo.attainment(len(completed), len(answered)), 4),
        "effective_accuracy_served": round(slo.effective_accuracy_served([one.response.accuracy or 0.0 for one in completed]), 4),
        "measured_accuracy_served": round(sum(one.right for one in completed) / rows, 4) if rows else 0.0,
        "latency_ms": {name: _quantile(latencies, at) for name, at in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))},
        "by_variant": dict(sorted(Counter(step.variant for step in steps).items())),
        "by_accelerator": dict(sorted(Counter(step.accelerator for step in steps).items())),
    }


def _quantile(values: list[int], at: float) -> float:
    return round(float(np.quantile(values, at)), 1) if values else 0.0


def show(console: Console, total: dict[str, Any], answered: list[Answered]) -> None:
    """The table at the end."""
    console.print(Group(_phases(answered), _floors(answered), _shares(answered)))
    console.print(
        f"offered {total['offered']}: completed {total['completed']}, expired {total['expired']}, rejected {total['rejected']}, "
        f"failed {total['failed']}; SLO attainment [bold]{total['slo_attainment']:.1%}[/bold]"
    )
    console.print(
        f"effective accuracy served: declared [bold]{total['effective_accuracy_served']:.4f}[/bold], "
        f"measured on the labels [bold]{total['measured_accuracy_served']:.4f}[/bold]"
    )
    latency = total["latency_ms"]
    console.print(f"latency of completed requests: p50 {latency['p50']} ms, p95 {latency['p95']} ms, p99 {latency['p99']} ms")
    for (outcome, code), (count, message) in reasons(answered).items():
        console.print(f"{count} {outcome} / {code}, as: {message}", highlight=False)
    completed = [one for one in answered if one.response.completed]
    if completed:
        console.print(_timeline(max(completed, key=lambda one: one.response.latency_ms)))


def reasons(answered: list[Answered]) -> dict[tuple[str, str], tuple[int, str]]:
    """Why requests were not completed: (outcome, code) -> (how many, what one of them was told)."""
    found: dict[tuple[str, str], tuple[int, str]] = {}
    for one in answered:
        error = one.response.error
        if error is not None:
            key = (one.response.outcome, error.code)
            found[key] = (found.get(key, (0, ""))[0] + 1, error.message)
    return found


def _phases(answered: list[Answered]) -> Table:
    table = Table(title="by phase", title_justify="left")
    for name in ("phase", "offered", *OUTCOMES, "attainment", "declared accuracy", "measured"):
        table.add_column(name, justify="left" if name == "phase" else "right")
    for phase in dict.fromkeys(one.ask.phase for one in answered):
        table.add_row(phase, *_figures([one for one in answered if one.ask.phase == phase]))
    return table


def _floors(answered: list[Answered]) -> Table:
    table = Table(title="by accuracy floor", title_justify="left")
    for name in ("floor", "offered", *OUTCOMES, "attainment", "declared accuracy", "measured"):
        table.add_column(name, justify="right")
    for floor in sorted({one.ask.floor for one in answered}):
        table.add_row(f"{floor:g}", *_figures([one for one in answered if one.ask.floor == floor]))
    return table


def _figures(group: list[Answered]) -> list[str]:
    outcomes = Counter(one.response.outcome for one in group)
    completed = [one for one in group if one.response.completed]
    rows = sum(len(one.ask.images) for one in completed)
    return [
        str(len(group)),
        *(str(outcomes.get(outcome, 0)) for outcome in OUTCOMES),
        f"{slo.attainment(len(completed), len(group)):.1%}",
        f"{slo.effective_accuracy_served([one.response.accuracy or 0.0 for one in completed]):.4f}" if completed else "-",
        f"{sum(one.right for one in completed) / rows:.4f}" if rows else "-",
    ]


def _shares(answered: list[Answered]) -> Table:
    table = Table(title="who answered", title_justify="left")
    for name in ("variant", "accelerator", "device", "answers", "share"):
        table.add_column(name, justify="right" if name in ("answers", "share") else "left")
    steps = [one.response.path[-1] for one in answered if one.response.completed]
    for (variant, accelerator, device), count in Counter((s.variant, s.accelerator, s.device) for s in steps).most_common():
        table.add_row(variant, accelerator, device, str(count), f"{count / len(steps):.1%}")
    return table


def _timeline(slowest: Answered) -> str:
    response, step = slowest.response, slowest.response.path[-1]
    way_ms = response.latency_ms - step.queued_ms - step.computed_ms
    return (
        f"slowest completed request {response.id}: floor {slowest.ask.floor:g}, deadline after {slowest.ask.timeout_ms} ms\n"
        f"    0.0 ms received, {step.queued_ms:.1f} ms until {step.variant} began on {step.accelerator} ({step.device}), "
        f"{step.computed_ms:.1f} ms computed with {step.batch_size} rows, {max(way_ms, 0.0):.1f} ms to the answer = {response.latency_ms} ms"
    )

"""Plays a demo of a graph, and shows which paths the requests took, at which accuracy, and what became of its canary or shadow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from broker.client import Client
from deploy.commands.output import Output
from deploy.demo.graphs import GraphDemo, by_path, graph_schedule
from deploy.demo.play import Labelled, play
from deploy.demo.progress import progress_bar, shown_on
from deploy.demo.report import show, summary
from deploy.demo.watching import Taps, final_canary, start_canary

Open = Callable[[Sequence[Path]], AbstractAsyncContextManager[Client]]


async def play_graph(output: Output, opened: Open, demo: GraphDemo, requests: int | None, rate_rps: float | None, log: str) -> None:
    """Start the stack, ask, and show."""
    data = Labelled()
    asks = graph_schedule(demo, requests or demo.requests, rate_rps or demo.rate_rps, len(data.images))
    async with opened(demo.files) as client:
        taps = Taps(client)
        await taps.start()
        collecting = asyncio.create_task(taps.collect())
        if demo.canary:
            await start_canary(client, demo.endpoint)
        with progress_bar(output) as progress:
            answered = await play(client, asks, data, shown_on(progress, len(asks)), endpoint=demo.endpoint)
        status = await final_canary(client, demo.endpoint) if demo.canary else None
        collecting.cancel()
        await asyncio.gather(collecting, return_exceptions=True)
        await taps.close()
    asked = {one.response.id for one in answered}
    shadows = sum(request_id in asked for request_id in taps.answers)
    paths = by_path(answered)
    total = summary(log, answered) | {"by_path": paths, "shadow_answers": shadows}
    show(output.console, total, answered)
    show_paths(output.console, paths)
    if taps.answers:
        total["shadow_agreement"] = taps.agreement(answered)
        output.console.print(f"shadow answers in the taps: {shadows}, agreement with the answers {total['shadow_agreement']:.1%}")
    if status is not None:
        total["canary"] = status
        output.console.print(f"canary: {status['phase']} at {status['percent']:g} %: {status['reason']}")
    output.result(total)


def show_paths(console: Console, paths: dict[str, dict[str, Any]]) -> None:
    """The paths that requests took."""
    table = Table(title="by path", title_justify="left")
    for name in ("path", "answers", "declared accuracy", "measured"):
        table.add_column(name, justify="left" if name == "path" else "right")
    for path, found in paths.items():
        table.add_row(path, str(found["answers"]), f"{found['declared']:.4f}", f"{found['measured']:.4f}")
    console.print(table)

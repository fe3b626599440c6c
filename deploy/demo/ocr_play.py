"""The OCR demo: rendered pages with exact truth go in, text comes out; then the same pages once more with half the time."""

from __future__ import annotations

import importlib
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from broker.client import Client
from broker.response import Response
from deploy.commands.output import Output
from deploy.demo.progress import progress_bar, shown_on
from schemas.errors import ConfigurationError
from schemas.terminal import OUTCOMES

PAGES = 50
FLOOR = 0.9
AT_LEISURE_MS = 30_000
WARM_UP_PAGES = 5
ROOM = 2.5
"""The full deadline: so many times what a page took at leisure."""
Open = Callable[[Sequence[Path]], AbstractAsyncContextManager[Client]]


class Pass:
    """The pages under one deadline."""

    def __init__(self, name: str, timeout_ms: int) -> None:
        self.name, self.timeout_ms = name, timeout_ms
        self.responses: list[Response] = []
        self.edits = self.characters = 0

    def take(self, response: Response, page: Any, error: Callable[..., tuple[int, int]]) -> None:
        """Compare an answer with the truth."""
        self.responses.append(response)
        if response.completed:
            read = [line.decode() if isinstance(line, bytes) else str(line) for line in response.outputs["text"].ravel()]
            edits, characters = error(read, page.lines)
            self.edits, self.characters = self.edits + edits, self.characters + characters

    def summary(self) -> dict[str, Any]:
        """As `--json` shows it."""
        outcomes = Counter(response.outcome for response in self.responses)
        completed = [response for response in self.responses if response.completed]
        steps = [step for response in completed for step in response.path]
        latencies = [response.latency_ms for response in completed]
        return {
            "timeout_ms": self.timeout_ms,
            "pages": len(self.responses),
            **{outcome: outcomes.get(outcome, 0) for outcome in OUTCOMES},
            "character_error": round(self.edits / self.characters, 4) if self.characters else None,
            "effective_accuracy_served": round(float(np.mean([response.accuracy or 0.0 for response in completed])), 4) if completed else None,
            "latency_ms": {name: round(float(np.quantile(latencies, at)), 1) if latencies else None for name, at in (("p50", 0.5), ("p95", 0.95))},
            "by_variant": dict(sorted(Counter(step.variant for step in steps).items())),
            "by_accelerator": dict(sorted(Counter(step.accelerator for step in steps).items())),
        }


def example() -> tuple[Any, Any]:
    """(fetch, rendering) of the example. Raises ConfigurationError where its extra is not installed."""
    try:
        return importlib.import_module("headrace_ocr.fetch"), importlib.import_module("headrace_ocr.rendering")
    except ImportError as error:
        raise ConfigurationError(
            f"the OCR example cannot be loaded ({error}): from a checkout, `make install`; else `pip install 'headrace[ocr]'` "
            "and `pip install --no-deps rapidocr`"
        ) from None


async def play_ocr(output: Output, opened: Open, pages: int | None, log: str) -> None:
    """Start the stack, read the pages twice, and show."""
    fetch, rendering = example()
    with tempfile.TemporaryDirectory(prefix="headrace-ocr-") as name:
        output.say("building the models from the weights of the rapidocr package")
        try:
            files = fetch.build(Path(name))
        except Exception as error:  # whatever keeps the weights away is a matter of installation
            raise ConfigurationError(f"the OCR models cannot be built: {error}") from None
        found = rendering.render_pages(pages or PAGES)
        async with opened(files) as client:
            passes = await _read(output, client, found, rendering.character_error)
    total = {"log": log, "floor": FLOOR, "full": passes[0].summary(), "halved": passes[1].summary()}
    show_passes(output.console, passes)
    output.result(total)


async def _read(output: Output, client: Client, pages: Sequence[Any], error: Callable[..., tuple[int, int]]) -> list[Pass]:
    leisure = [(await _ask(client, page, AT_LEISURE_MS)).latency_ms for page in pages[:WARM_UP_PAGES]]
    full_ms = int(ROOM * float(np.median(leisure[1:] or leisure)))
    passes = [Pass("full", full_ms), Pass("halved", full_ms // 2)]
    with progress_bar(output) as progress:
        shown = shown_on(progress, len(pages) * len(passes))
        for number, one in enumerate(passes):
            for at, page in enumerate(pages):
                one.take(await _ask(client, page, one.timeout_ms), page, error)
                done = number * len(pages) + at + 1
                shown(f"{one.name} deadline, {one.timeout_ms} ms", done, done)
    return passes


async def _ask(client: Client, page: Any, timeout_ms: int) -> Response:
    image = np.array([page.image], dtype=object)
    request_id = await client.submit("ocr", {"image": image}, min_accuracy=FLOOR, timeout_ms=timeout_ms)
    async for response in client.results([request_id], wait_ms=timeout_ms + 15_000):
        return response
    raise AssertionError(request_id)


def show_passes(console: Console, passes: Sequence[Pass]) -> None:
    """The table at the end."""
    table = Table(title=f"pages read with floor {FLOOR:g}", title_justify="left")
    for name in ("deadline", "pages", *OUTCOMES, "declared accuracy", "character error", "p50 ms", "p95 ms"):
        table.add_column(name, justify="right")
    for one in passes:
        found = one.summary()
        declared = found["effective_accuracy_served"]
        table.add_row(
            f"{one.timeout_ms} ms",
            str(found["pages"]),
            *(str(found[outcome]) for outcome in OUTCOMES),
            "-" if declared is None else f"{declared:.4f}",
            "-" if found["character_error"] is None else f"{found['character_error']:.4f}",
            str(found["latency_ms"]["p50"]),
            str(found["latency_ms"]["p95"]),
        )
    console.print(table)
    shares = Table(title="who computed", title_justify="left")
    for name in ("variant", *(f"{one.timeout_ms} ms" for one in passes)):
        shares.add_column(name, justify="left" if name == "variant" else "right")
    counts: list[dict[str, int]] = [one.summary()["by_variant"] for one in passes]
    for variant in sorted(set[str]().union(*counts)):
        shares.add_row(variant, *(str(found.get(variant, 0)) for found in counts))
    console.print(shares)
    for one in passes:
        last = next((response for response in reversed(one.responses) if response.completed), None)
        if last is not None:
            path = " > ".join(f"{step.stage}={step.variant.partition('/')[2]}" for step in last.path)
            console.print(f"{one.timeout_ms} ms, last page: {path}", highlight=False)

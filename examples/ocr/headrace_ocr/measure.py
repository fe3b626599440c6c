"""Measures the character error of every combination of variants on rendered pages, without a broker."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from headrace_ocr.fetch import build_models
from headrace_ocr.ladder import DETECTOR_SIDES, RECOGNISER_WIDTHS, combination, combinations
from headrace_ocr.pipeline import Pipeline
from headrace_ocr.rendering import Page, character_error, render_pages

Progress = Callable[[int], None]


class Tally(NamedTuple):
    """Edits, and characters of the truth, over the pages so far."""

    edits: int = 0
    characters: int = 0

    def plus(self, edits: int, characters: int) -> Tally:
        return Tally(self.edits + edits, self.characters + characters)

    @property
    def error(self) -> float:
        """More edits than characters are possible, but no worse than nothing read."""
        return min(self.edits / max(self.characters, 1), 1.0)


def measure(pipeline: Pipeline, pages: Sequence[Page], on_page: Progress | None = None) -> dict[tuple[str, str], Tally]:
    """By (detector, recogniser); each detector's lines are cut and oriented once."""
    tallies = dict.fromkeys(combinations(), Tally())
    for number, page in enumerate(pages):
        for detector in DETECTOR_SIDES:
            found = pipeline.cut(page.image, detector)
            turned = pipeline.orient(found["lines"])
            for recogniser in RECOGNISER_WIDTHS:
                read = pipeline.text(pipeline.recognise(found["lines"], turned, recogniser), found["boxes"])
                tallies[detector, recogniser] = tallies[detector, recogniser].plus(*character_error(read, page.lines))
        if on_page is not None:
            on_page(number + 1)
    return tallies


def _table(tallies: dict[tuple[str, str], Tally]) -> str:
    rows = [["character error", *RECOGNISER_WIDTHS]]
    rows += [[detector, *(f"{tallies[detector, recogniser].error:.4f}" for recogniser in RECOGNISER_WIDTHS)] for detector in DETECTOR_SIDES]
    return "\n".join("  ".join(cell.ljust(15) for cell in row).rstrip() for row in rows)


def main() -> int:
    """Print the table and each model's milliseconds; write the accuracies where that is asked for."""
    parser = argparse.ArgumentParser(description="Measure the OCR example's variants.")
    parser.add_argument("--models", type=Path, default=Path("ocr"), help="folder of the models, built where it is missing (default: ./%(default)s)")
    parser.add_argument("--pages", type=int, default=50, help="pages to render (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=11, help="of the rendering (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime (default: %(default)s)")
    parser.add_argument("--write", type=Path, help="file for the accuracies by combination, as an endpoint's `measured` names it")
    arguments = parser.parse_args()
    if not (arguments.models / "models").is_dir():
        build_models(arguments.models)
    pipeline = Pipeline(arguments.models, arguments.threads)
    pages = render_pages(arguments.pages, arguments.seed)
    tallies = measure(pipeline, pages, lambda done: print(f"\r{done} of {len(pages)} pages", end="", file=sys.stderr, flush=True))
    lines = sum(len(page.lines) for page in pages)
    print(f"\n{len(pages)} pages, {lines} lines, {sum(page.upside_down for page in pages)} upside down")
    print(_table(tallies))
    for model, spent_ms in sorted(pipeline.spent_ms.items()):
        print(f"{model}: {np.median(spent_ms):.1f} ms a call, {arguments.threads} thread(s)")
    if arguments.write is not None:
        accuracies = {combination(*variants): round(1 - tally.error, 4) for variants, tally in tallies.items()}
        arguments.write.write_text(json.dumps({"measured": accuracies}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The variants by name: which sizes there are, and what accuracy each was measured to have."""

from __future__ import annotations

import json
from importlib.resources import files
from itertools import product

DETECTOR_SIDES = {"side-800": 800, "side-640": 640, "side-480": 480, "side-320": 320}
RECOGNISER_WIDTHS = {"width-960": 960, "width-640": 640, "width-560": 560, "width-480": 480}
CLASSIFIER = "mobile-v2"
DETECT, ORIENT, RECOGNISE = "detect", "lines/orient", "lines/recognise"
"""The model stages of the graph in endpoint.yaml."""
MEASURED_FILE = "measured.json"


def combination(detector: str, recogniser: str) -> str:
    """The key of a combination in an endpoint's `measured`: stages in the order of their names."""
    return f"{DETECT}={detector},{ORIENT}={CLASSIFIER},{RECOGNISE}={recogniser}"


def combinations() -> list[tuple[str, str]]:
    """Every (detector, recogniser)."""
    return list(product(DETECTOR_SIDES, RECOGNISER_WIDTHS))


def read_measured() -> dict[str, float]:
    """1 - character error on rendered pages by combination, as `python -m headrace_ocr.measure` found it."""
    return json.loads(files(__package__).joinpath(MEASURED_FILE).read_text())["measured"]


def stage_accuracies(measured: dict[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """(detectors, recognisers): a recogniser's is end to end with the best detector, a detector's is relative to the best.

    So a path's product is about what was measured for the combination, and the best detector costs nothing twice.
    """
    best = max(DETECTOR_SIDES, key=lambda name: max(measured[combination(name, other)] for other in RECOGNISER_WIDTHS))
    recognisers = {name: measured[combination(best, name)] for name in RECOGNISER_WIDTHS}
    top = max(recognisers, key=lambda name: recognisers[name])
    detectors = {name: round(measured[combination(name, top)] / recognisers[top], 4) for name in DETECTOR_SIDES}
    return detectors, recognisers

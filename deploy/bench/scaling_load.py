"""The requests of the rows about scaling: one photo each, at rates that change in steps, to one endpoint or two."""

from __future__ import annotations

import math
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from broker.log import Headers, Message
from broker.published import Request, publish
from deploy.bench.computing import HOP_MS
from deploy.bench.exchange import Answered, Timed
from deploy.bench.scaling_parts import Parts
from schemas import slo
from schemas.limits import Limits
from schemas.terminal import COMPLETED, TerminalHead, decode_terminal_head

FLOOR = 0.6
TIMEOUTS_MS = (250, 400)
IMAGE = "image"


class Step(msgspec.Struct, frozen=True):
    """For so long, so many requests a second to each endpoint."""

    seconds: float
    rates_rps: dict[str, float]


class Asked(msgspec.Struct, frozen=True):
    """One request."""

    endpoint: str
    at_s: float
    """Since the beginning."""


class Offer(msgspec.Struct, frozen=True):
    """Requests with their times, and what each is, by key."""

    requests: list[Timed]
    asked: dict[bytes, Asked]
    seconds: float
    lead_s: float = 0.0
    """Requests that are due before it are played and not judged."""


class Second(msgspec.Struct, frozen=True):
    """What became of the requests that were due in one second."""

    at_s: float
    offered: int
    completed: int

    @property
    def attainment(self) -> float:
        return slo.attainment(self.completed, self.offered)


class Came(msgspec.Struct, frozen=True):
    """What came of an offer."""

    offered: int
    completed: int
    attainment: float
    accuracy_served: float
    outcomes: dict[str, int]
    variants: dict[str, int]
    seconds: tuple[Second, ...]
    parts: Parts | None = None
    """Of a live offer: where the time went."""
    busy: float = 0.0
    """Of a simulated one: part of the workers' time in which they computed."""

    @property
    def violations(self) -> float:
        """Part of what was offered."""
        return slo.violation_ratio(self.completed, self.offered)


class Photos:
    """Makes offers: bodies are shared between requests, as a photo has 100 kB."""

    def __init__(self, photos: Sequence[NDArray[np.uint8]]) -> None:
        self._bodies = [_body(photo) for photo in photos]
        self._headers = cache(_headers)

    def offer(self, steps: Sequence[Step], seed: int, *, lead_s: float = 0.0, timeouts_ms: Sequence[int] = TIMEOUTS_MS) -> Offer:
        """Poisson arrivals; the same seed gives the same times, whatever the ids. Requests take turns with the time-outs."""
        random = np.random.default_rng(seed)
        times: list[tuple[float, str]] = []
        began_s = 0.0
        for step in steps:
            for endpoint, rate_rps in step.rates_rps.items():
                count = round(rate_rps * step.seconds)
                times += [(float(at_s), endpoint) for at_s in began_s + np.sort(random.uniform(0.0, step.seconds, count))]
            began_s += step.seconds
        times.sort()
        requests: list[Timed] = []
        asked: dict[bytes, Asked] = {}
        for number, (at_s, endpoint) in enumerate(times):
            key = uuid.uuid4().hex.encode()
            headers = self._headers(endpoint, timeouts_ms[number % len(timeouts_ms)])
            message: Message = (key, self._bodies[number % len(self._bodies)], headers)
            requests.append(Timed(at_s, message))
            asked[key] = Asked(endpoint, at_s)
        return Offer(requests, asked, began_s, lead_s)


def _body(photo: NDArray[np.uint8]) -> bytes:
    """Without an id: the record's key is it."""
    tensor: dict[str, Any] = {"name": IMAGE, "shape": [1, *photo.shape], "datatype": "UINT8", "data": photo.tobytes()}
    return msgspec.msgpack.encode({"inputs": [tensor]})


def _headers(endpoint: str, timeout_ms: int) -> Headers:
    small = np.zeros((1, 1, 1), np.uint8)
    request = Request(endpoint=endpoint, inputs={IMAGE: small}, min_accuracy=FLOOR, timeout_ms=timeout_ms)
    return publish(request, "msgpack", Limits()).message[2]


def judged(offer: Offer, answers: Mapping[bytes, Answered]) -> Came:
    """Every request after the lead counts, in the second in which it was due; seconds count from the lead's end."""
    outcomes: Counter[str] = Counter()
    variants: Counter[str] = Counter()
    offered: Counter[int] = Counter()
    completed: Counter[int] = Counter()
    accuracies: list[float] = []
    for key, asked in offer.asked.items():
        second = math.floor(asked.at_s - offer.lead_s)
        if second < 0:
            continue
        offered[second] += 1
        answer = answers.get(key)
        terminal = None if answer is None else decode_terminal_head(answer.value)
        if answer is None or terminal is None:
            outcomes["unanswered"] += 1
            continue
        verdict = _verdict(terminal, answer)
        outcomes[verdict] += 1
        if verdict == COMPLETED:
            completed[second] += 1
            accuracies.append(terminal.accuracy or 0.0)
            variants[terminal.path[-1].variant] += 1
    return Came(
        offered=offered.total(),
        completed=len(accuracies),
        attainment=slo.attainment(len(accuracies), offered.total()),
        accuracy_served=slo.effective_accuracy_served(accuracies),
        outcomes=dict(outcomes),
        variants=dict(variants),
        seconds=tuple(Second(float(at_s), offered[at_s], completed[at_s]) for at_s in sorted(offered)),
    )


def _verdict(terminal: TerminalHead, answer: Answered) -> str:
    if terminal.outcome != COMPLETED:
        return f"{terminal.outcome}/{terminal.error.code if terminal.error else ''}"
    if answer.written_ms > (terminal.deadline_ms or 0) + HOP_MS:
        return "late"
    return COMPLETED if (terminal.accuracy or 0.0) >= FLOOR else "below its floor"


def recovery_s(seconds: Sequence[Second], from_s: float, least: float) -> float:
    """From `from_s` until attainment is at `least` or more in every second that follows; the whole rest where it never is."""
    after = [second for second in seconds if second.at_s >= from_s]
    below = [second.at_s + 1.0 for second in after if second.attainment < least]
    return max(below, default=from_s) - from_s

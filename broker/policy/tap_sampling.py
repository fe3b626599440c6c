"""Which requests are tapped: by a number that their id alone decides, so that every tap, and every life of a tap, takes the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

from schemas.catalog import EndpointSpec
from schemas.tap import TapSpec

_PERSON = b"headrace-tap"
"""Apart from the choices of graphs, which are hashes of the id too: a sample must not lean to one arm of a canary."""
_SCALE = float(1 << 64)


def fraction(request_id: bytes) -> float:
    """In [0, 1), uniform over ids: a request is sampled where this is below its rate."""
    return int.from_bytes(blake2b(request_id, digest_size=8, person=_PERSON).digest(), "big") / _SCALE


def ceiling(endpoints: Mapping[str, EndpointSpec]) -> float:
    """No request with a fraction of this or more is sampled by any endpoint; 0 where nothing is tapped."""
    return max((endpoint.taps.sample.rate_max for endpoint in endpoints.values() if endpoint.taps is not None), default=0.0)


def sampled(taps: TapSpec, request_fraction: float, outcome: str, variant: str) -> float | None:
    """The rate that the request was taken with; None where it was not."""
    rate = taps.sample.rate_of(outcome, variant)
    return rate if request_fraction < rate else None

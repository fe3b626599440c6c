"""What is wrong with a workload.

HeadraceError
└── InvalidWorkload           a load that cannot be generated: names the field and its value
    ├── InvalidArrivals       a rate, time or shape that means nothing
    ├── InvalidMix            weights, floors, time-outs or tenants that mean nothing
    └── InvalidTrace          stamps that are missing, unsorted or no numbers
"""

from __future__ import annotations

from schemas.errors import HeadraceError


class InvalidWorkload(HeadraceError):
    """The load cannot be generated."""

    code = "workload"


class InvalidArrivals(InvalidWorkload):
    """The arrivals of a load cannot be generated."""


class InvalidMix(InvalidWorkload):
    """The mix of floors, time-outs and tenants cannot be drawn from."""


class InvalidTrace(InvalidWorkload):
    """The stamps of a trace cannot be replayed."""

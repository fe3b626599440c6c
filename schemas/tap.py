"""What an endpoint's `taps:` says: which requests are copied for those who watch, and how much of each."""

from __future__ import annotations

from typing import Literal

import msgspec

TAP_BYTES_MAX = 1 << 20
"""Of one payload: what is larger is cut, whatever the endpoint says."""
SHADOW_HEADER = "headrace-shadow"
"""Of a record of {p}.tap.responses that is a shadow's answer, and not a tapped one."""
EVERY_STAGE = "*"
TAP_RETENTION_HOURS = 24
"""Of the tap topics, where no endpoint says another."""


class TapSample(msgspec.Struct, frozen=True, kw_only=True):
    """Rates in 0..1. Where an outcome or a variant (`task/variant`) of a request is named, the highest of those rates holds instead of `rate`."""

    rate: float = 1.0
    outcomes: dict[str, float] = {}
    variants: dict[str, float] = {}

    def rate_of(self, outcome: str, variant: str) -> float:
        """The rate for a request with this outcome, answered by this variant (empty: by none)."""
        named = [rates[name] for rates, name in ((self.outcomes, outcome), (self.variants, variant)) if name in rates]
        return max(named) if named else self.rate

    @property
    def rate_max(self) -> float:
        """No request is sampled with a higher rate, whatever comes of it."""
        return max([self.rate, *self.outcomes.values(), *self.variants.values()])


class TapSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The taps of one endpoint."""

    sample: TapSample = TapSample()
    payload: Literal["full", "metadata"] = "full"
    redact: tuple[str, ...] = ()
    """Names of input and output tensors whose data is left out."""
    max_bytes: int = TAP_BYTES_MAX
    """Of each payload."""
    stages: tuple[str, ...] = ()
    """Paths of stages whose outputs are tapped too; `*`: of all."""
    retention_hours: int | None = None
    """Of the tap topics, which all endpoints share: the longest of all holds. None: TAP_RETENTION_HOURS."""

"""The actuator that offers nothing: the workers are those that there are, and only rebound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from schemas.scale import ScaleOffer, ScaleOrder


class FixedActuator:
    """Rebinds only."""

    name = "fixed"

    async def start(self) -> None:
        """See Actuator."""

    async def offers(self) -> Sequence[ScaleOffer]:
        """See Actuator."""
        return ()

    async def apply(self, orders: Mapping[str, ScaleOrder]) -> None:
        """See Actuator."""

    async def close(self) -> None:
        """See Actuator."""

"""What an actuator is: it says what can be asked of it, and carries out how many workers of each class are to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from schemas.scale import ScaleOffer, ScaleOrder

ENTRY_POINTS = "headrace.actuators"


class Actuator(Protocol):
    """Every call may take its time, and may raise anything: the caller has a limit, and tries again later."""

    name: str

    async def start(self) -> None:
        """Called once, before anything else."""
        ...

    async def offers(self) -> Sequence[ScaleOffer]:
        """What can be asked for now, one for each class; a class that is not named stays as it is. Asked once a second."""
        ...

    async def apply(self, orders: Mapping[str, ScaleOrder]) -> None:
        """Make it so, by class. Called again and again with the same orders: what is so already needs nothing.

        Who ends must first finish, or hand back, what it holds (SIGTERM does that): those named in `leaving` are drained already.
        """
        ...

    async def close(self) -> None: ...

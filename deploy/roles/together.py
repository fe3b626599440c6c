"""Several roles in one process: they start together, and end together where one of them ends."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from broker.role import Role


class Together:
    """A role made of roles."""

    def __init__(self, roles: Sequence[Role]) -> None:
        self._roles = tuple(roles)

    async def run(self) -> None:
        """Until all have ended; the first defect ends the others, and is raised."""
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(role.run()) for role in self._roles]
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            self.stop()

    def stop(self) -> None:
        for role in self._roles:
            role.stop()

    def unready(self) -> str:
        return next((reason for role in self._roles if (reason := role.unready())), "")

    def unhealthy(self) -> str:
        return next((reason for role in self._roles if (reason := role.unhealthy())), "")

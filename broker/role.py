"""What every long-running part of Headrace offers to whoever runs it: a process of its own, or the embedded mode."""

from __future__ import annotations

from typing import Protocol


class Role(Protocol):
    """A role runs until it was asked to stop and has drained; a defect escapes from `run` and ends the process."""

    async def run(self) -> None:
        """Start, serve, and after `stop()` drain and return. Raises what it cannot recover from."""
        ...

    def stop(self) -> None:
        """Ask for an orderly end (SIGTERM); may be called from a signal handler, more than once."""
        ...

    def unready(self) -> str:
        """Why no work should be sent here now; empty where all is well (`/readyz`)."""
        ...

    def unhealthy(self) -> str:
        """Why this process should be restarted; empty where all is well (`/healthz`)."""
        ...

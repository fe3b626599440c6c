"""Decides how long a process that died stays down before it is started again; pure."""

from __future__ import annotations

import msgspec


class Backoff(msgspec.Struct, frozen=True, kw_only=True):
    """How fast deaths in a row are answered by starts."""

    first_ms: float = 100.0
    factor: float = 2.0
    max_ms: float = 10_000.0
    forgiven_after_ms: float = 30_000.0
    """A process that lived this long starts from `first_ms` again."""


class RestartPolicy:
    """Exponential back-off of one process."""

    def __init__(self, backoff: Backoff | None = None) -> None:
        self._backoff = backoff or Backoff()
        self.deaths_in_row = 0
        self.restarts = 0

    def died(self, lived_ms: float) -> float:
        """Milliseconds to wait before the next start, given how long the process lived."""
        backoff = self._backoff
        if lived_ms >= backoff.forgiven_after_ms:
            self.deaths_in_row = 0
        delay_ms = backoff.first_ms
        for _ in range(self.deaths_in_row):
            delay_ms = min(backoff.max_ms, delay_ms * backoff.factor)
            if delay_ms == backoff.max_ms:
                break
        self.deaths_in_row += 1
        self.restarts += 1
        return min(delay_ms, backoff.max_ms)

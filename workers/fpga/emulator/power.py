"""What an emulated board would draw: a model of clock and activity, so that there is something to read where a real board has a sensor."""

from __future__ import annotations

IDLE_WATTS = 1.5
"""Processors, memory, and what leaks."""
CLOCKED_WATTS_A_MHZ, BUSY_WATTS_A_MHZ = 0.002, 0.01
"""Of a configured fabric: of its clocks alone, and more while it computes (dynamic power grows with frequency and activity)."""


class PowerModel:
    """Watts, by how busy the fabric was since the last question."""

    def __init__(self) -> None:
        self._cycles, self._asked_s, self._busy = 0, 0.0, 0.0

    def watts(self, clock_mhz: float, cycles: int, now_s: float) -> float:
        """`clock_mhz`: 0 where nothing is configured; `cycles`: of computing so far."""
        passed_s = now_s - self._asked_s
        if clock_mhz > 0 and passed_s > 0:
            self._busy = min((cycles - self._cycles) / (clock_mhz * 1e6 * passed_s), 1.0)
        self._cycles, self._asked_s = cycles, now_s
        return IDLE_WATTS + clock_mhz * (CLOCKED_WATTS_A_MHZ + BUSY_WATTS_A_MHZ * self._busy)

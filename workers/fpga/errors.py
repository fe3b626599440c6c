"""Errors of FPGA boards."""

from __future__ import annotations

from schemas.errors import DeviceUnavailable


class BoardLost(DeviceUnavailable):
    """The board hangs, is frozen, or is gone: nothing came of the batch, and it may be computed elsewhere."""

    code = "board_lost"
    retryable = True

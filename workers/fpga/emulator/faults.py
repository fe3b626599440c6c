"""Faults on demand of an emulated board: told by whoever tests what the rest makes of them."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

FREEZE, HANG, CORRUPT, REBOOT, SLOW, MEMORY, MEND = "freeze", "hang", "corrupt", "reboot", "slow", "memory", "mend"


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One of them. `freeze`: nothing answers for `seconds`. `hang`: what is started does not end, until the next download. `corrupt`: the next
    `count` results have a wrong byte. `reboot`: memory and configuration are gone. `slow`: all takes `factor` times as long. `memory`: none is
    left to allocate. `mend`: none of them."""

    kind: str
    seconds: float = 0.0
    count: int = 1
    factor: float = 1.0


_decode = msgspec.json.Decoder(Fault).decode
encode_fault = msgspec.json.Encoder().encode


def decode_fault(data: bytes) -> Fault:
    """Raises msgspec.DecodeError (ValidationError)."""
    return _decode(data)


class Faults:
    """What is wrong with one board now."""

    def __init__(self, sleep: Callable[[float], None] = time.sleep) -> None:
        self._sleep = sleep
        self.mend()

    def mend(self) -> None:
        self.frozen_until_s, self.hangs, self.corrupt, self.factor, self.no_memory = 0.0, False, 0, 1.0, False

    def take(self, fault: Fault) -> None:
        """Of all but `reboot`, which is the board's own matter."""
        if fault.kind == FREEZE:
            self.frozen_until_s = time.monotonic() + fault.seconds
        elif fault.kind == HANG:
            self.hangs = True
        elif fault.kind == CORRUPT:
            self.corrupt = fault.count
        elif fault.kind == SLOW:
            self.factor = fault.factor
        elif fault.kind == MEMORY:
            self.no_memory = True
        elif fault.kind == MEND:
            self.mend()

    def gate(self) -> None:
        """Whatever the host asks waits here while the board is frozen."""
        while (left_s := self.frozen_until_s - time.monotonic()) > 0:
            self._sleep(min(left_s, 0.05))

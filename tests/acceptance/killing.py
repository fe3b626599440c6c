"""Requests at a steady rate, while roles are killed with -9 in turn."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator, Sequence

from running_stack import RunningStack


def killing(stack: RunningStack, roles: Sequence[str], *, count: int, rate_rps: float, every_s: float, chance: random.Random) -> Iterator[int]:
    """Numbers 0..count-1, each when it is due; meanwhile every so often one process of the next role is killed."""
    victims = list(roles)
    started_s = killed_s = time.monotonic()
    for number in range(count):
        due_s = started_s + number / rate_rps
        while (left_s := due_s - time.monotonic()) > 0:
            time.sleep(min(left_s, 0.005))
        if time.monotonic() > killed_s + every_s:
            killed_s = time.monotonic()
            pids = [process["pid"] for process in stack.processes().values() if process["role"] == victims[0]]
            if pids:
                os.kill(chance.choice(pids), signal.SIGKILL)
            victims.append(victims.pop(0))
        yield number

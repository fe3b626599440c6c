"""Optimizers as nobody wants them: they raise, hang, leak, die, print without end and return nonsense."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from scaler.optimizers.optimizer import FEASIBLE, Explanation, Limits, Proposal
from scaler.optimizers.snapshot import Snapshot
from schemas.plan import Binding


def plain(snapshot: Snapshot) -> Proposal:
    """Everybody hosts everything."""
    keys = tuple(variant.key for variant in snapshot.variants)
    bindings = tuple(
        Binding(worker=worker.name, accelerator=worker.accelerator, lane=at, variants=keys) for at, worker in enumerate(snapshot.workers)
    )
    return Proposal(bindings=bindings, explanation=Explanation(status=FEASIBLE))


class Moody:
    """`mood` 0: well; 1: raises; 2: hangs; 3: leaks; 4: dies; 5: returns a string; 6: a plan for workers that are not there; 7: prints without end;
    8: a proposal with fields of the wrong kind; 9: raises when it is built."""

    name = "moody"
    source = "nobody"

    def __init__(self, mood: float = 0) -> None:
        self.mood = int(mood)
        if self.mood == 9:
            raise RuntimeError("no licence")
        self.asked = 0

    def propose(self, snapshot: Snapshot, limits: Limits) -> Any:
        self.asked += 1
        return getattr(self, f"_mood_{self.mood}")(snapshot)

    def _mood_0(self, snapshot: Snapshot) -> Proposal:
        return plain(snapshot)

    def _mood_1(self, _: Snapshot) -> Proposal:
        raise ZeroDivisionError("no demand")

    def _mood_2(self, _: Snapshot) -> None:
        while True:
            time.sleep(60.0)

    def _mood_3(self, _: Snapshot) -> None:
        kept: list[bytearray] = []
        while True:
            kept.append(bytearray(os.urandom(1 << 20) * 16))

    def _mood_4(self, _: Snapshot) -> None:
        os.write(2, b"segmentation fault, so to say\n")
        os._exit(7)

    def _mood_5(self, _: Snapshot) -> str:
        return "a plan"

    def _mood_6(self, _: Snapshot) -> Proposal:
        return Proposal(bindings=(Binding(worker="ghost", accelerator="cpu", lane=0),), explanation=Explanation(status=FEASIBLE))

    def _mood_7(self, snapshot: Snapshot) -> Proposal:
        for _ in range(4_000):
            sys.stdout.write("thinking " * 20 + "\n")
        return plain(snapshot)

    def _mood_8(self, _: Snapshot) -> Proposal:
        return Proposal(bindings=("w0", "w1"), explanation=Explanation(status=FEASIBLE))  # type: ignore[arg-type]

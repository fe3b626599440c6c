"""Ways of forming batches, by the name that a scenario gives."""

from __future__ import annotations

from collections.abc import Callable

from scaler.simulator.baselines.aimd import AimdBatching
from scaler.simulator.baselines.nexus import NexusBatching
from scaler.simulator.baselines.proteus import ProteusBatching
from scaler.simulator.errors import InvalidScenario
from workers.policy.batcher import Batcher
from workers.policy.device import OrderQueue

OURS = "headrace"
BATCHINGS: dict[str, Callable[[float], OrderQueue]] = {
    OURS: lambda hop_ms: Batcher(hop_ms=hop_ms),
    "proteus": lambda hop_ms: ProteusBatching(hop_ms=hop_ms),
    "nexus": lambda hop_ms: NexusBatching(hop_ms=hop_ms),
    "aimd": lambda hop_ms: AimdBatching(hop_ms=hop_ms),
}


def batching(name: str) -> Callable[[float], OrderQueue]:
    """Makes a worker's queue, from the time that answers need through the log. Raises InvalidScenario."""
    make = BATCHINGS.get(name)
    if make is None:
        raise InvalidScenario(f"control: there is no batching {name!r}; there are {', '.join(BATCHINGS)}")
    return make

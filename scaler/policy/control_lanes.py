"""Which workers no plan can bind because their class has no lane left, and what to do about it."""

from __future__ import annotations

from scaler.optimizers.snapshot import READY, Snapshot


def without_lane(snapshot: Snapshot, topic_of: dict[str, str]) -> dict[str, str]:
    """By worker: the reason, with the command that helps; `topic_of`: the topic of each class's lanes."""
    ready: dict[str, list[str]] = {}
    for worker in snapshot.workers:
        if worker.state == READY:
            ready.setdefault(worker.accelerator, []).append(worker.name)
    bound = {binding.worker for binding in snapshot.plan.bindings}
    found: dict[str, str] = {}
    for accelerator, names in ready.items():
        short = len(names) - snapshot.lanes_per_class
        if short > 0:
            idle = sorted(names, key=lambda name: (name in bound, name))[:short]
            reason = (
                f"no lane is left: {len(names)} {accelerator} workers share {snapshot.lanes_per_class} lanes; "
                f"`kafka-topics --alter --topic {topic_of.get(accelerator, '?')} --partitions {len(names)}` makes more"
            )
            found |= dict.fromkeys(idle, reason)
    return found

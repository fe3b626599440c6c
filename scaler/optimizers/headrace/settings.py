"""The constants of `headrace`, in one place, with why each has its value."""

from __future__ import annotations

import msgspec


class HeadraceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the objective weighs, and how careful the model is.

    Objective = fair x (smallest served part of a class) + served x (served part of all requests) + accuracy x (mean accuracy, over all requests)
    - switching x (part of the cluster's time that is spent loading).
    """

    fair: float = 4.0
    served: float = 4.0
    """Four times the accuracy of the best answer: no request is dropped to make others more accurate."""
    accuracy: float = 1.0
    switching: float = 0.5
    """A worker that loads still answers with what it has: half of its time counts as lost."""
    horizon_intervals: float = 6.0
    """A binding is expected to stay for so many intervals: what a load costs is spread over them."""
    utilisation: float = 0.9
    """Part of a worker's time that is planned with; queues grow without bound towards all of it."""
    waves: float = 2.0
    """Batches that fit a stage's budget: one that runs, one that waits for it (Loki, section 4)."""
    tight_waves: float = 1.1
    """Where not even single rows leave room for a batch that waits: such paths are used, at a lower rate."""
    tight_cost: float = 1.6
    """What an answer on such a path costs: its worker must be idle when it comes."""
    batch_overhead_ms: float = 0.3
    """On the way to the device and back, a batch."""
    row_overhead_ms: float = 0.15
    """Decoding, validation and encoding, a row."""
    efficient: float = 0.95
    """A larger batch must raise the rate by more than 5 % to be worth the waiting, as in the worker's batcher."""
    idle_rps: float = 0.1
    """What is planned for a floor that nobody asks for at the moment: the first to come shall find something ready."""
    idle: float = 0.05
    """What it is worth to have something ready for all floors that nobody asks for, beside what their answers are."""
    paths_max: int = 96
    """Combinations of variants of one endpoint that are kept."""
    exact_binaries_max: int = 160
    """Up to so many choices of a variant for a worker the hosting is decided exactly."""
    exact_nodes_max: int = 50
    """Branch-and-bound nodes, so that the end does not depend on the machine's speed."""
    gap: float = 0.0005
    """Relative distance to the bound at which the search ends."""
    stay: float = 0.0005
    """Another hosting must be better by this part: loads that gain less than that are not worth their risk."""
    repairs: int = 2
    """Times that a packing is packed again, beginning with what it was: what found no place at first finds one."""
    rounding_gap: float = 0.001
    """Relative distance to the relaxation's bound that rounding is content with."""
    surge: float = 3.0
    """Idle time and memory are made ready for this multiple of the forecast; 0: they stay idle."""
    spare_variants_max: int = 32
    """A worker hosts further variants, for loads that nobody forecast, where its memory allows: up to so many in all."""
    alone_workers_min: int = 3
    """Each task of a pipeline gets workers of its own, which fill larger batches, where that leaves it no fewer: few workers are better shared,
    for what comes in bursts."""
    apart: float = 0.03
    """Workers serve one group of tasks each where the program loses no more than this part by it: it does not see that requests wait for a worker
    that somebody else's batch keeps busy, and dispatchers reckon with all workers that share tasks, directly or through others, as one."""

"""Small clusters with faults of all kinds, made from a seed; and one run of such a cluster under its checkers."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import msgspec

from scaler.optimizers.optimizer import FEASIBLE, Explanation, Limits, Proposal
from scaler.optimizers.snapshot import Cost, Snapshot, Variant
from scaler.simulator.checking.checkers import Checkers
from scaler.simulator.result import Result, Violation
from scaler.simulator.run import simulate
from scaler.simulator.scenario import Arrivals, Choice, Control, Fault, Hop, Load, Scenario, WorkerGroup
from schemas.catalog import Catalog, EndpointSpec, TaskSpec, TensorSpec, VariantSpec
from schemas.graph import ForEachNode, GraphSpec, StageNode
from schemas.plan import Binding
from schemas.profile import Latency

MB = 1 << 20
FASHION = {"linear": (0.8427, 0.2), "cnn": (0.9001, 1.0), "resnet": (0.9313, 4.0), "wide": (0.9338, 15.0)}
"""(accuracy, milliseconds a row) by variant."""
FLOWERS = {"one": (0.6, 2.0), "two": (0.75, 8.0)}
TASKS = {"fashion": FASHION, "flowers": FLOWERS}
FAULTS = ("worker", "dispatcher", "planner", "slow", "skew", "duplicates", "delays", "load")
TIMEOUTS_MS = (40.0, 100.0, 250.0, 600.0, 1_500.0, 4_000.0)


def catalog_of(tasks: dict[str, dict[str, tuple[float, float]]], batch_size_max: int = 32) -> Catalog:
    """An endpoint for each task, under its name."""
    specs = {
        name: TaskSpec(
            name=name,
            variants=tuple(
                VariantSpec(name=key, file=key, sha256=key, accuracy=accuracy, batch_size_max=batch_size_max) for key, (accuracy, _) in ladder.items()
            ),
        )
        for name, ladder in tasks.items()
    }
    return Catalog(specs, {name: EndpointSpec(name=name, task=name) for name in tasks})


def variant_of(task: str, name: str, speeds: dict[str, float], load_ms: float, sizes: tuple[int, ...] = (1, 4, 8, 16, 32)) -> Variant:
    """Costs by worker type; larger batches are a little cheaper for each row."""
    accuracy, row_ms = TASKS[task][name]
    costs = {
        kind: Cost(
            latency={
                1: {size: Latency(row_ms / speed * size**0.9, row_ms / speed * size**0.9 * 1.2, 50) for size in sizes},
            },
            memory_bytes=int(20 * MB + row_ms * MB),
            load_ms=load_ms,
        )
        for kind, speed in speeds.items()
    }
    return Variant(key=f"{task}/{name}", task=task, accuracy=accuracy, costs=costs)


def random_faults(random: Random, duration_s: float) -> tuple[Fault, ...]:
    """Two to six, of any kind, at any time; what dies comes back."""
    kinds = random.choices(FAULTS, k=random.randint(2, 6))
    return tuple(
        Fault(
            kind=kind,
            at_s=round(random.uniform(0.0, duration_s), 3),
            lasts_s=round(random.uniform(0.2, duration_s / 2), 3),
            factor=random.choice((1.5, 3.0, 8.0)),
            skew_ms=random.choice((-20.0, -5.0, 5.0, 20.0)),
            part=random.choice((0.02, 0.1, 0.5)),
        )
        for kind in kinds
    )


def random_scenario(seed: int) -> Scenario:
    """About 150 requests in three seconds."""
    random = Random(seed)
    tasks = {"fashion": dict(random.sample(sorted(FASHION.items()), random.randint(1, 4)))}
    if random.random() < 0.3:
        tasks["flowers"] = FLOWERS
    fast = random.choice((0.2, 0.5, 1.0))
    kinds = {"big": 2.0 * fast, "small": fast}
    workers = tuple(
        WorkerGroup(type=kind, count=random.randint(1, 2), memory_bytes=random.choice((0, 0, 60 * MB, 200 * MB)))
        for kind in random.sample(sorted(kinds), random.randint(1, 2))
    )
    duration_s = 3.0
    rate_rps = 50.0 * random.choice((0.6, 1.0, 1.0, 2.0)) / len(tasks)
    floors = tuple(Choice(floor) for floor in random.sample((0.0, 0.5, 0.84, 0.9, 0.93), random.randint(1, 3)))
    loads = tuple(
        Load(
            endpoint=task,
            arrivals=Arrivals(kind=random.choice(("poisson", "constant")), rate_rps=rate_rps),
            floors=floors,
            timeouts_ms=tuple(Choice(timeout_ms) for timeout_ms in random.sample(TIMEOUTS_MS, random.randint(1, 3))),
            rows=random.choice((1, 1, 1, 3)),
        )
        for task in tasks
    )
    return Scenario(
        name=f"seed-{seed}",
        catalog=catalog_of(tasks, batch_size_max=random.choice((4, 32))),
        variants=tuple(variant_of(task, name, kinds, random.choice((20.0, 150.0))) for task, ladder in tasks.items() for name in ladder),
        workers=workers,
        loads=loads,
        duration_s=duration_s,
        control=Control(optimizer=random.choice(("static", Restless.name)), interval_s=1.0),
        hop=random.choice((Hop(), Hop(p50_ms=0.5, p99_ms=2.0), Hop(p50_ms=4.0, p99_ms=15.0))),
        faults=random_faults(random, duration_s),
        shards=random.choice((1, 2, 4)),
        dispatchers=random.randint(1, 3),
    )


def small_scenario(name: str, **fields: object) -> Scenario:
    """Two workers of one type, one dispatcher, one endpoint."""
    said: dict[str, object] = {
        "catalog": catalog_of({"fashion": FASHION}),
        "variants": tuple(variant_of("fashion", key, {"big": 1.0}, 50.0) for key in FASHION),
        "workers": (WorkerGroup(type="big", count=2),),
        "duration_s": 3.0,
        "control": Control(optimizer="static"),
        "shards": 2,
    }
    return Scenario(name=name, **(said | fields))  # type: ignore[arg-type]


def fashion_load(rate_rps: float, timeout_ms: float, floor: float = 0.0) -> Load:
    """One kind of request to the one endpoint."""
    return Load(endpoint="fashion", arrivals=Arrivals(rate_rps=rate_rps), floors=(Choice(floor),), timeouts_ms=(Choice(timeout_ms),))


def hard_scenario(seed: int) -> Scenario:
    """Workers die over and over with slow work in hand, that has much time: attempts are used up."""
    random = Random(seed)
    faults = tuple(
        Fault(kind="worker", at_s=at / 2 + random.uniform(0.0, 0.2), lasts_s=0.2, target=f"big-0-{worker}")
        for at in range(1, 10)
        for worker in (0, 1)
    )
    slow = tuple(variant_of("fashion", key, {"big": 0.04}, 20.0, (1,)) for key in FASHION)
    catalog = catalog_of({"fashion": FASHION}, batch_size_max=1)
    return small_scenario("hard", catalog=catalog, variants=slow, loads=(fashion_load(10.0, 8_000.0, 0.93),), faults=faults, duration_s=5.0)


def hanging_scenario(seed: int) -> Scenario:
    """A worker hangs with requests that have a long time left."""
    at_s = Random(seed).uniform(0.5, 1.5)
    fault = Fault(kind="slow", at_s=at_s, lasts_s=1.0, factor=10_000.0, target="big-0-0")
    return small_scenario("hanging", loads=(fashion_load(40.0, 20_000.0),), faults=(fault,), duration_s=2.0)


def handed_back_scenario(seed: int) -> Scenario:
    """Slow models, and now and then slower still: what a worker cannot make in time it hands back, and a cheaper model can."""
    random = Random(seed)
    slow = tuple(variant_of("fashion", key, {"big": 0.04}, 20.0, (1,)) for key in FASHION)
    faults = tuple(Fault(kind="slow", at_s=at + random.uniform(0.0, 0.5), lasts_s=0.6, factor=6.0, target="big-0-0") for at in range(6))
    catalog = catalog_of({"fashion": FASHION}, batch_size_max=1)
    return small_scenario("handed back", catalog=catalog, variants=slow, loads=(fashion_load(6.0, 2_000.0),), faults=faults, duration_s=6.0)


def restarting_scenario(seed: int) -> Scenario:
    """A worker dies, not always with a notice, and is back before anybody misses it."""
    fault = Fault(kind="worker", at_s=Random(seed).uniform(0.3, 0.6), lasts_s=0.3, target="big-0-0")
    return small_scenario("restarting", loads=(fashion_load(30.0, 1_000.0),), faults=(fault,), duration_s=4.0)


def crowded_scenario(seed: int) -> Scenario:
    """More than can be computed, in batches that the catalog keeps small."""
    del seed
    catalog = catalog_of({"fashion": FASHION}, batch_size_max=4)
    load = msgspec.structs.replace(fashion_load(700.0, 300.0), rows=3)
    return small_scenario("crowded", catalog=catalog, loads=(load,), duration_s=0.5)


def graph_catalog() -> Catalog:
    """An endpoint that finds the garments of an image, and classifies each."""
    image, box = TensorSpec("image", "FP32", (-1, 1)), TensorSpec("box", "FP32", (-1, 1))
    probs = TensorSpec("probs", "FP32", (-1, 1))
    fashion = catalog_of({"fashion": FASHION}).tasks["fashion"]
    flowers = catalog_of({"flowers": FLOWERS}).tasks["flowers"]
    detect = tuple(msgspec.structs.replace(variant, inputs=(image,), outputs=(box,)) for variant in flowers.variants)
    classify = tuple(msgspec.structs.replace(variant, inputs=(box,), outputs=(probs,)) for variant in fashion.variants)
    graph = GraphSpec(
        nodes={
            "detect": StageNode(task="flowers", inputs={"image": "request.image"}),
            "each": ForEachNode(over={"box": "detect.box"}, nodes={"read": StageNode(task="fashion", inputs={"box": "row.box"})}, output="read"),
        },
        output="each",
    )
    tasks = {"flowers": TaskSpec(name="flowers", variants=detect), "fashion": TaskSpec(name="fashion", variants=classify)}
    return Catalog(tasks, {"page": EndpointSpec(name="page", graph=graph, revision=1)})


def graph_scenario(seed: int) -> Scenario:
    """Requests of three rows through a for_each, with faults."""
    random = Random(seed)
    variants = tuple(variant_of(task, name, {"big": 1.0}, 20.0) for task, ladder in TASKS.items() for name in ladder)
    load = Load(
        endpoint="page", arrivals=Arrivals(rate_rps=20.0), floors=(Choice(0.0), Choice(0.6)), timeouts_ms=(Choice(300.0), Choice(1_500.0)), rows=3
    )
    faults = random_faults(random, 3.0)
    return small_scenario("graph", catalog=graph_catalog(), variants=variants, loads=(load,), faults=faults, dispatchers=random.randint(1, 2))


SCENARIOS: dict[str, Callable[[int], Scenario]] = {
    "random": random_scenario,
    "hard": hard_scenario,
    "hanging": hanging_scenario,
    "restarting": restarting_scenario,
    "handed back": handed_back_scenario,
    "crowded": crowded_scenario,
    "graph": graph_scenario,
}


class Restless:
    """An optimizer that gives one worker more something to do each time, and all others something else: variants load, drain and leave."""

    name = "restless"
    source = "Headrace"

    def propose(self, snapshot: Snapshot, limits: Limits) -> Proposal:
        random = Random(int(snapshot.at_ms) * 1_000 + limits.seed)
        keys = [variant.key for variant in snapshot.variants]
        bound = {binding.worker for binding in snapshot.plan.bindings}
        fresh = [worker.name for worker in snapshot.workers if worker.name not in bound][:1]
        bindings = tuple(
            Binding(worker=worker.name, accelerator=worker.accelerator, lane=lane, variants=tuple(random.sample(keys, random.randint(1, len(keys)))))
            for lane, worker in enumerate(snapshot.workers)
            if worker.name in bound or worker.name in fresh
        )
        return Proposal(bindings=bindings, explanation=Explanation(status=FEASIBLE))


def run_checked(scenario: Scenario, seed: int) -> tuple[Result | None, tuple[Violation, ...]]:
    """One run with what its checkers saw; a run that broke down afterwards has no result."""
    checkers = Checkers.of(scenario)
    optimizer = Restless() if scenario.control.optimizer == Restless.name else None
    try:
        result = simulate(scenario, seed, optimizer, watchers=[checkers])
    except Exception:  # once a promise is broken anything may happen: what was seen before counts
        if not checkers.violations:
            raise
        return None, checkers.violations
    return result, checkers.violations

"""The static plan: who hosts what, on which lane, and what stays as it is."""

from __future__ import annotations

import msgspec

from scaler.policy.static_plan import BATCH_SIZE_MAX, static_bindings
from schemas.catalog import Catalog, TaskSpec, VariantSpec
from schemas.plan import Binding, Plan
from schemas.telemetry import HostedVariant, WorkerReport


def variant(name: str, accuracy: float, *accelerators: str, batch_size_max: int = 32) -> VariantSpec:
    return VariantSpec(name=name, file=name, sha256="", accuracy=accuracy, accelerators=accelerators or ("cpu",), batch_size_max=batch_size_max)


CATALOG = Catalog(
    {
        "fashion": TaskSpec(name="fashion", variants=(variant("small", 0.8), variant("large", 0.95, "cpu", "gpu"), variant("chip", 0.9, "vpu"))),
        "flowers": TaskSpec(name="flowers", variants=(variant("only", 0.85, "cpu", "vpu", batch_size_max=8),)),
    }
)


def worker(name: str, accelerator: str = "cpu", **fields: object) -> WorkerReport:
    report = WorkerReport(worker=name, incarnation=1, accelerator=accelerator, device="x", host="h", at_ms=0)
    return msgspec.structs.replace(report, **fields)


def bind(*workers: WorkerReport, previous: Plan | None = None, lanes: int = 4, keep_unheard: bool = False) -> dict[str, Binding]:
    bindings = static_bindings(workers, CATALOG, previous or Plan(), lanes, keep_unheard=keep_unheard)
    assert [binding.worker for binding in bindings] == sorted(binding.worker for binding in bindings)
    return {binding.worker: binding for binding in bindings}


def test_every_worker_hosts_what_its_class_can_run_most_accurate_first() -> None:
    bound = bind(worker("a"), worker("b", "vpu"), worker("c", "gpu"), worker("d", "fpga"))
    assert bound["a"].variants == ("fashion/large", "flowers/only", "fashion/small")
    assert bound["b"].variants == ("fashion/chip", "flowers/only")
    assert bound["c"].variants == ("fashion/large",)
    assert bound["d"].variants == ()


def test_lanes_are_given_by_name_and_for_each_class_anew() -> None:
    bound = bind(worker("b"), worker("a"), worker("c", "gpu"))
    assert {name: (binding.accelerator, binding.lane) for name, binding in bound.items()} == {"a": ("cpu", 0), "b": ("cpu", 1), "c": ("gpu", 0)}


def test_a_worker_keeps_its_lane_when_others_come_and_go() -> None:
    previous = Plan(bindings=tuple(bind(worker("b"), worker("c")).values()))
    bound = bind(worker("a"), worker("c"), previous=previous)
    assert (bound["c"].lane, bound["a"].lane) == (1, 0)
    assert "b" not in bound


def test_a_lane_is_not_kept_where_it_is_no_longer_the_workers() -> None:
    previous = Plan(
        bindings=(
            Binding(worker="a", accelerator="gpu", lane=2),
            Binding(worker="b", accelerator="cpu", lane=9),
            Binding(worker="c", accelerator="cpu", lane=1),
            Binding(worker="d", accelerator="cpu", lane=1),
        )
    )
    bound = bind(worker("a"), worker("b"), worker("c"), worker("d"), previous=previous)
    assert {name: binding.lane for name, binding in bound.items()} == {"a": 0, "b": 2, "c": 1, "d": 3}


def test_there_are_never_two_workers_on_a_lane() -> None:
    bound = bind(*(worker(f"w{at}") for at in range(6)), lanes=4)
    assert sorted(binding.lane for binding in bound.values()) == [0, 1, 2, 3]
    assert set(bound) == {"w0", "w1", "w2", "w3"}


def test_those_not_heard_of_keep_their_binding_and_lane_where_asked() -> None:
    previous = Plan(bindings=(Binding(worker="quiet", accelerator="cpu", lane=0, variants=("fashion/small",)),))
    bound = bind(worker("a"), previous=previous, keep_unheard=True)
    assert bound["quiet"] == previous.bindings[0]
    assert bound["a"].lane == 1
    bound = bind(worker("a"), previous=previous)
    assert set(bound) == {"a"}
    assert bound["a"].lane == 0


def test_memory_is_filled_from_the_most_accurate_down_and_the_unknown_is_tried() -> None:
    hosted = {
        "fashion/large": HostedVariant(state="ready", memory_bytes=800),
        "flowers/only": HostedVariant(state="ready", memory_bytes=101),
        "fashion/small": HostedVariant(state="ready", memory_bytes=100),
    }
    assert bind(worker("a", memory_bytes_max=1_000, variants=hosted))["a"].variants == ("fashion/large", "fashion/small"), "a tenth stays free"
    assert bind(worker("a", memory_bytes_max=0, variants=hosted))["a"].variants == ("fashion/large", "flowers/only", "fashion/small")
    del hosted["fashion/large"]
    assert bind(worker("a", memory_bytes_max=100, variants=hosted))["a"].variants == ("fashion/large",)


def test_batches_are_as_large_as_any_variant_takes_and_threads_are_the_workers() -> None:
    assert bind(worker("a", threads=3))["a"].batch_size_max == BATCH_SIZE_MAX
    assert bind(worker("a", threads=3))["a"].threads == 3
    only_small = Catalog({"flowers": CATALOG.tasks["flowers"]})
    (binding,) = static_bindings([worker("a")], only_small, Plan(), 4, keep_unheard=False)
    assert (binding.batch_size_max, binding.threads) == (8, 1)
    (binding,) = static_bindings([worker("a", "fpga", threads=0)], CATALOG, Plan(), 4, keep_unheard=False)
    assert (binding.batch_size_max, binding.threads, binding.variants) == (BATCH_SIZE_MAX, 1, ())


def test_equal_accuracy_is_ordered_by_name() -> None:
    twins = Catalog({"t": TaskSpec(name="t", variants=(variant("b", 0.5), variant("a", 0.5)))})
    (binding,) = static_bindings([worker("w")], twins, Plan(), 1, keep_unheard=False)
    assert binding.variants == ("t/a", "t/b")

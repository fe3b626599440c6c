"""What the hosting policy decides: new before old where memory allows, and nothing lost on the way."""

from __future__ import annotations

from typing import Any

import msgspec

from schemas.catalog import TensorSpec, VariantSpec
from workers.policy.hosting import BACK_OFF_MS, DRAIN_MS, DRAINING, FAILED, LOADING, READY, WARMING, HostedVariants, Load, Unload, Wanted, Warm


def wanted(name: str, *, sha256: str = "a", threads: int = 1, rows: int = 8, memory_bytes: int = 0, known: bool = True) -> Wanted:
    spec = VariantSpec(name=name, file=f"{name}.onnx", sha256=sha256, accuracy=0.9) if known else None
    return Wanted(spec, rows, threads, memory_bytes)


class Device:
    """Carries out commands at once, as the worker does."""

    def __init__(self, *, memory_bytes_max: int = 0, sizes: dict[str, int] | None = None) -> None:
        self.hosting = HostedVariants(memory_bytes_max=memory_bytes_max)
        self.sizes = sizes or {}
        self.broken: set[str] = set()
        self.busy: set[str] = set()
        self.did: list[str] = []
        self.handles: set[str] = set()

    def plan(self, epoch: int, *names: str, now_ms: float = 0.0, **fields: Any) -> bool:
        return self.hosting.plan(epoch, {name: wanted(name, **fields) for name in names}, now_ms)

    def settle(self, now_ms: float = 0.0) -> list[str]:
        """Do everything that is due now; what was done."""
        self.did = []
        while (command := self.hosting.decide(now_ms, lambda hosted: hosted.handle in self.busy)) is not None:
            hosted = command.hosted
            match command:
                case Load() if hosted.variant in self.broken:
                    self.hosting.failed(hosted, "broken file", now_ms)
                    self.did.append(f"fail {hosted.handle}")
                    continue
                case Load():
                    assert hosted.state == LOADING
                    self.handles.add(hosted.handle)
                    if not self.hosting.loaded(hosted, memory_bytes=self.sizes.get(hosted.variant, 0), load_ms=1.0, now_ms=now_ms):
                        self.handles.remove(hosted.handle)
                case Warm():
                    assert hosted.state == WARMING
                    self.hosting.warmed(hosted)
                case Unload():
                    assert hosted.handle not in self.busy
                    self.handles.discard(hosted.handle)
                    self.hosting.unloaded(hosted)
            self.did.append(f"{type(command).__name__.lower()} {hosted.handle}")
        return self.did

    def states(self) -> dict[str, str]:
        return {variant: hosted.state for variant, hosted in self.hosting.visible().items()}


def test_load_warm_ready_in_the_order_of_the_plan() -> None:
    device = Device()
    device.plan(1, "b", "a")
    assert device.settle() == ["load b", "warm b", "load a", "warm a"]
    assert device.states() == {"a": READY, "b": READY}
    assert device.settle() == []


def test_the_new_variant_is_ready_before_the_old_one_leaves() -> None:
    device = Device()
    device.plan(1, "old")
    device.settle()
    device.plan(2, "new", now_ms=100.0)
    assert device.settle(100.0) == ["load new", "warm new"]
    assert device.states() == {"old": DRAINING, "new": READY}
    assert device.hosting.serving("old") is not None, "orders that are on their way are still served"
    assert device.settle(100.0 + DRAIN_MS - 1) == []
    device.busy = {"old"}
    assert device.settle(100.0 + DRAIN_MS) == []
    device.busy = set()
    assert device.settle(100.0 + DRAIN_MS) == ["unload old"]
    assert device.hosting.serving("old") is None


def test_the_old_one_stays_until_the_last_new_one_is_ready() -> None:
    device = Device()
    device.plan(1, "old")
    device.settle()
    device.plan(2, "b", "c")
    for _ in range(2):
        command = device.hosting.decide(0.0, lambda _: False)
        if isinstance(command, Load):
            device.hosting.loaded(command.hosted, memory_bytes=0, load_ms=1.0, now_ms=0.0)
        elif isinstance(command, Warm):
            device.hosting.warmed(command.hosted)
    assert isinstance(device.hosting.decide(0.0, lambda _: False), Load)
    assert device.states() == {"old": READY, "b": READY, "c": LOADING}


def test_an_older_plan_is_ignored() -> None:
    device = Device()
    assert device.plan(5, "a")
    assert not device.plan(4, "b")
    assert device.settle() == ["load a", "warm a"]
    assert device.hosting.epoch == 5


def test_a_variant_that_is_wanted_again_before_it_left_stays() -> None:
    device = Device()
    device.plan(1, "a")
    device.settle()
    device.plan(2)
    device.settle(10.0)
    assert device.states() == {"a": DRAINING}
    device.plan(3, "a", now_ms=20.0)
    assert device.settle(20.0) == []
    assert device.states() == {"a": READY}
    assert device.settle(10_000.0) == []


def test_other_threads_or_another_file_come_beside_the_old_form() -> None:
    for change in ({"threads": 2}, {"sha256": "b"}, {"rows": 16}):
        device = Device()
        device.plan(1, "a")
        device.settle()
        device.plan(2, "a", **change)
        handle = "a#2"
        assert device.settle() == [f"load {handle}", f"warm {handle}"]
        assert device.hosting.serving("a").handle == handle
        assert device.states() == {"a": READY}
        assert device.settle(DRAIN_MS) == ["unload a"]
        assert device.handles == {handle}


def test_a_smaller_batch_limit_needs_no_other_form() -> None:
    device = Device()
    device.plan(1, "a", rows=16)
    device.settle()
    device.plan(2, "a", rows=4)
    assert device.settle() == []


def test_memory_for_both_or_the_old_one_drains_first() -> None:
    device = Device(memory_bytes_max=100, sizes={"old": 60, "new": 50})
    device.plan(1, "old", memory_bytes=60)
    device.settle()
    device.plan(2, "new", memory_bytes=50)
    assert device.settle() == []
    assert device.states() == {"old": DRAINING}
    assert device.settle(DRAIN_MS) == ["unload old", "load new", "warm new"]


def test_what_never_fits_fails_with_its_numbers_and_the_next_one_loads() -> None:
    device = Device(memory_bytes_max=100, sizes={"small": 30})
    device.hosting.plan(1, {"huge": wanted("huge", memory_bytes=200), "small": wanted("small", memory_bytes=30)}, 0.0)
    assert device.settle() == ["load small", "warm small"]
    assert device.states() == {"huge": FAILED, "small": READY}
    assert "needs 200 bytes, 0 of 100 are in use" in device.hosting.visible()["huge"].reason


def test_what_turns_out_too_large_is_unloaded_unless_something_leaves() -> None:
    device = Device(memory_bytes_max=100, sizes={"a": 60, "b": 60})
    device.plan(1, "a", "b")
    device.settle()
    assert device.states() == {"a": READY, "b": FAILED}
    assert device.handles == {"a"}
    device.plan(2, "b", now_ms=BACK_OFF_MS)
    assert device.settle(BACK_OFF_MS) == ["load b", "warm b"]
    assert device.states() == {"a": DRAINING, "b": READY}


def test_a_failed_variant_is_tried_again_with_a_newer_plan_after_its_back_off() -> None:
    device = Device()
    device.broken = {"a"}
    device.plan(1, "a")
    assert device.settle() == ["fail a"]
    assert device.hosting.visible()["a"].reason == "broken file"
    assert device.settle(10 * BACK_OFF_MS) == [], "the same plan changes nothing"
    device.plan(2, "a", now_ms=1.0)
    assert device.settle(1.0) == []
    assert device.settle(BACK_OFF_MS) == ["fail a"]
    device.plan(3, "a", now_ms=2 * BACK_OFF_MS)
    assert device.settle(2 * BACK_OFF_MS) == [], "the second failure waits twice as long"
    device.broken = set()
    assert device.settle(3 * BACK_OFF_MS) == ["load a", "warm a"]


def test_another_file_is_tried_at_once() -> None:
    device = Device()
    device.broken = {"a"}
    device.plan(1, "a")
    device.settle()
    device.broken = set()
    device.plan(1, "a", sha256="b")
    assert device.settle() == ["load a", "warm a"]


def test_a_python_task_is_told_by_how_it_is_called() -> None:
    def plan(epoch: int, **fields: Any) -> None:
        spec = VariantSpec(name="t", call="package.module:function", accuracy=1.0)
        device.hosting.plan(epoch, {"t": Wanted(msgspec.structs.replace(spec, **fields), 1, 1)}, 0.0)

    device = Device()
    plan(1)
    assert device.settle() == ["load t", "warm t"]
    plan(2)
    assert device.settle() == []
    for number, change in enumerate(({"call": "package.module:other"}, {"call_ms_max": 7}, {"outputs": (TensorSpec("y", "FP32", (-1,)),)}), 3):
        plan(number, **change)
        loaded, _ = device.settle()
        assert loaded.startswith("load t"), change
        device.settle(DRAIN_MS)


def test_a_plan_of_which_nothing_loads_does_not_end_the_service() -> None:
    device = Device()
    device.plan(1, "old")
    device.settle()
    device.broken = {"new"}
    device.plan(2, "new")
    device.settle()
    assert device.settle(DRAIN_MS * 10) == []
    assert device.states() == {"old": READY, "new": FAILED}
    device.plan(3)
    device.settle(DRAIN_MS * 10)
    assert device.settle(DRAIN_MS * 11) == ["unload old"]


def test_a_failed_variant_that_is_no_longer_wanted_is_forgotten() -> None:
    device = Device()
    device.broken = {"a"}
    device.plan(1, "a")
    device.settle()
    device.plan(2)
    device.settle()
    assert device.states() == {}


def test_an_unknown_variant_is_failed_until_the_catalog_knows_it() -> None:
    device = Device()
    device.plan(1, "ghost", known=False)
    assert device.settle() == []
    assert device.states() == {"ghost": FAILED}
    assert "unknown variant" in device.hosting.visible()["ghost"].reason
    device.plan(1, "ghost")
    assert device.settle() == ["load ghost", "warm ghost"]


def test_a_loading_variant_that_the_plan_drops_leaves() -> None:
    device = Device()
    device.plan(1, "a")
    load = device.hosting.decide(0.0, lambda _: False)
    assert isinstance(load, Load)
    device.plan(2)
    device.hosting.loaded(load.hosted, memory_bytes=1, load_ms=1.0, now_ms=0.0)
    device.settle()
    assert device.settle(DRAIN_MS) == ["unload a"]
    assert device.states() == {}

"""Every fault that a proposal can have is seen, and a good one has none."""

from __future__ import annotations

import msgspec
import pytest
from optimizer_stage import endpoint, snapshot, variant, workers

from scaler.optimizers.checking import faults_of
from scaler.optimizers.optimizer import Explanation, Proposal
from scaler.optimizers.snapshot import LOST
from schemas.plan import Binding

VARIANTS = [variant("x", 0.9, {"a": 10.0}, memory=600), variant("y", 0.8, {"a": 20.0}, memory=500), variant("z", 0.7, {"b": 20.0})]


def fleet():
    alive = list(workers(3, memory_bytes_max=1000, threads_max=2))
    alive[2] = msgspec.structs.replace(alive[2], state=LOST, refused={"t/x": "too large"})
    return alive


def binding(worker="a000", lane=0, variants=("t/x",), **more):
    return Binding(worker=worker, accelerator=more.pop("accelerator", "cpu"), lane=lane, variants=variants, **more)


def faults(*bindings, **parts):
    asked = snapshot(VARIANTS, fleet(), endpoint("e", "t"), lanes_per_class=8)
    return faults_of(Proposal(bindings=bindings, explanation=Explanation(status="feasible"), **parts), asked)


def test_a_good_proposal_has_none():
    good = (binding(), binding("a001", 1, ("t/y",), threads=2))
    assert faults(*good, shares={"t": {"t/x": 0.4, "t/y": 0.6}}, budgets={"e": {"": 100.0}}) == []
    assert faults() == []


@pytest.mark.parametrize(
    ("bindings", "said"),
    [
        ((binding("nobody"),), "unknown"),
        ((binding("a002", variants=("t/y",)),), "is lost"),
        ((binding(accelerator="gpu"),), "class cpu, not gpu"),
        ((binding(variants=("t/none",)),), "'t/none', which is unknown"),
        ((binding(variants=("t/z",)),), "no costs on type"),
        ((binding("a002"),), "refused 't/x': too large"),
        ((binding(variants=("t/x", "t/y")),), "1000 bytes for variants of 1100"),
        ((binding(variants=("t/x", "t/x")),), "a variant twice"),
        ((binding(threads=3),), "2 threads, not 3"),
        ((binding(threads=0),), "threads, not 0"),
        ((binding(batch_size_max=0),), "batches of 0"),
        ((binding(clock_mhz=float("nan")),), "clock"),
        ((binding(lane=8),), "lane 8 of 8"),
        ((binding(lane=-1),), "lane -1"),
        ((binding(), binding("a001")), "share lane 0"),
        ((binding(), binding(lane=1)), "two bindings"),
    ],
)
def test_a_fault_of_a_binding_is_named(bindings, said):
    found = faults(*bindings)
    assert any(said in fault for fault in found), found


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"shares": {"u": {}}}, "task 'u', which is unknown"),
        ({"shares": {"t": {"t/none": 1.0}}}, "not its variant"),
        ({"shares": {"t": {"t/x": -0.1}}}, "is -0.1"),
        ({"shares": {"t": {"t/x": float("nan")}}}, "is nan"),
        ({"shares": {"t": {"t/x": 0.7, "t/y": 0.4}}}, "more than 1"),
        ({"budgets": {"f": {"": 1.0}}}, "endpoint 'f'"),
        ({"budgets": {"e": {"s": 1.0}}}, "stage 's'"),
        ({"budgets": {"e": {"": -1.0}}}, "is -1.0 ms"),
        ({"budgets": {"e": {"": float("inf")}}}, "is inf ms"),
    ],
)
def test_a_fault_of_shares_or_budgets_is_named(parts, said):
    (found,) = faults(**parts)
    assert said in found

"""Of somebody else's plan only what can be is taken for what workers host."""

from __future__ import annotations

import pytest

from scaler.policy.control_bindings import of_catalog, with_lanes
from schemas.catalog import Catalog, TaskSpec, VariantSpec
from schemas.plan import Binding

CATALOG = Catalog({"t": TaskSpec(name="t", variants=(VariantSpec(name="small", file="f", sha256="s", accuracy=0.8),))})


def bound(worker: str, lane: int, *variants: str) -> Binding:
    return Binding(worker=worker, accelerator="cpu", lane=lane, variants=variants)


@pytest.mark.parametrize(("lane", "kept"), [(-1, ["a"]), (0, ["a"]), (1, ["a", "b"]), (2, ["a"])])
def test_a_lane_has_one_worker_and_is_there(lane: int, kept: list[str]) -> None:
    assert list(with_lanes([bound("a", 0), bound("b", lane)], 2)) == kept


def test_variants_that_no_catalog_has_are_hosted_by_nobody() -> None:
    bindings = {"a": bound("a", 0, "t/small", "t/ghost"), "b": bound("b", 1, "u/other"), "c": bound("c", 2, "t/small")}
    assert of_catalog(bindings, CATALOG) == {"a": bound("a", 0, "t/small"), "c": bindings["c"]}
    assert of_catalog(bindings, Catalog()) == bindings

"""Model families: complete, monotone, valid as catalogs, and true to their tables."""

from __future__ import annotations

from itertools import pairwise

import pytest

from deploy.families.batch_model import OVERHEAD_MS, two_points
from deploy.families.classifiers import LADDER
from deploy.families.family import Family
from deploy.families.known import FAMILIES, PROTEUS, family
from graphs.validation import problems_of
from scaler.optimizers.snapshot import Cost, Variant
from schemas.errors import CatalogError
from schemas.names import ACCELERATORS

MADE = {name: family(name) for name in FAMILIES}
every = pytest.mark.parametrize("made", MADE.values(), ids=MADE)


def found(made: Family, key: str) -> Variant:
    return next(variant for variant in made.variants if variant.key == key)


def p50(cost: Cost, rows: int, threads: int = 1) -> float:
    return cost.latency[threads][rows].p50_ms


@every
def test_catalog_and_costs_are_of_the_same_variants(made: Family) -> None:
    specs = made.catalog.variants()
    assert set(specs) == {variant.key for variant in made.variants}
    assert len(made.variants) == len(specs) >= 4
    for variant in made.variants:
        spec = specs[variant.key]
        assert spec.accuracy == variant.accuracy
        assert spec.batch_size_max == variant.batch_size_max
        assert variant.costs
        assert {made.accelerators[kind] for kind in variant.costs} <= set(spec.accelerators) <= set(ACCELERATORS)


@every
def test_accuracies_and_latencies_can_be(made: Family) -> None:
    for variant in made.variants:
        assert 0.0 < variant.accuracy <= 1.0
        for kind, cost in variant.costs.items():
            assert cost.load_ms > 0.0
            assert cost.memory_bytes > 0
            for batches in cost.latency.values():
                assert {1, 2, 4, 8, 16, 32} <= set(batches)
                for small, large in pairwise(sorted(batches)):
                    assert batches[small].p50_ms < batches[large].p50_ms, (variant.key, kind, small)
                assert all(0.0 < latency.p50_ms < latency.p95_ms for latency in batches.values())


@every
def test_endpoints_stand_on_tasks_of_the_catalog(made: Family) -> None:
    assert made.catalog.endpoints
    for endpoint in made.catalog.endpoints.values():
        if endpoint.graph is None:
            assert endpoint.task in made.catalog.tasks
        else:
            assert problems_of(endpoint.graph, made.catalog.tasks) == []


@every
def test_where_figures_come_from_is_said(made: Family) -> None:
    assert made.description
    assert len(made.provenance) > 40


def test_the_imagenet_ladder_has_no_dominated_rung() -> None:
    variants = MADE["imagenet"].variants
    assert [variant.key for variant in variants] == [f"imagenet/{name}" for name in LADDER]
    for quick, good in pairwise(variants):
        assert quick.accuracy < good.accuracy
        for kind in ("cpu", "rtx3090", "rtx4090", "v100", "gtx1080ti"):
            assert p50(quick.costs[kind], 32) < p50(good.costs[kind], 32), (good.key, kind)
    assert (variants[0].accuracy, variants[-1].accuracy) == pytest.approx((0.57918, 0.85132))


def test_tables_come_out_at_the_points_that_they_were_measured_at() -> None:
    resnet50 = found(MADE["resnet"], "resnet/resnet50")
    assert p50(resnet50.costs["cpu"], 1) == pytest.approx(14.865, abs=1e-3)
    per_row_ms = (p50(resnet50.costs["rtx3090"], 32) - OVERHEAD_MS) / 32
    assert 1024 / (OVERHEAD_MS + 1024 * per_row_ms) * 1000.0 == pytest.approx(3219.06, rel=1e-3)
    yolo = found(MADE["yolov5"], "yolov5/yolov5m")
    assert p50(yolo.costs["v100"], 1) == pytest.approx(8.2)
    assert p50(yolo.costs["v100"], 32) == pytest.approx(1.7 * 32)
    assert p50(yolo.costs["cpu"], 1) == pytest.approx(224.0)
    assert yolo.accuracy == pytest.approx(45.4 / 50.7, abs=1e-5)


def test_two_points_fix_a_line() -> None:
    assert two_points(10.0, 32, 41.0) == (9.0, 1.0)


def test_cores_speed_a_variant_up_but_never_wholly() -> None:
    cost = found(MADE["imagenet"], "imagenet/convnext_tiny").costs["cores"]
    times = [p50(cost, 1, threads) for threads in sorted(cost.latency)]
    assert sorted(cost.latency) == [1, 2, 4, 8, 16]
    assert times == sorted(times, reverse=True)
    assert times[0] / times[-1] == pytest.approx(1.0 / (0.1 + 0.9 / 16), rel=1e-3)


def test_fashion_is_measured_with_one_and_two_threads() -> None:
    variants = MADE["fashion"].variants
    assert {tuple(variant.costs["cpu"].latency) for variant in variants} == {(1, 2)}
    wide = found(MADE["fashion"], "fashion/wide")
    assert wide.accuracy == 0.9338
    assert p50(wide.costs["cpu"], 8, 2) < p50(wide.costs["cpu"], 8)
    assert MADE["fashion"].catalog.endpoints["fashion"].task == "fashion"


def test_proteus_has_nine_families_each_with_a_best_of_one() -> None:
    made = MADE["proteus"]
    assert len(PROTEUS) + 1 == len(made.catalog.tasks) == len(made.catalog.endpoints) == 9
    for task in made.catalog.tasks.values():
        assert max(variant.accuracy for variant in task.variants) == 1.0
    assert {"cpu", "v100", "gtx1080ti"} <= set(made.accelerators)
    for variant in made.variants:
        v100, old = variant.costs["v100"], variant.costs["gtx1080ti"]
        assert p50(v100, 32) < p50(old, 32)


def test_the_traffic_pipeline_fans_out_more_behind_a_better_detector() -> None:
    made = MADE["traffic"]
    graph = made.catalog.endpoints["traffic"].graph
    assert graph is not None
    assert set(made.fan_out) == {"objects"}
    assert set(made.fan_out["objects"]) == {variant.key for variant in made.variants if variant.task == "traffic-detect"}
    found_by_accuracy = [made.fan_out["objects"][variant.key] for variant in made.variants if variant.task == "traffic-detect"]
    assert found_by_accuracy == sorted(found_by_accuracy)
    assert found_by_accuracy[0] >= 1.0
    assert sum(made.branches["which"].values()) == pytest.approx(1.0)


def test_the_social_pipeline_has_two_stages_in_a_row() -> None:
    made = MADE["social"]
    assert set(made.catalog.tasks) == {"social-classify", "social-caption"}
    assert made.fan_out == {}
    assert "DeiT" in made.description


def test_an_unknown_family_is_told_its_near_miss() -> None:
    with pytest.raises(CatalogError, match=r"no model family 'fashon'; did you mean 'fashion'\?"):
        family("fashon")

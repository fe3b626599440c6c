"""Floors under learned accuracies: which variants an endpoint is offered, what answers claim, and what waits when that changes."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from accuracy_stage import TASK, catalog

from broker.policy.fleet import Fleet
from broker.policy.settings import DispatcherSettings
from scaler.optimizers.snapshot import Cost, Variant
from scaler.policy.control_settings import ControlSettings
from scaler.policy.observed_costs import ObservedCosts
from schemas.catalog import Catalog
from schemas.effective import effective_accuracy, ladder_name, learned_tasks, planned_accuracy
from schemas.learned import LEARNED_KEY, Learned, LearnedVariant, decode_learned, encode_learned
from schemas.limits import Limits
from schemas.profile import Latency

WORSE = Learned(variants={"t/large": LearnedVariant(accuracy=0.84, low=0.8, model="bb")})
LARGE = TASK.variants[1]


def fleet_of(present):
    fleet = Fleet("d", DispatcherSettings(), Limits())
    fleet.observe_catalog(present)
    return fleet


def ladder(fleet, endpoint):
    found = fleet.ladder(fleet.catalog.endpoints[endpoint])
    return dict(zip(found.keys, found.accuracies, strict=True))


@pytest.mark.parametrize(("policy", "expected"), [("declared", 0.95), ("learned", 0.84), ("lower_bound", 0.8)])
def test_each_policy_goes_by_its_own(policy, expected):
    assert effective_accuracy("t/large", LARGE, WORSE, policy) == expected
    assert effective_accuracy("t/large", LARGE, Learned(), policy) == 0.95
    other = msgspec.structs.replace(LARGE, sha256="cc")
    assert effective_accuracy("t/large", other, WORSE, policy) == 0.95, "nothing is known of another model"


def test_a_lower_bound_never_promises_more_than_was_declared():
    better = Learned(variants={"t/large": LearnedVariant(accuracy=0.99, low=0.98, model="bb")})
    assert effective_accuracy("t/large", LARGE, better, "lower_bound") == 0.95
    assert effective_accuracy("t/large", LARGE, better, "learned") == 0.99


def test_endpoints_of_one_task_may_differ():
    present = catalog(sure="declared", wise="learned", careful="lower_bound")
    present.learned = WORSE
    fleet = fleet_of(present)
    assert (ladder(fleet, "sure")["t/large"], ladder(fleet, "wise")["t/large"], ladder(fleet, "careful")["t/large"]) == (0.95, 0.84, 0.8)
    assert fleet.ladder(present.endpoints["wise"]).task == ladder_name("t", "learned") == "t~learned"
    assert planned_accuracy("t/large", present, LARGE) == 0.8, "what is planned for meets every endpoint's floors"


def test_only_what_is_gone_by_makes_waiting_requests_be_judged_anew():
    fleet = fleet_of(catalog(sure="declared"))
    layouts = fleet.version
    fleet.observe_catalog(Catalog(dict(fleet.catalog.tasks), dict(fleet.catalog.endpoints), learned=WORSE))
    assert fleet.version == layouts, "nobody goes by it"
    fleet = fleet_of(catalog(wise="learned"))
    version = fleet.version
    fleet.observe_catalog(Catalog(dict(fleet.catalog.tasks), dict(fleet.catalog.endpoints), learned=WORSE))
    assert fleet.version > version
    assert ladder(fleet, "wise")["t/large"] == 0.84


def test_requests_under_way_keep_their_ladder_when_the_policy_is_taken_back():
    fleet = fleet_of(catalog(e="learned"))
    fleet.observe_catalog(catalog(e="declared"))
    assert "t~learned" in fleet.ladders
    assert fleet.pool("t~learned") is not None
    fleet.observe_catalog(Catalog())
    assert fleet.ladders == {}


def test_the_plan_is_followed_under_learned_accuracies_too():
    fleet = fleet_of(catalog(e="learned"))
    fleet.observe_plan(msgspec.structs.replace(fleet.plan, epoch=1, shares={"t": {"t/small": 1.0}}))
    fleet.resettle()
    assert fleet.pool("t~learned").shares["t~learned"] == {"t/small": 1.0}


def test_the_catalog_carries_what_was_learned():
    present = Catalog(tasks={}, endpoints={})
    present.apply(LEARNED_KEY, encode_learned(WORSE))
    assert present.learned == WORSE == decode_learned(encode_learned(WORSE))
    present.apply(b"learned/of-a-later-version", b"{}")
    present.apply(LEARNED_KEY, None)
    assert present.learned == Learned()
    with pytest.raises(msgspec.ValidationError):
        present.apply(LEARNED_KEY, b'{"variants": 3}')


def test_tasks_that_are_gone_have_no_ladder():
    present = catalog(e="learned")
    del present.tasks["t"]
    assert learned_tasks(present) == {}


def test_the_snapshot_has_what_is_gone_by_and_the_lower_bound():
    present = catalog(wise="learned")
    present.learned = WORSE
    cost = {"cpu": Cost(latency={1: {1: Latency(1.0, 1.2, 5)}})}
    given = [Variant(key=key, task="t", accuracy=0.0, costs=cost) for key in ("t/small", "t/large")]
    found = {v.key: (v.accuracy, v.accuracy_low) for v in ObservedCosts(ControlSettings(), given, Counter()).variants(present, {"cpu": "cpu"})}
    assert found == {"t/small": (0.8, None), "t/large": (0.84, 0.8)}

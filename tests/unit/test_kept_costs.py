"""What a leader leaves to the next one of what variants cost."""

from __future__ import annotations

import msgspec
import pytest

from scaler.optimizers.snapshot import Cost
from scaler.policy.kept_costs import differs, kept, known
from schemas.catalog import Catalog, TaskSpec, VariantSpec
from schemas.learned_costs import LearnedCosts, decode_learned_costs, encode_learned_costs
from schemas.profile import Latency

LATENCY = {1: {1: Latency(2.0, 3.0, 9), 8: Latency(10.0, 12.0, 9)}, 2: {1: Latency(1.5, 2.0, 9)}}
COSTS = {("t/small", "cpu box"): Cost(latency=LATENCY, load_ms=20.0, memory_bytes=100), ("u/other", "cpu box"): Cost(latency=LATENCY)}
MOST_MS = 60_000.0


def catalog(sha256: str = "one") -> Catalog:
    return Catalog({"t": TaskSpec(name="t", variants=(VariantSpec(name="small", file="f", sha256=sha256, accuracy=0.8, batch_size_max=16),))})


def record() -> LearnedCosts:
    return kept(COSTS, catalog(), at_ms=1_000.4, by="scaler-1")


def test_what_one_leader_knew_the_next_one_knows() -> None:
    (variant,) = known(decode_learned_costs(encode_learned_costs(record())), catalog(), MOST_MS)
    assert (variant.key, variant.task, variant.accuracy, variant.batch_size_max) == ("t/small", "t", 0.8, 16)
    assert variant.costs == {"cpu box": COSTS["t/small", "cpu box"]}


def test_of_another_file_and_of_a_variant_that_is_gone_nothing_is_known() -> None:
    assert known(record(), catalog("two"), MOST_MS) == ()
    assert known(record(), Catalog(), MOST_MS) == ()
    assert [cost.variant for cost in record().costs] == ["t/small"], "the catalog has no task u"


@pytest.mark.parametrize(
    "latency",
    [
        {},
        {1: {}},
        {0: {1: Latency(1.0, 2.0)}},
        {1: {0: Latency(1.0, 2.0)}},
        {1: {1: Latency(0.0, 2.0)}},
        {1: {1: Latency(3.0, 2.0)}},
        {1: {1: Latency(1.0, 2 * MOST_MS)}},
        {1: {1: Latency(1.0, float("inf"))}},
        {1: {1: Latency(1.0, 2.0), 4: Latency(float("nan"), 2.0)}},
    ],
)
def test_what_cannot_be_is_not_known(latency: dict[int, dict[int, Latency]]) -> None:
    (cost,) = record().costs
    wrong = msgspec.structs.replace(record(), costs=(msgspec.structs.replace(cost, latency=latency),))
    assert known(wrong, catalog(), MOST_MS) == ()


@pytest.mark.parametrize(("factor", "worth"), [(1.0, False), (1.4, False), (1.6, True), (0.6, True)])
def test_a_record_is_written_for_news_only(factor: float, worth: bool) -> None:
    (cost,) = record().costs
    slower = {threads: {size: Latency(each.p50_ms, each.p95_ms * factor) for size, each in sizes.items()} for threads, sizes in LATENCY.items()}
    assert differs(record(), msgspec.structs.replace(record(), costs=(msgspec.structs.replace(cost, latency=slower),), at_ms=9)) is worth


def test_another_variant_type_or_file_is_news() -> None:
    (cost,) = record().costs
    assert differs(LearnedCosts(), record())
    assert differs(record(), LearnedCosts())
    assert differs(record(), msgspec.structs.replace(record(), costs=(msgspec.structs.replace(cost, type="gpu"),)))
    assert differs(record(), msgspec.structs.replace(record(), costs=(msgspec.structs.replace(cost, model="two"),)))

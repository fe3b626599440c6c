"""Agreement with the most accurate variant: which answers are joined with which second opinions, what is kept over a change of leaders, and YAML."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest
from accuracy_judge import NAMES, Stage, until
from accuracy_stage import TASK, answer, catalog

from broker.memory import MemoryLog
from deploy.catalog_files import load_catalog_files
from deploy.learned import read_accuracies
from graphs.second_opinion import is_sampled
from scaler.policy.agreement import WAITING_MAX, AgreementBook
from schemas.catalog import AgreementSpec, Catalog, VariantSpec, catalog_key, encode_catalog
from schemas.errors import CatalogError
from schemas.learned import AccuracyState, AgreementTally
from schemas.tap import SHADOW_HEADER

MODELS = TASK.variants[:2]
PAIR = msgspec.structs.replace(TASK, variants=MODELS)


def asking(share: float = 1.0, task=PAIR) -> Catalog:
    found = catalog(task)
    found.endpoints["e"] = msgspec.structs.replace(found.endpoints["e"], agreement=AgreementSpec(sample=share))
    return found


def book(share: float = 1.0, restored: AccuracyState | None = None) -> AgreementBook:
    made = AgreementBook(restored)
    made.observe_catalog(asking(share))
    return made


class Places:
    """The next place of each topic."""

    def __init__(self) -> None:
        self._next = {"a": 0, "s": 0}

    def __call__(self, topic: str) -> tuple[str, int]:
        self._next[topic] += 1
        return topic, self._next[topic] - 1


def said(found: AgreementBook) -> dict[str, tuple[float, float]]:
    return {key: (tally.right, tally.wrong) for key, tally in found.tallies.items()}


def test_rows_that_say_the_same_are_counted_whichever_comes_first() -> None:
    rows = [("r0", (1, 2, 3), (1, 2, 0)), ("r1", (0,), (0,)), ("r2", (3,), (2,))]
    for seed in range(20):
        made, at = book(), Places()
        records = [(key.encode(), what) for key, _, _ in rows for what in ("a", "s")]
        random.Random(seed).shuffle(records)
        answers = {key.encode(): (ours, theirs) for key, ours, theirs in rows}
        for key, what in records:
            ours, theirs = answers[key]
            if what == "a":
                made.answer(at("a"), key, answer(key.decode(), *ours))
            else:
                made.opinion(at("s"), key, answer(key.decode(), *theirs, variant="t/large"))
        assert said(made) == {"t/small": (3.0, 2.0)}
        assert made.changed
        made.settle()
        tally = made.tallies["t/small"]
        assert (tally.reference, tally.models) == ("t/large", "aa~bb")
        assert tally.low is not None
        assert tally.high is not None
        assert tally.low < 0.6 < tally.high
        assert made.offsets == {"a": 3, "s": 3}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (answer("r", 1, variant="t/large"), answer("r", 1, variant="t/large")),
        (answer("r", outcome="expired"), answer("r", 1, variant="t/large")),
        (answer("r", 1), answer("r", 1)),
        (answer("r", 1), answer("r", 1, 2, variant="t/large")),
        (answer("r", 1), b"no record"),
        (b"\xff", answer("r", 1, variant="t/large")),
        (answer("r", 1, endpoint="other"), answer("r", 1, variant="t/large", endpoint="other")),
    ],
    ids=["the reference itself", "not completed", "another's shadow", "other rows", "no terminal", "no answer", "an endpoint that does not ask"],
)
def test_what_cannot_be_compared_changes_nothing(ours: bytes, theirs: bytes) -> None:
    made, at = book(), Places()
    made.answer(at("a"), b"r", ours)
    made.opinion(at("s"), b"r", theirs)
    assert (said(made), made.changed) == ({}, False)


def test_only_sampled_answers_wait_and_no_more_than_there_is_room_for() -> None:
    made, at = book(0.1), Places()
    for number in range(300):
        made.answer(at("a"), f"r{number}".encode(), answer(f"r{number}", 1))
    kept = [number for number in range(300) if is_sampled(f"r{number}", 0.1)]
    assert 10 < len(kept) < 60
    for number in range(300):
        made.opinion(at("s"), f"r{number}".encode(), answer(f"r{number}", 1, variant="t/large"))
    assert said(made) == {"t/small": (float(len(kept)), 0.0)}
    crowded = book()
    for number in range(WAITING_MAX + 1):
        crowded.answer(at("a"), f"r{number}".encode(), answer(f"r{number}", 1))
    for number in (0, 1):
        crowded.opinion(at("s"), f"r{number}".encode(), answer(f"r{number}", 1, variant="t/large"))
    assert said(crowded) == {"t/small": (1.0, 0.0)}, "the oldest was forgotten"


def test_another_model_on_either_side_starts_anew() -> None:
    tally = AgreementTally(right=9.0, wrong=1.0, reference="t/large", models="aa~bb")
    made = book(restored=AccuracyState(agreements={"t/small": tally}))
    assert said(made) == {"t/small": (9.0, 1.0)}
    small, large = MODELS
    for variants in ((small, msgspec.structs.replace(large, sha256="cc")), (msgspec.structs.replace(small, sha256="cc"), large), (small,)):
        made = book(restored=AccuracyState(agreements={"t/small": tally}))
        made.observe_catalog(asking(task=msgspec.structs.replace(PAIR, variants=variants)))
        assert (said(made), made.changed) == ({}, True)
    better = VariantSpec(name="best", sha256="dd", accuracy=0.99)
    made.observe_catalog(asking(task=msgspec.structs.replace(PAIR, variants=(*MODELS, better))))
    at = Places()
    made.answer(at("a"), b"r", answer("r", 1))
    made.opinion(at("s"), b"r", answer("r", 1, variant="t/best"))
    assert said(made) == {"t/small": (1.0, 0.0)}
    assert made.tallies["t/small"].reference == "t/best"


async def test_the_judge_counts_each_pair_once_whoever_leads() -> None:
    stage = Stage(MemoryLog())
    await stage.start()
    for spec in (PAIR, asking().endpoints["e"]):
        await stage.put(NAMES.catalog, (catalog_key(spec), encode_catalog(spec), ()))

    async def pairs(*ids: str, shard: int = 0) -> None:
        await stage.put(NAMES.responses, *((i.encode(), answer(i, 1), ()) for i in ids), partition=shard)
        marked = [(SHADOW_HEADER, b"true")]
        await stage.put(NAMES.tap_responses, *((i.encode(), answer(i, 1, variant="t/large"), marked) for i in ids), partition=shard)
        # A tapped answer is no second opinion, whatever it says.
        await stage.put(NAMES.tap_responses, *((i.encode(), answer(i, 0, variant="t/large"), ()) for i in ids), partition=shard)

    async def rows() -> dict[str, tuple[float, float]]:
        state = (await read_accuracies(stage.log, NAMES)).state
        return {key: (tally.right, tally.wrong) for key, tally in state.agreements.items()}

    async def counted(count: float) -> bool:
        return await rows() == {"t/small": (count, 0.0)}

    try:
        first, registry = await stage.control()
        await until(lambda: first._agreement._follows, "it follows")
        await pairs("a", "b")
        await pairs("c", shard=1)
        await until(lambda: counted(3.0), "three pairs")
        model = next(model for model in (await read_accuracies(stage.log, NAMES)).models if model.variant == "t/small")
        assert model.agreement is not None
        assert (model.agreement.reference, model.learned) == ("t/large", None)
        assert registry.get_sample_value("headrace_agreement", {"variant": "t/small"}) == pytest.approx(3.5 / 4)
        stage.leader = "nobody"
        await until(lambda: first._book is None, "it let go")
        await pairs("d", "e")
        stage.leader = "second"
        await stage.control("second")
        await until(lambda: counted(5.0), "those that came while nobody led")
    finally:
        await stage.stop()


def test_what_a_file_may_say(tmp_path: Path) -> None:
    head = "kind: endpoint\nname: e\n"
    file = tmp_path / "e.yaml"
    file.write_text(head + "task: t\nagreement: {sample: 0.01}\n")
    (endpoint,) = load_catalog_files([file]).endpoints
    assert endpoint.agreement == AgreementSpec(sample=0.01)
    graph = "graph: {nodes: [{name: a, stage: t}], output: a}\n"
    for text, problem in (
        ("task: t\nagreement: {sample: 2}\n", "`sample` of `agreement` is 2: it lies in 0..1"),
        ("task: t\nagreement: {}\n", "`agreement` needs `sample`"),
        ("task: t\nagreement: {share: 1}\n", "unknown key 'share'"),
        (graph + "agreement: {sample: 0.5}\n", "`agreement` is for endpoints of a `task`"),
    ):
        file.write_text(head + text)
        with pytest.raises(CatalogError) as caught:
            load_catalog_files([file])
        assert problem in str(caught.value), str(caught.value)

"""The judge of accuracies and `headrace feedback|get models|get alerts` on the log in memory: what is written, and a change of leaders."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from accuracy_judge import NAMES, Stage, until

from broker.memory import MemoryLog
from deploy.feedback_files import read_feedback
from deploy.learned import read_accuracies, read_alerts
from deploy.snapshots import read_catalog
from schemas.errors import BadRequest
from schemas.feedback import Feedback, encode_feedback, feedback_topic
from schemas.learned import LearnedVariant


@pytest.fixture
async def stage():
    made = Stage(MemoryLog())
    await made.start()
    yield made
    await made.stop()


async def test_what_is_learned_is_in_the_catalog_and_the_flag_among_the_alerts(stage):
    control, registry = await stage.control()
    await stage.answer(*(f"r{at}" for at in range(500)), shard=1)
    await stage.say(**{f"r{at}": 1 if at % 5 else 2 for at in range(500)})
    learned = await until(lambda: _learned(stage), "learned")
    assert abs(learned.accuracy - 0.8) < 0.01
    found = await read_accuracies(stage.log, NAMES)
    (model,) = [model for model in found.models if model.variant == "t/large"]
    assert (model.rows, model.learned.flagged, model.goes_by) == (500, True, {"wise": learned.accuracy, "sure": 0.95})
    alerts = await read_alerts(stage.log, NAMES)
    assert [(a.endpoint, a.variant, a.severity) for a in alerts] == [("wise", "t/large", "critical"), ("sure", "t/large", "critical")]
    assert "falls below what it promises" in alerts[0].message
    assert registry.get_sample_value("headrace_accuracy_flagged", {"variant": "t/large"}) == 1.0
    assert registry.get_sample_value("headrace_feedback", {"kind": "credited"}) == 500.0
    assert control.unhealthy() == ""


async def _learned(stage) -> LearnedVariant | None:
    return (await read_catalog(stage.log, NAMES)).learned.variants.get("t/large")


async def test_a_new_leader_goes_on_and_counts_each_label_once(stage):
    await stage.control("first")
    await stage.control("second")
    await stage.answer("a", "b", "c")
    await stage.say(a=1, b=2)
    await until(lambda: _has(stage, (1.0, 1.0)), "counted by the first")
    stage.leader = "nobody"
    await stage.say(c=1, early=1)
    await stage.answer("early")
    stage.leader = "second"
    await until(lambda: _has(stage, (3.0, 1.0)), "counted by the second")
    await stage.say(b=1)
    await until(lambda: _has(stage, (4.0, 0.0)), "the last word, of a label that the first had counted")


async def _has(stage, rows) -> bool:
    return (await stage.rows()).get("t/large") == rows


async def test_records_that_are_none_stop_nothing(stage):
    await stage.control()
    await stage.put(feedback_topic(NAMES), (b"a", b"{", ()), (b"a", None, ()), (None, b'{"id": "a", "label": 1}', ()), (b"a", b'{"score": 7}', ()))
    await stage.put(NAMES.responses, (b"a", None, ()), (None, b"x", ()))
    await stage.answer("a")
    await until(lambda: _has(stage, (1.0, 0.0)), "the one that is one")
    assert (await read_accuracies(stage.log, NAMES)).state.counts.invalid == 3


async def test_answers_are_read_only_where_somebody_says_what_they_should_have_been(stage):
    control, _ = await stage.control()
    await stage.answer("a")
    await until(lambda: control._book is not None, "leads")
    await asyncio.sleep(0)
    assert not control._answers_followed
    await stage.say(a=1)
    await until(lambda: _has(stage, (1.0, 0.0)), "the answer from before is found")
    assert control._answers_followed


LINES = [
    ('{"id": "a", "label": 7}', b'{"label":7}'),
    ('{"id": "a", "label": "Sneaker"}', b'{"label":"Sneaker"}'),
    ('{"id": "a", "labels": [1, 2]}', b'{"labels":[1,2]}'),
    ('{"id": "a", "score": 0.5}', b'{"score":0.5}'),
]


@pytest.mark.parametrize(("line", "value"), LINES)
def test_a_line_becomes_a_record(tmp_path, line, value):
    file = tmp_path / "labels.jsonl"
    file.write_text(f"\n{line}\n\n")
    assert read_feedback(str(file)) == [(b"a", value, ())]


WRONG = [
    ("{", "a line is like"),
    ("[]", "a line is like"),
    ('{"label": 7}', "`id` is missing"),
    ('{"id": "a"}', "it says nothing of the answer"),
    ('{"id": "a", "lable": 7, "correct": true}', "unknown field 'lable'; did you mean 'label'"),
    ('{"id": "a", "score": 1.5}', "Expected `float` <= 1.0"),
    ('{"id": "%s", "label": 7}' % ("x" * 129), "a request id has 1 to 128"),
]


@pytest.mark.parametrize(("line", "problem"), WRONG)
def test_a_wrong_line_is_told_with_its_number_and_nothing_is_written(tmp_path, line, problem):
    file = tmp_path / "labels.jsonl"
    file.write_text(f'{{"id": "fine", "label": 7}}\n{line}\n')
    with pytest.raises(BadRequest, match=r"labels.jsonl:2: ") as raised:
        read_feedback(str(file))
    assert problem in str(raised.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(BadRequest, match="cannot be read"):
        read_feedback(str(tmp_path / "nothing"))


def test_records_of_feedback_leave_out_what_is_not_said():
    assert msgspec.json.decode(encode_feedback(Feedback(correct=False))) == {"correct": False}

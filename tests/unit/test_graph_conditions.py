"""The language of conditions: what it can say, and that nothing else gets in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphs.conditions import CONDITION_CHARACTERS_MAX, Condition, Reference, renamed

NODES = {"quick", "a.b", "a-b", "request"}
PROBS = np.array([[0.1, 0.7, 0.2]], np.float32)
VALUES: dict[Reference, Any] = {
    Reference("quick", "probs"): PROBS,
    Reference("quick", "text"): np.array(["yes"], dtype=object),
    Reference("quick", "none"): np.zeros((0, 4), np.float32),
    Reference("a.b", "count"): np.array([3]),
    Reference("a-b", "x y"): np.array([5]),
    Reference("request", "size"): np.array([2, 3]),
    Reference("request", "tier", field=True): "gold",
}


def holds(text: str) -> bool:
    return Condition(text, NODES.__contains__).holds(VALUES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max(quick.probs) < 0.8", True),
        ("argmax(quick.probs) == 1 and quick.probs[0][1] == quick.probs[0, 1]", True),
        ("0.99 < sum(quick.probs) < 1.01 and 0.3 < mean(quick.probs) < 0.34", True),
        ("min(quick.probs) > 0.5 or not request.parameters.tier == 'gold'", False),
        ("request.parameters['tier'] in ('gold', 'silver')", True),
        ("quick.text[0] == 'yes'", True),
        ("size(quick.probs) == 1 and size(quick.none) == 0 and size(quick.text[0]) == 3", True),
        ("a.b.count[0] - 1 == 2", True),
        ("nodes['a-b']['x y'][-1] == 5", True),
        ("max(request.size[0], request.size[1]) == 3", True),
        ("abs(-2) * 3 % 4 == 2 if True else False", True),
    ],
)
def test_what_a_condition_can_say(text: str, *, expected: bool) -> None:
    assert holds(text) is expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max(quick.none) > 1", "no elements"),
        ("quick.probs > 0.5", "ambiguous"),
        ("quick.probs[0, 9] > 0", "out of bounds"),
        ("1 / (a.b.count[0] - 3) > 0", "divide by zero"),
        ("request.parameters.tier > 1", "not supported"),
    ],
)
def test_what_cannot_be_told_says_why(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        holds(text)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1 +",
        "quick",
        "quick.probs.tofile('x')",
        "__import__('os').system('x')",
        "(1).__class__",
        "[x for x in (1, 2)]",
        "lambda: 1",
        "2 ** 99 > 1",
        "1 << 99",
        "f'{quick.probs}'",
        "quick.probs[0:1] == 1",
        "max(*quick.probs)",
        "max(quick.probs, key=1)",
        "eval('1')",
        "b'x' == 1",
        "(y := 1)",
        "request.parameters.a.b == 1",
        "1 == 1; 2",
        "-" * 100 + "1",
        "1" + "+1" * CONDITION_CHARACTERS_MAX,
        "(" * 300 + "1" + ")" * 300,
    ],
)
def test_nothing_else_gets_in(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Condition(text, NODES.__contains__)


def test_a_tensor_named_as_a_method_is_a_tensor() -> None:
    for name in ("tofile", "probs.__class__"):
        assert list(Condition(f"quick.{name} > 0", NODES.__contains__).references) == [Reference("quick", name)]


def test_a_condition_keeps_no_value_and_can_be_asked_again() -> None:
    condition = Condition("max(quick.probs) > 0.5", NODES.__contains__)
    assert condition.holds(VALUES)
    assert not condition.holds({Reference("quick", "probs"): np.zeros(3)})


def test_nodes_can_be_renamed() -> None:
    text = renamed("max(quick.probs) > 0.5 and request.parameters.tier == 'x' and request.size[0] > 1", {"quick": "ocr.quick"}, sorted(NODES))
    known = {"ocr.quick", "request"}
    assert set(Condition(text, known.__contains__).references) == {
        Reference("ocr.quick", "probs"),
        Reference("request", "tier", field=True),
        Reference("request", "size"),
    }

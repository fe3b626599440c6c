"""What members' answers become: values against direct computation, who answered, and what is refused with whose name."""

from __future__ import annotations

import numpy as np
import pytest

from graphs.combiners import ANSWERED, CombineError, calls_foreign_code, combine, combiner_named, combiner_names, combiner_problem
from schemas.errors import BackendError, ConfigurationError

A = np.array([[0.7, 0.2, 0.1], [0.4, 0.5, 0.1]], np.float32)
B = np.array([[0.1, 0.6, 0.3], [0.3, 0.6, 0.1]], np.float32)
C = np.array([[0.2, 0.3, 0.5], [0.8, 0.1, 0.1]], np.float32)
NAMES = ["small", "middle", "large"]


def combined(combiner, *tensors, weights=(), answered=(), name="probs", numbers=None):
    numbers = range(len(tensors)) if numbers is None else numbers
    inputs = {f"{number}.{name}": tensor for number, tensor in zip(numbers, tensors, strict=True)}
    return combine(inputs, {"combiner": combiner, "weights": list(weights), "members": NAMES, "answered": list(answered)})


def test_a_mean_is_numpys():
    result = combined("mean", A, B, C)["probs"]
    assert result.dtype == np.float32
    assert np.allclose(result, np.mean([A, B, C], axis=0), atol=1e-7)


def test_weights_belong_to_numbers_and_are_divided_among_those_who_answered():
    result = combined("weighted_mean", A, C, weights=(3, 100, 1), numbers=(0, 2))["probs"]
    assert np.allclose(result, (3 * A + C) / 4, atol=1e-7)


def test_mean_takes_no_notice_of_weights():
    assert np.array_equal(combined("mean", A, B, weights=(9, 1, 1))["probs"], combined("mean", A, B)["probs"])


def test_integer_means_are_rounded_and_stay_integers():
    result = combined("mean", np.array([[1, 250]], np.uint8), np.array([[2, 255]], np.uint8), np.array([[2, 255]], np.uint8))["probs"]
    assert result.tolist() == [[2, 253]]
    assert result.dtype == np.uint8


def test_scores_vote_for_their_largest_and_become_shares():
    result = combined("majority", A, B, C)["probs"]
    assert np.allclose(result, [[1 / 3, 1 / 3, 1 / 3], [1 / 3, 2 / 3, 0]])
    weighted = combined("weighted_majority", A, B, C, weights=(0.2, 0.2, 0.6))["probs"]
    assert np.allclose(weighted, [[0.2, 0.2, 0.6], [0.6, 0.4, 0]])


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, object])
def test_labels_vote_by_value_and_an_even_vote_goes_to_the_earlier_member(dtype):
    def labels(*values):
        return np.array([str(value).encode() if dtype is object else value for value in values], dtype)

    result = combined("majority", labels(1, 2, 3), labels(4, 2, 5), labels(4, 7, 6), name="label")["label"]
    assert result.dtype == dtype
    assert result.tolist() == labels(4, 2, 3).tolist()
    outvoted = combined("weighted_majority", labels(1), labels(4), labels(4), weights=(5, 1, 1), name="label")["label"]
    assert outvoted.tolist() == labels(1).tolist()


def test_even_weighted_votes_do_not_hang_on_the_last_digit():
    result = combined("weighted_majority", *(np.array([value]) for value in (7, 8, 8)), weights=(0.3, 0.1, 0.2))["probs"]
    assert result.tolist() == [7]


def test_max_and_concat():
    assert np.array_equal(combined("max", A, B)["probs"], np.maximum(A, B))
    assert np.array_equal(combined("concat", A, B[:, :1])["probs"], np.hstack([A, B[:, :1]]))
    assert combined("concat", np.array([1, 2]), np.array([3, 4]))["probs"].tolist() == [[1, 3], [2, 4]]


def test_who_answered_is_said_in_every_row():
    result = combined("mean", A, C, numbers=(0, 2))[ANSWERED]
    assert result.dtype == np.int64
    assert result.tolist() == [[0, -1, 2], [0, -1, 2]]


def test_only_those_said_to_have_answered_count():
    result = combined("mean", A, B, C, answered=(1,))
    assert np.array_equal(result["probs"], B)
    assert result[ANSWERED].tolist() == [[-1, 1, -1]] * 2


def test_every_shared_tensor_is_merged_and_an_inner_ensembles_answered_is_replaced():
    inner = np.array([[0, 1]] * 2)
    result = combine({"0.p": A, "0.q": A, "0.answered": inner, "1.q": B, "1.answered": inner}, {"members": ["a", "b"]})
    assert list(result) == ["q", ANSWERED]
    assert result[ANSWERED].tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ((A, B[:, :2]), r"'probs': 'small' \(member 0\) gives FP32 \[2, 3\], 'middle' \(member 1\) gives FP32 \[2, 2\]"),
        ((A, B[:1]), r"FP32 \[1, 3\]"),
        ((A, B.astype(np.float64)), r"gives FP64 \[2, 3\]"),
        ((np.float32(1.0).reshape(()), B), "is a scalar"),
    ],
)
def test_misfits_name_the_members(tensors, said):
    with pytest.raises(CombineError, match=said):
        combined("mean", *tensors)
    assert issubclass(CombineError, BackendError)


def test_concat_needs_the_other_axes_to_fit():
    with pytest.raises(CombineError, match=r"middle.*but for the last axis"):
        combined("concat", A, B[:1])


def test_what_cannot_be_merged_says_why():
    text = np.array([[b"a"]], object)
    for combiner in ("mean", "max"):
        with pytest.raises(CombineError, match=r"BYTES \[1, 1\].*needs numbers"):
            combined(combiner, text, text)
    with pytest.raises(CombineError, match="axis of classes"):
        combined("majority", A[:, 0], B[:, 0])
    with pytest.raises(CombineError, match=r"no tensor in common: 'a' \(member 0\) has p; 'b' \(member 1\) has q"):
        combine({"0.p": A, "1.q": B}, {"members": ["a", "b"]})
    with pytest.raises(CombineError, match="no member answered"):
        combine({}, {})
    with pytest.raises(CombineError, match="no tensors of members 2"):
        combined("mean", A, B, answered=(0, 2))
    with pytest.raises(CombineError, match=r"NUMBER\.TENSOR"):
        combine({"probs": A}, {})


@pytest.mark.parametrize("weights", [(0, 0, 1), (float("nan"), 1, 1), (-1, 3, 1), (float("inf"), 1, 1)])
def test_weights_that_say_nothing_are_refused(weights):
    with pytest.raises(CombineError, match="say nothing"):
        combined("weighted_mean", A, B, weights=weights)


def test_a_member_without_a_weight_is_named():
    with pytest.raises(CombineError, match=r"'large' \(member 2\) has no weight"):
        combined("weighted_mean", A, B, C, weights=(1, 2))


def broken(tensors, weights):
    raise KeyError("no such thing")


def transposed(tensors, weights):
    return tensors[0].T


def least(tensors, weights):
    return np.minimum.reduce(tensors)


NOT_A_FUNCTION = 3


def test_a_users_combiner_goes_by_module_and_function():
    assert np.array_equal(combined(f"{__name__}:least", A, B)["probs"], np.minimum(A, B))
    with pytest.raises(CombineError, match="raised KeyError: 'no such thing'"):
        combined(f"{__name__}:broken", A, B)
    with pytest.raises(CombineError, match=r"gave FP32 \[3, 2\], not an array of 2 rows"):
        combined(f"{__name__}:transposed", A, B)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("median", "unknown: the known ones are concat, majority, max, mean, weighted_majority, weighted_mean"),
        ("no.such.module:f", "cannot be loaded: No module named"),
        (f"{__name__}:nothing", "cannot be loaded"),
        (f"{__name__}:NOT_A_FUNCTION", "is a int, not a function"),
    ],
)
def test_a_combiner_that_nobody_has(name, said):
    with pytest.raises(ConfigurationError, match=said):
        combiner_named(name)


def test_built_in_combiners_are_our_own_code_and_others_are_not():
    assert not calls_foreign_code({})
    assert not calls_foreign_code({"combiner": "majority"})
    assert calls_foreign_code({"combiner": f"{__name__}:least"})
    assert calls_foreign_code({"combiner": "least_of_all"})


def test_parameters_of_another_kind_are_refused():
    with pytest.raises(ConfigurationError, match="weights"):
        combine({"0.p": A}, {"weights": "much"})


def test_an_entry_point_is_found_by_its_name(tmp_path, monkeypatch):
    information = tmp_path / "least-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: least\nVersion: 1\n")
    (information / "entry_points.txt").write_text("[headrace.combiners]\nleast_of_all = least_plug_in:least\n")
    (tmp_path / "least_plug_in.py").write_text("import numpy\ndef least(tensors, weights):\n    return numpy.minimum.reduce(tensors)\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "least_of_all" in combiner_names()
    assert combiner_problem("least_of_all", (), 2) == ""
    assert np.array_equal(combined("least_of_all", A, B)["probs"], np.minimum(A, B))
    combiner_named.cache_clear()


@pytest.mark.parametrize(
    ("name", "weights", "said"),
    [
        ("mean", (), ""),
        ("weighted_mean", (1, 2), ""),
        ("not.installed:here", (), ""),
        ("median", (), "unknown"),
        ("weighted_mean", (), "needs `weights`"),
        ("weighted_majority", (1, 2, 3), "3 weights for 2 members"),
        ("mean", (0, 0), "not all 0"),
        ("mean", (float("nan"), 1), "finite"),
        ("mean", (-1, 2), "not negative"),
    ],
)
def test_what_apply_is_told(name, weights, said):
    problem = combiner_problem(name, weights, 2)
    assert said in problem
    assert bool(problem) == bool(said)

"""One contract suite over every built-in combiner, and combiners that break it, to see that the suite would notice."""

from __future__ import annotations

import numpy as np
import pytest

from graphs.combiner_contract import (
    CHECKS,
    ContractBroken,
    agrees_with_the_unanimous,
    decides_the_same_again,
    gives_the_rows_that_came,
    leaves_its_tensors_alone,
    needs_no_order_of_rows,
    treats_each_row_by_itself,
)
from graphs.combiners import BUILT_IN, combiner_named


def scores(members, rows):
    random = np.random.default_rng(members)
    return list(random.random((members, 8, 4)).astype(np.float32)[:, :rows])


def labels(members, rows):
    random = np.random.default_rng(members)
    return list(random.integers(0, 3, (members, 8))[:, :rows])


def words(members, rows):
    return [np.array([b"%d" % label for label in labels], object) for labels in labels(members, rows)]


KINDS = {"scores": scores, "labels": labels, "words": words}
NUMBERS_ONLY = ("mean", "weighted_mean", "max")
PAIRS = [(name, kind) for name in BUILT_IN for kind in KINDS if not (kind == "words" and name in NUMBERS_ONLY)]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_contract(name, kind, check):
    check(combiner_named(name), KINDS[kind])


MEMORY = np.zeros((8, 4), np.float32)


def first_row_only(tensors, weights):
    return tensors[0][:1]


def listing(tensors, weights):
    return tensors[0].tolist()


def complex_numbers(tensors, weights):
    return tensors[0].astype(np.complex64)


def over_all_rows(tensors, weights):
    return tensors[0] / tensors[0].sum()


def scribbling(tensors, weights):
    tensors[0].setflags(write=True)
    tensors[0] += 1
    return tensors[0].copy()


def aliasing(tensors, weights):
    rows = len(tensors[0])
    MEMORY[:rows] = tensors[0]
    return MEMORY[:rows]


def drawing(tensors, weights):
    return tensors[np.random.default_rng().integers(0, 1 << 30) % 3 % len(tensors)] + np.float32(np.random.default_rng().random())


def unscaled(tensors, weights):
    return (tensors[0] * weights[0]).astype(np.float32)


def sorting(tensors, weights):
    return np.sort(tensors[0], axis=0)


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (first_row_only, gives_the_rows_that_came),
        (listing, gives_the_rows_that_came),
        (complex_numbers, gives_the_rows_that_came),
        (over_all_rows, treats_each_row_by_itself),
        (scribbling, leaves_its_tensors_alone),
        (aliasing, leaves_its_tensors_alone),
        (drawing, decides_the_same_again),
        (unscaled, agrees_with_the_unanimous),
        (sorting, needs_no_order_of_rows),
    ],
)
def test_a_broken_combiner_is_noticed(broken, check):
    with pytest.raises((ContractBroken, AttributeError, ValueError)):
        check(broken, scores)

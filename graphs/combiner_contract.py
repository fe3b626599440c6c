"""The contract suite of combiners: what every combiner must do, as checks that a third party runs over its own.

With pytest, in the plug-in's own tests:

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_contract(check):
        check(my_combiner, my_members)

`my_members(members, rows)` makes the tensors of so many members, all different, with one datatype.
A check raises ContractBroken with one sentence where the combiner breaks the contract.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from graphs.combiners import Combiner
from schemas.datatypes import Array, datatype_of

Members = Callable[[int, int], list[Array]]
"""(members, rows) -> their tensors; each row must differ from the others."""
Check = Callable[[Combiner, Members], None]
MEMBERS = (1, 2, 3, 5)
ROWS = (1, 2, 7)


class ContractBroken(AssertionError):
    """The combiner does not do what its protocol says."""


def gives_the_rows_that_came(combiner: Combiner, members: Members) -> None:
    """For every number of members and rows: an array of as many rows, of a datatype that an answer can carry."""
    for count in MEMBERS:
        for rows in ROWS:
            result = combiner(members(count, rows), _even(count))
            _require(isinstance(result, np.ndarray), f"gives {type(result).__name__} for {count} members, not an array")  # pyright: ignore[reportUnnecessaryIsInstance] - somebody's combiner may
            _require(result.ndim > 0 and len(result) == rows, f"gives shape {result.shape} for {rows} rows of {count} members")
            _require(_can_be_carried(result), f"gives {result.dtype}, which no answer can carry")


def treats_each_row_by_itself(combiner: Combiner, members: Members) -> None:
    """A batch gives what its rows give one by one: requests are computed together with strangers."""
    for count in MEMBERS:
        tensors = members(count, 5)
        together = combiner(tensors, _even(count))
        apart = np.concatenate([combiner([tensor[row : row + 1] for tensor in tensors], _even(count)) for row in range(5)])
        _require(_equal(together, apart), f"gives other values for 5 rows of {count} members together than for each alone")


def leaves_its_tensors_alone(combiner: Combiner, members: Members) -> None:
    """Read-only tensors are fine and stay as they are; a result is not overwritten by the next call."""
    tensors, others = members(3, 4), [tensor[::-1].copy() for tensor in members(3, 4)]
    before = [tensor.copy() for tensor in tensors]
    for tensor in tensors:
        tensor.setflags(write=False)
    result = combiner(tensors, _even(3))
    kept = result.copy()
    combiner(others, _even(3))
    _require(all(_equal(tensor, copy) for tensor, copy in zip(tensors, before, strict=True)), "changes its tensors")
    _require(_equal(result, kept), "overwrites an earlier result")


def decides_the_same_again(combiner: Combiner, members: Members) -> None:
    """The same tensors and weights give the same values: a request may be computed twice."""
    weights = [0.5, 0.3, 0.2]
    _require(_equal(combiner(members(3, 4), weights), combiner(members(3, 4), weights)), "gives other values the second time")


def agrees_with_the_unanimous(combiner: Combiner, members: Members) -> None:
    """Members that say the same are not turned into something else: the weights of equal answers do not matter."""
    same = members(1, 4) * 3
    even, uneven = combiner(same, _even(3)), combiner(same, [0.6, 0.3, 0.1])
    close = np.allclose(even, uneven, rtol=1e-5, atol=1e-6) if even.dtype.kind == "f" and even.shape == uneven.shape else _equal(even, uneven)
    _require(bool(close), "lets weights change what equal answers become")


def needs_no_order_of_rows(combiner: Combiner, members: Members) -> None:
    """Rows in another order give the results in that order."""
    order = np.array([3, 0, 2, 1])
    tensors = members(3, 4)
    _require(
        _equal(combiner(tensors, _even(3))[order], combiner([tensor[order] for tensor in tensors], _even(3))), "depends on the order of the rows"
    )


CHECKS: Sequence[Check] = (
    gives_the_rows_that_came,
    treats_each_row_by_itself,
    leaves_its_tensors_alone,
    decides_the_same_again,
    agrees_with_the_unanimous,
    needs_no_order_of_rows,
)


def _even(count: int) -> list[float]:
    return [1 / count] * count


def _can_be_carried(result: Array) -> bool:
    try:
        datatype_of(result)
    except ValueError:
        return False
    return True


def _equal(left: Array, right: Array) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and bool(np.array_equal(left, right, equal_nan=left.dtype.kind == "f"))


def _require(condition: bool, message: str) -> None:  # noqa: FBT001 - the condition is the point
    if not condition:
        raise ContractBroken(message)

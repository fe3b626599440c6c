"""Combiners: what several answers to one question become; decides from the members' tensors alone.

An ensemble's result comes from a stage of the built-in Python task `headrace.combine`, which calls `combine` here. A combiner merges one tensor:

    def combiner(tensors: Sequence[Array], weights: Sequence[float]) -> Array

`tensors` are what the members that answered gave (at least one), in the order of the members, with one datatype and, but for `concat`, one shape;
`weights` sum to 1. It neither changes nor keeps its tensors, and gives as many rows (first axis) as went in.

CombineError (backend_error)     tensors that do not fit each other, or a combiner that raises or gives something else than rows
ConfigurationError               a combiner that nobody knows: the known ones are named
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

import msgspec
import numpy as np

from schemas.datatypes import Array, datatype_of
from schemas.errors import BackendError, ConfigurationError

GROUP = "headrace.combiners"
ANSWERED = "answered"
"""The output beside the merged tensors: INT64 [rows, members]; in each row the member's number where it answered, -1 where it did not.

The first axis counts rows as everywhere, and the second does not depend on who answered, so that rows of a for_each can be joined.
"""
Combiner = Callable[[Sequence[Array], Sequence[float]], Array]


class CombineError(BackendError):
    """The members' answers cannot be merged."""


class CombineParameters(msgspec.Struct, frozen=True):
    """What the dispatcher hands to the task beside the tensors."""

    combiner: str = "mean"
    weights: tuple[float, ...] = ()
    """One for each member, by its number, whether it answered or not; empty: all alike."""
    members: tuple[str, ...] = ()
    """Names, for messages and for the width of `answered`."""
    answered: tuple[int, ...] = ()
    """Numbers of the members that answered; empty: those of which there are tensors."""


def combine(inputs: Mapping[str, Array], parameters: Mapping[str, Any]) -> dict[str, Array]:
    """Merge `NUMBER.TENSOR` inputs tensor by tensor: every tensor that all who answered have, and `answered`.

    `parameters` as in CombineParameters. Raises CombineError, ConfigurationError.
    """
    try:
        stated = msgspec.convert(dict(parameters), CombineParameters)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"headrace.combine: {error}") from None
    merge = combiner_named(stated.combiner)
    by_member = _by_member(inputs, stated.answered)
    weights = _weights(stated, by_member)
    shared = [name for name in next(iter(by_member.values())) if name != ANSWERED and all(name in tensors for tensors in by_member.values())]
    if not shared:
        raise CombineError(f"the members have no tensor in common: {_listed({_called(stated, n): list(t) for n, t in by_member.items()})}")
    merged: dict[str, Array] = {}
    for name in shared:
        tensors = {number: by_member[number][name] for number in by_member}
        _refuse_misfits(stated, name, tensors)
        merged[name] = _merged(stated.combiner, merge, name, list(tensors.values()), weights)
    merged[ANSWERED] = _answered(len(merged[shared[0]]), list(by_member), max(len(stated.members), *(number + 1 for number in by_member)))
    return merged


def calls_foreign_code(parameters: Mapping[str, Any]) -> bool:
    """Whether a call with these parameters runs somebody else's combiner, which may hang and so belongs into a process that can be ended."""
    return parameters.get("combiner", CombineParameters().combiner) not in BUILT_IN


def combiner_problem(name: str, weights: Sequence[float], members: int) -> str:
    """What is wrong with an ensemble's combiner, for `apply`; empty where nothing is. A combiner that is not installed here is no problem yet."""
    if weights and len(weights) != members:
        return f"{len(weights)} weights for {members} members: one for each, in their order"
    if any(not np.isfinite(weight) or weight < 0 for weight in weights) or (weights and not sum(weights) > 0):
        return "weights are finite, not negative, and not all 0"
    if name in ("weighted_mean", "weighted_majority") and not weights:
        return f"combiner {name!r} needs `weights`, one for each member"
    return "" if ":" in name or name in combiner_names() else _unknown(name)


def combiner_names() -> list[str]:
    """Every combiner that can be named here, built in or installed."""
    return sorted({*BUILT_IN, *_plug_ins()})


@lru_cache(maxsize=64)
def combiner_named(name: str) -> Combiner:
    """A built-in, one of the entry-point group, or `package.module:function`. Raises ConfigurationError."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    try:
        if ":" in name:
            module, _, attribute = name.partition(":")
            found: object = getattr(import_module(module), attribute)
        else:
            point = _plug_ins().get(name)
            if point is None:
                raise ConfigurationError(_unknown(name))
            found = point.load()
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"combiner {name!r} cannot be loaded: {error}") from error
    if not callable(found):
        raise ConfigurationError(f"combiner {name!r} is a {type(found).__name__}, not a function")
    return cast("Combiner", found)


def mean(tensors: Sequence[Array], weights: Sequence[float]) -> Array:
    """Of numbers, all members alike; integers are rounded."""
    return weighted_mean(tensors, [1 / len(weights)] * len(weights))


def weighted_mean(tensors: Sequence[Array], weights: Sequence[float]) -> Array:
    """Of numbers; summed in double precision, integers are rounded."""
    dtype = _numbers(tensors, "a mean")
    total = np.zeros(tensors[0].shape, np.float64)
    for tensor, weight in zip(tensors, weights, strict=True):
        total += tensor.astype(np.float64) * weight
    return total.astype(dtype) if dtype.kind == "f" else np.rint(total).astype(dtype)


def majority(tensors: Sequence[Array], weights: Sequence[float]) -> Array:
    """Votes, all members alike; see weighted_majority."""
    return weighted_majority(tensors, [1 / len(weights)] * len(weights))


def weighted_majority(tensors: Sequence[Array], weights: Sequence[float]) -> Array:
    """Votes by weight. Float tensors (scores) vote for the argmax of their last axis and become each class's share of the votes, in the same shape;
    other tensors (labels) vote by value, element by element. Where votes are even, the lower class wins, or the value of the earlier member.
    """
    if tensors[0].dtype.kind == "f":
        if tensors[0].ndim < 2:
            raise CombineError("a vote by scores needs an axis of classes after the rows")
        shares = np.zeros(tensors[0].shape, np.float64)
        for tensor, weight in zip(tensors, weights, strict=True):
            chosen: Array = np.expand_dims(tensor.argmax(axis=-1), -1)
            classes: Array = np.arange(int(tensor.shape[-1]))
            shares += np.equal(classes, chosen).astype(np.float64) * weight
        return shares.astype(tensors[0].dtype)
    stacked = np.stack(tensors)
    votes = np.zeros(stacked.shape, np.float64)
    for tensor, weight in zip(tensors, weights, strict=True):
        votes += np.equal(stacked, tensor).astype(np.float64) * weight
    # Sums of the same weights in another order differ in their last digits: these are even votes too.
    winner = (votes >= votes.max(axis=0) - 1e-12).argmax(axis=0)
    return np.take_along_axis(stacked, winner[None], axis=0)[0]


def maximum(tensors: Sequence[Array], weights: Sequence[float]) -> Array:
    """The largest of each element (of truth values: whether any is true)."""
    del weights
    if tensors[0].dtype.kind not in "biuf":
        raise CombineError("a maximum needs numbers")
    return np.maximum.reduce(list(tensors))


def concat(tensors: Sequence[Array], weights: Sequence[float]) -> Array:
    """Side by side on the *last* axis, since the first counts rows; tensors of rows alone become columns. Only the last axis may differ."""
    del weights
    return np.stack(tensors, axis=-1) if tensors[0].ndim == 1 else np.concatenate(tensors, axis=-1)


BUILT_IN: dict[str, Combiner] = {
    "mean": mean,
    "weighted_mean": weighted_mean,
    "majority": majority,
    "weighted_majority": weighted_majority,
    "max": maximum,
    "concat": concat,
}


def _plug_ins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in BUILT_IN}


def _unknown(name: str) -> str:
    return f"combiner {name!r} is unknown: the known ones are {', '.join(combiner_names())}, or name a function as package.module:function"


def _numbers(tensors: Sequence[Array], what: str) -> np.dtype[Any]:
    dtype = tensors[0].dtype
    if dtype.kind not in "iuf":
        raise CombineError(f"{what} needs numbers: for truth values and text use majority")
    return dtype


def _by_member(inputs: Mapping[str, Array], answered: Sequence[int]) -> dict[int, dict[str, Array]]:
    """Tensors by member number, ascending."""
    found: dict[int, dict[str, Array]] = {}
    for key, tensor in inputs.items():
        number, dot, name = key.partition(".")
        if not (dot and name and number.isascii() and number.isdigit()):
            raise CombineError(f"input {key!r} is not called NUMBER.TENSOR")
        if not answered or int(number) in answered:
            found.setdefault(int(number), {})[name] = tensor
    missing = set(answered) - set(found)
    if missing or not found:
        raise CombineError(f"there are no tensors of members {', '.join(map(str, sorted(missing)))}" if missing else "no member answered")
    return dict(sorted(found.items()))


def _weights(stated: CombineParameters, by_member: Mapping[int, object]) -> list[float]:
    """Of those who answered, summing to 1."""
    if not stated.weights:
        return [1 / len(by_member)] * len(by_member)
    if max(by_member) >= len(stated.weights):
        raise CombineError(f"{_called(stated, max(by_member))} has no weight: there are {len(stated.weights)}")
    chosen = [stated.weights[number] for number in by_member]
    total = sum(chosen)
    if not (np.isfinite(total) and total > 0 and min(chosen) >= 0):
        raise CombineError(
            f"the weights of those who answered ({', '.join(f'{weight:g}' for weight in chosen)}) say nothing: their sum must be above 0"
        )
    return [weight / total for weight in chosen]


def _refuse_misfits(stated: CombineParameters, name: str, tensors: Mapping[int, Array]) -> None:
    """Names who gives what where datatypes or shapes differ."""
    numbers = list(tensors)
    first = tensors[numbers[0]]
    joined = stated.combiner == "concat" and first.ndim > 1
    for number in numbers:
        tensor = tensors[number]
        if tensor.ndim == 0:
            raise CombineError(f"tensor {name!r} of {_called(stated, number)} is a scalar: the first axis counts rows")
        same_shape = tensor.shape[:-1] == first.shape[:-1] and tensor.ndim == first.ndim if joined else tensor.shape == first.shape
        if tensor.dtype != first.dtype or not same_shape:
            what = "but for the last axis they have one shape" if joined else "they have one shape"
            raise CombineError(
                f"tensor {name!r}: {_called(stated, numbers[0])} gives {_described(first)}, {_called(stated, number)} gives {_described(tensor)};"
                f" {what} and one datatype for {stated.combiner!r}"
            )


def _merged(called: str, merge: Combiner, name: str, tensors: list[Array], weights: list[float]) -> Array:
    try:
        result: Any = merge(tensors, weights)
    except CombineError as error:
        raise CombineError(f"tensor {name!r} ({_described(tensors[0])}), combiner {called!r}: {error}") from None
    except Exception as error:  # a combiner is somebody's code: whatever it raises fails this request with its reason
        raise CombineError(f"tensor {name!r}: combiner {called!r} raised {type(error).__name__}: {error}") from error
    rows = len(tensors[0])
    if not isinstance(result, np.ndarray):
        raise CombineError(f"tensor {name!r}: combiner {called!r} gave {type(result).__name__}, not an array of {rows} rows")
    array = cast("Array", result)
    if not (array.ndim and len(array) == rows):
        raise CombineError(f"tensor {name!r}: combiner {called!r} gave {_described(array)}, not an array of {rows} rows")
    return array


def _answered(rows: int, numbers: Sequence[int], members: int) -> Array:
    one = np.full(members, -1, np.int64)
    one[list(numbers)] = numbers
    return np.tile(one, (rows, 1))


def _called(stated: CombineParameters, number: int) -> str:
    return f"{stated.members[number]!r} (member {number})" if number < len(stated.members) else f"member {number}"


def _described(tensor: Array) -> str:
    try:
        return f"{datatype_of(tensor).name} {list(tensor.shape)}"
    except ValueError:
        return f"{tensor.dtype} {list(tensor.shape)}"


def _listed(tensors: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{who} has {', '.join(names)}" for who, names in tensors.items())

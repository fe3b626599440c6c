"""What a Python task may give back, checked before it becomes anybody's tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from schemas.catalog import TensorSpec
from schemas.datatypes import Array, datatype_of
from schemas.limits import Limits
from schemas.raw_tensors import misfit

LIMITS = Limits()
"""Of how many tensors, and how large: those of a request."""


class WrongReturn(ValueError):
    """It is no dict of names to arrays, or not what was declared."""


def checked_types(returned: object) -> dict[str, Array]:
    """Raises WrongReturn saying what came instead of a dict of names to numpy arrays."""
    if not isinstance(returned, dict):
        raise WrongReturn(f"it returned {_kind(returned)}, expected a dict of tensor names to numpy arrays")
    items = cast("dict[Any, Any]", returned)
    if len(items) > LIMITS.tensors_max:
        raise WrongReturn(f"it returned {len(items)} tensors, the limit is {LIMITS.tensors_max}")
    for name, values in items.items():
        if not isinstance(name, str) or not 0 < len(name) <= LIMITS.name_bytes_max:
            raise WrongReturn(f"it returned a tensor called {str(name)[:64]!r}: names are text of 1 to {LIMITS.name_bytes_max} characters")
        if not isinstance(values, np.ndarray):
            raise WrongReturn(f"it returned {_kind(values)} as {name!r}, expected a numpy array")
        array = cast("Array", values)
        if array.ndim > LIMITS.rank_max or array.size > LIMITS.elements_max:
            limits = f"{LIMITS.rank_max} axes and {LIMITS.elements_max} elements"
            raise WrongReturn(f"it returned {name!r} with shape {list(array.shape)}, the limit is {limits}")
        try:
            datatype_of(array)
        except ValueError as error:
            raise WrongReturn(f"it returned {name!r}: {error}") from None
    return cast("dict[str, Array]", items)


def check_specs(outputs: Mapping[str, Array], specs: Sequence[TensorSpec]) -> None:
    """Raises WrongReturn where outputs are declared and others came."""
    if not specs:
        return
    declared = {spec.name: spec for spec in specs}
    for name in declared:
        if name not in outputs:
            raise WrongReturn(f"it returned no {name!r}; {', '.join(map(repr, outputs)) or 'nothing'} came")
    for name, values in outputs.items():
        spec = declared.get(name)
        if spec is None:
            raise WrongReturn(f"it returned {name!r}, which its outputs do not declare ({', '.join(map(repr, declared))})")
        reason = misfit(datatype_of(values).name, values.shape, spec)
        if reason:
            raise WrongReturn(f"it returned {name!r}: {reason}")


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"

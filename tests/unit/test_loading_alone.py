"""Unit: what policies say of a class's backend is what that backend says itself."""

from __future__ import annotations

import pytest

from schemas.names import ACCELERATORS
from workers.backend import loads_beside
from workers.backends import backend_factory, default_backend
from workers.policy.device import LOADING_ALONE


@pytest.mark.parametrize("accelerator", ACCELERATORS)
def test_backends_load_beside_what_they_serve_but_for_those_that_are_named(accelerator: str) -> None:
    assert loads_beside(backend_factory(default_backend(accelerator))) == (accelerator not in LOADING_ALONE)  # type: ignore[arg-type]

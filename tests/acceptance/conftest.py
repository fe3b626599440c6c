"""Stacks of genuine processes, shared by the tests of a module where those leave them whole."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from foreign import ForeignClient
from running_stack import FILES, RunningStack


@pytest.fixture(scope="module")
def module_prefix() -> str:
    """Names of this test module alone."""
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="module")
def shared_stack(tmp_path_factory: pytest.TempPathFactory, kafka_address: str, redis_url: str, module_prefix: str) -> Iterator[RunningStack]:
    """One dispatcher and one worker over the session's servers."""
    stack = RunningStack(tmp_path_factory.mktemp("stack"), module_prefix)
    with stack.up("--kafka", kafka_address, "--redis", redis_url, "--workers", "cpu=1", *FILES):
        yield stack


@pytest.fixture(scope="module")
def client(kafka_address: str, redis_url: str, module_prefix: str) -> ForeignClient:
    """Knows the wire only."""
    return ForeignClient(kafka_address, redis_url, module_prefix)

"""`headrace up --ha` under load: the leading scaler is killed, and nothing visible changes but the leader."""

from __future__ import annotations

import signal
import time
import uuid
from collections.abc import Iterator

import pytest
from foreign import ForeignClient
from promises import Traffic
from running_stack import FILES, RunningStack, until

WITHIN_S = 60.0
TAKEOVER_S = 10.0
pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, kafka_address: str, redis_url: str) -> Iterator[RunningStack]:
    made = RunningStack(tmp_path_factory.mktemp("stack"), f"t{uuid.uuid4().hex[:12]}")
    with made.up("--kafka", kafka_address, "--redis", redis_url, "--workers", "cpu=2", "--ha", "--optimizer", "greedy", *FILES):
        yield made


def leader(stack: RunningStack) -> str | None:
    return stack.headrace("status")["leader"]


def test_killing_the_leader_changes_nothing_but_the_leader(stack: RunningStack, kafka_address: str, redis_url: str) -> None:
    client = ForeignClient(kafka_address, redis_url, stack.prefix)
    traffic = Traffic(client, "failover", timeout_ms=30_000, rate_rps=40.0)
    first = until(lambda: leader(stack), "somebody leads", within_s=WITHIN_S)
    (standby,) = set(stack.names("scaler")) - {first}
    with traffic.flowing():
        stack.signal(first, signal.SIGKILL)
        killed_s = time.monotonic()
        until(lambda: stack.metric(standby, "headrace_scaler_leads") == 1.0, "the other one leads", within_s=TAKEOVER_S)
        assert time.monotonic() - killed_s < TAKEOVER_S
        until(lambda: leader(stack) == standby, "everybody is told", within_s=WITHIN_S)
        until(lambda: first in stack.processes() and stack.is_ready(first), "the first one is back", within_s=WITHIN_S)
        assert leader(stack) == standby, "it stands by now"
    kept = traffic.check(within_s=WITHIN_S)
    assert kept.outcomes == {("completed", ""): len(traffic.floors)}, kept.outcomes
    decisions = stack.headrace("plan", "history", "--all")["decisions"]
    assert [decision["scaler"] for decision in decisions if decision["kind"] == "led"][-1] == standby
    assert {decision["optimizer"] for decision in decisions if decision["explanation"] is not None} <= {"", "greedy"}
    epochs = [decision["epoch"] for decision in decisions]
    assert epochs == sorted(epochs)

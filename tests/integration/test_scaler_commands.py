"""`headrace plan ...`, `headrace optimizers use` and `headrace get lag` over a genuine Kafka, with nothing of ours running."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from broker.kafka import KafkaLog
from deploy import cli
from deploy.snapshots import read_catalog
from schemas.control import ControlSpec
from schemas.names import Names
from schemas.plan import PLAN_KEY, Binding, Plan, encode_plan
from schemas.plan_journal import Explanation, Forecast, PlanDecision, Rules, encode_decision

RULES = Rules(interval_ms=10_000, cool_down_ms=2_000, attainment_cool_down_ms=5_000, attainment_target=0.95, demand_margin=0.25, gain_min=0.01)


def bound(epoch: int, *variants: str, share: float) -> Plan:
    binding = Binding(worker="cpu-1", accelerator="cpu", lane=0, variants=variants)
    shares = {"t": {"t/small": share, "t/large": 1 - share}}
    return Plan(epoch=epoch, bindings=(binding,), shares=shares, planner="scaler-1", optimizer="greedy", reason=f"reason {epoch}", made_ms=1_000)


def decided(plan: Plan | None, epoch: int, kind: str, reason: str) -> PlanDecision:
    return PlanDecision(
        at_ms=1_700_000_000_000.0 + epoch,
        scaler="scaler-1",
        epoch=epoch,
        kind=kind,
        trigger="every 10 s",
        reason=reason,
        optimizer="greedy",
        demand={"shop": Forecast(rate_rps=80.0, forecast_rps=100.0, attainment=0.97, lag=12)},
        left_out={"cpu-2: t/large": "the file is corrupt"},
        explanation=Explanation(status="feasible", bound_by=("cpu is full",), served={"shop": 0.98}, accuracy={"shop": 0.87}, load={"cpu": 0.9}),
        plan=plan,
        rules=RULES,
    )


@pytest.fixture
def written(kafka_address: str, prefix: str) -> list[str]:
    """Two plans with their history; the options that lead there."""
    plans = [bound(1, "t/small", share=1.0), bound(2, "t/small", "t/large", share=0.25)]
    decisions = [decided(plan, plan.epoch, "published", plan.reason) for plan in plans]
    decisions.append(decided(None, 2, "kept", "not worth it"))

    async def write() -> None:
        log, names = KafkaLog(kafka_address), Names(prefix)
        await log.create_topics(names.topics(shards=1, lanes=1))
        writer = log.writer("test")
        await writer.start()
        await writer.write(names.plan, 0, [(PLAN_KEY, encode_plan(plan), ()) for plan in plans])
        await writer.write(names.plan_history, 0, [(b"scaler-1", encode_decision(decision), ()) for decision in decisions])
        await writer.write(names.plan_history, 0, [(b"x", b"{", ())])
        await writer.close()
        await log.close()

    asyncio.run(write())
    return ["--kafka", kafka_address, "--prefix", prefix]


def control_of(options: list[str]) -> ControlSpec:
    async def read() -> ControlSpec:
        log = KafkaLog(options[1])
        try:
            return (await read_catalog(log, Names(options[3]))).control
        finally:
            await log.close()

    return asyncio.run(read())


def test_the_plan_its_history_and_what_changed_are_shown(written: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: str, code: int = 0) -> tuple[dict[str, Any], str]:
        assert cli.run([*words, *written, "--json"]) == code
        printed = capsys.readouterr()
        return json.loads(printed.out.strip().rpartition("\n")[2]), printed.err

    found, said = run("plan", "show")
    assert (found["plan"]["epoch"], found["pinned"]) == (2, False)
    assert "by scaler-1 with the optimizer greedy" in said

    found, said = run("plan", "explain")
    assert (found["decision"]["epoch"], found["latest"]["kind"]) == (2, "kept")
    for told in (
        "due:  every 10 s",
        "cpu is full",
        "98.0%",
        "0.8700",
        "the file is corrupt",
        "at least 2 s apart",
        "it must serve 1% more than its loads cost, or be more accurate",
        "not worth it",
    ):
        assert told in said
    assert run("plan", "explain", "1")[0]["decision"]["reason"] == "reason 1"
    assert "no decision for epoch 9" in run("plan", "explain", "9", code=1)[1]

    assert [decision["kind"] for decision in run("plan", "history")[0]["decisions"]] == ["published", "published"]
    assert [decision["kind"] for decision in run("plan", "history", "--all", "--last", "2")[0]["decisions"]] == ["published", "kept"]

    found, said = run("plan", "diff")
    assert (found["from"], found["to"]) == (1, 2)
    assert {(change["kind"], change["name"]) for change in found["changes"]} == {("worker", "cpu-1"), ("share", "t/small"), ("share", "t/large")}
    assert run("plan", "diff", "2", "2")[0]["changes"] == []
    assert "it has 1 to 2" in run("plan", "diff", "7", code=1)[1]


def test_pins_and_the_optimizer_are_kept_in_the_catalog(written: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["plan", "pin", "--reason", "measuring", *written]) == 0
    assert cli.run(["optimizers", "use", "loki", *written]) == 0
    control = control_of(written)
    assert (control.pinned, control.pin_reason, control.optimizer) == (True, "measuring", "loki")
    assert cli.run(["plan", "show", *written]) == 0
    assert "measuring; `headrace plan unpin`" in capsys.readouterr().out
    assert cli.run(["plan", "unpin", *written]) == 0
    assert cli.run(["optimizers", "use", "--default", *written]) == 0
    control = control_of(written)
    assert (control.pinned, control.pin_reason, control.optimizer) == (False, "", "")
    assert cli.run(["optimizers", "use", "lokki", *written]) == 1
    assert "did you mean 'loki'" in capsys.readouterr().err
    assert cli.run(["optimizers", "use", *written]) == 2
    assert cli.run(["get", "endpoints", *written]) == 0, "readers of the catalog know the record"

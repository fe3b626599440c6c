"""The supervisor of a genuine stack starts and ends workers as the scale topic says, and no request is lost by it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from broker.kafka import KafkaLog
from broker.log import TopicPartition
from deploy.configuration import Connection
from deploy.local import stack as local
from deploy.local.scaling import ScaleRange, ScaleRules
from deploy.stack_plan import UpOptions, plan_stack
from deploy.stack_start import start_and_apply
from scaler.actuators.local import LocalActuator
from schemas.names import Names
from schemas.scale import ScaleOffer, ScaleOrder, encode_scale, scale_key
from schemas.terminal import decode_terminal

FASHION = Path(__file__).parents[2] / "examples" / "fashion"
FILES = [FASHION / "task.yaml", FASHION / "endpoint.yaml"]
Eventually = Callable[..., Awaitable[Any]]
ROLE = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
pathlib.Path(sys.argv[1]).write_text("{}")
while True:
    time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path: Path):
    folder = tmp_path / ".headrace"
    yield folder
    asyncio.run(local.stop(folder))


@pytest.fixture
async def actuator(kafka_address: str, prefix: str):
    log = KafkaLog(kafka_address)
    names = Names(prefix)
    await log.create_topics(names.topics())
    found = LocalActuator(log, names, "test")
    await found.start()
    yield found
    await found.close()
    await log.delete_topics([topic.name for topic in names.topics()])
    await log.close()


async def offer_of(actuator: LocalActuator) -> ScaleOffer | None:
    return next(iter(await actuator.offers()), None)


async def scaled(
    actuator: LocalActuator, folder: Path, eventually: Eventually, wanted: int, *, leaving: tuple[str, ...] = (), epoch: int = 1
) -> list[str]:
    """Order so many, until the supervisor has them; their names."""

    async def reached() -> bool:
        offer = await offer_of(actuator)
        await actuator.apply({"cpu": ScaleOrder(accelerator="cpu", wanted=wanted, leaving=leaving, epoch=epoch, reason="a test")})
        return offer is not None and offer.wanted == wanted and len(workers(folder)) == wanted

    await eventually(reached, timeout_s=60)
    return workers(folder)


def workers(folder: Path) -> list[str]:
    stack = local.read(folder)
    assert stack is not None
    return sorted(process.name for process in stack.processes if process.role == "worker")


def serving(folder: Path) -> bool:
    """Whether every worker has said that it is ready."""
    stack = local.read(folder)
    assert stack is not None
    return all(process.http for process in stack.processes if process.role == "worker")


def role(name: str, program: str, *, standby: bool) -> local.RoleSpec:
    return local.RoleSpec(role="worker", name=name, argv=[sys.executable, "-S", "-c", program, "{ready}"], accelerator="cpu", standby=standby)


@pytest.fixture
def plan(folder: Path, prefix: str, kafka_address: str, redis_url: str):
    """A stack of small processes in place of workers: two run, the others stand by."""

    def make(late: str = ROLE) -> local.StackPlan:
        roles = [role(f"cpu-{number + 1}", ROLE if number < 2 else late, standby=number >= 2) for number in range(4)]
        scale = ScaleRules(ranges=(ScaleRange(accelerator="cpu", least=0, most=4, threads=2),), cores=3)
        return local.StackPlan(folder=folder, prefix=prefix, kafka=kafka_address, redis=redis_url, roles=roles, scale=scale)

    return make


def silent(_text: str) -> None:
    pass


async def test_workers_start_and_end_as_ordered_within_what_up_was_given(plan, folder: Path, actuator: LocalActuator, eventually: Eventually) -> None:
    # Two are running though a range of 0 to 4 begins with one: the plan says so.
    await local.start(plan(), on_progress=silent)
    assert workers(folder) == ["cpu-1", "cpu-2"]
    offer = await eventually(lambda: offer_of(actuator))
    assert (offer.least, offer.most, offer.threads, offer.cores, offer.failing) == (0, 4, 2, 3, "")
    assert await scaled(actuator, folder, eventually, 3) == ["cpu-1", "cpu-2", "cpu-3"]
    await actuator.apply({"cpu": ScaleOrder(accelerator="cpu", wanted=4, epoch=1)})

    async def followed() -> bool:
        found = await offer_of(actuator)
        return found is not None and found.running == 3

    await eventually(followed)
    assert len(workers(folder)) == 3, "three cores were given"
    assert await scaled(actuator, folder, eventually, 2, leaving=("cpu-1",)) == ["cpu-2", "cpu-3"]
    assert await scaled(actuator, folder, eventually, 0) == []
    assert await scaled(actuator, folder, eventually, 1) == ["cpu-1"]


async def test_an_order_of_an_earlier_leader_is_ignored(
    plan, folder: Path, actuator: LocalActuator, prefix: str, kafka_address: str, eventually
) -> None:
    log = KafkaLog(kafka_address)
    writer = log.writer("stale")
    await writer.start()
    stale = ScaleOrder(accelerator="cpu", wanted=0, epoch=4)
    # Of another stack, before this one started: not followed either.
    await writer.write(Names(prefix).scale, 0, [(scale_key(stale), encode_scale(stale), [])])
    await local.start(plan(), on_progress=silent)
    await scaled(actuator, folder, eventually, 3, epoch=5)
    late = ScaleOrder(accelerator="cpu", wanted=1, epoch=6)
    await writer.write(Names(prefix).scale, 0, [(scale_key(order), encode_scale(order), []) for order in (stale, late)])
    await eventually(lambda: len(workers(folder)) == 1)
    assert "an order of an earlier leader is ignored" in (folder / local.LOGS / "supervisor.log").read_text()
    await writer.close()
    await log.close()


async def test_a_worker_that_dies_at_its_start_is_told_and_the_others_stay(
    plan, folder: Path, actuator: LocalActuator, eventually: Eventually
) -> None:
    await local.start(plan("import sys; sys.exit('no such device')"), on_progress=silent)
    await eventually(lambda: offer_of(actuator))

    async def failing() -> str:
        await actuator.apply({"cpu": ScaleOrder(accelerator="cpu", wanted=3)})
        offer = await offer_of(actuator)
        return offer.failing if offer is not None else ""

    reason = await eventually(failing, timeout_s=20)
    assert reason.startswith("cpu-3 died 3 times in a row: ")
    assert reason.endswith("no such device")
    assert {"cpu-1", "cpu-2"} <= set(workers(folder))
    assert await scaled(actuator, folder, eventually, 2) == ["cpu-1", "cpu-2"]


async def answers(log: KafkaLog, names: Names) -> dict[str, list[str]]:
    """Outcomes by request id, in the order of the log."""
    reader = log.reader("answers")
    await reader.start()
    partitions = [TopicPartition(names.responses, shard) for shard in range(await log.partitions(names.responses))]
    await reader.assign(dict.fromkeys(partitions, "earliest"))
    ends = await reader.end_offsets(partitions)
    found: dict[str, list[str]] = {}
    while any([await reader.position(partition) < end for partition, end in ends.items()]):
        for records in (await reader.read(timeout_ms=200, records_max=1_000)).values():
            for record in records:
                found.setdefault((record.key or b"").decode(), []).append(decode_terminal(record.value or b"").outcome)
    await reader.close()
    return found


async def ask(log: KafkaLog, names: Names, stop: asyncio.Event) -> list[str]:
    """A request each 40 ms, until told to stop; their ids."""
    writer = log.writer("client")
    await writer.start()
    image = np.zeros((1, 1, 28, 28), np.uint8)
    inputs = [{"name": "image", "shape": list(image.shape), "datatype": "UINT8", "data": image.ravel().tolist()}]
    ids: list[str] = []
    while not stop.is_set():
        ids.append(f"r{len(ids)}")
        body = json.dumps({"id": ids[-1], "endpoint": "fashion", "timeout_ms": 20_000, "inputs": inputs}).encode()
        await writer.write(names.requests, len(ids) % 8, [(ids[-1].encode(), body, [])])
        await asyncio.sleep(0.04)
    await writer.close()
    return ids


@pytest.mark.timeout(240)
async def test_every_request_has_one_outcome_while_workers_come_and_go(
    folder: Path, tmp_path: Path, actuator: LocalActuator, kafka_address: str, redis_url: str, prefix: str, eventually: Eventually
) -> None:
    scale = ScaleRules(ranges=(ScaleRange(accelerator="cpu", least=0, most=2),))
    profiles, models, cache = tmp_path / "profiles", tmp_path / "models", tmp_path / "cache"
    options = UpOptions(workers={"cpu": 1}, scale=scale, models=models, profiles=profiles, cache=cache, applies_files=True)
    plan = plan_stack(folder, options, kafka=kafka_address, redis=redis_url, prefix=prefix)
    # The counts are this test's to say.
    roles = [structs.replace(role, argv=[*role.argv, "--actuator", "fixed"]) if role.role == "scaler" else role for role in plan.roles]
    connection = Connection(kafka=kafka_address, redis=redis_url, prefix=prefix)
    await start_and_apply(structs.replace(plan, roles=roles), connection, FILES, models, on_progress=silent)
    log, names, stop = KafkaLog(kafka_address), Names(prefix), asyncio.Event()
    asking = asyncio.create_task(ask(log, names, stop))
    for wanted in (2, 1, 0, 1):
        assert len(await scaled(actuator, folder, eventually, wanted)) == wanted
        await eventually(lambda: serving(folder), timeout_s=60)
    stop.set()
    ids = await asking
    assert len(ids) > 30

    async def answered() -> bool:
        return (await answers(log, names)).keys() >= set(ids)

    await eventually(answered, timeout_s=60, interval_s=0.5)
    found = await answers(log, names)
    assert found.keys() == set(ids)
    outcomes = Counter(outcome for first, *_ in found.values() for outcome in [first])
    assert outcomes["completed"] == len(ids), outcomes
    await log.close()


def test_a_range_that_cannot_be_is_refused_before_anything_starts(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "deploy.cli", "up", "--detach", "--workers", "cpu=3..1"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "at most 1 workers are fewer than at least 3" in done.stderr
    assert not (tmp_path / ".headrace").exists()

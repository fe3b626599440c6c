"""The supervisor with real processes: order, readiness, restarts, announcements, and that nothing outlives it."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from msgspec import structs

from broker.kafka import KafkaLog
from broker.log import TopicPartition
from deploy.local.kafka import kafka_answers
from deploy.local.process import Child, ProcessSpec
from deploy.local.stack import LOGS, STATE_FILE, RoleSpec, Stack, StackPlan, read, start, stop, write_atomically
from deploy.local.valkey import valkey_answers
from schemas.errors import ConfigurationError
from schemas.names import Names
from schemas.telemetry import Departed, decode_telemetry

ROLE = """
import json, pathlib, signal, sys, time
ready, diary, name, *words = sys.argv[1:]
def end(*_):
    with open(diary, "a") as file:
        file.write(name + "\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("words", *words, flush=True)
pathlib.Path(ready).write_text(json.dumps({"role": name, "http": "127.0.0.1:9"}))
while True:
    time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path: Path):
    folder = tmp_path / ".headrace"
    yield folder
    asyncio.run(stop(folder))


@pytest.fixture
def role(tmp_path: Path):
    """Makes roles that note the order of their ends in a diary."""
    program = tmp_path / "role.py"
    program.write_text(ROLE)

    def make(role: str, name: str) -> RoleSpec:
        argv = [sys.executable, "-S", str(program), "{ready}", str(tmp_path / "diary"), name, "{kafka}", "{redis}", "{prefix}"]
        return RoleSpec(role=role, name=name, argv=argv)

    return make


@pytest.fixture
def plan(folder: Path, prefix: str, kafka_address: str, redis_url: str):
    """Makes plans over the session's servers, which are not the stack's to start or end."""

    def make(*roles: RoleSpec, **changes) -> StackPlan:
        return StackPlan(folder=folder, prefix=prefix, kafka=kafka_address, redis=redis_url, roles=list(roles), **changes)

    return make


def silent(_progress: str) -> None:
    pass


def pid_of(stack: Stack | None, name: str) -> int | None:
    return next((process.pid for process in stack.processes if process.name == name), None) if stack else None


def test_given_servers_are_used_and_every_role_is_told_of_them(plan, role, folder: Path, kafka_address: str, redis_url: str, prefix: str):
    said: list[str] = []
    stack = asyncio.run(start(plan(role("worker", "worker-1")), on_progress=said.append))
    assert (stack.state, stack.kafka, stack.redis, stack.prefix) == ("ready", kafka_address, redis_url, prefix)
    assert [(process.role, process.name, process.http) for process in stack.processes] == [("worker", "worker-1", "127.0.0.1:9")]
    assert (folder / LOGS / "worker-1.log").read_text() == f"words {kafka_address} {redis_url} {prefix}\n"
    assert "starting worker-1" in said
    assert said[-1] == "ready"
    ended = asyncio.run(stop(folder))
    assert ended == [stack.supervisor.pid, stack.processes[0].pid]
    assert not stack.alive()
    assert not (folder / STATE_FILE).exists()


async def test_roles_end_before_the_sink_and_each_is_asked(plan, role, folder: Path, tmp_path: Path):
    await start(plan(role("sink", "sink"), role("dispatcher", "d"), role("worker", "w")), on_progress=silent)
    await stop(folder)
    diary = (tmp_path / "diary").read_text().split()
    assert sorted(diary) == ["d", "sink", "w"]
    assert diary[-1] == "sink"


async def test_a_second_stack_in_the_folder_is_refused_and_the_first_stays(plan, role, folder: Path):
    stack = await start(plan(role("sink", "sink")), on_progress=silent)
    with pytest.raises(ConfigurationError, match=r"already runs in .*headrace down"):
        await start(plan(role("sink", "sink")), on_progress=silent)
    assert read(folder) == stack
    assert len(stack.alive()) == 2


def kill(pid: int | None) -> None:
    """Never pid 0, which is whoever runs these tests."""
    assert pid
    os.kill(pid, signal.SIGKILL)


async def test_a_killed_worker_is_announced_and_restarted_and_the_state_follows(
    plan, role, folder: Path, prefix: str, kafka_address: str, eventually
):
    stack = await start(plan(role("worker", "worker-1"), role("sink", "sink")), on_progress=silent)
    first, telemetry = pid_of(stack, "worker-1"), TopicPartition(Names(prefix).telemetry, 0)
    log = KafkaLog(kafka_address)
    await eventually(lambda: log.partitions(telemetry.topic))
    reader = log.reader("test")
    await reader.start()
    await reader.assign({telemetry: "earliest"})
    kill(pid_of(stack, "sink"))
    await eventually(lambda: pid_of(read(folder), "sink") not in (None, pid_of(stack, "sink")))
    kill(first)

    async def heard() -> list:
        return [record for records in (await reader.read(timeout_ms=100, records_max=10)).values() for record in records]

    records = await eventually(heard)
    assert [record.key for record in records] == [b"worker-1"], "nobody leases to a sink: its death is no news"
    departed = decode_telemetry(records[0].value)
    assert isinstance(departed, Departed)
    assert (departed.role, departed.name, departed.incarnation) == ("worker", "worker-1", 0)
    assert 0 <= records[0].timestamp - departed.at_ms < 2_000
    second = await eventually(lambda: (pid := pid_of(read(folder), "worker-1")) != first and pid)
    assert psutil.pid_exists(second)
    assert [process.restarts for process in read(folder).processes] == [1, 1]
    # What it says of itself once it is ready again is written down, too.
    await eventually(lambda: all(process.http == "127.0.0.1:9" for process in read(folder).processes))
    await reader.close()
    await log.close()


async def test_children_die_with_a_killed_supervisor_and_the_next_start_works(plan, role, folder: Path, eventually):
    stack = await start(plan(role("worker", "worker-1")), on_progress=silent)
    os.kill(stack.supervisor.pid, signal.SIGKILL)
    await eventually(lambda: not stack.alive(), timeout_s=5)
    again = await start(plan(role("worker", "worker-1")), on_progress=silent)
    assert again.supervisor.pid != stack.supervisor.pid
    assert len(again.alive()) == 2


async def test_stop_ends_orphans_but_not_a_stranger_with_a_recorded_pid(plan, role, folder: Path):
    """The supervisor gone from where it was, and its pid and a child's reused: what is still what stack.json says goes, and nothing else."""
    stack = await start(plan(role("worker", "worker-1")), on_progress=silent)
    stranger = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    try:
        os.kill(stack.supervisor.pid, signal.SIGSTOP)
        worker = stack.processes[0]
        reused = structs.replace(worker, name="reused", pid=stranger.pid, created_s=worker.created_s - 3_600)
        write_atomically(folder / STATE_FILE, structs.replace(stack, supervisor=reused, processes=(reused, worker)))
        assert await stop(folder) == [worker.pid]
        assert not worker.is_alive()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
        os.kill(stack.supervisor.pid, signal.SIGKILL)


async def test_a_supervisor_that_hangs_is_ended_by_force_with_all_its_children(plan, role, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("deploy.local.stack.STOP_S_MAX", 0.2)
    stack = await start(plan(role("worker", "worker-1")), on_progress=silent)
    os.kill(stack.supervisor.pid, signal.SIGSTOP)
    assert await stop(folder) == [stack.supervisor.pid, stack.processes[0].pid]
    assert not stack.alive()


async def test_the_ready_file_of_an_earlier_life_does_not_count(tmp_path: Path):
    ready = tmp_path / "ready"
    ready.touch()
    child = Child(ProcessSpec(role="worker", name="w", argv=(sys.executable, "-S", "-c", "input()"), ready=f"file:{ready}"), tmp_path)
    assert not await child.is_ready(), "nothing runs yet"
    await child.start()
    assert not ready.exists()
    child.kill()
    await child.wait()


async def test_a_role_that_cannot_start_ends_the_stack_with_its_last_words(plan, role, folder: Path):
    words = "import sys; sys.exit('the model file is missing')"
    broken = RoleSpec(role="worker", name="worker-1", argv=[sys.executable, "-S", "-c", words, "{ready}"])
    said: list[str] = []
    with pytest.raises(ConfigurationError, match=r"(?s)worker-1 does not start \(exit code 1\).*the model file is missing"):
        await start(plan(broken, role("sink", "sink")), on_progress=said.append)
    assert read(folder) is None
    assert (folder / LOGS / "worker-1.log").read_text().count("missing") == 4, "a few tries, then it gives up"


async def test_a_stack_that_is_never_ready_is_ended_after_its_time(plan, folder: Path):
    waits = RoleSpec(role="worker", name="worker-1", argv=[sys.executable, "-S", "-c", "import time; time.sleep(60)", "{ready}"])
    with pytest.raises(ConfigurationError, match=r"not ready within 1 s \(starting worker-1\)"):
        await start(plan(waits), on_progress=silent, s_max=1.0)
    assert read(folder) is None


async def test_a_stack_ends_with_its_owner(plan, role, folder: Path, eventually):
    owner = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    try:
        stack = await start(plan(role("worker", "worker-1"), owner_pid=owner.pid), on_progress=silent)
    finally:
        owner.kill()
        owner.wait()
    await eventually(lambda: not stack.alive() and read(folder) is None)


async def test_two_processes_of_one_name_are_refused(plan, role):
    with pytest.raises(ConfigurationError, match="two processes have one name"):
        await start(plan(role("worker", "w"), role("sink", "w")), on_progress=silent)


@pytest.mark.usefixtures("local_servers")
async def test_the_whole_stack_with_its_own_servers_starts_mends_itself_and_ends(folder: Path, prefix: str, role, eventually):
    stack = await start(StackPlan(folder=folder, prefix=prefix, roles=[role("dispatcher", "dispatcher-1")]), on_progress=silent)
    assert [process.role for process in stack.processes] == ["kafka", "valkey", "dispatcher"]
    kafka_host, _, kafka_port = stack.kafka.rpartition(":")
    valkey_host, _, valkey_port = stack.redis.removeprefix("redis://").rpartition(":")
    assert kafka_answers(kafka_host, int(kafka_port))
    killed = pid_of(stack, "valkey")
    kill(killed)
    await eventually(lambda: pid_of(read(folder), "valkey") not in (None, killed))
    await eventually(lambda: asyncio.to_thread(valkey_answers, valkey_host, int(valkey_port)))
    now = read(folder)
    assert now is not None
    ended = await stop(folder)
    assert set(ended) == {now.supervisor.pid, *(process.pid for process in now.processes)}
    assert not now.alive()
    assert not kafka_answers(kafka_host, int(kafka_port))

"""stack.json, logs and liveness, without a supervisor."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil
import pytest

from deploy.local import process
from deploy.local.process import Child, ProcessSpec, is_alive, log_tail
from deploy.local.stack import STATE_FILE, Stack, StackProcess, read, stop, write_atomically
from schemas.errors import ConfigurationError


def itself(**changes: object) -> StackProcess:
    fields = {"role": "worker", "name": "w", "pid": os.getpid(), "created_s": psutil.Process().create_time()}
    return StackProcess(**(fields | changes))


def test_what_is_written_is_read_again_with_the_promised_fields(tmp_path: Path):
    stack = Stack(kafka="127.0.0.1:1", redis="redis://127.0.0.1:2", prefix="p", supervisor=itself(), processes=(itself(),))
    write_atomically(tmp_path / STATE_FILE, stack)
    assert read(tmp_path) == stack
    promised = msgspec.json.decode((tmp_path / STATE_FILE).read_bytes())
    assert {"kafka", "redis", "gateway", "prefix", "processes"} <= promised.keys()
    assert {"role", "name", "pid"} <= promised["processes"][0].keys()
    assert [file.name for file in tmp_path.iterdir()] == [STATE_FILE]


def test_no_file_is_no_stack_and_a_foreign_file_is_an_error(tmp_path: Path):
    assert read(tmp_path) is None
    (tmp_path / STATE_FILE).write_text('{"kafka": 1}')
    with pytest.raises(ConfigurationError, match="not a stack's state"):
        read(tmp_path)


def test_alive_means_the_same_process_and_not_a_zombie():
    assert itself().is_alive()
    assert not itself(created_s=psutil.Process().create_time() - 60).is_alive()
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""], stdout=subprocess.PIPE)
    created_s = psutil.Process(ended.pid).create_time()
    assert ended.stdout is not None
    ended.stdout.read()  # returns at its end, and nobody has waited for it yet
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    assert psutil.pid_exists(ended.pid)
    assert not is_alive(ended.pid, created_s)
    ended.communicate()
    assert not is_alive(ended.pid, created_s)


async def test_stop_without_a_stack_ends_nothing_and_a_dead_stack_is_cleaned_up(tmp_path: Path):
    assert await stop(tmp_path) == []
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
    ended.wait()
    gone = itself(pid=ended.pid, created_s=1.0)
    write_atomically(tmp_path / STATE_FILE, Stack(kafka="", redis="", prefix="", supervisor=gone, processes=(gone,)))
    assert await stop(tmp_path) == []
    assert not (tmp_path / STATE_FILE).exists()


def test_a_log_over_its_limit_is_put_aside_once_and_goes_on_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(process, "LOG_BYTES_MAX", 10)
    child = Child(ProcessSpec(role="worker", name="w", argv=("true",)), tmp_path)
    child.limit_log()
    with child.log_file.open("ab") as log:
        log.write(b"x" * 10)
        log.flush()
        child.limit_log()
        assert child.log_file.stat().st_size == 10
        log.write(b"y")
        log.flush()
        child.limit_log()
        log.write(b"after")
    assert child.log_file.read_bytes() == b"after"
    assert (tmp_path / "w.log.1").read_bytes() == b"x" * 10 + b"y"


def test_the_tail_of_a_log_is_its_last_lines(tmp_path: Path):
    file = tmp_path / "w.log"
    assert log_tail(file) == ""
    file.write_text("".join(f"line {number}\n\n" for number in range(5_000)))
    assert log_tail(file, 2) == "line 4998\nline 4999"

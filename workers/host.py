"""What this machine is: its name, its processor, its memory, and what this process holds of it."""

from __future__ import annotations

import platform
from pathlib import Path

import psutil

_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def host_name() -> str:
    """The name under which profiles and telemetry speak of this machine."""
    return platform.node() or "localhost"


def processor_name() -> str:
    """The processor's model name, as the kernel says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip().lower() == "model name" and value.strip():
            return value.strip()
    return platform.processor() or platform.machine() or "processor"


def memory_bytes_max() -> int:
    """What a process may use: the machine's memory, or the control group's limit where that is less."""
    limits = [psutil.virtual_memory().total]
    for file in _CGROUP_LIMITS:
        try:
            text = file.read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():
            limits.append(int(text))
    return min(limits)


def resident_bytes() -> int:
    """Memory that this process holds now."""
    return int(psutil.Process().memory_info().rss)

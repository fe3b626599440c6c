"""Plants a bug: one line of a module's source is another one, in a process of its own, and seeds are run until a checker sees it.

`python planting.py NAME FIRST END` plants the bug of that name (`none`: no bug) and prints what was seen, as JSON.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import msgspec

ROOT = Path(__file__).resolve().parents[2]


class Bug(msgspec.Struct, frozen=True):
    """One line that is wrong. `line` stands in the module exactly once."""

    name: str
    module: str
    line: str
    wrong: str
    checkers: tuple[str, ...]
    """Any of them sees it."""
    scenario: str = "random"
    """Of sim_scenarios.SCENARIOS."""


BUGS = (
    Bug(
        "a credit is not released",
        "broker.policy.lanes",
        "        released = self.orders.pop(order.entry.key, None)",
        "        released = None",
        ("idle",),
    ),
    Bug(
        "the watermark is one too high",
        "broker.policy.watermark",
        "            self.low += 1",
        "            self.low += 2",
        ("watermark",),
    ),
    Bug(
        "the bitmap is off by one",
        "broker.policy.watermark",
        "                at = offset - self._base",
        "                at = offset - self._base + 1",
        ("watermark",),
    ),
    Bug(
        "expiry is checked at arrival only",
        "broker.policy.dispatcher",
        "            expiry.add(entry, entry.deadline_ms)\n            if entry.state",
        "            if entry.state",
        ("outcome", "expiry"),
    ),
    Bug(
        "an attempt is not counted",
        "broker.policy.sending",
        "        entry.attempts += 1",
        "        entry.attempts = max(entry.attempts, 1)",
        ("attempts", "lease"),
    ),
    Bug(
        "an attempt more than is allowed",
        "broker.policy.dispatcher",
        "        if entry.attempts >= self.limits.attempts_max:",
        "        if entry.attempts > self.limits.attempts_max:",
        ("attempts",),
        "hard",
    ),
    Bug(
        "the floor does not limit the choice",
        "broker.policy.pool",
        "        options: Sequence[Option] = lane.options[entry.task][entry.rung]\n        if entry.late",
        "        options: Sequence[Option] = lane.options[entry.task][0]\n        if entry.late",
        ("floor",),
    ),
    Bug(
        "a lease never ends",
        "broker.policy.fleet",
        "            late = [key for key, order in lane.orders.items() if order.lease_until_ms <= now_ms]",
        "            late = []",
        ("lost",),
        "hanging",
    ),
    Bug(
        "an order that came back counts as an attempt that was never made",
        "broker.policy.dispatcher",
        '            self._lost(self.fleet.departed(record), "its worker died", now_ms, commands)',
        '            self._lost(self.fleet.departed(record), "its worker died", now_ms, commands, counted=False)',
        ("attempts", "lease"),
    ),
    Bug(
        "an earlier life of a worker is taken for the present one",
        "broker.policy.fleet",
        "        if lane is None or report.incarnation > lane.incarnation or report.accelerator",
        "        if lane is None or report.accelerator",
        ("hosting", "lost"),
        "restarting",
    ),
    Bug(
        "a batch is larger than its limit",
        "workers.policy.batcher",
        "            if grown > rows_max or",
        "            if grown > 2 * rows_max or",
        ("batch",),
        "crowded",
    ),
    Bug(
        "more is loaded than fits",
        "workers.policy.hosting",
        "        return not self._memory_bytes_max or self._used() + wanted.memory_bytes <= self._memory_bytes_max",
        "        return True",
        ("memory",),
    ),
    Bug(
        "an id that comes again is another request",
        "broker.policy.dispatcher",
        "            if key in live or key in known:",
        "            if key in live and key in known:",
        ("waste", "lease", "outcome", "attempts"),
    ),
    Bug(
        "an answer that was read is forgotten",
        "broker.policy.dispatcher",
        "        self._recent.add(event.keys)",
        "        pass",
        ("waste",),
    ),
    Bug(
        "an expiry waits for the worker too long",
        "broker.policy.settings",
        "    expiry_grace_ms: float = 6.0",
        "    expiry_grace_ms: float = 600.0",
        ("expiry",),
    ),
    Bug(
        "the planner's epochs stand still",
        "scaler.policy.control",
        "            epoch=self.plan.epoch + 1,",
        "            epoch=max(self.plan.epoch, 1),",
        ("epoch",),
    ),
    Bug(
        "a join goes on without its last row",
        "graphs.fanout",
        "    if rows.scopes and not (",
        "    if len(rows.scopes) > 1 and not (",
        ("join",),
        "graph",
    ),
    Bug(
        "a join counts twice",
        "graphs.fanout",
        "        rows.accuracy += accuracy",
        "        rows.accuracy += 2 * accuracy",
        ("floor",),
        "graph",
    ),
)


class Planted(MetaPathFinder, Loader):
    """Finds one module, and loads it with the wrong line."""

    def __init__(self, bug: Bug) -> None:
        self._bug = bug
        self.planted = False

    def find_spec(self, fullname: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None) -> ModuleSpec | None:
        return importlib.util.spec_from_loader(fullname, self) if fullname == self._bug.module else None

    def exec_module(self, module: ModuleType) -> None:
        bug = self._bug
        path = ROOT / f"{bug.module.replace('.', '/')}.py"
        source = path.read_text()
        assert source.count(bug.line) == 1, f"{bug.module} has this line {source.count(bug.line)} times: {bug.line!r}"
        exec(compile(source.replace(bug.line, bug.wrong), str(path), "exec"), module.__dict__)
        self.planted = True


def seen_by(bug: Bug | None, seeds: Sequence[int]) -> dict[str, object]:
    """Run seeds until the checkers see something."""
    finder = Planted(bug) if bug is not None else None
    if finder is not None:
        assert bug is not None
        assert bug.module not in sys.modules
        sys.meta_path.insert(0, finder)
    from sim_scenarios import SCENARIOS, run_checked

    assert finder is None or finder.planted, "the module is not part of what runs"
    found: list[str] = []
    for seed in seeds:
        for make in [SCENARIOS[bug.scenario]] if bug is not None else SCENARIOS.values():
            found += [f"{violation.checker}: {violation.what}" for violation in run_checked(make(seed), seed)[1]]
        if found and bug is not None:
            return {"seed": seed, "checkers": sorted({violation.partition(":")[0] for violation in found}), "first": found[0]}
    return {"seed": None, "checkers": sorted({violation.partition(":")[0] for violation in found}), "first": found[0] if found else ""}


if __name__ == "__main__":
    name, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    wanted = next((bug for bug in BUGS if bug.name == name), None)
    assert wanted is not None or name == "none", f"no bug {name!r}"
    sys.stdout.write(json.dumps(seen_by(wanted, range(first, last))) + "\n")

"""Which canaries run and how they stand: folds catalog, commands, answers and feedback, and says what to write. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import msgspec

from graphs.canary import CANDIDATE, HOLD, PROMOTE, ROLLBACK, STABLE, Decision, Judge, first_step
from graphs.canary_arms import INSIDE, Arms, arms, canaries, with_percent
from graphs.steps import part
from schemas.alerts import INFO, Alert
from schemas.canary import PROMOTED, ROLLED_BACK, RUNNING, CanaryCommand, CanaryStatus, JudgeState, Phase, Weighed
from schemas.catalog import EndpointSpec
from schemas.feedback import Feedback, Labels, agrees
from schemas.graph import CanaryNode
from schemas.terminal import COMPLETED, REJECTED, TerminalHead

ANSWERS_KEPT_MAX = 10_000
"""Answers of each canary that wait for their pair or their label."""
Key = tuple[str, str]
"""(endpoint, path of the canary node)."""


class Written(msgspec.Struct, frozen=True):
    """Something to write: the endpoint's record with the new share (None: it stays), and how the canary stands."""

    endpoint: EndpointSpec | None
    status: CanaryStatus


class _Change(msgspec.Struct, frozen=True):
    """What a canary comes to, and why; `command` is the offset of the command that asked for it."""

    percent: float
    phase: Phase
    reason: str
    evidence: tuple[Weighed, ...] = ()
    command: int = -1


class Watch:
    """One canary that runs."""

    def __init__(self, node: CanaryNode, told: Arms, revision: int, judge: Judge) -> None:
        self.node, self.arms, self.revision, self.judge = node, told, revision, judge
        self.offsets: dict[str, int] = {}
        self.answers: OrderedDict[str, tuple[str, Labels]] = OrderedDict()
        """What clients were answered, by request: waits for its label, and for its pair."""
        self.shadows: OrderedDict[str, tuple[str, Labels]] = OrderedDict()
        self.labelled: set[str] = set()
        """Of `answers`: the first label counts, as a sequential test takes nothing back."""
        self.alerted = ""
        """What a detector found, where that takes the candidate back."""
        self.reason = ""
        self.unattributed = 0
        """Answers whose path does not tell the arm."""

    def chosen(self, path: str, answer: TerminalHead) -> str | None:
        """The arm of a request that ended before anything of it ran: as the dispatcher chose it, where that can be told from its id.

        Left out, the expired requests of a slow candidate would count for nobody.
        """
        if answer.outcome in (COMPLETED, REJECTED) or self.node.sticky != "id" or INSIDE in path:
            return None
        return CANDIDATE if part(path, answer.id) < self.node.percent / 100.0 else STABLE

    def remember(self, request_id: str, arm: str, labels: Labels, *, shadow: bool) -> None:
        """Keep an answer; compare it where the other arm has answered the same request, whichever of the two is read first."""
        mine, others = (self.shadows, self.answers) if shadow else (self.answers, self.shadows)
        if request_id in mine:
            return
        mine[request_id] = (arm, labels)
        other = others.get(request_id)
        if other is not None and other[0] != arm:
            self.judge.pair(agreed=other[1] == labels)
        while len(mine) > ANSWERS_KEPT_MAX:
            self.labelled.discard(mine.popitem(last=False)[0])


class CanaryBook:
    """All canaries of an installation, as whoever leads sees them. `by` is the leader's name."""

    def __init__(self, by: str) -> None:
        self._by = by
        self._leading = False
        self.endpoints: dict[str, EndpointSpec] = {}
        self.known: dict[Key, CanaryStatus] = {}
        self.watches: dict[Key, Watch] = {}
        self._commands: dict[str, tuple[int, CanaryCommand]] = {}
        self._echoes: list[Written] = []
        self.problems: list[str] = []
        """What could not be done, for the log; whoever logs it empties the list."""

    def lead(self, *, leading: bool) -> None:
        """Leadership came or went; a new leader goes on from the standings that the last one wrote."""
        if leading != self._leading:
            self._leading = leading
            self.watches.clear()
            if leading:
                for name in self.endpoints:
                    self._align(name)

    def endpoint(self, name: str, spec: EndpointSpec | None) -> None:
        """A record of the catalog."""
        if spec is None:
            self.endpoints.pop(name, None)
        else:
            self.endpoints[name] = spec
        self._align(name)

    def status(self, status: CanaryStatus) -> None:
        """A standing, of this process or another one."""
        key = (status.endpoint, status.node)
        before = self.known.get(key)
        if before is not None and before.command > status.command:
            status = msgspec.structs.replace(status, command=before.command)
        self.known[key] = status
        if status.by != self._by and self._leading:
            if status.phase != RUNNING:
                # Said once more: a standing of ours may have been written after it, by a leader that did not know of it yet.
                self._echoes.append(Written(None, msgspec.structs.replace(status, by=self._by)))
            if status.phase != RUNNING or status.judge is None:
                self.watches.pop(key, None)
            self._align(status.endpoint)

    def command(self, endpoint: str, offset: int, command: CanaryCommand) -> None:
        """A command; carried out at the next step, by the leader, once."""
        self._commands[endpoint] = (offset, command)

    @property
    def compares(self) -> bool:
        """Whether what answers say matters, and not only how they ended."""
        return any(watch.node.guardrails.agreement is not None or watch.node.guardrails.accuracy is not None for watch in self.watches.values())

    def start_offsets(self) -> dict[str, int]:
        """From where answers must be read again, by `topic:partition`: the least that any canary has counted up to."""
        found: dict[str, int] = {}
        for watch in self.watches.values():
            for place, offset in watch.offsets.items():
                found[place] = min(found.get(place, offset), offset)
        return found

    def answer(self, place: str, offset: int, answer: TerminalHead, labels: Labels | None) -> None:
        """A terminal record of {p}.responses."""
        for key, watch in self._due(place, offset):
            if answer.endpoint != key[0]:
                continue
            arm = watch.arms.of(_stages(answer)) or watch.chosen(key[1], answer)
            if arm is None:
                watch.unattributed += 1
                continue
            watch.judge.observe(arm, answer.outcome, float(answer.finished_ms - answer.received_ms))
            if labels is not None and answer.outcome == COMPLETED:
                watch.remember(answer.id, arm, labels, shadow=False)

    def shadow(self, place: str, offset: int, answer: TerminalHead, labels: Labels | None) -> None:
        """A record of {p}.tap.responses: the other arm's answer to a request, where it was run as a shadow; it counts for agreement alone."""
        for key, watch in self._due(place, offset):
            arm = watch.arms.of(_stages(answer)) if answer.endpoint == key[0] else None
            if arm is not None and labels is not None and answer.outcome == COMPLETED:
                watch.remember(answer.id, arm, labels, shadow=True)

    def feedback(self, place: str, offset: int, request_id: str, feedback: Feedback) -> None:
        """What an answer should have been."""
        for _, watch in self._due(place, offset):
            found = watch.answers.get(request_id)
            correct = None if found is None else agrees(feedback, found[1])
            if found is not None and correct is not None and request_id not in watch.labelled:
                watch.labelled.add(request_id)
                watch.judge.label(found[0], correct=correct)

    def alert(self, place: str, offset: int, alert: Alert) -> None:
        """What a detector found: it cannot tell the arms apart, so that it is for whoever would rather go back once too often."""
        for key, watch in self._due(place, offset):
            if watch.node.alerts and alert.endpoint == key[0] and alert.severity != INFO:
                watch.alerted = f"{alert.source} alerts ({alert.kind}): {alert.message}"

    def step(self, now_ms: float) -> list[Written]:
        """Carry out commands, and decide on every canary. What it returns counts as written."""
        if not self._leading:
            return []
        echoes, self._echoes = self._echoes, []
        written = echoes + [change for endpoint in list(self._commands) if (change := self._obey(endpoint, now_ms)) is not None]
        for key in list(self.watches):
            watch = self.watches[key]
            decision = Decision(ROLLBACK, watch.alerted, 0.0) if watch.alerted else watch.judge.decide()
            if decision.action == HOLD:
                watch.reason = decision.reason
            else:
                written.append(self._carry_out(key, decision, now_ms))
        return written

    def standings(self, now_ms: float) -> list[CanaryStatus]:
        """How every running canary stands now, for its successor and for `headrace canary status`."""
        return [self._standing(key, watch, now_ms) for key, watch in self.watches.items()]

    def _due(self, place: str, offset: int) -> list[tuple[Key, Watch]]:
        """The canaries that have not counted this record; they have from now on."""
        due = [(key, watch) for key, watch in self.watches.items() if offset >= watch.offsets.get(place, 0)]
        for _, watch in due:
            watch.offsets[place] = offset + 1
        return due

    def _align(self, endpoint: str) -> None:
        """Watch what runs by the catalog, and nothing else."""
        if not self._leading:
            return
        spec = self.endpoints.get(endpoint)
        nodes = canaries(spec.graph) if spec is not None and spec.graph is not None else {}
        for key in [key for key in self.watches if key[0] == endpoint and key[1] not in nodes]:
            del self.watches[key]
        for path, node in nodes.items():
            self._align_node((endpoint, path), node)

    def _align_node(self, key: Key, node: CanaryNode) -> None:
        spec, status, watch = self.endpoints[key[0]], self.known.get(key), self.watches.get(key)
        over = status is not None and status.phase == PROMOTED and status.percent == node.percent
        if node.percent <= 0.0 or (over and watch is None):
            self.watches.pop(key, None)
            return
        assert spec.graph is not None
        told = arms(spec.graph, key[1])
        if watch is not None and watch.arms == told:
            watch.node = watch.judge.node = node
            if watch.judge.state.percent != node.percent:
                watch.judge.enter(node.percent)
            return
        going_on = status is not None and status.phase == RUNNING and status.judge is not None and watch is None
        # A copy: a standing that was read stays as it was.
        judge = Judge(node, _copied(status.judge) if going_on and status is not None else None)
        if judge.state.percent != node.percent or not judge.state.step:
            judge.enter(node.percent)
        self.watches[key] = made = Watch(node, told, spec.revision, judge)
        made.offsets = dict(status.offsets) if going_on and status else {}

    def _obey(self, endpoint: str, now_ms: float) -> Written | None:
        offset, command = self._commands.pop(endpoint)
        spec = self.endpoints.get(endpoint)
        nodes = canaries(spec.graph) if spec is not None and spec.graph is not None else {}
        path = command.node or (next(iter(nodes)) if len(nodes) == 1 else "")
        if path not in nodes:
            there = f"canaries {', '.join(nodes)}: name one as `node`" if nodes else "no canary"
            self.problems.append(f"{command.action} of endpoint {endpoint!r}: it has {there}")
            return None
        key = (endpoint, path)
        if offset <= (self.known[key].command if key in self.known else -1):
            return None
        asked = asked_percent(command, nodes[path])
        if asked is None:
            self.problems.append(f"set of endpoint {endpoint!r}: `percent` is missing")
            return None
        phases: dict[str, Phase] = {"promote": PROMOTED, "rollback": ROLLED_BACK}
        phase: Phase = phases.get(command.action, RUNNING if asked > 0.0 else ROLLED_BACK)
        if command.action == "start":
            self.watches.pop(key, None)
            self.known.pop(key, None)
        return self._write(key, _Change(asked, phase, command.reason or f"{command.action} was asked for", command=offset), now_ms)

    def _carry_out(self, key: Key, decision: Decision, now_ms: float) -> Written:
        phases: dict[str, Phase] = {PROMOTE: PROMOTED, ROLLBACK: ROLLED_BACK}
        phase = phases.get(decision.action, RUNNING)
        return self._write(key, _Change(decision.percent, phase, decision.reason, evidence=decision.evidence), now_ms)

    def _write(self, key: Key, change: _Change, now_ms: float) -> Written:
        spec = self.endpoints[key[0]]
        assert spec.graph is not None
        changed = msgspec.structs.replace(spec, graph=with_percent(spec.graph, key[1], change.percent))
        before = self.known.get(key)
        if change.phase != RUNNING:
            self.watches.pop(key, None)
        status = CanaryStatus(
            endpoint=key[0],
            node=key[1],
            phase=change.phase,
            percent=change.percent,
            reason=change.reason,
            changed_ms=int(now_ms),
            evidence=change.evidence,
            command=max(change.command, before.command if before is not None else -1),
            by=self._by,
        )
        self.known[key] = status
        self.endpoint(key[0], changed)
        watch = self.watches.get(key)
        if watch is not None:
            status = self.known[key] = msgspec.structs.replace(status, judge=watch.judge.state, offsets=dict(watch.offsets))
        return Written(changed if changed != spec else None, status)

    def _standing(self, key: Key, watch: Watch, now_ms: float) -> CanaryStatus:
        before = self.known.get(key)
        return CanaryStatus(
            endpoint=key[0],
            node=key[1],
            phase=RUNNING,
            percent=watch.judge.state.percent,
            reason=watch.reason,
            changed_ms=int(now_ms),
            evidence=watch.judge.decide().evidence,
            judge=watch.judge.state,
            offsets=dict(watch.offsets),
            command=before.command if before is not None else -1,
            by=self._by,
        )


def _copied(state: JudgeState | None) -> JudgeState | None:
    return None if state is None else msgspec.json.decode(msgspec.json.encode(state), type=JudgeState)


def asked_percent(command: CanaryCommand, node: CanaryNode) -> float | None:
    """The share that a command asks for; None where it does not say."""
    fixed: Mapping[str, float | None] = {
        "promote": 100.0,
        "rollback": 0.0,
        "start": first_step(node) if command.percent is None else command.percent,
    }
    return fixed.get(command.action, command.percent)


def _stages(answer: TerminalHead) -> list[str]:
    """What ran, and what failed."""
    failed = [answer.error.stage] if answer.error is not None and answer.error.stage else []
    return [*(step.stage for step in answer.path), *failed]

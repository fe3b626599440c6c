"""Requests that run on a graph: their stages become entries that wait in the pools like any request, until the graph has an answer or none can be."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from broker.policy.endpoint_counts import EndpointCounters
from broker.policy.entry import SHADOW_PRIORITY, Answer, Commands, Entry, Send, State, Tap
from broker.policy.fan_out import FanOut
from broker.policy.fleet import Fleet
from broker.policy.fusion import Fusion
from broker.policy.graph_costs import GraphCosts
from broker.policy.graph_request import GraphRequest, StageJob, event_of, job_of, rows_of, stage_entry
from broker.policy.graphs import Compiled
from broker.policy.lanes import Order
from broker.policy.promises import Promises
from broker.policy.settings import DispatcherSettings
from graphs.commands import Cancel, Command, Fail, Finish, RunStage, ShadowDone, Wake
from graphs.compiled import Graph
from graphs.events import Answered, Event, StageFailed, Started, Woken
from graphs.line import Line
from graphs.planning import plan_stage
from graphs.run import Run
from graphs.second_opinion import SecondOpinion, is_sampled
from graphs.state import ROUNDING
from graphs.tensor import Tensor
from schemas.errors import RequestError
from schemas.stage import StageRecord
from schemas.telemetry import Returned
from schemas.terminal import COMPLETED, EXPIRED, FAILED
from schemas.work import INSTANCE_MARK, order_name

Refusal = tuple[str, str]
Opened = tuple[Mapping[str, Any], Mapping[str, Tensor]]
OpenRequest = Callable[[object, Graph], Opened]
"""(payload, graph) -> the request's parameters and tensors that the graph looks at. Raises RequestError."""
Finished = Callable[[Answer, Commands], None]
SHADOW_GRACE_MS = 1_000.0
SECOND_OPINIONS_MAX = 256
"""That wait or run at once: beyond it answers are not compared."""


class GraphRequests:
    """All of one dispatcher. Answers go through `finished`, so that there is one place that ends requests."""

    def __init__(self, fleet: Fleet, settings: DispatcherSettings, open_request: OpenRequest, finished: Finished, counts: EndpointCounters) -> None:
        self._fleet, self._settings, self._counts = fleet, settings, counts
        self._open_request, self._finished = open_request, finished
        self.fan_out = FanOut()
        self._requests: dict[bytes, GraphRequest] = {}
        self._promises = Promises(fleet, self._requests)
        self._costs = GraphCosts(fleet, settings, self.fan_out, self._promises)
        self._fusion = Fusion(fleet, settings, self._costs)
        self.held_bytes = 0
        """What stages have given to requests that are not finished."""
        self._second_opinions = 0
        self._wakes: list[tuple[float, bytes]] = []
        self._finals: dict[bytes, bytes] = {}
        """By request: the order whose worker writes the terminal record."""

    def __len__(self) -> int:
        return len(self._requests)

    def running(self) -> dict[str, int]:
        """Requests by `endpoint@revision`."""
        counts: dict[str, int] = {}
        for request in self._requests.values():
            if not isinstance(request.run, SecondOpinion):
                name = f"{request.endpoint}@{request.revision}"
                counts[name] = counts.get(name, 0) + 1
        return counts

    def stage_topics(self) -> set[tuple[str, str]]:
        """(endpoint, stage as topics name it) of all that runs, whatever the catalog says by now."""
        graphs = {(request.endpoint, request.revision): request.graph for request in self._requests.values()}
        return {(endpoint, topic) for (endpoint, _), graph in graphs.items() for topic in graph.topics}

    # -- a request's life

    def start(
        self, entry: Entry, compiled: Compiled, replayed: Sequence[tuple[StageRecord, bytes]], now_ms: float, commands: Commands
    ) -> Refusal | None:
        """Begin; a refusal where its first stages cannot be run as asked. `replayed`: stage records of an earlier owner."""
        assert compiled.graph is not None
        graph, revision = compiled.graph if replayed else self._costs.affordable(compiled.graph), compiled.revision
        assert entry.floor is not None
        try:
            fields, tensors = self._open_request(entry.payload, graph)
        except RequestError as error:
            return error.code, str(error)
        run = self._run(entry, graph, entry.floor, now_ms)
        request = GraphRequest(entry, graph, revision, run)
        first = run.advance(Started(fields, tensors), now_ms)
        if not replayed:
            refusal = self._costs.judge(run, [command for command in first if isinstance(command, RunStage)], entry, now_ms)
            if refusal is not None:
                return refusal
        entry.state = State.RUNNING
        self._requests[entry.key] = request
        self._promises.promise(request, self._costs.work_of(entry, graph))
        self._carry_out(request, first, now_ms, commands)
        for record, value in replayed:
            entry.handed_out = True
            self.observe(entry.key, record, value, now_ms, commands)
        return None

    def _run(self, entry: Entry, graph: Graph, floor: float, now_ms: float) -> Run | Line:
        if graph.line is not None:
            return Line(graph, floor)
        reserve_ms = self._costs.reserve_ms(entry.endpoint, graph, entry.rows, entry.deadline_ms - now_ms)
        return Run(graph, entry.key.decode(), entry.tenant, floor, entry.deadline_ms, reserve_ms=reserve_ms)

    def observe(self, key: bytes, record: StageRecord, value: bytes, now_ms: float, commands: Commands) -> None:
        """A stage record was read."""
        order = self._fleet.orders.pop(_order_key(key, record.instance), None)
        if order is not None:
            order.lane.answered(order, now_ms)
            self.order_lost(order.entry)
        request = self._requests.get(key)
        if request is None or request.revision != record.revision:
            return
        fused = request.fused
        if fused is not None and record.fused and record.worker == fused.lane.worker:
            fused.on_after(record.instance)
        stage = request.stages.pop(record.instance, None)
        if stage is not None:
            self._let_go(stage)
        request.held_bytes += len(value)
        self.held_bytes += len(value)
        if record.error_code == "deadline_exceeded" and stage is not None and self._again(request, stage, now_ms):
            return
        found = request.run.advance(event_of(record, value), now_ms)
        if request.graph.line is None:
            self._counts.stage_done(request.entry, record, stage.rows if stage is not None else 1, found)
        self._carry_out(request, found, now_ms, commands)

    def final_order(self, key: bytes) -> Order | None:
        """The order whose worker writes the terminal record of this request, where it is out; its answer has come."""
        return self._fleet.orders.get(self._finals.pop(key, b""))

    def order_lost(self, entry: Entry) -> None:
        """A stage's order is off the books: no terminal record will end it."""
        if entry.root is not None and self._finals.get(entry.root.key) == entry.key:
            del self._finals[entry.root.key]

    def sent(self, send: Send) -> None:
        """A stage goes to a worker in this variant: what is planned beside it may count on that, and the worker may go on after it."""
        request = job_of(send.entry).request
        if request.graph.line is None:
            request.run.sent(send.entry.instance, send.variant, send.accuracy)
        else:
            self._fusion.sent(request, self._fleet.orders[send.entry.key], send.accuracy)

    def handed_back(self, record: Returned) -> None:
        """A worker hands back what it had gone on with, perhaps before the record was read that says that it had."""
        for order in record.ids:
            request_id, _, instance = order.partition(INSTANCE_MARK)
            request = self._requests.get(request_id.encode())
            if request is not None and request.fused is not None and request.fused.lane.worker == record.worker:
                request.fused.cut(instance)

    def lost(self, entry: Entry, now_ms: float, commands: Commands) -> None:
        """A stage has used up its attempts."""
        request = self._request_of(entry)
        if request is not None:
            request.stages.pop(entry.instance, None)
            message = f"{entry.attempts} attempts were lost with their workers"
            self._advance(request, StageFailed(entry.instance, "attempts_exhausted", message), now_ms, commands)

    def retry(self, entry: Entry, now_ms: float) -> None:
        """A stage's order was lost, or what it waited in is no more: plan what is left of its request, and wait again."""
        request = self._request_of(entry)
        if request is None:
            entry.state = State.DONE
        elif not self._again(request, entry, now_ms):
            self._drop(request, entry)

    def unsendable(self, entry: Entry, now_ms: float) -> None:
        """No lane can answer the stage in time: a faster combination may, else the request is dropped early (Loki, opportunistic rerouting)."""
        before = entry.rung, entry.deadline_ms
        self.retry(entry, now_ms)
        request = self._request_of(entry)
        if entry.state == State.WAITING and request is not None and (entry.rung >= before[0] and entry.deadline_ms <= before[1]):
            self._let_go(entry)
            self._drop(request, entry)

    def due(self, now_ms: float, commands: Commands) -> None:
        """Wake those that wanted to be."""
        while self._wakes and self._wakes[0][0] <= now_ms:
            _, key = heapq.heappop(self._wakes)
            request = self._requests.get(key)
            if request is None:
                continue
            if request.entry.state == State.DONE:
                self._forget(request)
            else:
                self._advance(request, Woken(), now_ms, commands)

    def next_wake_ms(self) -> float | None:
        return self._wakes[0][0] if self._wakes else None

    def ended(self, entry: Entry, now_ms: float, commands: Commands) -> None:
        """The request has its terminal record: nothing of it goes on but shadows, and those not beyond its deadline."""
        request = self._requests.get(entry.key)
        if request is None:
            return
        if request.run.copies:
            self._advance(request, Answered(), now_ms, commands)
        if not request.run.copies or now_ms >= entry.deadline_ms:
            self._forget(request)
        else:
            heapq.heappush(self._wakes, (entry.deadline_ms + SHADOW_GRACE_MS, entry.key))

    def compare(self, entry: Entry, variant: str, now_ms: float, commands: Commands) -> None:
        """A variant completed a request without a graph: where that is sampled, the most accurate one is asked too, and has as long as it had."""
        asked = self._fleet.graphs.second_opinions.get(entry.endpoint)
        if asked is None or variant == asked.reference or not is_sampled(entry.key.decode(), asked.share):
            return
        if entry.key in self._requests or self._second_opinions >= SECOND_OPINIONS_MAX:
            return
        graph = asked.compiled.graph
        assert graph is not None
        deadline_ms = int(now_ms) + entry.deadline_ms - entry.received_ms
        # A copy: the request itself is off the books in a moment, with all that it holds.
        root = msgspec.structs.replace(entry, deadline_ms=deadline_ms, state=State.DONE, attempts=0, admitted=False, counted=False)
        run = SecondOpinion(graph)
        request = self._requests[entry.key] = GraphRequest(root, graph, asked.compiled.revision, run)
        self._second_opinions += 1
        heapq.heappush(self._wakes, (deadline_ms + SHADOW_GRACE_MS, entry.key))
        self._advance(request, Started({}, {}), now_ms, commands)

    def revoked(self, entry: Entry) -> None:
        """The request is another dispatcher's from now on."""
        request = self._requests.get(entry.key)
        if request is not None:
            for stage in request.stages.values():
                self._fleet.take_back(stage.key)
            self._forget(request)

    # -- within

    def _request_of(self, entry: Entry) -> GraphRequest | None:
        assert entry.root is not None
        request = self._requests.get(entry.root.key)
        return request if request is not None and request.entry is entry.root else None

    def _advance(self, request: GraphRequest, event: Event, now_ms: float, commands: Commands) -> None:
        self._carry_out(request, request.run.advance(event, now_ms), now_ms, commands)

    def _carry_out(self, request: GraphRequest, found: Sequence[Command], now_ms: float, commands: Commands) -> None:
        if request.graph.line is None:
            self.fan_out.learn(request.endpoint, found)
        for command in found:
            if isinstance(command, RunStage):
                self._run_stage(request, command, now_ms)
            elif isinstance(command, Finish):
                self._finish(request, command, now_ms, commands)
            elif isinstance(command, Fail):
                self._end(Answer(request.entry, FAILED, command.code, command.message, stage=command.stage), commands)
            elif isinstance(command, Wake):
                heapq.heappush(self._wakes, (command.at_ms, request.entry.key))
            elif isinstance(command, Cancel):
                for instance in command.instances:
                    stage = request.stages.pop(instance, None)
                    if stage is not None:
                        self._let_go(stage)
            else:
                self._tap(request, command, now_ms, commands)

    def _finish(self, request: GraphRequest, command: Finish, now_ms: float, commands: Commands) -> None:
        entry = request.entry
        request.whole = True
        if command.accuracy < (entry.floor or 0.0) - ROUNDING:
            # Two plans have met, one of them made before a restart.
            message = f"the stages that were computed reach an accuracy of {command.accuracy:.4f} only"
            self._end(Answer(entry, FAILED, "infeasible_accuracy", message), commands)
        elif now_ms > entry.deadline_ms:
            self._end(Answer(entry, EXPIRED, "deadline_exceeded", "its last stage ended after the deadline"), commands)
        else:
            self._end(Answer(entry, COMPLETED, tensors=command.tensors, accuracy=command.accuracy, path=command.path), commands)

    def _end(self, answer: Answer, commands: Commands) -> None:
        if answer.entry.state == State.RUNNING:
            self._finished(answer, commands)

    def _tap(self, request: GraphRequest, command: ShadowDone, now_ms: float, commands: Commands) -> None:
        commands.taps.append(Tap(request.entry, command.tensors, command.accuracy, command.path, command.node, request.revision))
        if request.entry.state == State.DONE and request.run.idle:
            self._forget(request)

    def _run_stage(self, request: GraphRequest, command: RunStage, now_ms: float) -> None:
        if request.dropped and not command.shadow:
            return
        entry = self._fusion.begun(request, command, now_ms)
        if entry is not None:
            self._begun(request, entry, final=command.final)
            return
        root = request.entry
        entry = stage_entry(request, command.instance, rows_of(command, root), self._fleet.graphs.ladder_of(command.stage))
        if command.shadow:
            entry.priority = SHADOW_PRIORITY
        entry.bytes = sum(len(tensor.data) for tensor in command.tensors.values())
        entry.payload = StageJob(request, command, root.payload, now_ms)
        if request.graph.line is None and not command.shadow:
            # On a line every stage gets the rows of the request: there is nothing to learn.
            self._counts.stage_started(entry)
        if not self._place(request, entry, now_ms):
            self._drop(request, entry)

    def _begun(self, request: GraphRequest, entry: Entry, *, final: bool) -> None:
        """A worker has gone on with it."""
        request.stages[entry.instance] = entry
        if final:
            self._finals[request.entry.key] = entry.key
        entry.work_ms = self._cheapest_ms(entry)
        self._promises.place(request, entry)

    def _cheapest_ms(self, entry: Entry) -> float:
        """Work of a stage at the cheapest variant that will do."""
        cheapest = self._fleet.pool(entry.task).cheapest(entry.task, entry.rung)
        return cheapest.row_ms * entry.rows + self._settings.overhead_ms if cheapest is not None else 0.0

    def _again(self, request: GraphRequest, entry: Entry, now_ms: float) -> bool:
        return not request.dropped and self._place(request, entry, now_ms)

    def _place(self, request: GraphRequest, entry: Entry, now_ms: float) -> bool:
        """Plan the rest of the path with the time that is really left, and let the stage wait; False where nothing can make it."""
        job = job_of(entry)
        fleet, run = self._fleet, request.run
        request.fused = None
        ladder = fleet.ladders[entry.task]
        if not ladder.keys:
            return False  # the catalog has lost the stage's task
        left_ms = request.entry.deadline_ms - now_ms
        if job.command.shadow:
            entry.rung, entry.deadline_ms = 0, request.entry.deadline_ms
        else:
            assert not isinstance(run, SecondOpinion)
            estimates = self._costs.of(request.endpoint, request.graph, request.entry.rows)
            plan = plan_stage(run, entry.instance, estimates, left_ms)
            if plan is None:
                return False
            entry.rung = ladder.least(plan.accuracy_min)
            entry.deadline_ms = int(request.entry.deadline_ms - plan.rest_ms)
        pool = fleet.pool(entry.task)
        request.stages[entry.instance] = entry
        if job.command.final:
            self._finals[request.entry.key] = entry.key
        if not job.command.shadow:
            entry.work_ms = self._cheapest_ms(entry)
            if not entry.attempts:
                self._promises.place(request, entry)
            if not job.command.stage.over:
                pool.arrived(entry)  # the rows of a fan-out come all at once: that says nothing about what will come next
        pool.waiting.push(entry)
        return True

    def _drop(self, request: GraphRequest, entry: Entry) -> None:
        """Early drop: nothing of the request is computed any more; its deadline answers it."""
        entry.state = State.DONE
        request.stages.pop(entry.instance, None)
        if entry.priority == SHADOW_PRIORITY:
            return
        request.dropped = True
        self._promises.forget(request)
        for instance, stage in list(request.stages.items()):
            if stage.state == State.WAITING:
                self._let_go(stage)
                del request.stages[instance]

    def _let_go(self, stage: Entry) -> None:
        if stage.state == State.WAITING:
            self._fleet.pool(stage.task).waiting.forget(stage, State.DONE)
        stage.state = State.DONE

    def _forget(self, request: GraphRequest) -> None:
        for stage in request.stages.values():
            self._let_go(stage)
        request.stages.clear()
        request.fused = None
        self._promises.forget(request)
        self.held_bytes -= request.held_bytes
        request.held_bytes = 0
        if self._requests.pop(request.entry.key, None) is request and isinstance(request.run, SecondOpinion):
            self._second_opinions -= 1
        if self._finals.get(request.entry.key) not in self._fleet.orders:
            self._finals.pop(request.entry.key, None)


def _order_key(key: bytes, instance: str) -> bytes:
    return order_name(key.decode(), instance).encode()


def opaque(_payload: object, _graph: Graph) -> Opened:
    """Where nobody can decode requests, graphs see nothing of them."""
    return {}, {}

"""One term of leadership: the control policy with what it was told since, begun from the log and not from nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import partial

import msgspec
import structlog

from broker.log import Log, TopicPartition
from scaler.control_loop_feed import Told
from scaler.control_loop_settings import LoopSettings
from scaler.control_loop_state import ControlState
from scaler.control_loop_sweeping import StageSweeper
from scaler.lag import PartitionLag, lag_by_endpoint
from scaler.policy.control import ControlPolicy
from scaler.policy.forecasting.forecaster import create_forecaster
from scaler.policy.kept_costs import known
from schemas.errors import LogUnavailable
from schemas.names import ACCELERATORS, Names
from schemas.telemetry import Departed, DispatcherReport, ScalerReport, WorkerReport, decode_reported

logger = structlog.get_logger()
SETTLED = ("ready", "failed")
REPLAY_READS = 2_000
UNREADABLE_LOGGED = 5


class Term:
    """What a leader knows; a new one is made whenever leadership was in doubt."""

    def __init__(self, settings: LoopSettings, state: ControlState, log: Log, names: Names, *, name: str, now_ms: float, lanes: int) -> None:
        """`lanes`: of each class."""
        first = not state.plan.bindings
        control = msgspec.structs.replace(settings.control, name=name, lanes_per_class=lanes)
        if first:
            control = msgspec.structs.replace(control, warm_up_ms=min(settings.first_warm_up_ms, control.warm_up_ms))
        costs = known(state.costs, state.catalog, control.latency_ms_max)
        self.policy = ControlPolicy(control, partial(create_forecaster, settings.forecast), costs=costs)
        self.sweeper = StageSweeper(log, names, now_ms)
        self.since_ms = now_ms
        self.catalog_version = -1
        self.memory: dict[str, float] = {}
        """What the optimizer wants to find again."""
        self.unreadable = 0
        self.workers: dict[str, WorkerReport] = {}
        self.lane_topics = {accelerator: names.work(accelerator) for accelerator in ACCELERATORS}
        self._name, self._names, self._state = name, names, state
        self._open: dict[str, dict[str, float]] = {}
        """By dispatcher: requests that have not ended, by endpoint."""
        self._measured_epoch = -1
        self._heard_to = -1
        self._at_ms = 0.0
        self.follow_catalog()
        if state.plan.epoch:
            self.policy.observe_plan(state.plan)

    def lanes(self, lanes: int) -> None:
        """Each class has so many lanes by now."""
        settings = self.policy.settings
        if lanes > settings.lanes_per_class:
            self.policy.settings = msgspec.structs.replace(settings, lanes_per_class=lanes)
            self.policy.ask(f"there are {lanes} lanes now")

    def follow_catalog(self) -> None:
        """Take the catalog over where it has changed."""
        if self.catalog_version != self._state.catalog_version:
            self.catalog_version = self._state.catalog_version
            self.policy.observe_catalog(self._state.catalog)

    def take(self, records: Sequence[Told], now_ms: float, *, past: bool = False) -> None:
        """Take telemetry in; what was taken already is passed over. Of the `past`, the records say when it was."""
        for told in records:
            if told.offset <= self._heard_to:
                continue
            self._heard_to = told.offset
            at_ms = min(max(float(told.timestamp_ms), self._at_ms), now_ms) if past else now_ms
            self._at_ms = max(self._at_ms, at_ms)
            self._take(told, at_ms)

    def _take(self, told: Told, at_ms: float) -> None:
        try:
            report = decode_reported(told.value or b"")
        except msgspec.DecodeError as error:
            self.unreadable += 1
            if self.unreadable <= UNREADABLE_LOGGED:
                logger.warning("telemetry skipped", offset=told.offset, error=str(error))
            return
        if isinstance(report, WorkerReport):
            self.policy.observe_worker(report, at_ms)
            self.workers[report.worker] = report
        elif isinstance(report, DispatcherReport):
            self.policy.observe_dispatcher(report, at_ms)
            self.sweeper.observe(report, at_ms)
            self._open[report.dispatcher] = {name: float(sum(counts.arrived.values()) - counts.ended) for name, counts in report.endpoints.items()}
        elif isinstance(report, Departed):
            self.policy.observe_departed(report, at_ms)
            (self._open if report.role == "dispatcher" else self.workers).pop(report.name, None)
        elif isinstance(report, ScalerReport) and report.scaler != self._name and report.leads_since_ms > self.since_ms:
            logger.warning("another scaler says that it leads", scaler=report.scaler, epoch=report.epoch)

    def observe_lag(self, lags: Sequence[PartitionLag]) -> None:
        """Lag as it was just read."""
        totals: dict[str, float] = {}
        for counts in self._open.values():
            for name, number in counts.items():
                totals[name] = totals.get(name, 0.0) + number
        self.policy.observe_lag(lag_by_endpoint(lags, self._state.catalog, totals, self._names))

    @property
    def accelerators(self) -> set[str]:
        """Classes that have workers."""
        return {report.accelerator for report in self.workers.values()} | {binding.accelerator for binding in self.policy.plan.bindings}

    def notice_measured(self) -> None:
        """Where nobody had measured anything, and now all have: that wants a plan, once."""
        plan = self.policy.plan
        if plan.optimizer or not plan.bindings or plan.epoch == self._measured_epoch:
            return
        reports = [self.workers[binding.worker] for binding in plan.bindings if binding.worker in self.workers]
        settled = all(report.epoch >= plan.epoch and all(variant.state in SETTLED for variant in report.variants.values()) for report in reports)
        if reports and settled and any(variant.latency for report in reports for variant in report.variants.values()):
            self._measured_epoch = plan.epoch
            self.policy.ask("the variants have been measured")


async def read_past(term: Term, log: Log, names: Names, settings: LoopSettings, now_ms: float, client_id: str) -> None:
    """Tell a new term the telemetry of the last moments. Raises LogUnavailable."""
    telemetry = TopicPartition(names.telemetry, 0)
    reader = log.reader(client_id, fetch_wait_ms=settings.read_ms)
    await reader.start()
    try:
        end = (await reader.end_offsets([telemetry]))[telemetry]
        start = await reader.offset_at(telemetry, int(now_ms - settings.replay_ms))
        await reader.assign({telemetry: max(start, end - settings.replay_records_max)})
        past: deque[Told] = deque(maxlen=settings.replay_records_max)
        for _ in range(REPLAY_READS):
            if await reader.position(telemetry) >= end:
                break
            for records in (await reader.read(timeout_ms=settings.read_ms, records_max=5_000)).values():
                past.extend(Told(record.offset, record.timestamp, record.value) for record in records)
        else:
            raise LogUnavailable("the end of the telemetry was not reached")
        term.take(list(past), now_ms, past=True)
    finally:
        await reader.close()

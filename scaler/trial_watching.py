"""Follows telemetry, catalog and plan for a trial, as a stranger: it joins no group, leads nothing and publishes no plan."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

import msgspec
import structlog

from broker.log import Log, TopicPartition, Writer
from scaler.control_loop_state import ControlState
from scaler.optimizers.snapshot import READY, Snapshot
from scaler.policy.control import ControlPolicy
from scaler.policy.control_settings import ControlSettings
from scaler.policy.forecasting.forecaster import create_forecaster
from scaler.policy.trial_demand import TrialDemand
from scaler.trial_comparing import TrialImpossible
from schemas.catalog import Catalog
from schemas.errors import LogUnavailable
from schemas.names import Names
from schemas.telemetry import Departed, DispatcherReport, ScalerReport, WorkerReport, decode_reported

logger = structlog.get_logger()
CLIENT_ID = "headrace-trial"
REPLAY_MS = 30_000
"""Of telemetry, so that rates and forecasts begin with a past."""
READ_MS = 100
RETRY_S = 0.5
LOOK_S = 0.1
WAIT_S_MAX = 20.0
"""Until telemetry says enough for a first snapshot."""


class TrialWatch:
    """What a scaler would know, without being one."""

    def __init__(
        self,
        log: Log,
        names: Names,
        writer: Writer,
        *,
        settings: ControlSettings,
        forecast: str = "ewma",
        now_ms: Callable[[], float] = lambda: time.time() * 1e3,
    ) -> None:
        """`writer`: not written with here."""
        self._names, self.now_ms = names, now_ms
        self.state = ControlState(log, names, writer, name=CLIENT_ID)
        self.policy = ControlPolicy(settings, partial(create_forecaster, forecast))
        self.demand = TrialDemand()
        self.leader: ScalerReport | None = None
        """What whoever leads said last."""
        self._reader = log.reader(CLIENT_ID, fetch_wait_ms=READ_MS)
        self._telemetry = TopicPartition(names.telemetry, 0)
        self._catalog_version = -1
        self._epoch = -1
        self._at_ms = 0.0
        self._dispatchers: set[str] = set()

    @property
    def catalog(self) -> Catalog:
        """As it stands."""
        return self.state.catalog

    async def start(self) -> None:
        """Read what there is of the past. Raises LogUnavailable."""
        await self.state.start()
        self._follow_state()
        await self._reader.start()
        await self._reader.assign({self._telemetry: "earliest"})
        await self._reader.assign({self._telemetry: await self._reader.offset_at(self._telemetry, int(self.now_ms() - REPLAY_MS))})

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            try:
                await self.state.read(timeout_ms=1)
                self._follow_state()
                for records in (await self._reader.read(timeout_ms=READ_MS, records_max=1_000)).values():
                    for record in records:
                        self._take(record.value, float(record.timestamp))
            except LogUnavailable as error:
                logger.warning("the log does not answer", error=str(error))
                await asyncio.sleep(RETRY_S)

    async def close(self) -> None:
        """Stop reading."""
        await self._reader.close()
        await self.state.close()

    def snapshot(self) -> Snapshot:
        """Of this moment."""
        return self.policy.snapshot(self.now_ms())

    async def known(self, stopping: asyncio.Event) -> None:
        """Until a snapshot can be taken. Raises TrialImpossible with what is missing."""
        until_s = time.monotonic() + WAIT_S_MAX
        missing = self.missing()
        while missing and not stopping.is_set():
            if time.monotonic() > until_s:
                raise TrialImpossible(missing)
            await asyncio.sleep(LOOK_S)
            missing = self.missing()

    def missing(self) -> str:
        """What a comparison still lacks, in words; empty: nothing."""
        prefix = self._names.prefix
        if not self.catalog.endpoints:
            return f"the catalog of {prefix!r} has no endpoint: apply some with `headrace apply FILE...`"
        if not self._at_ms:
            return f"no telemetry in {self._names.telemetry}: does a stack run with the prefix {prefix!r}? (`headrace status`)"
        snapshot = self.snapshot()
        if not any(worker.state == READY for worker in snapshot.workers):
            return "no worker says that it is there: `headrace get workers` shows who does"
        if not any(variant.costs for variant in snapshot.variants):
            return "no variant has been measured yet: a scaler has to have workers load some first"
        if not self._dispatchers:
            return "no dispatcher says what is asked: `headrace status` shows who runs"
        return ""

    def _follow_state(self) -> None:
        if self._catalog_version != self.state.catalog_version:
            self._catalog_version = self.state.catalog_version
            self.policy.observe_catalog(self.state.catalog)
        if self._epoch != self.state.plan.epoch:
            self._epoch = self.state.plan.epoch
            self.policy.observe_plan(self.state.plan)

    def _take(self, value: bytes | None, timestamp_ms: float) -> None:
        try:
            report = decode_reported(value or b"")
        except msgspec.DecodeError:
            return  # whoever leads says so in its log
        at_ms = self._at_ms = max(min(timestamp_ms, self.now_ms()), self._at_ms)
        if isinstance(report, WorkerReport):
            self.policy.observe_worker(report, at_ms)
        elif isinstance(report, DispatcherReport):
            self._dispatchers.add(report.dispatcher)
            self.policy.observe_dispatcher(report, at_ms)
            self.demand.observe(report, at_ms)
        elif isinstance(report, Departed):
            self._dispatchers.discard(report.name)
            self.policy.observe_departed(report, at_ms)
        elif isinstance(report, ScalerReport):
            self.leader = report

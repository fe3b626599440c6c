"""The control loop's metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from scaler.lag import PartitionLag
from schemas.plan_journal import PlanDecision

PROPOSED_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class ControlMetrics:
    """On a registry that the caller owns."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.epoch = Gauge("headrace_scaler_epoch", "Epoch of the newest plan", registry=registry)
        self.leads = Gauge("headrace_scaler_leads", "1 where this process leads", registry=registry)
        self.pinned = Gauge("headrace_scaler_pinned", "1 where the plan is pinned", registry=registry)
        self.plan_age = Gauge("headrace_scaler_plan_age_seconds", "Since the plan in force was made", registry=registry)
        self.telemetry = Counter("headrace_scaler_telemetry", "Telemetry records that were read", registry=registry)
        self.disbelieved = Gauge("headrace_scaler_disbelieved", "Telemetry not believed in this term", ["what"], registry=registry)
        self._decisions = Counter("headrace_scaler_decisions", "Decisions of the control loop", ["kind"], registry=registry)
        self._lag = Gauge("headrace_scaler_lag_messages", "Log end minus committed offset", ["group", "topic"], registry=registry)
        self._proposed = Histogram("headrace_scaler_optimizer_seconds", "Time until a proposal", ["optimizer"], buckets=PROPOSED_S, registry=registry)
        self._wanted = Gauge("headrace_scaler_workers_wanted", "Workers that the actuator is asked for", ["accelerator"], registry=registry)
        self._running = Gauge("headrace_scaler_workers_running", "Workers that the actuator says it has", ["accelerator"], registry=registry)
        self._actuator_failing = Gauge("headrace_scaler_actuator_failing", "1 where the actuator raises or blocks", registry=registry)
        self._failures = Counter("headrace_scaler_optimizer_failures", "Optimizers that gave no proposal", registry=registry)

    def workers(self, counts: Mapping[str, tuple[int, int]], *, failing: bool) -> None:
        """Show (wanted, running) workers by class, of an actuator that works or does not."""
        self._wanted.clear()
        self._running.clear()
        for accelerator, (wanted, running) in counts.items():
            self._wanted.labels(accelerator).set(wanted)
            self._running.labels(accelerator).set(running)
        self._actuator_failing.set(failing)

    def decided(self, decision: PlanDecision) -> None:
        """Count a decision."""
        self._decisions.labels(decision.kind).inc()
        self._failures.inc(len(decision.failures))
        if decision.proposed_ms > 0.0:
            self._proposed.labels(decision.optimizer).observe(decision.proposed_ms / 1e3)

    def lagged(self, lags: Sequence[PartitionLag]) -> None:
        """Show lag."""
        totals: dict[tuple[str, str], int] = {}
        for lag in lags:
            totals[lag.group, lag.topic] = totals.get((lag.group, lag.topic), 0) + lag.lag_messages
        self._lag.clear()
        for (group, topic), messages in totals.items():
            self._lag.labels(group, topic).set(messages)

"""What a dispatcher shows to Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from broker.policy.dispatcher import DispatcherPolicy


class DispatcherMetrics:
    """Counters are fed per batch; gauges are read from the policy once a second."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._duplicates_counted = 0
        self.arrived = Counter("headrace_requests_arrived", "Request records read", registry=registry)
        self.answers = Counter("headrace_dispatcher_answers", "Terminal records written by the dispatcher", ["outcome", "code"], registry=registry)
        self.sent = Counter("headrace_orders_sent", "Orders written to lanes", ["accelerator", "variant"], registry=registry)
        self.retried = Counter("headrace_orders_failed", "Orders that the log did not acknowledge", registry=registry)
        self.dead_letters = Counter("headrace_dead_letters", "Records written to the dead letters", ["source"], registry=registry)
        self.strays = Counter("headrace_stray_responses", "Records of the responses topic that are no answer of their key", registry=registry)
        self.duplicates = Counter(
            "headrace_duplicate_requests", "Request records ignored because their id is live or was answered", registry=registry
        )
        self.waiting = Gauge("headrace_requests_waiting", "Accepted requests that no worker has", registry=registry)
        self.live = Gauge("headrace_requests_live", "Requests without a terminal record", registry=registry)
        self.lanes = Gauge("headrace_lanes_ready", "Lanes that can be sent to", registry=registry)
        self.shards = Gauge("headrace_shards_owned", "Shards that this dispatcher owns", registry=registry)
        self.epoch = Gauge("headrace_plan_epoch", "Epoch of the plan that is followed", registry=registry)
        self.expiry_lateness = Histogram(
            "headrace_expiry_lateness_seconds",
            "From a deadline to the writing of the expired record",
            buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0),
            registry=registry,
        )

    def observe(self, policy: DispatcherPolicy) -> None:
        """Set the gauges."""
        self.duplicates.inc(policy.duplicates - self._duplicates_counted)
        self._duplicates_counted = policy.duplicates
        self.waiting.set(policy.waiting)
        self.live.set(policy.live)
        self.lanes.set(policy.fleet.ready_lanes)
        self.shards.set(len(policy.shards))
        self.epoch.set(policy.fleet.plan.epoch)

"""What surrounds a dispatcher in the model: requests, responses, workers, and what one life of a dispatcher has been told."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from broker.policy.dispatcher import DispatcherPolicy
from broker.policy.entry import Answer, DeadLetter, Entry, Send
from broker.policy.settings import DispatcherSettings
from broker.policy.watermark import Watermark
from schemas.catalog import Catalog, Defaults, EndpointSpec, Quota, TaskSpec, VariantSpec
from schemas.limits import Limits
from schemas.plan import Plan
from schemas.profile import Latency
from schemas.telemetry import HostedVariant, WorkerReport

START_MS = 1_700_000_000_000
SHARDS = 3
DISPATCHERS = ("d0", "d1")
WORKERS = ("w0", "w1", "w2")
SETTINGS = DispatcherSettings()
LIMITS = Limits(recent_ids_max=50_000, waiting_max=40, waiting_bytes_max=4_000, tenants_max=3, commit_metadata_bytes_max=120)
FASHION = TaskSpec(
    name="fashion",
    variants=tuple(
        VariantSpec(name=name, file="f", sha256="", accuracy=accuracy) for name, accuracy in (("small", 0.8), ("middle", 0.9), ("large", 0.95))
    ),
)
FLOWERS = TaskSpec(
    name="flowers", variants=tuple(VariantSpec(name=name, file="f", sha256="", accuracy=accuracy) for name, accuracy in (("one", 0.6), ("two", 0.7)))
)
ENDPOINTS = (
    EndpointSpec(name="shop", task="fashion", defaults=Defaults(min_accuracy=0.5, timeout_ms=400)),
    EndpointSpec(name="garden", task="flowers", quotas={"*": Quota(rate_rps=5.0, burst=2)}),
    EndpointSpec(name="broken", task="nowhere"),
)
ROW_MS = {"fashion/small": 1.0, "fashion/middle": 4.0, "fashion/large": 20.0, "flowers/one": 2.0, "flowers/two": 3.0}
ACCURACY = {"fashion/small": 0.8, "fashion/middle": 0.9, "fashion/large": 0.95, "flowers/one": 0.6, "flowers/two": 0.7}


def whole_catalog() -> Catalog:
    """Everything that there is to call."""
    return Catalog({"fashion": FASHION, "flowers": FLOWERS}, {endpoint.name: endpoint for endpoint in ENDPOINTS})


@dataclass(frozen=True)
class Request:
    """A record of {p}.requests; without a key it cannot be attributed."""

    shard: int
    offset: int
    received_ms: int
    key: bytes | None
    endpoint: str = "shop"
    floor: float | None = None
    deadline_ms: int | None = None
    timeout_ms: int | None = None
    priority: int = 0
    tenant: str = ""
    rows: int = 1
    unreadable: bool = False

    def entry(self) -> Entry:
        refused = ("bad_request", "unreadable") if self.unreadable else None
        return Entry(
            self.key or b"",
            self.shard,
            self.offset,
            self.received_ms,
            self.endpoint,
            self.floor,
            self.deadline_ms,
            self.timeout_ms,
            self.priority,
            self.tenant,
            self.rows,
            100,
            self,
            refused,
        )


@dataclass(frozen=True)
class Response:
    """A record of {p}.responses."""

    key: bytes
    at_ms: float
    outcome: str
    variant: str = ""
    by: str = ""


@dataclass
class Worker:
    """A worker's process: what it says, and what it holds."""

    name: str
    incarnation: int = 0
    alive: bool = False
    lane: int | None = None
    state: str = "starting"
    credits: int = 64
    variants: dict[str, str] = field(default_factory=dict)
    orders: list[Send] = field(default_factory=list)
    done: list[Send] = field(default_factory=list)

    def report(self, now_ms: float, state: str) -> WorkerReport:
        latency = {key: {1: Latency(ROW_MS[key], ROW_MS[key] * 1.2, 9), 8: Latency(ROW_MS[key] * 4, ROW_MS[key] * 5, 9)} for key in self.variants}
        hosted = {key: HostedVariant(state=state, latency=latency[key]) for key, state in self.variants.items()}
        waiting = sum(order.entry.rows for order in self.orders)
        return WorkerReport(
            worker=self.name,
            incarnation=self.incarnation,
            accelerator="cpu",
            device="cpu0",
            host="here",
            at_ms=int(now_ms),
            lane=self.lane,
            state=state,
            credits=self.credits,
            batch_size_max=8,
            variants=hosted,
            waiting_rows=waiting,
        )


class Life:
    """One life of a dispatcher: a policy, and what it has been told, for judging its commands."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.policy = DispatcherPolicy(name, SETTINGS, LIMITS)
        self.reports: dict[str, WorkerReport] = {}
        self.plan = Plan()
        self.read_to: dict[int, int] = {}
        """Next request to read, as an index into the shard's log."""
        self.responses_to: dict[int, int] = {}
        self.recover_at: dict[int, int] = {}
        """Index into the responses at which a shard has recovered."""
        self.skip: dict[int, Watermark] = {}
        """The watermark that a shard started from."""
        self.known_answers: dict[int, set[bytes]] = {}
        """Keys that had a terminal record when the shard became ours."""
        self.sent: dict[tuple[bytes, int, int], int] = defaultdict(int)
        """Attempts of a request (key, shard, offset) that a worker may have begun."""
        self.answered: set[tuple[bytes, int, int]] = set()
        self.pending_answers: list[Answer] = []
        self.pending_letters: list[DeadLetter] = []
        self.pending_burials: list[Request] = []
        self.unacknowledged: list[Entry] = []

    def forget(self, shard: int) -> None:
        """The shard is given up: what the policy knew of it is gone."""
        for identity in [identity for identity in self.sent if identity[1] == shard]:
            del self.sent[identity]
        self.answered = {identity for identity in self.answered if identity[1] != shard}

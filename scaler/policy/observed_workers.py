"""What workers say of themselves, as far as it can be believed: bounded, counted where it cannot, with back-off for those that flap."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping

import msgspec

from scaler.optimizers.snapshot import LOST, READY, Worker
from scaler.policy.control_settings import ControlSettings, TypeOf
from schemas.plan import Binding
from schemas.telemetry import HostedVariant, WorkerReport

STARTING, WORKING = "starting", "ready"
FAILED, LOADING = "failed", ("loading", "warming")
THREADS_MAX = 4_096


class Refusal(msgspec.Struct):
    """A variant that could not be made ready on a worker."""

    reason: str
    tries: int
    until_ms: float


class Observed(msgspec.Struct):
    """One worker."""

    report: WorkerReport
    type: str
    seen_ms: float
    alive: bool = True
    flaps_ms: deque[float] = msgspec.field(default_factory=lambda: deque[float](maxlen=32))
    out_until_ms: float = 0.0
    """Left out of plans until then."""
    outs: int = 0
    refusals: dict[str, Refusal] = {}
    loading_since_ms: dict[str, float] = {}


class ObservedWorkers:
    """A fold over worker reports and departures."""

    def __init__(self, settings: ControlSettings, type_of: TypeOf) -> None:
        self._settings, self._type_of = settings, type_of
        self._workers: dict[str, Observed] = {}
        self.lies: Counter[str] = Counter()
        """Reports, or parts of them, that were not believed, by what was wrong."""

    def observe(self, report: WorkerReport, now_ms: float) -> str:
        """Take a report in. Returns what has changed for planning, in words; empty: nothing."""
        known = self._workers.get(report.worker)
        if known is None and len(self._workers) >= self._settings.workers_max:
            self.lies["more workers than can be"] += 1
            return ""
        if known is not None and report.incarnation < known.report.incarnation:
            self.lies["a report of an earlier incarnation"] += 1
            return ""
        if report.state not in (STARTING, WORKING):
            return self._ends(report, known)
        news = ""
        if known is None:
            known = self._workers[report.worker] = Observed(report, self._type_of(report), now_ms)
            news = f"worker {report.worker} came"
        elif report.incarnation > known.report.incarnation:
            self._flapped(known, now_ms)
            known.loading_since_ms.clear()
            news = f"worker {report.worker} started anew"
        elif not known.alive:
            news = f"worker {report.worker} returned"
        known.report, known.type, known.seen_ms, known.alive = report, self._type_of(report), now_ms, True
        return self._follow_variants(known, now_ms) or news

    def departed(self, name: str, incarnation: int, at_ms: float) -> str:
        """A supervisor saw it end; 0: whichever incarnation there was at that time."""
        known = self._workers.get(name)
        if known is None or not known.alive or (incarnation and incarnation != known.report.incarnation) or known.report.incarnation > at_ms:
            return ""
        known.alive = False
        return f"worker {name} was lost: its process ended"

    def expire(self, now_ms: float) -> list[str]:
        """Workers that have not been heard of for too long, in words; forgets those that are gone for good."""
        news: list[str] = []
        for name, known in list(self._workers.items()):
            silent_ms = now_ms - known.seen_ms
            if silent_ms >= self._settings.worker_forget_ms:
                del self._workers[name]
                news.append(f"worker {name} is forgotten")
            elif known.alive and silent_ms > self._settings.worker_lost_ms:
                known.alive = False
                self._flapped(known, now_ms)
                news.append(f"worker {name} was lost: silent for {silent_ms / 1000.0:.1f} s")
            elif 0.0 < known.out_until_ms <= now_ms:
                known.out_until_ms = 0.0
                news.append(f"worker {name} may be planned again")
        return news

    def forgive(self, variants: set[str]) -> None:
        """The catalog has these anew: another file may load."""
        for known in self._workers.values():
            for key in variants & known.refusals.keys():
                del known.refusals[key]

    def alive(self) -> Iterator[WorkerReport]:
        """Last reports of those that are there."""
        return (known.report for known in self._workers.values() if known.alive)

    def get(self, name: str) -> Observed | None:
        return self._workers.get(name)

    def __len__(self) -> int:
        return len(self._workers)

    def left_out(self, now_ms: float) -> dict[str, str]:
        """Workers that flap, with the reason."""
        return {
            name: f"flapped {len(known.flaps_ms)} times in a minute; left out for {(known.out_until_ms - now_ms) / 1000.0:.0f} s more"
            for name, known in self._workers.items()
            if known.out_until_ms > now_ms
        }

    def workers(self, bindings: Mapping[str, Binding], now_ms: float) -> tuple[Worker, ...]:
        """For the snapshot, by name."""
        return tuple(self._worker(name, self._workers[name], bindings.get(name), now_ms) for name in sorted(self._workers))

    def _worker(self, name: str, known: Observed, binding: Binding | None, now_ms: float) -> Worker:
        report = known.report
        hosted = tuple(sorted(key for key, variant in report.variants.items() if variant.state == WORKING)) if known.alive else ()
        memory = report.memory_bytes_max
        if not 0 <= memory <= self._settings.memory_bytes_max:
            self.lies["impossible memory"] += 1
            memory = 0
        return Worker(
            name=name,
            accelerator=report.accelerator,
            type=known.type,
            memory_bytes_max=int(memory * self._settings.memory_part),
            threads_max=min(max(report.threads, 1), THREADS_MAX),
            state=READY if known.alive and known.out_until_ms <= now_ms else LOST,
            binding=binding,
            hosted=hosted,
            refused={key: refusal.reason for key, refusal in known.refusals.items() if refusal.until_ms > now_ms},
        )

    def _ends(self, report: WorkerReport, known: Observed | None) -> str:
        """It drains or has stopped: nothing new is planned on it."""
        if known is None or not known.alive:
            return ""
        known.report, known.alive = report, False
        return f"worker {report.worker} was lost: it is {report.state}"

    def _flapped(self, known: Observed, now_ms: float) -> None:
        window_ms = self._settings.flap_window_ms
        flaps = known.flaps_ms
        if not flaps or now_ms - flaps[-1] > self._settings.flap_back_off_ms_max:
            known.outs = 0
        flaps.append(now_ms)
        while flaps and now_ms - flaps[0] > window_ms:
            flaps.popleft()
        if len(flaps) > self._settings.flaps_max:
            back_off_ms = min(self._settings.flap_back_off_ms * 2.0**known.outs, self._settings.flap_back_off_ms_max)
            known.outs = min(known.outs + 1, 16)
            known.out_until_ms = now_ms + back_off_ms
            self.lies["a worker that flaps"] += 1

    def _follow_variants(self, known: Observed, now_ms: float) -> str:
        """Quarantine what failed, or loads for ever."""
        news = ""
        report = known.report
        for key in known.loading_since_ms.keys() - report.variants.keys():
            del known.loading_since_ms[key]
        for key, variant in report.variants.items():
            reason = self._failure(known, key, variant, now_ms)
            refusal = known.refusals.get(key)
            if variant.state == WORKING:
                if refusal is not None:
                    del known.refusals[key]
            elif reason and (refusal is None or refusal.until_ms <= now_ms):
                tries = refusal.tries + 1 if refusal is not None else 1
                wait_ms = min(self._settings.refusal_ms * 2.0 ** min(tries - 1, 16), self._settings.refusal_ms_max)
                known.refusals[key] = Refusal(reason, tries, now_ms + wait_ms)
                news = f"worker {report.worker} cannot host {key}: {reason}"
        return news

    def _failure(self, known: Observed, key: str, variant: HostedVariant, now_ms: float) -> str:
        if variant.state in LOADING:
            since_ms = known.loading_since_ms.setdefault(key, now_ms)
            return f"not ready after {(now_ms - since_ms) / 1000.0:.0f} s" if now_ms - since_ms > self._settings.loading_ms_max else ""
        known.loading_since_ms.pop(key, None)
        return (variant.reason or "it failed") if variant.state == FAILED else ""

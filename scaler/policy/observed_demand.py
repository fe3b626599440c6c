"""Demand as dispatchers count it: rates per second and floor, attainment, and what stages lead to, without believing what cannot be."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from math import exp, isfinite

import msgspec

from scaler.policy.control_settings import ControlSettings, MakeForecaster
from scaler.policy.forecasting.forecaster import Forecaster
from scaler.policy.observed_stages import Flow
from schemas.telemetry import DispatcherReport, EndpointCounts

DISPATCHERS_MAX = 64
STAGES_MAX = 256
MIX_SECONDS = 20.0
"""Time constant of the mix of floors and of the ratios between stages."""
TICKS_MAX = 120
"""Seconds that are made up for at once after a pause."""
SAID_S_MAX = 60.0
"""Between two reports, by the dispatcher's own clock: whoever reads late gets several at once, and they are no more demand for that."""
NONE = EndpointCounts()


class Source(msgspec.Struct):
    """One dispatcher."""

    report: DispatcherReport
    heard_ms: float
    rates: dict[str, dict[float, float]] = {}
    """Requests/s by endpoint and floor, between its last two reports."""
    row_rates: dict[str, float] = {}


class Asked(msgspec.Struct):
    """One endpoint, over all dispatchers."""

    forecaster: Forecaster
    rate_rps: float = 0.0
    """Of the last second."""
    mix: dict[float, float] = {}
    """Fading rates by floor."""
    rows: float = 1.0
    """Of a request, on average."""
    ended: deque[tuple[float, int, int]] = msgspec.field(default_factory=lambda: deque[tuple[float, int, int]](maxlen=1_024))
    """(when, ended, missed)."""
    flows: dict[str, Flow] = {}
    begun: bool = False
    """Something was asked."""


class ObservedDemand:
    """A fold over dispatchers' reports. `tick` closes the seconds that have passed."""

    def __init__(self, settings: ControlSettings, make_forecaster: MakeForecaster, lies: Counter[str]) -> None:
        self._settings, self._make = settings, make_forecaster
        self.lies = lies
        self._sources: dict[str, Source] = {}
        self._asked: dict[str, Asked] = {}
        self._ticked_ms: float | None = None

    def observe(self, report: DispatcherReport, now_ms: float) -> None:
        """Take a report in: what it counts more than the one before is what happened since."""
        if not report.shards:
            self._sources.pop(report.dispatcher, None)
        known = self._sources.get(report.dispatcher)
        if known is None:
            if len(self._sources) >= DISPATCHERS_MAX:
                self.lies["more dispatchers than can be"] += 1
            elif report.shards:
                self._sources[report.dispatcher] = Source(report, now_ms)
            return
        if report.incarnation < known.report.incarnation:
            self.lies["a report of an earlier incarnation"] += 1
            return
        if report.incarnation > known.report.incarnation:
            self._sources[report.dispatcher] = Source(report, now_ms)
            return
        passed_s = (report.at_ms - known.report.at_ms) / 1000.0
        if not 0.0 < passed_s <= SAID_S_MAX:
            passed_s = (now_ms - known.heard_ms) / 1000.0  # what its clock says cannot be
        if passed_s < 0.1:
            return  # too near to the last one to tell a rate
        for name, counts in report.endpoints.items():
            self._follow(known, name, counts, known.report.endpoints.get(name, NONE), (now_ms, passed_s))
        known.report, known.heard_ms = report, now_ms

    def departed(self, dispatcher: str) -> None:
        self._sources.pop(dispatcher, None)

    def tick(self, now_ms: float) -> None:
        """Tell the forecasters of every second that has passed since."""
        if self._ticked_ms is None or now_ms < self._ticked_ms:
            self._ticked_ms = now_ms
            return
        seconds = int((now_ms - self._ticked_ms) / 1000.0)
        if not seconds:
            return
        self._ticked_ms += 1000.0 * seconds
        for name in [name for name, source in self._sources.items() if now_ms - source.heard_ms > self._settings.dispatcher_lost_ms]:
            del self._sources[name]
        fading = exp(-seconds / MIX_SECONDS)
        for name, asked in self._asked.items():
            rates: dict[float, float] = {}
            rows = 0.0
            for source in self._sources.values():
                rows += source.row_rates.get(name, 0.0)
                for floor, rate in source.rates.get(name, {}).items():
                    rates[floor] = rates.get(floor, 0.0) + rate
            asked.rate_rps = sum(rates.values())
            if asked.rate_rps > 0.0:
                asked.rows += (1.0 - fading) * (max(rows / asked.rate_rps, 1.0) - asked.rows)
                asked.mix = self._faded(asked.mix, rates, fading)
            for flow in asked.flows.values():
                _fade(flow, fading)
            # Before its first request an endpoint has no past: the time that the planner waited for it is not one.
            asked.begun = asked.begun or asked.rate_rps > 0.0
            for _ in range(min(seconds, TICKS_MAX) if asked.begun else 0):
                asked.forecaster.observe(asked.rate_rps)

    def keep(self, endpoints: Iterable[str]) -> None:
        """The catalog's endpoints; others are forgotten."""
        wanted = list(endpoints)[: self._settings.endpoints_max]
        self._asked = {name: self._asked.get(name) or Asked(self._make()) for name in wanted}

    def get(self, endpoint: str) -> Asked | None:
        """None where the catalog has no such endpoint."""
        return self._asked.get(endpoint)

    def attainment(self, endpoint: str, now_ms: float, window_ms: float) -> tuple[float, int]:
        """(part completed in time, requests that ended) of the window before now."""
        asked = self._asked.get(endpoint)
        recent = [] if asked is None else [(ended, missed) for at_ms, ended, missed in asked.ended if now_ms - at_ms <= window_ms]
        ended = sum(each for each, _ in recent)
        return (1.0 - min(sum(missed for _, missed in recent) / ended, 1.0) if ended else 1.0), ended

    def waiting(self, endpoint: str) -> int:
        return sum(max(source.report.endpoints.get(endpoint, NONE).waiting, 0) for source in self._sources.values())

    def timeout_ms(self, endpoint: str, default_ms: float) -> float:
        """Time to the deadline that most requests have at least."""
        said = [source.report.endpoints.get(endpoint, NONE).timeout_ms for source in self._sources.values()]
        return min([timeout_ms for timeout_ms in said if isfinite(timeout_ms) and timeout_ms > 0.0], default=default_ms)

    def fan_out(self, endpoint: str) -> dict[str, tuple[float, float]]:
        """(mean, upper quantile) rows by path of a for_each: the largest that a dispatcher says."""
        found: dict[str, tuple[float, float]] = {}
        for source in self._sources.values():
            for name, (mean, upper) in source.report.fan_out.items():
                of, _, path = name.partition("/")
                if of == endpoint and isfinite(mean) and isfinite(upper) and 0.0 <= mean <= self._settings.rate_rps_max:
                    before = found.get(path, (0.0, 0.0))
                    found[path] = (max(before[0], mean), max(before[1], min(upper, self._settings.rate_rps_max)))
        return found

    def _follow(self, known: Source, name: str, now: EndpointCounts, before: EndpointCounts, when: tuple[float, float]) -> None:
        now_ms, passed_s = when
        asked = self._asked.get(name)
        if asked is None:
            return
        rates: dict[float, float] = {}
        for text, count in now.arrived.items():
            floor = _floor(text)
            more = count - before.arrived.get(text, 0)
            if floor is None or more < 0 or more / passed_s > self._settings.rate_rps_max:
                self.lies["impossible demand"] += 1
            else:
                rates[floor] = rates.get(floor, 0.0) + more / passed_s
        known.rates[name] = rates
        known.row_rates[name] = max(now.rows - before.rows, 0) / passed_s
        ended, missed = now.ended - before.ended, now.missed - before.missed
        if ended < 0 or missed < 0:
            self.lies["counts that shrink"] += 1
        elif ended:
            asked.ended.append((now_ms, ended, min(missed, ended)))
            while now_ms - asked.ended[0][0] > self._settings.interval_ms:
                asked.ended.popleft()
        for path, stage in list(now.stages.items())[:STAGES_MAX]:
            _flow(asked.flows.setdefault(path, Flow()), stage.rows, stage.done, stage.led_to, before, path)

    def _faded(self, mix: Mapping[float, float], rates: Mapping[float, float], fading: float) -> dict[float, float]:
        faded = {floor: fading * mix.get(floor, 0.0) + (1.0 - fading) * rates.get(floor, 0.0) for floor in mix.keys() | rates.keys()}
        kept = sorted(floor for floor, rate in faded.items() if rate > 1e-6)
        if len(kept) > self._settings.floors_max:
            # The rarest are counted at the next floor above them, which meets what they ask for.
            least = sorted(kept[:-1], key=lambda floor: faded[floor])[: len(kept) - self._settings.floors_max]
            for floor in sorted(least):
                above = min(other for other in kept if other > floor)
                faded[above] += faded[floor]
                kept.remove(floor)
        return {floor: faded[floor] for floor in kept}


def _floor(text: str) -> float | None:
    try:
        floor = float(text)
    except ValueError:
        return None
    return floor if isfinite(floor) and 0.0 <= floor <= 1.0 else None


def _flow(flow: Flow, rows: int, done: Mapping[str, int], led_to: Mapping[str, Mapping[str, int]], before: EndpointCounts, path: str) -> None:
    earlier = before.stages.get(path)
    flow.rows += max(rows - (earlier.rows if earlier else 0), 0)
    for key, count in done.items():
        flow.done[key] = flow.done.get(key, 0.0) + max(count - (earlier.done.get(key, 0) if earlier else 0), 0)
    for key, led in led_to.items():
        here = flow.led_to.setdefault(key, {})
        known = earlier.led_to.get(key, {}) if earlier else {}
        for stage, count in led.items():
            here[stage] = here.get(stage, 0.0) + max(count - known.get(stage, 0), 0)


def _fade(flow: Flow, fading: float) -> None:
    flow.rows *= fading
    for counts in (flow.done, *flow.led_to.values()):
        for key in counts:
            counts[key] *= fading

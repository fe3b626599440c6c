"""What makes a plan due: time, or something that happened; how long one reason keeps quiet after a plan."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

from scaler.policy.control_settings import ControlSettings


class Triggers:
    """Notes stay until a plan is begun; each says what happened first, and how much more of it."""

    def __init__(self, settings: ControlSettings) -> None:
        self._settings = settings
        self._notes: dict[str, list[str]] = {}
        self._planned_rps: dict[str, float] = {}
        self._below: dict[str, float] = {}
        """Endpoints whose attainment made a plan due, and when."""
        self._heard_ms: float | None = None
        self._begun_ms: float | None = None

    def heard(self, now_ms: float) -> None:
        """Telemetry came."""
        if self._heard_ms is None:
            self._heard_ms = now_ms

    def note(self, kind: str, text: str) -> None:
        """Something happened that wants a plan."""
        self._notes.setdefault(kind, []).append(text)
        del self._notes[kind][64:]

    def look_at_rate(self, endpoint: str, rate_rps: float) -> None:
        """A rate beyond what was planned for, by the margin and by more than chance does."""
        settings = self._settings
        planned = self._planned_rps.get(endpoint)
        if planned is None or rate_rps < settings.demand_floor_rps:
            return
        limit = planned * (1.0 + settings.demand_margin) + settings.shift_deviations * sqrt(max(planned, 1.0))
        if rate_rps > limit:
            text = f"demand of {endpoint} shifted: {rate_rps:.0f}/s, planned for {planned:.0f}/s with a margin of {settings.demand_margin:.0%}"
            self._notes[f"demand {endpoint}"] = [text]

    def look_at_attainment(self, endpoint: str, attained: float, ended: int, now_ms: float) -> None:
        """Below the target; again only after its own cool-down."""
        settings = self._settings
        if ended < settings.attainment_ended_min or attained >= settings.attainment_target:
            return
        if now_ms - self._below.get(endpoint, float("-inf")) >= settings.attainment_cool_down_ms:
            text = f"attainment of {endpoint} is {attained:.1%}, the target is {settings.attainment_target:.0%}"
            self._notes[f"attainment {endpoint}"] = [text]

    def due(self, now_ms: float) -> str | None:
        """The reason, or None."""
        settings = self._settings
        if self._heard_ms is None or now_ms - self._heard_ms < settings.warm_up_ms:
            return None
        if self._begun_ms is None:
            return "first plan of this leader"
        since_ms = now_ms - self._begun_ms
        if self._notes and since_ms >= settings.cool_down_ms:
            return self._told()
        if since_ms >= settings.interval_ms:
            return f"every {settings.interval_ms / 1000.0:g} s"
        return None

    def begin(self, now_ms: float) -> str:
        """A plan is made now; the reason for it."""
        why = self.due(now_ms) or "asked for"
        for kind in self._notes:
            if kind.startswith("attainment "):
                self._below[kind.removeprefix("attainment ")] = now_ms
        self._notes.clear()
        self._begun_ms = now_ms
        return why

    def planned_for(self, forecasts: Mapping[str, float]) -> None:
        """What the plan that was begun counts on, in requests/s by endpoint."""
        self._planned_rps = dict(forecasts)

    def _told(self) -> str:
        firsts = [notes[0] + (f" (and {len(notes) - 1} more)" if len(notes) > 1 else "") for notes in self._notes.values()]
        return "; ".join(firsts[:4]) + (f"; and {len(firsts) - 4} more reasons" if len(firsts) > 4 else "")

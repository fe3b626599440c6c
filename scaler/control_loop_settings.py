"""The live control loop's constants, with why each has its value."""

from __future__ import annotations

import msgspec

from scaler.actuators.registry import DEFAULT_ACTUATOR
from scaler.policy.actuating_settings import ActuatingSettings
from scaler.policy.control_settings import ControlSettings
from scaler.policy.guarded import GuardSettings


class LoopSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Of the shell; what is decided, and when, is in ControlSettings."""

    optimizer: str = "headrace"
    """Where the catalog names none."""
    stand_ins: tuple[str, ...] = ("greedy",)
    """Who is asked where the chosen one fails."""
    forecast: str = "ewma"
    control: ControlSettings = ControlSettings()
    guard: GuardSettings = GuardSettings()
    actuator: str = DEFAULT_ACTUATOR
    actuating: ActuatingSettings = ActuatingSettings()
    first_warm_up_ms: float = 300.0
    """Where there is no plan yet: nobody hosts anything, and whoever came first should not wait for the others for long."""
    replay_ms: float = 30_000.0
    """A new leader reads so much of the past: it begins with rates and workers, not with an empty snapshot."""
    replay_records_max: int = 50_000
    costs_interval_ms: float = 20_000.0
    """Between two looks whether what variants cost is worth keeping for the next leader."""
    read_ms: int = 200
    """A turn of the loop waits so long for control records."""
    lag_s: float = 1.0
    say_s: float = 1.0
    silent_s_max: float = 40.0
    """A leader that reads nothing (its own reports come back each second) or no lag for so long has stalled: its process ends, another begins."""
    paused_s: float = 3.0
    """A turn that took so long: this process stood still, and others may lead by now."""
    settle_s: float = 3.0
    """After that, how long until a member that was expelled has heard of it (three heartbeats)."""
    waiting_records_max: int = 20_000
    """Told while the past is still being read."""

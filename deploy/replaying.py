"""Replays a dispatcher's recording: the file is read here, the policy decides in scaler/simulator/replay.py."""

from __future__ import annotations

from pathlib import Path

import msgspec

from broker.recording import read_recording
from scaler.simulator.replay import Replay, ReplayReport
from schemas.errors import ConfigurationError


def replay_file(path: Path) -> ReplayReport:
    """Whether the policy of today decides as the recorded one did. Raises ConfigurationError for what is no recording."""
    opening, steps = read_recording(path)
    replaying = Replay(opening)
    try:
        for step in steps:
            replaying.feed(step)
    except (msgspec.DecodeError, KeyError) as error:
        raise ConfigurationError(f"{path} holds a step that this version does not know: {error}") from error
    return replaying.report()

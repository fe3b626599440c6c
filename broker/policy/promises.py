"""Work of stages that are still to come: it is the pool's from the moment a request is taken on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from broker.policy.fleet import Fleet
from broker.policy.graph_request import GraphRequest
from graphs.commands import Command, RunStage


class Promises:
    """Keeps `promised_ms` of the pools, whatever becomes of the pools."""

    def __init__(self, fleet: Fleet, requests: Mapping[bytes, GraphRequest]) -> None:
        """`requests`: all that run, as they are at any time."""
        self._fleet, self._requests = fleet, requests
        self._layouts = 0

    def begin(self, request: GraphRequest, first: Sequence[Command]) -> None:
        """The whole path's work is the pool's from now on; what is placed in the queue is taken off again."""
        stage = next((command.stage for command in first if isinstance(command, RunStage) and not command.shadow), None)
        if stage is not None:
            request.task = self._fleet.graphs.ladder_of(stage)
            self.change(request, request.entry.work_ms)

    def change(self, request: GraphRequest, work_ms: float) -> None:
        """So much more (negative: less) is still to come, but never less than nothing."""
        if self._layouts != self._fleet.layouts:
            # The pools are new.
            self._layouts = self._fleet.layouts
            for other in self._requests.values():
                if other.task in self._fleet.ladders:
                    self._fleet.pool(other.task).promised_ms += other.promised_ms
        change_ms = max(work_ms, -request.promised_ms)
        request.promised_ms += change_ms
        if change_ms and request.task in self._fleet.ladders:
            self._fleet.pool(request.task).promised_ms += change_ms

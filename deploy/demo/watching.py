"""What the graph demos read beside the answers: shadows' answers in the taps, and how a canary stands."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from broker.client import Client
from broker.log import TopicPartition
from broker.messages import is_shadow
from deploy.canary import canary_standings, change_canary
from deploy.demo.report import Answered
from schemas.canary import RUNNING, CanaryCommand
from schemas.tensors import decode_output
from schemas.terminal import Terminal, decode_terminal

ENDED_S = 5.0
POLL_MS = 100


class Taps:
    """Collects what is written to {p}.tap.responses from now on."""

    def __init__(self, client: Client) -> None:
        self._reader = client.log.reader("demo-taps")
        self._client = client
        self.answers: dict[str, Terminal] = {}

    async def start(self) -> None:
        """Begin at the ends."""
        log, topic = self._client.log, self._client.names.tap_responses
        await self._reader.start()
        await self._reader.assign({TopicPartition(topic, number): "latest" for number in range(await log.partitions(topic))})

    async def collect(self) -> None:
        """For ever."""
        while True:
            for records in (await self._reader.read(timeout_ms=POLL_MS, records_max=1_000)).values():
                for record in filter(is_shadow, records):
                    terminal = decode_terminal(record.value or b"")
                    self.answers[terminal.id] = terminal

    async def close(self) -> None:
        """Stop reading."""
        await self._reader.close()

    def agreement(self, answered: Sequence[Answered]) -> float:
        """Part of the rows for which a shadow said what the answer says."""
        same = rows = 0
        for one in answered:
            shadow = self.answers.get(one.response.id)
            if shadow is None or not shadow.outputs or not one.response.completed:
                continue
            ours, theirs = one.response.outputs["probs"].argmax(axis=1), decode_output(shadow.outputs[0]).argmax(axis=1)
            same, rows = same + int((ours == theirs).sum()), rows + len(ours)
        return same / rows if rows else 0.0


async def start_canary(client: Client, endpoint: str) -> None:
    """As `headrace canary start` does."""
    await change_canary(client.log, client.names, endpoint, CanaryCommand(action="start", reason="the demo"))


async def final_canary(client: Client, endpoint: str) -> dict[str, Any]:
    """How it stands when all is answered; a judge that has not looked yet is waited for."""
    end_s = time.monotonic() + ENDED_S
    while True:
        (standing,) = await canary_standings(client.log, client.names, endpoint)
        if standing.phase != RUNNING or time.monotonic() > end_s:
            return {"phase": standing.phase, "percent": standing.percent, "reason": standing.reason, "node": standing.node}
        await asyncio.sleep(POLL_MS / 1_000)

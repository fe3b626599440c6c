"""Somebody else's actuator in a thread with a loop of its own: one that blocks stops nothing but itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from scaler.actuators.actuator import Actuator
from schemas.errors import HeadraceError
from schemas.scale import ScaleOffer, ScaleOrder

Returned = TypeVar("Returned")
CALL_S_MAX = 10.0


class ActuatorFailed(HeadraceError):
    """An actuator did not do what it was asked for."""

    code = "actuator_failed"


class ApartActuator:
    """Built in its own thread, too. Every method raises ActuatorFailed where a call does not come back in time, and what the call raises."""

    def __init__(self, name: str, build: Callable[[], Actuator], *, call_s_max: float = CALL_S_MAX) -> None:
        self.name = name
        self._build, self._call_s_max = build, call_s_max
        self._actuator: Actuator | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._under_way = ""
        """The call that has not come back."""

    async def start(self) -> None:
        """See Actuator."""
        loop = self._loop = asyncio.new_event_loop()
        threading.Thread(target=_run, args=(loop,), name=f"actuator-{self.name}", daemon=True).start()
        await self._call("start", self._started())

    async def offers(self) -> Sequence[ScaleOffer]:
        """See Actuator."""
        assert self._actuator is not None, "start() has not been awaited"
        return await self._call("offers", self._actuator.offers())

    async def apply(self, orders: Mapping[str, ScaleOrder]) -> None:
        """See Actuator."""
        assert self._actuator is not None, "start() has not been awaited"
        await self._call("apply", self._actuator.apply(orders))

    async def close(self) -> None:
        """See Actuator. A thread that is blocked ends with the process."""
        if self._loop is None:
            return
        try:
            if self._actuator is not None:
                await self._call("close", self._actuator.close())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None

    async def _started(self) -> None:
        self._actuator = self._build()
        await self._actuator.start()

    async def _call(self, what: str, call: Coroutine[Any, Any, Returned]) -> Returned:
        if self._under_way or self._loop is None:
            call.close()
            raise ActuatorFailed(f"actuator {self.name!r} still has not come back from {self._under_way or 'its end'}()")
        self._under_way = what
        future = asyncio.run_coroutine_threadsafe(self._followed(call), self._loop)
        try:
            async with asyncio.timeout(self._call_s_max):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            raise ActuatorFailed(f"actuator {self.name!r} has not come back from {what}() for {self._call_s_max:g} s") from None

    async def _followed(self, call: Coroutine[Any, Any, Returned]) -> Returned:
        # In its own thread: a future that nobody waits for any more says nothing about the call.
        try:
            return await call
        finally:
            self._under_way = ""


def _run(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()

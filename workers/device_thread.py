"""The one thread that touches the device: the event loop hands it calls and gets their results back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

Done = Callable[[Any, BaseException | None], None]
_Job = tuple[Callable[[], Any], Done]


class DeviceThread:
    """Runs calls one after the other.

    A thread of our own, not an executor's: the interpreter joins executor threads at its end, and a device that hangs would then keep a
    process alive that must die. A daemon thread is left behind.
    """

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"device-{name}", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def submit(self, call: Callable[[], Any], done: Done) -> None:
        """Run `call` on the thread, then `done(result, error)` on the event loop."""
        self._jobs.put((call, done))

    async def run(self, call: Callable[[], Any], timeout_seconds: float) -> Any:
        """The result of `call`, or its exception. Raises TimeoutError; the call itself cannot be stopped."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def done(result: Any, error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        self.submit(call, done)
        async with asyncio.timeout(timeout_seconds):
            return await future

    def close(self) -> None:
        """Let the thread end after its present call; does not wait for it."""
        self._jobs.put(None)

    def _run(self) -> None:
        loop = self._loop
        assert loop is not None
        while (job := self._jobs.get()) is not None:
            call, done = job
            result, error = None, None
            try:
                result = call()
            except BaseException as raised:
                error = raised
            try:
                loop.call_soon_threadsafe(done, result, error)
            except RuntimeError:  # the loop was closed meanwhile: nobody waits any more
                return
            del job, call, done, result, error  # a batch must not stay in memory until the next one comes

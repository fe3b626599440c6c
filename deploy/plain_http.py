"""The least of HTTP that health and metrics need: GET and HEAD, one answer a connection. A web framework would double a role's time to start."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus

import msgspec

HEAD_BYTES_MAX = 16 << 10
CONNECTIONS_MAX = 64
REQUEST_S_MAX = 10.0
METHODS = ("GET", "HEAD")


class Answer(msgspec.Struct, frozen=True):
    """What a page says."""

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: HTTPStatus = HTTPStatus.OK


Page = Callable[[Mapping[str, str]], Answer]
"""Called on the event loop with the request's headers, their names in lower case."""


class PlainServer:
    """Pages by path."""

    def __init__(self, pages: Mapping[str, Page]) -> None:
        self._pages = pages
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen; returns host and port. Raises OSError where they are taken."""
        self._server = await asyncio.start_server(self._connected, host, port, limit=HEAD_BYTES_MAX)
        address = self._server.sockets[0].getsockname()
        return address[0], address[1]

    async def close(self) -> None:
        """Stop listening, and give up what is being asked."""
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= CONNECTIONS_MAX:
            writer.close()
            return
        connection = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Whoever hangs up, dawdles or sends no HTTP is let go.
        try:
            with suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                async with asyncio.timeout(REQUEST_S_MAX):
                    writer.write(self._answer(await reader.readuntil(b"\r\n\r\n")))
                    await writer.drain()
        finally:
            writer.close()

    def _answer(self, head: bytes) -> bytes:
        request, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        method, _, rest = request.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        fields = (line.partition(":") for line in lines)
        page = self._pages.get(path)
        if method not in METHODS:
            answer = Answer(b"only GET is answered here\n", status=HTTPStatus.METHOD_NOT_ALLOWED)
        elif page is None:
            answer = Answer(f"nothing here; there is {', '.join(self._pages)}\n".encode(), status=HTTPStatus.NOT_FOUND)
        else:
            answer = page({name.strip().lower(): value.strip() for name, _, value in fields})
        status = f"HTTP/1.1 {answer.status} {answer.status.phrase}"
        length = f"content-length: {len(answer.body)}"
        shown = f"{status}\r\ncontent-type: {answer.content_type}\r\n{length}\r\nconnection: close\r\n\r\n".encode()
        return shown if method == "HEAD" else shown + answer.body

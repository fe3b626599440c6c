"""The HTTP side of a role: /metrics, /healthz and /readyz."""

from __future__ import annotations

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from broker.role import Role
from deploy.configuration import split_address


class HealthServer:
    """Serves one role's state; answers come from the event loop, so a blocked loop answers nothing."""

    def __init__(self, role: Role, registry: CollectorRegistry, address: str) -> None:
        """`address` is HOST:PORT; port 0 takes a free one. Raises ConfigurationError for anything else."""
        self._role = role
        self._registry = registry
        self._host, self._port = split_address(address)
        self._runner: web.AppRunner | None = None

    async def start(self) -> str:
        """Listen; returns the address as HOST:PORT. Raises OSError where it is taken."""
        application = web.Application()
        application.router.add_get("/metrics", self._metrics)
        application.router.add_get("/healthz", self._healthz)
        application.router.add_get("/readyz", self._readyz)
        self._runner = web.AppRunner(application, access_log=None, handle_signals=False)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._port).start()
        host, port = self._runner.addresses[0][:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return web.Response(body=encode(self._registry), headers={"content-type": content_type})

    async def _healthz(self, _request: web.Request) -> web.Response:
        return _answer(self._role.unhealthy())

    async def _readyz(self, _request: web.Request) -> web.Response:
        return _answer(self._role.unready())


def _answer(reason: str) -> web.Response:
    return web.Response(text=f"{reason or 'ok'}\n", status=503 if reason else 200)

"""The admin port: uvicorn on the member's own event loop, bounded in connections and in patience.

Signals stay the member's. A connection that holds no request in progress for two looks in a row is closed, so that
half-open and idle clients cannot use up the descriptors that iSCSI connections need.
"""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    from starlette.types import ASGIApp

CONNECTIONS_MAX = 64
LOOK_INTERVAL_S = 10.0
HEADER_BYTES_MAX = 16 * 1024
STOP_SECONDS = 2


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with a limit on connections and on the time a request head may take."""

    _look: asyncio.TimerHandle | None = None
    _idle_cycle: object = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS_MAX:
            transport.abort()
            return
        self._idle_cycle = self  # no request cycle yet, and none seen idle
        self._look = self.loop.call_later(LOOK_INTERVAL_S, self._look_for_progress)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._look is not None:
            self._look.cancel()
        super().connection_lost(exc)

    def _look_for_progress(self) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self.cycle is self._idle_cycle:
            self.transport.abort()
            return
        self._idle_cycle = self.cycle if idle else self
        self._look = self.loop.call_later(LOOK_INTERVAL_S, self._look_for_progress)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The member handles signals itself."""
        yield


class AdminServer:
    """Serves an application on a listening socket until `stop`."""

    def __init__(self, app: "ASGIApp", listener: socket.socket) -> None:
        self._listener = listener
        self._server = _Server(
            uvicorn.Config(
                app,
                interface="asgi3",
                http=BoundedProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=5,
                timeout_graceful_shutdown=STOP_SECONDS,
                h11_max_incomplete_event_size=HEADER_BYTES_MAX,
            )
        )
        self._task: asyncio.Task[None] | None = None

    @property
    def address(self) -> tuple[str, int]:
        """(host, port) as bound."""
        host, port, *_ = self._listener.getsockname()
        return host, port

    async def start(self) -> None:
        """Returns when requests are accepted."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._listener]), name="admin port")
        while not self._server.started:
            if self._task.done():
                self._task.result()
                raise RuntimeError("the admin port ended while it started")
            await asyncio.sleep(0.001)

    async def stop(self) -> None:
        """Answers what was asked, within STOP_SECONDS, and closes the port."""
        if self._task is None:
            self._listener.close()
            return
        self._server.should_exit = True
        await self._task
        self._task = None


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket (port 0: any free one). OSError as the system says it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host.strip("[]"), port), family=family, backlog=CONNECTIONS_MAX)

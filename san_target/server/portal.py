"""The iSCSI portals of a member: listening sockets, what their connections share, ticks, and limits on their number."""

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import structlog

from san_target.server.environment import Environment
from san_target.server.portal_connection import PortalConnection
from san_target.server.portal_socket import address_text as address_text
from san_target.session.connection import Stage
from san_target.session.host import Arena
from san_target.session.session import PortalCounters
from san_target.wire.framer import OWN_BUFFER_BYTES, LargeBuffers

if TYPE_CHECKING:
    from san_target.session.parameters import TargetLimits
    from san_target.session.session import Session
    from san_target.session.target import Directory

log = structlog.get_logger()

RECEIVE_BYTES: Final = 1 << 20
ARENA_BYTES: Final = 4 << 20
SPARE_ARENAS_MAX: Final = 4
TICK_S: Final = 1.0
CONNECTIONS_MAX: Final = 4096
LOGINS_MAX: Final = 1024  # connections that have not logged in yet; a new one takes the place of the oldest
LOG_LINES_PER_S: Final = 20
_ACCEPTS_PER_TURN: Final = 64
_OUT_OF_FILES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class LogBudget:
    """So many lines a second; what exceeds it is left out, so that nobody outside can fill the log."""

    def __init__(self, lines_per_s: int) -> None:
        self._lines_per_s = lines_per_s
        self._second = 0
        self._used = 0

    def grants(self, now: float) -> bool:
        if int(now) != self._second:
            self._second, self._used = int(now), 0
        self._used += 1
        return self._used <= self._lines_per_s


class PortalServer:
    """The iSCSI portals of a member. start() may be called once per address."""

    def __init__(
        self,
        directory: "Directory",
        limits: "TargetLimits",
        weak_chap: bool = True,
        busy_poll_s: float = 0.0,
        environment: Environment | None = None,
    ) -> None:
        self._environment = environment or Environment()
        self.loop = asyncio.get_running_loop()
        self.now = self._environment.now_s
        self.random_bytes = self._environment.random_bytes
        self.directory = directory
        self.limits = limits
        self.weak_chap = weak_chap
        self.busy_poll_s = busy_poll_s
        self.receive_buffer = memoryview(bytearray(RECEIVE_BYTES + OWN_BUFFER_BYTES))
        self.arena = Arena(ARENA_BYTES)
        self.large_buffers = LargeBuffers(limits.max_recv_data_segment_length)
        self.counters = PortalCounters()
        self.log_budget = LogBudget(LOG_LINES_PER_S)
        self.connections: dict[PortalConnection, None] = {}  # the oldest first
        self.running: set[asyncio.Task[None]] = set()  # commands and logins under way
        self.accepted = 0
        self.refused = 0
        self.serving: PortalConnection | None = None  # whose batch is being handled
        self.logging_in: dict[PortalConnection, None] = {}  # the oldest first
        self.arenas_lent = 0
        self._last_served: PortalConnection | None = None
        self._spare_arenas: list[Arena] = []
        self._listeners: list[socket.socket] = []
        self._paused = False
        self.guard: Callable[[], bool] | None = None  # asked before each batch: may what has arrived be executed?
        self._ticker: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen on an address (port 0 = a free one); returns the bound (host, port). OSError if that cannot be."""
        listener = await self._environment.listen_portal(host, port)
        self._listeners.append(listener)
        self.loop.add_reader(listener, self._on_acceptable, listener)
        if self._ticker is None:
            self._ticker = self.loop.create_task(self._tick())
        bound = listener.getsockname()
        return bound[0], bound[1]

    def _on_acceptable(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                sock, peer = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _OUT_OF_FILES:
                    raise
                log.warning("cannot accept a connection", reason=error.strerror)
                self.loop.remove_reader(listener)
                self.loop.call_later(0.2, self._accept_again, listener)
                return
            if len(self.connections) >= CONNECTIONS_MAX:
                self.refused += 1
                sock.close()
                continue
            self.accepted += 1
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            here = sock.getsockname()
            connection = PortalConnection(self, sock, address_text(here), address_text(peer))
            self.connections[connection] = None
            self.logging_in[connection] = None
            if len(self.logging_in) > LOGINS_MAX:
                # Those that never finish must not keep out those that would.
                next(iter(self.logging_in)).give_up("too many connections log in at the same time")

    def _accept_again(self, listener: socket.socket) -> None:
        if listener in self._listeners and not self._paused:
            self.loop.add_reader(listener, self._on_acceptable, listener)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now = self.now()
            for connection in list(self.connections):
                connection.tick(now)

    def lend_arena(self) -> Arena:
        """The current arena, for a connection that could not send everything; another takes its place."""
        lent = self.arena
        self.arena = self._spare_arenas.pop() if self._spare_arenas else Arena(ARENA_BYTES)
        self.arenas_lent += 1
        return lent

    def give_back_arena(self, arena: Arena) -> None:
        self.arenas_lent -= 1
        if len(self._spare_arenas) < SPARE_ARENAS_MAX:
            arena.used_bytes = 0
            self._spare_arenas.append(arena)

    def alone(self, connection: PortalConnection) -> bool:
        """Was the last request of this member on the same connection? Waiting for one must not delay others."""
        before, self._last_served = self._last_served, connection
        return before is connection

    def forget(self, connection: PortalConnection) -> None:
        self.connections.pop(connection, None)
        self.logging_in.pop(connection, None)
        if self._last_served is connection:
            self._last_served = None

    def has_room(self) -> bool:
        """Whether another connection would be accepted now."""
        return bool(self._listeners) and len(self.connections) < CONNECTIONS_MAX

    def sessions(self) -> "list[Session]":
        """Everyone who is logged in here, discovery sessions included."""
        found = (each.connection for each in self.connections)
        return [
            each.session
            for each in found
            if each.session is not None and each.stage in (Stage.DISCOVERY, Stage.FULL_FEATURE, Stage.LOGGING_OUT)
        ]

    def drop(self, session_id: str, reason: str = "dropped by the operator") -> bool:
        """End a session; its initiator may log in again. False if there is no such session."""
        for session in self.sessions():
            if session.id == session_id:
                session.connection.drop(reason)
                return True
        return False

    def pause(self) -> None:
        """Accept no connection until `resume`; whoever comes meanwhile waits."""
        self._paused = True
        for listener in self._listeners:
            self.loop.remove_reader(listener)

    def resume(self) -> None:
        self._paused = False
        for listener in self._listeners:
            self.loop.add_reader(listener, self._on_acceptable, listener)

    async def stop(self) -> None:
        """Stop listening, end every connection, and return when none of their commands is under way."""
        self.pause()
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
        await self.end_connections("the member stops")

    def abort_all(self, reason: str) -> None:
        """End every connection at once; nothing that has arrived on it is executed any more."""
        for each in list(self.connections):
            each.give_up(reason)

    async def end_connections(self, reason: str) -> None:
        """End every connection, and return when none of their commands is under way."""
        connections = list(self.connections)
        for each in connections:
            each.connection.drop(reason)
            each.flush()
        await asyncio.gather(*(each.connection.terminate(reason) for each in connections))
        while self.running:  # commands of connections that were gone before, too
            await asyncio.wait(self.running)

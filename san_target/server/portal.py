"""The shell around connections: listening sockets, non-blocking sends and receives, ticks.

One receive is one batch: every PDU in it is handled, answers leave with one `sendmsg` per about 16 of them. Sockets
are driven directly by the event loop's readiness callbacks rather than by asyncio transports, because a transport
joins the buffers of an answer before it sends them (a copy of all data) and knows no shared receive buffer.
"""

import asyncio
import errno
import secrets
import socket
import struct
import time
from collections import deque
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final

import structlog

from san_target.session.connection import Connection, Stage
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
BUFFERS_PER_SEND: Final = 512  # below IOV_MAX (1024)
UNSENT_BYTES_MAX: Final = 4 << 20  # above it nothing more is received from this initiator
STALLED_SEND_S: Final = 30.0
LINGER_S: Final = 1.0
TICK_S: Final = 1.0
BUSY_POLL_TURN_S: Final = 0.0005  # then the other connections have their turn
POLLS_LEFT_OUT_MAX: Final = 255
CONNECTIONS_MAX: Final = 4096
LOG_LINES_PER_S: Final = 20
_ACCEPTS_PER_TURN: Final = 64
_OUT_OF_FILES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class PortalConnection:
    """The `Host` of one connection: its socket, and the bytes the network has not taken yet."""

    def __init__(self, server: "PortalServer", sock: socket.socket, portal_address: str, peer_address: str) -> None:
        self._server = server
        self._loop = server.loop
        self._socket = sock
        self._unsent: deque[memoryview] = deque()
        self._unsent_bytes = 0
        self._own_arena: Arena | None = None
        self._progress_s = time.monotonic()
        self._polls_to_leave_out = 0
        self._polls_left_out = 0
        self._reading = False
        self._waking = False
        self._closing = False
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.arena = server.arena
        self.large_buffers = server.large_buffers
        self.counters = server.counters
        self.connection = Connection(
            self, server.directory, server.limits, portal_address, peer_address, server.weak_chap
        )
        self._resume_reading()

    # --- Host -----------------------------------------------------------------------------------------------------

    @property
    def unsent_bytes(self) -> int:
        return self._unsent_bytes

    def event(self) -> asyncio.Event:
        return asyncio.Event()

    def now(self) -> float:
        return time.monotonic()

    def random_bytes(self, count: int) -> bytes:
        return secrets.token_bytes(count)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._broken(error)

    def began(self, session: "Session") -> None:
        if self._server.log_budget.grants(time.monotonic()):
            target = session.target.iqn if session.target is not None else "discovery"
            log.info("session begins", initiator=session.initiator_name, target=target, peer=session.address)

    def _log_end(self) -> None:
        connection = self.connection
        session = connection.session
        if not self._server.log_budget.grants(time.monotonic()):
            return
        if session is not None:
            target = session.target.iqn if session.target is not None else "discovery"
            log.info("session ends", initiator=session.initiator_name, target=target, reason=connection.close_reason)
        elif connection.close_reason:
            log.info("login failed", peer=connection.peer_address, reason=connection.close_reason)

    def failed(self, error: BaseException) -> None:
        log.error("a command failed by a defect of this program", exc_info=error, peer=self.connection.peer_address)

    def wake(self) -> None:
        if not self._waking and not self._closed:
            self._waking = True
            self._loop.call_soon(self._woken)

    def _woken(self) -> None:
        self._waking = False
        self.flush()

    def flush(self) -> None:
        outgoing = self.connection.outgoing
        if not outgoing:
            return
        self.connection.outgoing = []
        self.connection.answers = 0
        if self._closed:
            return
        if self._unsent:
            self._keep(outgoing, 0)
            return
        for start in range(0, len(outgoing), BUFFERS_PER_SEND):
            chunk = outgoing[start : start + BUFFERS_PER_SEND]
            try:
                sent = self._socket.sendmsg(chunk)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                self._lost(error)
                return
            if sent < sum(map(len, chunk)):
                self._keep(outgoing[start:], sent)
                self._loop.add_writer(self._socket, self._on_writable)
                self._progress_s = time.monotonic()
                return
        # Everything taken from the shared arena in this batch has left: other connections took nothing meanwhile.
        self._server.arena.used_bytes = 0

    def _keep(self, buffers: list[bytes | memoryview], already_sent: int) -> None:
        """Keep what the network did not take; its memory must then not be used by other connections."""
        for buffer in buffers:
            view = memoryview(buffer)
            if already_sent >= len(view):
                already_sent -= len(view)
                continue
            self._unsent.append(view[already_sent:])
            self._unsent_bytes += len(view) - already_sent
            already_sent = 0
        if self._own_arena is None and self._server.arena.used_bytes:
            self.arena = self._own_arena = self._server.arena
            self._server.replace_arena()
        if self._unsent_bytes > UNSENT_BYTES_MAX:
            self._pause_reading()

    def close(self) -> None:
        """Send what is left, then end the stream; what still arrives is thrown away for a moment, so that the last
        answers are not destroyed by a reset (RFC 1122 4.2.2.13)."""
        if self._closing or self._closed:
            return
        self._closing = True
        self._loop.call_soon(self._finish_closing)

    def _finish_closing(self) -> None:
        if self._closed:
            return
        self.flush()
        if self._unsent or self._closed:
            return  # _on_writable comes back here
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self._destroy()
            return
        self._resume_reading()
        self._loop.call_later(LINGER_S, self._destroy)

    def abort(self) -> None:
        if not self._closed:
            # SO_LINGER 0: a reset, so that nothing queued reaches the initiator any more.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._destroy()

    # --- readiness ------------------------------------------------------------------------------------------------

    def _resume_reading(self) -> None:
        if not self._reading and not self._closed:
            self._reading = True
            self._loop.add_reader(self._socket, self._on_readable)

    def _pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._socket)

    def _on_readable(self) -> None:
        if self._receive() == 1 and self._server.busy_poll_s > 0 and self._server.alone(self):
            self._poll_busily()

    def _poll_busily(self) -> None:
        """Look for the next request for a moment before going to sleep.

        An initiator with one command at a time sends the next one some 20 us after its answer; waking this process up
        again costs more than that. It is only worth while when this works: after a miss the next tries are left out,
        twice as many each time, so an initiator with a slower pace costs next to nothing.
        """
        if self._polls_left_out < self._polls_to_leave_out:
            self._polls_left_out += 1
            return
        self._polls_left_out = 0
        now = time.monotonic()
        others_turn = now + BUSY_POLL_TURN_S
        deadline = now + self._server.busy_poll_s
        while self._reading and not self._closing:
            answers = self._receive()
            now = time.monotonic()
            if answers == 0 and now > deadline:
                self._polls_to_leave_out = min(2 * self._polls_to_leave_out + 1, POLLS_LEFT_OUT_MAX)
                return
            if answers:
                self._polls_to_leave_out = 0
                deadline = now + self._server.busy_poll_s
            if answers > 1 or now > others_turn:
                return

    def _receive(self) -> int:
        """One batch; returns the number of answers that it sent at its end, 0 if nothing had arrived."""
        connection = self.connection
        framer = connection.framer
        shared = self._server.receive_buffer
        try:
            buffers = framer.buffers(shared)
            # recv_into is the cheaper call; two buffers are needed only while a large PDU is under way.
            count = self._socket.recv_into(buffers[0]) if len(buffers) == 1 else self._socket.recvmsg_into(buffers)[0]
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            self._lost(error)
            return 0
        if count == 0:
            self._lost(None)
            return 0
        if self._closing:
            return 0
        self.arena = self._own_arena or self._server.arena
        try:
            connection.receive(framer.received(shared, count))
        except Exception as error:
            self._broken(error)
            return 0
        answers = connection.answers
        if connection.outgoing:
            self.flush()
        return answers

    def _on_writable(self) -> None:
        while self._unsent:
            chunk = [self._unsent[index] for index in range(min(len(self._unsent), BUFFERS_PER_SEND))]
            try:
                sent = self._socket.sendmsg(chunk)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._lost(error)
                return
            self._progress_s = time.monotonic()
            self._unsent_bytes -= sent
            while sent:
                first = self._unsent[0]
                if sent < len(first):
                    self._unsent[0] = first[sent:]
                    break
                sent -= len(first)
                self._unsent.popleft()
        self._drained()

    def _drained(self) -> None:
        self._loop.remove_writer(self._socket)
        if self._own_arena is not None:
            self._server.give_back_arena(self._own_arena)
            self._own_arena = None
            self.arena = self._server.arena
        if self._closing:
            self._finish_closing()
            return
        self._resume_reading()
        self.connection.start_waiting()
        self.flush()

    def tick(self, now: float) -> None:
        if self._unsent and now - self._progress_s > STALLED_SEND_S:
            self.connection.close_reason = "the initiator takes no data"
            self.abort()
            return
        self.connection.tick(now)

    # --- the end --------------------------------------------------------------------------------------------------

    def _lost(self, error: OSError | None) -> None:
        self.connection.lost("closed by the initiator" if error is None else error.strerror or "connection lost")
        self._destroy()

    def _broken(self, error: BaseException) -> None:
        """A defect of ours: this connection ends, no other notices."""
        log.error("a connection ended by a defect of this program", exc_info=error, peer=self.connection.peer_address)
        self.connection.lost("internal error")
        self.abort()

    def _destroy(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._pause_reading()
        self._loop.remove_writer(self._socket)
        self._socket.close()
        self._unsent.clear()
        self._unsent_bytes = 0
        self._own_arena = None
        self.connection.lost()
        self._log_end()
        self._server.forget(self)


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
        self, directory: "Directory", limits: "TargetLimits", weak_chap: bool = True, busy_poll_s: float = 0.0
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.directory = directory
        self.limits = limits
        self.weak_chap = weak_chap
        self.busy_poll_s = busy_poll_s
        self.receive_buffer = memoryview(bytearray(RECEIVE_BYTES + OWN_BUFFER_BYTES))
        self.arena = Arena(ARENA_BYTES)
        self.large_buffers = LargeBuffers(limits.max_recv_data_segment_length)
        self.counters = PortalCounters()
        self.log_budget = LogBudget(LOG_LINES_PER_S)
        self.connections: set[PortalConnection] = set()
        self.accepted = 0
        self.refused = 0
        self._last_served: PortalConnection | None = None
        self._spare_arenas: list[Arena] = []
        self._listeners: list[socket.socket] = []
        self._ticker: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen on an address (port 0 = a free one); returns the bound (host, port). OSError if that cannot be."""
        info = (await self.loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE))[0]
        listener = socket.socket(info[0], socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if info[0] == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(info[4])
            listener.listen(1024)
            listener.setblocking(False)
        except OSError:
            listener.close()
            raise
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
            self.connections.add(PortalConnection(self, sock, address_text(here), address_text(peer)))

    def _accept_again(self, listener: socket.socket) -> None:
        if listener in self._listeners:
            self.loop.add_reader(listener, self._on_acceptable, listener)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            for connection in list(self.connections):
                connection.tick(now)

    def replace_arena(self) -> None:
        """The current arena went to a connection that could not send everything."""
        self.arena = self._spare_arenas.pop() if self._spare_arenas else Arena(ARENA_BYTES)

    def give_back_arena(self, arena: Arena) -> None:
        if len(self._spare_arenas) < SPARE_ARENAS_MAX:
            arena.used_bytes = 0
            self._spare_arenas.append(arena)

    def alone(self, connection: PortalConnection) -> bool:
        """Was the last request of this member on the same connection? Waiting for one must not delay others."""
        before, self._last_served = self._last_served, connection
        return before is connection

    def forget(self, connection: PortalConnection) -> None:
        self.connections.discard(connection)
        if self._last_served is connection:
            self._last_served = None

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

    async def stop(self) -> None:
        """Stop listening, end every connection, and return when none of their commands is under way."""
        for listener in self._listeners:
            self.loop.remove_reader(listener)
            listener.close()
        self._listeners.clear()
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
        connections = list(self.connections)
        for each in connections:
            each.connection.drop("the member stops")
            each.flush()
        await asyncio.gather(*(each.connection.terminate("the member stops") for each in connections))


def address_text(address: tuple[Any, ...]) -> str:
    """ "host:port", with brackets around an IPv6 host."""
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

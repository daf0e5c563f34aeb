"""The shell below sessions: sockets, one receive buffer for all of them, ticks.

One receive is one batch: every PDU in it is handled, and what that caused to be sent leaves with one `sendmsg`.
"""

import asyncio
import os
import secrets
import socket
import time
from collections import deque
from collections.abc import Iterator
from typing import Final, Protocol

from initiator_sim.login import LoginError
from initiator_sim.session import ProtocolError
from san_target.wire.errors import PduError
from san_target.wire.framer import OWN_BUFFER_BYTES, Framer, FramingError, Pdu

RECEIVE_BYTES: Final = 1 << 20
BUFFERS_PER_SEND: Final = 512  # below IOV_MAX
TICK_S: Final = 0.25
LOGIN_SEGMENT_BYTES: Final = 1 << 18

Buffers = list[bytes | memoryview]


class Handler(Protocol):
    """What a connection serves: a login, then a session."""

    def receive(self, batch: Iterator[Pdu]) -> None:
        """The PDUs of one receive. A raised ProtocolError, LoginError, PduError or FramingError ends the connection."""

    def take_outgoing(self) -> Buffers:
        """What is to be sent; it is not asked for again."""

    def closed(self, error: Exception | None) -> None:
        """The connection is gone: error is None where the target closed it in an orderly way. Called once."""


class Ticking(Protocol):
    def tick(self, now: float) -> None: ...


class Reactor:
    """All that the connections of one event loop share. Make it inside the running loop; close() ends its ticks."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.receive_buffer = memoryview(bytearray(RECEIVE_BYTES + OWN_BUFFER_BYTES))
        # In the order they came, so that a simulated run can be repeated.
        self.connections: dict[Connection, None] = {}
        self._ticking: dict[Ticking, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def random_bytes(self, count: int) -> bytes:
        """For challenges and ISIDs."""
        return secrets.token_bytes(count)

    def add_ticking(self, one: Ticking) -> None:
        """Call one.tick(now) every TICK_S from now on."""
        self._ticking[one] = None
        if self._timer is None:
            self._timer = self.loop.call_later(TICK_S, self._tick)

    def remove_ticking(self, one: Ticking) -> None:
        self._ticking.pop(one, None)
        if not self._ticking and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        self._timer = self.loop.call_later(TICK_S, self._tick)
        now = self.now()
        for one in list(self._ticking):
            if one in self._ticking:  # one that ticked before may have ended it
                one.tick(now)

    async def open(self, host: str, port: int, handler: Handler, timeout_s: float) -> "Connection":
        """A TCP connection that `handler` serves. OSError, or TimeoutError, where there is none."""
        async with asyncio.timeout(timeout_s):
            found = await self.loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            family, kind, protocol, _, address = found[0]
            sock = socket.socket(family, kind, protocol)
            try:
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await self.loop.sock_connect(sock, address)
            except BaseException:
                sock.close()
                raise
        return Connection(self, sock, handler)


class Connection:
    """One TCP connection. After `close`, `abort` or the peer's end, handler.closed() has been called."""

    __slots__ = (
        "_closed",
        "_closing",
        "_flush_planned",
        "_loop",
        "_reactor",
        "_socket",
        "_unsent",
        "framer",
        "handler",
    )

    def __init__(self, reactor: Reactor, sock: socket.socket, handler: Handler) -> None:
        self._reactor = reactor
        self._loop = reactor.loop
        self._socket = sock
        self._unsent: deque[memoryview] = deque()
        self._closed = False
        self._closing = False
        self._flush_planned = False
        self.handler = handler
        self.framer = Framer(LOGIN_SEGMENT_BYTES)
        reactor.connections[self] = None
        reactor.add_ticking(self)
        self._loop.add_reader(sock, self._readable)

    @property
    def local_address(self) -> tuple[str, int]:
        name = self._socket.getsockname()
        return name[0], name[1]

    def _readable(self) -> None:
        shared = self._reactor.receive_buffer
        framer = self.framer
        try:
            buffers = framer.buffers(shared)
            count = self._socket.recv_into(buffers[0]) if len(buffers) == 1 else self._socket.recvmsg_into(buffers)[0]
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._end(error)
            return
        if count == 0:
            self._end(None)
            return
        try:
            self.handler.receive(framer.received(shared, count))
        except (ProtocolError, LoginError, PduError, FramingError) as error:
            self._end(error)
            return
        self.flush()

    def tick(self, now: float) -> None:
        """uvloop does not tell of a reset that came right behind data: it ends its watch with the data."""
        if number := self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._end(OSError(number, os.strerror(number)))

    def plan_flush(self) -> None:
        """Flush when this turn of the loop ends: everything that is submitted in it goes out together."""
        if not self._flush_planned and not self._closed:
            self._flush_planned = True
            self._loop.call_soon(self._planned_flush)

    def _planned_flush(self) -> None:
        self._flush_planned = False
        self.flush()

    def flush(self) -> None:
        """Send what the handler has to send."""
        if self._closed:
            return
        outgoing = self.handler.take_outgoing()
        if not outgoing:
            return
        if self._unsent:
            self._unsent.extend(map(memoryview, outgoing))
            return
        for start in range(0, len(outgoing), BUFFERS_PER_SEND):
            chunk = outgoing[start : start + BUFFERS_PER_SEND]
            try:
                sent = self._socket.sendmsg(chunk)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:
                # The target may have said why before it closed: what it sent is read first, then the end is seen.
                self._unsent.clear()
                return
            if sent < sum(map(len, chunk)):
                self._unsent.extend(map(memoryview, outgoing[start:]))
                self._drop_sent(sent)
                self._loop.add_writer(self._socket, self._writable)
                return

    def _drop_sent(self, sent: int) -> None:
        while sent:
            first = self._unsent[0]
            if sent < len(first):
                self._unsent[0] = first[sent:]
                return
            sent -= len(first)
            self._unsent.popleft()

    def _writable(self) -> None:
        while self._unsent:
            chunk = [self._unsent[index] for index in range(min(len(self._unsent), BUFFERS_PER_SEND))]
            try:
                self._drop_sent(self._socket.sendmsg(chunk))
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._unsent.clear()
        self._loop.remove_writer(self._socket)
        if self._closing:
            self._end(None)

    def close(self) -> None:
        """Send what is left, then close."""
        self.flush()
        if self._unsent:
            self._closing = True
        else:
            self._end(None)

    def abort(self, error: Exception | None = None) -> None:
        """Close at once."""
        self._end(error)

    def _end(self, error: Exception | None) -> None:
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        self._unsent.clear()
        self._reactor.connections.pop(self, None)
        self._reactor.remove_ticking(self)
        self.handler.closed(error)

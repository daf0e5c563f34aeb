"""Sockets between members: what `peer.transport` asks for, over TCP.

Driven by the event loop's readiness callbacks, like the portals' connections and for the same reasons: one receive
into a shared buffer is one batch, and what is sent together leaves with one `sendmsg`. TLS is put on top (`peer_tls`).

Every socket has SO_LINGER 0, so that whatever ends it, a killed process too, takes back what the network has not
delivered: the kernel must not go on sending requests of a member that others believe to be gone.
"""

import asyncio
import errno
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Final

import structlog

from san_target.peer.frames import Payload
from san_target.peer.transport import PeerListener, Receiver, Transport
from san_target.server import portal_socket
from san_target.server.config import parse_address
from san_target.server.peer_tls import CLOSED, HANDSHAKE_S, PeerTls, TlsTransport
from san_target.server.portal_socket import USUAL_CONGESTION_CONTROL, address_text

log = structlog.get_logger()

RECEIVE_BYTES: Final = 1 << 20
BUFFERS_PER_SEND: Final = 512  # below IOV_MAX (1024)
GOODBYE_S: Final = 1.0
ACCEPTS_PER_TURN: Final = 64
SECURING_MAX: Final = 64
_LINGER_0: Final = struct.pack("ii", 1, 0)
_NO_LINGER: Final = struct.pack("ii", 0, 0)
_OUT_OF_FILES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class SocketTransport:
    """A `Transport` over a connected socket."""

    __slots__ = (
        "_buffer",
        "_ended",
        "_loop",
        "_paused",
        "_receiver",
        "_saying_goodbye",
        "_socket",
        "_unsent",
        "_unsent_bytes",
        "_writing",
    )

    def __init__(self, sock: socket.socket, buffer: memoryview) -> None:
        """buffer: shared with other transports of this event loop. Nothing is received before `start`."""
        self._loop = asyncio.get_running_loop()
        self._socket = sock
        self._buffer = buffer
        self._receiver: Receiver
        self._unsent: deque[memoryview] = deque()
        self._unsent_bytes = 0
        self._writing = False
        self._paused = True
        self._saying_goodbye = False
        self._ended = False

    def start(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self.resume()

    # --- Transport ----------------------------------------------------------------------------------------------------

    @property
    def unsent_bytes(self) -> int:
        return self._unsent_bytes

    def send(self, buffers: list[Payload]) -> None:
        if self._ended or self._saying_goodbye:
            return
        if self._unsent:
            self._keep(buffers, 0)
            return
        for start in range(0, len(buffers), BUFFERS_PER_SEND):
            chunk = buffers[start : start + BUFFERS_PER_SEND] if len(buffers) > BUFFERS_PER_SEND else buffers
            try:
                sent = self._socket.sendmsg(chunk)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                # Never from within `send`: its caller is in the midst of something.
                self._loop.call_soon(self._lose, error.strerror or CLOSED)
                return
            if sent < sum(map(len, chunk)):
                self._keep(buffers[start:], sent)
                return

    def pause(self) -> None:
        if not self._paused:
            self._paused = True
            self._loop.remove_reader(self._socket)

    def resume(self) -> None:
        if self._paused and not self._ended:
            self._paused = False
            self._loop.add_reader(self._socket, self._on_readable)

    def abort(self) -> None:
        self._destroy()

    def close(self) -> None:
        if self._ended or self._saying_goodbye:
            return
        self._saying_goodbye = True
        self._loop.call_later(GOODBYE_S, self._destroy)
        if not self._unsent:
            self._shut_down()

    # ------------------------------------------------------------------------------------------------------------------

    def _keep(self, buffers: list[Payload], already_sent: int) -> None:
        """Keep what the network did not take; views are copied, since they show later changes."""
        for buffer in buffers:
            size_bytes = len(buffer)
            if already_sent >= size_bytes:
                already_sent -= size_bytes
                continue
            view = memoryview(buffer)[already_sent:]
            already_sent = 0
            self._unsent.append(view if type(buffer) is bytes else memoryview(bytes(view)))
            self._unsent_bytes += len(view)
        if self._unsent and not self._writing:
            self._writing = True
            self._loop.add_writer(self._socket, self._on_writable)

    def _on_writable(self) -> None:
        unsent = self._unsent
        while unsent:
            chunk = [unsent[index] for index in range(min(len(unsent), BUFFERS_PER_SEND))]
            try:
                sent = self._socket.sendmsg(chunk)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._lose(error.strerror or CLOSED)
                return
            self._unsent_bytes -= sent
            while sent:
                first = unsent[0]
                if sent < len(first):
                    unsent[0] = first[sent:]
                    break
                sent -= len(first)
                unsent.popleft()
        self._writing = False
        self._loop.remove_writer(self._socket)
        if self._saying_goodbye:
            self._shut_down()
        else:
            self._receiver.drained()

    def _on_readable(self) -> None:
        buffer = self._buffer
        try:
            count = self._socket.recv_into(buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(error.strerror or CLOSED)
            return
        if count == 0:
            self._lose(CLOSED)
        elif not self._saying_goodbye:
            try:
                self._receiver.received(buffer[:count])
            except Exception as error:
                log.error("a peer connection ended by a defect of this program", exc_info=error)
                self._lose("internal error")
        if not self._ended and (reset := portal_socket.pending_error(self._socket)):
            self._lose(reset.strerror or CLOSED)

    def _shut_down(self) -> None:
        """End the stream after the last words. What still arrives is thrown away for a moment, so that they are not
        destroyed by a reset (RFC 1122 4.2.2.13)."""
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self._destroy()
            return
        self.resume()

    def _lose(self, reason: str) -> None:
        if not self._ended:
            goodbye = self._saying_goodbye
            self._destroy()
            if not goodbye:
                self._receiver.lost(reason)

    def _destroy(self) -> None:
        if not self._ended:
            self.pause()
            self._ended = True
            if self._writing:
                self._loop.remove_writer(self._socket)
            self._socket.close()
            self._unsent.clear()
            self._unsent_bytes = 0


def prepare(sock: socket.socket) -> None:
    """Options of every connected socket."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)


# --- Calling ----------------------------------------------------------------------------------------------------------


async def connect(
    address: str,
    make_receiver: Callable[[Transport], Receiver],
    buffer: memoryview,
    tls: PeerTls | None = None,
    congestion_control: str = USUAL_CONGESTION_CONTROL,
) -> Transport:
    """Connect to "host:port". Raises OSError with a text that says why."""
    transport = SocketTransport(await _connect(address, congestion_control), buffer)
    if tls is None:
        transport.start(make_receiver(transport))
        return transport
    secure = TlsTransport(transport, tls.client, False, make_receiver, buffer)
    transport.start(secure)
    secure.begin()
    try:
        async with asyncio.timeout(HANDSHAKE_S):
            await secure.ready
    except TimeoutError:
        secure.abort()
        raise OSError("no answer in the TLS handshake") from None
    except BaseException:
        secure.abort()
        raise
    return secure


async def _connect(address: str, congestion_control: str) -> socket.socket:
    """A connected socket: the first of the name's addresses that takes one."""
    loop = asyncio.get_running_loop()
    host, port = parse_address(address)
    try:
        infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise OSError(f"{host}: {error.strerror}") from None
    failure = OSError(f"{host}: no address")
    for family, kind, protocol, _name, there in infos:
        sock = socket.socket(family, kind, protocol)
        try:
            prepare(sock)
            portal_socket.control_congestion(sock, congestion_control)
            await loop.sock_connect(sock, there)
        except OSError as error:
            sock.close()
            failure = OSError(error.errno, os.strerror(error.errno)) if error.errno else error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure


# --- Listening --------------------------------------------------------------------------------------------------------


class SocketListener:
    """A `PeerListener`. make_receiver: for each connection, with the address of its other end."""

    def __init__(
        self,
        sock: socket.socket,
        make_receiver: Callable[[Transport, str], Receiver],
        buffer: memoryview,
        tls: PeerTls | None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = sock
        self._make_receiver = make_receiver
        self._buffer = buffer
        self._tls = tls
        self._securing: set[TlsTransport] = set()
        self._closed = False
        self._bound = address_text(sock.getsockname())
        self._loop.add_reader(sock, self._on_acceptable)

    @property
    def address(self) -> str:
        return self._bound

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._socket)
            self._socket.close()
            for secure in list(self._securing):
                secure.give_up()

    def _on_acceptable(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, peer = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _OUT_OF_FILES:
                    raise
                log.warning("cannot accept a peer connection", reason=error.strerror)
                self._loop.remove_reader(self._socket)
                self._loop.call_later(0.2, self._accept_again)
                return
            try:
                prepare(sock)
            except OSError:  # gone already
                sock.close()
                continue
            self._begin(sock, address_text(peer))

    def _accept_again(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._socket, self._on_acceptable)

    def _begin(self, sock: socket.socket, peer_address: str) -> None:
        transport = SocketTransport(sock, self._buffer)
        if self._tls is None:
            transport.start(self._make_receiver(transport, peer_address))
        elif len(self._securing) < SECURING_MAX:
            secure = TlsTransport(
                transport,
                self._tls.server,
                True,
                lambda secure: self._make_receiver(secure, peer_address),
                self._buffer,
            )
            self._securing.add(secure)
            secure.ready.add_done_callback(lambda _ready: self._securing.discard(secure))
            self._loop.call_later(HANDSHAKE_S, secure.give_up)
            transport.start(secure)
        else:
            transport.abort()


async def listen(
    address: str,
    make_receiver: Callable[[Transport, str], Receiver],
    buffer: memoryview,
    tls: PeerTls | None = None,
    congestion_control: str = USUAL_CONGESTION_CONTROL,
) -> PeerListener:
    """Listen on "host:port" (port 0 = a free one). OSError."""
    listener = await portal_socket.listen(*parse_address(address), congestion_control)
    return SocketListener(listener, make_receiver, buffer, tls)


def new_receive_buffer() -> memoryview:
    """For all transports of one event loop."""
    return memoryview(bytearray(RECEIVE_BYTES))

"""One connection's socket: non-blocking sends and receives, and the bytes the network has not taken yet.

One receive is one batch: every PDU in it is handled, answers leave with one `sendmsg` per about 16 of them. Sockets
are driven directly by the event loop's readiness callbacks rather than by asyncio transports, because a transport
joins the buffers of an answer before it sends them (a copy of all data) and knows no shared receive buffer.
"""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final

import structlog

from san_target.server import portal_socket
from san_target.session.connection import Connection
from san_target.volume.device import VolumeError

if TYPE_CHECKING:
    from san_target.server.portal import PortalServer
    from san_target.session.host import Arena
    from san_target.session.session import Session

log = structlog.get_logger()

LENT_ARENAS_MAX: Final = 16
COPIED_BYTES_MAX: Final = 65536  # unsent output up to this is copied rather than keep a whole arena for it
BUFFERS_PER_SEND: Final = 512  # below IOV_MAX (1024)
STALLED_SEND_S: Final = 30.0
CLOSING_S: Final = 30.0
LINGER_S: Final = 1.0
BUSY_POLL_TURN_S: Final = 0.0005  # then the other connections have their turn
POLLS_LEFT_OUT_MAX: Final = 255


class PortalConnection:
    """The `Host` of one connection: its socket, and the bytes the network has not taken yet."""

    def __init__(self, server: "PortalServer", sock: socket.socket, portal_address: str, peer_address: str) -> None:
        self._server = server
        self._loop = server.loop
        self._socket = sock
        self._unsent: deque[memoryview] = deque()
        self._unsent_bytes = 0
        self._own_arena: Arena | None = None
        self.now = server.now  # (Host.now and Host.random_bytes)
        self.random_bytes = server.random_bytes
        self._progress_s = self.now()
        self._polls_to_leave_out = 0
        self._polls_left_out = 0
        self._reading = False
        self._waking = False
        self._going_on = False
        self._closing = False
        self._closing_s = 0.0
        self._closed = False
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

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._server.running.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._server.running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._broken(error)

    def began(self, session: "Session") -> None:
        self._server.logging_in.pop(self, None)
        if self._server.log_budget.grants(self.now()):
            target = session.target.iqn if session.target is not None else "discovery"
            log.info("session begins", initiator=session.initiator_name, target=target, peer=session.address)

    def _log_end(self) -> None:
        connection = self.connection
        session = connection.session
        if not self._server.log_budget.grants(self.now()):
            return
        if session is not None:
            target = session.target.iqn if session.target is not None else "discovery"
            log.info("session ends", initiator=session.initiator_name, target=target, reason=connection.close_reason)
        elif connection.redirected:
            log.info("login is redirected", peer=connection.peer_address, reason=connection.close_reason)
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
        connection = self.connection
        outgoing = connection.outgoing
        if not outgoing:
            return
        connection.outgoing = []
        connection.answers = 0
        if not self._closed:
            self._send(outgoing)
        if connection.viewed:
            connection.viewed.clear()

    def _send(self, outgoing: list[bytes | memoryview]) -> None:
        if self._unsent:
            self._keep(outgoing, 0)
            return
        for start in range(0, len(outgoing), BUFFERS_PER_SEND):
            chunk = outgoing[start : start + BUFFERS_PER_SEND] if len(outgoing) > BUFFERS_PER_SEND else outgoing
            try:
                sent = self._socket.sendmsg(chunk)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                self._lost(error)
                return
            if sent < sum(map(len, chunk)):
                if self._keep(outgoing[start:], sent):
                    self._loop.add_writer(self._socket, self._on_writable)
                    self._progress_s = self.now()
                return
        server = self._server
        if server.serving is self:
            # Everything taken from the shared arena in this batch has left: other connections took nothing meanwhile.
            server.arena.used_bytes = 0

    def _keep(self, buffers: list[bytes | memoryview], already_sent: int) -> bool:
        """Keep what the network did not take; its memory must then not be used by other connections.

        False: the connection had to end.
        """
        shown = {id(view): (lba, blocks) for view, lba, blocks in self.connection.viewed}
        views = []
        for buffer in buffers:
            view = memoryview(buffer)
            if already_sent >= len(view):
                already_sent -= len(view)
                continue
            if id(buffer) in shown:
                try:
                    view = self._fetched(*shown[id(buffer)], len(view))
                except VolumeError as error:
                    # Its header may be on the way already: the initiator has to repeat the command.
                    self.give_up(f"data that was being sent cannot be read: {error}")
                    return False
            views.append(view[already_sent:])
            self._unsent_bytes += len(view) - already_sent
            already_sent = 0
        server = self._server
        # (While another one is served, what this one sends does not lie in the shared arena.)
        if self._own_arena is None and server.serving is self and server.arena.used_bytes:
            if self._unsent_bytes <= COPIED_BYTES_MAX or server.arenas_lent >= LENT_ARENAS_MAX:
                views = [memoryview(bytes(view)) for view in views]
                server.arena.used_bytes = 0
            else:
                self.arena = self._own_arena = server.lend_arena()
        self._unsent += views
        if self._unsent_bytes > server.limits.unsent_bytes_max:
            self._pause_reading()
        return True

    def _fetched(self, lba: int, blocks: int, size_bytes: int) -> memoryview:
        """A copy of blocks that were to be sent from where they lie, which show later changes."""
        into = self.arena.take(size_bytes) or memoryview(bytearray(size_bytes))
        self.connection.reread(lba, blocks, into)
        return into

    def close(self) -> None:
        """Send what is left, then end the stream; what still arrives is thrown away for a moment, so that the last
        answers are not destroyed by a reset (RFC 1122 4.2.2.13)."""
        if self._closing or self._closed:
            return
        self._closing = True
        self._closing_s = self.now()
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
        now = self.now()
        others_turn = now + BUSY_POLL_TURN_S
        deadline = now + self._server.busy_poll_s
        while self._reading and not self._closing:
            answers = self._receive()
            now = self.now()
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
        return self._handle(count)

    def _handle(self, count: int) -> int:
        """Have `count` bytes more handled; returns the number of answers that were sent at the end."""
        connection, server = self.connection, self._server
        if server.guard is not None and not server.guard():
            self.give_up("this member stood still for a while, and does not know what became of the initiator")
            return 0
        self.arena = self._own_arena or server.arena
        server.serving = self
        framer = connection.framer
        try:
            connection.receive(framer.received(server.receive_buffer, count))
            answers = connection.answers
            if connection.outgoing:
                self.flush()
        except Exception as error:
            self._broken(error)
            return 0
        finally:
            server.serving = None
        if framer.unread and not self._closing:
            self._put_off()
        return answers

    def _put_off(self) -> None:
        """What is left of the last receive is handled when the other connections have had their turn."""
        self._pause_reading()
        if not self._going_on:
            self._going_on = True
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._going_on = False
        if self._closing or self._closed or self._unsent_bytes > self._server.limits.unsent_bytes_max:
            return  # _drained comes back here
        framer = self.connection.framer
        framer.buffers(self._server.receive_buffer)
        self._handle(0)
        if not framer.unread and self._unsent_bytes <= self._server.limits.unsent_bytes_max:
            self._resume_reading()

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
            self._progress_s = self.now()
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
        self.connection.start_waiting()
        self.flush()
        if self.connection.framer.unread:
            self._put_off()
        elif self._unsent_bytes <= self._server.limits.unsent_bytes_max:
            self._resume_reading()

    def tick(self, now: float) -> None:
        if error := portal_socket.pending_error(self._socket):
            self._lost(error)
            return
        stalled = self._unsent and now - self._progress_s > STALLED_SEND_S
        if stalled or (self._closing and now - self._closing_s > CLOSING_S):
            self.give_up("the initiator takes no data")
            return
        self.connection.tick(now)

    # --- the end --------------------------------------------------------------------------------------------------

    def give_up(self, reason: str) -> None:
        """End the connection at once, whatever is still to be sent."""
        self.connection.lost(reason)
        self.abort()

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
        if self._own_arena is not None:
            self._server.give_back_arena(self._own_arena)
            self._own_arena = None
        self.connection.lost()
        self._log_end()
        self._server.forget(self)

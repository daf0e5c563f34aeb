"""One connection to one etcd process: gRPC calls over HTTP/2.

What the store needs and gRPC libraries leave unclear is kept here: for each call that failed, whether the request may
have been carried out. `NotSent` says that it surely was not: the last byte of it never left, or the server refused the
stream unseen (RFC 9113 8.7). `Lost` says that nobody knows. Nothing is ever sent twice.
"""

import asyncio
import os
import ssl
import struct
from collections import deque
from typing import cast
from urllib.parse import unquote

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings

STREAM_WINDOW_BYTES = 4 << 20
CONNECTION_WINDOW_BYTES = 64 << 20  # a watch that is not read must not hold up other calls
MESSAGE_BYTES_MAX = 256 << 20
QUEUED_MESSAGES_MAX = 16  # of a stream that is not read; then etcd waits
MESSAGE_PREFIX = struct.Struct(">BL")  # compressed?, length

# gRPC status codes that the store tells apart.
CANCELLED, UNKNOWN, INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND, ALREADY_EXISTS = 1, 2, 3, 4, 5, 6
PERMISSION_DENIED, RESOURCE_EXHAUSTED, FAILED_PRECONDITION, OUT_OF_RANGE = 7, 8, 9, 11
UNIMPLEMENTED, INTERNAL, UNAVAILABLE, UNAUTHENTICATED = 12, 13, 14, 16


class CallError(Exception):
    """A call that did not get its answer."""


class NotSent(CallError):
    """The request was surely not carried out: it may be sent elsewhere."""


class Lost(CallError):
    """There is no answer; the request may have been carried out, or may still be."""


class TooLarge(Lost):
    """An answer is larger than MESSAGE_BYTES_MAX."""


class Refused(CallError):
    """etcd answered with an error: its gRPC status code and text."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text or f"status {code}")
        self.code = code
        self.text = text


class Call:
    """One request and its answers. `messages` is filled until `ended`; `error`: why it ended, None = all is well."""

    def __init__(self, stream_id: int, request: bytes, is_stream: bool) -> None:
        self.stream_id = stream_id
        self.is_stream = is_stream
        self.unsent = request
        self.messages: deque[bytes] = deque()
        self.changed = asyncio.Event()
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.error: CallError | None = None
        self.unacknowledged_bytes = 0
        self._buffer = bytearray()

    @property
    def ended(self) -> bool:
        return self.finished.done()

    def take(self, data: bytes) -> None:
        """Cut whole messages out of what came in."""
        self._buffer += data
        while len(self._buffer) >= MESSAGE_PREFIX.size:
            compressed, length = MESSAGE_PREFIX.unpack_from(self._buffer)
            if compressed:
                return self.lose("a compressed message, which was not asked for")
            if length > MESSAGE_BYTES_MAX:
                return self.end(TooLarge(f"an answer of {length} bytes, where {MESSAGE_BYTES_MAX} are taken"))
            end = MESSAGE_PREFIX.size + length
            if len(self._buffer) < end:
                return None
            self.messages.append(bytes(self._buffer[MESSAGE_PREFIX.size : end]))
            del self._buffer[:end]
            self.changed.set()
        return None

    def take_status(self, headers: dict[str, str]) -> None:
        """The outcome, from trailers, or from the only headers of an answer without messages."""
        http_status, code = headers.get(":status", "200"), headers.get("grpc-status", "")
        if http_status != "200":
            self.end(Refused(UNIMPLEMENTED if http_status == "404" else UNAVAILABLE, f"HTTP status {http_status}"))
        elif code == "0":
            self.end(None)
        elif code:
            self.end(Refused(int(code) if code.isdecimal() else UNKNOWN, unquote(headers.get("grpc-message", ""))))

    def end(self, error: CallError | None) -> None:
        if not self.ended:
            self.error = error
            self.finished.set_result(None)
            self.changed.set()

    def lose(self, reason: str) -> None:
        self.end(NotSent(reason) if self.unsent else Lost(reason))


class Connection(asyncio.Protocol):
    """`open` makes one. is_open: calls can be made."""

    def __init__(self, authority: str, scheme: str) -> None:
        self.authority = authority
        self.is_open = False
        self._scheme = scheme
        self._http = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self._http.local_settings = Settings(
            client=True,
            initial_values={SettingCodes.ENABLE_PUSH: 0, SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES},
        )
        self._transport: asyncio.Transport | None = None
        self._calls: dict[int, Call] = {}
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def open(cls, host: str, port: int, tls: ssl.SSLContext | None) -> "Connection":
        """Connected, and the server has spoken HTTP/2. NotSent: why not. The caller bounds the time."""
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        connection = cls(authority, "https" if tls else "http")
        try:
            await asyncio.get_running_loop().create_connection(lambda: connection, host, port, ssl=tls)
            await connection._ready
        except ssl.SSLCertVerificationError as error:
            raise NotSent(f"its certificate is not accepted ({error.verify_message})") from error
        except ssl.SSLError as error:
            reason = error.reason or str(error)
            advice = "; does it want another certificate, or one at all?" if "CERTIFICATE" in reason else ""
            raise NotSent(f"TLS failed ({reason}){advice}") from error
        except OSError as error:
            hung_up = "it ended the connection during the TLS handshake; does it speak TLS?"
            raise NotSent(os.strerror(error.errno) if error.errno else str(error) or hung_up) from error
        finally:
            if not connection.is_open:
                connection.abort("it is not used")
        return connection

    @property
    def has_streams(self) -> bool:
        return any(call.is_stream for call in self._calls.values())

    # Calls ------------------------------------------------------------------------------------------------------------

    async def call(self, path: str, request: bytes, metadata: dict[str, str], timeout_s: float) -> bytes:
        """The one answer to one request. NotSent, Lost, Refused."""
        call = self._begin(path, request, {**metadata, "grpc-timeout": f"{max(1, int(timeout_s * 1000))}m"}, False)
        try:
            # Not asyncio.timeout: an answer that is there counts, however late this event loop gets to it.
            await asyncio.wait((call.finished,), timeout=timeout_s)
            call.lose(f"no answer within {timeout_s:.1f} s")  # nothing if it has ended
        finally:
            self._forget(call)
        if call.error is not None:
            raise call.error
        if len(call.messages) != 1:
            raise Lost(f"{len(call.messages)} answers instead of one")
        return call.messages[0]

    def stream(self, path: str, request: bytes, metadata: dict[str, str]) -> "Stream":
        """Send a request that has any number of answers. NotSent."""
        return Stream(self, self._begin(path, request, metadata, True))

    def _begin(self, path: str, request: bytes, metadata: dict[str, str], is_stream: bool) -> Call:
        if not self.is_open:
            raise NotSent("the connection is closed")
        headers = [
            (":method", "POST"),
            (":scheme", self._scheme),
            (":authority", self.authority),
            (":path", path),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", "san-target"),
            *metadata.items(),
        ]
        try:
            stream_id = self._http.get_next_available_stream_id()
            self._http.send_headers(stream_id, headers)
        except H2Error as error:
            raise NotSent(f"no further request can be made ({error})") from error
        call = Call(stream_id, MESSAGE_PREFIX.pack(0, len(request)) + request, is_stream)
        self._calls[stream_id] = call
        self._send_more(call)
        self._flush()
        return call

    def _send_more(self, call: Call) -> None:
        """Send what flow control lets through. `unsent` is empty only when the whole request has gone."""
        while call.unsent and not call.ended:
            room = min(self._http.local_flow_control_window(call.stream_id), self._http.max_outbound_frame_size)
            if room <= 0:
                return
            chunk, call.unsent = call.unsent[:room], call.unsent[room:]
            # A stream stays open at our end for as long as its caller is there.
            self._http.send_data(call.stream_id, chunk, end_stream=not call.unsent and not call.is_stream)

    def _flush(self) -> None:
        data = self._http.data_to_send()
        if data and self._transport is not None:
            self._transport.write(data)

    def _forget(self, call: Call) -> None:
        """The end of a call, as its caller sees it: what is still under way at the server is called off."""
        if self._calls.pop(call.stream_id, None) is None or self._transport is None:
            return
        try:
            if call.unacknowledged_bytes:
                self._http.acknowledge_received_data(call.unacknowledged_bytes, call.stream_id)
            if call.error is not None or not call.ended:
                self._http.reset_stream(call.stream_id, ErrorCodes.CANCEL)
        except H2Error:
            pass  # the stream, or the connection, has ended by itself
        self._flush()
        if not self.is_open and not self._calls:
            self.abort("it is not used any more")

    def read_on(self, call: Call) -> None:
        """A message of a stream was taken: let more come."""
        if call.unacknowledged_bytes and len(call.messages) < QUEUED_MESSAGES_MAX and self._transport is not None:
            try:
                self._http.acknowledge_received_data(call.unacknowledged_bytes, call.stream_id)
            except H2Error:
                return
            call.unacknowledged_bytes = 0
            self._flush()

    # The end ----------------------------------------------------------------------------------------------------------

    def retire(self, reason: str) -> None:
        """Take no further calls. Streams end now; calls under way may still get their answers."""
        self.is_open = False
        for call in self._calls.values():
            if call.is_stream:
                call.lose(reason)
        if not self._calls:
            self.abort(reason)

    def abort(self, reason: str) -> None:
        """End the connection and all calls, at once."""
        self.is_open = False
        for call in self._calls.values():
            call.lose(reason)
        self._ready.cancel()  # nothing if it is done
        if self._transport is not None:
            transport, self._transport = self._transport, None
            transport.abort()

    # What comes in ----------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._http.initiate_connection()
        self._http.increment_flow_control_window(CONNECTION_WINDOW_BYTES)
        self._flush()

    def data_received(self, data: bytes) -> None:
        if self._transport is None:
            return
        if not self._ready.done() and data.startswith(b"HTTP/"):
            self._lose("it speaks HTTP/1 only; is it etcd's client port?")
            return
        try:
            for event in self._http.receive_data(data):
                self._take(event)
        except H2Error as error:
            self._flush()  # tells the server what is wrong
            self._lose(f"it does not speak HTTP/2 as expected ({error})")
            return
        self._flush()

    def eof_received(self) -> None:
        self.is_open = False  # what is asked from now on goes elsewhere, and is not in doubt

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._ready.done():
            self._lose(f"the connection was lost ({exc})" if exc else "the connection was closed")
        else:
            cause = f" ({exc})" if exc else ""
            self._lose(f"it ended the connection at once{cause}; is it etcd's client port, and does it want TLS?")

    def _lose(self, reason: str) -> None:
        if not self._ready.done():
            self._ready.set_exception(NotSent(reason))
        self.abort(reason)

    def _take(self, event: Event) -> None:
        if isinstance(event, RemoteSettingsChanged):
            if not self._ready.done():
                self.is_open = True
                self._ready.set_result(None)
            self._send_all()
        elif isinstance(event, WindowUpdated):
            self._send_all()
        elif isinstance(event, ConnectionTerminated):
            for unseen in self._calls.values():
                if unseen.stream_id > (event.last_stream_id or 0):
                    unseen.end(NotSent("the server is ending"))
            self._lose("the server is ending")
        elif isinstance(event, DataReceived):
            self._take_data(event)
        elif isinstance(event, ResponseReceived | TrailersReceived | StreamEnded | StreamReset):
            call = self._calls.get(event.stream_id or 0)
            if call is None:
                return
            if isinstance(event, ResponseReceived | TrailersReceived):
                call.take_status({_text(name): _text(value) for name, value in event.headers or ()})
            elif isinstance(event, StreamReset) and event.error_code == ErrorCodes.REFUSED_STREAM:
                call.end(NotSent("the server refused another request"))
            else:
                call.lose("the answer was cut off")  # nothing if it was whole

    def _take_data(self, event: DataReceived) -> None:
        call: Call | None = self._calls.get(event.stream_id or 0)
        size_bytes = event.flow_controlled_length or 0
        if call is None or not call.is_stream:
            if size_bytes:
                self._http.acknowledge_received_data(size_bytes, event.stream_id or 0)
        else:
            call.unacknowledged_bytes += size_bytes
        if call is not None:
            call.take(event.data or b"")
            self.read_on(call)

    def _send_all(self) -> None:
        for call in self._calls.values():
            self._send_more(call)


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")


class Stream:
    """The answers to one request, until `close`."""

    def __init__(self, connection: Connection, call: Call) -> None:
        self.connection = connection
        self._call = call

    async def receive(self) -> bytes:
        """The next answer, however long it takes. Lost, NotSent, Refused: there is none any more."""
        call = self._call
        while not call.messages:
            if call.ended:
                raise call.error or Lost("the stream was ended")
            call.changed.clear()
            await call.changed.wait()
        message = call.messages.popleft()
        self.connection.read_on(call)
        return message

    def close(self) -> None:
        self.connection._forget(self._call)
        self._call.end(Lost("the stream was closed"))

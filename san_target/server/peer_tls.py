"""Peer links over TLS: a certificate for each member, all signed by an authority of the group's own.

The certificate says "of this group"; which member it is, the handshake of the peer protocol proves. So names in
certificates do not matter, and the authority must sign for nobody else. Slower than plain sockets: everything is copied
and encrypted in this process.
"""

import asyncio
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Final, NamedTuple

import structlog

from san_target.peer.frames import Payload
from san_target.peer.transport import Receiver, Transport

log = structlog.get_logger()

HANDSHAKE_S: Final = 3.0
_NO_LINGER: Final = struct.pack("ii", 0, 0)
_NOT_TLS: Final = frozenset(
    {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "UNEXPECTED_EOF_WHILE_READING"}
)


class PeerTls(NamedTuple):
    """The two directions. Both sides show a certificate, and check the other's."""

    server: ssl.SSLContext
    client: ssl.SSLContext


def make_peer_tls(authority_file: str, certificate_file: str, key_file: str) -> PeerTls:
    """From PEM files. OSError (ssl.SSLError too) if one cannot be used."""
    contexts = []
    for protocol in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(authority_file)
        context.load_cert_chain(certificate_file, key_file)
        contexts.append(context)
    return PeerTls(*contexts)


class TlsTransport(asyncio.Protocol):
    """A `Transport` over an asyncio transport, and the protocol that it calls."""

    def __init__(self, make_receiver: Callable[[Transport], Receiver]) -> None:
        self._make_receiver = make_receiver
        self._receiver: Receiver | None = None
        self._transport: asyncio.Transport
        self._ended = False

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport):
            raise AssertionError(f"{transport!r} is no stream")
        self._transport = transport
        transport.set_write_buffer_limits(high=0)  # so that resume_writing says when all is sent
        self._receiver = self._make_receiver(self)

    def data_received(self, data: bytes) -> None:
        if self._ended or self._receiver is None:
            return
        try:
            self._receiver.received(memoryview(data))
        except Exception as error:
            log.error("a peer connection ended by a defect of this program", exc_info=error)
            self.abort()
            self._receiver.lost("internal error")

    def connection_lost(self, error: Exception | None) -> None:
        if not self._ended and self._receiver is not None:
            self._ended = True
            self._receiver.lost("closed by the other member" if error is None else explain(error))

    def pause_writing(self) -> None:
        """`unsent_bytes` tells."""

    def resume_writing(self) -> None:
        if not self._ended and self._receiver is not None:
            self._receiver.drained()

    # --- Transport ----------------------------------------------------------------------------------------------------

    @property
    def unsent_bytes(self) -> int:
        return 0 if self._ended else self._transport.get_write_buffer_size()

    def send(self, buffers: list[Payload]) -> None:
        if not self._ended:
            # (asyncio may keep what it is given; a view shows later changes.)
            self._transport.write(b"".join(buffers))

    def pause(self) -> None:
        if not self._ended:
            self._transport.pause_reading()

    def resume(self) -> None:
        if not self._ended:
            self._transport.resume_reading()

    def abort(self) -> None:
        if not self._ended:
            self._ended = True
            self._transport.abort()

    def close(self) -> None:
        if not self._ended:
            self._ended = True
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            self._transport.close()


async def secure_connected(
    sock: socket.socket, tls: PeerTls, make_receiver: Callable[[Transport], Receiver]
) -> Transport:
    """TLS on a connected socket, as the caller. Raises OSError with a text that says why."""
    try:
        _transport, protocol = await asyncio.get_running_loop().create_connection(
            lambda: TlsTransport(make_receiver),
            sock=sock,
            ssl=tls.client,
            server_hostname="",
            ssl_handshake_timeout=HANDSHAKE_S,
        )
    except OSError as error:
        sock.close()
        raise OSError(explain(error)) from None
    except BaseException:
        sock.close()
        raise
    return protocol


async def secure_accepted(
    sock: socket.socket, tls: PeerTls, make_receiver: Callable[[Transport], Receiver], peer_address: str
) -> None:
    """TLS on an accepted socket; a failure ends only this connection."""
    try:
        await asyncio.get_running_loop().connect_accepted_socket(
            lambda: TlsTransport(make_receiver), sock, ssl=tls.server, ssl_handshake_timeout=HANDSHAKE_S
        )
    except OSError as error:
        sock.close()
        log.debug("peer connection refused", address=peer_address, reason=explain(error))
    except BaseException:
        sock.close()
        raise


def explain(error: BaseException) -> str:
    """What went wrong, for an operator."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not of this group's authority ({error.verify_message}); check peer_tls_ca"
    if isinstance(error, ssl.SSLError):
        if error.reason in _NOT_TLS:
            return "it speaks no TLS; give all members of the group peer_tls_* settings, or none"
        if "CERTIFICATE" in (error.reason or "") or "UNKNOWN_CA" in (error.reason or ""):
            return f"it does not accept this member's certificate ({error.reason}); check peer_tls_cert"
        return f"TLS: {error.reason or error}"
    if isinstance(error, OSError):
        return error.strerror or str(error) or "closed by the other member"
    return str(error) or type(error).__name__

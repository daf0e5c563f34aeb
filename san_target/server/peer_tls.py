"""Peer links over TLS: a certificate for each member, all signed by an authority of the group's own.

The certificate says "of this group"; which member it is, the handshake of the peer protocol proves. So names in
certificates do not matter, and the authority must sign for nobody else. Slower than plain sockets: everything is copied
and encrypted in this thread.
"""

import asyncio
import ssl
from collections.abc import Callable
from typing import Final, NamedTuple, cast

from san_target.peer.frames import Payload
from san_target.peer.transport import Receiver, Transport

HANDSHAKE_S: Final = 2.0
_ALL_OR_NONE: Final = "give all members of the group peer_tls_* settings, or none"
CLOSED: Final = "closed by the other member"
_NOT_TLS: Final = frozenset(
    {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "UNEXPECTED_EOF_WHILE_READING"}
)


class PeerTls(NamedTuple):
    """The two directions. Both sides show a certificate, and check the other's."""

    server: ssl.SSLContext
    client: ssl.SSLContext


class CertificateError(Exception):
    """A file cannot be used: "ca: why", "cert: why" or "key: why"."""


def make_peer_tls(authority_file: str, certificate_file: str, key_file: str) -> PeerTls:
    """From PEM files. Raises CertificateError."""
    for what, path in (("ca", authority_file), ("cert", certificate_file), ("key", key_file)):
        try:
            open(path, "rb").close()
        except OSError as error:
            raise CertificateError(f"{what}: {path} cannot be read: {error.strerror}") from None
    contexts = []
    for protocol in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(authority_file)
        except ssl.SSLError:
            raise CertificateError(f"ca: {authority_file} holds no certificate in PEM form") from None
        try:
            context.load_cert_chain(certificate_file, key_file, password=_no_password)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise CertificateError(f"key: {key_file} is not the key of {certificate_file}") from None
            raise CertificateError(
                f"cert: {certificate_file} and {key_file} are no certificate and key in PEM form, without a password"
            ) from None
        contexts.append(context)
    return PeerTls(*contexts)


def _no_password() -> str:
    """Nobody is asked for one: a member starts by itself."""
    return ""


class TlsTransport:
    """A `Transport` over another one, the records between them made by ssl in memory; and that one's `Receiver`.

    ready: resolves when both certificates were found good and the receiver has been made, or fails with an OSError that
    says why not.
    """

    __slots__ = (
        "_buffer",
        "_ended",
        "_incoming",
        "_inner",
        "_make_receiver",
        "_outgoing",
        "_receiver",
        "_records",
        "ready",
    )

    def __init__(
        self,
        inner: Transport,
        context: ssl.SSLContext,
        server_side: bool,
        make_receiver: Callable[[Transport], Receiver],
        buffer: memoryview,
    ) -> None:
        """buffer: for what was decrypted; the inner one's own, as that is done with it then."""
        self._inner = inner
        self._make_receiver = make_receiver
        self._buffer = buffer
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._records = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._receiver: Receiver | None = None
        self._ended = False
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ready.add_done_callback(_seen)

    def begin(self) -> None:
        """The first flight, if it is ours."""
        self._shake_hands()

    def give_up(self) -> None:
        """Called when the handshake has had its time."""
        if self._receiver is None:
            self._fail(OSError("no answer in the TLS handshake"))

    # --- Transport ----------------------------------------------------------------------------------------------------

    @property
    def unsent_bytes(self) -> int:
        return self._inner.unsent_bytes

    def send(self, buffers: list[Payload]) -> None:
        if not self._ended:
            self._records.write(b"".join(buffers))
            self._pass_on()

    def pause(self) -> None:
        self._inner.pause()

    def resume(self) -> None:
        self._inner.resume()

    def abort(self) -> None:
        self._ended = True
        self._inner.abort()

    def close(self) -> None:
        if not self._ended:
            self._ended = True
            try:
                self._records.unwrap()
            except ssl.SSLError:
                pass  # it wants the other side's goodbye too, for which we do not wait
            self._pass_on()
            self._inner.close()

    # --- Receiver -----------------------------------------------------------------------------------------------------

    def received(self, data: memoryview) -> None:
        if self._ended:
            return
        self._incoming.write(data)
        if self._receiver is None:
            self._shake_hands()
        if self._receiver is not None:
            self._decrypt(self._receiver)

    def lost(self, reason: str) -> None:
        if self._receiver is None:
            self._fail(OSError(f"it ended the connection in the TLS handshake ({reason}); {_ALL_OR_NONE}"))
        else:
            self._lose(reason)

    def drained(self) -> None:
        if self._receiver is not None and not self._ended:
            self._receiver.drained()

    # ------------------------------------------------------------------------------------------------------------------

    def _pass_on(self) -> None:
        if records := self._outgoing.read():
            self._inner.send([records])

    def _shake_hands(self) -> None:
        try:
            self._records.do_handshake()
        except ssl.SSLWantReadError:
            self._pass_on()
        except ssl.SSLError as error:
            self._pass_on()  # the alert
            self._fail(OSError(explain(error)))
        else:
            self._pass_on()
            self._receiver = self._make_receiver(self)
            if not self.ready.done():
                self.ready.set_result(None)

    def _decrypt(self, receiver: Receiver) -> None:
        buffer, have, end = self._buffer, 0, ""
        while not (self._ended or end):
            try:
                count = cast("int", self._records.read(len(buffer) - have, buffer[have:]))
            except ssl.SSLWantReadError:
                break
            except ssl.SSLError as error:
                end = explain(error)
            else:
                have += count
                if count == 0:
                    end = CLOSED
                elif have == len(buffer):
                    receiver.received(buffer)
                    have = 0
        if have and not self._ended:
            receiver.received(buffer[:have])
        if not self._ended:
            self._pass_on()  # (a record of TLS itself, such as a change of keys)
        if end and not self._ended:
            self._inner.abort()
            self._lose(end)

    def _lose(self, reason: str) -> None:
        if not self._ended and self._receiver is not None:
            self._ended = True
            self._receiver.lost(reason)

    def _fail(self, error: OSError) -> None:
        if not self._ended:
            self._ended = True
            self._inner.close()
            if not self.ready.done():
                self.ready.set_exception(error)


def _seen(ready: asyncio.Future[None]) -> None:
    """Somebody has looked at it: the answerer's side waits for none."""
    if not ready.cancelled():
        ready.exception()


def explain(error: ssl.SSLError) -> str:
    """What went wrong, for an operator."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not of this group's authority ({error.verify_message}); check peer_tls_ca"
    reason = error.reason or str(error)
    if reason in _NOT_TLS:
        return f"it speaks no TLS; {_ALL_OR_NONE}"
    if "CERTIFICATE" in reason or "UNKNOWN_CA" in reason:
        return f"it does not accept this member's certificate ({reason}); check peer_tls_cert"
    return f"TLS: {reason}"

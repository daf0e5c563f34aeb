"""The caller's end of one connection: the handshake, then answers. `link.PeerLink` makes one after the other."""

import asyncio
from typing import TYPE_CHECKING, Final

from san_target.peer.frame_stream import AnswerStream, SpareBuffers
from san_target.peer.frames import FrameError, Payload
from san_target.peer.handshake import NONCE_BYTES, Calling, Code, HandshakeStream, Refused, Welcome
from san_target.peer.identity import OwnIdentity

if TYPE_CHECKING:
    from collections.abc import Callable

    from san_target.peer.frames import Answer
    from san_target.peer.transport import PeerNetwork, Transport

NO_ANSWER: Final = "connection closed in the handshake; do both members have the same peer_tls_* settings?"


class LinkError(Exception):
    """There is no connection, or none any more; the message says why."""


class CallerConnection:
    """A `transport.Receiver`. `welcome` resolves when the link may be used; `ended` when it has ended, with the reason.

    heard: something has arrived since this was set to False. refused: why the other side would not have it.
    """

    __slots__ = ("_calling", "_handshake", "_on_end", "_stream", "_transport", "ended", "heard", "refused", "welcome")

    def __init__(
        self,
        own: OwnIdentity,
        peer: str,
        incarnation: int,
        nonce: bytes,
        taken: "Callable[[Answer], None]",
        on_end: "Callable[[str], None]",
        spare: SpareBuffers,
    ) -> None:
        """nonce: random bytes; taken: gets each answer, and may raise FrameError; on_end: called at once at the end."""
        loop = asyncio.get_running_loop()
        self._calling = Calling(own, peer, incarnation, nonce)
        self._handshake: HandshakeStream | None = HandshakeStream()
        self._stream = AnswerStream(taken, spare)
        self._on_end = on_end
        self._transport: Transport | None = None
        self.heard = False
        self.refused: Code | None = None
        self.welcome: asyncio.Future[Welcome] = loop.create_future()
        self.ended: asyncio.Future[str] = loop.create_future()

    def attach(self, transport: "Transport") -> "CallerConnection":
        """The network has made the connection."""
        self._transport = transport
        transport.send([self._calling.hello()])
        return self

    def send(self, buffers: list[Payload]) -> None:
        if self._transport is not None and not self.ended.done():
            self._transport.send(buffers)

    def abort(self, reason: str) -> None:
        """End it, so that nothing queued reaches the other side any more."""
        if self._transport is not None and not self.ended.done():
            self._transport.abort()
        self._end(reason)

    # --- Receiver -----------------------------------------------------------------------------------------------------

    def received(self, data: memoryview) -> None:
        self.heard = True
        try:
            if self._handshake is None:
                self._stream.received(data)
            else:
                self._receive_handshake(self._handshake, data)
        except FrameError as error:
            self.abort(str(error))
        except Refused as error:
            self.refused = error.code
            self.abort(str(error))

    def lost(self, reason: str) -> None:
        self._end(reason if self._handshake is None else f"{NO_ANSWER} ({reason})")

    def drained(self) -> None:
        """Nothing waits for this: what is unsent is bounded by the credits."""

    # ------------------------------------------------------------------------------------------------------------------

    def _receive_handshake(self, stream: HandshakeStream, data: memoryview) -> None:
        payload = stream.received(data)
        if payload is None:
            return
        if answer := self._calling.receive(payload):
            self.send([answer])
        if self._calling.welcome is not None:
            self._handshake = None
            if not self.welcome.done():
                self.welcome.set_result(self._calling.welcome)

    def _end(self, reason: str) -> None:
        self._stream.stopped = True
        if not self.ended.done():
            self.ended.set_result(reason)
            self.welcome.cancel()
            self._on_end(reason)


async def connect(
    network: "PeerNetwork", address: str, connection: CallerConnection, connect_s: float, welcome_s: float
) -> Welcome:
    """Connect and shake hands. Raises LinkError; then nothing is left open."""
    try:
        async with asyncio.timeout(connect_s):
            await network.connect_peer(address, connection.attach)
        async with asyncio.timeout(welcome_s):
            await asyncio.wait((connection.welcome, connection.ended), return_when=asyncio.FIRST_COMPLETED)
    except TimeoutError as error:
        reason = str(error) or "no answer"
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
    else:
        if not connection.ended.done():
            return connection.welcome.result()
        reason = connection.ended.result()
    finally:
        if not (connection.welcome.done() and not connection.welcome.cancelled()):
            connection.abort("given up")
    raise LinkError(reason)


def new_nonce(network: "PeerNetwork") -> bytes:
    return network.random_bytes(NONCE_BYTES)

"""What a link needs from the network, so that it can be replaced by memory and by a simulation. Pure declarations."""

from collections.abc import Awaitable, Callable
from typing import Protocol

from san_target.peer.frames import Payload


class Receiver(Protocol):
    """Who gets what a connection receives."""

    def received(self, data: memoryview) -> None:
        """Bytes of the stream; `data` is valid only during this call."""
        ...

    def lost(self, reason: str) -> None:
        """The connection has ended, by whatever cause but `abort`; called once, and nothing is received afterwards."""
        ...

    def drained(self) -> None:
        """The network has taken everything: `unsent_bytes` fell to 0."""
        ...


class Transport(Protocol):
    """One end of a connection."""

    @property
    def unsent_bytes(self) -> int:
        """What was handed to `send` and the network has not taken yet."""
        ...

    def send(self, buffers: list[Payload]) -> None:
        """Send, or keep what the network does not take; the buffers may be changed when this returns."""
        ...

    def pause(self) -> None:
        """Receive nothing until `resume`; what is under way then waits at the sender."""
        ...

    def resume(self) -> None: ...

    def abort(self) -> None:
        """End now. Nothing that is queued reaches the other side any more (SO_LINGER 0)."""
        ...

    def close(self) -> None:
        """Send what is left, then end."""
        ...


class PeerListener(Protocol):
    """A bound address that accepts connections."""

    @property
    def address(self) -> str:
        """ "host:port" as bound."""
        ...

    def close(self) -> None:
        """Accept nothing more; accepted connections go on."""
        ...


class PeerNetwork(Protocol):
    """The outside world of the peer layer; `server.environment.Environment` is one."""

    def connect_peer(self, address: str, make_receiver: Callable[[Transport], Receiver]) -> Awaitable[Transport]:
        """OSError, TimeoutError: with a text that says why."""
        ...

    def listen_peers(
        self, address: str, make_receiver: Callable[[Transport, str], Receiver]
    ) -> Awaitable[PeerListener]:
        """make_receiver: for each accepted connection, with the other end's address. OSError."""
        ...

    def now_s(self) -> float:
        """Monotonic seconds."""
        ...

    def boottime_s(self) -> float:
        """Seconds that go on while the machine sleeps."""
        ...

    def sleep(self, seconds: float) -> Awaitable[None]: ...

    def random_bytes(self, count: int) -> bytes: ...

"""What a connection needs from the shell around it: sending, waiting, background work, time. Pure declarations."""

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Protocol

from san_target.wire.framer import LargeBuffers

if TYPE_CHECKING:
    from san_target.session.session import PortalCounters, Session


class Event(Protocol):
    """Like asyncio.Event."""

    def set(self) -> None: ...

    async def wait(self) -> Any: ...


class Arena:
    """A piece of memory that the data of several answers shares until they are sent.

    `take` hands out consecutive slices; the shell rewinds it once everything taken has left, or replaces it.
    """

    __slots__ = ("_view", "size_bytes", "used_bytes")

    def __init__(self, size_bytes: int) -> None:
        self._view = memoryview(bytearray(size_bytes))
        self.size_bytes = size_bytes
        self.used_bytes = 0

    def take(self, size_bytes: int) -> memoryview | None:
        """A slice of that size, or None if it does not fit any more."""
        start = self.used_bytes
        end = start + size_bytes
        if end > self.size_bytes:
            return None
        self.used_bytes = end
        return self._view[start:end]

    def give_back(self, size_bytes: int) -> None:
        """Undo the last take."""
        self.used_bytes -= size_bytes


class Host(Protocol):
    """The shell of one connection.

    arena         memory for the data of answers; may be replaced by `flush`
    large_buffers memory for unfinished large PDUs, shared by connections
    counters      shared by connections
    unsent_bytes  bytes handed over by earlier flushes that the network has not taken yet
    """

    arena: Arena
    large_buffers: LargeBuffers
    counters: "PortalCounters"

    @property
    def unsent_bytes(self) -> int: ...

    def flush(self) -> None:
        """Take over `connection.outgoing` and send as much as the network takes now.

        What it does not take of the buffers in `connection.viewed` is copied, since they show later changes.
        """
        ...

    def wake(self) -> None:
        """Flush soon: called when output appeared outside `receive`."""
        ...

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None: ...

    def close(self) -> None:
        """Close the network connection once all output is sent."""
        ...

    def abort(self) -> None:
        """Close the network connection now."""
        ...

    def event(self) -> Event: ...

    def now(self) -> float:
        """Monotonic seconds."""
        ...

    def random_bytes(self, count: int) -> bytes: ...

    def began(self, session: "Session") -> None:
        """Somebody has logged in."""
        ...

    def failed(self, error: BaseException) -> None:
        """Report a bug of ours that a command ran into; the command ends with INTERNAL TARGET FAILURE."""
        ...

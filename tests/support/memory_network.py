"""`peer.transport` in memory: members that reach each other within one event loop, and a network that can fail."""

import asyncio
import random
from collections import deque
from collections.abc import Callable

from san_target.peer.frames import Payload
from san_target.peer.transport import PeerListener, Receiver, Transport


class Wires:
    """What all members of a test share.

    dead     nothing is delivered any more, and nobody learns of it (a cable that was pulled)
    chunk    bytes per delivery; 0 = as they were sent
    """

    def __init__(self) -> None:
        self.listeners: dict[str, MemoryListener] = {}
        self.connections: list[tuple[MemoryTransport, MemoryTransport]] = []  # (caller's end, answerer's end)
        self.dead = False
        self.chunk = 0

    def cut(self) -> None:
        """End all connections; both sides notice."""
        for ends in self.connections:
            for end in ends:
                end.lose("connection reset by peer")

    def revive(self) -> None:
        self.dead = False
        for ends in self.connections:
            for end in ends:
                end.wake()


class MemoryTransport:
    """One end. What it sends is unsent until the other end has received it, so pausing the other shows here."""

    def __init__(self, wires: Wires) -> None:
        self._wires = wires
        self._loop = asyncio.get_running_loop()
        self._inbox: deque[bytes] = deque()
        self._paused = False
        self._waking = False
        self.other: MemoryTransport
        self.receiver: Receiver | None = None
        self.ended = False
        self.closing = False
        self.reset = False
        self.sends = 0  # calls of `send`, i.e. system calls

    @property
    def unsent_bytes(self) -> int:
        return 0 if self.ended else sum(map(len, self.other._inbox))

    def send(self, buffers: list[Payload]) -> None:
        if not (self.ended or self.closing or self.other.ended):
            self.sends += 1
            self.other._inbox.append(b"".join(buffers))
            self.other.wake()

    def wake(self) -> None:
        if not self._waking:
            self._waking = True
            self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._waking = False
        received = bool(self._inbox)
        while self._inbox and not (self.ended or self._paused or self._wires.dead) and self.receiver is not None:
            data = self._inbox.popleft()
            chunk = self._wires.chunk or len(data)
            if len(data) > chunk:
                self._inbox.appendleft(data[chunk:])
            buffer = bytearray(data[:chunk])
            if not self.closing:
                self.receiver.received(memoryview(buffer))
            buffer[:] = b"\xee" * len(buffer)  # whoever has kept a view will notice
        if self.ended or self._inbox or self._paused:
            return
        if self.reset:
            self.lose("connection reset by peer")
        elif self.other.closing:
            self.lose("closed by the other member")
        elif received and self.other.receiver is not None and not self.other.ended:
            self.other.receiver.drained()

    def lose(self, reason: str) -> None:
        if not self.ended and not self._wires.dead:
            self.ended = True
            self._inbox.clear()
            if self.receiver is not None and not self.closing:
                self.receiver.lost(reason)

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self.wake()

    def abort(self) -> None:
        if not self.ended:
            self.ended = True
            self._inbox.clear()
            # What has arrived there may still be read before the reset is noticed; the reset itself can be lost.
            if not self._wires.dead:
                self.other.reset = True
                self.other.wake()

    def close(self) -> None:
        self.closing = True
        self.other.wake()


class MemoryListener:
    def __init__(self, wires: Wires, address: str, make_receiver: Callable[[Transport, str], Receiver]) -> None:
        self._wires = wires
        self.make_receiver = make_receiver
        self.address = address

    def close(self) -> None:
        if self._wires.listeners.get(self.address) is self:
            del self._wires.listeners[self.address]


class MemoryNetwork:
    """A `PeerNetwork`: one member's view of the wires. Its clock is the loop's; only boot time sees `asleep_s` too."""

    def __init__(self, wires: Wires, seed: int = 0) -> None:
        self.wires = wires
        self.asleep_s = 0.0
        self._random = random.Random(seed)

    async def connect_peer(self, address: str, make_receiver: Callable[[Transport], Receiver]) -> Transport:
        await asyncio.sleep(0)
        if self.wires.dead:
            await asyncio.Event().wait()
        listener = self.wires.listeners.get(address)
        if listener is None:
            raise ConnectionRefusedError(111, "Connection refused")
        here, there = MemoryTransport(self.wires), MemoryTransport(self.wires)
        here.other, there.other = there, here
        self.wires.connections.append((here, there))
        there.receiver = listener.make_receiver(there, "caller:1")
        here.receiver = make_receiver(here)
        there.wake()
        return here

    async def listen_peers(self, address: str, make_receiver: Callable[[Transport, str], Receiver]) -> PeerListener:
        listener = self.wires.listeners[address] = MemoryListener(self.wires, address, make_receiver)
        return listener

    def now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def boottime_s(self) -> float:
        return self.now_s() + self.asleep_s

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def random_bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)

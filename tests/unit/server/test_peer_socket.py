"""Sockets between members, on both event loops: bytes in order, what the network does not take, every kind of end."""

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop

from san_target.peer.transport import PeerListener, Transport
from san_target.server.environment import Environment

Run = Callable[[Coroutine[Any, Any, None]], None]
HUGE = 32 << 20  # more than both kernels' buffers


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield lambda coroutine: runner.run(asyncio.wait_for(coroutine, 60))


class End:
    """A `Receiver` that keeps everything."""

    def __init__(self, transport: Transport, address: str = "") -> None:
        self.transport = transport
        self.address = address
        self.data = bytearray()
        self.batches = 0
        self.reasons: list[str] = []
        self.drains = 0
        self.changed = asyncio.Event()

    def received(self, data: memoryview) -> None:
        self.data += data
        self.batches += 1
        self.changed.set()

    def lost(self, reason: str) -> None:
        self.reasons.append(reason)
        self.changed.set()

    def drained(self) -> None:
        self.drains += 1
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.changed.clear()
            await self.changed.wait()


class Pair:
    def __init__(self, environment: Environment | None = None) -> None:
        self.environment = environment or Environment()
        self.accepted: asyncio.Queue[End] = asyncio.Queue()
        self.listener: PeerListener

    def _accept(self, transport: Transport, address: str) -> End:
        end = End(transport, address)
        self.accepted.put_nowait(end)
        return end

    async def connect(self, address: str = "127.0.0.1:0") -> tuple[End, End]:
        """(the caller's end, the answerer's end)"""
        self.listener = await self.environment.listen_peers(address, self._accept)
        made: list[End] = []

        def called(transport: Transport) -> End:
            made.append(End(transport))
            return made[0]

        await self.environment.connect_peer(self.listener.address, called)
        return made[0], await self.accepted.get()


async def ended(*ends: End) -> None:
    for end in ends:
        end.transport.abort()
    await asyncio.sleep(0)


def test_there_and_back(run: Run) -> None:
    async def scenario() -> None:
        pair = Pair()
        here, there = await pair.connect()
        here.transport.send([b"one ", memoryview(b"two "), bytearray(b"three")])
        await there.until(lambda: len(there.data) == 13)
        assert there.data == b"one two three"
        there.transport.send([b"yes"])
        await here.until(lambda: here.data == b"yes")
        assert here.transport.unsent_bytes == there.transport.unsent_bytes == 0
        assert there.address.startswith("127.0.0.1:")
        pair.listener.close()
        await ended(here, there)
        assert here.reasons == there.reasons == []

    run(scenario())


def test_ipv6(run: Run) -> None:
    async def scenario() -> None:
        pair = Pair()
        here, there = await pair.connect("[::1]:0")
        assert pair.listener.address.startswith("[::1]:")
        assert there.address.startswith("[::1]:")
        pair.listener.close()
        await ended(here, there)

    run(scenario())


def test_what_the_network_does_not_take_is_kept_as_it_was(run: Run) -> None:
    async def scenario() -> None:
        pair = Pair()
        here, there = await pair.connect()
        there.transport.pause()
        pattern = os.urandom(1 << 20)
        buffer = bytearray(pattern)
        for _ in range(HUGE >> 20):
            buffer[:] = pattern
            here.transport.send([b"head", memoryview(buffer)])
            buffer[:] = bytes(len(buffer))  # allowed as soon as send returns
        assert 0 < here.transport.unsent_bytes < HUGE + 4096
        assert here.drains == 0
        there.transport.resume()
        total = (HUGE >> 20) * (4 + len(pattern))
        await there.until(lambda: len(there.data) == total)
        assert bytes(there.data) == (b"head" + pattern) * (HUGE >> 20)
        await here.until(lambda: here.drains == 1)
        assert here.transport.unsent_bytes == 0
        pair.listener.close()
        await ended(here, there)

    run(scenario())


def test_more_buffers_than_one_call_takes(run: Run) -> None:
    async def scenario() -> None:
        pair = Pair()
        here, there = await pair.connect()
        buffers: list[Any] = [bytes((number & 0xFF,)) for number in range(3000)]
        here.transport.send(buffers)
        await there.until(lambda: len(there.data) == 3000)
        assert bytes(there.data) == b"".join(buffers)
        pair.listener.close()
        await ended(here, there)

    run(scenario())


def test_pause_holds_back(run: Run) -> None:
    async def scenario() -> None:
        pair = Pair()
        here, there = await pair.connect()
        there.transport.pause()
        there.transport.pause()
        here.transport.send([b"later"])
        await asyncio.sleep(0.05)
        assert not there.data
        there.transport.resume()
        there.transport.resume()
        await there.until(lambda: there.data == b"later")
        pair.listener.close()
        await ended(here, there)

    run(scenario())


def test_abort_takes_back_what_is_queued(run: Run) -> None:
    """SO_LINGER 0: what lies in the kernel here, and in our own memory, never arrives."""

    async def scenario() -> None:
        pair = Pair()
        here, there = await pair.connect()
        there.transport.pause()
        here.transport.send([bytes(HUGE)])
        assert here.transport.unsent_bytes
        in_network = HUGE - here.transport.unsent_bytes
        await asyncio.sleep(0.05)
        here.transport.abort()
        assert here.transport.unsent_bytes == 0
        there.transport.resume()
        await there.until(lambda: bool(there.reasons))
        assert len(there.data) < in_network
        assert "reset" in there.reasons[0].lower()
        assert here.reasons == [], "whoever aborts needs not be told"
        pair.listener.close()

    run(scenario())


def test_close_sends_the_last_words_first(run: Run) -> None:
    async def scenario() -> None:
        pair = Pair()
        here, there = await pair.connect()
        here.transport.send([bytes(8 << 20), b"goodbye"])
        there.transport.send([b"too late"])
        here.transport.close()
        here.transport.send([b"not any more"])
        await there.until(lambda: bool(there.reasons))
        assert len(there.data) == (8 << 20) + 7
        assert there.data.endswith(b"goodbye")
        assert there.reasons == ["closed by the other member"]
        assert (here.reasons, bytes(here.data)) == ([], b"")
        pair.listener.close()

    run(scenario())


def test_lost_is_told_once_and_nothing_works_afterwards(run: Run) -> None:
    async def scenario() -> None:
        pair = Pair()
        here, there = await pair.connect()
        here.transport.abort()
        await there.until(lambda: bool(there.reasons))
        there.transport.send([b"x"])
        there.transport.pause()
        there.transport.resume()
        there.transport.close()
        there.transport.abort()
        await asyncio.sleep(0.01)
        assert len(there.reasons) == 1
        assert there.transport.unsent_bytes == 0
        pair.listener.close()

    run(scenario())


def test_send_never_calls_back(run: Run) -> None:
    async def scenario() -> None:
        pair = Pair()
        here, there = await pair.connect()
        here.transport.pause()  # so that only `send` can notice
        there.transport.abort()
        await asyncio.sleep(0.05)
        here.transport.send([b"x"])
        here.transport.send([b"x"])
        assert not here.reasons
        await here.until(lambda: bool(here.reasons))
        assert len(here.reasons) == 1
        pair.listener.close()

    run(scenario())


def test_a_defect_in_a_receiver_ends_its_connection_only(run: Run) -> None:
    async def scenario() -> None:
        pair = Pair()
        here, there = await pair.connect()

        def broken(data: memoryview) -> None:
            raise RuntimeError("a defect")

        there.received = broken  # type: ignore[method-assign]
        here.transport.send([b"x"])
        await there.until(lambda: bool(there.reasons))
        assert there.reasons == ["internal error"]
        await here.until(lambda: bool(here.reasons))
        pair.listener.close()

    run(scenario())


def test_why_nobody_can_be_reached(run: Run) -> None:
    async def scenario() -> None:
        environment = Environment()
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{unused.getsockname()[1]}"
            with pytest.raises(OSError, match="Connection refused"):
                await environment.connect_peer(address, End)
        with pytest.raises(OSError, match=r"no-such-host\.invalid: "):
            await environment.connect_peer("no-such-host.invalid:1", End)

    run(scenario())


def test_an_address_that_is_taken(run: Run) -> None:
    async def scenario() -> None:
        environment = Environment()
        listener = await environment.listen_peers("127.0.0.1:0", End)
        with pytest.raises(OSError):
            await environment.listen_peers(listener.address, End)
        listener.close()
        listener.close()
        again = await environment.listen_peers(listener.address, End)
        assert again.address == listener.address
        again.close()

    run(scenario())

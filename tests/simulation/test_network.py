"""The network of the simulation: what kernels do with bytes of processes that are slow, stopped, dead or cut off."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.simulation.loop import START_S, Process, VirtualLoop
from tests.simulation.network import End, Machine, Network
from tests.simulation.sockets import SimListener, SimSocket
from tests.simulation.trace import Trace

DELAY_S = 0.01
NO_LINGER = struct.pack("ii", 1, 0)


class Site:
    """Two machines; `a` calls, `b` listens on port 1 and keeps what it receives."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.network = Network(loop, random.Random(1), Trace(loop), (DELAY_S, DELAY_S))
        self.network.fragments = 0.0
        self.a, self.b = self.network.add("a"), self.network.add("b")
        self.caller, self.server = Process("caller"), Process("server")
        self.received = bytearray()
        self.ends: list[str] = []
        self.accepted: list[SimSocket] = []
        self.reading = True

    async def begin(self) -> None:
        await self.loop.spawn(self.server, self._listen())

    async def _listen(self) -> None:
        listener = SimListener(self.network.listen(self.b, 1))
        self.loop.add_reader(listener, self._accept, listener)

    def _accept(self, listener: SimListener) -> None:
        sock, _ = listener.accept()
        self.accepted.append(sock)
        if self.reading:
            self.loop.add_reader(sock, self._read, sock)

    def _read(self, sock: SimSocket) -> None:
        buffer = memoryview(bytearray(1 << 16))
        try:
            count = sock.recv_into(buffer)
        except OSError as error:
            self.ends.append(type(error).__name__)
            self.loop.remove_reader(sock)
            return
        if count == 0:
            self.ends.append("end")
            self.loop.remove_reader(sock)
        self.received += buffer[:count]

    async def connect(self) -> SimSocket:
        return SimSocket(await self.loop.spawn(self.caller, self._connect()))

    async def _connect(self) -> End:
        return await self.network.connect(self.a, self.b.address, 1)

    def cut(self) -> None:
        self.network.cut("a", "b")
        self.network.cut("b", "a")

    def heal(self) -> None:
        self.network.heal("a", "b")
        self.network.heal("b", "a")

    def kill(self, process: Process, machine: Machine) -> None:
        self.loop.kill_process(process)
        machine.process_ended(process)


def simulated(scenario: Callable[[Site], Coroutine[Any, Any, None]]) -> None:
    loop = VirtualLoop()
    site = Site(loop)

    async def main() -> None:
        await site.begin()
        await scenario(site)

    try:
        loop.run(main(), START_S + 1000, 100_000)
    finally:
        loop.close()
    assert not loop.failures


def test_bytes_arrive_in_order_after_a_while() -> None:
    async def scenario(site: Site) -> None:
        sock = await site.connect()
        assert site.loop.time() - START_S == pytest.approx(2 * DELAY_S)
        sock.sendmsg([b"one", memoryview(b" two")])
        sock.send(b" three")
        await asyncio.sleep(DELAY_S * 0.9)
        assert not site.received
        await asyncio.sleep(DELAY_S * 0.2)
        assert site.received == b"one two three"
        sock.close()
        await asyncio.sleep(2 * DELAY_S)
        assert site.ends == ["end"]

    simulated(scenario)


def test_nobody_listens() -> None:
    async def scenario(site: Site) -> None:
        with pytest.raises(ConnectionRefusedError):
            await site.network.connect(site.a, site.b.address, 2)
        site.cut()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(site.connect(), 5)

    simulated(scenario)


def test_what_the_other_side_does_not_read_stays_with_the_sender() -> None:
    async def scenario(site: Site) -> None:
        site.reading = False
        site.network.buffer_bytes = 1000
        sock = await site.connect()
        assert sock.send(bytes(1500)) == 1000
        with pytest.raises(BlockingIOError):
            sock.send(b"x")
        await asyncio.sleep(1)
        with pytest.raises(BlockingIOError):
            sock.send(b"x")
        writable: list[float] = []
        site.loop.add_writer(sock, lambda: (writable.append(site.loop.time()), site.loop.remove_writer(sock)))
        await asyncio.sleep(1)
        assert not writable
        site.loop.add_reader(site.accepted[0], site._read, site.accepted[0])
        await asyncio.sleep(1)
        assert writable
        assert sock.send(b"x") == 1

    simulated(scenario)


def test_a_cut_way_delays_and_loses_nothing() -> None:
    async def scenario(site: Site) -> None:
        sock = await site.connect()
        site.cut()
        sock.send(b"one")
        await asyncio.sleep(10)
        sock.send(b" two")
        await asyncio.sleep(10)
        assert not site.received
        site.heal()
        await asyncio.sleep(2)
        assert site.received == b"one two"

    simulated(scenario)


@pytest.mark.parametrize("lingers", [True, False])
def test_a_killed_process_leaves_its_bytes_to_the_kernel_unless_it_said_not_to(lingers: bool) -> None:
    """What SO_LINGER 0 is for [28b]."""

    async def scenario(site: Site) -> None:
        sock = await site.connect()
        if not lingers:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        site.cut()
        sock.send(b"ghost")
        await asyncio.sleep(1)
        site.kill(site.caller, site.a)
        await asyncio.sleep(10)
        site.heal()
        await asyncio.sleep(2)
        assert site.received == (b"ghost" if lingers else b"")

    simulated(scenario)


def test_a_reset_comes_after_what_is_on_the_wire() -> None:
    async def scenario(site: Site) -> None:
        sock = await site.connect()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        sock.send(b"last words")
        sock.close()
        await asyncio.sleep(1)
        assert site.received == b"last words"
        assert site.ends == ["ConnectionResetError"]

    simulated(scenario)


def test_a_stopped_process_finds_everything_in_its_sockets() -> None:
    async def scenario(site: Site) -> None:
        sock = await site.connect()
        await asyncio.sleep(1)
        site.loop.stop_process(site.server)
        sock.send(b"old")
        other = asyncio.ensure_future(site.connect())
        await asyncio.sleep(10)
        assert other.done()  # its kernel takes connections
        assert not site.received
        site.loop.continue_process(site.server)
        await asyncio.sleep(0.001)
        assert site.received == b"old"
        assert len(site.accepted) == 2

    simulated(scenario)


def test_the_other_side_of_a_dead_process_hears_of_it() -> None:
    async def scenario(site: Site) -> None:
        sock = await site.connect()
        site.kill(site.server, site.b)
        await asyncio.sleep(1)
        buffer = memoryview(bytearray(10))
        assert sock.recv_into(buffer) == 0
        sock.send(b"is anybody there?")
        await asyncio.sleep(1)
        with pytest.raises(ConnectionResetError):
            sock.recv_into(buffer)
        with pytest.raises(ConnectionRefusedError):
            await site.connect()

    simulated(scenario)


def test_a_machine_without_power_says_nothing_and_later_knows_nothing() -> None:
    async def scenario(site: Site) -> None:
        sock = await site.connect()
        site.loop.kill_process(site.server)
        site.b.lose_power()
        await asyncio.sleep(1)
        buffer = memoryview(bytearray(10))
        with pytest.raises(BlockingIOError):
            sock.recv_into(buffer)
        sock.send(b"hello")
        await asyncio.sleep(10)
        with pytest.raises(BlockingIOError):
            sock.recv_into(buffer)
        site.network.power_is_back(site.b)
        await asyncio.sleep(2)
        with pytest.raises(ConnectionResetError):
            sock.recv_into(buffer)
        assert not site.received

    simulated(scenario)


def test_something_on_the_way_resets_both_sides() -> None:
    async def scenario(site: Site) -> None:
        sock = await site.connect()
        await asyncio.sleep(1)
        next(iter(site.a.ends)).break_off()
        await asyncio.sleep(1)
        with pytest.raises(ConnectionResetError):
            sock.recv_into(memoryview(bytearray(1)))
        assert site.ends == ["ConnectionResetError"]

    simulated(scenario)

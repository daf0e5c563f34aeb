"""A reset right behind data is noticed, on uvloop too, which tells only of the data."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import uvloop

from initiator_sim.reactor import Connection, Reactor
from san_target.peer.frames import Payload
from san_target.scsi.identity import Identity
from san_target.scsi.logical_unit import LogicalUnit
from san_target.scsi.services import Services
from san_target.server.peer_socket import RECEIVE_BYTES, SocketTransport
from san_target.server.portal import PortalServer
from san_target.session.parameters import TargetLimits
from tests.support.raw_initiator import RawInitiator
from tests.support.session_driver import IQN, OneTarget
from tests.unit.session.conftest import PausedDevice

SECONDS_MAX = 30
LINGER_0 = struct.pack("ii", 1, 0)


def run(body: Callable[[], Awaitable[None]], loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(SECONDS_MAX):
            await body()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(bounded())


loops = pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])


def say_and_reset(sock: socket.socket, data: bytes) -> None:
    """Both are there when the event loop looks the next time."""
    sock.sendall(data)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
    sock.close()


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a TCP connection; the first one does not block."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        other = socket.create_connection(listener.getsockname())
        one, _ = listener.accept()
    one.setblocking(False)
    try:
        yield one, other
    finally:
        one.close()
        other.close()


class Receiver:
    """Of a peer's transport."""

    def __init__(self) -> None:
        self.data = b""
        self.reason: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def received(self, data: Payload) -> None:
        self.data += data

    def drained(self) -> None:
        pass

    def lost(self, reason: str) -> None:
        self.reason.set_result(reason)


@loops
def test_a_member_that_is_killed_in_mid_sentence(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def scenario() -> None:
        async with connected() as (one, other):
            transport = SocketTransport(one, memoryview(bytearray(RECEIVE_BYTES)))
            receiver = Receiver()
            transport.start(receiver)
            await asyncio.sleep(0)
            say_and_reset(other, b"half a")
            assert "reset" in await receiver.reason
            assert receiver.data in (b"half a", b"")

    run(scenario, loop)


@loops
def test_an_initiator_that_resets_its_session(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def save(record: object) -> None:
        del record

    async def scenario() -> None:
        now = asyncio.get_running_loop()
        services = Services(
            spawn=now.create_task,
            save_reservations=save,
            unit_of=lambda designator: None,
            now=now.time,
            sleep=asyncio.sleep,
        )
        unit = LogicalUnit(PausedDevice(), Identity("0" * 32, IQN), services=services)
        server = PortalServer(OneTarget(unit), TargetLimits())
        host, port = await server.start("127.0.0.1", 0)

        def log_in() -> socket.socket:
            initiator = RawInitiator(f"{host}:{port}")
            assert initiator.login(IQN) == 0
            return initiator.socket

        say_and_reset(await asyncio.to_thread(log_in), bytes(20))
        while server.connections:
            await asyncio.sleep(0.05)
        await server.stop()

    run(scenario, loop)


class Handler:
    """Of an initiator's connection."""

    def __init__(self) -> None:
        self.end: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def receive(self, batch: object) -> None:
        pass

    def take_outgoing(self) -> list[bytes | memoryview]:
        return []

    def closed(self, error: Exception | None) -> None:
        self.end.set_result(error)


@loops
def test_a_target_that_resets_the_simulated_initiator(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def scenario() -> None:
        async with connected() as (one, other):
            handler = Handler()
            Connection(Reactor(), one, handler)
            await asyncio.sleep(0)
            say_and_reset(other, bytes(20))
            assert isinstance(await handler.end, ConnectionResetError)

    run(scenario, loop)

"""TCP's congestion control is what the configuration says, to initiators and between members.

The tests use reno: every system has it, and hardly any has it as its default.
"""

import asyncio
import socket
from pathlib import Path

import pytest

from san_target.server import peer_socket, portal_socket
from san_target.server.peer_socket import SocketTransport
from tests.unit.server.conftest import Site, run
from tests.unit.server.initiator import Initiator

SYSTEMS = Path("/proc/sys/net/ipv4/tcp_congestion_control")


def algorithm_of(sock: socket.socket) -> str:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).partition(b"\0")[0].decode()


@pytest.mark.parametrize(
    ("asked", "used"),
    [("reno", "reno"), ("system", SYSTEMS.read_text().strip()), ("none-such", SYSTEMS.read_text().strip())],
)
def test_what_is_accepted_uses_it_and_the_systems_where_there_is_none(asked: str, used: str) -> None:
    async def body() -> None:
        listener = await portal_socket.listen("127.0.0.1", 0, asked)
        caller = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
        assert algorithm_of(accepted) == used
        for each in (accepted, caller, listener):
            each.close()

    run(body)


def test_a_member_tells_it_to_its_portals_and_to_what_makes_peer_sockets(site: Site) -> None:
    async def body() -> None:
        async with site.started(congestion_control="reno") as (member, _):
            initiator = await Initiator.connect(member.portals.bound[0])
            assert await initiator.login(None) == 0
            (connection,) = member.portal_server.connections
            assert algorithm_of(connection._socket) == "reno"
            assert member.environment.congestion_control == "reno"
            initiator.close()

    run(body)


def test_both_ends_between_members_use_it() -> None:
    async def body() -> None:
        buffer = peer_socket.new_receive_buffer()
        accepted: asyncio.Queue[SocketTransport] = asyncio.Queue()

        def answer(transport: SocketTransport, _address: str) -> _Deaf:
            accepted.put_nowait(transport)
            return _Deaf()

        listener = await peer_socket.listen("127.0.0.1:0", answer, buffer, None, "reno")
        caller = await peer_socket.connect(listener.address, lambda _transport: _Deaf(), buffer, None, "reno")
        for end in (caller, await accepted.get()):
            assert algorithm_of(end._socket) == "reno"
            end.abort()
        listener.close()

    run(body)


class _Deaf:
    def received(self, data: memoryview) -> None: ...

    def drained(self) -> None: ...

    def lost(self, reason: str) -> None: ...

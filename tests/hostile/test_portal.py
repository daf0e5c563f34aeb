"""What ends by time or number at a portal: output that does not move, a close that does not come to its end, logins."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from san_target.server import portal, portal_connection
from san_target.server.portal import PortalServer
from san_target.session.parameters import TargetLimits
from san_target.wire import opcodes, pdus
from san_target.wire.text import encode_pairs
from tests.hostile.battlefield import ATTACKED, ATTACKER, Battlefield

LIMITS = TargetLimits(unsent_bytes_max=65536)
READ_BLOCKS = 2048  # 1 MiB


@asynccontextmanager
async def served() -> AsyncIterator[tuple[PortalServer, tuple[str, int]]]:
    server = PortalServer(Battlefield().directory, LIMITS)
    address = await server.start("127.0.0.1", 0)
    try:
        yield server, address
    finally:
        await server.stop()


async def until_empty(server: PortalServer) -> None:
    for _ in range(6000):
        if not server.connections:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("a connection stays for ever")


async def connect(address: tuple[str, int]) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, address)
    return client


async def log_in(address: tuple[str, int]) -> socket.socket:
    client = await connect(address)
    pairs = [("InitiatorName", ATTACKER), ("TargetName", ATTACKED)]
    data = encode_pairs([*pairs, ("MaxRecvDataSegmentLength", "1048576")])
    fields = {"transit": True, "current_stage": 1, "next_stage": 3, "cmd_sn": 1}
    request = pdus.build(opcodes.LOGIN_REQUEST, len(data), **fields) + data + bytes(-len(data) % 4)
    await asyncio.get_running_loop().sock_sendall(client, request)
    assert (await asyncio.get_running_loop().sock_recv(client, 4096))[36:38] == b"\0\0"
    return client


async def ask_for_much(client: socket.socket) -> None:
    """Forty reads of 1 MiB, whose data nobody will take."""
    reads = b"".join(
        pdus.build(
            opcodes.SCSI_COMMAND,
            initiator_task_tag=cmd_sn,
            final=True,
            read=True,
            expected_data_transfer_length=READ_BLOCKS * 512,
            cmd_sn=cmd_sn,
            cdb=b"\x28" + bytes(6) + READ_BLOCKS.to_bytes(2, "big") + bytes(7),
        )
        for cmd_sn in range(1, 41)
    )
    await asyncio.get_running_loop().sock_sendall(client, reads)


def test_output_that_does_not_move_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portal, "TICK_S", 0.02)
    monkeypatch.setattr(portal_connection, "STALLED_SEND_S", 0.1)

    async def scenario() -> None:
        async with served() as (server, address):
            client = await log_in(address)
            [served_here] = server.connections
            await ask_for_much(client)
            await until_empty(server)
            assert served_here.connection.close_reason == "the initiator takes no data"
            assert served_here.unsent_bytes == 0
            client.close()

    asyncio.run(scenario())


def test_a_close_that_never_ends_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The initiator takes a little now and then, so output moves, and would for hours."""
    monkeypatch.setattr(portal, "TICK_S", 0.02)
    monkeypatch.setattr(portal_connection, "CLOSING_S", 0.2)

    async def scenario() -> None:
        async with served() as (server, address):
            client = await log_in(address)
            [served_here] = server.connections
            await ask_for_much(client)
            while not served_here.unsent_bytes:
                await asyncio.sleep(0.01)
            served_here.connection.drop("an operator's wish")
            for _ in range(6000):
                if not server.connections:
                    break
                await asyncio.sleep(0.01)
                try:
                    client.recv(1)
                except BlockingIOError:
                    continue
            assert not server.connections
            assert served_here.connection.close_reason == "an operator's wish"
            client.close()

    asyncio.run(scenario())


def test_the_oldest_unfinished_login_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portal, "LOGINS_MAX", 3)

    async def scenario() -> None:
        async with served() as (server, address):
            session = await log_in(address)
            unfinished = [await connect(address) for _ in range(3)]
            while len(server.connections) < 4:
                await asyncio.sleep(0.01)
            last = await log_in(address)
            loop = asyncio.get_running_loop()
            with contextlib.suppress(ConnectionError):
                assert await loop.sock_recv(unfinished[0], 1) == b""
            assert len(server.connections) == 3
            assert len(server.sessions()) == 1  # the same initiator port logged in again
            assert len(server.logging_in) == 2
            for client in (session, last, *unfinished):
                client.close()
            await until_empty(server)
            assert not server.logging_in

    asyncio.run(scenario())

"""Memory that connections share for the data of answers: an unsent answer is not overwritten by the next one."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from san_target.scsi.identity import Identity
from san_target.scsi.logical_unit import LogicalUnit
from san_target.scsi.services import Services
from san_target.server import portal_connection
from san_target.server.portal import PortalServer
from san_target.session.parameters import TargetLimits
from san_target.volume.device import MediumError
from san_target.wire import opcodes, pdus
from san_target.wire.text import encode_pairs
from tests.support.memory_device import MemoryDevice
from tests.support.session_driver import INITIATOR, IQN, OneTarget
from tests.unit.server.conftest import run

BLOCK = 512
PER_READ = 96  # blocks; not a divisor of any buffer's size
READS = 60


class Numbered(MemoryDevice):
    """Each block is full of its own address."""

    def try_read_into(self, lba: int, blocks: int, into: memoryview) -> bool:
        into[:] = content(lba, blocks)
        return True


def content(lba: int, blocks: int) -> bytes:
    return b"".join(struct.pack(">Q", at) * (BLOCK // 8) for at in range(lba, lba + blocks))


@asynccontextmanager
async def portal(device: MemoryDevice | None = None) -> AsyncIterator[tuple[PortalServer, tuple[str, int]]]:
    async def save(record: object, epoch: int) -> int:
        del record
        return epoch + 1

    services = Services(
        spawn=lambda coroutine: asyncio.get_running_loop().create_task(coroutine),
        save_reservations=save,
        unit_of=lambda designator: None,
        now=lambda: 0.0,
        sleep=asyncio.sleep,
    )
    unit = LogicalUnit(device or Numbered(1 << 20), Identity("0" * 31 + "1", IQN, name="test"), services=services)
    server = PortalServer(OneTarget(unit), TargetLimits())
    try:
        address = await server.start("127.0.0.1", 0)
        for listener in server._listeners:  # what it accepts has it too: little of an answer leaves at once
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        yield server, address
    finally:
        await server.stop()


class Client:
    """An initiator that reads its answers only when told to."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        self.cmd_sn = 1

    async def login(self, address: tuple[str, int]) -> None:
        loop = asyncio.get_running_loop()
        self.socket.setblocking(False)
        await loop.sock_connect(self.socket, address)
        keys = {"InitiatorName": INITIATOR, "TargetName": IQN, "SessionType": "Normal"}
        keys["MaxRecvDataSegmentLength"] = "262144"
        text = encode_pairs(list(keys.items()))
        isid = b"\x80\0\0\0\0" + bytes([self.number])
        await self.send(
            pdus.build(opcodes.LOGIN_REQUEST, len(text), transit=True, current_stage=1, next_stage=3, isid=isid)
            + text
            + bytes(-len(text) % 4)
        )
        assert (await self.receive())[0].status_class == 0
        for _ in range(2):
            await self.send(self.command(bytes(16), 0))
            await self.receive()

    def command(self, cdb: bytes, length: int) -> bytes:
        tag = self.cmd_sn
        self.cmd_sn += 1
        return pdus.build(
            opcodes.SCSI_COMMAND,
            0,
            final=True,
            read=bool(length),
            attribute=1,
            initiator_task_tag=tag,
            expected_data_transfer_length=length,
            cmd_sn=tag - 1,
            cdb=cdb,
        )

    def reads(self, start: int) -> bytes:
        return b"".join(
            self.command(struct.pack(">BBQIBB", 0x88, 0, start + index * PER_READ, PER_READ, 0, 0), PER_READ * BLOCK)
            for index in range(READS)
        )

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def exactly(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            part = await asyncio.get_running_loop().sock_recv(self.socket, length - len(data))
            assert part
            data += part
        return bytes(data)

    async def receive(self) -> tuple[Any, bytes]:
        header = pdus.parse(await self.exactly(48))
        return header, (await self.exactly(header.data_segment_length + 3 & ~3))[: header.data_segment_length]

    async def check(self, start: int) -> None:
        data = b"".join([(await self.receive())[1] for _ in range(READS)])
        assert data == content(start, READS * PER_READ)


@pytest.mark.parametrize("lent_max", [0, 1, portal_connection.LENT_ARENAS_MAX])
def test_slow_readers_get_what_they_asked_for(monkeypatch: pytest.MonkeyPatch, lent_max: int) -> None:
    monkeypatch.setattr(portal_connection, "LENT_ARENAS_MAX", lent_max)

    async def body() -> None:
        async with portal() as (server, address):
            clients = [Client(number) for number in range(6)]
            for client in clients:
                await client.login(address)
            for turn in range(3):
                starts = {client: (turn * 6 + client.number) * 10_000 for client in clients}
                for client in clients:
                    await client.send(client.reads(starts[client]))
                    await asyncio.sleep(0.01)
                if turn == 1:
                    clients[0].socket.close()  # with all its answers unsent: its memory goes to others
                    del clients[0]
                await asyncio.gather(*(client.check(starts[client]) for client in clients))
            assert server.arenas_lent == 0
            for client in clients:
                client.socket.close()

    run(body)


class Shown(MemoryDevice):
    """Shows its blocks where they lie, as a file does that is in the cache."""

    def __init__(self, blocks: int) -> None:
        super().__init__(blocks)
        self.bytes = bytearray(blocks * BLOCK)
        self.lost = False

    def _range(self, lba: int, blocks: int) -> slice:
        return slice(lba * BLOCK, (lba + blocks) * BLOCK)

    def try_view(self, lba: int, blocks: int) -> memoryview | None:
        return memoryview(self.bytes)[self._range(lba, blocks)].toreadonly()

    def reread(self, lba: int, blocks: int, into: memoryview) -> None:
        if self.lost:
            raise MediumError(lba, "lost in the last instant")
        into[:] = self.bytes[self._range(lba, blocks)]

    def try_write(self, lba: int, blocks: int, data: Any) -> bool:
        self.bytes[self._range(lba, blocks)] = data
        return True


LARGE = 256  # blocks: 128 KiB


def large_read(client: Client, lba: int) -> bytes:
    return client.command(struct.pack(">BBQIBB", 0x88, 0, lba, LARGE, 0, 0), LARGE * BLOCK)


def small_write(client: Client, lba: int, data: bytes) -> bytes:
    tag = client.cmd_sn
    client.cmd_sn += 1
    return (
        pdus.build(
            opcodes.SCSI_COMMAND,
            len(data),
            final=True,
            write=True,
            attribute=1,
            initiator_task_tag=tag,
            expected_data_transfer_length=len(data),
            cmd_sn=tag - 1,
            cdb=struct.pack(">BBQIBB", 0x8A, 0, lba, len(data) // BLOCK, 0, 0),
        )
        + data
    )


def test_data_sent_from_where_it_lies_is_what_it_was_when_it_was_read() -> None:
    """A younger write changes neither what is to be sent in the same batch, nor what the network has not taken yet."""

    async def body() -> None:
        device = Shown(LARGE * 8)
        device.bytes[:] = b"o" * len(device.bytes)
        async with portal(device) as (_server, address):
            first, second = Client(1), Client(2)
            await first.login(address)
            await second.login(address)
            # One batch: the reads are older than the write between them.
            await first.send(large_read(first, 0) + small_write(first, 0, b"n" * BLOCK) + large_read(first, 0))
            await asyncio.sleep(0.05)
            await second.send(small_write(second, LARGE - 1, b"m" * BLOCK))
            assert (await second.receive())[0].status == 0
            header, data = await first.receive()
            assert (header.opcode, data) == (opcodes.DATA_IN, b"o" * LARGE * BLOCK)
            assert (await first.receive())[0].status == 0
            data = (await first.receive())[1]
            assert data == b"n" * BLOCK + b"o" * (LARGE - 1) * BLOCK
            for client in (first, second):
                client.socket.close()

    run(body)


def test_data_that_is_lost_while_it_is_sent_ends_the_connection_and_no_other() -> None:
    async def body() -> None:
        device = Shown(LARGE * 8)
        device.lost = True
        async with portal(device) as (_server, address):
            first, second = Client(1), Client(2)
            await first.login(address)
            await second.login(address)
            await first.send(b"".join(large_read(first, 0) for _ in range(8)))
            with pytest.raises((AssertionError, ConnectionError)):
                await first.exactly(8 * (48 + LARGE * BLOCK))
            await second.send(small_write(second, 0, b"m" * BLOCK))
            assert (await second.receive())[0].status == 0
            for client in (first, second):
                client.socket.close()

    run(body)

"""A target that is right in everything but the one lie it is told, on real sockets.

It is the project's own session engine on a memory device, with two portals. A lie changes what goes out (`says`), what
comes in (`hears`), or is put into the engine by the test itself.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from typing import Any

from typing_extensions import Buffer

from initiator_sim.conformance.bench import Setting
from initiator_sim.packets import ISCSI, digests
from san_target.scsi.identity import Identity
from san_target.scsi.logical_unit import LogicalUnit
from san_target.scsi.services import Services
from san_target.session.connection import Connection, Stage
from san_target.session.parameters import TargetLimits
from san_target.session.target import Access, Credentials
from san_target.session.tasks import Task
from san_target.wire.framer import Pdu
from tests.support.memory_device import MemoryDevice
from tests.support.session_driver import IQN, DrivenHost, OneTarget

NAME = "iqn.2026-01.org.example:checker"
BLOCKS = 4096
BLOCK_BYTES = 512

Says = Callable[["LyingConnection", Any], Any]
"""(connection, packet) -> the packet to send instead, or None to say nothing."""
Hears = Callable[["LyingConnection", Pdu], bool]
"""(connection, PDU, which it may change) -> whether the target hears it at all."""


class LyingConnection(Connection):
    """A connection whose PDUs pass by the lies of its portal."""

    portal: Portal

    def _dispatch(self, pdu: Pdu) -> None:
        if self.portal.target.hears is None or self.portal.target.hears(self, pdu):
            super()._dispatch(pdu)

    def take_late(self, pdu: Pdu) -> None:
        """Take a PDU later, past the lie."""
        if self.stage is not Stage.CLOSED:
            super()._dispatch(pdu)
            self.host.wake()

    def send(self, bhs: bytes, data: bytes | memoryview = b"") -> None:
        says = self.portal.target.says
        if says is None:
            super().send(bhs, data)
            return
        with digests(False, False):
            length = int.from_bytes(bhs[5:8], "big")
            pdu = says(self, ISCSI(bhs + bytes(data[:length]) + bytes(-length % 4)))
            if pdu is None:
                return
            pdu.data_segment_length = pdu.padding = None
            told = bytes(pdu)
        super().send(told[:48], bytes(pdu.data))

    def refresh_hot(self) -> None:
        super().refresh_hot()
        self.hot = False  # what the hot path sends does not pass by

    def _respond_plainly(self, task: Task, data: Buffer) -> bool:
        return False  # nor does this


class Host(DrivenHost):
    """What a connection sends goes to the socket."""

    def __init__(self, writer: asyncio.StreamWriter, stays_open: bool) -> None:
        super().__init__()
        self._writer = writer
        self._stays_open = stays_open

    def flush(self) -> None:
        super().flush()
        if self.sent and not self._writer.is_closing():
            self._writer.write(bytes(self.sent))
        self.sent.clear()

    def close(self) -> None:
        super().close()
        if not self._stays_open:
            self._writer.close()

    def abort(self) -> None:
        super().abort()
        if not self._stays_open:
            self._writer.close()


class Portal:
    """One listening socket; `directory.redirect_to` sends every login elsewhere."""

    def __init__(self, target: LyingTarget, directory: OneTarget) -> None:
        self.target = target
        self.directory = directory
        self.address = ""
        self.server: asyncio.Server | None = None

    async def listen(self) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self.server.sockets[0].getsockname()
        self.address = f"{host}:{port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host = Host(writer, self.target.stays_open)
        peer = "{}:{}".format(*writer.get_extra_info("peername")[:2])
        connection = LyingConnection(host, self.directory, self.target.limits, self.address, peer)
        connection.portal = self
        host.connection = connection
        shared = memoryview(bytearray(1 << 18))
        try:
            while data := await reader.read(1 << 16):
                if connection.stage is not Stage.CLOSED:
                    _feed(connection, shared, data)
                    host.flush()
        except ConnectionError:
            pass
        finally:
            connection.lost()
            writer.close()


def _feed(connection: Connection, shared: memoryview, data: bytes) -> None:
    framer = connection.framer
    while data and connection.stage is not Stage.CLOSED:
        buffer = framer.buffers(shared)[0]
        part, data = data[: len(buffer)], data[len(buffer) :]
        buffer[: len(part)] = part
        connection.receive(framer.received(shared, len(part)))
        while framer.unread and connection.stage is not Stage.CLOSED:
            framer.buffers(shared)
            connection.receive(framer.received(shared, 0))


class LyingTarget:
    """Both portals, for an async with block.

    redirects: the first portal sends everybody to the second. chap: who may log in. stays_open: connections are never
    closed from here.
    """

    def __init__(
        self,
        says: Says | None = None,
        hears: Hears | None = None,
        *,
        redirects: bool = False,
        chap: Credentials | None = None,
        stays_open: bool = False,
    ) -> None:
        self.says = says
        self.hears = hears
        self.stays_open = stays_open
        self.limits = TargetLimits()
        self.device = MemoryDevice(BLOCKS, BLOCK_BYTES)
        self._redirects = redirects
        self._chap = chap
        self.portals: list[Portal] = []

    async def __aenter__(self) -> LyingTarget:
        identity = Identity("0123456789abcdef0123456789abcdef", IQN, name="test")
        unit = LogicalUnit(self.device, identity, services=_services())
        first = OneTarget(unit, Access(chap=(self._chap,)) if self._chap else None)
        self.target = first.target
        second = copy.copy(first)
        self.portals = [Portal(self, first), Portal(self, second)]
        for portal in self.portals:
            await portal.listen()
        if self._redirects:
            first.redirect_to = self.portals[1].address
        return self

    async def __aexit__(self, *error: object) -> None:
        for portal in self.portals:
            assert portal.server is not None
            portal.server.close()

    def setting(self, **fields: Any) -> Setting:
        portals = tuple(portal.address for portal in self.portals)
        usual = {"portals": portals, "iqn": IQN, "name": NAME, "lun": 0, "block_bytes": BLOCK_BYTES, "blocks": BLOCKS}
        return Setting(**(usual | fields))


def _services() -> Services:
    async def save(record: object, epoch: int) -> int:
        del record
        return epoch + 1

    return Services(
        spawn=lambda coroutine: asyncio.get_running_loop().create_task(coroutine),
        save_reservations=save,
        unit_of=lambda designator: None,
        now=lambda: 0.0,
        sleep=asyncio.sleep,
    )

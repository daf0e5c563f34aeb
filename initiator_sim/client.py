"""The client library: disks on iSCSI targets, for asyncio programs and tests.

    async with Initiator("iqn.2026-01.org.example:host").connect("127.0.0.1:3260", iqn) as disk:
        await disk.write(0, b"x" * disk.block_bytes)
        data = await disk.read(0, 1)

A `Disk` survives redirections, moves and lost connections as its personality says; commands that had no answer are
issued again. LBA and counts are in logical blocks.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from initiator_sim import cdb as cdbs
from initiator_sim.chap import Credentials
from initiator_sim.login import LoginError
from initiator_sim.multipath import Multipath
from initiator_sim.nexus import Nexus, lun_value
from initiator_sim.parameters import Pair
from initiator_sim.path import Path
from initiator_sim.personalities import OPEN_ISCSI, Personality
from initiator_sim.reactor import Reactor
from initiator_sim.sense import Sense, Verdict, describe, judge
from initiator_sim.session import ProtocolError
from initiator_sim.task import SIMPLE, Task
from san_target.wire.text import TextError, decode_pairs

if TYPE_CHECKING:
    from typing_extensions import Buffer

PATIENCE_S: Final = 60.0
DISK_TYPE: Final = 0x00


class ScsiError(Exception):
    """A command ended with an error that an initiator does not try again; `task` has status, sense and failure."""

    def __init__(self, task: Task) -> None:
        super().__init__(f"command {task.cdb[:1].hex()}h: {describe(task)}")
        self.task = task
        self.sense = Sense.parse(task.sense)


@dataclass(frozen=True, slots=True)
class FoundTarget:
    """What discovery says of one target: its addresses with their portal group tags, as sent ("host:port,tag")."""

    iqn: str
    addresses: tuple[str, ...]


class Disk:
    """A logical unit with its paths. Made by `Initiator.connect` or `Initiator.open`; `close` logs out.

    block_bytes, blocks and unmapped_reads_zero are what READ CAPACITY (16) said.
    """

    def __init__(self, paths: list[Path], lun: int) -> None:
        self.paths = paths
        self.lun = lun
        self.block_bytes = 0
        self.blocks = 0
        self.unmapped_reads_zero = False
        self._multipath = Multipath(paths)
        self.lun_value = lun_value(lun)

    async def close(self) -> None:
        await asyncio.gather(*(path.close() for path in self.paths))

    async def once(
        self, cdb: bytes, *, read_bytes: int = 0, data: "Buffer | None" = None, attribute: int = SIMPLE
    ) -> Task:
        """Execute a command one time, whatever its end; only a lost connection makes it be sent again."""
        ended: asyncio.Future[Task] = asyncio.get_running_loop().create_future()

        def on_done(task: Task) -> None:
            if not ended.done():
                ended.set_result(task)

        task = Task(
            cdb,
            on_done,
            lun=self.lun_value,
            read_bytes=read_bytes,
            write_data=data,
            attribute=attribute,
            keep_data=True,
        )
        self._multipath.submit(task)
        return await ended

    async def execute(self, cdb: bytes, *, read_bytes: int = 0, data: "Buffer | None" = None) -> bytes:
        """Execute a command as a host does: tried again after unit attentions, BUSY and the like. Raises ScsiError.

        Returns the data read.
        """
        give_up_s = time.monotonic() + PATIENCE_S
        refusals = 0
        while True:
            task = await self.once(cdb, read_bytes=read_bytes, data=data)
            verdict = judge(task)
            if verdict is Verdict.DONE:
                return bytes(task.data)
            if verdict is Verdict.FAIL or time.monotonic() > give_up_s:
                raise ScsiError(task)
            if verdict is Verdict.RETRY_LATER:
                refusals += 1
                wait_s = self.paths[0].personality.wait_after_busy_s(refusals)
                if wait_s is None:
                    raise ScsiError(task)
                await asyncio.sleep(wait_s)

    async def read(self, lba: int, blocks: int, fua: bool = False) -> bytes:
        return await self.execute(cdbs.read16(lba, blocks, fua), read_bytes=blocks * self.block_bytes)

    async def write(self, lba: int, data: "Buffer", fua: bool = False) -> None:
        """Write whole blocks. ValueError for a part of one."""
        count, rest = divmod(len(memoryview(data).cast("B")), self.block_bytes)
        if rest or not count:
            raise ValueError(f"not a whole number of blocks of {self.block_bytes} bytes")
        await self.execute(cdbs.write16(lba, count, fua), data=data)

    async def flush(self) -> None:
        """SYNCHRONIZE CACHE of the whole disk."""
        await self.execute(cdbs.synchronize_cache())

    async def unmap(self, lba: int, blocks: int) -> None:
        parameters = cdbs.unmap_parameters((lba, blocks))
        await self.execute(cdbs.unmap(len(parameters)), data=parameters)

    async def read_capacity(self) -> None:
        """READ CAPACITY (16)."""
        data = await self.execute(cdbs.read_capacity16(), read_bytes=32)
        self.blocks = int.from_bytes(data[:8], "big") + 1
        self.block_bytes = int.from_bytes(data[8:12], "big")
        self.unmapped_reads_zero = bool(data[14] & 0x40)  # SBC-3 5.16.2: LBPRZ

    async def luns(self) -> list[int]:
        """REPORT LUNS: single-level LUNs only."""
        data = await self.execute(cdbs.report_luns(), read_bytes=4096)
        count = int.from_bytes(data[:4], "big") // 8
        values = (int.from_bytes(data[8 + 8 * index : 16 + 8 * index], "big") for index in range(count))
        return [(value >> 48) & 0x3FFF for value in values if not value & ((1 << 48) - 1)]

    async def select_lun(self, lun: int | None) -> None:
        """Speak to this LUN from now on; None = the first that is a disk. Then read its capacity.

        Raises LookupError where the target has no disk.
        """
        if lun is None:
            for candidate in await self.luns():
                self._select(candidate)
                if (await self.execute(cdbs.inquiry(), read_bytes=255))[0] == DISK_TYPE:
                    break
            else:
                raise LookupError("the target has no disk")
        else:
            self._select(lun)
        await self.read_capacity()

    def _select(self, lun: int) -> None:
        self.lun = lun
        self.lun_value = lun_value(lun)


class Initiator:
    """An initiator: a name, a personality, maybe a CHAP user. Sessions of several may share one `reactor`.

    mutual: what targets must prove in mutual CHAP. keys: operational offers instead of the personality's.
    """

    def __init__(
        self,
        name: str | None = None,
        personality: Personality = OPEN_ISCSI,
        *,
        chap: Credentials | None = None,
        mutual: Credentials | None = None,
        keys: tuple[Pair, ...] | None = None,
        reactor: Reactor | None = None,
    ) -> None:
        self.name = name or personality.initiator_name
        self.personality = personality
        self._chap = chap
        self._mutual = mutual
        self._keys = keys
        self._reactor = reactor

    @property
    def reactor(self) -> Reactor:
        if self._reactor is None:
            self._reactor = Reactor()
        return self._reactor

    def path(self, portal: str, iqn: str | None, depth: int | None = None, isid: bytes | None = None) -> Path:
        """A path that is not yet connected. depth: commands in flight, by default the personality's."""
        isid = isid or self.personality.isid(self.reactor.random_bytes)
        nexus = Nexus(portal, iqn, self.name, isid, self._chap, self._mutual, self._keys)
        return Path(self.reactor, self.personality, nexus, depth)

    async def discover(self, portal: str) -> list[FoundTarget]:
        """SendTargets=All (RFC 7143 appendix C). Raises LoginError, OSError, TimeoutError; ProtocolError for a
        malformed answer."""
        path = self.path(portal, None)
        await path.connect()
        try:
            answer = await path.text([("SendTargets", "All")])
        finally:
            await path.close()
        found: dict[str, list[str]] = {}
        try:
            pairs = decode_pairs(answer)
        except TextError as error:
            raise ProtocolError(f"malformed answer to SendTargets: {error}") from None
        iqn = None
        for key, value in pairs:
            if key == "TargetName":
                iqn = value
                found.setdefault(iqn, [])
            elif key == "TargetAddress" and iqn is not None:
                found[iqn].append(value)
        return [FoundTarget(iqn, tuple(addresses)) for iqn, addresses in found.items()]

    async def open(
        self, portals: str | Sequence[str], iqn: str, *, lun: int | None = None, depth: int | None = None
    ) -> Disk:
        """Log in at every portal (several = multipath) and look at the disk. Raises LoginError, OSError, TimeoutError,
        ScsiError, LookupError."""
        addresses = [portals] if isinstance(portals, str) else portals
        async with AsyncExitStack() as stack:
            paths = []
            for portal in addresses:
                path = self.path(portal, iqn, depth)
                await path.connect()
                stack.push_async_callback(path.close)
                paths.append(path)
            disk = Disk(paths, 0)
            await disk.select_lun(lun)
            stack.pop_all()
            return disk

    @asynccontextmanager
    async def connect(
        self, portals: str | Sequence[str], iqn: str, *, lun: int | None = None, depth: int | None = None
    ) -> AsyncIterator[Disk]:
        """`open` for an async with block, which logs out at its end."""
        disk = await self.open(portals, iqn, lun=lun, depth=depth)
        try:
            yield disk
        finally:
            await disk.close()


__all__ = ["Disk", "FoundTarget", "Initiator", "LoginError", "ScsiError"]

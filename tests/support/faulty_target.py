"""A target inside the test's own event loop, whose storage does what a script says, and whose power can fail."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from san_target.scsi.identity import Identity
from san_target.scsi.logical_unit import LogicalUnit
from san_target.scsi.services import Services
from san_target.server.portal import PortalServer
from san_target.session.parameters import TargetLimits
from san_target.storage.faulty import FaultyFile, Script
from san_target.storage.memory import MemoryFile
from san_target.storage.records import HeldRange
from san_target.storage.threads import SynchronousThreads
from san_target.volume.partition_map import PartitionMap, Placement
from san_target.volume.volume import Volume
from tests.support.session_driver import IQN, OneTarget


class FaultyTarget:
    """One volume of `blocks` blocks on one portal. `script` may be changed at any time."""

    def __init__(self, script: Script, blocks: int, block_bytes: int) -> None:
        self.script = script
        self.iqn = IQN
        self.address = ("127.0.0.1", 0)
        self._blocks = blocks
        self._block_bytes = block_bytes
        self._medium = MemoryFile(blocks * block_bytes)
        self._server: PortalServer | None = None

    @property
    def portal(self) -> str:
        return f"{self.address[0]}:{self.address[1]}"

    @property
    def written_bytes(self) -> int:
        """How much of the medium holds something, in whole pages."""
        return self._medium.allocated_bytes()

    async def start(self) -> None:
        """Serve, at the same address as before."""

        async def save(record: object, epoch: int) -> int:
            del record
            return epoch + 1

        services = Services(
            spawn=lambda coroutine: asyncio.get_running_loop().create_task(coroutine),
            save_reservations=save,
            unit_of=lambda designator: None,
            now=asyncio.get_running_loop().time,
            sleep=asyncio.sleep,
        )
        volume = Volume(
            "0123456789abcdef" * 2,
            self._block_bytes,
            self._blocks,
            PartitionMap(self._blocks, Placement("a", generation=1)).snapshot(),
            "a",
            FaultyFile(self._medium, self.script),
            (HeldRange(0, self._blocks, 1),),
            SynchronousThreads(),
        )
        unit = LogicalUnit(volume, Identity("0" * 31 + "1", IQN, name="faulty"), services=services)
        self._server = PortalServer(OneTarget(unit), TargetLimits())
        self.address = await self._server.start(*self.address)

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop()
            self._server = None

    async def lose_power(self, chance: random.Random) -> None:
        """Stop; of what was not flushed, each sector is left in any version that it has had since."""
        await self.stop()
        self._medium.lose_power(chance.choice)


@asynccontextmanager
async def faulty_target(script: Script, blocks: int, block_bytes: int) -> AsyncIterator[FaultyTarget]:
    target = FaultyTarget(script, blocks, block_bytes)
    await target.start()
    try:
        yield target
    finally:
        await target.stop()

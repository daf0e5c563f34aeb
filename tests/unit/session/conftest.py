"""A target on a memory device, and drivers that log in to it."""

import asyncio
from typing import TYPE_CHECKING

import pytest

from san_target.scsi.identity import Identity
from san_target.scsi.logical_unit import LogicalUnit
from san_target.scsi.services import Services
from tests.support.memory_device import MemoryDevice
from tests.support.session_driver import IQN, OneTarget

if TYPE_CHECKING:
    from typing_extensions import Buffer


class PausedDevice(MemoryDevice):
    """A memory device whose waiting calls stand still between `pause` and `resume`."""

    def __init__(self) -> None:
        super().__init__(blocks=4096, block_size=512)
        self._running = asyncio.Event()
        self._running.set()

    def pause(self) -> None:
        self._running.clear()

    def resume(self) -> None:
        self._running.set()

    async def read(self, lba: int, blocks: int) -> bytes:
        await self._running.wait()
        return await super().read(lba, blocks)

    async def write(self, lba: int, data: "Buffer", durable: bool = False) -> None:
        await self._running.wait()
        await super().write(lba, data, durable)


@pytest.fixture
def device() -> PausedDevice:
    return PausedDevice()


@pytest.fixture
def directory(device: PausedDevice) -> OneTarget:
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
    identity = Identity("0123456789abcdef0123456789abcdef", IQN, name="test")
    return OneTarget(LogicalUnit(device, identity, services=services))

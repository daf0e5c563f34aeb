"""A logical unit on a memory device, with surroundings that a test holds in its hands."""

import asyncio
import struct
from collections.abc import Coroutine
from typing import Any

from san_target.metadata.schema import ReservationsRecord
from san_target.scsi.command import Command, Outcome
from san_target.scsi.identity import Identity
from san_target.scsi.logical_unit import LogicalUnit
from san_target.scsi.nexus import Nexus
from san_target.scsi.services import Services
from san_target.volume.device import Unavailable
from tests.support.memory_device import MemoryDevice

TARGET = "iqn.2026-01.io.san-target:disk"
HOST_A = "iqn.2026-01.example:a"
HOST_B = "iqn.2026-01.example:b"
HOST_C = "iqn.2026-01.example:c"


class Surroundings:
    """saved: the records stored, oldest first. store_away: saving fails. units: what unit_of finds. time_s: virtual.

    members_away: not everybody can be told. told: the epochs that everybody was told of.
    """

    def __init__(self) -> None:
        self.saved: list[ReservationsRecord] = []
        self.store_away = False
        self.members_away = False
        self.told: list[int] = []
        self.store_gate: asyncio.Event | None = None
        self.units: dict[bytes, LogicalUnit] = {}
        self.time_s = 0.0
        self.slept_s = 0.0
        self.spawned: list[asyncio.Task[None]] = []

    async def save(self, record: ReservationsRecord, epoch: int) -> int:
        if self.store_gate is not None:
            await self.store_gate.wait()
        if self.store_away:
            raise Unavailable("the store is away")
        self.saved.append(record)
        return epoch + 1

    async def everyone_has(self, epoch: int) -> None:
        if self.members_away:
            raise Unavailable("a member does not answer")
        self.told.append(epoch)

    async def sleep(self, seconds: float) -> None:
        self.time_s += seconds
        self.slept_s += seconds
        await asyncio.sleep(0)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> object:
        self.spawned.append(asyncio.get_running_loop().create_task(coroutine))
        return self.spawned[-1]

    def services(self, sanitize_bytes_per_s: int = 1 << 40) -> Services:
        return Services(
            spawn=self.spawn,
            save_reservations=self.save,
            everyone_has=self.everyone_has,
            unit_of=self.units.get,
            now=lambda: self.time_s,
            sleep=self.sleep,
            sanitize_bytes_per_s=sanitize_bytes_per_s,
        )


def make_unit(
    surroundings: Surroundings,
    *,
    blocks: int = 256,
    block_size: int = 512,
    digit: str = "1",
    target: str = TARGET,
    read_only: bool = False,
    sanitize_bytes_per_s: int = 1 << 40,
) -> LogicalUnit:
    identity = Identity(digit * 32, target)
    device = MemoryDevice(blocks, block_size)
    services = surroundings.services(sanitize_bytes_per_s)
    unit = LogicalUnit(device, identity, services=services, read_only=read_only)
    surroundings.units[identity.naa] = unit
    return unit


def memory_of(unit: LogicalUnit) -> MemoryDevice:
    assert isinstance(unit.device, MemoryDevice)
    return unit.device


def login(unit: LogicalUnit, host: str, isid: int = 1) -> Nexus:
    """A nexus with no unit attention pending."""
    nexus = Nexus(host, isid.to_bytes(6, "big"), unit.identity.target_name, unit.identity.portal_group_tag)
    unit.attach(nexus)
    nexus.attentions.clear()
    unit.refresh(nexus)
    return nexus


async def run(unit: LogicalUnit, nexus: Nexus, cdb: bytes, data_out: bytes = b"") -> Outcome:
    """As a session runs a command: at once if possible, else waiting."""
    command = Command(nexus, cdb.ljust(16, b"\0"), data_out)
    return unit.execute_now(command) or await unit.execute(command)


def reserve_out_cdb(action: int, kind: int = 0, scope: int = 0, length: int = 24) -> bytes:
    return struct.pack(">BBB2xIx", 0x5F, action, scope << 4 | kind, length)


def reserve_out_data(key: int = 0, action_key: int = 0, flags: int = 0) -> bytes:
    return struct.pack(">QQ4xB3x", key, action_key, flags)


async def reserve_out(
    unit: LogicalUnit, nexus: Nexus, action: int, key: int = 0, action_key: int = 0, kind: int = 0, flags: int = 0
) -> Outcome:
    return await run(unit, nexus, reserve_out_cdb(action, kind), reserve_out_data(key, action_key, flags))


def sense_of(outcome: Outcome) -> tuple[int, int, int]:
    """(sense key, ASC, ASCQ) of fixed or descriptor format sense data."""
    assert outcome.status == 0x02, outcome
    if outcome.sense[0] & 0x7F == 0x72:
        return outcome.sense[1], outcome.sense[2], outcome.sense[3]
    return outcome.sense[2] & 0x0F, outcome.sense[12], outcome.sense[13]

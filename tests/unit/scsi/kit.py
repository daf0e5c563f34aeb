"""A logical unit over a memory device, and short ways to send commands to it and to read what comes back."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from san_target.scsi.command import CHECK_CONDITION, GOOD, Command, Outcome
from san_target.scsi.identity import Identity
from san_target.scsi.logical_unit import LogicalUnit
from san_target.scsi.nexus import Nexus
from san_target.scsi.services import Services
from tests.support.memory_device import MemoryDevice

if TYPE_CHECKING:
    from san_target.metadata.schema import ReservationsRecord

IQN = "iqn.2026-01.io.san-target:kit"
VOLUME_ID = "0123456789abcdef0123456789abcdef"
T = TypeVar("T")
CdbMaker = Callable[..., bytes]


class Sense(NamedTuple):
    """information: None unless VALID. specific: the sense-key-specific bytes, b"" unless SKSV."""

    key: int
    asc: int
    ascq: int
    information: int | None
    specific: bytes


def parse_sense(sense: bytes) -> Sense:
    """Both formats, read from the standard's drawings (SPC-4 4.5.2, 4.5.3)."""
    if sense[0] & 0x7F == 0x70:
        assert len(sense) == 18
        assert sense[7] == 10
        information = int.from_bytes(sense[3:7], "big") if sense[0] & 0x80 else None
        return Sense(sense[2], sense[12], sense[13], information, sense[15:18] if sense[15] & 0x80 else b"")
    assert sense[0] == 0x72
    assert len(sense) == 8 + sense[7]
    information, specific = None, b""
    at = 8
    while at < len(sense):
        if sense[at] == 0x00:
            assert sense[at + 1] == 0x0A
            information = int.from_bytes(sense[at + 4 : at + 12], "big")
        elif sense[at] == 0x02:
            assert sense[at + 1] == 0x06
            specific = sense[at + 4 : at + 7]
        at += 2 + sense[at + 1]
    return Sense(sense[1], sense[2], sense[3], information, specific)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never really waits (the memory device does not)."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        value: T = stop.value
        return value
    raise AssertionError("the coroutine waits for something")


class Rig:
    """spawned: background work that was asked for, not yet run (`run_spawned` does)."""

    def __init__(self, blocks: int = 2048, block_size: int = 512, atomic_blocks_max: int = 0, **options: bool) -> None:
        self.device = MemoryDevice(blocks, block_size, atomic_blocks_max)
        self.spawned: list[Coroutine[Any, Any, None]] = []
        services = Services(
            spawn=self.spawned.append,
            save_reservations=self._save,
            unit_of=lambda naa: None,
            now=lambda: 0.0,
            sleep=self._sleep,
        )
        self.unit = LogicalUnit(self.device, Identity(VOLUME_ID, IQN, 1, "kit"), services=services, **options)
        self.nexus = self.login("first")

    async def _save(self, record: ReservationsRecord, epoch: int) -> int:
        self.saved = record
        return epoch + 1

    async def _sleep(self, seconds: float) -> None:
        return None

    def login(self, name: str, *, moved: bool = True) -> Nexus:
        """A session of initiator `name`; moved=True spares it the unit attention of a new one."""
        nexus = Nexus(f"iqn.2026-01.host:{name}", b"\x80\0\0\0\0\1", IQN, 1)
        self.unit.attach(nexus, moved)
        return nexus

    def run_spawned(self) -> None:
        while self.spawned:
            run(self.spawned.pop(0))

    def send(
        self, cdb: str | bytes, data: bytes = b"", nexus: Nexus | None = None, expected: int | None = None
    ) -> Outcome:
        """Send a command and return its outcome. cdb: hex digits or bytes, padded to 16 with zeros."""
        raw = bytes.fromhex(cdb) if isinstance(cdb, str) else cdb
        command = Command(nexus or self.nexus, raw.ljust(16, b"\0"), data)
        command.data_out_expected = expected
        outcome = self.unit.execute_now(command)
        return run(self.unit.execute(command)) if outcome is None else outcome

    def good(
        self, cdb: str | bytes, data: bytes = b"", nexus: Nexus | None = None, expected: int | None = None
    ) -> bytes:
        """Send a command that must end GOOD; returns its Data-In."""
        outcome = self.send(cdb, data, nexus, expected)
        assert outcome.status == GOOD, outcome
        return bytes(outcome.data_in)

    def sense(
        self, cdb: str | bytes, data: bytes = b"", nexus: Nexus | None = None, expected: int | None = None
    ) -> Sense:
        """Send a command that must end with CHECK CONDITION; returns its sense."""
        outcome = self.send(cdb, data, nexus, expected)
        assert outcome.status == CHECK_CONDITION, outcome
        assert len(bytes(outcome.data_in)) == 0
        return parse_sense(outcome.sense)

    def code(
        self, cdb: str | bytes, data: bytes = b"", nexus: Nexus | None = None, expected: int | None = None
    ) -> tuple[int, int, int]:
        """The sense key, code and qualifier of a command that must end with CHECK CONDITION."""
        return self.sense(cdb, data, nexus, expected)[:3]


INVALID_FIELD_IN_CDB = (0x5, 0x24, 0x00)
INVALID_FIELD_IN_PARAMETER_LIST = (0x5, 0x26, 0x00)
PARAMETER_LIST_LENGTH_ERROR = (0x5, 0x1A, 0x00)
LBA_OUT_OF_RANGE = (0x5, 0x21, 0x00)
WRITE_PROTECTED = (0x7, 0x27, 0x00)
MISCOMPARE = (0xE, 0x1D, 0x00)
SHORT_DATA = (0x5, 0x0E, 0x03)


def cdb_10(opcode: int, lba: int, blocks: int, flags: int = 0) -> bytes:
    return bytes([opcode, flags]) + lba.to_bytes(4, "big") + b"\0" + blocks.to_bytes(2, "big") + b"\0"


def cdb_12(opcode: int, lba: int, blocks: int, flags: int = 0) -> bytes:
    return bytes([opcode, flags]) + lba.to_bytes(4, "big") + blocks.to_bytes(4, "big") + b"\0\0"


def cdb_16(opcode: int, lba: int, blocks: int, flags: int = 0) -> bytes:
    return bytes([opcode, flags]) + lba.to_bytes(8, "big") + blocks.to_bytes(4, "big") + b"\0\0"

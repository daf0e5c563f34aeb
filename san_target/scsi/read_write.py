"""READ, WRITE and WRITE ATOMIC (SBC-4 5.15-5.18, 5.39-5.42, 5.48)."""

from typing import TYPE_CHECKING

from san_target.scsi.blocks import (
    FUA,
    Range,
    decode,
    exact_data,
    require_no_protection,
    require_range,
    require_transfer_length,
    transfer_data_out,
    whole_blocks,
)
from san_target.scsi.command import OUTCOME_GOOD, Command, Outcome
from san_target.scsi.operation import Access, Operation, Operations
from san_target.scsi.sense import invalid_field_in_cdb

if TYPE_CHECKING:
    from san_target.scsi.logical_unit import LogicalUnit

READ_6 = 0x08
WRITE_6 = 0x0A


def _checked_range(unit: "LogicalUnit", command: Command, writes: bool) -> Range:
    cdb = command.cdb
    asked = decode(cdb)
    if cdb[0] not in (READ_6, WRITE_6):
        require_no_protection(cdb)
        require_transfer_length(unit, asked)
    if writes:
        unit.require_writable()
    require_range(unit, asked.lba, asked.blocks)
    return asked


def _fua(cdb: bytes) -> bool:
    return cdb[0] not in (READ_6, WRITE_6) and bool(cdb[1] & FUA)


def read_now(unit: "LogicalUnit", command: Command) -> Outcome | None:
    asked = _checked_range(unit, command, writes=False)
    if asked.blocks == 0:
        return OUTCOME_GOOD
    if _fua(command.cdb):
        return None
    data = bytearray(asked.blocks * unit.block_size)
    if unit.device.try_read_into(asked.lba, asked.blocks, memoryview(data)):
        return Outcome(data_in=data)
    return None


async def read_later(unit: "LogicalUnit", command: Command) -> Outcome:
    asked = _checked_range(unit, command, writes=False)
    if asked.blocks == 0:
        return OUTCOME_GOOD
    if _fua(command.cdb):
        # SBC-4 5.16: what is newer in the volatile cache goes to the medium first
        await unit.device.flush(asked.lba, asked.blocks)
    return Outcome(data_in=await unit.device.read(asked.lba, asked.blocks))


def write_now(unit: "LogicalUnit", command: Command) -> Outcome | None:
    asked = _checked_range(unit, command, writes=True)
    data = whole_blocks(unit, command, asked.blocks)
    if not data:
        return OUTCOME_GOOD
    if unit.durable(_fua(command.cdb)):
        return None
    if unit.device.try_write(asked.lba, len(data) // unit.block_size, data):
        return OUTCOME_GOOD
    return None


async def write_later(unit: "LogicalUnit", command: Command) -> Outcome:
    asked = _checked_range(unit, command, writes=True)
    data = whole_blocks(unit, command, asked.blocks)
    if data:
        await unit.device.write(asked.lba, data, durable=unit.durable(_fua(command.cdb)))
    return OUTCOME_GOOD


# --- WRITE ATOMIC (16) ------------------------------------------------------------------------------------------------


def _atomic_range(cdb: bytes) -> Range:
    return Range(int.from_bytes(cdb[2:10], "big"), int.from_bytes(cdb[12:14], "big"), 2, 12)


def write_atomic_data_out(cdb: bytes, block_size: int) -> int:
    return _atomic_range(cdb).blocks * block_size


async def write_atomic(unit: "LogicalUnit", command: Command) -> Outcome:
    cdb = command.cdb
    require_no_protection(cdb)
    asked = _atomic_range(cdb)
    if cdb[10] or cdb[11]:  # ATOMIC BOUNDARY: the page reports a maximum of 0
        raise invalid_field_in_cdb(10)
    unit.require_writable()
    # The range first, unlike elsewhere: a command that is out of range in both ways is told so by its address.
    require_range(unit, asked.lba, asked.blocks)
    if asked.lba % unit.limits.granularity:
        raise invalid_field_in_cdb(2)
    if asked.blocks > unit.limits.atomic_blocks or asked.blocks % unit.limits.granularity:
        raise invalid_field_in_cdb(12)
    data = exact_data(command, asked.blocks * unit.block_size)  # all or nothing
    if data:
        await unit.device.write_atomic(asked.lba, data, durable=unit.durable(bool(cdb[1] & FUA)))
    return OUTCOME_GOOD


def _read(name: str, usage: str) -> Operation:
    return Operation(name, bytes.fromhex(usage), read_now, read_later, access=Access.READ, aborts_safe=True)


def _write(name: str, usage: str) -> Operation:
    return Operation(
        name,
        bytes.fromhex(usage),
        write_now,
        write_later,
        transfer_data_out,
        Access.WRITE,
        writes_medium=True,
        aborts_safe=True,
    )


READ_WRITE_OPERATIONS: Operations = {
    (0x08, None): _read("READ (6)", "08 1f ff ff ff 04"),
    (0x28, None): _read("READ (10)", "28 f8 ff ff ff ff 00 ff ff 04"),
    (0xA8, None): _read("READ (12)", "a8 f8 ff ff ff ff ff ff ff ff 00 04"),
    (0x88, None): _read("READ (16)", "88 f8 ff ff ff ff ff ff ff ff ff ff ff ff 00 04"),
    (0x0A, None): _write("WRITE (6)", "0a 1f ff ff ff 04"),
    (0x2A, None): _write("WRITE (10)", "2a f8 ff ff ff ff 00 ff ff 04"),
    (0xAA, None): _write("WRITE (12)", "aa f8 ff ff ff ff ff ff ff ff 00 04"),
    (0x8A, None): _write("WRITE (16)", "8a f8 ff ff ff ff ff ff ff ff ff ff ff ff 00 04"),
    (0x9C, None): Operation(
        "WRITE ATOMIC (16)",
        bytes.fromhex("9c f8 ff ff ff ff ff ff ff ff ff ff ff ff 00 04"),
        later=write_atomic,
        data_out=write_atomic_data_out,
        access=Access.WRITE,
        writes_medium=True,
    ),
}

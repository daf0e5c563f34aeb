"""Commands that look at the medium's data: VERIFY, WRITE AND VERIFY, COMPARE AND WRITE, ORWRITE.

SBC-4 5.4, 5.11, 5.33-5.35 and 5.43-5.45. A difference is MISCOMPARE with the offset of the first differing byte.
"""

from typing import TYPE_CHECKING, Final

from san_target.scsi.blocks import (
    FUA,
    Range,
    decode,
    exact_data,
    require_no_protection,
    require_range,
    require_transfer_length,
    slices,
    transfer_data_out,
    whole_blocks,
)
from san_target.scsi.command import OUTCOME_GOOD, TASK_ABORTED, Command, Outcome
from san_target.scsi.operation import Access, Operation, Operations
from san_target.scsi.sense import MISCOMPARE_DURING_VERIFY, CheckCondition, invalid_field_in_cdb

if TYPE_CHECKING:
    from san_target.scsi.logical_unit import LogicalUnit

# BYTCHK (SBC-4 table 102)
MEDIUM_ONLY, EACH_BLOCK, RESERVED, ONE_BLOCK = range(4)

_STEP: Final = 4096


def _byte_check(cdb: bytes) -> int:
    return cdb[1] >> 1 & 0x03


def first_difference(expected: memoryview, found: memoryview) -> int | None:
    """The offset of the first byte that differs; both have the same length."""
    if expected == found:
        return None
    for start in range(0, len(expected), _STEP):
        part, other = expected[start : start + _STEP], found[start : start + _STEP]
        if part != other:
            return start + next(at for at, (a, b) in enumerate(zip(part, other, strict=True)) if a != b)
    return None


# --- VERIFY -----------------------------------------------------------------------------------------------------------


def verify_data_out(cdb: bytes, block_size: int) -> int:
    check = _byte_check(cdb)
    blocks = decode(cdb).blocks
    if check == EACH_BLOCK:
        return blocks * block_size
    return block_size if check == ONE_BLOCK and blocks else 0


async def verify(unit: "LogicalUnit", command: Command) -> Outcome:
    cdb = command.cdb
    require_no_protection(cdb)
    asked = decode(cdb)
    check = _byte_check(cdb)
    if check == RESERVED:
        raise invalid_field_in_cdb(1, 2)
    if check != MEDIUM_ONLY:
        require_transfer_length(unit, asked)
    require_range(unit, asked.lba, asked.blocks)
    data = exact_data(command, verify_data_out(cdb, unit.block_size))
    if check == ONE_BLOCK:
        return await _verify_same(unit, command, asked, data)
    return await _verify(unit, command, asked.lba, asked.blocks, data if check == EACH_BLOCK else None)


async def _verify(unit: "LogicalUnit", command: Command, lba: int, blocks: int, data: memoryview | None) -> Outcome:
    """Read the blocks, and compare them with `data` unless that is None."""
    for at, count in slices(lba, blocks, unit.block_size):
        if command.aborted or command.nexus.fenced:
            return Outcome(TASK_ABORTED)
        found = memoryview(await unit.device.read(at, count))
        if data is not None:
            offset = (at - lba) * unit.block_size
            _require_equal(data[offset : offset + count * unit.block_size], found, offset)
    return OUTCOME_GOOD


async def _verify_same(unit: "LogicalUnit", command: Command, asked: Range, block: memoryview) -> Outcome:
    """Compare one block of data with each block of the range."""
    for at, count in slices(asked.lba, asked.blocks, unit.block_size):
        if command.aborted or command.nexus.fenced:
            return Outcome(TASK_ABORTED)
        found = memoryview(await unit.device.read(at, count))
        _require_equal(memoryview(bytes(block) * count), found, (at - asked.lba) * unit.block_size)
    return OUTCOME_GOOD


def _require_equal(expected: memoryview, found: memoryview, base: int) -> None:
    difference = first_difference(expected, found)
    if difference is not None:
        raise CheckCondition(MISCOMPARE_DURING_VERIFY, information=base + difference)


# --- WRITE AND VERIFY -------------------------------------------------------------------------------------------------


async def write_and_verify(unit: "LogicalUnit", command: Command) -> Outcome:
    cdb = command.cdb
    require_no_protection(cdb)
    asked = decode(cdb)
    check = _byte_check(cdb)
    if check not in (MEDIUM_ONLY, EACH_BLOCK):
        raise invalid_field_in_cdb(1, 2)
    require_transfer_length(unit, asked)
    unit.require_writable()
    require_range(unit, asked.lba, asked.blocks)
    data = whole_blocks(unit, command, asked.blocks)
    if not data:
        return OUTCOME_GOOD
    # What is verified must be what the medium holds, so the write is durable whatever WCE says.
    await unit.device.write(asked.lba, data, durable=True)
    written = len(data) // unit.block_size
    return await _verify(unit, command, asked.lba, written, data if check == EACH_BLOCK else None)


# --- COMPARE AND WRITE ------------------------------------------------------------------------------------------------


def compare_and_write_data_out(cdb: bytes, block_size: int) -> int:
    return 2 * cdb[13] * block_size


async def compare_and_write(unit: "LogicalUnit", command: Command) -> Outcome:
    cdb = command.cdb
    require_no_protection(cdb)
    lba, blocks = int.from_bytes(cdb[2:10], "big"), cdb[13]
    if blocks > unit.limits.compare_and_write:
        raise invalid_field_in_cdb(13)
    unit.require_writable()
    require_range(unit, lba, blocks)
    half = blocks * unit.block_size
    if command.data_out_expected is not None and command.data_out_expected > 2 * half:
        # Whoever has more data means more blocks than the one-byte field says (256 become 0 there).
        raise invalid_field_in_cdb(13)
    data = exact_data(command, 2 * half)
    if not blocks:
        return OUTCOME_GOOD
    durable = unit.durable(bool(cdb[1] & FUA))
    offset = await unit.device.compare_and_write(lba, data[:half], data[half:], durable)
    if offset is not None:
        raise CheckCondition(MISCOMPARE_DURING_VERIFY, information=offset)
    return OUTCOME_GOOD


# --- ORWRITE ----------------------------------------------------------------------------------------------------------


async def or_write(unit: "LogicalUnit", command: Command) -> Outcome:
    cdb = command.cdb
    require_no_protection(cdb)
    asked = decode(cdb)
    require_transfer_length(unit, asked)
    unit.require_writable()
    require_range(unit, asked.lba, asked.blocks)
    data = whole_blocks(unit, command, asked.blocks)
    if data:
        await unit.device.or_write(asked.lba, data, durable=unit.durable(bool(cdb[1] & FUA)))
    return OUTCOME_GOOD


def _verify_operation(name: str, usage: str) -> Operation:
    return Operation(
        name, bytes.fromhex(usage), later=verify, data_out=verify_data_out, access=Access.READ, aborts_safe=True
    )


def _write_and_verify_operation(name: str, usage: str) -> Operation:
    return Operation(
        name,
        bytes.fromhex(usage),
        later=write_and_verify,
        data_out=transfer_data_out,
        access=Access.WRITE,
        writes_medium=True,
        aborts_safe=True,
    )


VERIFY_OPERATIONS: Operations = {
    (0x2F, None): _verify_operation("VERIFY (10)", "2f f6 ff ff ff ff 00 ff ff 04"),
    (0xAF, None): _verify_operation("VERIFY (12)", "af f6 ff ff ff ff ff ff ff ff 00 04"),
    (0x8F, None): _verify_operation("VERIFY (16)", "8f f6 ff ff ff ff ff ff ff ff ff ff ff ff 00 04"),
    (0x2E, None): _write_and_verify_operation("WRITE AND VERIFY (10)", "2e f6 ff ff ff ff 00 ff ff 04"),
    (0xAE, None): _write_and_verify_operation("WRITE AND VERIFY (12)", "ae f6 ff ff ff ff ff ff ff ff 00 04"),
    (0x8E, None): _write_and_verify_operation(
        "WRITE AND VERIFY (16)", "8e f6 ff ff ff ff ff ff ff ff ff ff ff ff 00 04"
    ),
    (0x89, None): Operation(
        "COMPARE AND WRITE",
        bytes.fromhex("89 f8 ff ff ff ff ff ff ff ff 00 00 00 ff 00 04"),
        later=compare_and_write,
        data_out=compare_and_write_data_out,
        access=Access.WRITE,
        writes_medium=True,
    ),
    (0x8B, None): Operation(
        "ORWRITE (16)",
        bytes.fromhex("8b f8 ff ff ff ff ff ff ff ff ff ff ff ff 00 04"),
        later=or_write,
        data_out=transfer_data_out,
        access=Access.WRITE,
        writes_medium=True,
    ),
}

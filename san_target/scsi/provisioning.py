"""Commands about which blocks hold data: WRITE SAME, UNMAP, GET LBA STATUS (SBC-4 4.7, 5.6, 5.32, 5.49, 5.50).

Every volume is thin provisioned; deallocated blocks read as zeros (LBPRZ = 001b), and no block is ever anchored.
"""

import struct
from typing import TYPE_CHECKING, Final

from san_target.scsi.blocks import decode, exact_data, require_no_protection, require_range
from san_target.scsi.command import OUTCOME_GOOD, Command, Outcome
from san_target.scsi.operation import Access, Operation, Operations
from san_target.scsi.sense import (
    PARAMETER_LIST_LENGTH_ERROR,
    CheckCondition,
    invalid_field_in_cdb,
    invalid_field_in_parameter_list,
)

if TYPE_CHECKING:
    from san_target.scsi.logical_unit import LogicalUnit

WRITE_SAME_16: Final = 0x93
ANCHOR_BIT, UNMAP_BIT, NDOB_BIT = 4, 3, 0
_OBSOLETE: Final = 0x06  # PBDATA and LBDATA of SBC-2

MAPPED, DEALLOCATED = 0, 1
_STATUS_DESCRIPTOR: Final = struct.Struct(">QIB3x")
_DESCRIPTORS_MAX: Final = 1024


# --- WRITE SAME -------------------------------------------------------------------------------------------------------


def _no_data_out(cdb: bytes) -> bool:
    return cdb[0] == WRITE_SAME_16 and bool(cdb[1] & 1 << NDOB_BIT)


def write_same_data_out(cdb: bytes, block_size: int) -> int:
    return 0 if _no_data_out(cdb) else block_size


async def write_same(unit: "LogicalUnit", command: Command) -> Outcome:
    cdb = command.cdb
    require_no_protection(cdb)
    if cdb[1] & 1 << ANCHOR_BIT:  # ANC_SUP = 0, and ANCHOR without UNMAP is wrong anyway
        raise invalid_field_in_cdb(1, ANCHOR_BIT)
    if cdb[1] & _OBSOLETE:
        raise invalid_field_in_cdb(1, 2)
    asked = decode(cdb)
    unit.require_writable()
    # Only now, since hosts that try UNMAP on a write-protected unit look for that reason.
    _require_offered(cdb)
    require_range(unit, asked.lba, asked.blocks)
    # SBC-4 5.49: no number of blocks means up to the last one
    blocks = asked.blocks or unit.device.blocks - asked.lba
    if blocks > unit.limits.write_same:
        raise invalid_field_in_cdb(asked.blocks_byte)
    if _no_data_out(cdb):
        block: memoryview | bytes = bytes(unit.block_size)
    else:
        block = exact_data(command, unit.block_size, longer_is_ignored=False)
    if cdb[1] & 1 << UNMAP_BIT and not any(block):
        await _unmap(unit, [(asked.lba, blocks)])
    else:
        # SBC-4 5.49.2: blocks that would not read as the data given must not be unmapped
        await unit.device.write_same(asked.lba, blocks, block, durable=unit.durable(False))
    return OUTCOME_GOOD


def _require_offered(cdb: bytes) -> None:
    """WRITE SAME (10) neither unmaps nor goes without data.

    Unmapping is offered by WRITE SAME (16) alone (LBPWS10 = 0): hosts disagree on what the (10) does with data that is
    not zero. Some mean a write of it, others an unmap, and one of them would lose data.
    """
    if cdb[0] == WRITE_SAME_16:
        return
    for bit in (UNMAP_BIT, NDOB_BIT):
        if cdb[1] & 1 << bit:
            raise invalid_field_in_cdb(1, bit)


# --- UNMAP ------------------------------------------------------------------------------------------------------------


def unmap_data_out(cdb: bytes, block_size: int) -> int:
    return int.from_bytes(cdb[7:9], "big")


async def unmap(unit: "LogicalUnit", command: Command) -> Outcome:
    cdb = command.cdb
    if cdb[1] & 0x01:  # ANCHOR
        raise invalid_field_in_cdb(1, 0)
    length = unmap_data_out(cdb, unit.block_size)
    if length == 0:
        return OUTCOME_GOOD
    ranges = _parse_unmap(unit, bytes(memoryview(command.data_out)[:length]))
    unit.require_writable()
    for lba, blocks in ranges:
        if blocks or lba > unit.device.blocks:  # an empty range may end where the volume does
            require_range(unit, lba, blocks)
    await _unmap(unit, [each for each in ranges if each[1]])
    return OUTCOME_GOOD


async def _unmap(unit: "LogicalUnit", ranges: list[tuple[int, int]]) -> None:
    """Without a write cache what was unmapped must not come back after a power failure, like any other write."""
    await unit.device.unmap(ranges)
    if unit.durable(False):
        for lba, blocks in ranges:
            await unit.device.flush(lba, blocks)


def _parse_unmap(unit: "LogicalUnit", data: bytes) -> list[tuple[int, int]]:
    """The (lba, blocks) block descriptors of the parameter list (SBC-4 5.32.2)."""
    if len(data) < 8:
        raise CheckCondition(PARAMETER_LIST_LENGTH_ERROR)
    descriptors_length = int.from_bytes(data[2:4], "big")
    if descriptors_length > len(data) - 8:
        raise CheckCondition(PARAMETER_LIST_LENGTH_ERROR)
    # An incomplete last descriptor is ignored
    count = descriptors_length // 16
    if count > unit.limits.unmap_descriptors:
        raise invalid_field_in_parameter_list(2)
    ranges = [struct.unpack_from(">QI", data, 8 + 16 * index) for index in range(count)]
    total = 0
    for index, (_, blocks) in enumerate(ranges):
        total += blocks
        if total > unit.limits.unmap:
            raise invalid_field_in_parameter_list(8 + 16 * index + 8)
    return [(lba, blocks) for lba, blocks in ranges]


# --- GET LBA STATUS ---------------------------------------------------------------------------------------------------


async def get_lba_status(unit: "LogicalUnit", command: Command) -> Outcome:
    cdb = command.cdb
    lba = int.from_bytes(cdb[2:10], "big")
    allocation_length = int.from_bytes(cdb[10:14], "big")
    require_range(unit, lba, 1)
    # As many descriptors as fit, but one is always made, and cut if need be (SPC-4 4.2.5.6)
    extents_max = min(_DESCRIPTORS_MAX, max(1, (allocation_length - 8) // _STATUS_DESCRIPTOR.size))
    extents = await unit.device.allocation(lba, unit.device.blocks - lba, extents_max)
    descriptors = bytearray()
    for extent in extents[:extents_max]:
        blocks = min(extent.blocks, 0xFFFFFFFF)
        descriptors += _STATUS_DESCRIPTOR.pack(extent.lba, blocks, MAPPED if extent.mapped else DEALLOCATED)
        if blocks < extent.blocks:
            break  # the next descriptor would have to start where this one had to end
    header = struct.pack(">I4x", 4 + len(descriptors))
    return Outcome(data_in=(header + descriptors)[:allocation_length])


PROVISIONING_OPERATIONS: Operations = {
    (0x41, None): Operation(
        "WRITE SAME (10)",
        bytes.fromhex("41 f0 ff ff ff ff 00 ff ff 04"),
        later=write_same,
        data_out=write_same_data_out,
        access=Access.WRITE,
        writes_medium=True,
        aborts_safe=True,
    ),
    (0x93, None): Operation(
        "WRITE SAME (16)",
        bytes.fromhex("93 f9 ff ff ff ff ff ff ff ff ff ff ff ff 00 04"),
        later=write_same,
        data_out=write_same_data_out,
        access=Access.WRITE,
        writes_medium=True,
        aborts_safe=True,
    ),
    (0x42, None): Operation(
        "UNMAP",
        bytes.fromhex("42 01 00 00 00 00 00 ff ff 04"),
        later=unmap,
        data_out=unmap_data_out,
        access=Access.WRITE,
        writes_medium=True,
        aborts_safe=True,
    ),
    (0x9E, 0x12): Operation(
        "GET LBA STATUS (16)",
        bytes.fromhex("9e 12 ff ff ff ff ff ff ff ff ff ff ff ff 00 04"),
        later=get_lba_status,
        access=Access.READ,
        aborts_safe=True,
    ),
}

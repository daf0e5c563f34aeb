"""Commands about the medium as a whole: ready or not, capacity, start and stop, eject, and its cache.

SPC-4 6.13, 6.42, 6.47; SBC-4 5.12-5.14, 5.20-5.23, 5.28, 5.30, 5.31.
"""

import struct
from typing import TYPE_CHECKING, Final

from san_target.scsi import pages
from san_target.scsi.blocks import Range, decode, require_range
from san_target.scsi.command import CONDITION_MET, GOOD, OUTCOME_GOOD, Command, Outcome
from san_target.scsi.limits import MAXIMUM_TRANSFER_BYTES
from san_target.scsi.operation import Access, Operation, Operations
from san_target.scsi.sense import (
    MEDIUM_NOT_PRESENT_TRAY_OPEN,
    MEDIUM_REMOVAL_PREVENTED,
    NOT_READY_TO_READY_CHANGE,
    CheckCondition,
    invalid_field_in_cdb,
)

if TYPE_CHECKING:
    from san_target.scsi.logical_unit import LogicalUnit


def test_unit_ready(unit: "LogicalUnit", command: Command) -> Outcome:
    return OUTCOME_GOOD  # what makes a unit not ready is judged before any command


def request_sense(unit: "LogicalUnit", command: Command) -> Outcome:
    """A pending unit attention, else why the unit is not ready, else NO SENSE (SPC-4 6.39)."""
    descriptor_format = bool(command.cdb[1] & 1)
    sense = unit.take_sense(command.nexus).sense(descriptor_format)
    return Outcome(data_in=sense[: command.cdb[4]])


def send_diagnostic(unit: "LogicalUnit", command: Command) -> Outcome:
    """The default self-test, which a unit that answers has passed; no pages (SPC-4 6.42)."""
    if command.cdb[1] & 0xE0:
        raise invalid_field_in_cdb(1, 7)
    if not command.cdb[1] & 0x04:
        raise invalid_field_in_cdb(1, 2)
    if command.cdb[3] or command.cdb[4]:
        raise invalid_field_in_cdb(3)
    return OUTCOME_GOOD


# --- Capacity ---------------------------------------------------------------------------------------------------------


def read_capacity_10(unit: "LogicalUnit", command: Command) -> Outcome:
    cdb = command.cdb
    if any(cdb[2:6]) and not cdb[8] & 1:  # an address without PMI (SBC-3 5.12)
        raise invalid_field_in_cdb(2)
    last = min(unit.device.blocks - 1, 0xFFFFFFFF)
    return Outcome(data_in=struct.pack(">II", last, unit.block_size))


def read_capacity_16(unit: "LogicalUnit", command: Command) -> Outcome:
    data = pages.build(
        pages.READ_CAPACITY_16,
        {
            "returned_logical_block_address": unit.device.blocks - 1,
            "block_length": unit.block_size,
            "rc_basis": 0,
            "p_type": 0,
            "prot_en": False,
            "p_i_exponent": 0,
            "logical_blocks_per_physical_block_exponent": 0,
            "lbpme": True,
            "lbprz": True,
            "lowest_aligned_logical_block_address": 0,
        },
    )
    return Outcome(data_in=data[: int.from_bytes(command.cdb[10:14], "big")])


def read_defect_data(unit: "LogicalUnit", command: Command) -> Outcome:
    """Both lists are empty: what lies below relocates its own defects (SBC-4 5.22, 5.23)."""
    cdb = command.cdb
    if cdb[0] == 0x37:
        lists_and_format, allocation_length = cdb[2] & 0x1F, int.from_bytes(cdb[7:9], "big")
        data = struct.pack(">xBH", lists_and_format, 0)
    else:
        lists_and_format, allocation_length = cdb[1] & 0x1F, int.from_bytes(cdb[6:10], "big")
        data = struct.pack(">xBHI", lists_and_format, 0, 0)
    return Outcome(data_in=data[:allocation_length])


# --- Start, stop, eject -----------------------------------------------------------------------------------------------

IMMED: Final = 0x01
NO_FLUSH, LOEJ, START = 0x04, 0x02, 0x01


def start_stop_access(cdb: bytes) -> Access:
    return Access.STATUS if cdb[4] & START and not cdb[4] & 0xF0 else Access.WRITE


async def start_stop_unit(unit: "LogicalUnit", command: Command) -> Outcome:
    flags = command.cdb[4]
    if flags & 0xF0:
        # A POWER CONDITION: there is no power to save here, and START and LOEJ do not count (SBC-4 table 94).
        return OUTCOME_GOOD
    if flags & LOEJ and not unit.removable:
        raise invalid_field_in_cdb(4, 1)
    if flags & LOEJ and unit.preventing:
        raise CheckCondition(MEDIUM_REMOVAL_PREVENTED)
    if flags & START:
        return _start(unit, command, load=bool(flags & LOEJ))
    if not flags & NO_FLUSH and not unit.ejected:
        await _flush(unit, Range(0, unit.device.blocks, 0, 0), bool(command.cdb[1] & IMMED))
    if flags & LOEJ:
        unit.set_medium(stopped=unit.stopped, ejected=True)
    elif not unit.removable:
        # A removable medium that was only stopped spins up again by itself when it is used.
        unit.set_medium(stopped=True, ejected=unit.ejected)
    return OUTCOME_GOOD


def _start(unit: "LogicalUnit", command: Command, load: bool) -> Outcome:
    if unit.ejected and not load:
        raise CheckCondition(MEDIUM_NOT_PRESENT_TRAY_OPEN)
    became_ready = unit.ejected or unit.stopped
    unit.set_medium(stopped=False, ejected=False)
    if became_ready:
        unit.establish(NOT_READY_TO_READY_CHANGE, other_than=command.nexus)
    return OUTCOME_GOOD


def prevent_allow_access(cdb: bytes) -> Access:
    return Access.WRITE if cdb[4] & 0x03 else Access.ALWAYS


def prevent_allow_medium_removal(unit: "LogicalUnit", command: Command) -> Outcome:
    """Each nexus prevents or allows for itself; the medium stays while any prevents (SBC-4 5.14)."""
    if command.cdb[4] & 0x02:  # obsolete
        raise invalid_field_in_cdb(4, 1)
    if command.cdb[4] & 0x01:
        unit.preventing.add(command.nexus)
    else:
        unit.preventing.discard(command.nexus)
    return OUTCOME_GOOD


# --- Cache ------------------------------------------------------------------------------------------------------------


def _cache_range(unit: "LogicalUnit", cdb: bytes) -> Range:
    """No number of blocks means up to the last one (SBC-4 5.13, 5.30)."""
    asked = decode(cdb)
    require_range(unit, asked.lba, asked.blocks)
    return asked._replace(blocks=asked.blocks or unit.device.blocks - asked.lba)


async def _flush(unit: "LogicalUnit", asked: Range, immediate: bool) -> None:
    if immediate:
        unit.services.spawn(unit.device.flush(asked.lba, asked.blocks))
    else:
        await unit.device.flush(asked.lba, asked.blocks)


async def synchronize_cache(unit: "LogicalUnit", command: Command) -> Outcome:
    await _flush(unit, _cache_range(unit, command.cdb), bool(command.cdb[1] & 0x02))
    return OUTCOME_GOOD


async def pre_fetch(unit: "LogicalUnit", command: Command) -> Outcome:
    """CONDITION MET if all of it was asked into the cache, GOOD if only the beginning (SBC-4 5.13)."""
    asked = _cache_range(unit, command.cdb)
    blocks = min(asked.blocks, MAXIMUM_TRANSFER_BYTES // unit.block_size)
    if command.cdb[1] & 0x02:
        unit.services.spawn(unit.device.prefetch(asked.lba, blocks))
    else:
        await unit.device.prefetch(asked.lba, blocks)
    return Outcome(CONDITION_MET if blocks == asked.blocks else GOOD)


MEDIUM_OPERATIONS: Operations = {
    (0x00, None): Operation("TEST UNIT READY", bytes.fromhex("00 00 00 00 00 04"), test_unit_ready),
    (0x03, None): Operation(
        "REQUEST SENSE",
        bytes.fromhex("03 01 00 00 ff 04"),
        request_sense,
        access=Access.ALWAYS,
        with_attention=True,
        while_stopped=True,
        during_sanitize=True,
    ),
    (0x1D, None): Operation(
        "SEND DIAGNOSTIC", bytes.fromhex("1d e4 00 ff ff 04"), send_diagnostic, access=Access.WRITE, while_stopped=True
    ),
    (0x25, None): Operation(
        "READ CAPACITY (10)", bytes.fromhex("25 00 ff ff ff ff 00 00 01 04"), read_capacity_10, during_sanitize=True
    ),
    (0x9E, 0x10): Operation(
        "READ CAPACITY (16)",
        bytes.fromhex("9e 10 00 00 00 00 00 00 00 00 ff ff ff ff 00 04"),
        read_capacity_16,
        during_sanitize=True,
    ),
    (0x37, None): Operation(
        "READ DEFECT DATA (10)", bytes.fromhex("37 00 1f 00 00 00 00 ff ff 04"), read_defect_data, access=Access.READ
    ),
    (0xB7, None): Operation(
        "READ DEFECT DATA (12)",
        bytes.fromhex("b7 1f 00 00 00 00 ff ff ff ff 00 04"),
        read_defect_data,
        access=Access.READ,
    ),
    (0x1B, None): Operation(
        "START STOP UNIT",
        bytes.fromhex("1b 01 00 0f f7 04"),
        later=start_stop_unit,
        access_of=start_stop_access,
        while_stopped=True,
    ),
    (0x1E, None): Operation(
        "PREVENT ALLOW MEDIUM REMOVAL",
        bytes.fromhex("1e 00 00 00 03 04"),
        prevent_allow_medium_removal,
        access_of=prevent_allow_access,
        while_stopped=True,
    ),
    (0x35, None): Operation(
        "SYNCHRONIZE CACHE (10)",
        bytes.fromhex("35 02 ff ff ff ff 00 ff ff 04"),
        later=synchronize_cache,
        access=Access.WRITE,
        aborts_safe=True,
    ),
    (0x91, None): Operation(
        "SYNCHRONIZE CACHE (16)",
        bytes.fromhex("91 02 ff ff ff ff ff ff ff ff ff ff ff ff 00 04"),
        later=synchronize_cache,
        access=Access.WRITE,
        aborts_safe=True,
    ),
    (0x34, None): Operation(
        "PRE-FETCH (10)",
        bytes.fromhex("34 02 ff ff ff ff 00 ff ff 04"),
        later=pre_fetch,
        access=Access.READ,
        aborts_safe=True,
    ),
    (0x90, None): Operation(
        "PRE-FETCH (16)",
        bytes.fromhex("90 02 ff ff ff ff ff ff ff ff ff ff ff ff 00 04"),
        later=pre_fetch,
        access=Access.READ,
        aborts_safe=True,
    ),
}

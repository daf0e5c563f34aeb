"""MODE SENSE and MODE SELECT: the mode parameters of a logical unit (SPC-4 6.11-6.14 and 7.5, SBC-4 6.5).

All nexuses share one set of parameters (mode page policy "shared"). Nothing is saved: a reset brings the defaults back.
"""

import struct
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING, Final

import msgspec

from san_target.metadata.schema import ReservationsRecord, UnitEventRecord
from san_target.scsi import pages
from san_target.scsi.command import GOOD, OUTCOME_GOOD, RESERVATION_CONFLICT, Command, Outcome
from san_target.scsi.operation import Access
from san_target.scsi.sense import (
    MODE_PARAMETERS_CHANGED,
    PARAMETER_LIST_LENGTH_ERROR,
    SAVING_PARAMETERS_NOT_SUPPORTED,
    CheckCondition,
    invalid_field_in_cdb,
    invalid_field_in_parameter_list,
)
from san_target.scsi.shared_state import event_of, names_of, port_of

if TYPE_CHECKING:
    from san_target.scsi.logical_unit import LogicalUnit

CACHING: Final = 0x08
CONTROL: Final = 0x0A
INFORMATIONAL_EXCEPTIONS: Final = 0x1C
ALL_PAGES: Final = 0x3F
ALL_SUBPAGES: Final = 0xFF
PAGE_CODES: Final = (CACHING, CONTROL, INFORMATIONAL_EXCEPTIONS)

CURRENT, CHANGEABLE, DEFAULT, SAVED = range(4)

MODE_SENSE_6: Final = 0x1A
MODE_SELECT_6: Final = 0x15


@dataclass(frozen=True, slots=True)
class ModeParameters:
    """The parameters that can differ from one moment to another.

    write_cache_enabled   WCE: a write may be acknowledged before it is on stable storage
    descriptor_sense      D_SENSE: descriptor format sense data
    write_protected       SWP: software write protect
    """

    write_cache_enabled: bool
    descriptor_sense: bool = False
    write_protected: bool = False


def defaults(write_through: bool) -> ModeParameters:
    return ModeParameters(write_cache_enabled=not write_through)


def changeable(write_through: bool) -> ModeParameters:
    """True marks what MODE SELECT may change. The operator's choice of write-through stands against any host's."""
    return ModeParameters(write_cache_enabled=not write_through, descriptor_sense=True, write_protected=True)


def page(code: int, parameters: ModeParameters, mask: bool = False) -> bytes:
    """A whole mode page, header included. mask: the changeable form, where everything else is 0."""
    content = _CONTENTS[code](parameters, not mask)
    return bytes((code, len(content))) + content


def _caching(parameters: ModeParameters, values: bool) -> bytes:
    return pages.build(
        pages.CACHING_PAGE,
        dict.fromkeys(("ic", "abpf", "cap", "disc", "size", "mf", "rcd", "fsw", "lbcss", "dra", "nv_dis"), False)
        | {
            "wce": parameters.write_cache_enabled,
            "disable_prefetch_transfer_length": 0xFFFF if values else 0,
            "minimum_prefetch": 0,
            "maximum_prefetch": 0xFFFF if values else 0,
            "maximum_prefetch_ceiling": 0xFFFF if values else 0,
            "sync_prog": 0,
            "number_of_cache_segments": 0,
            "cache_segment_size": 0,
        },
    )


def _control(parameters: ModeParameters, values: bool) -> bytes:
    return pages.build(
        pages.CONTROL_PAGE,
        dict.fromkeys(("tmf_only", "dpicz", "rlec", "nuar", "vs", "rac", "ato", "tas", "atmpe", "rwwp"), False)
        | {
            "tst": 0,
            "d_sense": parameters.descriptor_sense,
            "gltsd": values,  # no log parameters are kept
            "queue_algorithm_modifier": 1 if values else 0,  # unrestricted reordering of SIMPLE tasks
            "qerr": 0,
            "ua_intlck_ctrl": 0,
            "swp": parameters.write_protected,
            "autoload_mode": 0,
            "busy_timeout_period": 0xFFFF if values else 0,
            "extended_self_test_completion_time": 0,
        },
    )


def _informational_exceptions(parameters: ModeParameters, values: bool) -> bytes:
    return pages.build(
        pages.INFORMATIONAL_EXCEPTIONS_PAGE,
        dict.fromkeys(("perf", "ebf", "ewasc", "test", "ebackerr", "logerr"), False)
        | {"dexcpt": values, "mrie": 0, "interval_timer": 0, "report_count": 0},
    )


_CONTENTS: Final = {
    CACHING: _caching,
    CONTROL: _control,
    INFORMATIONAL_EXCEPTIONS: _informational_exceptions,
}


# --- MODE SENSE -------------------------------------------------------------------------------------------------------


def mode_sense(unit: "LogicalUnit", command: Command) -> Outcome:
    cdb = command.cdb
    short = cdb[0] == MODE_SENSE_6
    control, code, subpage = cdb[2] >> 6, cdb[2] & 0x3F, cdb[3]
    if control == SAVED:
        raise CheckCondition(SAVING_PARAMETERS_NOT_SUPPORTED)
    body = b"".join(_selected_pages(unit, control, code, subpage))
    descriptor = _block_descriptor(unit, short, cdb)
    long_lba = 0x01 if len(descriptor) == 16 else 0x00
    # SBC-4 6.5.1: WP and DPOFUA
    device_specific = 0x10 | (0x80 if unit.write_protection() is not None else 0)
    total = len(descriptor) + len(body)
    if short:
        # The header counts itself except for the length field (SPC-4 7.5.4)
        header = struct.pack(">BBBB", min(255, total + 3), 0, device_specific, len(descriptor))
        allocation_length = cdb[4]
    else:
        header = struct.pack(">HBBBxH", total + 6, 0, device_specific, long_lba, len(descriptor))
        allocation_length = int.from_bytes(cdb[7:9], "big")
    return Outcome(data_in=(header + descriptor + body)[:allocation_length])


def _selected_pages(unit: "LogicalUnit", control: int, code: int, subpage: int) -> list[bytes]:
    if subpage not in (0, ALL_SUBPAGES):
        raise invalid_field_in_cdb(3)
    if code != ALL_PAGES and code not in PAGE_CODES:
        raise invalid_field_in_cdb(2, 5)
    parameters = {
        CURRENT: unit.parameters,
        CHANGEABLE: changeable(unit.write_through),
        DEFAULT: defaults(unit.write_through),
    }[control]
    codes = PAGE_CODES if code == ALL_PAGES else (code,)
    return [page(each, parameters, mask=control == CHANGEABLE) for each in codes]


def _block_descriptor(unit: "LogicalUnit", short: bool, cdb: bytes) -> bytes:
    if cdb[1] & 0x08:  # DBD
        return b""
    blocks = unit.device.blocks
    long_lba = not short and bool(cdb[1] & 0x10)  # LLBAA
    if long_lba:
        return pages.build(pages.LONG_BLOCK_DESCRIPTOR, {"blocks": blocks, "block_length": unit.block_size})
    return pages.build(
        pages.SHORT_BLOCK_DESCRIPTOR,
        {"blocks": min(blocks, 0xFFFFFFFF), "block_length": unit.block_size.to_bytes(3, "big")},
    )


# --- MODE SELECT ------------------------------------------------------------------------------------------------------


def mode_select_data_out(cdb: bytes, block_size: int) -> int:
    return cdb[4] if cdb[0] == MODE_SELECT_6 else int.from_bytes(cdb[7:9], "big")


def _with_parameters(
    unit: "LogicalUnit", record: ReservationsRecord, parameters: ModeParameters, command: Command
) -> ReservationsRecord | Outcome:
    """The parameters are the volume's: hosts that come through other members see them, too.

    It may have waited for its turn behind a change that keeps this nexus out.
    """
    if unit.reservations.conflict(command.nexus, Access.WRITE):
        return Outcome(RESERVATION_CONFLICT)
    if parameters == unit.parameters:
        return record
    owed = MODE_PARAMETERS_CHANGED.asc, MODE_PARAMETERS_CHANGED.ascq
    event = UnitEventRecord(everyone=owed, except_port=names_of(port_of(command.nexus)))
    changed = None if parameters == defaults(unit.write_through) else astuple(parameters)
    return msgspec.structs.replace(record, mode=changed, last=event_of(record, event))


async def mode_select(unit: "LogicalUnit", command: Command) -> Outcome:
    cdb = command.cdb
    if cdb[1] & 0x01:  # SP: nothing can be saved
        raise invalid_field_in_cdb(1, 0)
    if not cdb[1] & 0x10:  # PF: pages must have the standard's format
        raise invalid_field_in_cdb(1, 4)
    length = mode_select_data_out(cdb, unit.block_size)
    if length == 0:
        return OUTCOME_GOOD
    data = bytes(memoryview(command.data_out)[:length])
    if len(data) < length:
        raise CheckCondition(PARAMETER_LIST_LENGTH_ERROR)
    before = unit.parameters
    after = _parse(unit, data, short=cdb[0] == MODE_SELECT_6)
    outcome = await unit.shared.change(lambda record: _with_parameters(unit, record, after, command), command)
    if outcome.status != GOOD:
        return outcome
    if before.write_cache_enabled and not after.write_cache_enabled:
        # SBC-4 6.5.6: from now on writes are durable; what the cache holds from before becomes so before GOOD
        await unit.device.flush(0, unit.device.blocks)
    return OUTCOME_GOOD


def _parse(unit: "LogicalUnit", data: bytes, short: bool) -> ModeParameters:
    header_length = 4 if short else 8
    if len(data) < header_length:
        raise CheckCondition(PARAMETER_LIST_LENGTH_ERROR)
    descriptor_length = data[3] if short else int.from_bytes(data[6:8], "big")
    long_lba = not short and bool(data[4] & 0x01)
    position = header_length + descriptor_length
    if position > len(data):
        raise CheckCondition(PARAMETER_LIST_LENGTH_ERROR)
    if descriptor_length:
        _check_block_descriptor(unit, data[header_length:position], header_length, long_lba)
    parameters = unit.parameters
    while position < len(data):
        parameters = _parse_page(unit, data, position, parameters)
        position += 2 + data[position + 1]
    return parameters


def _check_block_descriptor(unit: "LogicalUnit", descriptor: bytes, position: int, long_lba: bool) -> None:
    """The capacity and block length cannot be changed, only confirmed (SBC-4 6.5.2)."""
    if len(descriptor) != (16 if long_lba else 8):
        raise invalid_field_in_parameter_list(position - 1)
    if long_lba:
        blocks, block_length = struct.unpack(">Q4xI", descriptor)
        unchanged = (0, unit.device.blocks, 0xFFFFFFFFFFFFFFFF)
    else:
        blocks = int.from_bytes(descriptor[0:4], "big")
        block_length = int.from_bytes(descriptor[5:8], "big")
        unchanged = (0, min(unit.device.blocks, 0xFFFFFFFF), 0xFFFFFFFF)
    if blocks not in unchanged:
        raise invalid_field_in_parameter_list(position)
    if block_length != unit.block_size:
        raise invalid_field_in_parameter_list(position + (12 if long_lba else 5))


def _parse_page(unit: "LogicalUnit", data: bytes, position: int, parameters: ModeParameters) -> ModeParameters:
    if position + 2 > len(data):
        raise CheckCondition(PARAMETER_LIST_LENGTH_ERROR)
    code = data[position] & 0x3F
    if data[position] & 0x40 or code not in PAGE_CODES:  # SPF, or a page that is not there
        raise invalid_field_in_parameter_list(position)
    current = page(code, parameters)
    if data[position + 1] != len(current) - 2:
        raise invalid_field_in_parameter_list(position + 1)
    if position + len(current) > len(data):
        raise CheckCondition(PARAMETER_LIST_LENGTH_ERROR)
    may_change = page(code, changeable(unit.write_through), mask=True)
    for offset in range(2, len(current)):
        differing = (data[position + offset] ^ current[offset]) & ~may_change[offset]
        if differing:
            raise invalid_field_in_parameter_list(position + offset, differing.bit_length() - 1)
    new = data[position : position + len(current)]
    if code == CACHING:
        return replace(parameters, write_cache_enabled=bool(new[2] & 0x04))
    if code == CONTROL:
        return replace(parameters, descriptor_sense=bool(new[2] & 0x04), write_protected=bool(new[4] & 0x08))
    return parameters

"""Commands by which a target tells about itself: units, operation codes, task management, target port groups.

SPC-4 6.33, 6.35, 6.36, 6.37.
"""

import struct
from typing import TYPE_CHECKING, Final

from san_target.scsi import pages
from san_target.scsi.command import Command, Outcome
from san_target.scsi.inquiry import RELATIVE_TARGET_PORT_IDENTIFIER, inquiry
from san_target.scsi.mode import mode_select, mode_select_data_out, mode_sense
from san_target.scsi.operation import Access, Operation, Operations
from san_target.scsi.sense import invalid_field_in_cdb

if TYPE_CHECKING:
    from san_target.scsi.logical_unit import LogicalUnit


# --- REPORT LUNS ------------------------------------------------------------------------------------------------------


def report_luns(unit: "LogicalUnit", command: Command) -> Outcome:
    return report_luns_of_target(command.cdb)


def report_luns_of_target(cdb: bytes) -> Outcome:
    """Every target has one unit, LUN 0, and no well known ones (SPC-4 6.33)."""
    select_report = cdb[2]
    if select_report > 2:
        raise invalid_field_in_cdb(2)
    luns = b"" if select_report == 1 else bytes(8)
    data = struct.pack(">I4x", len(luns)) + luns
    return Outcome(data_in=data[: int.from_bytes(cdb[6:10], "big")])


# --- REPORT SUPPORTED OPERATION CODES ---------------------------------------------------------------------------------

ALL_COMMANDS, ONE_OPCODE, ONE_SERVICE_ACTION, ONE_EITHER = range(4)
NOT_SUPPORTED, SUPPORTED = 1, 3
SERVACTV, CTDP = 0x01, 0x02
# SPC-4 6.35.4: length 10, no timeout is reported
_TIMEOUTS: Final = struct.pack(">HBBII", 0x0A, 0, 0, 0, 0)


def report_supported_operation_codes(unit: "LogicalUnit", command: Command) -> Outcome:
    cdb = command.cdb
    with_timeouts, option = bool(cdb[2] & 0x80), cdb[2] & 0x07
    allocation_length = int.from_bytes(cdb[6:10], "big")
    if option > ONE_EITHER:
        raise invalid_field_in_cdb(2, 2)
    if option == ALL_COMMANDS:
        data = _all_commands(unit.operations, with_timeouts)
    else:
        opcode, service_action = cdb[3], int.from_bytes(cdb[4:6], "big")
        data = _one_command(_find(unit.operations, option, opcode, service_action), with_timeouts)
    return Outcome(data_in=data[:allocation_length])


def _all_commands(operations: Operations, with_timeouts: bool) -> bytes:
    timeouts = _TIMEOUTS if with_timeouts else b""
    descriptors = b"".join(
        struct.pack(
            ">BxHxBH",
            opcode,
            service_action or 0,
            (SERVACTV if service_action is not None else 0) | (CTDP if with_timeouts else 0),
            len(operation.usage),
        )
        + timeouts
        for (opcode, service_action), operation in sorted(
            operations.items(), key=lambda item: (item[0][0], item[0][1] or 0)
        )
    )
    return struct.pack(">I", len(descriptors)) + descriptors


def _find(operations: Operations, option: int, opcode: int, service_action: int) -> Operation | None:
    """The operation asked for; None if it is not supported. An option that does not fit the opcode is an error."""
    has_service_actions = any(key[0] == opcode and key[1] is not None for key in operations)
    plain = operations.get((opcode, None))
    if option == ONE_OPCODE and has_service_actions:
        raise invalid_field_in_cdb(2, 2)
    if option == ONE_SERVICE_ACTION and plain is not None:
        raise invalid_field_in_cdb(2, 2)
    if option == ONE_OPCODE or (option == ONE_EITHER and not has_service_actions and service_action == 0):
        return plain
    return operations.get((opcode, service_action))


def _one_command(operation: Operation | None, with_timeouts: bool) -> bytes:
    if operation is None:
        return struct.pack(">xBH", NOT_SUPPORTED, 0)
    flags = SUPPORTED | (0x80 if with_timeouts else 0)
    data = struct.pack(">xBH", flags, len(operation.usage)) + operation.usage
    return data + _TIMEOUTS if with_timeouts else data


# --- REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS -----------------------------------------------------------------------

# SPC-4 table 290: abort task, abort task set, clear task set, logical unit reset, query task, target reset;
# query asynchronous event, query task set, I_T nexus reset
_TASK_MANAGEMENT_FUNCTIONS: Final = bytes((0x80 | 0x40 | 0x10 | 0x08 | 0x04 | 0x02, 0x04 | 0x02 | 0x01, 0x00))


def report_supported_task_management_functions(unit: "LogicalUnit", command: Command) -> Outcome:
    cdb = command.cdb
    allocation_length = int.from_bytes(cdb[6:10], "big")
    if allocation_length < 4:  # SPC-4 6.36
        raise invalid_field_in_cdb(6)
    extended = bool(cdb[2] & 0x80)
    data = _TASK_MANAGEMENT_FUNCTIONS + (bytes((0x0C,)) + bytes(12) if extended else bytes(1))
    return Outcome(data_in=data[:allocation_length])


# --- REPORT TARGET PORT GROUPS ----------------------------------------------------------------------------------------

ACTIVE_OPTIMIZED: Final = 0
LENGTH_ONLY, EXTENDED = 0, 1


def report_target_port_groups(unit: "LogicalUnit", command: Command) -> Outcome:
    """One group, always active/optimized: members forward what they do not hold (SPC-4 6.37)."""
    data_format = command.cdb[1] >> 5
    if data_format not in (LENGTH_ONLY, EXTENDED):
        raise invalid_field_in_cdb(1, 7)
    flags = dict.fromkeys(("t_sup", "o_sup", "lbd_sup", "u_sup", "s_sup", "an_sup"), False)
    group = pages.build(
        pages.TARGET_PORT_GROUP,
        flags
        | {
            "pref": False,
            "asymmetric_access_state": ACTIVE_OPTIMIZED,
            "ao_sup": True,
            "target_port_group": unit.identity.portal_group_tag,
            "status_code": 0,
            "target_port_count": 1,
            "relative_target_port_identifier": RELATIVE_TARGET_PORT_IDENTIFIER,
        },
    )
    header = bytes((EXTENDED << 4, 0, 0, 0)) if data_format == EXTENDED else b""
    data = struct.pack(">I", len(header) + len(group)) + header + group
    return Outcome(data_in=data[: int.from_bytes(command.cdb[6:10], "big")])


REPORT_OPERATIONS: Operations = {
    (0x12, None): Operation(
        "INQUIRY",
        bytes.fromhex("12 01 ff ff ff 04"),
        inquiry,
        access=Access.ALWAYS,
        with_attention=True,
        while_stopped=True,
        during_sanitize=True,
    ),
    (0xA0, None): Operation(
        "REPORT LUNS",
        bytes.fromhex("a0 00 ff 00 00 00 ff ff ff ff 00 04"),
        report_luns,
        access=Access.ALWAYS,
        with_attention=True,
        while_stopped=True,
        during_sanitize=True,
    ),
    (0x1A, None): Operation(
        "MODE SENSE (6)",
        bytes.fromhex("1a 08 ff ff ff 04"),
        mode_sense,
        access=Access.READ,
        while_stopped=True,
        during_sanitize=True,
    ),
    (0x5A, None): Operation(
        "MODE SENSE (10)",
        bytes.fromhex("5a 18 ff ff 00 00 00 ff ff 04"),
        mode_sense,
        access=Access.READ,
        while_stopped=True,
        during_sanitize=True,
    ),
    (0x15, None): Operation(
        "MODE SELECT (6)",
        bytes.fromhex("15 11 00 00 ff 04"),
        later=mode_select,
        data_out=mode_select_data_out,
        access=Access.WRITE,
        while_stopped=True,
    ),
    (0x55, None): Operation(
        "MODE SELECT (10)",
        bytes.fromhex("55 11 00 00 00 00 00 ff ff 04"),
        later=mode_select,
        data_out=mode_select_data_out,
        access=Access.WRITE,
        while_stopped=True,
    ),
    (0xA3, 0x0A): Operation(
        "REPORT TARGET PORT GROUPS",
        bytes.fromhex("a3 ea 00 00 00 00 ff ff ff ff 00 04"),
        report_target_port_groups,
        while_stopped=True,
        during_sanitize=True,
    ),
    (0xA3, 0x0C): Operation(
        "REPORT SUPPORTED OPERATION CODES",
        bytes.fromhex("a3 0c 87 ff ff ff ff ff ff ff 00 04"),
        report_supported_operation_codes,
        access=Access.READ,
        while_stopped=True,
        during_sanitize=True,
    ),
    (0xA3, 0x0D): Operation(
        "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS",
        bytes.fromhex("a3 0d 80 00 00 00 ff ff ff ff 00 04"),
        report_supported_task_management_functions,
        access=Access.READ,
        while_stopped=True,
        during_sanitize=True,
    ),
}

"""PERSISTENT RESERVE IN (SPC-4 6.15): what is registered, who holds the reservation, what this target can do."""

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from san_target.scsi import transport_id
from san_target.scsi.command import RESERVATION_CONFLICT, Outcome
from san_target.scsi.inquiry import RELATIVE_TARGET_PORT_IDENTIFIER
from san_target.scsi.operation import Access, Operation, Operations
from san_target.scsi.persistent_out import PERSISTENT_OUT_OPERATIONS
from san_target.scsi.reservation_rules import ALL_REGISTRANTS_TYPES, LOGICAL_UNIT_SCOPE, State

if TYPE_CHECKING:
    from san_target.scsi.command import Command
    from san_target.scsi.logical_unit import LogicalUnit

PERSISTENT_RESERVE_IN = 0x5E
READ_KEYS, READ_RESERVATION, REPORT_CAPABILITIES, READ_FULL_STATUS = range(4)

# SPC-4 6.15.4: compatible RESERVE(6) handling, SPEC_I_PT, ALL_TG_PT and APTPL are supported.
_CRH, _SIP_C, _ATP_C, _PTPL_C = 0x10, 0x08, 0x04, 0x01
_TYPE_MASK_VALID, _PTPL_A = 0x80, 0x01
# The type mask: WR_EX_AR, EX_AC_RO, WR_EX_RO, EX_AC, WR_EX; in the second byte EX_AC_AR.
_TYPE_MASK = 0xEA01


def read_keys(state: State) -> bytes:
    """SPC-4 6.15.2: PRGENERATION, ADDITIONAL LENGTH, one key per registered nexus (equal keys repeat)."""
    keys = state.registrations.values()
    return struct.pack(f">II{len(keys)}Q", state.generation, 8 * len(keys), *keys)


def read_reservation(state: State) -> bytes:
    """SPC-4 6.15.3. The key of an all registrants type is 0: there is no single holder."""
    if state.type is None or state.holder is None:
        return struct.pack(">II", state.generation, 0)
    key = 0 if state.type in ALL_REGISTRANTS_TYPES else state.registrations[state.holder]
    scope_and_type = LOGICAL_UNIT_SCOPE << 4 | state.type
    return struct.pack(">IIQ5xB2x", state.generation, 16, key, scope_and_type)


def report_capabilities(state: State) -> bytes:
    """SPC-4 6.15.4. ALLOW COMMANDS is 0: nothing is said about commands beyond what the standard allows."""
    supported = _CRH | _SIP_C | _ATP_C | _PTPL_C
    return struct.pack(">HBBH2x", 8, supported, _TYPE_MASK_VALID | (_PTPL_A if state.aptpl else 0), _TYPE_MASK)


def read_full_status(state: State) -> bytes:
    """SPC-4 6.15.5: one descriptor per registered nexus, with the TransportID of its initiator port."""
    descriptors = []
    for port, key in state.registrations.items():
        holder = state.is_holder(port)
        name = transport_id.encode(port.initiator)
        descriptors.append(
            struct.pack(
                ">Q4xBB4xHI",
                key,
                1 if holder else 0,
                LOGICAL_UNIT_SCOPE << 4 | state.type if holder and state.type is not None else 0,
                RELATIVE_TARGET_PORT_IDENTIFIER,
                len(name),
            )
            + name
        )
    body = b"".join(descriptors)
    return struct.pack(">II", state.generation, len(body)) + body


def _now(report: Callable[[State], bytes]) -> "Callable[[LogicalUnit, Command], Outcome]":
    def handler(unit: "LogicalUnit", command: "Command") -> Outcome:
        if unit.reservations.reserved_by is not None:
            # SPC-2 5.5.1: while RESERVE(6) is in effect this command conflicts for every nexus, the holder too.
            return Outcome(RESERVATION_CONFLICT)
        allocation_length = int.from_bytes(command.cdb[7:9], "big")
        # The length fields tell the whole, also where the allocation length cuts (SPC-4 4.2.5.6).
        return Outcome(data_in=report(unit.reservations.state)[:allocation_length])

    return handler


def _in(name: str, action: int, report: Callable[[State], bytes]) -> Operation:
    return Operation(
        f"PERSISTENT RESERVE IN, {name}",
        bytes([PERSISTENT_RESERVE_IN, action, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0]),
        now=_now(report),
        access=Access.STATUS,
        while_stopped=True,
    )


PERSISTENT_IN_OPERATIONS: Operations = {
    (PERSISTENT_RESERVE_IN, READ_KEYS): _in("READ KEYS", READ_KEYS, read_keys),
    (PERSISTENT_RESERVE_IN, READ_RESERVATION): _in("READ RESERVATION", READ_RESERVATION, read_reservation),
    (PERSISTENT_RESERVE_IN, REPORT_CAPABILITIES): _in("REPORT CAPABILITIES", REPORT_CAPABILITIES, report_capabilities),
    (PERSISTENT_RESERVE_IN, READ_FULL_STATUS): _in("READ FULL STATUS", READ_FULL_STATUS, read_full_status),
}

PERSISTENT_OPERATIONS: Operations = {**PERSISTENT_IN_OPERATIONS, **PERSISTENT_OUT_OPERATIONS}

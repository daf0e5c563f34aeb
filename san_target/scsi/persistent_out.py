"""PERSISTENT RESERVE OUT (SPC-4 6.16), RESERVE(6) and RELEASE(6) (SPC-2 7.21, 7.16): from bytes to a request."""

import struct
from typing import TYPE_CHECKING

from san_target.scsi import transport_id
from san_target.scsi.inquiry import RELATIVE_TARGET_PORT_IDENTIFIER
from san_target.scsi.operation import Access, Operation, Operations
from san_target.scsi.reservation_rules import Port, Request, ServiceAction
from san_target.scsi.sense import (
    PARAMETER_LIST_LENGTH_ERROR,
    CheckCondition,
    invalid_field_in_cdb,
    invalid_field_in_parameter_list,
)
from san_target.scsi.shared_state import port_of

if TYPE_CHECKING:
    from san_target.scsi.command import Command, Outcome
    from san_target.scsi.logical_unit import LogicalUnit
    from san_target.scsi.nexus import Nexus

RESERVE_6 = 0x16
RELEASE_6 = 0x17
PERSISTENT_RESERVE_OUT = 0x5F

PARAMETER_LIST_BYTES = 24
# Every registration has its own TransportID: what one list can usefully hold is far below this.
PARAMETER_LIST_BYTES_MAX = 64 << 10


def parameter_list_length(cdb: bytes, _block_size: int = 0) -> int:
    return int.from_bytes(cdb[5:9], "big")


def parse(command: "Command", nexuses: "list[Nexus]") -> Request:
    """The request of a PERSISTENT RESERVE OUT CDB and its parameter list. Raises CheckCondition.

    nexuses: those logged in, which give a TransportID of device format (a name without a port) its ports.
    """
    cdb = command.cdb
    action = ServiceAction(cdb[1] & 0x1F)
    length = parameter_list_length(cdb)
    data = bytes(memoryview(command.data_out)[:length])
    if len(data) < length or not PARAMETER_LIST_BYTES <= length <= PARAMETER_LIST_BYTES_MAX:
        raise CheckCondition(PARAMETER_LIST_LENGTH_ERROR)
    port = port_of(command.nexus)
    known = [port_of(nexus) for nexus in nexuses]
    if action is ServiceAction.REGISTER_AND_MOVE:
        return _register_and_move(cdb, data, port, known)
    return _basic(cdb, data, port, known, action)


def _basic(cdb: bytes, data: bytes, port: Port, known: list[Port], action: ServiceAction) -> Request:
    # SPC-4 6.16.3.
    key, action_key = struct.unpack_from(">QQ", data)
    # SPC-4 6.16.3: looked at by the two registering service actions only; ALL_TG_PT asks for what is so anyway, since
    # a target has one target port.
    registering = action in (ServiceAction.REGISTER, ServiceAction.REGISTER_AND_IGNORE_EXISTING_KEY)
    specify = registering and bool(data[20] & 0x08)
    if not specify and len(data) != PARAMETER_LIST_BYTES:
        raise CheckCondition(PARAMETER_LIST_LENGTH_ERROR)
    also: tuple[Port, ...] = ()
    if specify and action is ServiceAction.REGISTER:
        also = _ports_in_list(data, port, known)
    return Request(
        port,
        action,
        key,
        action_key,
        scope=cdb[2] >> 4,
        type=cdb[2] & 0x0F,
        aptpl=registering and bool(data[20] & 0x01),
        specify_initiator_ports=specify,
        also=also,
    )


def _register_and_move(cdb: bytes, data: bytes, port: Port, known: list[Port]) -> Request:
    # SPC-4 6.16.4.
    key, action_key = struct.unpack_from(">QQ", data)
    relative_port, id_length = struct.unpack_from(">HI", data, 18)
    if len(data) != PARAMETER_LIST_BYTES + id_length:
        raise CheckCondition(PARAMETER_LIST_LENGTH_ERROR)
    if relative_port != RELATIVE_TARGET_PORT_IDENTIFIER:
        raise invalid_field_in_parameter_list(18)
    name, end = transport_id.decode(data, PARAMETER_LIST_BYTES)
    ports = _ports_named(name, port, known)
    if end != len(data) or len(ports) != 1:
        raise invalid_field_in_parameter_list(PARAMETER_LIST_BYTES)
    return Request(
        port,
        ServiceAction.REGISTER_AND_MOVE,
        key,
        action_key,
        scope=cdb[2] >> 4,
        type=cdb[2] & 0x0F,
        aptpl=bool(data[17] & 0x01),
        destination=ports[0],
        unregister=bool(data[17] & 0x02),
    )


def _ports_in_list(data: bytes, port: Port, known: list[Port]) -> tuple[Port, ...]:
    # A length, then TransportIDs.
    if len(data) < PARAMETER_LIST_BYTES + 4:
        raise CheckCondition(PARAMETER_LIST_LENGTH_ERROR)
    end = PARAMETER_LIST_BYTES + 4 + int.from_bytes(data[24:28], "big")
    if end != len(data):
        raise CheckCondition(PARAMETER_LIST_LENGTH_ERROR)
    ports: list[Port] = []
    offset = PARAMETER_LIST_BYTES + 4
    while offset < end:
        start = offset
        name, offset = transport_id.decode(data, start)
        found = [other for other in _ports_named(name, port, known) if name.is_port or other != port]
        if not found or port in found:
            raise invalid_field_in_parameter_list(start)
        ports += found
    return tuple(ports)


def _ports_named(name: transport_id.TransportId, port: Port, known: list[Port]) -> list[Port]:
    """The I_T nexuses a TransportID means: one port, or the ports that a device has sessions from."""
    if name.is_port:
        return [Port(name.text, port.target)]
    return [other for other in known if other.initiator.rpartition(",i,")[0] == name.text]


async def _persistent_reserve_out(unit: "LogicalUnit", command: "Command") -> "Outcome":
    return await unit.reservations.change(command, parse(command, list(unit.nexuses)))


def _require_no_third_party(cdb: bytes) -> None:
    # SPC-2 7.21.2: third-party and extent reservations are obsolete and not offered.
    if cdb[1] & 0x1F:
        raise invalid_field_in_cdb(1, 4)


async def _reserve_6(unit: "LogicalUnit", command: "Command") -> "Outcome":
    _require_no_third_party(command.cdb)
    return await unit.reservations.reserve_6(command.nexus, command)


async def _release_6(unit: "LogicalUnit", command: "Command") -> "Outcome":
    _require_no_third_party(command.cdb)
    return await unit.reservations.release_6(command.nexus, command)


def _out(action: ServiceAction, type_mask: int) -> Operation:
    name = f"PERSISTENT RESERVE OUT, {action.name.replace('_', ' ')}"
    usage = bytes([PERSISTENT_RESERVE_OUT, action, type_mask, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0])
    return Operation(
        name,
        usage,
        later=_persistent_reserve_out,
        data_out=parameter_list_length,
        access=Access.RESERVED_OUT,
        while_stopped=True,
    )


_WITH_TYPE = frozenset(
    {ServiceAction.RESERVE, ServiceAction.RELEASE, ServiceAction.PREEMPT, ServiceAction.PREEMPT_AND_ABORT}
)

PERSISTENT_OUT_OPERATIONS: Operations = {
    (PERSISTENT_RESERVE_OUT, int(action)): _out(action, 0xFF if action in _WITH_TYPE else 0) for action in ServiceAction
}

RESERVE_6_OPERATIONS: Operations = {
    (RESERVE_6, None): Operation(
        "RESERVE (6)",
        bytes([RESERVE_6, 0x1F, 0, 0, 0, 0]),
        later=_reserve_6,
        access=Access.RESERVE_6,
        while_stopped=True,
    ),
    (RELEASE_6, None): Operation(
        "RELEASE (6)",
        bytes([RELEASE_6, 0x1F, 0, 0, 0, 0]),
        later=_release_6,
        access=Access.RESERVE_6,
        while_stopped=True,
    ),
}

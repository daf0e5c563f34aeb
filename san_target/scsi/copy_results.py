"""RECEIVE COPY RESULTS (the LID1 service actions of SPC-4) and what VPD page 8Fh says of copies (SPC-4 7.8)."""

import struct
from typing import TYPE_CHECKING

from san_target.scsi.command import Outcome
from san_target.scsi.copy import CONCURRENT_COPIES_MAX, EXTENDED_COPY, EXTENDED_COPY_OPERATIONS, CopyOperation, Status
from san_target.scsi.copy_descriptors import (
    BLOCK_TO_BLOCK,
    CSCDS_MAX,
    DESCRIPTOR_LIST_BYTES_MAX,
    IDENTIFICATION_CSCD,
    SEGMENT_BYTES_MAX,
    SEGMENTS_MAX,
)
from san_target.scsi.operation import Access, Now, Operation, Operations
from san_target.scsi.sense import invalid_field_in_cdb

if TYPE_CHECKING:
    from san_target.scsi.command import Command
    from san_target.scsi.logical_unit import LogicalUnit

RECEIVE_COPY_RESULTS = 0x84
COPY_STATUS, RECEIVE_DATA, OPERATING_PARAMETERS, FAILED_SEGMENT_DETAILS = 0x00, 0x01, 0x03, 0x04

_DESCRIPTOR_CODES = bytes([BLOCK_TO_BLOCK, IDENTIFICATION_CSCD])


def copy_status(operation: CopyOperation) -> bytes:
    """RECEIVE COPY STATUS (LID1). The transfer count is in the smallest unit that holds it: bytes, KiB, MiB, ..."""
    units = 0
    while operation.bytes_written >> 10 * units > 0xFFFFFFFF:
        units += 1
    count = operation.bytes_written >> 10 * units
    return struct.pack(">IBHBI", 8, operation.status, operation.segments_processed, units, count)


def failed_segment_details(operation: CopyOperation) -> bytes:
    """RECEIVE COPY FAILURE DETAILS (LID1); only the length field, 0, where no copy failed."""
    if operation.status is not Status.COMPLETED_WITH_ERRORS:
        return bytes(4)
    body = struct.pack(">52xBxH", operation.command_status, len(operation.sense)) + operation.sense
    return struct.pack(">I", len(body)) + body


def operating_parameters(block_size: int) -> bytes:
    """RECEIVE COPY OPERATING PARAMETERS: SNLID, limits, granularities as powers of two, descriptor type codes."""
    body = struct.pack(
        ">B3xHHIIIII2xHBBBB3xB",
        1,
        CSCDS_MAX,
        SEGMENTS_MAX,
        DESCRIPTOR_LIST_BYTES_MAX,
        SEGMENT_BYTES_MAX,
        0,
        0,
        0,
        CONCURRENT_COPIES_MAX,
        CONCURRENT_COPIES_MAX,
        block_size.bit_length() - 1,
        0,
        0,
        len(_DESCRIPTOR_CODES),
    )
    return struct.pack(">I", len(body) + len(_DESCRIPTOR_CODES)) + body + _DESCRIPTOR_CODES


def third_party_copy_descriptors(block_size: int) -> bytes:
    """The third-party copy descriptors of VPD page 8Fh, without the page's header."""
    receive = bytes([COPY_STATUS, RECEIVE_DATA, OPERATING_PARAMETERS, FAILED_SEGMENT_DETAILS])
    commands = bytes([EXTENDED_COPY, 1, 0x00, RECEIVE_COPY_RESULTS, len(receive)]) + receive
    general = struct.pack(
        ">IIIBB18x", CONCURRENT_COPIES_MAX, CONCURRENT_COPIES_MAX, SEGMENT_BYTES_MAX, block_size.bit_length() - 1, 0
    )
    return b"".join(
        (
            _third_party(0x0001, bytes([len(commands)]) + commands),
            _third_party(0x0004, struct.pack(">4xHHII12x", CSCDS_MAX, SEGMENTS_MAX, DESCRIPTOR_LIST_BYTES_MAX, 0)),
            _third_party(0x0008, bytes([len(_DESCRIPTOR_CODES)]) + _DESCRIPTOR_CODES),
            _third_party(0x000C, struct.pack(">HH", 2, 0xFFFF)),
            _third_party(0x8001, general),
        )
    )


def _third_party(kind: int, body: bytes) -> bytes:
    padded = body.ljust(-(-len(body) // 4) * 4, b"\0")
    return struct.pack(">HH", kind, len(padded)) + padded


def _operation(unit: "LogicalUnit", command: "Command") -> CopyOperation:
    found = unit.copies.find(command.nexus, command.cdb[2])
    if found is None:
        # also once the result is no longer kept
        raise invalid_field_in_cdb(2)
    return found


def _cut(command: "Command", data: bytes) -> Outcome:
    return Outcome(data_in=data[: int.from_bytes(command.cdb[10:14], "big")])


def _copy_status(unit: "LogicalUnit", command: "Command") -> Outcome:
    return _cut(command, copy_status(_operation(unit, command)))


def _receive_data(unit: "LogicalUnit", command: "Command") -> Outcome:
    # No segment type of ours holds data, so there are never any bytes; asking too early is an error.
    if _operation(unit, command).status is Status.IN_PROGRESS:
        raise invalid_field_in_cdb(2)
    return _cut(command, bytes(4))


def _operating_parameters(unit: "LogicalUnit", command: "Command") -> Outcome:
    return _cut(command, operating_parameters(unit.block_size))


def _failed_segment_details(unit: "LogicalUnit", command: "Command") -> Outcome:
    operation = _operation(unit, command)
    if operation.status is Status.IN_PROGRESS:
        raise invalid_field_in_cdb(2)
    return _cut(command, failed_segment_details(operation))


def _receive(name: str, action: int, handler: Now, list_id_mask: int = 0xFF) -> Operation:
    return Operation(
        f"RECEIVE COPY RESULTS, {name}",
        bytes([RECEIVE_COPY_RESULTS, action, list_id_mask, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]),
        now=handler,
        access=Access.STATUS,
    )


RECEIVE_COPY_OPERATIONS: Operations = {
    (RECEIVE_COPY_RESULTS, COPY_STATUS): _receive("COPY STATUS", COPY_STATUS, _copy_status),
    (RECEIVE_COPY_RESULTS, RECEIVE_DATA): _receive("RECEIVE DATA", RECEIVE_DATA, _receive_data),
    (RECEIVE_COPY_RESULTS, OPERATING_PARAMETERS): _receive(
        "OPERATING PARAMETERS", OPERATING_PARAMETERS, _operating_parameters, 0
    ),
    (RECEIVE_COPY_RESULTS, FAILED_SEGMENT_DETAILS): _receive(
        "FAILED SEGMENT DETAILS", FAILED_SEGMENT_DETAILS, _failed_segment_details
    ),
}

COPY_OPERATIONS: Operations = {**EXTENDED_COPY_OPERATIONS, **RECEIVE_COPY_OPERATIONS}

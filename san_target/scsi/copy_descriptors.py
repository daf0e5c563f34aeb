"""The EXTENDED COPY (LID1) parameter list: which volumes, which segments (SPC-4 6.4).

Only what disks copy with is taken: identification CSCD descriptors (E4h) and block to block segments (02h). Names are
SPC-4's: a CSCD is a "copy source or copy destination".
"""

import struct
from typing import NamedTuple

from san_target.scsi.sense import (
    PARAMETER_LIST_LENGTH_ERROR,
    TOO_MANY_SEGMENT_DESCRIPTORS,
    TOO_MANY_TARGET_DESCRIPTORS,
    UNSUPPORTED_SEGMENT_DESCRIPTOR_TYPE,
    UNSUPPORTED_TARGET_DESCRIPTOR_TYPE,
    CheckCondition,
    Condition,
    FieldPointer,
    invalid_field_in_parameter_list,
)

INLINE_DATA_LENGTH_EXCEEDED = Condition(0x5, 0x26, 0x0B)

HEADER_BYTES = 16
IDENTIFICATION_CSCD = 0xE4
CSCD_BYTES = 32
DESIGNATOR_BYTES_MAX = 20
BLOCK_TO_BLOCK = 0x02
SEGMENT_BYTES = 28

CSCDS_MAX = 64
SEGMENTS_MAX = 128
# A full list of both kinds is 5,632 bytes; a list with one descriptor too many must still be told apart from one that
# is too long.
DESCRIPTOR_LIST_BYTES_MAX = 8192
SEGMENT_BYTES_MAX = 64 << 20

USAGE_HOLD, USAGE_RESERVED, USAGE_DISCARD, USAGE_NO_LIST_ID = range(4)


class Cscd(NamedTuple):
    """An identification CSCD descriptor. block_size: DISK BLOCK LENGTH in bytes, 0 = as the device has it; pad: of the
    device type specific parameters. offset: where the descriptor stands in the parameter list."""

    designator: bytes
    designator_type: int
    block_size: int
    pad: bool
    offset: int


class Segment(NamedTuple):
    """A block to block segment. count_is_of_destination: DC, `blocks` counts destination blocks, else source blocks."""

    source: int
    destination: int
    blocks: int
    source_lba: int
    destination_lba: int
    count_is_of_destination: bool
    concatenate: bool
    offset: int


class CopyRequest(NamedTuple):
    """list_id is None where the initiator asks to do without (LIST ID USAGE 11b)."""

    list_id: int | None
    hold: bool
    cscds: tuple[Cscd, ...]
    segments: tuple[Segment, ...]


def parse(data: bytes) -> CopyRequest:
    """The parameter list of as many bytes as the CDB said. Raises CheckCondition."""
    if len(data) < HEADER_BYTES:
        raise CheckCondition(PARAMETER_LIST_LENGTH_ERROR)
    # STR (sequential striped) only concerns streams; PRIORITY orders copies that compete, and copies
    # here share alike.
    list_id, flags, cscd_bytes, segment_bytes, inline_bytes = struct.unpack_from(">BBH4xII", data)
    if cscd_bytes + segment_bytes > DESCRIPTOR_LIST_BYTES_MAX:
        raise CheckCondition(PARAMETER_LIST_LENGTH_ERROR)
    if HEADER_BYTES + cscd_bytes + segment_bytes + inline_bytes > len(data):
        raise CheckCondition(PARAMETER_LIST_LENGTH_ERROR)
    if inline_bytes:
        raise CheckCondition(INLINE_DATA_LENGTH_EXCEEDED)
    usage = flags >> 3 & 0x03
    if usage == USAGE_RESERVED:
        raise invalid_field_in_parameter_list(1, 4)
    if usage == USAGE_NO_LIST_ID and list_id != 0:
        raise invalid_field_in_parameter_list(0)
    cscds = _cscds(data, HEADER_BYTES, HEADER_BYTES + cscd_bytes)
    segments = _segments(data, HEADER_BYTES + cscd_bytes, HEADER_BYTES + cscd_bytes + segment_bytes)
    return CopyRequest(None if usage == USAGE_NO_LIST_ID else list_id, usage == USAGE_HOLD, cscds, segments)


def _cscds(data: bytes, start: int, end: int) -> tuple[Cscd, ...]:
    found: list[Cscd] = []
    offset = start
    while offset < end:
        if len(found) == CSCDS_MAX:
            raise CheckCondition(TOO_MANY_TARGET_DESCRIPTORS)
        if data[offset] != IDENTIFICATION_CSCD:
            raise _at(UNSUPPORTED_TARGET_DESCRIPTOR_TYPE, offset)
        if offset + CSCD_BYTES > end:
            raise CheckCondition(PARAMETER_LIST_LENGTH_ERROR)
        found.append(_cscd(data, offset))
        offset += CSCD_BYTES
    return tuple(found)


def _cscd(data: bytes, offset: int) -> Cscd:
    # SPC-4 6.4.5.2. LU ID TYPE is obsolete in this descriptor and NUL too: neither is looked at.
    if data[offset + 1] & 0x1F:
        # Peripheral device type: only disks are copied.
        raise invalid_field_in_parameter_list(offset + 1, 4)
    length = data[offset + 7]
    if length > DESIGNATOR_BYTES_MAX or length == 0:
        raise invalid_field_in_parameter_list(offset + 7)
    return Cscd(
        designator=data[offset + 8 : offset + 8 + length],
        designator_type=data[offset + 5] & 0x0F,
        block_size=int.from_bytes(data[offset + 29 : offset + 32], "big"),
        pad=bool(data[offset + 28] & 0x04),
        offset=offset,
    )


def _segments(data: bytes, start: int, end: int) -> tuple[Segment, ...]:
    found: list[Segment] = []
    offset = start
    while offset < end:
        if len(found) == SEGMENTS_MAX:
            raise CheckCondition(TOO_MANY_SEGMENT_DESCRIPTORS)
        if data[offset] != BLOCK_TO_BLOCK:
            raise _at(UNSUPPORTED_SEGMENT_DESCRIPTOR_TYPE, offset)
        if offset + SEGMENT_BYTES > end:
            raise CheckCondition(PARAMETER_LIST_LENGTH_ERROR)
        found.append(_segment(data, offset))
        offset += SEGMENT_BYTES
    return tuple(found)


def _segment(data: bytes, offset: int) -> Segment:
    flags, length, source, destination, blocks, source_lba, destination_lba = struct.unpack_from(
        ">xBHHH2xHQQ", data, offset
    )
    if length != SEGMENT_BYTES - 4:
        raise invalid_field_in_parameter_list(offset + 2)
    return Segment(
        source,
        destination,
        blocks,
        source_lba,
        destination_lba,
        count_is_of_destination=bool(flags & 0x02),
        concatenate=bool(flags & 0x01),
        offset=offset,
    )


def _at(condition: Condition, offset: int) -> CheckCondition:
    return CheckCondition(condition, field=FieldPointer(offset), in_cdb=False)

"""What block commands share: where a CDB says which blocks, the checks in their order, and Data-Out as blocks.

The order of judgement (SBC-4 4.10, SPC-4 5.9): fields of the CDB, then write protection, then the range.
"""

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from san_target.scsi.command import Command
from san_target.scsi.sense import (
    INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT,
    LBA_OUT_OF_RANGE,
    CheckCondition,
    invalid_field_in_cdb,
)

if TYPE_CHECKING:
    from san_target.scsi.logical_unit import LogicalUnit

# Slices of this size keep a long command from holding memory, and let an abort or a fence stop it.
SLICE_BYTES: Final = 1 << 20

FUA: Final = 0x08


class Range(NamedTuple):
    """The LOGICAL BLOCK ADDRESS and TRANSFER LENGTH (or its like) of a CDB, in blocks; where they stand in it."""

    lba: int
    blocks: int
    lba_byte: int
    blocks_byte: int

    @property
    def end(self) -> int:
        return self.lba + self.blocks


def decode_6(cdb: bytes) -> Range:
    """READ (6) and WRITE (6): 21 bits of address, and a length of 0 means 256 blocks (SBC-4 5.15)."""
    return Range(int.from_bytes(cdb[1:4], "big") & 0x1FFFFF, cdb[4] or 256, 1, 4)


def decode_10(cdb: bytes) -> Range:
    lba, blocks = struct.unpack_from(">2xIxH", cdb)
    return Range(lba, blocks, 2, 7)


def decode_12(cdb: bytes) -> Range:
    lba, blocks = struct.unpack_from(">2xII", cdb)
    return Range(lba, blocks, 2, 6)


def decode_16(cdb: bytes) -> Range:
    lba, blocks = struct.unpack_from(">2xQI", cdb)
    return Range(lba, blocks, 2, 10)


def decode(cdb: bytes) -> Range:
    """By the group code of the opcode (SPC-4 table 24): 6, 10, 12 or 16 bytes of CDB."""
    return _DECODERS[cdb[0] >> 5](cdb)


_DECODERS: Final = {0: decode_6, 1: decode_10, 2: decode_10, 4: decode_16, 5: decode_12}


def require_no_protection(cdb: bytes) -> None:
    """RDPROTECT, WRPROTECT, VRPROTECT or ORPROTECT: no volume is formatted with protection information."""
    if cdb[1] & 0xE0:
        raise invalid_field_in_cdb(1, 7)


def require_transfer_length(unit: "LogicalUnit", asked: Range) -> None:
    """SBC-4 6.6.4: more than MAXIMUM TRANSFER LENGTH is INVALID FIELD IN CDB."""
    if asked.blocks > unit.limits.transfer:
        raise invalid_field_in_cdb(asked.blocks_byte)


def require_range(unit: "LogicalUnit", lba: int, blocks: int) -> None:
    """Even without blocks, an address beyond the last one is out of range (SBC-4 4.10, 5.x)."""
    capacity = unit.device.blocks
    if lba >= capacity or blocks > capacity - lba:
        raise CheckCondition(LBA_OUT_OF_RANGE, information=max(lba, capacity))


def whole_blocks(unit: "LogicalUnit", command: Command, blocks: int) -> memoryview:
    """The Data-Out for `blocks` blocks, as far as the initiator sent it: only whole blocks, never invented bytes.

    An initiator whose expected data transfer length is less than the transfer length is told of the rest as residual
    overflow, with status GOOD (RFC 7143 11.4.5.1). A block of which only a part was offered belongs to that rest: it
    could be written neither in part nor padded. (Tools that take any disk for one of 512-byte blocks do offer such.)
    """
    data = memoryview(command.data_out)
    whole = min(blocks, len(data) // unit.block_size)
    return data[: whole * unit.block_size]


def exact_data(command: Command, length: int, longer_is_ignored: bool = True) -> memoryview:
    """The Data-Out of commands that mean all of it or nothing (SPC-4: INVALID FIELD IN COMMAND INFORMATION UNIT)."""
    data = memoryview(command.data_out)
    offered = len(data) if command.data_out_expected is None else command.data_out_expected
    if len(data) < length or (offered > length and not longer_is_ignored):
        raise CheckCondition(INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT)
    return data[:length]


def slices(lba: int, blocks: int, block_size: int) -> Iterator[tuple[int, int]]:
    """(lba, blocks) parts of at most SLICE_BYTES, in order."""
    step = max(1, SLICE_BYTES // block_size)
    return ((at, min(step, lba + blocks - at)) for at in range(lba, lba + blocks, step))


# --- Data-Out lengths: (cdb, block_size) -> bytes ---------------------------------------------------------------------


def transfer_data_out(cdb: bytes, block_size: int) -> int:
    return decode(cdb).blocks * block_size


def one_block_data_out(cdb: bytes, block_size: int) -> int:
    return block_size

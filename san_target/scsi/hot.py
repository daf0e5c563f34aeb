"""The eight-in-ten case of a CDB: READ and WRITE (10), (12) and (16), decoded without a table, a class or a check more.

Everything unusual (protection, a range outside the volume, another opcode) returns None or is left to the caller, so
that the slow way answers it with the right sense.
"""

import struct
from typing import Final

# Byte 1, the address, the length, the CONTROL byte
_CDB_10: Final = struct.Struct(">xBIxHB").unpack_from
_CDB_12: Final = struct.Struct(">xBIIxB").unpack_from
_CDB_16: Final = struct.Struct(">xBQIxB").unpack_from

_UNUSUAL: Final = 0xE4  # protection, and a reserved bit
_NACA: Final = 0x04
FUA: Final = 0x08

# opcode -> (unpack, is_write)
_DECODERS: Final = {
    0x28: (_CDB_10, False),
    0x2A: (_CDB_10, True),
    0xA8: (_CDB_12, False),
    0xAA: (_CDB_12, True),
    0x88: (_CDB_16, False),
    0x8A: (_CDB_16, True),
}


def decode_read_write(cdb: bytes) -> tuple[int, int, bool, bool] | None:
    """(lba, blocks, is_write, fua) of a plain READ or WRITE; None for anything else.

    cdb has at least 16 bytes. The caller still checks that the range lies in the volume and that blocks is at most
    `unit.limits.transfer`, and leaves reads with fua to the slow way (they must reach the medium: SBC-4 5.16).
    """
    decoder = _DECODERS.get(cdb[0])
    if decoder is None:
        return None
    unpack, is_write = decoder
    flags, lba, blocks, control = unpack(cdb)
    if flags & _UNUSUAL or control & _NACA:
        return None
    return lba, blocks, is_write, flags & FUA != 0

"""Command descriptor blocks that the simulator sends (SPC-4, SBC-3). LBA and counts are in logical blocks."""

from struct import Struct
from typing import Final

_RW16: Final = Struct(">BBQIBB").pack
_RW10: Final = Struct(">BBIBHB").pack

READ_16: Final = 0x88
WRITE_16: Final = 0x8A
FUA: Final = 0x08

TEST_UNIT_READY: Final = bytes(6)


def read16(lba: int, blocks: int, fua: bool = False) -> bytes:
    return _RW16(READ_16, FUA if fua else 0, lba, blocks, 0, 0)


def write16(lba: int, blocks: int, fua: bool = False) -> bytes:
    return _RW16(WRITE_16, FUA if fua else 0, lba, blocks, 0, 0)


def compare_and_write(lba: int, blocks: int) -> bytes:
    """SBC-3 5.2: the data out is what to compare with, then what to write."""
    return b"\x89\0" + lba.to_bytes(8, "big") + bytes((0, 0, 0, blocks, 0, 0))


def synchronize_cache(lba: int = 0, blocks: int = 0) -> bytes:
    """SYNCHRONIZE CACHE (16); 0 blocks = up to the end."""
    return _RW16(0x91, 0, lba, blocks, 0, 0)


def unmap(parameter_bytes: int) -> bytes:
    return b"\x42\0\0\0\0\0\0" + parameter_bytes.to_bytes(2, "big") + b"\0"


def unmap_parameters(*ranges: tuple[int, int]) -> bytes:
    """The parameter list of UNMAP for ranges of (LBA, blocks) (SBC-3 5.28.2)."""
    descriptors = b"".join(lba.to_bytes(8, "big") + blocks.to_bytes(4, "big") + bytes(4) for lba, blocks in ranges)
    return (len(descriptors) + 6).to_bytes(2, "big") + len(descriptors).to_bytes(2, "big") + bytes(4) + descriptors


def write_same16(lba: int, blocks: int, unmap: bool = False) -> bytes:
    return _RW16(0x93, 0x08 if unmap else 0, lba, blocks, 0, 0)


def read_capacity16(length: int = 32) -> bytes:
    return b"\x9e\x10" + bytes(8) + length.to_bytes(4, "big") + bytes(2)


def inquiry(page: int | None = None, length: int = 255) -> bytes:
    """INQUIRY; page None = standard data, else that vital product data page."""
    return bytes((0x12, page is not None, page or 0)) + length.to_bytes(2, "big") + b"\0"


def mode_sense10(page: int = 0x3F, subpage: int = 0, length: int = 4096) -> bytes:
    """MODE SENSE (10) without block descriptors."""
    return bytes((0x5A, 0x08, page, subpage, 0, 0, 0)) + length.to_bytes(2, "big") + b"\0"


def report_luns(length: int = 4096) -> bytes:
    return b"\xa0" + bytes(5) + length.to_bytes(4, "big") + bytes(2)


def report_target_port_groups(length: int = 4096) -> bytes:
    return b"\xa3\x0a" + bytes(4) + length.to_bytes(4, "big") + bytes(2)


def report_supported_opcodes(length: int = 16384) -> bytes:
    return b"\xa3\x0c" + bytes(4) + length.to_bytes(4, "big") + bytes(2)


def persistent_reserve_in(action: int, length: int = 4096) -> bytes:
    """0 READ KEYS, 1 READ RESERVATION, 2 REPORT CAPABILITIES, 3 READ FULL STATUS."""
    return bytes((0x5E, action, 0, 0, 0, 0, 0)) + length.to_bytes(2, "big") + b"\0"


def persistent_reserve_out(action: int, kind: int = 0) -> bytes:
    """0 REGISTER, 1 RESERVE, 2 RELEASE, 3 CLEAR, 4 PREEMPT, 5 PREEMPT AND ABORT, 6 REGISTER AND IGNORE EXISTING KEY.

    kind: 1 Write Exclusive, 3 Exclusive Access, 5 and 6 the same for registrants only, 7 and 8 for all registrants.
    """
    return bytes((0x5F, action, kind, 0, 0, 0, 0)) + (24).to_bytes(2, "big") + b"\0"


def persistent_reserve_parameters(key: int, service_key: int = 0, aptpl: bool = False) -> bytes:
    return key.to_bytes(8, "big") + service_key.to_bytes(8, "big") + bytes(4) + bytes((aptpl, 0, 0, 0))


def reserve6() -> bytes:
    return b"\x16" + bytes(5)


def release6() -> bytes:
    return b"\x17" + bytes(5)

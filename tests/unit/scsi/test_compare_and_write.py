"""COMPARE AND WRITE and ORWRITE."""

import pytest

from tests.unit.scsi.kit import (
    INVALID_FIELD_IN_CDB,
    LBA_OUT_OF_RANGE,
    MISCOMPARE,
    SHORT_DATA,
    WRITE_PROTECTED,
    Rig,
    cdb_10,
    cdb_16,
)


def compare_and_write(lba: int, blocks: int, flags: int = 0) -> bytes:
    return bytes([0x89, flags]) + lba.to_bytes(8, "big") + bytes(3) + bytes([blocks, 0, 0])


def test_writes_where_equal() -> None:
    rig = Rig()
    rig.good(cdb_10(0x2A, 5, 1), b"a" * 512)
    assert rig.unit.data_out_length(compare_and_write(5, 1)) == 1024
    rig.good(compare_and_write(5, 1), b"a" * 512 + b"b" * 512)
    assert rig.device.content(5) == b"b" * 512
    rig.good(compare_and_write(6, 1), bytes(512) + b"c" * 512)  # never written reads as zeros
    assert rig.device.content(6) == b"c" * 512


@pytest.mark.parametrize("offset", [0, 1, 27, 511])
def test_tells_the_first_difference_and_writes_nothing(offset: int) -> None:
    rig = Rig()
    rig.good(cdb_10(0x2A, 5, 1), b"a" * 512)
    expected = bytearray(b"a" * 512)
    expected[offset] = 0
    found = rig.sense(compare_and_write(5, 1), bytes(expected) + b"b" * 512)
    assert (found[:3], found.information) == (MISCOMPARE, offset)
    assert rig.device.content(5) == b"a" * 512


def test_at_most_one_block() -> None:
    found = Rig().sense(compare_and_write(5, 2), bytes(2048))
    assert (found[:3], found.specific) == (INVALID_FIELD_IN_CDB, bytes.fromhex("c0 000d"))


def test_no_blocks_is_no_error_but_data_for_none_is() -> None:
    rig = Rig()
    rig.good(compare_and_write(5, 0))
    # 256 blocks do not fit the field: it says 0, the data tells otherwise
    assert rig.code(compare_and_write(5, 0), b"", expected=256 * 1024) == INVALID_FIELD_IN_CDB


def test_data_must_be_exact() -> None:
    rig = Rig()
    assert rig.code(compare_and_write(5, 1), bytes(1023)) == SHORT_DATA
    assert rig.code(compare_and_write(5, 1), bytes(512)) == SHORT_DATA
    assert rig.code(compare_and_write(5, 1), bytes(1024), expected=2048) == INVALID_FIELD_IN_CDB
    assert rig.device.written == {}


def test_fua_and_write_through_are_durable() -> None:
    rig = Rig()
    rig.good(compare_and_write(5, 1), bytes(512) + b"a" * 512)
    rig.good(compare_and_write(6, 1, 0x08), bytes(512) + b"a" * 512)
    assert rig.device.durable == {6}
    rig = Rig(write_through=True)
    rig.good(compare_and_write(5, 1), bytes(512) + b"a" * 512)
    assert rig.device.durable == {5}


def test_fields_protection_and_range() -> None:
    rig = Rig(blocks=100)
    assert rig.code(compare_and_write(0, 1, 0x20), bytes(1024)) == INVALID_FIELD_IN_CDB
    assert rig.code(compare_and_write(100, 1), bytes(1024)) == LBA_OUT_OF_RANGE
    assert rig.code(compare_and_write(2**64 - 1, 1), bytes(1024)) == LBA_OUT_OF_RANGE
    assert Rig(read_only=True).code(compare_and_write(0, 1), bytes(1024)) == WRITE_PROTECTED


def test_orwrite() -> None:
    rig = Rig()
    rig.good(cdb_10(0x2A, 5, 2), b"\x0f" * 1024)
    assert rig.unit.data_out_length(cdb_16(0x8B, 5, 2)) == 1024
    rig.good(cdb_16(0x8B, 5, 2), b"\xf0" * 512 + b"\x01" * 512)
    assert rig.device.content(5, 2) == b"\xff" * 512 + b"\x0f" * 512
    rig.good(cdb_16(0x8B, 5, 0))
    rig.good(cdb_16(0x8B, 5, 2, 0x08), bytes(1024))
    assert rig.device.durable == {5, 6}
    rig.good(cdb_16(0x8B, 5, 2), b"\xf0" * 600)  # the second block did not arrive
    assert rig.device.content(6) == b"\x0f" * 512


def test_orwrite_judges_like_write() -> None:
    rig = Rig(blocks=100)
    assert rig.code(cdb_16(0x8B, 0, 1, 0x20), bytes(512)) == INVALID_FIELD_IN_CDB
    assert rig.code(cdb_16(0x8B, 0, rig.unit.limits.transfer + 1)) == INVALID_FIELD_IN_CDB
    assert rig.code(cdb_16(0x8B, 100, 1), bytes(512)) == LBA_OUT_OF_RANGE
    assert Rig(read_only=True).code(cdb_16(0x8B, 0, 1), bytes(512)) == WRITE_PROTECTED

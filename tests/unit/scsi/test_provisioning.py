"""WRITE SAME, UNMAP and GET LBA STATUS."""

import struct

import pytest

from san_target.volume.device import Extent
from tests.unit.scsi.kit import (
    INVALID_FIELD_IN_CDB,
    INVALID_FIELD_IN_PARAMETER_LIST,
    LBA_OUT_OF_RANGE,
    PARAMETER_LIST_LENGTH_ERROR,
    SHORT_DATA,
    WRITE_PROTECTED,
    CdbMaker,
    Rig,
    cdb_10,
    cdb_16,
)

SAME = pytest.mark.parametrize(("opcode", "cdb"), [(0x41, cdb_10), (0x93, cdb_16)])
NDOB, UNMAP, ANCHOR = 0x01, 0x08, 0x10
BLOCK = bytes(range(256)) * 2

# --- WRITE SAME -------------------------------------------------------------------------------------------------------


@SAME
def test_the_block_goes_everywhere(opcode: int, cdb: CdbMaker) -> None:
    rig = Rig()
    assert rig.unit.data_out_length(cdb(opcode, 10, 300)) == 512
    rig.good(cdb(opcode, 10, 300), BLOCK)
    assert set(rig.device.written) == set(range(10, 310))
    assert rig.device.content(10, 300) == BLOCK * 300


@SAME
def test_no_number_means_to_the_end(opcode: int, cdb: CdbMaker) -> None:
    rig = Rig(blocks=2048)
    rig.good(cdb(opcode, 2040, 0), BLOCK)
    assert set(rig.device.written) == set(range(2040, 2048))


@SAME
def test_no_number_far_from_the_end_is_too_much(opcode: int, cdb: CdbMaker) -> None:
    rig = Rig(blocks=0xFFFF + 10)
    assert rig.code(cdb(opcode, 9, 0), BLOCK) == INVALID_FIELD_IN_CDB
    assert rig.device.written == {}
    rig.good(cdb(opcode, 10, 0), BLOCK)


def test_more_than_the_maximum_write_same_length() -> None:
    rig = Rig(blocks=1 << 20)
    found = rig.sense(cdb_16(0x93, 0, 0x10000), BLOCK)
    assert (found[:3], found.specific) == (INVALID_FIELD_IN_CDB, bytes.fromhex("c0 000a"))


def test_unmap_of_zeros_deallocates() -> None:
    rig = Rig()
    rig.good(cdb_16(0x93, 0, 20), BLOCK)
    rig.good(cdb_16(0x93, 5, 10, UNMAP), bytes(512))
    assert set(rig.device.written) == {*range(5), *range(15, 20)}
    assert rig.device.content(5, 10) == bytes(5120)


def test_unmap_of_anything_else_writes_it() -> None:
    rig = Rig()
    rig.good(cdb_16(0x93, 5, 10, UNMAP), BLOCK)
    assert rig.device.content(5, 10) == BLOCK * 10


def test_zeros_without_unmap_stay_mapped() -> None:
    rig = Rig()
    rig.good(cdb_16(0x93, 5, 10), bytes(512))
    assert set(rig.device.written) == set(range(5, 15))


def test_without_data_out() -> None:
    rig = Rig()
    assert rig.unit.data_out_length(cdb_16(0x93, 5, 10, NDOB)) == 0
    rig.good(cdb_16(0x93, 0, 20), BLOCK)
    rig.good(cdb_16(0x93, 5, 5, NDOB))
    assert rig.device.content(5, 5) == bytes(2560)
    assert 5 in rig.device.written
    rig.good(cdb_16(0x93, 10, 5, NDOB | UNMAP))
    assert 10 not in rig.device.written


@SAME
def test_data_must_be_one_block(opcode: int, cdb: CdbMaker) -> None:
    rig = Rig()
    assert rig.code(cdb(opcode, 0, 1), BLOCK[:256]) == SHORT_DATA
    assert rig.code(cdb(opcode, 0, 1), b"") == SHORT_DATA
    assert rig.code(cdb(opcode, 0, 1), BLOCK * 2) == SHORT_DATA
    assert rig.code(cdb(opcode, 0, 1), BLOCK, expected=1024) == SHORT_DATA
    assert rig.device.written == {}


@SAME
@pytest.mark.parametrize("flags", [0x20, ANCHOR, ANCHOR | UNMAP, 0x02, 0x04])
def test_fields(opcode: int, cdb: CdbMaker, flags: int) -> None:
    assert Rig().code(cdb(opcode, 0, 1, flags), bytes(512)) == INVALID_FIELD_IN_CDB


@pytest.mark.parametrize(("flags", "bit"), [(UNMAP, 3), (NDOB, 0)])
def test_10_neither_unmaps_nor_goes_without_data(flags: int, bit: int) -> None:
    found = Rig().sense(cdb_10(0x41, 0, 1, flags), bytes(512))
    assert (found[:3], found.specific) == (INVALID_FIELD_IN_CDB, bytes([0xC8 | bit, 0, 1]))


def test_unmap_by_10_on_a_write_protected_volume_is_told_so() -> None:
    assert Rig(read_only=True).code(cdb_10(0x41, 0, 1, UNMAP), b"") == WRITE_PROTECTED


@SAME
def test_range_and_write_protection(opcode: int, cdb: CdbMaker) -> None:
    rig = Rig(blocks=100)
    for lba, blocks in ((100, 0), (100, 1), (99, 2), (2**32 - 1, 1)):
        assert rig.code(cdb(opcode, lba, blocks), BLOCK) == LBA_OUT_OF_RANGE
    assert Rig(read_only=True).code(cdb(opcode, 0, 1), BLOCK) == WRITE_PROTECTED


def test_write_through_is_durable() -> None:
    rig = Rig(write_through=True)
    rig.good(cdb_16(0x93, 5, 2), BLOCK)
    assert rig.device.durable == {5, 6}


# --- UNMAP ------------------------------------------------------------------------------------------------------------


def unmap_list(*ranges: tuple[int, int]) -> bytes:
    descriptors = b"".join(struct.pack(">QI4x", lba, blocks) for lba, blocks in ranges)
    return struct.pack(">HH4x", len(descriptors) + 6, len(descriptors)) + descriptors


def unmap_cdb(length: int, flags: int = 0) -> bytes:
    return bytes([0x42, flags, 0, 0, 0, 0, 0]) + length.to_bytes(2, "big") + b"\0"


def unmap(rig: Rig, *ranges: tuple[int, int]) -> None:
    data = unmap_list(*ranges)
    assert rig.unit.data_out_length(unmap_cdb(len(data))) == len(data)
    rig.good(unmap_cdb(len(data)), data)


def unmap_code(rig: Rig, *ranges: tuple[int, int]) -> tuple[int, int, int]:
    data = unmap_list(*ranges)
    return rig.code(unmap_cdb(len(data)), data)


def test_unmap_gives_blocks_back() -> None:
    rig = Rig()
    rig.good(cdb_16(0x93, 0, 20), BLOCK)
    unmap(rig, (0, 1), (5, 3), (19, 1))
    assert set(rig.device.written) == set(range(1, 19)) - {5, 6, 7}
    assert rig.good(cdb_10(0x28, 5, 3)) == bytes(1536)


def test_unmap_of_nothing_is_no_error() -> None:
    rig = Rig(blocks=100)
    rig.good(unmap_cdb(0))
    unmap(rig)
    unmap(rig, (5, 0))
    unmap(rig, (100, 0))
    assert unmap_code(rig, (101, 0)) == LBA_OUT_OF_RANGE
    assert all(arguments == ((),) for _, arguments in rig.device.calls)


def test_unmap_is_all_or_nothing() -> None:
    rig = Rig(blocks=100)
    rig.good(cdb_16(0x93, 0, 20), BLOCK)
    assert unmap_code(rig, (0, 5), (99, 2)) == LBA_OUT_OF_RANGE
    assert len(rig.device.written) == 20


def test_unmap_limits() -> None:
    rig = Rig(blocks=1 << 32)
    unmap(rig, (0, 1 << 20))
    assert unmap_code(rig, (0, (1 << 20) + 1)) == INVALID_FIELD_IN_PARAMETER_LIST
    assert unmap_code(rig, (0, 1 << 20), (1 << 30, 1)) == INVALID_FIELD_IN_PARAMETER_LIST
    unmap(rig, *[(at * 2, 1) for at in range(256)])
    assert unmap_code(rig, *[(at * 2, 1) for at in range(257)]) == INVALID_FIELD_IN_PARAMETER_LIST


def test_unmap_lists_that_are_cut() -> None:
    rig = Rig()
    data = unmap_list((0, 5), (10, 5))
    for length in (1, 7, 8, 24, len(data) - 1):
        assert rig.code(unmap_cdb(length), data) == PARAMETER_LIST_LENGTH_ERROR
        assert rig.code(unmap_cdb(len(data)), data[:length]) == PARAMETER_LIST_LENGTH_ERROR
    assert "unmap" not in rig.device.names_called()


def test_an_incomplete_last_descriptor_is_ignored() -> None:
    rig = Rig()
    rig.good(cdb_16(0x93, 0, 20), BLOCK)
    data = struct.pack(">HH4x", 6 + 24, 24) + struct.pack(">QI4x", 0, 1) + struct.pack(">Q", 5)
    rig.good(unmap_cdb(len(data)), data)
    assert set(rig.device.written) == set(range(1, 20))


def test_unmap_anchor_and_write_protection() -> None:
    data = unmap_list((0, 1))
    assert Rig().code(unmap_cdb(len(data), 0x01), data) == INVALID_FIELD_IN_CDB
    assert unmap_code(Rig(read_only=True), (1 << 40, 1)) == WRITE_PROTECTED


# --- GET LBA STATUS ---------------------------------------------------------------------------------------------------


def status_cdb(lba: int, length: int) -> bytes:
    return bytes([0x9E, 0x12]) + lba.to_bytes(8, "big") + length.to_bytes(4, "big") + b"\0\0"


def status(rig: Rig, lba: int, length: int = 4096) -> list[tuple[int, int, int]]:
    data = rig.good(status_cdb(lba, length))
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    return [struct.unpack_from(">QIB", data, at) for at in range(8, len(data), 16)]


def test_extents_alternate_from_the_address_asked() -> None:
    rig = Rig(blocks=100)
    rig.good(cdb_16(0x93, 10, 5), BLOCK)
    assert status(rig, 0) == [(0, 10, 1), (10, 5, 0), (15, 85, 1)]
    assert status(rig, 12) == [(12, 3, 0), (15, 85, 1)]
    assert status(rig, 99) == [(99, 1, 1)]


def test_allocation_length_limits_the_descriptors() -> None:
    rig = Rig(blocks=100)
    rig.good(cdb_16(0x93, 10, 5), BLOCK)
    assert status(rig, 0, 24) == [(0, 10, 1)]
    assert status(rig, 0, 55) == [(0, 10, 1), (10, 5, 0)]
    assert rig.good(status_cdb(0, 24))[:4] == (20).to_bytes(4, "big")
    for length in (0, 4, 8, 23):
        assert len(rig.good(status_cdb(0, length))) == length


def test_an_extent_longer_than_the_field() -> None:
    rig = Rig(blocks=1 << 33)

    async def one_extent(lba: int, blocks: int, extents_max: int) -> list[Extent]:
        return [Extent(lba, blocks, False)]

    rig.device.allocation = one_extent  # type: ignore[method-assign, assignment]
    assert status(rig, 5) == [(5, 0xFFFFFFFF, 1)]


def test_status_beyond_the_end() -> None:
    rig = Rig(blocks=100)
    for lba in (100, 101, 2**64 - 1):
        assert rig.code(status_cdb(lba, 24)) == LBA_OUT_OF_RANGE

"""READ and WRITE of every length: the right blocks, the limits, and the two ways (at once, and awaited) alike."""

import pytest

from tests.unit.scsi.kit import (
    INVALID_FIELD_IN_CDB,
    LBA_OUT_OF_RANGE,
    WRITE_PROTECTED,
    CdbMaker,
    Rig,
    cdb_10,
    cdb_12,
    cdb_16,
)

CASES = [(0x28, 0x2A, cdb_10), (0xA8, 0xAA, cdb_12), (0x88, 0x8A, cdb_16)]
AT_ONCE = pytest.mark.parametrize("at_once", [True, False])


def pattern(blocks: int, seed: int = 1, block_size: int = 512) -> bytes:
    return b"".join(bytes([seed + at & 0xFF]) * block_size for at in range(blocks))


@AT_ONCE
@pytest.mark.parametrize(("read", "write", "cdb"), CASES)
@pytest.mark.parametrize("block_size", [512, 4096])
def test_what_is_written_is_read(read: int, write: int, cdb: CdbMaker, block_size: int, at_once: bool) -> None:
    rig = Rig(block_size=block_size)
    rig.device.at_once = at_once
    data = pattern(3, block_size=block_size)
    rig.good(cdb(write, 7, 3), data)
    assert rig.good(cdb(read, 7, 3)) == data
    assert rig.good(cdb(read, 6, 5)) == bytes(block_size) + data + bytes(block_size)
    assert set(rig.device.written) == {7, 8, 9}


@AT_ONCE
def test_read_6_and_write_6(at_once: bool) -> None:
    rig = Rig()
    rig.device.at_once = at_once
    data = pattern(256)
    rig.good("0a 00 01 00 00 00", data)  # a length of 0 means 256 blocks
    assert rig.good("08 00 01 00 00 00") == data
    assert rig.good("08 00 01 02 01 00") == data[1024:1536]
    assert rig.code("08 1f ff ff 01 00") == LBA_OUT_OF_RANGE


@AT_ONCE
@pytest.mark.parametrize(("read", "write", "cdb"), CASES)
def test_ends_of_the_volume(read: int, write: int, cdb: CdbMaker, at_once: bool) -> None:
    rig = Rig(blocks=100)
    rig.device.at_once = at_once
    rig.good(cdb(read, 0, 100))
    rig.good(cdb(write, 99, 1), pattern(1))
    for lba, blocks in ((100, 1), (99, 2), (0, 101), (100, 0), (2**32 - 1, 1), (2**32 - 1, 0)):
        found = rig.sense(cdb(read, lba, blocks))
        assert found[:3] == LBA_OUT_OF_RANGE
        assert found.information == max(lba, 100)
        assert rig.code(cdb(write, lba, blocks), pattern(blocks)) == LBA_OUT_OF_RANGE
    assert set(rig.device.written) == {99}


def test_address_of_64_bits() -> None:
    rig = Rig(blocks=1 << 40)
    rig.good(cdb_16(0x8A, (1 << 40) - 1, 1), pattern(1))
    assert rig.good(cdb_16(0x88, (1 << 40) - 1, 1)) == pattern(1)
    assert rig.code(cdb_16(0x88, 2**64 - 1, 1)) == LBA_OUT_OF_RANGE
    assert rig.code(cdb_16(0x88, 2**64 - 1, 0)) == LBA_OUT_OF_RANGE


@AT_ONCE
@pytest.mark.parametrize(("read", "write", "cdb"), CASES)
def test_no_blocks_is_no_error(read: int, write: int, cdb: CdbMaker, at_once: bool) -> None:
    rig = Rig()
    rig.device.at_once = at_once
    assert rig.good(cdb(read, 5, 0)) == b""
    assert rig.good(cdb(write, 5, 0)) == b""
    assert rig.device.calls == []


@pytest.mark.parametrize(("read", "write", "cdb"), CASES)
@pytest.mark.parametrize("protect", range(1, 8))
def test_protection_information_is_refused(read: int, write: int, cdb: CdbMaker, protect: int) -> None:
    rig = Rig()
    for opcode in (read, write):
        found = rig.sense(cdb(opcode, 0, 1, protect << 5), pattern(1))
        assert found[:3] == INVALID_FIELD_IN_CDB
        assert found.specific == bytes.fromhex("cf 0001")
    assert rig.device.written == {}


def test_more_than_the_maximum_transfer_length() -> None:
    rig = Rig(blocks=1 << 20)
    most = rig.unit.limits.transfer
    assert len(rig.good(cdb_16(0x88, 0, most))) == 8 << 20
    found = rig.sense(cdb_16(0x88, 0, most + 1))
    assert (found[:3], found.specific) == (INVALID_FIELD_IN_CDB, bytes.fromhex("c0 000a"))
    assert rig.code(cdb_16(0x8A, 0, most + 1)) == INVALID_FIELD_IN_CDB
    assert rig.unit.data_out_length(cdb_16(0x8A, 0, most)) == 8 << 20
    assert rig.unit.data_out_length(cdb_16(0x8A, 0, most + 1)) == 0  # it fails: no data is asked for


@pytest.mark.parametrize(("read", "write", "cdb"), CASES)
def test_force_unit_access(read: int, write: int, cdb: CdbMaker) -> None:
    rig = Rig()
    rig.good(cdb(write, 3, 1), pattern(1))
    assert rig.device.durable == set()
    rig.good(cdb(write, 4, 1, 0x08), pattern(1))
    assert rig.device.durable == {4}
    assert rig.good(cdb(read, 3, 1, 0x08)) == pattern(1)
    assert rig.device.durable == {3, 4}  # what a FUA read returns is on the medium


def test_dpo_changes_nothing() -> None:
    rig = Rig()
    rig.good(cdb_10(0x2A, 3, 1, 0x10), pattern(1))
    assert rig.good(cdb_10(0x28, 3, 1, 0x10)) == pattern(1)


def test_write_through_volumes_write_durably() -> None:
    rig = Rig(write_through=True)
    rig.good(cdb_10(0x2A, 3, 1), pattern(1))
    rig.good("0a 00 00 04 01 00", pattern(1))
    assert rig.device.durable == {3, 4}


@pytest.mark.parametrize(("read", "write", "cdb"), CASES)
def test_read_only_volumes(read: int, write: int, cdb: CdbMaker) -> None:
    rig = Rig(read_only=True)
    rig.good(cdb(read, 0, 1))
    assert rig.code(cdb(write, 0, 1), pattern(1)) == WRITE_PROTECTED
    assert rig.code(cdb(write, 1 << 20, 1), pattern(1)) == WRITE_PROTECTED  # before the range
    assert rig.code(cdb(write, 0, 1, 0x20), pattern(1)) == INVALID_FIELD_IN_CDB  # after the fields
    assert rig.device.written == {}


@AT_ONCE
def test_less_data_than_the_cdb_asks_for(at_once: bool) -> None:
    rig = Rig()
    rig.device.at_once = at_once
    rig.good(cdb_10(0x2A, 0, 4), pattern(4, seed=100))
    rig.good(cdb_10(0x2A, 0, 4), pattern(2))
    assert rig.device.content(0, 4) == pattern(2) + pattern(4, seed=100)[1024:]
    rig.good(cdb_10(0x2A, 0, 4), b"")
    rig.good(cdb_10(0x2A, 2, 2), b"x" * 700)  # one block and a part: the part is not written
    assert rig.device.content(2, 2) == b"x" * 512 + pattern(4, seed=100)[1536:]
    rig.good(cdb_10(0x2A, 1, 1), b"y" * 511)
    assert rig.device.content(1) == pattern(2)[512:]


@AT_ONCE
def test_more_data_than_the_cdb_asks_for(at_once: bool) -> None:
    rig = Rig()
    rig.device.at_once = at_once
    rig.good(cdb_10(0x2A, 0, 1), pattern(3))
    assert set(rig.device.written) == {0}
    assert rig.device.content(0) == pattern(1)


@pytest.mark.parametrize(("cdb", "length"), [(cdb_10, 10), (cdb_12, 12), (cdb_16, 16)])
def test_naca_is_refused(cdb: CdbMaker, length: int) -> None:
    opcode = {10: 0x28, 12: 0xA8, 16: 0x88}[length]
    raw = bytearray(cdb(opcode, 0, 1))
    raw[length - 1] |= 0x04
    found = Rig().sense(bytes(raw))
    assert found[:3] == INVALID_FIELD_IN_CDB
    assert found.specific == bytes([0xCA, 0, length - 1])

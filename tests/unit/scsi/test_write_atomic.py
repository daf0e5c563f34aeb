"""WRITE ATOMIC (16): only in whole units of 4 KiB, only as much as the device can, only where it can."""

import pytest

from tests.unit.scsi.kit import INVALID_FIELD_IN_CDB, LBA_OUT_OF_RANGE, WRITE_PROTECTED, Rig


def write_atomic(lba: int, blocks: int, flags: int = 0, boundary: int = 0) -> bytes:
    return (
        bytes([0x9C, flags])
        + lba.to_bytes(8, "big")
        + boundary.to_bytes(2, "big")
        + blocks.to_bytes(2, "big")
        + b"\0\0"
    )


def test_writes() -> None:
    rig = Rig(atomic_blocks_max=64)
    assert rig.unit.data_out_length(write_atomic(8, 64)) == 64 * 512
    rig.good(write_atomic(8, 64), b"a" * 64 * 512)
    assert set(rig.device.written) == set(range(8, 72))
    rig.good(write_atomic(80, 8, 0x08), b"b" * 4096)
    assert rig.device.durable == set(range(80, 88))
    rig.good(write_atomic(8, 0))
    assert rig.device.names_called() == ["write_atomic"] * 2


def test_units_of_one_block_where_blocks_are_large() -> None:
    rig = Rig(atomic_blocks_max=64, block_size=4096)
    rig.good(write_atomic(3, 1), b"a" * 4096)


@pytest.mark.parametrize(
    ("cdb", "specific"),
    [
        (write_atomic(1, 8), "c0 0002"),
        (write_atomic(8, 1), "c0 000c"),
        (write_atomic(8, 72), "c0 000c"),
        (write_atomic(8, 8, boundary=8), "c0 000a"),
        (write_atomic(8, 8, 0x20), "cf 0001"),
    ],
)
def test_wrong_fields(cdb: bytes, specific: str) -> None:
    rig = Rig(atomic_blocks_max=64)
    found = rig.sense(cdb, bytes(72 * 512))
    assert (found[:3], found.specific) == (INVALID_FIELD_IN_CDB, bytes.fromhex(specific))
    assert rig.device.written == {}


def test_range_write_protection_and_absence() -> None:
    assert Rig(atomic_blocks_max=64, blocks=100).code(write_atomic(96, 8), bytes(4096)) == LBA_OUT_OF_RANGE
    assert Rig(atomic_blocks_max=64, blocks=100).code(write_atomic(2**63, 8), bytes(4096)) == LBA_OUT_OF_RANGE
    assert Rig(atomic_blocks_max=64, read_only=True).code(write_atomic(0, 8), bytes(4096)) == WRITE_PROTECTED
    assert Rig().code(write_atomic(0, 8), bytes(4096)) == (0x5, 0x20, 0x00)


def test_data_that_did_not_arrive_is_not_written() -> None:
    rig = Rig(atomic_blocks_max=64)
    assert rig.code(write_atomic(8, 16), b"a" * 4096) == (0x5, 0x0E, 0x03)
    assert rig.device.written == {}

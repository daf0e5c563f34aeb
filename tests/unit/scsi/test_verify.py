"""VERIFY and WRITE AND VERIFY: BYTCHK 0, 1 and 3, differences with their offset, and the limits."""

import pytest

from san_target.scsi.command import TASK_ABORTED, Command
from san_target.volume.device import MediumError
from tests.unit.scsi.kit import (
    INVALID_FIELD_IN_CDB,
    LBA_OUT_OF_RANGE,
    MISCOMPARE,
    SHORT_DATA,
    WRITE_PROTECTED,
    CdbMaker,
    Rig,
    cdb_10,
    cdb_12,
    cdb_16,
    run,
)

VERIFY = pytest.mark.parametrize(("opcode", "cdb"), [(0x2F, cdb_10), (0xAF, cdb_12), (0x8F, cdb_16)])
WRITE = pytest.mark.parametrize(("opcode", "cdb"), [(0x2E, cdb_10), (0xAE, cdb_12), (0x8E, cdb_16)])
EACH, ONE = 0x02, 0x06


def filled() -> Rig:
    rig = Rig(blocks=8192)
    rig.good(cdb_10(0x2A, 0, 8), bytes(range(256)) * 16)
    return rig


@VERIFY
def test_medium_only(opcode: int, cdb: CdbMaker) -> None:
    rig = filled()
    rig.device.calls.clear()
    rig.good(cdb(opcode, 0, 5000))
    read = sum(arguments[1] for _, arguments in rig.device.calls if isinstance(arguments[1], int))
    assert read == 5000
    assert set(rig.device.names_called()) == {"read"}
    assert rig.unit.data_out_length(cdb(opcode, 0, 5000)) == 0


@VERIFY
def test_each_block_compared(opcode: int, cdb: CdbMaker) -> None:
    rig = filled()
    data = bytearray(range(256)) * 16
    assert rig.unit.data_out_length(cdb(opcode, 0, 8, EACH)) == 4096
    rig.good(cdb(opcode, 0, 8, EACH), bytes(data))
    for offset in (0, 511, 512, 4000, 4095):
        wrong = bytearray(data)
        wrong[offset] ^= 0x80
        found = rig.sense(cdb(opcode, 0, 8, EACH), bytes(wrong))
        assert (found[:3], found.information) == (MISCOMPARE, offset)


def test_a_difference_beyond_the_first_slice() -> None:
    rig = Rig(blocks=8192)
    data = bytearray(4096 * 512)
    data[3_000_000 // 2] = 1
    found = rig.sense(cdb_16(0x8F, 0, 4096, EACH), bytes(data))
    assert (found[:3], found.information) == (MISCOMPARE, 1_500_000)


@VERIFY
def test_one_block_compared_with_each(opcode: int, cdb: CdbMaker) -> None:
    rig = Rig()
    rig.good(cdb_10(0x2A, 10, 4), b"z" * 2048)
    assert rig.unit.data_out_length(cdb(opcode, 10, 4, ONE)) == 512
    rig.good(cdb(opcode, 10, 4, ONE), b"z" * 512)
    found = rig.sense(cdb(opcode, 10, 5, ONE), b"z" * 512)
    assert (found[:3], found.information) == (MISCOMPARE, 2048)


@VERIFY
def test_wrong_fields_range_and_data(opcode: int, cdb: CdbMaker) -> None:
    rig = Rig(blocks=100)
    assert rig.code(cdb(opcode, 0, 1, 0x04)) == INVALID_FIELD_IN_CDB  # BYTCHK 2
    assert rig.code(cdb(opcode, 0, 1, 0x20)) == INVALID_FIELD_IN_CDB
    for lba, blocks in ((100, 1), (99, 2), (101, 0)):
        assert rig.code(cdb(opcode, lba, blocks)) == LBA_OUT_OF_RANGE
    assert rig.code(cdb(opcode, 0, 2, EACH), bytes(1023)) == SHORT_DATA
    rig.good(cdb(opcode, 0, 2, EACH), bytes(1025))
    rig.good(cdb(opcode, 5, 0))
    rig.good(cdb(opcode, 5, 0, EACH))
    rig.good(cdb(opcode, 5, 0, ONE))


def test_comparing_is_bounded_looking_is_not() -> None:
    rig = Rig(blocks=1 << 17)
    too_many = rig.unit.limits.transfer + 1
    assert rig.code(cdb_16(0x8F, 0, too_many, EACH)) == INVALID_FIELD_IN_CDB
    assert rig.code(cdb_16(0x8F, 0, too_many, ONE), bytes(512)) == INVALID_FIELD_IN_CDB
    rig.good(cdb_16(0x8F, 0, too_many))


def test_a_bad_block_is_told_by_its_address() -> None:
    rig = Rig()
    rig.device.failures.append(MediumError(17, "lost"))
    found = rig.sense(cdb_10(0x2F, 10, 20))
    assert (found[:3], found.information) == ((0x3, 0x11, 0x00), 17)


@pytest.mark.parametrize("how", ["aborted", "fenced"])
def test_an_aborted_or_fenced_verify_stops(how: str) -> None:
    rig = Rig(blocks=1 << 20)
    command = Command(rig.nexus, cdb_16(0x8F, 0, 1 << 20))
    read = rig.device.read

    async def read_once(lba: int, blocks: int) -> bytes:
        if how == "aborted":
            command.aborted = True
        else:
            rig.nexus.fenced = True
        return await read(lba, blocks)

    rig.device.read = read_once  # type: ignore[method-assign]
    assert run(rig.unit.execute(command)).status == TASK_ABORTED
    assert rig.device.names_called() == ["read"]


@WRITE
@pytest.mark.parametrize("check", [0, EACH])
def test_write_and_verify_writes_durably_and_reads_back(opcode: int, cdb: CdbMaker, check: int) -> None:
    rig = Rig()
    data = bytes(range(256)) * 4
    assert rig.unit.data_out_length(cdb(opcode, 7, 2, check)) == 1024
    rig.good(cdb(opcode, 7, 2, check), data)
    assert rig.device.content(7, 2) == data
    assert rig.device.durable == {7, 8}
    assert rig.device.names_called() == ["write", "read"]


@WRITE
def test_write_and_verify_tells_a_medium_that_lies(opcode: int, cdb: CdbMaker) -> None:
    rig = Rig()
    write = rig.device.write

    async def write_wrongly(lba: int, data: bytes, durable: bool = False) -> None:
        wrong = bytearray(data)
        wrong[600] ^= 1
        await write(lba, bytes(wrong), durable)

    rig.device.write = write_wrongly  # type: ignore[method-assign, assignment]
    found = rig.sense(cdb(opcode, 7, 2, EACH), bytes(1024))
    assert (found[:3], found.information) == (MISCOMPARE, 600)
    rig.good(cdb(opcode, 7, 2), bytes(1024))  # without BYTCHK only readability counts


@WRITE
def test_write_and_verify_judges_like_write(opcode: int, cdb: CdbMaker) -> None:
    rig = Rig(blocks=100)
    assert rig.code(cdb(opcode, 0, 1, 0x04), bytes(512)) == INVALID_FIELD_IN_CDB
    assert rig.code(cdb(opcode, 0, 1, ONE), bytes(512)) == INVALID_FIELD_IN_CDB
    assert rig.code(cdb(opcode, 0, 1, 0x80), bytes(512)) == INVALID_FIELD_IN_CDB
    assert rig.code(cdb(opcode, 100, 1), bytes(512)) == LBA_OUT_OF_RANGE
    rig.good(cdb(opcode, 0, 0))
    rig.good(cdb(opcode, 0, 2), b"q" * 700)
    assert set(rig.device.written) == {0}
    assert Rig(read_only=True).code(cdb(opcode, 0, 1), bytes(512)) == WRITE_PROTECTED

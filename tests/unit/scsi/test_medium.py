"""Capacity, start and stop, eject and prevent, cache commands, REQUEST SENSE, SEND DIAGNOSTIC, defect lists."""

import struct

import pytest

from san_target.scsi.command import CONDITION_MET, GOOD, RESERVATION_CONFLICT
from tests.unit.scsi.kit import (
    INVALID_FIELD_IN_CDB,
    LBA_OUT_OF_RANGE,
    CdbMaker,
    Rig,
    cdb_10,
    cdb_16,
    parse_sense,
)

NO_MEDIUM = (0x2, 0x3A, 0x02)
STOPPED = (0x2, 0x04, 0x02)
PREVENTED = (0x5, 0x53, 0x02)
BECAME_READY = (0x6, 0x28, 0x00)

START, STOP, LOAD, EJECT = "1b 00 00 00 01 00", "1b 00 00 00 00 00", "1b 00 00 00 03 00", "1b 00 00 00 02 00"
PREVENT, ALLOW = "1e 00 00 00 01 00", "1e 00 00 00 00 00"

# --- Capacity ---------------------------------------------------------------------------------------------------------


def test_read_capacity_10() -> None:
    assert Rig(blocks=2048, block_size=4096).good("25") == struct.pack(">II", 2047, 4096)
    assert Rig(blocks=1 << 32).good("25") == struct.pack(">II", 0xFFFFFFFF, 512)
    assert Rig(blocks=(1 << 32) - 1).good("25") == struct.pack(">II", 0xFFFFFFFE, 512)
    assert Rig(blocks=1 << 40).good("25") == struct.pack(">II", 0xFFFFFFFF, 512)
    assert Rig().code("25 00 00000001") == INVALID_FIELD_IN_CDB
    Rig().good("25 00 00000001 0000 01 00")  # PMI, obsolete


def test_read_capacity_16() -> None:
    rig = Rig(blocks=1 << 40)
    data = rig.good("9e 10 0000000000000000 00000020 0000")
    assert len(data) == 32
    assert struct.unpack_from(">QI", data) == ((1 << 40) - 1, 512)
    assert data[12] == 0  # no protection
    assert data[13] == 0
    assert data[14] == 0xC0  # LBPME, LBPRZ, lowest aligned address 0
    assert rig.good("9e 10 0000000000000000 0000000c 0000") == data[:12]


def test_growth_is_seen_at_once_and_announced() -> None:
    rig = Rig(blocks=100)
    rig.device.resize(200)
    rig.unit.capacity_changed()
    assert rig.code("25") == (0x6, 0x2A, 0x09)
    assert rig.good("25")[:4] == struct.pack(">I", 199)
    rig.good(cdb_10(0x28, 150, 1))


def test_defect_lists_are_empty() -> None:
    rig = Rig()
    assert rig.good("37 00 1d 00000000 0020 00") == bytes.fromhex("00 1d 0000")
    assert rig.good("b7 1d 00000000 00000020 0000") == bytes.fromhex("00 1d 0000 00000000")
    assert rig.good("37 00 1d 00000000 0002 00") == bytes.fromhex("00 1d")


# --- Start, stop, eject -----------------------------------------------------------------------------------------------


def test_a_stopped_disk_is_not_ready_until_started() -> None:
    rig = Rig()
    other = rig.login("other")
    rig.good(cdb_10(0x2A, 3, 1), b"a" * 512)
    rig.good(STOP)
    assert rig.device.durable == {3}
    for nexus in (rig.nexus, other):
        assert not nexus.may_read
        assert not nexus.may_write
        assert rig.code("00", nexus=nexus) == STOPPED
        assert rig.code(cdb_10(0x28, 3, 1), nexus=nexus) == STOPPED
    rig.good("12 00 00 00 ff 00")
    rig.good(START)
    assert rig.nexus.may_read
    rig.good("00")
    assert rig.code("00", nexus=other) == BECAME_READY
    assert other.may_read


def test_no_flush_and_immediate() -> None:
    rig = Rig()
    rig.good("1b 00 00 00 04 00")  # NO_FLUSH
    assert rig.device.calls == []
    rig.good(START)
    rig.good("1b 01 00 00 00 00")  # IMMED: the flush goes on afterwards
    assert rig.device.calls == []
    rig.run_spawned()
    assert rig.device.calls == [("flush", (0, 2048))]


def test_starting_what_runs_tells_nobody() -> None:
    rig = Rig()
    other = rig.login("other")
    rig.good(START)
    assert list(other.attentions) == []


@pytest.mark.parametrize("condition", range(1, 16))
def test_power_conditions_change_nothing(condition: int) -> None:
    for rig in (Rig(), Rig(removable=True)):
        rig.good(bytes([0x1B, 1, 0, 0, condition << 4 | 2, 0]))
        rig.good("00")


def test_a_fixed_disk_cannot_be_ejected() -> None:
    rig = Rig()
    for cdb in (EJECT, LOAD):
        found = rig.sense(cdb)
        assert (found[:3], found.specific) == (INVALID_FIELD_IN_CDB, bytes.fromhex("c9 0004"))
    rig.good("00")


def test_eject_and_load() -> None:
    rig = Rig(removable=True)
    other = rig.login("other")
    rig.good(cdb_10(0x2A, 3, 1), b"a" * 512)
    rig.good(EJECT)
    assert rig.device.durable == {3}
    assert not other.may_read
    for cdb in ("00", "25", "9e 10", cdb_10(0x28, 0, 1), cdb_10(0x2A, 0, 1), cdb_16(0x91, 0, 1), "42"):
        assert rig.code(cdb, b"a" * 512) == NO_MEDIUM
    assert rig.code(START) == NO_MEDIUM
    assert rig.code("00") == NO_MEDIUM
    rig.good(EJECT)
    rig.good(LOAD)
    rig.good("00")
    assert rig.good(cdb_10(0x28, 3, 1)) == b"a" * 512
    assert rig.code("00", nexus=other) == BECAME_READY


def test_stopping_a_removable_medium_does_not_take_it_away() -> None:
    rig = Rig(removable=True)
    rig.good(STOP)
    rig.good("00")
    assert rig.nexus.may_write


def test_prevent_holds_while_any_nexus_prevents() -> None:
    rig = Rig(removable=True)
    other = rig.login("other")
    rig.good(PREVENT)
    rig.good(PREVENT, nexus=other)
    for nexus in (rig.nexus, other):
        assert rig.code(EJECT, nexus=nexus) == PREVENTED
        assert rig.code(LOAD, nexus=nexus) == PREVENTED
    rig.good("00")
    rig.good(ALLOW)
    assert rig.code(EJECT) == PREVENTED
    rig.good(ALLOW, nexus=other)
    rig.good(EJECT)


@pytest.mark.parametrize("end", ["detach", "reset", "nexus_lost"])
def test_prevent_ends_with_the_session_and_a_reset(end: str) -> None:
    rig = Rig(removable=True)
    other = rig.login("other")
    rig.good(PREVENT, nexus=other)
    if end == "reset":
        rig.unit.reset()
        rig.nexus.attentions.clear()
    else:
        getattr(rig.unit, end)(other)
    rig.good(EJECT)


def test_obsolete_prevent_values() -> None:
    assert Rig(removable=True).code("1e 00 00 00 02 00") == INVALID_FIELD_IN_CDB


def test_start_stop_under_a_reservation() -> None:
    rig = Rig(removable=True)
    other = rig.login("other")
    rig.good("16")  # RESERVE (6)
    assert rig.send(STOP, nexus=other).status == RESERVATION_CONFLICT
    assert rig.send(PREVENT, nexus=other).status == RESERVATION_CONFLICT
    assert rig.send(ALLOW, nexus=other).status == GOOD


# --- Cache ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("opcode", "cdb"), [(0x35, cdb_10), (0x91, cdb_16)])
def test_synchronize_cache(opcode: int, cdb: CdbMaker) -> None:
    rig = Rig(blocks=100)
    for lba in (1, 2, 3):
        rig.good(cdb_10(0x2A, lba, 1), b"a" * 512)
    rig.good(cdb(opcode, 2, 1))
    assert rig.device.durable == {2}
    rig.good(cdb(opcode, 3, 0))
    assert rig.device.durable == {2, 3}
    assert rig.device.calls[-1] == ("flush", (3, 97))
    rig.good(cdb(opcode, 0, 0, 0x02))
    assert rig.device.durable == {2, 3}
    rig.run_spawned()
    assert rig.device.durable == {1, 2, 3}
    for lba, blocks in ((100, 0), (100, 1), (99, 2)):
        assert rig.code(cdb(opcode, lba, blocks)) == LBA_OUT_OF_RANGE


@pytest.mark.parametrize(("opcode", "cdb"), [(0x34, cdb_10), (0x90, cdb_16)])
def test_pre_fetch(opcode: int, cdb: CdbMaker) -> None:
    rig = Rig(blocks=20000)
    assert rig.send(cdb(opcode, 2, 5)).status == CONDITION_MET
    assert rig.device.calls == [("prefetch", (2, 5))]
    assert rig.send(cdb(opcode, 19990, 0)).status == CONDITION_MET
    assert rig.device.calls[-1] == ("prefetch", (19990, 10))
    assert rig.send(cdb(opcode, 0, 0)).status == GOOD  # more than is ever asked for at once
    assert rig.device.calls[-1] == ("prefetch", (0, (8 << 20) // 512))
    assert rig.send(cdb(opcode, 2, 5, 0x02)).status == CONDITION_MET
    rig.run_spawned()
    assert rig.device.calls[-1] == ("prefetch", (2, 5))
    assert rig.code(cdb(opcode, 20000, 0)) == LBA_OUT_OF_RANGE


# --- Sense and self-test ----------------------------------------------------------------------------------------------


def test_request_sense_of_a_ready_unit() -> None:
    rig = Rig()
    assert parse_sense(rig.good("03 00 00 00 ff 00"))[:3] == (0, 0, 0)
    assert rig.good("03 01 00 00 ff 00") == bytes.fromhex("72 00 00 00 000000 00")
    assert len(rig.good("03 00 00 00 08 00")) == 8


def test_request_sense_takes_the_unit_attention() -> None:
    rig = Rig()
    nexus = rig.login("new", moved=False)
    assert parse_sense(rig.good("03 00 00 00 ff 00", nexus=nexus))[:3] == (0x6, 0x29, 0x00)
    assert nexus.may_read
    rig.good("00", nexus=nexus)


def test_request_sense_tells_why_the_unit_is_not_ready() -> None:
    rig = Rig()
    rig.good(STOP)
    assert parse_sense(rig.good("03 00 00 00 ff 00"))[:3] == STOPPED
    rig = Rig(removable=True)
    rig.good(EJECT)
    assert parse_sense(rig.good("03 00 00 00 ff 00"))[:3] == NO_MEDIUM


@pytest.mark.parametrize(
    ("cdb", "good"),
    [("1d 04", True), ("1d 00", False), ("1d 24", False), ("1d 04 00 0010 00", False), ("1d 04 00 1000 00", False)],
)
def test_send_diagnostic(cdb: str, good: bool) -> None:
    if good:
        Rig().good(cdb)
    else:
        assert Rig().code(cdb) == INVALID_FIELD_IN_CDB

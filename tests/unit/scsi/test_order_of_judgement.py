"""What is told first when much is wrong: opcode, attention, reservation, readiness, fields, protection, range."""

import pytest

from san_target.scsi.command import RESERVATION_CONFLICT
from san_target.scsi.nexus import Nexus
from san_target.scsi.sense import NOT_READY_SANITIZE_IN_PROGRESS
from tests.unit.scsi.kit import INVALID_FIELD_IN_CDB, LBA_OUT_OF_RANGE, WRITE_PROTECTED, Rig, cdb_10

WRONG_IN_EVERY_WAY = cdb_10(0x2A, 1 << 20, 1, 0x20)


class Progress:
    """A SANITIZE as the unit sees it."""

    def __init__(self, progress: float = 0.25, failed: bool = False) -> None:
        self.progress = progress
        self.failed = failed


def test_each_in_its_turn() -> None:
    rig = Rig(read_only=True, removable=True)
    holder = rig.login("holder")
    rig.good("16", nexus=holder)
    rig.unit.set_medium(stopped=False, ejected=True)
    rig.unit.capacity_changed()
    holder.attentions.clear()
    assert rig.code(bytes([0xC0]) + WRONG_IN_EVERY_WAY[1:], b"a" * 512) == (0x5, 0x20, 0x00)
    assert rig.code(WRONG_IN_EVERY_WAY, b"a" * 512) == (0x6, 0x2A, 0x09)
    assert rig.send(WRONG_IN_EVERY_WAY, b"a" * 512).status == RESERVATION_CONFLICT
    rig.good("17", nexus=holder)
    rig.unit.sanitizing = Progress()
    assert rig.code(WRONG_IN_EVERY_WAY, b"a" * 512) == tuple(NOT_READY_SANITIZE_IN_PROGRESS)
    rig.unit.sanitizing = None
    assert rig.code(WRONG_IN_EVERY_WAY, b"a" * 512) == (0x2, 0x3A, 0x02)
    rig.unit.set_medium(stopped=False, ejected=False)
    assert rig.code(WRONG_IN_EVERY_WAY, b"a" * 512) == INVALID_FIELD_IN_CDB
    assert rig.code(cdb_10(0x2A, 1 << 20, 1), b"a" * 512) == WRITE_PROTECTED
    rig.unit.read_only = False
    assert rig.code(cdb_10(0x2A, 1 << 20, 1), b"a" * 512) == LBA_OUT_OF_RANGE
    rig.good(cdb_10(0x2A, 0, 1), b"a" * 512)


@pytest.mark.parametrize("opcode", [0x02, 0x04, 0x0B, 0x4D, 0x7F, 0xC0, 0xFF])
def test_unknown_operation_codes(opcode: int) -> None:
    rig = Rig()
    assert rig.code(bytes([opcode])) == (0x5, 0x20, 0x00)
    assert rig.unit.data_out_length(bytes([opcode]).ljust(16, b"\xff")) == 0


@pytest.mark.parametrize("opcode", [0x9E, 0xA3, 0x5E, 0x5F])
def test_unknown_service_actions(opcode: int) -> None:
    found = Rig().sense(bytes([opcode, 0x1E]))
    assert (found[:3], found.specific) == (INVALID_FIELD_IN_CDB, bytes.fromhex("cc 0001"))


def test_every_command_that_writes_the_medium_is_refused_on_a_read_only_volume() -> None:
    rig = Rig(read_only=True, atomic_blocks_max=8)
    for (opcode, action), operation in rig.unit.operations.items():
        if not operation.writes_medium or opcode in (0x83, 0x48):
            continue  # EXTENDED COPY and SANITIZE have parameter lists of their own, and tests of their own
        cdb = bytearray(16)
        cdb[0] = opcode
        cdb[1] = action or 0
        data = bytes(1024)
        if opcode == 0x42:
            cdb[8] = 24
            data = bytes.fromhex("0016 0010 00000000 0000000000000000 00000001 00000000")
        assert rig.code(bytes(cdb), data) == WRITE_PROTECTED, operation.name
    assert rig.device.calls == []


def test_commands_that_pass_while_the_medium_is_out() -> None:
    rig = Rig(removable=True)
    rig.unit.set_medium(stopped=False, ejected=True)
    for cdb in (
        "12 00 00 00 ff",
        "a0 00 00 000000 00000040",
        "03 00 00 00 ff",
        "1a 08 3f 00 ff",
        "5e 00 00000000 00 00 ff",
    ):
        rig.good(cdb)
    for cdb in ("00", "25", "9e 10", "28", "08", "37", "a8", "34", "2f"):
        assert rig.code(cdb) == (0x2, 0x3A, 0x02)


def test_commands_that_pass_during_a_sanitize() -> None:
    rig = Rig()
    rig.unit.sanitizing = Progress(0.25)
    rig.unit.refresh_all()
    assert not rig.nexus.may_read
    for cdb in ("12 00 00 00 ff", "a0 00 00 000000 00000040", "1a 08 3f 00 ff", "25", "a3 0c"):
        rig.good(cdb)
    for cdb in ("00", "28", "2a", "35", "1b 00 00 00 01"):
        found = rig.sense(cdb)
        assert found[:3] == (0x2, 0x04, 0x1B)
        assert found.specific == bytes.fromhex("80 4000")
    data = rig.good("03 00 00 00 ff 00")
    assert (data[2], data[12], data[13]) == (0x2, 0x04, 0x1B)
    assert data[15:18] == bytes.fromhex("80 4000")


def test_after_a_failed_sanitize() -> None:
    rig = Rig()
    rig.unit.sanitizing = Progress(failed=True)
    assert rig.code("28") == (0x3, 0x31, 0x03)
    rig.good("12 00 00 00 ff")


def test_data_out_length_does_not_depend_on_state() -> None:
    rig = Rig(read_only=True)
    rig.unit.set_medium(stopped=True, ejected=False)
    foreign = Nexus("iqn.2026-01.host:x", bytes(6), "t", 1)
    assert not foreign.may_write
    assert rig.unit.data_out_length(cdb_10(0x2A, 0, 3).ljust(16, b"\0")) == 1536
    assert rig.unit.data_out_length(cdb_10(0x28, 0, 3).ljust(16, b"\0")) == 0

"""REPORT LUNS, REPORT SUPPORTED OPERATION CODES and TASK MANAGEMENT FUNCTIONS, REPORT TARGET PORT GROUPS."""

import struct

import pytest

from tests.unit.scsi.kit import INVALID_FIELD_IN_CDB, Rig


@pytest.mark.parametrize(("select", "luns"), [(0, 1), (1, 0), (2, 1)])
def test_report_luns(select: int, luns: int) -> None:
    data = Rig().good(bytes([0xA0, 0, select, 0, 0, 0, 0, 0, 0, 64]))
    assert data == struct.pack(">I4x", 8 * luns) + bytes(8 * luns)


def test_report_luns_wrong_select_and_allocation() -> None:
    assert Rig().code("a0 00 03 000000 00000040") == INVALID_FIELD_IN_CDB
    assert len(Rig().good("a0 00 00 000000 0000000c")) == 12


# --- Operation codes --------------------------------------------------------------------------------------------------


def operation_codes(
    option: int, opcode: int = 0, action: int = 0, timeouts: bool = False, length: int = 65535
) -> bytes:
    return bytes([0xA3, 0x0C, (0x80 if timeouts else 0) | option, opcode]) + struct.pack(">HI", action, length)


def all_commands(rig: Rig, timeouts: bool = False) -> list[tuple[int, int, bool, int]]:
    """(opcode, service action, SERVACTV, CDB length)."""
    data = rig.good(operation_codes(0, timeouts=timeouts))
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    found, at = [], 4
    while at < len(data):
        opcode, action, flags, length = struct.unpack_from(">BxHxBH", data, at)
        found.append((opcode, action, bool(flags & 1), length))
        assert bool(flags & 2) == timeouts
        at += 8
        if timeouts:
            assert data[at : at + 2] == b"\0\x0a"
            at += 12
    return found


@pytest.mark.parametrize("timeouts", [False, True])
def test_the_list_is_sorted_and_each_entry_once(timeouts: bool) -> None:
    found = all_commands(Rig(), timeouts)
    keys = [(opcode, action) for opcode, action, _, _ in found]
    assert keys == sorted(set(keys))
    assert {opcode for opcode, *_ in found} >= {
        *(0x00, 0x03, 0x08, 0x0A, 0x12, 0x15, 0x16, 0x17, 0x1A, 0x1B, 0x1E, 0x25, 0x28, 0x2A, 0x2E, 0x2F, 0x34, 0x35),
        *(0x37, 0x41, 0x42, 0x55, 0x5A, 0x5E, 0x5F, 0x88, 0x89, 0x8A, 0x8B, 0x8E, 0x8F, 0x90, 0x91, 0x93, 0x9E, 0xA0),
        *(0xA3, 0xA8, 0xAA, 0xAE, 0xAF, 0xB7),
    }


@pytest.mark.parametrize("timeouts", [False, True])
def test_each_listed_command_alone(timeouts: bool) -> None:
    rig = Rig()
    for opcode, action, has_action, length in all_commands(rig):
        data = rig.good(operation_codes(2 if has_action else 1, opcode, action, timeouts))
        assert data[1] == (0x83 if timeouts else 0x03)
        assert int.from_bytes(data[2:4], "big") == length
        usage = data[4 : 4 + length]
        assert usage[0] == opcode
        if has_action:
            assert usage[1] & 0x1F == action
        assert len(data) == 4 + length + (12 if timeouts else 0)
        assert rig.good(operation_codes(3, opcode, action, timeouts)) == data
        wrong = rig.sense(operation_codes(1 if has_action else 2, opcode, action))
        assert wrong[:3] == INVALID_FIELD_IN_CDB


def test_the_usage_map_has_the_length_of_the_group() -> None:
    lengths = {0: 6, 1: 10, 2: 10, 4: 16, 5: 12}
    for opcode, _, _, length in all_commands(Rig()):
        assert length == lengths[opcode >> 5], hex(opcode)


def test_unsupported_commands() -> None:
    rig = Rig()
    for option, opcode, action in (
        (1, 0xC0, 0),
        (3, 0xC0, 0),
        (2, 0xC0, 1),
        (2, 0x9E, 0x1E),
        (3, 0x9E, 0x1E),
        (3, 0, 1),
    ):
        assert rig.good(operation_codes(option, opcode, action)) == bytes.fromhex("00 01 0000")
    assert rig.code(operation_codes(4)) == INVALID_FIELD_IN_CDB
    assert rig.code(operation_codes(7)) == INVALID_FIELD_IN_CDB


def test_write_atomic_only_where_the_device_can() -> None:
    assert 0x9C not in {opcode for opcode, *_ in all_commands(Rig())}
    assert 0x9C in {opcode for opcode, *_ in all_commands(Rig(atomic_blocks_max=8))}


def test_allocation_length_cuts() -> None:
    rig = Rig()
    whole = rig.good(operation_codes(0))
    assert rig.good(operation_codes(0, length=20)) == whole[:20]


# --- Task management and port groups ----------------------------------------------------------------------------------


def test_task_management_functions() -> None:
    rig = Rig()
    data = rig.good("a3 0d 00 000000 00000040")
    assert len(data) == 4
    # ABORT TASK, ABORT TASK SET, CLEAR TASK SET, LOGICAL UNIT RESET, QUERY TASK; QUERY TASK SET, I_T NEXUS RESET, QAE
    assert data[0] & 0xDC == 0xDC
    assert data[0] & 0x20 == 0  # CLEAR ACA
    assert data[1] == 0x07
    extended = rig.good("a3 0d 80 000000 00000040")
    assert len(extended) == 16
    assert (extended[:3], extended[3]) == (data[:3], 12)
    assert rig.code("a3 0d 00 000000 00000003") == INVALID_FIELD_IN_CDB


@pytest.mark.parametrize("extended", [False, True])
def test_target_port_groups(extended: bool) -> None:
    data = Rig().good(bytes([0xA3, 0x2A if extended else 0x0A, 0, 0, 0, 0, 0, 0, 0, 64]))
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    if extended:
        assert data[4:8] == bytes.fromhex("10 00 0000")
    group = data[8 if extended else 4 :]
    assert group == bytes.fromhex("00 01 0001 00 00 00 01 0000 0001")  # active/optimized, group 1, port 1


def test_target_port_groups_unknown_format() -> None:
    assert Rig().code("a3 4a 00 000000 00000040") == INVALID_FIELD_IN_CDB

"""No bytes that a target could take for a write pass, wherever it believes that PDUs begin."""

from __future__ import annotations

import pytest

from initiator_sim.fuzz.guard import Guard
from initiator_sim.packets import ISCSI_NopOut, ISCSI_ScsiCommand, ISCSI_TaskManagementRequest, digests
from san_target.wire import opcodes

WRITE_10 = bytes.fromhex("2a000000000000000100") + bytes(6)
READ_10 = bytes.fromhex("28000000000000000100") + bytes(6)
FORMAT_UNIT = b"\x04" + bytes(15)


def command(cdb: bytes, immediate: int = 0) -> bytes:
    return bytes(ISCSI_ScsiCommand(immediate=immediate, final=1, cdb=cdb))


@pytest.mark.parametrize(
    "cdb", [WRITE_10, FORMAT_UNIT, b"\x5f" + bytes(15), b"\x55" + bytes(15), b"\x7f\0" + bytes(14)]
)
@pytest.mark.parametrize("immediate", [0, 1])
def test_what_changes_something_does_not_pass(cdb: bytes, immediate: int) -> None:
    assert not Guard(destructive=False).admits(command(cdb, immediate))


def test_what_only_looks_passes() -> None:
    guard = Guard(destructive=False)
    assert all(guard.admits(command(cdb)) for cdb in (READ_10, bytes(16), b"\x12" + bytes(15)))


def test_writes_pass_where_they_are_allowed_and_nothing_else_does() -> None:
    assert Guard(destructive=True).admits(command(WRITE_10))
    assert not Guard(destructive=True).admits(command(FORMAT_UNIT))
    assert not Guard(destructive=True).admits(command(b"\x3b" + bytes(15)))  # WRITE BUFFER: firmware


@pytest.mark.parametrize("words", range(13))
def test_a_write_behind_any_number_of_words_does_not_pass(words: int) -> None:
    """Behind a PDU whose length lies, the next may begin at any word."""
    ping = bytes(ISCSI_NopOut(data=bytes(4 * words)))
    assert not Guard(destructive=False).admits(ping + command(WRITE_10))


@pytest.mark.parametrize("piece_bytes", [1, 3, 4, 7, 31, 32, 33, 48])
def test_a_write_in_pieces_does_not_pass(piece_bytes: int) -> None:
    stream = bytes(ISCSI_NopOut(data=b"ping")) + command(WRITE_10)
    guard = Guard(destructive=False)
    admitted = [guard.admits(stream[start : start + piece_bytes]) for start in range(0, len(stream), piece_bytes)]
    assert not all(admitted)


def test_nothing_passes_in_the_place_of_what_was_stopped() -> None:
    """What was refused was not sent: the stream goes on as if it had not been asked for."""
    guard = Guard(destructive=False)
    assert not guard.admits(command(WRITE_10))
    assert guard.admits(command(READ_10))
    assert not guard.admits(command(WRITE_10))


def test_a_write_with_digests_does_not_pass() -> None:
    with digests(header=True, data=True):
        said = bytes(ISCSI_NopOut(data=b"ping")) + command(WRITE_10)
    assert not Guard(destructive=False).admits(said)


@pytest.mark.parametrize("function", range(13))
def test_resets_do_not_pass(function: int) -> None:
    ends_others = function in (opcodes.CLEAR_TASK_SET, opcodes.LOGICAL_UNIT_RESET, 6, 7)
    request = bytes(ISCSI_TaskManagementRequest(function=function))
    assert Guard(destructive=False).admits(request) is not ends_others
    assert Guard(destructive=True).admits(request) is not ends_others

"""What the tests of upheavals measure and look for."""

from __future__ import annotations

import pytest

from tests.e2e.guest.written_files import trouble_in
from tests.support.upheavals import Times, longest_pause_s, tell_pause


def test_the_longest_pause_is_one_that_touches_the_time_in_question() -> None:
    ends_s = [0.0, 5.0, 6.0, 6.5, 9.0, 20.0]
    assert longest_pause_s(ends_s, 5.5, 8.0) == 2.5
    assert longest_pause_s(ends_s, 6.0, 6.4) == 0.5
    assert longest_pause_s(ends_s, 1.0, 2.0) == 5.0
    assert longest_pause_s(ends_s, 10.0, 12.0) == 11.0


def test_a_load_that_stood_still_is_no_figure() -> None:
    times = Times(0.0, 2.0, 10.0)
    with pytest.raises(AssertionError, match="nothing was done meanwhile"):
        tell_pause("a load", "an upheaval", [0.5, 1.0, 1.5, 11.0], times)
    with pytest.raises(AssertionError, match="nothing was done afterwards"):
        tell_pause("a load", "an upheaval", [2.0 + 0.5 * number for number in range(10)], times)


@pytest.mark.parametrize(
    "line",
    [
        "I/O error, dev sda, sector 2048 op 0x1:(WRITE) flags 0x800 phys_seg 4 prio class 2",
        "Buffer I/O error on dev sda, logical block 256, lost async page write",
        "sd 2:0:0:0: [sda] tag#17 FAILED Result: hostbyte=DID_TRANSPORT_FAILFAST driverbyte=DRIVER_OK",
        "sd 2:0:0:0: [sda] tag#3 Sense Key : Medium Error [current]",
        "sd 2:0:0:0: rejecting I/O to offline device",
        "session1: session recovery timed out after 60 secs",
        "EXT4-fs error (device sda): ext4_journal_check_start:83: comm python3: Detected aborted journal",
        "INFO: task jbd2/sda-8:431 blocked for more than 120 seconds.",
    ],
)
def test_what_a_kernel_tells_of_trouble_is_found(line: str) -> None:
    log = f"[    9.1] sd 2:0:0:0: [sda] Attached SCSI disk\n[   12.345678] {line}\n"
    assert trouble_in(log) == [f"[   12.345678] {line}"]


def test_a_connection_that_ended_is_no_trouble_by_itself() -> None:
    log = (
        "[   12.3]  connection1:0: detected conn error (1020)\n"
        "[   20.1] EXT4-fs (sda): mounted filesystem 2f9c r/w with ordered data mode. Quota mode: none.\n"
        "[   21.0] EXT4-fs (sda): unmounting filesystem 2f9c.\n"
    )
    assert trouble_in(log) == []

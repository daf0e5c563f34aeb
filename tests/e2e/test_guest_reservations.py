"""Persistent reservations between two initiator names of a real Linux, as cluster software uses them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.e2e.guest.initiator import Initiator
from tests.e2e.guest.machine import Guest
from tests.support.target import Target, Volume
from tests.support.tgt import Tgt

pytestmark = [pytest.mark.guest, pytest.mark.slow]

# Exit statuses of sg3_utils.
RESERVATION_CONFLICT = 24
UNIT_ATTENTION = 6

WRITE_EXCLUSIVE = "1"
EXCLUSIVE_ACCESS = "3"
WRITE_EXCLUSIVE_REGISTRANTS_ONLY = "5"


@dataclass(frozen=True)
class Host:
    """One initiator name with its own disk on the shared volume, and its reservation key.

    Reservation commands go to the disk's SCSI generic node: udev looks at a disk again whenever a writer closes it, and
    that look would take a unit attention that a test waits for.
    """

    initiator: Initiator
    disk: str
    key: str

    @property
    def generic_node(self) -> str:
        return f"/dev/$(ls /sys/block/{self.disk.removeprefix('/dev/')}/device/scsi_generic)"

    def persist(self, *options: str) -> tuple[int, str]:
        result = self.initiator.guest.run(f"sg_persist --no-inquiry {' '.join(options)} {self.generic_node}")
        return result.status, result.output

    def out(self, action: str, *options: str) -> int:
        """The status of a PERSISTENT RESERVE OUT with this host's key."""
        status, _ = self.persist("--out", f"--{action}", f"--param-rk={self.key}", *options)
        return status

    def register(self) -> None:
        status, output = self.persist("--out", "--register", f"--param-sark={self.key}")
        assert status == 0, output

    def keys(self) -> set[str]:
        status, output = self.persist("--in", "--read-keys")
        assert status == 0, output
        return {line.strip() for line in output.splitlines() if line.strip().startswith("0x")}

    def reservation(self) -> str:
        status, output = self.persist("--in", "--read-reservation")
        assert status == 0, output
        return output

    def attention(self) -> str:
        """The text of the unit attention that waits for this host, which this takes; "" without one."""
        status, output = self.persist("--in", "--read-keys")
        assert status in (0, UNIT_ATTENTION), output
        return output.lower() if status else ""

    def writes(self) -> bool:
        return self._dd(f"if=/dev/zero of={self.disk} oflag=direct")

    def reads(self) -> bool:
        return self._dd(f"if={self.disk} of=/dev/null iflag=direct")

    def _dd(self, what: str) -> bool:
        """True when it works; False when it fails as a reservation conflict does (EBADE)."""
        result = self.initiator.guest.run(f"dd {what} bs=4096 count=1 status=none")
        self.initiator.guest.check("udevadm control --ping && udevadm settle")
        assert result.status == 0 or "Invalid exchange" in result.output, result.output
        return result.status == 0


@pytest.fixture
def volume(target: Target) -> Volume:
    return target.create_volume("shared", 16 << 20)


@pytest.fixture
def first(guest: Guest, volume: Volume) -> Host:
    initiator = Initiator(guest)
    return Host(initiator, initiator.login(volume), "0xaaa1")


@pytest.fixture
def second(guest: Guest, volume: Volume, first: Host) -> Host:
    initiator = Initiator.create(guest, "second", "iqn.2026-01.org.example:second-host")
    host = Host(initiator, initiator.login(volume), "0xbbb2")
    assert host.disk != first.disk
    return host


def test_registrations_of_both_hosts_are_seen_by_both(first: Host, second: Host) -> None:
    assert first.keys() == set()
    first.register()
    second.register()
    assert first.keys() == second.keys() == {"0xaaa1", "0xbbb2"}
    assert "there is NO reservation held" in first.reservation()


def test_write_exclusive_keeps_the_other_from_writing(first: Host, second: Host) -> None:
    first.register()
    assert first.out("reserve", f"--prout-type={WRITE_EXCLUSIVE}") == 0
    assert "Write Exclusive" in second.reservation()
    assert "0xaaa1" in second.reservation()
    assert (first.writes(), first.reads()) == (True, True)
    assert (second.writes(), second.reads()) == (False, True)
    second.register()
    assert second.out("reserve", f"--prout-type={WRITE_EXCLUSIVE}") == RESERVATION_CONFLICT
    assert first.out("release", f"--prout-type={WRITE_EXCLUSIVE}") == 0
    assert second.writes()


def test_exclusive_access_keeps_the_other_from_reading_too(first: Host, second: Host) -> None:
    first.register()
    assert first.out("reserve", f"--prout-type={EXCLUSIVE_ACCESS}") == 0
    assert (first.writes(), first.reads()) == (True, True)
    assert (second.writes(), second.reads()) == (False, False)


def test_registrants_only_admits_whoever_registers(first: Host, second: Host) -> None:
    first.register()
    assert first.out("reserve", f"--prout-type={WRITE_EXCLUSIVE_REGISTRANTS_ONLY}") == 0
    assert not second.writes()
    second.register()
    assert second.writes()


def test_preempt_takes_the_reservation_and_fences_the_old_holder(first: Host, second: Host) -> None:
    first.register()
    second.register()
    assert first.out("reserve", f"--prout-type={WRITE_EXCLUSIVE}") == 0
    assert not second.writes()
    assert second.out("preempt", f"--param-sark={first.key}", f"--prout-type={WRITE_EXCLUSIVE}") == 0
    assert second.keys() == {"0xbbb2"}
    assert "preempted" in first.attention()
    assert "0xbbb2" in first.reservation()
    assert (second.writes(), first.writes()) == (True, False)
    assert first.out("reserve", f"--prout-type={WRITE_EXCLUSIVE}") == RESERVATION_CONFLICT


def test_clear_removes_everything(target: Target, first: Host, second: Host) -> None:
    first.register()
    second.register()
    assert first.out("reserve", f"--prout-type={EXCLUSIVE_ACCESS}") == 0
    assert second.out("clear") == 0
    attention = first.attention()
    assert "reservations preempted" in attention or isinstance(target, Tgt)  # SPC-4 5.12.11.2.7; tgt is silent
    assert first.keys() == set()
    assert first.writes()
    assert second.writes()

"""A real Linux host whose disk is moved under it: blocks and session, by members that are drained, killed and removed.

Files are written, synced and read back all the time. No operation may fail, the kernel may tell of no error, and in the
end the file system is sound and holds what was written. The longest pause between two operations is told, not judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.e2e.guest.initiator import PATIENT, Initiator
from tests.e2e.guest.machine import Guest
from tests.e2e.guest.written_files import WrittenFiles
from tests.support.group import Group, running
from tests.support.target import Volume
from tests.support.upheavals import (
    bring,
    drain_and_remove,
    join_again,
    kill_in_mid_migration,
    migrate,
    move_session,
    move_session_around,
    others,
    owner_of,
    tell_pause,
    undergo,
)

pytestmark = [pytest.mark.guest, pytest.mark.slow, pytest.mark.timeout(300)]

MIB = 1 << 20
SIZE_BYTES = 96 * MIB
BALLAST_MIB = 12
MOVES = 10
SEED = 2026


@dataclass(frozen=True)
class Host:
    """The guest, logged in at the first member, with a file system on a volume of this group."""

    group: Group
    volume: Volume
    files: WrittenFiles

    def endures(self, what: str, upheaval: Callable[[], None]) -> None:
        """While files are written."""
        times = undergo(upheaval)
        tell_pause("open-iscsi in a guest", what, self.files.ends_s(), times)


@pytest.fixture(scope="module")
def host(guest_machine: Guest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """Files are written through all of these tests; what has become of them is looked at when the last one is over."""
    with running(Group(tmp_path_factory.mktemp("members"))) as group:
        volume = group.create_volume("files", SIZE_BYTES, members="m1")
        disk = Initiator(guest_machine).login(volume, PATIENT)
        files = WrittenFiles(guest_machine, disk, BALLAST_MIB, SEED)
        yield Host(group, volume, files)
        files.end()


def test_its_volume_is_migrated_and_back(host: Host) -> None:
    here = owner_of(host.group, host.volume)
    there = others(host.group, here)[0]

    def upheaval() -> None:
        migrate(host.group, [host.volume], there)
        migrate(host.group, [host.volume], here)

    host.endures("volume migrated and back", upheaval)


def test_its_session_is_moved_ten_times(host: Host) -> None:
    host.endures("session moved ten times", lambda: move_session_around(host.group, host.volume, MOVES))


def test_the_destination_is_killed_in_mid_migration(host: Host) -> None:
    destination = others(host.group, owner_of(host.group, host.volume), "m1")[0]
    host.endures(
        "destination killed in mid-migration",
        lambda: kill_in_mid_migration(host.group, [host.volume], destination, destination),
    )


def test_the_source_is_killed_in_mid_migration_with_the_session_at_it(host: Host) -> None:
    source = owner_of(host.group, host.volume)
    destination = others(host.group, source)[0]
    move_session(host.group, host.volume, source)
    host.endures(
        "source and session's member killed in mid-migration",
        lambda: kill_in_mid_migration(host.group, [host.volume], destination, source),
    )


def test_the_member_that_has_all_of_it_is_drained_and_removed(host: Host) -> None:
    """Not the first one: a host needs a portal to begin at when it comes back."""
    removed = "m3"
    bring(host.group, [host.volume], removed)
    move_session(host.group, host.volume, removed)
    host.endures("member drained and removed", lambda: drain_and_remove(host.group, removed))
    join_again(host.group.by_name(removed))
    host.group.wait_until_active()

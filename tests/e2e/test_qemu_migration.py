"""QEMU's block layer, and a plain libiscsi program beside it, on volumes that are moved under them.

QEMU's reads find what was written last, the program's blocks carry their place; no command fails. The longest pause
between two commands of QEMU is told, not judged.

The program takes part where nobody is killed. What is under way to a member that dies ends BUSY, and a session that is
lost comes back with a unit attention: QEMU repeats its command then, as every kernel does, but libiscsi leaves that to
its program, and this one does not.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from tests.bench.load import build, stamp_file
from tests.support.group import Group, running
from tests.support.qemu_io import QemuIoLoad
from tests.support.target import Volume
from tests.support.tools import run
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

pytestmark = [
    pytest.mark.tool("qemu-img", "qemu-io", "qemu-iscsi", "gcc", "libiscsi.h"),
    pytest.mark.slow,
    pytest.mark.timeout(240),
]

MIB = 1 << 20
SIZE_BYTES = 24 * MIB
MOVES = 10


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    with running(Group(tmp_path_factory.mktemp("members"))) as group:
        yield group


@pytest.fixture(scope="module")
def image(members: Group) -> Volume:
    """QEMU's."""
    return members.create_volume("image", SIZE_BYTES, members="m1")


@pytest.fixture(scope="module")
def stamped(members: Group, tmp_path_factory: pytest.TempPathFactory) -> Volume:
    """The program's, in which each 4 KiB have their place in them."""
    volume = members.create_volume("stamped", SIZE_BYTES, members="m1")
    content = tmp_path_factory.mktemp("stamped") / "image"
    stamp_file(content, SIZE_BYTES // MIB)
    run(["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", content, volume.url])
    return volume


def endures(volume: Volume, what: str, upheaval: Callable[[], None], seed: int) -> None:
    """QEMU does, on that volume."""
    with QemuIoLoad(volume.url, SIZE_BYTES, seed) as load:
        times = undergo(upheaval)
    tell_pause("qemu-io", what, load.ends_s, times)


@contextlib.contextmanager
def program(volume: Volume, mode: str) -> Iterator[None]:
    """The libiscsi program works on a volume: no command fails, and no block that it reads is another one's."""
    words = [str(build()), "--mode", mode, "--qd", "8", "--verify", "--warmup", "0", "--seconds", "3600", volume.url]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield
        process.terminate()  # it tells what it has done then
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, output + errors
    assert json.loads(output)["ios"] > 100


def test_their_volumes_are_migrated_and_back(members: Group, image: Volume, stamped: Volume) -> None:
    here = owner_of(members, image)
    there = others(members, here)[0]

    def upheaval() -> None:
        migrate(members, [image, stamped], there)
        migrate(members, [image, stamped], here)

    bring(members, [stamped], here)
    with program(stamped, "randread"):
        endures(image, "volume migrated and back", upheaval, 1)


def test_their_sessions_are_moved_ten_times(members: Group, image: Volume, stamped: Volume) -> None:
    def upheaval() -> None:
        for volume in (image, stamped):
            move_session_around(members, volume, MOVES)

    with program(stamped, "randwrite"):
        endures(image, "session moved ten times", upheaval, 2)


def test_the_destination_is_killed_in_mid_migration(members: Group, image: Volume) -> None:
    destination = others(members, owner_of(members, image), "m1")[0]
    endures(
        image,
        "destination killed in mid-migration",
        lambda: kill_in_mid_migration(members, [image], destination, destination),
        3,
    )


def test_the_source_is_killed_in_mid_migration_with_the_session_at_it(members: Group, image: Volume) -> None:
    source = owner_of(members, image)
    destination = others(members, source)[0]

    def upheaval() -> None:
        move_session(members, image, source)
        kill_in_mid_migration(members, [image], destination, source)

    endures(image, "source and session's member killed in mid-migration", upheaval, 4)


def test_the_member_that_has_all_of_it_is_drained_and_removed(members: Group, image: Volume, stamped: Volume) -> None:
    removed = "m3"
    bring(members, [image, stamped], removed)

    def upheaval() -> None:
        for volume in (image, stamped):
            move_session(members, volume, removed)
        drain_and_remove(members, removed)

    with program(stamped, "randwrite"):
        endures(image, "member drained and removed", upheaval, 5)
    join_again(members.by_name(removed))
    members.wait_until_active()
    with program(stamped, "randread"):
        time.sleep(1.0)  # all of it is looked at

"""A real Linux with its file system on a volume that lies on three members."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.e2e.guest.initiator import PATIENT, Initiator, chap_settings
from tests.e2e.guest.machine import Guest
from tests.support.group import Group
from tests.support.target import Chap, Options

pytestmark = [pytest.mark.guest, pytest.mark.slow, pytest.mark.timeout(300)]

MIB = 1 << 20
ALICE = Chap("alice", "open-sesame-1001")
TARGET = Chap("the-target", "who-goes-there-1")
# Files of 1 to 512 KiB, each synced, until /run/enough exists; their checksums in /run/sums.
WRITE_FILES = """#!/usr/bin/python3
import hashlib, os, random
content = random.Random(2025)
number = 0
with open("/run/sums", "w") as sums:
    while not os.path.exists("/run/enough"):
        data = content.randbytes(content.randrange(1 << 10, 1 << 19))
        with open("/mnt/%05d" % (number % 300), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        sums.write("%s  %s\\n" % (hashlib.sha256(data).hexdigest(), file.name))
        number += 1
        if number % 300 == 0:
            sums.seek(0)  # the files are written again, from the first one on
            sums.truncate()
print(number)
"""


@pytest.fixture
def spreading(group: Group) -> Iterator[Group]:
    """The group under round-robin; whoever was killed runs again afterwards."""
    group.set_policy("round-robin")
    yield group
    group.repair()
    group.set_policy("none")


def test_files_survive_members_that_die(spreading: Group, guest: Guest) -> None:
    """Each member is killed and started again while files are written; no write fails, and every file is as it was."""
    group, initiator = spreading, Initiator(guest)
    volume = group.create_volume("files", 192 * MIB, Options(chap=ALICE, mutual_chap=TARGET))
    settings = {**PATIENT, **chap_settings(ALICE, TARGET)}
    assert len(group.owners(volume)) == 3
    assert (volume.portal, volume.iqn) in initiator.discover(volume.portal)
    served_by = set()
    for _ in range(3):
        initiator.login(volume, settings)
        served_by |= {one["member"] for one in group[0].ask("GET", "/sessions") if one["volume"] == volume.name}
        initiator.logout(volume)
    assert len(served_by) > 1, "open-iscsi was never sent elsewhere"

    disk = initiator.login(volume, settings)
    guest.check(f"mkfs.ext4 -q {disk} && mount {disk} /mnt", timeout=60)
    guest.put("/run/write-files", WRITE_FILES)
    writing = guest.spawn("/run/write-files")
    for member in group:
        time.sleep(2)
        member.kill()
        member.start()
    time.sleep(1)
    guest.check("touch /run/enough")
    written = writing.wait(90)
    assert written.status == 0, written.output
    assert int(written.output) > 10
    guest.check("umount /mnt", timeout=60)
    initiator.logout(volume)  # with the disk, all of the guest's cached blocks go

    disk = initiator.login(volume, settings)
    guest.check(f"fsck.ext4 -f -n {disk} && mount {disk} /mnt", timeout=60)
    guest.check("sha256sum --quiet --check /run/sums && umount /mnt", timeout=60)
    initiator.logout(volume)

"""A real Linux with its file system on a volume that lies on several members, which die while it is used."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.guest.initiator import PATIENT, Initiator, chap_settings
from tests.e2e.guest.machine import Guest
from tests.support.group import Group
from tests.support.target import PLAIN, Chap, Options

pytestmark = [pytest.mark.guest, pytest.mark.slow, pytest.mark.timeout(300)]

MIB = 1 << 20
EXAMPLES = Path(__file__).parents[2] / "examples"
MAP = "/dev/mapper/mpatha"
ALICE = Chap("alice", "open-sesame-1001")
TARGET = Chap("the-target", "who-goes-there-1")
# Files of 1 to 512 KiB, each synced, until /run/enough exists; then the checksums of all of them in /run/sums.
WRITE_FILES = """#!/usr/bin/python3
import hashlib, os, random
content = random.Random(2025)
sums = {}
number = 0
while not os.path.exists("/run/enough"):
    data = content.randbytes(content.randrange(1 << 10, 1 << 19))
    name = "/mnt/%05d" % (number % 300)  # written again, from the first one on
    with open(name, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    sums[name] = hashlib.sha256(data).hexdigest()
    number += 1
with open("/run/sums", "w") as file:
    file.writelines("%s  %s\\n" % (digest, name) for name, digest in sums.items())
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
    for each, chosen in ((volume, settings), (group.create_volume("open", 3 * MIB), PATIENT)):
        served_by = set()
        for _ in range(3):
            initiator.login(each, chosen)
            served_by |= {one["member"] for one in group[0].ask("GET", "/sessions") if one["volume"] == each.name}
            initiator.logout(each)
        assert len(served_by) > 1, f"open-iscsi was never sent elsewhere with {each.name}"

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


@pytest.fixture
def multipathed(guest: Guest) -> Iterator[Guest]:
    """The guest with dm-multipath, and with the files of examples/ as they are."""
    saved = "/run/iscsid.conf.saved"
    guest.check(f"cp /etc/iscsi/iscsid.conf {saved}")
    guest.put("/etc/iscsi/iscsid.conf", (EXAMPLES / "iscsid.conf").read_text())
    guest.put("/etc/multipath.conf", (EXAMPLES / "multipath.conf").read_text())
    guest.check("modprobe dm-multipath && multipathd")
    yield guest
    if guest.alive:
        guest.run(f"umount /mnt; multipath -F; multipathd shutdown; cp {saved} /etc/iscsi/iscsid.conf")


def paths(guest: Guest, state: str) -> int:
    """How many paths are "active" or "failed" to the kernel."""
    return guest.run("multipath -ll").output.count(f" {state} ")


def until_active(guest: Guest, count: int) -> None:
    """Until so many paths are active and no other one is known; multipathd looks every 5 to 20 s."""
    for _ in range(90):
        if paths(guest, "active") == count and not paths(guest, "failed"):
            return
        time.sleep(0.5)
    raise AssertionError(guest.run("multipath -ll; dmesg | tail -n 30").output)


def test_multipath_goes_on_without_a_member(group: Group, multipathed: Guest) -> None:
    """By the files of examples/: while a member without blocks of the volume is away, the other paths carry on; one
    that has some is waited for. Nothing fails, and every file is as it was."""
    guest = multipathed
    volume = group.create_volume("paths", 96 * MIB, PLAIN, "--multipath", members="m2,m3")
    guest.check(f"iscsiadm -m discovery -t sendtargets -p {volume.portal}")
    guest.check(f"iscsiadm -m node -T {volume.iqn} --login")
    guest.check(f"while ! [ -e {MAP} ]; do sleep 0.1; done; udevadm settle")
    until_active(guest, 3)
    guest.check(f"mkfs.ext4 -q {MAP} && mount {MAP} /mnt", timeout=60)
    guest.put("/run/write-files", WRITE_FILES)
    guest.check("rm -f /run/enough")
    writing = guest.spawn("/run/write-files")
    time.sleep(1)

    try:
        group[0].kill()
        guest.check("while ! multipath -ll | grep -q ' failed '; do sleep 0.5; done", timeout=60)
        guest.check("touch /run/without; sleep 2; [ $(find /mnt -newer /run/without -type f | wc -l) -gt 3 ]")
    finally:
        group.repair()
    until_active(guest, 3)
    group[1].kill()
    group[1].start()
    until_active(guest, 3)
    guest.check("touch /run/without; sleep 2; [ $(find /mnt -newer /run/without -type f | wc -l) -gt 3 ]")

    guest.check("touch /run/enough")
    written = writing.wait(90)
    assert written.status == 0, written.output
    guest.check("umount /mnt; echo 3 >/proc/sys/vm/drop_caches", timeout=60)
    guest.check(f"fsck.ext4 -f -n {MAP} && mount {MAP} /mnt", timeout=60)
    guest.check("sha256sum --quiet --check /run/sums", timeout=60)

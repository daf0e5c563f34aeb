"""A volume grows while a real Linux uses it; a rescan shows the new size, and the file system grows into it."""

from __future__ import annotations

import pytest

from tests.e2e.guest.initiator import Initiator
from tests.e2e.guest.machine import Guest
from tests.support.member import Member

pytestmark = [pytest.mark.guest, pytest.mark.slow]

MIB = 1 << 20


def size_of(guest: Guest, disk: str) -> int:
    return int(guest.check(f"blockdev --getsize64 {disk}"))


def test_a_rescan_sees_a_grown_volume_and_the_file_system_grows(member: Member, guest: Guest) -> None:
    initiator = Initiator(guest)
    volume = member.create_volume("growing", 64 * MIB)
    disk = initiator.login(volume)
    guest.check(f"mkfs.ext4 -q {disk} && mount {disk} /mnt", timeout=60)
    guest.check("head -c 16M /dev/urandom >/mnt/before && sha256sum /mnt/before >/run/sums && sync", timeout=60)

    member.check("volume", "resize", "growing", "--size", "128M")
    assert member.json("volume", "show", "growing")["size_bytes"] == 128 * MIB
    initiator.rescan(volume)
    assert size_of(guest, disk) == 128 * MIB

    guest.check(f"resize2fs {disk}", timeout=60)
    available = int(guest.check("df --output=size -B1 /mnt | tail -n 1"))
    assert available > 100 * MIB
    guest.check("head -c 80M /dev/zero | tr '\\0' x >/mnt/after && sha256sum /mnt/after >>/run/sums", timeout=90)
    guest.check("umount /mnt")
    guest.check(
        f"fsck.ext4 -f -n {disk} && mount {disk} /mnt && sha256sum --check /run/sums && umount /mnt", timeout=90
    )


def test_a_volume_is_not_made_smaller_without_force(member: Member, guest: Guest) -> None:
    initiator = Initiator(guest)
    volume = member.create_volume("fixed", 64 * MIB)
    disk = initiator.login(volume)
    refused = member.command("volume", "resize", "fixed", "--size", "32M")
    assert refused.returncode == 1, refused.stdout
    assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr
    initiator.rescan(volume)
    assert size_of(guest, disk) == 64 * MIB

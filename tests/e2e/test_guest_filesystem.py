"""A file system on a volume, made and used by a real Linux: what it writes it reads, and what it frees comes back."""

from __future__ import annotations

import pytest

from tests.e2e.guest.initiator import Initiator
from tests.e2e.guest.machine import Guest
from tests.support.target import Target, Volume

pytestmark = [pytest.mark.guest, pytest.mark.slow]

MIB = 1 << 20
FILES = 2500

# Small files of 1 to 32 KiB in directories of 100, with their checksums in /run/sums of the guest.
WRITE_FILES = """
import hashlib, os, random
content = random.Random(2024)
with open("/run/sums", "w") as sums:
    for number in range(%d):
        directory = "/mnt/%%02d" %% (number // 100)
        os.makedirs(directory, exist_ok=True)
        data = content.randbytes(content.randrange(1024, 32768))
        with open("%%s/%%04d" %% (directory, number), "wb") as file:
            file.write(data)
        sums.write("%%s  %%s\\n" %% (hashlib.sha256(data).hexdigest(), file.name))
"""


@pytest.fixture
def initiator(guest: Guest) -> Initiator:
    return Initiator(guest)


@pytest.fixture
def volume(target: Target) -> Volume:
    return target.create_volume("files", 512 * MIB)


def write_files(guest: Guest) -> None:
    guest.put("/run/write-files", "#!/usr/bin/python3\n" + WRITE_FILES % FILES)
    guest.check("/run/write-files", timeout=100)


@pytest.mark.timeout(300)
def test_thousands_of_files_survive_a_new_session(target: Target, volume: Volume, initiator: Initiator) -> None:
    guest = initiator.guest
    disk = initiator.login(volume)
    guest.check(f"mkfs.ext4 -q {disk} && mount {disk} /mnt", timeout=60)
    write_files(guest)
    guest.check("umount /mnt")
    initiator.logout(volume)  # with the disk, all of the guest's cached blocks go

    disk = initiator.login(volume)
    guest.check(f"fsck.ext4 -f -n {disk} && mount {disk} /mnt", timeout=60)
    assert guest.check("wc -l </run/sums").strip() == str(FILES)
    guest.check("sha256sum --quiet --check /run/sums", timeout=100)
    guest.check("umount /mnt")


@pytest.mark.timeout(300)
def test_fstrim_gives_freed_space_back_to_the_host(target: Target, volume: Volume, initiator: Initiator) -> None:
    guest = initiator.guest
    disk = initiator.login(volume)
    guest.check(f"mkfs.ext4 -q {disk} && mount {disk} /mnt", timeout=60)
    empty = target.allocated_bytes(volume)
    guest.check("head -c 96M /dev/urandom >/mnt/large && sha256sum /mnt/large >/run/kept", timeout=60)
    guest.check("head -c 16M /dev/urandom >/mnt/kept && sha256sum /mnt/kept >/run/kept && sync", timeout=60)
    full = target.allocated_bytes(volume)
    assert full >= empty + 112 * MIB
    guest.check("rm /mnt/large && sync && fstrim -v /mnt", timeout=60)
    assert target.allocated_bytes(volume) <= full - 90 * MIB
    guest.check("echo 3 >/proc/sys/vm/drop_caches && sha256sum --check /run/kept && umount /mnt")


def test_blkdiscard_frees_the_whole_volume_and_it_reads_as_zeros(
    target: Target, volume: Volume, initiator: Initiator
) -> None:
    guest = initiator.guest
    disk = initiator.login(volume)
    guest.check(f"dd if=/dev/urandom of={disk} bs=1M count=64 oflag=direct status=none", timeout=60)
    assert target.allocated_bytes(volume) >= 64 * MIB
    guest.check(f"blkdiscard {disk}")
    assert target.allocated_bytes(volume) < MIB
    guest.check(f"cmp -n {64 * MIB} {disk} /dev/zero", timeout=60)


def test_blkdiscard_zeroout_writes_zeros(target: Target, volume: Volume, initiator: Initiator) -> None:
    """WRITE SAME over part of the disk; the blocks beside it stay."""
    guest = initiator.guest
    disk = initiator.login(volume)
    guest.check(f"head -c 32M /dev/urandom >/run/before && dd if=/run/before of={disk} bs=1M oflag=direct status=none")
    guest.check(f"blkdiscard -z -o {8 * MIB} -l {16 * MIB} {disk}", timeout=60)
    guest.check(
        f"dd if=/dev/zero of=/run/before bs=1M seek=8 count=16 conv=notrunc status=none && "
        f"dd if={disk} of=/run/after bs=1M count=32 iflag=direct status=none && cmp /run/before /run/after",
        timeout=60,
    )

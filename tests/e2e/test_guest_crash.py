"""The target dies (kill -9) while a real Linux writes, and comes back on the same ports.

The session must recover by itself, no write may fail, the file system must be clean, and every file that was fsynced
before must be there. Each round kills at another random moment; SAN_TARGET_CRASH_ROUNDS sets their number.
"""

from __future__ import annotations

import os
import random
import time

import pytest

from tests.e2e.guest.initiator import PATIENT, Initiator
from tests.e2e.guest.machine import Guest
from tests.support.target import Target

pytestmark = [pytest.mark.guest, pytest.mark.slow]

MIB = 1 << 20
ROUNDS = int(os.environ.get("SAN_TARGET_CRASH_ROUNDS", "20"))
SEED = int(os.environ.get("SAN_TARGET_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)

# Writes files of 4 to 64 KiB until /run/stop exists; each is fsynced, with its directory, before its checksum goes to
# standard output, so what the output lists must survive. The names cycle, so that old blocks are freed and used again.
WRITER = """#!/usr/bin/python3
import hashlib, os, random, sys
content = random.Random(int(sys.argv[1]))
directory = os.open("/mnt", os.O_RDONLY)
number = 0
while not os.path.exists("/run/stop"):
    data = content.randbytes(content.randrange(4096, 65536))
    name = "/mnt/%s-%04d" % (sys.argv[1], number % 400)
    with open(name + ".new", "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(name + ".new", name)
    os.fsync(directory)
    print(hashlib.sha256(data).hexdigest(), name, flush=True)
    number += 1
"""


def last_checksums(log: str) -> dict[str, str]:
    """Name -> checksum of the last complete line about it."""
    rows = [line.split() for line in log.splitlines()]
    return {name: checksum for checksum, name in rows}


def wait_until_it_writes_again(guest: Guest, log: str) -> None:
    """The writer moves on by itself: five files more than now are fsynced within a minute."""
    result = guest.run(
        f"had=$(wc -l <{log}); while [ $(wc -l <{log}) -lt $((had + 5)) ]; do sleep 0.1; done", timeout=60
    )
    assert result.status == 0, f"no write went through for 60 s after the restart\n{guest.check(f'tail -n 5 {log}')}"


@pytest.mark.timeout(60 * ROUNDS + 120)
def test_kill_9_in_mid_write_loses_nothing_that_was_fsynced(target: Target, guest: Guest) -> None:
    print(f"SAN_TARGET_SEED={SEED}")
    moments = random.Random(SEED)
    initiator = Initiator(guest)
    volume = target.create_volume("crash", 256 * MIB)
    disk = initiator.login(volume, PATIENT)
    guest.check(f"mkfs.ext4 -q {disk}", timeout=60)
    guest.put("/run/writer", WRITER)
    for number in range(ROUNDS):
        guest.check(f"mount {disk} /mnt && rm -f /run/stop")
        writer = guest.spawn(f"exec /run/writer {number % 4}")
        guest.check(f"while ! [ -s {writer.log} ]; do sleep 0.05; done")
        time.sleep(moments.uniform(0.05, 1.5))
        target.kill()
        time.sleep(moments.uniform(0.0, 1.0))
        target.restart()
        wait_until_it_writes_again(guest, writer.log)
        guest.check("touch /run/stop")
        ended = writer.wait(60)
        assert ended.status == 0, f"round {number}: the writer failed\n{ended.output[-2000:]}"

        # A new session has none of the guest's cached blocks: what is read now comes from the target.
        guest.check("umount /mnt", timeout=60)
        initiator.logout(volume)
        disk = initiator.login(volume, PATIENT)
        guest.check(f"fsck.ext4 -f -n {disk}", timeout=60)
        sums = last_checksums(ended.output)
        assert len(sums) >= 5
        guest.put("/run/sums", "".join(f"{checksum}  {name}\n" for name, checksum in sums.items()))
        guest.check(f"mount -o ro {disk} /mnt && sha256sum --quiet --check /run/sums && umount /mnt", timeout=60)

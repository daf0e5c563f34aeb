"""A file system in the guest with write_files.py at work on it: whether all is right, and how long it had to wait."""

from __future__ import annotations

import re
import time
from pathlib import Path

from tests.e2e.guest.machine import Guest

WRITER = Path(__file__).with_name("write_files.py")
MOUNT = "mount -o discard"  # what files no longer need is given back, under load too
PATIENCE_S = 120
TROUBLE = re.compile(
    r"error|fail|reject|offline|abort|timed out|timing out|blocked for|corrupt|read-only|sense key", re.IGNORECASE
)
# A connection that ended, whoever ended it: what becomes of its commands is told in other lines.
HARMLESS = re.compile(r"connection\d+:\d+: detected conn error")


def trouble_in(kernel_log: str) -> list[str]:
    """The lines of a kernel's log that tell of an I/O error, a lost device or a damaged file system."""
    return [line for line in kernel_log.splitlines() if TROUBLE.search(line) and not HARMLESS.search(line)]


class WrittenFiles:
    """A disk of the guest with an ext4 of its own, to which files are written from now on."""

    def __init__(self, guest: Guest, disk: str, ballast_mib: int, seed: int) -> None:
        """Returns when the first file is written. ballast_mib: of a file that stays as it is, and has to be moved with
        the rest. The kernel's log begins anew."""
        self._guest = guest
        self._directory, self._records, self._disk = "/run/files", "/run/records", disk
        guest.put("/run/write-files", WRITER.read_text())
        ballast = f"{self._directory}/ballast"
        steps = (
            "dmesg --clear",
            f"mkdir {self._directory} {self._records}",
            f"mkfs.ext4 -q {disk}",
            f"{MOUNT} {disk} {self._directory}",
            f"head -c {ballast_mib}M /dev/urandom >{ballast}",
            "sync",
            f"sha256sum {ballast} >{self._records}/ballast",
        )
        guest.check(" && ".join(steps), PATIENCE_S)
        self._writing = guest.spawn(f"/run/write-files {self._directory} {self._records} {seed}")
        first = f"for i in $(seq 600); do [ -s {self._writing.log} ] && break; sleep 0.1; done; cat /proc/uptime"
        # The guest's clock, when time.monotonic() here is 0.
        self._clock_s = float(guest.check(first, PATIENCE_S).split()[0]) - time.monotonic()

    def ends_s(self) -> list[float]:
        """When each operation ended, by time.monotonic() of this process (to a fraction of a second). So far none has
        failed, and the kernel has met no trouble."""
        log = self._writing.log
        told = self._guest.check(f"cat {log}; echo; dmesg; ! [ -s {self._writing.status_file} ]", PATIENCE_S)
        lines, _, kernel_log = told.partition("\n\n")
        assert trouble_in(kernel_log) == []
        return [float(line) - self._clock_s for line in lines.splitlines()]

    def end(self) -> None:
        """No operation has failed, the file system is sound, and what is on the disk is what was written."""
        self._guest.check(f"touch {self._records}/enough")
        written = self._writing.wait(PATIENCE_S)
        assert written.status == 0, written.output
        steps = (
            f"umount {self._directory}",
            f"fsck.ext4 -f -n {self._disk}",
            "echo 3 >/proc/sys/vm/drop_caches",
            f"{MOUNT} {self._disk} {self._directory}",
            f"sha256sum --quiet --check {self._records}/sums {self._records}/ballast",
        )
        self._guest.check(" && ".join(steps), PATIENCE_S)
        assert trouble_in(self._guest.check("dmesg")) == []

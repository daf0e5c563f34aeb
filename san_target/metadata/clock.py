"""The clock that leases of one machine are kept with: time since boot, which goes on while the machine sleeps."""

import time
from pathlib import Path

BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")


def boottime_s() -> float:
    """Seconds since boot (CLOCK_BOOTTIME); the same for all processes, comparable only within one boot."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """Names the present boot of this machine: a time of another boot says nothing about now."""
    return BOOT_ID_FILE.read_text().strip()

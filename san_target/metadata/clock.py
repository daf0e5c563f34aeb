"""The clock that leases of one machine are kept with: time since boot, which goes on while the machine sleeps."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")


boottime_s: Final[Callable[[], float]] = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
"""Seconds since boot (CLOCK_BOOTTIME); the same for all processes, comparable only within one boot."""


def boot_id() -> str:
    """Names the present boot of this machine: a time of another boot says nothing about now."""
    return BOOT_ID_FILE.read_text().strip()

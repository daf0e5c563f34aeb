"""CPU quotas for processes, so that several members on one small machine are like machines of their own.

By Linux's control groups, of version 1 or 2: root only, and not in every container.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

PERIOD_US = 10_000
"""Short, so that a process out of quota stands still for milliseconds only."""
PLACE = Path("/sys/fs/cgroup")
HOW = "needs root and the controller `cpu` of Linux's control groups (cpu.max, or cpu.cfs_quota_us)"


class NoQuota(Exception):
    """This machine has no control groups for that, or they are not for us."""


@contextlib.contextmanager
def cpu_quota(pid: int, share: float) -> Iterator[None]:
    """All threads of a process together may use this share of one CPU until the end. NoQuota."""
    try:
        group, everybody = _make(f"san-target-test-{os.getpid()}-{pid}", round(share * PERIOD_US))
        (group / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        raise NoQuota(f"a CPU quota {HOW}: {error}") from error
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            (everybody / "cgroup.procs").write_text(str(pid))
        group.rmdir()


def _make(name: str, quota_us: int) -> tuple[Path, Path]:
    """A group, and the one above it. OSError."""
    first = PLACE / "cpu"
    if (first / "cpu.cfs_quota_us").exists():
        group = first / name
        group.mkdir()
        (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
        (group / "cpu.cfs_quota_us").write_text(str(quota_us))
        return group, first
    (PLACE / "cgroup.subtree_control").write_text("+cpu")
    group = PLACE / name
    group.mkdir()
    (group / "cpu.max").write_text(f"{quota_us} {PERIOD_US}")
    return group, PLACE

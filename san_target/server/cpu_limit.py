"""How much of one CPU this process may use: what its control group and those above leave it.

A container with half a CPU is busy when it uses half of one; a balancer that took it for idle would give it more. Both
versions of Linux's control groups are read (`cpu.max`, or `cpu.cfs_quota_us`), as a limit may change at any time.
"""

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath

WHOLE_CPU = 1.0
"""One event loop cannot use more, whatever it may."""
SMALLEST = 0.001


class CpuLimit:
    """proc: of this process. What cannot be read limits nothing."""

    def __init__(self, proc: Path = Path("/proc/self")) -> None:
        self._proc = proc

    def share(self) -> float:
        """Of one CPU, at most; 1 where nothing limits it. Some small files are read."""
        limits = (_quota(directory) for directory in self._directories())
        return max(SMALLEST, min((limit for limit in limits if limit is not None), default=WHOLE_CPU))

    @cached_property
    def _mounts(self) -> list[tuple[str, PurePosixPath, Path]]:
        """("cpu" of version 1, or "" of version 2; the group at its root; where it is)."""
        found = []
        for line in _text(self._proc / "mountinfo").splitlines():
            before, _, after = line.partition(" - ")
            kind, _, options = [*after.split(" "), "", ""][:3]
            fields = before.split(" ")
            if len(fields) < 5 or not (kind == "cgroup2" or (kind == "cgroup" and "cpu" in options.split(","))):
                continue
            root, place = (re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), each) for each in fields[3:5])
            found.append(("cpu" if kind == "cgroup" else "", PurePosixPath(root), Path(place)))
        return found

    def _directories(self) -> Iterator[Path]:
        """Of the group of this process and of those above it, as far as they can be seen from here."""
        groups = dict(_groups(_text(self._proc / "cgroup")))
        for controller, root, place in self._mounts:
            group = groups.get(controller)
            if group is None:
                continue
            # In a container its own group may be at the root, under a name of the host's.
            below = group.relative_to(root) if group.is_relative_to(root) else PurePosixPath()
            directory = place / below
            yield directory
            yield from (one for one in directory.parents if one.is_relative_to(place))


def _groups(text: str) -> Iterator[tuple[str, PurePosixPath]]:
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        for controller in controllers.split(","):
            if controller in ("", "cpu"):
                yield controller, PurePosixPath(group)


def _quota(directory: Path) -> float | None:
    """Of one CPU; None: there is no limit here."""
    fields = _text(directory / "cpu.max").split()
    if not fields:
        fields = [_text(directory / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    if len(fields) != 2 or not all(field.isdigit() for field in fields) or not int(fields[1]):
        return None  # "max", or -1
    return min(WHOLE_CPU, int(fields[0]) / int(fields[1]))


def _text(file: Path) -> str:
    """ "" if it is not there, or may not be read."""
    try:
        return file.read_text()
    except OSError:
        return ""

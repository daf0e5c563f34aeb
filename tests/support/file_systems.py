"""Small file systems of their own, for tests of disks that are full, read-only or broken. They need root."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.tools import find

MIB = 1 << 20


class MountRefused(Exception):
    """This process may not mount, or lacks what it needs for it; tests skip."""


@contextlib.contextmanager
def tmpfs(directory: Path, size_bytes: int) -> Iterator[Path]:
    """A new tmpfs on `directory`, unmounted at the end."""
    with _mounted(directory, "-t", "tmpfs", "-o", f"size={size_bytes}", "none"):
        yield directory


@contextlib.contextmanager
def ext4(directory: Path, size_bytes: int) -> Iterator[Ext4]:
    """A new ext4 on `directory`, in an image beside it; an error makes it read-only, as Linux distributions do."""
    image = directory.with_name(directory.name + ".image")
    with image.open("wb") as file:
        file.truncate(size_bytes)
    try:
        _run("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
        with _mounted(directory, "-o", "loop,errors=remount-ro", str(image)):
            yield Ext4(directory)
    finally:
        image.unlink()


class Ext4:
    """A mounted ext4."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        major, minor = os.major(directory.stat().st_dev), os.minor(directory.stat().st_dev)
        device = Path(f"/sys/dev/block/{major}:{minor}").resolve().name
        self._trigger = Path("/sys/fs/ext4") / device / "trigger_fs_error"
        if not self._trigger.exists():
            raise MountRefused(f"this kernel has no {self._trigger}")

    def meet_an_error(self) -> None:
        """Let ext4 find an error on its disk: it becomes read-only at once, under open files."""
        self._trigger.write_text("test")


def remount_read_only(directory: Path) -> None:
    """As an administrator does it; refused by the kernel while files are open for writing."""
    _run("mount", "-o", "remount,ro", str(directory))


def fill(path: Path) -> None:
    """Take all the space that is left on the file system of `path`, with a file there."""
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(MIB)):
            pass


@contextlib.contextmanager
def _mounted(directory: Path, *options: str) -> Iterator[None]:
    directory.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0:
        raise MountRefused("mounting needs root")
    _run("mount", *options, str(directory))
    try:
        yield
    finally:
        # Lazily, should a process still be there: nothing of a test that failed stays mounted.
        umount = find("umount")
        if subprocess.run([umount, str(directory)], capture_output=True, check=False).returncode:
            subprocess.run([umount, "-l", str(directory)], check=True)


def _run(*words: str) -> None:
    try:
        done = subprocess.run([find(words[0]), *words[1:]], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise MountRefused(str(error)) from None
    if done.returncode:
        raise MountRefused(f"{' '.join(words)}: {done.stderr.strip()}")

"""Small file systems of their own, for tests of disks that are full, read-only or broken. They need root."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.tools import find

MIB = 1 << 20
_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32), fs/ext4/ext4.h
_WITHOUT_FLUSH = 2


class MountRefused(Exception):
    """This process may not mount, or lacks what it needs for it; tests skip."""


@contextlib.contextmanager
def tmpfs(directory: Path, size_bytes: int) -> Iterator[Path]:
    """A new tmpfs on `directory`, unmounted at the end."""
    _mount(directory, "-t", "tmpfs", "-o", f"size={size_bytes}", "none")
    try:
        yield directory
    finally:
        _unmount(directory)


@contextlib.contextmanager
def ext4(directory: Path, size_bytes: int) -> Iterator[Ext4]:
    """A new ext4 on `directory`, in an image beside it; an error makes it read-only, as Linux distributions do."""
    disk = Ext4(directory, directory.with_name(directory.name + ".image"))
    with disk.image.open("wb") as file:
        file.truncate(size_bytes)
    try:
        _run("mkfs.ext4", "-q", "-F", "-m", "0", str(disk.image))
        disk.mount()
        yield disk
    finally:
        disk.unmount()
        disk.image.unlink()


class Ext4:
    """An ext4 in an image file. `mount` and `unmount` as often as a test likes."""

    def __init__(self, directory: Path, image: Path) -> None:
        self.directory = directory
        self.image = image

    def mount(self) -> None:
        """Mounting replays the journal, as after a power failure."""
        _mount(self.directory, "-o", "loop,errors=remount-ro", str(self.image))

    def unmount(self) -> None:
        if self.directory.is_mount():
            _unmount(self.directory)

    def check(self) -> None:
        """Repair what can be; the file system is not mounted."""
        done = subprocess.run([find("e2fsck"), "-fp", str(self.image)], capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1), done.stdout + done.stderr  # 1: errors were corrected

    def meet_an_error(self) -> None:
        """ext4 finds an error on its disk: the file system becomes read-only at once, under open files."""
        device = self.directory.stat().st_dev
        name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
        try:
            (Path("/sys/fs/ext4") / name / "trigger_fs_error").write_text("test")
        except OSError as error:
            raise MountRefused(f"this kernel's ext4 cannot be told to meet an error: {error}") from None

    def lose_power(self) -> None:
        """Nothing reaches the image any more: what was not written yet is lost (EXT4_IOC_SHUTDOWN, no log flush)."""
        descriptor = os.open(self.directory, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, _WITHOUT_FLUSH.to_bytes(4, sys.byteorder))
        finally:
            os.close(descriptor)


def remount_read_only(directory: Path) -> None:
    """As an administrator does it; refused by the kernel while files are open for writing."""
    _run("mount", "-o", "remount,ro", str(directory))


def fill(path: Path) -> None:
    """Take all the space that is left on the file system of `path`, with a file there."""
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(MIB)):
            pass


def _mount(directory: Path, *options: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0:
        raise MountRefused("mounting needs root")
    _run("mount", *options, str(directory))


def _unmount(directory: Path) -> None:
    """Lazily, should a process still be there: nothing of a test that failed stays mounted."""
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

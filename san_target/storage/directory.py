"""What a pool asks of the file system: a few files by name, and the blocks in some of them.

Names are relative to the pool's directory and contain at most one "/". Errors are OSErrors, as the system says them.
`memory_directory.MemoryDirectory` is the twin for simulation.
"""

import errno
import fcntl
import os
from pathlib import Path
from typing import Protocol

from san_target.storage import records
from san_target.storage.blocks_file import SparseFile
from san_target.storage.interface import BlocksFile
from san_target.storage.records import PoolError

LOCK: str = "pool.lock"
VOLUMES: str = "volumes"


class PoolFile(BlocksFile, Protocol):
    """A file of blocks in a pool."""

    def allocated_bytes(self) -> int:
        """The disk space that it takes."""
        ...

    def damage(self) -> str:
        """What others did to the file while it was open, and what to do about it; "" = nothing."""
        ...


class PoolDirectory(Protocol):
    """The directory of one pool."""

    def make(self) -> None:
        """Make it, and the directory of the volumes in it, where they are missing."""
        ...

    def lock(self) -> None:
        """Keep other processes out until `unlock`, or the end of this one. PoolError: another one has it."""
        ...

    def unlock(self) -> None:
        """Harmless where nothing is locked."""
        ...

    def exists(self, name: str) -> bool: ...

    def names(self, suffix: str) -> list[str]:
        """The files beside the volumes that end so ("" = all): "volumes/...", sorted."""
        ...

    def read(self, name: str) -> bytes: ...

    def write_durably(self, name: str, data: bytes) -> None:
        """Replace the contents of a small file at once and for good; an OSError leaves the old contents."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Durable after `sync`."""
        ...

    def remove(self, name: str) -> None:
        """Durable after `sync`. Harmless where it does not exist."""
        ...

    def sync(self, directory: str = "") -> None:
        """Make creations, renames and removals in "" or "volumes" durable."""
        ...

    def has_data(self, name: str) -> bool:
        """Was anything ever written to the file (and not given back)?"""
        ...

    def create_file(self, name: str, size_bytes: int) -> PoolFile:
        """A new file, all hole, durable once its directory is. FileExistsError."""
        ...

    def open_file(self, name: str) -> PoolFile: ...

    def space(self) -> tuple[int, int]:
        """(total_bytes, free_bytes) of the file system, as far as this process may use it."""
        ...


class DiskDirectory:
    """A directory of the operating system."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock_descriptor = -1

    def make(self) -> None:
        (self._path / VOLUMES).mkdir(mode=0o700, parents=True, exist_ok=True)

    def lock(self) -> None:
        descriptor = os.open(self._path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise PoolError(
                f"the pool {self._path} is in use by process {holder}; stop that member first, or give this one "
                "its own directory"
            ) from None
        self._lock_descriptor = descriptor
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):  # only the message above misses it
                raise

    def unlock(self) -> None:
        if self._lock_descriptor >= 0:
            os.close(self._lock_descriptor)  # which gives the lock back
            self._lock_descriptor = -1

    def exists(self, name: str) -> bool:
        return (self._path / name).exists()

    def names(self, suffix: str) -> list[str]:
        found = (self._path / VOLUMES).iterdir()
        return sorted(f"{VOLUMES}/{path.name}" for path in found if path.name.endswith(suffix))

    def read(self, name: str) -> bytes:
        return (self._path / name).read_bytes()

    def write_durably(self, name: str, data: bytes) -> None:
        records.write_durably(self._path / name, data)

    def rename(self, old: str, new: str) -> None:
        os.replace(self._path / old, self._path / new)

    def remove(self, name: str) -> None:
        (self._path / name).unlink(missing_ok=True)

    def sync(self, directory: str = "") -> None:
        records.sync_directory(self._path / directory)

    def has_data(self, name: str) -> bool:
        return (self._path / name).stat().st_blocks > 0

    def create_file(self, name: str, size_bytes: int) -> PoolFile:
        return SparseFile.create(self._path / name, size_bytes)

    def open_file(self, name: str) -> PoolFile:
        return SparseFile(self._path / name)

    def space(self) -> tuple[int, int]:
        status = os.statvfs(self._path)
        return status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize

"""What a volume asks of the file that keeps its blocks, and how such a file fails.

One contract, several implementations: `blocks_file.SparseFile` (a real file), `memory.MemoryFile` (simulation),
`faulty.FaultyFile` and `checked.CheckedFile` (wrappers). Offsets and lengths are in bytes; a range outside
[0, size_bytes) is a caller's bug. The `try_` calls belong to the event loop and never wait; all others may block and
belong to a thread. Callers keep overlapping calls apart (`volume.range_locks`).
"""

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from typing_extensions import Buffer


class StorageError(Exception):
    """Base of everything the disks below can do to a request."""


class StorageFull(StorageError):
    """No space is left (ENOSPC, EDQUOT). Some bytes of the request may have been written."""


class StorageReadOnly(StorageError):
    """The file system is, or became, read-only (EROFS)."""


class StorageFault(StorageError):
    """The disk reported an error, or the file has failed before; `offset_bytes` is the first byte concerned."""

    def __init__(self, offset_bytes: int, message: str, writing: bool) -> None:
        super().__init__(message)
        self.offset_bytes = offset_bytes
        self.writing = writing


class FileExtent(NamedTuple):
    """A run of bytes that is all data, or all hole (reads as zeros and takes no space)."""

    offset_bytes: int
    length_bytes: int
    is_data: bool


class BlocksFile(Protocol):
    """A sparse run of bytes on some disk."""

    @property
    def size_bytes(self) -> int: ...

    @property
    def failed(self) -> bool:
        """True once a flush has failed: nothing is served any more until the file is opened again."""
        ...

    def try_read_into(self, offset_bytes: int, into: memoryview) -> bool:
        """Fill `into` (a view of bytes) without waiting, or return False with `into` undefined. Never raises."""
        ...

    def try_view(self, offset_bytes: int, length_bytes: int) -> memoryview | None:
        """The bytes themselves, read-only, for a system call and at once: they show every later change. Never raises.

        None: not all of them are cached, or this file does not show its bytes.
        """
        ...

    def try_write(self, offset_bytes: int, data: "Buffer") -> int:
        """Write without waiting; the number of bytes written, from the front. Never raises.

        Fewer than all of them mean "would wait" or "failed": `write` finds out which.
        """
        ...

    def read_into(self, offset_bytes: int, into: memoryview) -> None: ...

    def read(self, offset_bytes: int, length_bytes: int) -> bytearray: ...

    def write(self, offset_bytes: int, data: "Buffer", durable: bool = False) -> None:
        """Write all of `data`; `durable`: on stable storage before this returns."""
        ...

    def flush(self) -> None:
        """All writes, punches and size changes that returned before this call are on stable storage.

        A failure is for ever: the kernel marks the pages it could not write as clean, so that a second flush would
        succeed without them. The file refuses everything from then on.
        """
        ...

    def punch(self, offset_bytes: int, length_bytes: int) -> None:
        """The range reads as zeros afterwards; whole file-system blocks in it give their space back."""
        ...

    def reserve(self, offset_bytes: int, length_bytes: int) -> None:
        """Allocate space, so that a write to the range cannot find the disk full. Contents stay as they are.

        Does nothing where the file system cannot reserve.
        """
        ...

    def extents(
        self, offset_bytes: int, length_bytes: int, granularity_bytes: int, extents_max: int
    ) -> list[FileExtent]:
        """The first `extents_max` extents of the range, gap-free from its start.

        Offset and length are multiples of the granularity; a unit that holds any data counts as data.
        """
        ...

    def prefetch(self, offset_bytes: int, length_bytes: int) -> None:
        """Ask for the range to be cached; a hint."""
        ...

    def resize(self, size_bytes: int) -> None:
        """Cut the file (the cut bytes are gone), or grow it by a hole. Durable after the next flush."""
        ...

    def fail(self, reason: str) -> None:
        """Refuse everything from now on, as after a failed flush."""
        ...

    def close(self) -> None: ...

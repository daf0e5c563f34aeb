"""A real sparse file: one descriptor, plain system calls.

The hot calls `try_read_into` and `try_write` use RWF_NOWAIT, by which the kernel refuses what is not in the page cache.
Not every file system knows it. On tmpfs nothing ever waits, so all goes plainly. ext4 knows it for reads only: there,
and wherever a kind of call is refused, the refusal is remembered and that kind of call goes plainly from then on. It
can wait behind a busy disk, so it is timed: after a slow one, the threads get all such calls for several times as
long. A write that covers part of a page may first have to read the page; it goes plainly only if the pages at its
edges are cached.
"""

import ctypes
import errno
import os
from time import monotonic_ns
from typing import TYPE_CHECKING, Final, NoReturn

from san_target.storage.interface import FileExtent, StorageError, StorageFault, StorageFull, StorageReadOnly
from san_target.storage.mapping import Mapping

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typing_extensions import Buffer

PAGE_BYTES: Final = 4096
_SLOW_CALL_NS: Final = 20_000_000
_PAUSE_PER_SLOW_CALL: Final = 4

# linux/falloc.h
_KEEP_SIZE: Final = 1
_PUNCH_HOLE: Final = 2

_UNSUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_ZEROS: Final = bytes(1 << 20)

# linux/magic.h: tmpfs, ramfs
_IN_MEMORY: Final = frozenset({0x01021994, 0x858458F6})

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = getattr(_libc, "fallocate64", None) or _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_fallocate.restype = ctypes.c_int


def _allocate(descriptor: int, mode: int, offset_bytes: int, length_bytes: int) -> None:
    """fallocate(2), which Python knows without a mode only. Raises OSError."""
    while _fallocate(descriptor, mode, offset_bytes, length_bytes) != 0:
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


def _is_in_memory(descriptor: int) -> bool:
    """Does the file lie on a file system without a disk? struct statfs begins with the type, a long."""
    status = ctypes.create_string_buffer(512)
    if _libc.fstatfs(descriptor, status) != 0:
        return False
    return ctypes.c_ulong.from_buffer(status).value & 0xFFFFFFFF in _IN_MEMORY


class SparseFile:
    """Blocks in one file. Create it with `create`, or open what is there with `SparseFile(path)`."""

    __slots__ = (
        "_descriptor",
        "_failure",
        "_hot_descriptor",
        "_hot_flags",
        "_is_mappable",
        "_mapping",
        "_plain_reads",
        "_plain_writes",
        "_resume_ns",
        "path",
        "size_bytes",
    )

    def __init__(self, path: "Path") -> None:
        """Raises OSError if the file is missing, or cannot be opened for writing."""
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        # A failed or closed file has no hot descriptor: the hot calls then fail in the kernel (EBADF), for free.
        self._hot_descriptor = self._descriptor
        self.size_bytes = os.fstat(self._descriptor).st_size
        self._hot_flags = 0 if _is_in_memory(self._descriptor) else os.RWF_NOWAIT
        self._plain_reads = False
        self._plain_writes = False
        self._resume_ns = 0
        self._failure = ""
        self._mapping: Mapping | None = None
        self._is_mappable = True

    @classmethod
    def create(cls, path: "Path", size_bytes: int) -> "SparseFile":
        """A new, empty (all hole), durable file; the caller makes its directory durable. FileExistsError, OSError."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, size_bytes)
            os.fsync(descriptor)
        except OSError:
            os.unlink(path)  # nothing is left of what cannot be made (EFBIG, ENOSPC)
            raise
        finally:
            os.close(descriptor)
        return cls(path)

    @property
    def failed(self) -> bool:
        return bool(self._failure)

    # The hot path ----------------------------------------------------------------------------------------------------

    def try_read_into(self, offset_bytes: int, into: memoryview) -> bool:
        if self._plain_reads:
            return self._try_read_plainly(offset_bytes, into)
        try:
            return os.preadv(self._hot_descriptor, [into], offset_bytes, self._hot_flags) == len(into)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                self._plain_reads = True
                return self._try_read_plainly(offset_bytes, into)
            return False

    def try_view(self, offset_bytes: int, length_bytes: int) -> memoryview | None:
        mapping = self._mapping
        if mapping is None or mapping.size_bytes != self.size_bytes:
            if self._hot_descriptor < 0 or not self._is_mappable:
                return None
            try:
                mapping = self._mapping = Mapping(self._descriptor, self.size_bytes)
            except (OSError, ValueError):
                self._is_mappable = False  # an address space that is limited, a file system that maps nothing
                return None
        return mapping.view(offset_bytes, length_bytes)

    def try_write(self, offset_bytes: int, data: "Buffer") -> int:
        if self._plain_writes:
            return self._try_write_plainly(offset_bytes, data)
        try:
            return os.pwritev(self._hot_descriptor, [data], offset_bytes, self._hot_flags)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                self._plain_writes = True
                return self._try_write_plainly(offset_bytes, data)
            return 0

    def _try_read_plainly(self, offset_bytes: int, into: memoryview) -> bool:
        started_ns = monotonic_ns()
        if started_ns < self._resume_ns:
            return False
        try:
            complete = os.preadv(self._hot_descriptor, [into], offset_bytes) == len(into)
        except OSError:
            return False
        self._pause_if_slow(started_ns)
        return complete

    def _try_write_plainly(self, offset_bytes: int, data: "Buffer") -> int:
        started_ns = monotonic_ns()
        if started_ns < self._resume_ns:
            return 0
        if not self._plain_reads:
            end_bytes = offset_bytes + len(memoryview(data))
            if (offset_bytes | end_bytes) % PAGE_BYTES and not self._edges_are_cached(offset_bytes, end_bytes):
                return 0
        try:
            written = os.pwritev(self._hot_descriptor, [data], offset_bytes)
        except OSError:
            return 0
        self._pause_if_slow(started_ns)
        return written

    def _pause_if_slow(self, started_ns: int) -> None:
        finished_ns = monotonic_ns()
        if finished_ns - started_ns > _SLOW_CALL_NS:
            self._resume_ns = finished_ns + _PAUSE_PER_SLOW_CALL * (finished_ns - started_ns)

    def _edges_are_cached(self, offset_bytes: int, end_bytes: int) -> bool:
        byte = memoryview(bytearray(1))
        if offset_bytes % PAGE_BYTES and not self.try_read_into(offset_bytes, byte):
            return False
        return end_bytes % PAGE_BYTES == 0 or self.try_read_into(end_bytes - 1, byte)

    # Blocking calls, for threads -------------------------------------------------------------------------------------

    def read(self, offset_bytes: int, length_bytes: int) -> bytearray:
        data = bytearray(length_bytes)
        self.read_into(offset_bytes, memoryview(data))
        return data

    def read_into(self, offset_bytes: int, into: memoryview) -> None:
        self._refuse_if_failed(offset_bytes, writing=False)
        rest = into
        while rest:
            try:
                count = os.preadv(self._descriptor, [rest], offset_bytes)
            except OSError as error:
                self._raise(error, offset_bytes, writing=False)
            if count == 0:
                raise StorageFault(offset_bytes, f"{self.path} ends at byte {offset_bytes}: it was cut", False)
            offset_bytes += count
            rest = rest[count:]

    def write(self, offset_bytes: int, data: "Buffer", durable: bool = False) -> None:
        self._refuse_if_failed(offset_bytes, writing=True)
        flags = os.RWF_DSYNC if durable else 0
        rest = memoryview(data).cast("B")
        while rest:
            try:
                count = os.pwritev(self._descriptor, [rest], offset_bytes, flags)
            except OSError as error:
                if durable:
                    self._fail_unless_nothing_was_written(error, offset_bytes, rest)
                self._raise(error, offset_bytes, writing=True)
            offset_bytes += count
            rest = rest[count:]

    def _fail_unless_nothing_was_written(self, error: OSError, offset_bytes: int, rest: memoryview) -> None:
        """A durable write fails in its write half (harmless) or in its sync half, which is a failed flush.

        Without the sync half, the same write must fail again if the write half was to blame.
        """
        if error.errno == errno.EROFS:
            return
        if error.errno in _FULL:
            try:
                os.pwritev(self._descriptor, [rest], offset_bytes)
            except OSError as again:
                if again.errno in _FULL:
                    return
        self.fail(f"a durable write failed ({error.strerror})")

    def flush(self) -> None:
        self._refuse_if_failed(0, writing=True)
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            self.fail(f"fdatasync failed ({error.strerror})")
            self._refuse_if_failed(0, writing=True)

    def punch(self, offset_bytes: int, length_bytes: int) -> None:
        # The kernel zeroes the parts of file-system blocks at the edges itself, see fallocate(2).
        self._refuse_if_failed(offset_bytes, writing=True)
        try:
            _allocate(self._descriptor, _PUNCH_HOLE | _KEEP_SIZE, offset_bytes, length_bytes)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                self._raise(error, offset_bytes, writing=True)
            for start in range(offset_bytes, offset_bytes + length_bytes, len(_ZEROS)):
                self.write(start, memoryview(_ZEROS)[: offset_bytes + length_bytes - start])

    def reserve(self, offset_bytes: int, length_bytes: int) -> None:
        self._refuse_if_failed(offset_bytes, writing=True)
        try:
            _allocate(self._descriptor, _KEEP_SIZE, offset_bytes, length_bytes)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                self._raise(error, offset_bytes, writing=True)

    def extents(
        self, offset_bytes: int, length_bytes: int, granularity_bytes: int, extents_max: int
    ) -> list[FileExtent]:
        self._refuse_if_failed(offset_bytes, writing=False)
        return collect_extents(
            self._data_runs(offset_bytes, offset_bytes + length_bytes),
            offset_bytes,
            offset_bytes + length_bytes,
            granularity_bytes,
            extents_max,
        )

    def _data_runs(self, start: int, end: int) -> "Iterator[tuple[int, int]]":
        """(start, end) of the data in [start, end), in order."""
        while start < end:
            try:
                data_start = os.lseek(self._descriptor, start, os.SEEK_DATA)
                data_end = os.lseek(self._descriptor, data_start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # no data up to the end of the file
                    return
                self._raise(error, start, writing=False)
            if data_start >= end:
                return
            yield data_start, min(data_end, end)
            start = data_end

    def prefetch(self, offset_bytes: int, length_bytes: int) -> None:
        self._refuse_if_failed(offset_bytes, writing=False)
        os.posix_fadvise(self._descriptor, offset_bytes, length_bytes, os.POSIX_FADV_WILLNEED)

    def resize(self, size_bytes: int) -> None:
        self._refuse_if_failed(size_bytes, writing=True)
        self._mapping = None
        try:
            os.ftruncate(self._descriptor, size_bytes)
        except OSError as error:
            self._raise(error, size_bytes, writing=True)
        self.size_bytes = size_bytes

    def allocated_bytes(self) -> int:
        """The disk space that the file takes."""
        return os.fstat(self._descriptor).st_blocks * 512

    def damage(self) -> str:
        """What others did to the file while it was open: removed, moved, replaced or cut; "" = nothing."""
        found = os.fstat(self._descriptor)
        try:
            is_in_place = os.path.samestat(found, os.stat(self.path))
        except OSError:
            is_in_place = False
        if not is_in_place:
            open_file = f"/proc/{os.getpid()}/fd/{self._descriptor}"
            return (
                f"{self.path} was removed or moved while it was in use, and what is written to it is lost when this "
                f"member ends: move it back, or, with its hosts at rest, save it: cp --sparse=always {open_file} COPY"
            )
        if found.st_size < self.size_bytes:
            return (
                f"{self.path} was cut to {found.st_size} bytes while it was in use: its end is lost; "
                f"restore it from a backup with this member stopped"
            )
        return ""

    def fail(self, reason: str) -> None:
        if not self._failure:
            self._failure = reason
        self._hot_descriptor = -1
        self._mapping = None

    def close(self) -> None:
        """No other call may be under way. Closing twice is harmless."""
        if self._descriptor >= 0:
            self.fail("it is closed")
            os.close(self._descriptor)
            self._descriptor = -1

    def _refuse_if_failed(self, offset_bytes: int, writing: bool) -> None:
        if self._failure:
            raise StorageFault(
                offset_bytes,
                f"{self.path} is out of service since {self._failure}; check the disk, then restart this member",
                writing,
            )

    def _raise(self, error: OSError, offset_bytes: int, writing: bool) -> NoReturn:
        raise storage_error(error, str(self.path), offset_bytes, writing) from error


def storage_error(error: OSError, what: str, offset_bytes: int, writing: bool) -> StorageError:
    """The meaning of an OSError of reading or writing `what`."""
    if error.errno in _FULL:
        return StorageFull(f"no space is left for {what} ({error.strerror})")
    if error.errno == errno.EROFS:
        return StorageReadOnly(f"{what} lies on a file system that is read-only now")
    doing = "writing" if writing else "reading"
    return StorageFault(offset_bytes, f"{doing} {what} at byte {offset_bytes} failed ({error.strerror})", writing)


def collect_extents(
    data_runs: "Iterator[tuple[int, int]]", start: int, end: int, granularity_bytes: int, extents_max: int
) -> list[FileExtent]:
    """Turn (start, end) runs of data into gap-free extents of [start, end), widened to the granularity."""
    extents: list[FileExtent] = []
    run_start = run_end = start  # the data run that is not yet in `extents`
    done = start
    for data_start, data_end in data_runs:
        wide_start = max(start, data_start // granularity_bytes * granularity_bytes)
        wide_end = min(end, -(-data_end // granularity_bytes) * granularity_bytes)
        if wide_start <= run_end:
            run_end = max(run_end, wide_end)
            continue
        done = _append(extents, done, run_start, run_end)
        if len(extents) >= extents_max:
            return extents[:extents_max]
        run_start, run_end = wide_start, wide_end
    done = _append(extents, done, run_start, run_end)
    if done < end:
        extents.append(FileExtent(done, end - done, False))
    return extents[:extents_max]


def _append(extents: list[FileExtent], done: int, run_start: int, run_end: int) -> int:
    """Add the hole [done, run_start) and the data [run_start, run_end), as far as they are not empty."""
    if run_start == run_end:
        return done
    if done < run_start:
        extents.append(FileExtent(done, run_start - done, False))
    extents.append(FileExtent(run_start, run_end - run_start, True))
    return run_end

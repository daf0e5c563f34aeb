"""Blocks in memory, on a disk that can lose power: for simulation and for tests of crashes.

The model of a power failure: what was written after the last flush (and not durably) may be there or not, each
512-byte sector by itself, in any of the versions it had since then. Punches and size changes are writes, too. After a
flush that failed, the kernel takes the pages that it could not write for clean: no later flush makes them durable.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from san_target.storage.blocks_file import collect_extents
from san_target.storage.interface import FileExtent, StorageFault, StorageFull

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Buffer

PAGE_BYTES: Final = 4096
SECTOR_BYTES: Final = 512
_VERSIONS_MAX: Final = 8
_HOLE: Final = bytes(PAGE_BYTES)


class PowerLost(Exception):
    """The simulated machine stopped in the middle of a call."""


class MemoryDisk:
    """What several files share: the space, and the power. sector_bytes: what is written as a whole or not at all.

    before_step: called before every change reaches a disk, and again before it becomes durable, with a name for the
    step; raises PowerLost where the simulation wants the machine to stop, OSError before a flush that is to fail.
    """

    def __init__(
        self, capacity_bytes: int = 1 << 40, before_step: "Callable[[str], None]" = lambda _step: None
    ) -> None:
        self.capacity_bytes = capacity_bytes
        self.before_step = before_step
        self.sector_bytes = SECTOR_BYTES
        self.pages_used = 0

    def free_bytes(self) -> int:
        return self.capacity_bytes - self.pages_used * PAGE_BYTES


class MemoryFile:
    """A BlocksFile. `wait_free` decides how much of a `try_` call is done at once: (offset, length) -> bytes."""

    def __init__(
        self,
        size_bytes: int,
        disk: MemoryDisk | None = None,
        wait_free: "Callable[[int, int], int]" = lambda _offset, length: length,
    ) -> None:
        self.size_bytes = size_bytes
        self.disk = disk or MemoryDisk()
        self.wait_free = wait_free
        self._pages: dict[int, bytes] = {}
        # For each page changed since the last flush: its versions since then, the durable one first (None = hole).
        self._versions: dict[int, list[bytes | None]] = {}
        self._taken_for_clean: dict[int, list[bytes | None]] = {}  # the same, of pages that a flush could not write
        self._durable_size_bytes = size_bytes
        self._failure = ""

    @property
    def failed(self) -> bool:
        return bool(self._failure)

    def damage(self) -> str:
        return ""

    def allocated_bytes(self) -> int:
        return len(self._pages) * PAGE_BYTES

    # Reading ----------------------------------------------------------------------------------------------------------

    def try_read_into(self, offset_bytes: int, into: memoryview) -> bool:
        if self._failure or self.wait_free(offset_bytes, len(into)) < len(into):
            return False
        self._copy_out(offset_bytes, into)
        return True

    def read_into(self, offset_bytes: int, into: memoryview) -> None:
        self._refuse_if_failed(offset_bytes, False)
        self._check(offset_bytes, len(into))
        self._copy_out(offset_bytes, into)

    def read(self, offset_bytes: int, length_bytes: int) -> bytearray:
        data = bytearray(length_bytes)
        self.read_into(offset_bytes, memoryview(data))
        return data

    def _copy_out(self, offset: int, into: memoryview) -> None:
        for page, start, end, done in _spans(offset, len(into)):
            into[done : done + end - start] = self._pages.get(page, _HOLE)[start:end]

    # Writing ----------------------------------------------------------------------------------------------------------

    def try_view(self, offset_bytes: int, length_bytes: int) -> memoryview | None:
        return None  # it has no bytes in one piece

    def try_write(self, offset_bytes: int, data: "Buffer") -> int:
        view = memoryview(data).cast("B")
        if self._failure:
            return 0
        count = min(len(view), self.wait_free(offset_bytes, len(view)))
        return self._copy_in(offset_bytes, view[:count])

    def write(self, offset_bytes: int, data: "Buffer", durable: bool = False) -> None:
        self._refuse_if_failed(offset_bytes, True)
        view = memoryview(data).cast("B")
        self._check(offset_bytes, len(view))
        self.disk.before_step("write")
        written = self._copy_in(offset_bytes, view)
        if durable:
            self.disk.before_step("sync write")
            self._settle(page for page, *_rest in _spans(offset_bytes, written))
        if written < len(view):
            raise StorageFull("the simulated disk is full")

    def _copy_in(self, offset: int, view: memoryview) -> int:
        """The number of bytes written, which is short when the disk is full."""
        for page, start, end, done in _spans(offset, len(view)):
            old = self._pages.get(page)
            if old is None and self.disk.free_bytes() < PAGE_BYTES:
                return done
            old = old or _HOLE
            self._set_page(page, old[:start] + bytes(view[done : done + end - start]) + old[end:])
        return len(view)

    def _set_page(self, page: int, data: bytes | None) -> None:
        old = self._pages.get(page)
        versions = self._versions.get(page)
        if versions is None:
            versions = self._versions[page] = self._taken_for_clean.pop(page, [old])
        versions.append(data)
        if len(versions) > _VERSIONS_MAX:
            del versions[1]
        self._place(page, data)

    def _place(self, page: int, data: bytes | None) -> None:
        self.disk.pages_used += (data is not None) - (page in self._pages)
        if data is None:
            self._pages.pop(page, None)
        else:
            self._pages[page] = data

    def _settle(self, pages: "Iterator[int]") -> None:
        for page in pages:
            self._versions.pop(page, None)

    def punch(self, offset_bytes: int, length_bytes: int) -> None:
        self._refuse_if_failed(offset_bytes, True)
        self._check(offset_bytes, length_bytes)
        self.disk.before_step("punch")
        self._punch(offset_bytes, length_bytes)

    def _punch(self, offset: int, length: int) -> None:
        first, last = offset // PAGE_BYTES, (offset + length - 1) // PAGE_BYTES
        for page in [page for page in self._pages if first <= page <= last]:
            start = max(offset, page * PAGE_BYTES) - page * PAGE_BYTES
            end = min(offset + length, (page + 1) * PAGE_BYTES) - page * PAGE_BYTES
            old = self._pages[page]
            whole = end - start == PAGE_BYTES
            self._set_page(page, None if whole else old[:start] + bytes(end - start) + old[end:])

    def reserve(self, offset_bytes: int, length_bytes: int) -> None:
        self._refuse_if_failed(offset_bytes, True)
        self._check(offset_bytes, length_bytes)
        missing = [page for page, *_rest in _spans(offset_bytes, length_bytes) if page not in self._pages]
        if len(missing) * PAGE_BYTES > self.disk.free_bytes():
            raise StorageFull("the simulated disk is full")
        for page in missing:
            self._set_page(page, _HOLE)

    def flush(self) -> None:
        self._refuse_if_failed(0, True)
        try:
            self.disk.before_step("flush")
        except OSError as error:
            self._taken_for_clean |= self._versions
            self._versions.clear()
            self.fail(f"fdatasync failed ({error.strerror})")
            self._refuse_if_failed(0, True)
        self._versions.clear()
        self._durable_size_bytes = self.size_bytes

    def resize(self, size_bytes: int) -> None:
        self._refuse_if_failed(size_bytes, True)
        self.disk.before_step("resize")
        if size_bytes < self.size_bytes:
            self._punch(size_bytes, self.size_bytes - size_bytes)
        self.size_bytes = size_bytes

    # Other ------------------------------------------------------------------------------------------------------------

    def extents(
        self, offset_bytes: int, length_bytes: int, granularity_bytes: int, extents_max: int
    ) -> list[FileExtent]:
        self._refuse_if_failed(offset_bytes, False)
        self._check(offset_bytes, length_bytes)
        end = offset_bytes + length_bytes
        runs = (
            (max(offset_bytes, page * PAGE_BYTES), min(end, (page + 1) * PAGE_BYTES))
            for page in sorted(self._pages)
            if page * PAGE_BYTES < end and offset_bytes < (page + 1) * PAGE_BYTES
        )
        return collect_extents(runs, offset_bytes, end, granularity_bytes, extents_max)

    def prefetch(self, offset_bytes: int, length_bytes: int) -> None:
        self._refuse_if_failed(offset_bytes, False)
        self._check(offset_bytes, length_bytes)

    def fail(self, reason: str) -> None:
        self._failure = self._failure or reason

    def close(self) -> None:
        self.fail("it is closed")

    def reopen(self) -> None:
        """Be open again, as for the next process: it knows of no failure."""
        self._failure = ""

    def discard(self) -> None:
        """The file was removed: it gives its space back."""
        self.fail("it is removed")
        self.disk.pages_used -= len(self._pages)
        self._pages.clear()

    def lose_power(self, choose: "Callable[[Sequence[bytes]], bytes]") -> None:
        """Become what a power failure leaves, and be open again.

        choose: picks one of the versions (oldest first) that a sector had since it was last durable.
        """
        size = self.disk.sector_bytes
        for page, versions in (self._taken_for_clean | self._versions).items():
            sectors = [
                choose([(version or _HOLE)[start : start + size] for version in versions])
                for start in range(0, PAGE_BYTES, size)
            ]
            self._place(page, b"".join(sectors))
        self._versions.clear()
        self._taken_for_clean.clear()
        self.size_bytes = self._durable_size_bytes
        self._failure = ""

    def _check(self, offset: int, length: int) -> None:
        if not 0 <= offset <= offset + length <= self.size_bytes:
            raise AssertionError(f"bytes {offset}+{length} of a file of {self.size_bytes}")

    def _refuse_if_failed(self, offset: int, writing: bool) -> None:
        if self._failure:
            raise StorageFault(offset, f"the file is out of service since {self._failure}", writing)


def _spans(offset: int, length: int) -> "Iterator[tuple[int, int, int, int]]":
    """(page number, start and end within the page, bytes done before) for each page of a range."""
    done = 0
    while done < length:
        page, start = divmod(offset + done, PAGE_BYTES)
        end = min(PAGE_BYTES, start + length - done)
        yield page, start, end, done
        done += end - start

"""A member's disk under virtual time: threads that take their time, calls that are half done, and its faults."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

from san_target.storage.memory import PAGE_BYTES, MemoryDisk, MemoryFile, PowerLost
from san_target.storage.memory_directory import MemoryDirectory
from san_target.storage.threads import SynchronousThreads

if TYPE_CHECKING:
    import random

    from tests.simulation.loop import VirtualLoop
    from tests.simulation.trace import Trace

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

CAPACITY_BYTES = 1 << 40
_HOLE = bytes(PAGE_BYTES)


class SimDisk:
    """What survives a member's processes. directory: its pool.

    delay_s      bounds of what a job of a thread takes
    slow         how many times longer it takes now
    busy         the share of calls at once that the page cache cannot serve, or only in part
    flush_fails  the next flush reports an error; has_failed: one did since the last power failure
    dies_at      how many steps on the disk are left until `on_death` is called and nothing more happens; -1 = never
    """

    def __init__(
        self, loop: VirtualLoop, random: random.Random, trace: Trace, name: str, delay_s: tuple[float, float]
    ) -> None:
        self.loop = loop
        self.random = random
        self.trace = trace
        self.name = name
        self.delay_s = delay_s
        self.slow = 1.0
        self.busy = 0.1
        self.flush_fails = False
        self.has_failed = False
        self.dies_at = -1
        self.on_death: Callable[[], None] = lambda: None
        self.disk = MemoryDisk(CAPACITY_BYTES, before_step=self._before_step)
        self.directory = MemoryDirectory(self.disk, name, self._make_file)

    def _make_file(self, size_bytes: int, disk: MemoryDisk) -> MemoryFile:
        return MemoryFile(size_bytes, disk, self._wait_free)

    def _wait_free(self, offset: int, length: int) -> int:
        """How much of a call at once the page cache serves: all, or whole pages, or nothing."""
        if self.slow == 1.0 and self.random.random() >= self.busy:
            return length
        pages = (offset + length - 1) // PAGE_BYTES - offset // PAGE_BYTES
        if pages == 0 or self.random.random() < 0.3:
            return 0
        return (offset // PAGE_BYTES + self.random.randint(1, pages)) * PAGE_BYTES - offset

    def _before_step(self, step: str) -> None:
        if self.dies_at >= 0:
            if self.dies_at == 0:
                self.on_death()
                raise PowerLost
            self.dies_at -= 1
        if step == "flush" and self.flush_fails:
            self.flush_fails, self.has_failed = False, True
            self.trace.note(f"{self.name}: a flush fails")
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def fill(self) -> None:
        """Others use all the space there is."""
        self.disk.capacity_bytes = self.disk.pages_used * PAGE_BYTES

    def have_space(self) -> None:
        self.disk.capacity_bytes = CAPACITY_BYTES

    def job_s(self) -> float:
        low, high = self.delay_s
        return (low + (high - low) * self.random.random()) * self.slow


class SimThreads(SynchronousThreads):
    """`Threads` of one process. A job takes effect at some instant before it ends, a read or write in two halves.

    The halves meet anywhere, also inside a block: two calls for the same bytes that are not kept apart are seen to mix.
    When the process dies in between, the kernel still completes a page.
    """

    def __init__(self, disk: SimDisk) -> None:
        super().__init__()
        self._disk = disk
        self._half_done: dict[HalfWrite, None] = {}

    def die(self) -> None:
        """The process is killed."""
        for write in self._half_done:
            write.complete_page()
        self._half_done.clear()

    def start(self, function: Callable[[*Arguments], T], *arguments: *Arguments) -> asyncio.Future[T]:
        disk = self._disk
        loop = disk.loop
        began_s = loop.time()
        future: asyncio.Future[T] = loop.create_future()
        halves = _in_halves(function, arguments, disk.random)

        def first() -> None:
            result: Any
            try:
                result = halves.first()
                if isinstance(halves, HalfWrite):
                    self._half_done[halves] = None
            except Exception as error:
                result = error
            loop.call_later(disk.job_s() / 3, second, result)

        def second(result: Any) -> None:
            try:
                if not isinstance(result, Exception):
                    halves.second()
            except Exception as error:
                result = error
            finally:
                self._half_done.pop(halves, None)  # type: ignore[call-overload]
            loop.call_later(disk.job_s() / 3, tell, result)

        def tell(result: Any) -> None:
            self.waits.add(began_s, future)
            if future.cancelled():
                return
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

        loop.call_later(disk.job_s() / 3, first)
        return future


class Whole:
    """A call at one instant."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._function = function
        self._arguments = arguments

    def first(self) -> Any:
        return self._function(*self._arguments)

    def second(self) -> None:
        pass


class HalfRead:
    """A read of which one part is done later than the other."""

    def __init__(self, random: random.Random, file: MemoryFile, offset: int, length: int) -> None:
        self._file = file
        self._offset = offset
        self._data = bytearray(length)
        self._middle = random.randrange(length)

    def first(self) -> bytearray:
        self._file.read_into(self._offset, memoryview(self._data)[: self._middle])
        return self._data

    def second(self) -> None:
        self._file.read_into(self._offset + self._middle, memoryview(self._data)[self._middle :])


class HalfWrite:
    """A write of which one part is done later than the other."""

    def __init__(self, random: random.Random, file: MemoryFile, offset: int, data: Any, durable: bool = False) -> None:
        self._file = file
        self._offset = offset
        self._data = memoryview(data).cast("B")
        self._middle = random.randrange(len(self._data))
        self._durable = durable
        self._before = _HOLE
        self._is_whole = False

    def first(self) -> None:
        self._before = self._file._pages.get((self._offset + self._middle) // PAGE_BYTES, _HOLE)
        self._file.write(self._offset, self._data[: self._middle])

    def second(self) -> None:
        self._file.write(self._offset + self._middle, self._data[self._middle :])
        self._is_whole = True
        self._page_was_locked()
        if self._durable:
            self._file.disk.before_step("sync write")
            first, last = self._offset // PAGE_BYTES, (self._offset + len(self._data) - 1) // PAGE_BYTES
            self._file._settle(iter(range(first, last + 1)))

    def complete_page(self) -> None:
        if self._is_whole:
            return
        rest = -(self._offset + self._middle) % PAGE_BYTES
        self._file._copy_in(self._offset + self._middle, self._data[self._middle : self._middle + rest])
        self._page_was_locked()

    def _page_was_locked(self) -> None:
        """A kernel does not write a page to the disk while a call copies to it: the first part of this call's bytes in
        it never gets there without the rest. (Others may have written to the page meanwhile, or flushed it.)"""
        page, end = divmod(self._offset + self._middle, PAGE_BYTES)
        start = max(0, end - self._middle)
        versions = self._file._versions.get(page)
        if start == end or versions is None:
            return
        half = bytes(self._data[self._middle - (end - start) : self._middle])
        for index, version in enumerate(versions[:-1]):
            if version is not None and version[start:end] == half:
                versions[index] = version[:start] + self._before[start:end] + version[end:]


def _in_halves(
    function: Callable[..., Any], arguments: tuple[Any, ...], random: random.Random
) -> Whole | HalfRead | HalfWrite:
    file = getattr(function, "__self__", None)
    if isinstance(file, MemoryFile) and function.__name__ == "read":
        return HalfRead(random, file, *arguments)
    if isinstance(file, MemoryFile) and function.__name__ == "write":
        return HalfWrite(random, file, *arguments)
    return Whole(function, arguments)


__all__ = ["SimDisk", "SimThreads"]

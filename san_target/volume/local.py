"""The part of a volume that lies in this member's pool: blocks in a file, under range locks.

What is done at once, inside one call of the event loop, needs no lock, but must not run into one. Everything else is
a job for a thread, which holds a range lock until the job has ended, even if its awaiter is gone: shared for reads,
exclusive for changes. So a thread never sees, nor leaves, half of somebody else's write.

A buffer given to a call must stay unchanged until the call ends; if the call is cancelled, until `drain` returns.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar, TypeVarTuple

from san_target.storage.interface import StorageError, StorageFault, StorageFull, StorageReadOnly
from san_target.storage.journal import ATOMIC_BLOCKS_MAX
from san_target.volume.device import (
    Extent,
    MediumError,
    OutOfSpace,
    Unavailable,
    VolumeError,
    WriteProtected,
)
from san_target.volume.file_jobs import (
    clear,
    compare_and_write,
    either,
    erase,
    fill,
    first_difference,
    or_write,
    overwrite,
)
from san_target.volume.origin import CHECK
from san_target.volume.range_locks import RangeLock, RangeLocks

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from san_target.storage.interface import BlocksFile
    from san_target.storage.journal import Journal
    from san_target.storage.threads import Threads
    from san_target.volume.mirror import Mirror
    from san_target.volume.router import Router

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

_INLINE_BYTES_MAX: Final = 1 << 16
HANDOVER_S: Final = 5.0


class LocalBlocks:
    """A BlockDevice over a file. `router` tells which blocks are served; whoever changes the map replaces it."""

    def __init__(
        self,
        volume_id: str,
        block_size: int,
        blocks: int,
        file: "BlocksFile",
        router: "Router",
        threads: "Threads",
        journal: "Journal | None",
        write_through: bool,
    ) -> None:
        self.block_size: Final = block_size
        self.blocks = blocks
        self.router = router
        self.locks: Final = RangeLocks()
        self._volume_id = volume_id
        self._file = file
        self._threads = threads
        self._journal = journal
        self._write_through = write_through
        self._retired = False
        # The piece that is moving away, if one is. Whoever sets it looks after the copies of the router's state too.
        self.mirror: Mirror | None = None
        self._handed_over: dict[tuple[int, int], tuple[RangeLock, asyncio.TimerHandle]] = {}
        # Changes that ended and may still be in the page cache only; how many of them the last good flush covered.
        self._changes = 1
        self._changes_flushed = 0
        self._refusal = ""
        self._changes_before_refusal = 0
        self._flush_running: asyncio.Task[None] | None = None
        self._flush_next: asyncio.Task[None] | None = None

    # At once ----------------------------------------------------------------------------------------------------------

    def try_read_into(self, lba: int, blocks: int, into: memoryview) -> bool:
        if not self.router.serves(lba, blocks) or self.locks.conflicts(lba, blocks, False):
            return False
        if self.mirror is not None and self.mirror.stops(lba, blocks):
            return False
        return self._file.try_read_into(lba * self.block_size, into)

    def try_view(self, lba: int, blocks: int) -> memoryview | None:
        if not self.router.serves(lba, blocks) or self.locks.conflicts(lba, blocks, False):
            return None
        if self.mirror is not None and self.mirror.stops(lba, blocks):
            return None
        return self._file.try_view(lba * self.block_size, blocks * self.block_size)

    def reread(self, lba: int, blocks: int, into: memoryview) -> None:
        # On the event loop: the pages were cached when they were shown, microseconds ago.
        try:
            self._file.read_into(lba * self.block_size, into)
        except StorageError as error:
            raise self._meaning(error) from error

    def try_write(self, lba: int, blocks: int, data: "Buffer") -> bool:
        if lba + blocks > self.blocks:
            raise AssertionError(f"a write to blocks {lba}+{blocks} of {self.blocks}")
        if self._write_through or not (self.router.whole or self.router.serves(lba, blocks)):
            return False
        if not self.locks.idle and self.locks.conflicts(lba, blocks, True):
            return False
        if self.mirror is not None and self.mirror.wants(lba, lba + blocks):
            return False
        written = self._file.try_write(lba * self.block_size, data)
        if written == blocks * self.block_size:
            self._changes += 1
            return True
        if written:
            self._changes += 1
            self._hand_over(lba, blocks)
        return False

    def _hand_over(self, lba: int, blocks: int) -> None:
        """Keep everybody away from a half-written range until `write` writes it whole.

        Without this, another write could come between the two, and readers would see the first, the second, and the
        first again. A caller who never calls `write` (it says then that the blocks are undefined) gives up the range.
        """
        lock = self.locks.try_acquire(lba, blocks, True)
        if lock is None:
            raise AssertionError(f"blocks {lba}+{blocks} were locked during a write at once")
        key = (lba, blocks)
        timer = asyncio.get_running_loop().call_later(HANDOVER_S, self._give_up, key)
        self._handed_over[key] = (lock, timer)

    def _give_up(self, key: tuple[int, int]) -> None:
        lock, _timer = self._handed_over.pop(key)
        self.locks.release(lock)

    def _take_over(self, lba: int, blocks: int) -> RangeLock | None:
        """The lock that `_hand_over` left. Any write of exactly the range may take it: it overwrites all of it."""
        handed_over = self._handed_over.pop((lba, blocks), None)
        if handed_over is None:
            return None
        lock, timer = handed_over
        timer.cancel()
        return lock

    # Locks and jobs ---------------------------------------------------------------------------------------------------

    async def _lock(self, lba: int, blocks: int, exclusive: bool, served: bool = True) -> RangeLock:
        """Wait for the range; then make sure that it is (still) served, and that whoever asked still may.

        served: False for the work of migrations on blocks that are not.
        """
        lock = await self.locks.acquire(lba, blocks, exclusive)
        if self._retired:
            self.locks.release(lock)
            raise Unavailable("the volume is out of service")
        if lba + blocks > self.blocks:
            self.locks.release(lock)
            raise Unavailable(f"blocks {lba}+{blocks}: the volume was shrunk to {self.blocks} blocks")
        if served and not self.router.serves(lba, blocks):
            self.locks.release(lock)
            raise self.router.refusal(lba, blocks)
        if served and self.mirror is not None and self.mirror.stops(lba, blocks):
            self.locks.release(lock)
            raise self.mirror.refusal()
        check = CHECK.get()
        if check is not None:
            try:
                check()
            except BaseException:
                self.locks.release(lock)
                raise
        return lock

    async def _job(
        self,
        lock: RangeLock,
        slow: bool,
        changes: bool,
        function: Callable[[*Arguments], T],
        *arguments: *Arguments,
        data: "Buffer | None" = None,
        is_served: bool = True,
    ) -> T:
        """Run in a thread, and release the lock when it has ended, however that was.

        changes: the job, if it succeeds, may leave data that a flush has to care for. data: what all the blocks locked
        hold afterwards, where that is known. is_served: it is a request for blocks of this member's, which whoever they
        are moving to must hear of.
        """
        start = self._threads.start_slow if slow else self._threads.start
        mirror = self.mirror
        future: asyncio.Future[T]
        try:
            if mirror is not None and is_served and lock.exclusive and mirror.wants(lock.start, lock.end):
                both = self._both(mirror, lock, data, start, function, *arguments)
                future = asyncio.get_running_loop().create_task(both)
            else:
                future = start(function, *arguments)
        except BaseException:
            self.locks.release(lock)
            raise
        # The change is counted before anybody hears that it ended: callbacks run in the order they were added.
        if future.done():
            self._ended(lock, changes, future)
        else:
            future.add_done_callback(partial(self._ended, lock, changes))
        try:
            return await asyncio.shield(future)
        except StorageReadOnly as error:
            self._refusal, self._changes_before_refusal = str(error), self._changes
            await self._find_out_what_is_lost()
            raise self._meaning(error) from error
        except StorageError as error:
            raise self._meaning(error) from error

    async def _both(
        self,
        mirror: "Mirror",
        lock: RangeLock,
        data: "Buffer | None",
        start: "Callable[[Callable[[*Arguments], T], *Arguments], asyncio.Future[T]]",
        function: Callable[[*Arguments], T],
        *arguments: *Arguments,
    ) -> T:
        """A change of blocks that are moving away: here, then there, under the lock. It ends when both have it.

        There they get what is here now, so that they are the same whatever the change was, and if it failed too.
        data: what is known to be here if it did not.
        """
        try:
            result = await start(function, *arguments)
        except StorageError:
            await mirror.follow(self._file, self._threads, lock.start, lock.end)
            raise
        except BaseException:
            mirror.spoil("a change here ended, nobody knows how")
            raise
        await mirror.follow(self._file, self._threads, lock.start, lock.end, data)
        return result

    def _ended(self, lock: RangeLock, changes: bool, future: "asyncio.Future[T]") -> None:
        if not future.cancelled() and future.exception() is None:
            # What failed was not acknowledged: no flush owes anything for it.
            self._changes += changes
            if lock.exclusive:
                self._refusal = ""
        self.locks.release(lock)

    async def _find_out_what_is_lost(self) -> None:
        """A file system that becomes read-only drops what is in its cache unwritten, and shows what was there before.

        So what was acknowledged but not flushed must be flushed before anything is read again. If that fails the file
        is out of service; if there was nothing to flush, reads go on.
        """
        with contextlib.suppress(VolumeError):
            await self.flush(0, self.blocks)

    @property
    def refusal(self) -> str:
        """Why changes were refused since the last one that succeeded (the file system is read-only), or ""."""
        return self._refusal if self._changes == self._changes_before_refusal else ""

    def _meaning(self, error: StorageError) -> VolumeError:
        if isinstance(error, StorageFull):
            return OutOfSpace(str(error))
        if isinstance(error, StorageReadOnly):
            return WriteProtected(str(error))
        if isinstance(error, StorageFault):
            return MediumError(error.offset_bytes // self.block_size, str(error), error.writing)
        return MediumError(0, str(error))

    def retire(self) -> None:
        """Begin nothing any more, at once or not: what still comes (a copy, a SANITIZE) ends in Unavailable."""
        self._retired = True

    async def drain(self) -> None:
        """Wait until every request that was begun has ended, also those whose awaiters were cancelled."""
        await self.locks.drain()
        while flush := self._flush_running or self._flush_next:
            await asyncio.wait([flush])

    # Reads and writes -------------------------------------------------------------------------------------------------

    async def read(self, lba: int, blocks: int) -> "Buffer":
        lock = await self._lock(lba, blocks, False)
        return await self._job(lock, False, False, self._file.read, lba * self.block_size, blocks * self.block_size)

    async def write(self, lba: int, data: "Buffer", durable: bool = False) -> None:
        view = memoryview(data).cast("B")
        blocks = len(view) // self.block_size
        lock = self._take_over(lba, blocks) or await self._lock(lba, blocks, True)
        durable = durable or self._write_through
        await self._job(lock, False, not durable, self._file.write, lba * self.block_size, view, durable, data=view)

    async def write_same(self, lba: int, blocks: int, block: "Buffer", durable: bool = False) -> None:
        lock = await self._lock(lba, blocks, True)
        durable = durable or self._write_through
        offset, length = lba * self.block_size, blocks * self.block_size
        await self._job(lock, True, not durable, fill, self._file, offset, length, bytes(block), durable)

    async def unmap(self, ranges: Sequence[tuple[int, int]]) -> None:
        for lba, blocks in ranges:
            if blocks:
                lock = await self._lock(lba, blocks, True)
                await self._job(lock, True, True, self._file.punch, lba * self.block_size, blocks * self.block_size)
        if self._write_through:
            await self.flush(0, self.blocks)

    # Read, then write: nothing comes between, for the range is locked -------------------------------------------------

    def _read_at_once(self, lba: int, length: int) -> bytearray | None:
        """Under the lock: small, cached data, without a thread."""
        if length > _INLINE_BYTES_MAX:
            return None
        data = bytearray(length)
        return data if self._file.try_read_into(lba * self.block_size, memoryview(data)) else None

    async def _finish_write(self, lock: RangeLock, lba: int, data: "Buffer", durable: bool) -> None:
        """Write under a lock that is already held, at once if possible."""
        durable = durable or self._write_through
        length = len(memoryview(data))
        is_mirrored = self.mirror is not None and self.mirror.wants(lock.start, lock.end)
        if not durable and length <= _INLINE_BYTES_MAX and not is_mirrored:
            written = self._file.try_write(lba * self.block_size, data)
            if written:
                self._changes += 1
            if written == length:
                self.locks.release(lock)
                return
        await self._job(lock, False, not durable, self._file.write, lba * self.block_size, data, durable, data=data)

    async def compare_and_write(self, lba: int, compare: "Buffer", data: "Buffer", durable: bool = False) -> int | None:
        expected, view = bytes(compare), memoryview(data).cast("B")
        lock = await self._lock(lba, len(view) // self.block_size, True)
        durable = durable or self._write_through
        old = self._read_at_once(lba, len(expected))
        if old is None:
            offset = lba * self.block_size
            return await self._job(
                lock, False, not durable, compare_and_write, self._file, offset, expected, view, durable
            )
        if old != expected:
            self.locks.release(lock)
            return first_difference(old, expected)
        await self._finish_write(lock, lba, view, durable)
        return None

    async def or_write(self, lba: int, data: "Buffer", durable: bool = False) -> None:
        view = memoryview(data).cast("B")
        lock = await self._lock(lba, len(view) // self.block_size, True)
        durable = durable or self._write_through
        old = self._read_at_once(lba, len(view))
        if old is None:
            await self._job(lock, False, not durable, or_write, self._file, lba * self.block_size, view, durable)
        else:
            await self._finish_write(lock, lba, either(old, view), durable)

    @property
    def atomic_blocks_max(self) -> int:
        return ATOMIC_BLOCKS_MAX if self._journal is not None else 0

    async def write_atomic(self, lba: int, data: "Buffer", durable: bool = False) -> None:
        view = memoryview(data).cast("B")
        blocks = len(view) // self.block_size
        if self._journal is None or blocks > self.atomic_blocks_max:
            raise AssertionError(f"an atomic write of {blocks} blocks")
        lock = await self._lock(lba, blocks, True)
        await self._job(lock, True, True, self._journal.write, self._volume_id, self._file, lba * self.block_size, view)

    # For migrations: blocks that are not served here, yet or any more -------------------------------------------------

    def try_bring(self, lba: int, data: "Buffer") -> bool:
        """Write blocks that come from another member, without waiting; False: `bring` them."""
        length = memoryview(data).nbytes
        if self._retired or self._write_through or self.locks.conflicts(lba, length // self.block_size, True):
            return False
        written = self._file.try_write(lba * self.block_size, data)
        self._changes += written > 0
        return written == length

    async def bring(self, lba: int, data: "Buffer", durable: bool) -> None:
        """Write blocks that come from another member."""
        view = memoryview(data).cast("B")
        lock = await self._lock(lba, len(view) // self.block_size, True, served=False)
        durable = durable or self._write_through
        await self._job(lock, False, not durable, self._file.write, lba * self.block_size, view, durable)

    async def check_unserved(self, lba: int, blocks: int) -> None:
        """What `CHECK` says when nothing is under way on these blocks."""
        self.locks.release(await self._lock(lba, blocks, True, served=False))

    async def clear(self, lba: int, blocks: int, durable: bool = False) -> None:
        """Deallocate blocks that are not served here."""
        lock = await self._lock(lba, blocks, True, served=False)
        offset, length = lba * self.block_size, blocks * self.block_size
        await self._job(lock, True, not durable, clear, self._file, offset, length, durable, is_served=False)

    @property
    def file(self) -> "BlocksFile":
        return self._file

    @property
    def threads(self) -> "Threads":
        return self._threads

    # Durability -------------------------------------------------------------------------------------------------------

    async def flush(self, lba: int, blocks: int) -> None:
        """One fdatasync covers the file, so concurrent flushes share it: those that come before it has begun."""
        if self._retired:
            raise Unavailable("the volume is out of service")
        if self._changes == self._changes_flushed and not self._file.failed:
            return
        if self._flush_next is None:
            self._flush_next = asyncio.get_running_loop().create_task(self._flush_after(self._flush_running))
            self._flush_next.add_done_callback(_look_at_result)
        try:
            await asyncio.shield(self._flush_next)
        except StorageError as error:
            raise self._meaning(error) from error

    async def _flush_after(self, running: "asyncio.Task[None] | None") -> None:
        if running is not None:
            await asyncio.wait([running])
        # From here on nobody joins any more: a write could end after the fdatasync has passed it by.
        self._flush_running, self._flush_next = self._flush_next, None
        changes = self._changes
        try:
            await self._threads.start_slow(self._file.flush)
            self._changes_flushed = changes
        finally:
            self._flush_running = None

    # Other ------------------------------------------------------------------------------------------------------------

    async def allocation(self, lba: int, blocks: int, extents_max: int) -> list[Extent]:
        lock = await self._lock(lba, blocks, False)
        found = await self._job(
            lock,
            False,
            False,
            self._file.extents,
            lba * self.block_size,
            blocks * self.block_size,
            self.block_size,
            extents_max,
        )
        return [
            Extent(extent.offset_bytes // self.block_size, extent.length_bytes // self.block_size, extent.is_data)
            for extent in found
        ]

    async def prefetch(self, lba: int, blocks: int) -> None:
        lock = await self._lock(lba, blocks, False)
        await self._job(lock, True, False, self._file.prefetch, lba * self.block_size, blocks * self.block_size)

    async def sanitize_overwrite(self, lba: int, pattern: "Buffer", blocks: int) -> None:
        lock = await self._lock(lba, blocks, True)
        offset, length = lba * self.block_size, blocks * self.block_size
        await self._job(lock, True, True, overwrite, self._file, offset, length, self.block_size, bytes(pattern))

    async def sanitize_erase(self) -> None:
        """The whole file, with whatever lies outside the ranges served."""
        lock = await self.locks.acquire(0, self.blocks, True)
        if self._retired:
            self.locks.release(lock)
            raise Unavailable("the volume is out of service")
        await self._job(lock, True, True, erase, self._file)


def _look_at_result(flush: "asyncio.Task[None]") -> None:
    """Its waiters may all be gone; an unseen exception would be logged as a bug."""
    if not flush.cancelled():
        flush.exception()

"""Fair shared and exclusive locks over ranges of blocks, for one event loop.

A request waits for every earlier request, held or itself waiting, that overlaps it and conflicts with it (two shared
ones never do). So overlapping requests are served in the order they came, none can starve, and since nobody waits for
a later one there is no deadlock among requests for one range each.

Each request counts those it waits for, and knows those that wait for it, so a release costs what it wakes. Requests
are found through buckets of 2048 blocks; one that spans many buckets is kept aside and compared with everything.
"""

import asyncio
from typing import Final

_BUCKET_BLOCKS: Final = 2048
_BUCKETS_MAX: Final = 16


class RangeLock:
    """A request for [start, end), held when `waits_for` is 0. Made and released by `RangeLocks` only."""

    __slots__ = ("end", "exclusive", "start", "waiters", "waits_for", "wake")

    def __init__(self, start: int, end: int, exclusive: bool) -> None:
        self.start = start
        self.end = end
        self.exclusive = exclusive
        self.waits_for = 0
        self.waiters: list[RangeLock] = []
        self.wake: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        kind = "exclusive" if self.exclusive else "shared"
        return f"RangeLock({self.start}-{self.end}, {kind}, waits for {self.waits_for})"


class RangeLocks:
    """`idle` is True when nothing is held or waited for: the cheapest check there is."""

    __slots__ = ("_buckets", "_count", "_drained", "_wide", "idle")

    def __init__(self) -> None:
        self.idle = True
        self._count = 0
        self._buckets: dict[int, list[RangeLock]] = {}
        self._wide: list[RangeLock] = []
        self._drained: list[asyncio.Future[None]] = []

    def __len__(self) -> int:
        """How many requests are held or waiting."""
        return self._count

    def conflicts(self, start: int, blocks: int, exclusive: bool) -> bool:
        """Would a request have to wait now?"""
        return not self.idle and bool(self._earlier(start, start + blocks, exclusive))

    def try_acquire(self, start: int, blocks: int, exclusive: bool) -> RangeLock | None:
        """The lock, if it is free at once."""
        if self.conflicts(start, blocks, exclusive):
            return None
        lock = RangeLock(start, start + blocks, exclusive)
        self._enter(lock)
        return lock

    async def acquire(self, start: int, blocks: int, exclusive: bool) -> RangeLock:
        """Wait for the lock. If the waiting is cancelled, nothing is held."""
        lock = RangeLock(start, start + blocks, exclusive)
        if not self.idle:
            earlier = self._earlier(start, lock.end, exclusive)
            for other in earlier:
                other.waiters.append(lock)
            lock.waits_for = len(earlier)
        self._enter(lock)
        if lock.waits_for:
            lock.wake = asyncio.get_running_loop().create_future()
            try:
                await lock.wake
            except BaseException:
                self.release(lock)
                raise
        return lock

    def release(self, lock: RangeLock) -> None:
        """Give a lock back, exactly once."""
        self._leave(lock)
        for waiter in lock.waiters:
            waiter.waits_for -= 1
            if waiter.waits_for == 0 and waiter.wake is not None and not waiter.wake.done():
                waiter.wake.set_result(None)
        lock.waiters.clear()
        if self.idle:
            for drained in self._drained:
                if not drained.done():
                    drained.set_result(None)
            self._drained.clear()

    async def drain(self) -> None:
        """Wait until nothing is held or waited for. New requests are not kept out."""
        while not self.idle:
            drained: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._drained.append(drained)
            await drained

    def _earlier(self, start: int, end: int, exclusive: bool) -> list[RangeLock]:
        """Requests that a new one has to wait for."""
        if (end - 1) // _BUCKET_BLOCKS - start // _BUCKET_BLOCKS >= _BUCKETS_MAX:
            candidates = {lock: None for bucket in self._buckets.values() for lock in bucket}
        else:
            candidates = {lock: None for key in _buckets(start, end) for lock in self._buckets.get(key, ())}
        return [
            lock
            for lock in (*candidates, *self._wide)
            if lock.start < end and start < lock.end and (exclusive or lock.exclusive)
        ]

    def _enter(self, lock: RangeLock) -> None:
        self._count += 1
        self.idle = False
        if _is_wide(lock):
            self._wide.append(lock)
            return
        for key in _buckets(lock.start, lock.end):
            self._buckets.setdefault(key, []).append(lock)

    def _leave(self, lock: RangeLock) -> None:
        if _is_wide(lock):
            self._wide.remove(lock)
        else:
            for key in _buckets(lock.start, lock.end):
                bucket = self._buckets[key]
                bucket.remove(lock)
                if not bucket:
                    del self._buckets[key]
        self._count -= 1
        self.idle = self._count == 0


def _buckets(start: int, end: int) -> range:
    return range(start // _BUCKET_BLOCKS, (end - 1) // _BUCKET_BLOCKS + 1)


def _is_wide(lock: RangeLock) -> bool:
    return len(_buckets(lock.start, lock.end)) > _BUCKETS_MAX

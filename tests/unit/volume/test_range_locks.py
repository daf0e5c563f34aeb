"""Fairness, cancellation and bookkeeping of range locks."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from san_target.volume.range_locks import RangeLock, RangeLocks


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 30))


async def settle() -> None:
    for _turn in range(5):
        await asyncio.sleep(0)


def test_shared_locks_overlap_and_exclusive_ones_wait() -> None:
    async def work() -> None:
        locks = RangeLocks()
        assert locks.idle
        first = await locks.acquire(0, 8, False)
        second = await locks.acquire(4, 8, False)
        writer = asyncio.create_task(locks.acquire(7, 1, True))
        await settle()
        assert not writer.done()
        locks.release(first)
        await settle()
        assert not writer.done()
        locks.release(second)
        locks.release(await writer)
        assert locks.idle
        assert len(locks) == 0

    run(work())


def test_neighbours_do_not_meet() -> None:
    async def work() -> None:
        locks = RangeLocks()
        held = [await locks.acquire(lba, 8, True) for lba in (0, 8, 16, 2040, 2048)]
        for lock in held:
            locks.release(lock)
        assert locks.idle

    run(work())


def test_overlapping_requests_are_served_in_the_order_they_came() -> None:
    async def work() -> None:
        locks = RangeLocks()
        order: list[int] = []

        async def user(number: int, exclusive: bool) -> None:
            lock = await locks.acquire(0, 8, exclusive)
            order.append(number)
            await asyncio.sleep(0)
            locks.release(lock)

        first = await locks.acquire(0, 8, True)
        kinds = [False, False, True, False, True, True, False]
        tasks = [asyncio.create_task(user(number, kind)) for number, kind in enumerate(kinds)]
        await settle()
        locks.release(first)
        await asyncio.gather(*tasks)
        assert order == list(range(len(kinds)))

    run(work())


def test_a_stream_of_readers_does_not_starve_a_writer() -> None:
    async def work() -> None:
        locks = RangeLocks()
        reader = await locks.acquire(0, 8, False)
        writer = asyncio.create_task(locks.acquire(0, 8, True))
        await settle()
        late_reader = asyncio.create_task(locks.acquire(0, 8, False))
        await settle()
        assert not late_reader.done()
        assert locks.conflicts(0, 8, False)
        assert locks.try_acquire(0, 8, False) is None
        locks.release(reader)
        locks.release(await writer)
        locks.release(await late_reader)
        assert locks.idle

    run(work())


@pytest.mark.parametrize("when", ["waiting", "just woken"])
def test_a_cancelled_request_leaves_nothing_behind(when: str) -> None:
    async def work() -> None:
        locks = RangeLocks()
        first = await locks.acquire(0, 8, True)
        second = asyncio.create_task(locks.acquire(0, 8, True))
        third = asyncio.create_task(locks.acquire(4, 8, True))
        await settle()
        if when == "waiting":
            second.cancel()
            await settle()
            assert not third.done()
            locks.release(first)
        else:
            locks.release(first)
            second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        locks.release(await third)
        assert locks.idle

    run(work())


def test_wide_requests_meet_narrow_ones_and_each_other() -> None:
    async def work() -> None:
        locks = RangeLocks()
        narrow = await locks.acquire(1 << 30, 8, True)
        wide = asyncio.create_task(locks.acquire(0, 1 << 40, False))
        await settle()
        assert not wide.done()
        assert locks.try_acquire(5, 1, True) is None
        other_wide = asyncio.create_task(locks.acquire(1 << 20, 1 << 35, True))
        locks.release(narrow)
        held = await wide
        await settle()
        assert not other_wide.done()
        locks.release(held)
        locks.release(await other_wide)
        assert locks.idle

    run(work())


def test_drain_waits_for_all() -> None:
    async def work() -> None:
        locks = RangeLocks()
        await locks.drain()
        held: list[RangeLock] = [await locks.acquire(lba, 1, True) for lba in range(3)]
        draining = asyncio.create_task(locks.drain())
        for lock in held:
            await settle()
            assert not draining.done()
            locks.release(lock)
        await draining

    run(work())

"""A flush covers everything acknowledged before it; flushes are shared, and skipped only when nothing is to do."""

import asyncio
import random

import pytest

from san_target.storage.faulty import Fault, FaultyFile, Rule, Script
from san_target.storage.memory import MemoryDisk, MemoryFile
from san_target.storage.threads import SynchronousThreads
from san_target.volume.device import MediumError
from tests.unit.volume.kit import HeldJobs, make_volume, run, settle

BLOCK = b"\1" * 512


def test_the_first_flush_is_never_skipped() -> None:
    async def work() -> None:
        jobs = HeldJobs()
        volume = make_volume(threads=jobs)
        flushing = asyncio.create_task(volume.flush(0, 1))
        await settle()
        assert jobs.names() == ["flush"]
        jobs.run_next()
        await flushing

    run(work())


def test_a_flush_with_nothing_to_do_is_skipped() -> None:
    async def work() -> None:
        steps: list[str] = []
        volume = make_volume(MemoryFile(1024 * 512, MemoryDisk(before_step=steps.append)))
        await volume.flush(0, 1)
        await volume.flush(0, 1024)
        await volume.write(0, BLOCK, durable=True)
        await volume.flush(0, 1024)
        assert steps.count("flush") == 1
        volume.try_write(0, 1, BLOCK)
        await volume.flush(0, 1024)
        await volume.unmap([(0, 1)])
        await volume.flush(0, 1024)
        await volume.write_same(0, 2, BLOCK)
        await volume.flush(0, 1024)
        await volume.compare_and_write(0, BLOCK, BLOCK)
        await volume.flush(0, 1024)
        await volume.or_write(0, BLOCK)
        await volume.flush(0, 1024)
        await volume.write(0, BLOCK)
        await volume.flush(0, 1024)
        assert steps.count("flush") == 7

    run(work())


def test_flushes_join_one_that_has_not_begun_but_not_one_that_has() -> None:
    async def work() -> None:
        jobs = HeldJobs()
        volume = make_volume(threads=jobs)
        first = asyncio.create_task(volume.flush(0, 1))
        await settle()
        volume.try_write(0, 1, BLOCK)
        later = [asyncio.create_task(volume.flush(0, 1)) for _flush in range(5)]
        await settle()
        assert jobs.names() == ["flush"]
        jobs.run_next()
        await first
        await settle()
        assert not any(flush.done() for flush in later)
        assert jobs.names() == ["flush"]
        jobs.run_next()
        await asyncio.gather(*later)
        assert jobs.waiting == []

    run(work())


def test_a_write_during_a_flush_needs_another_flush() -> None:
    async def work() -> None:
        jobs = HeldJobs()
        volume = make_volume(threads=jobs)
        first = asyncio.create_task(volume.flush(0, 1))
        await settle()
        volume.try_write(0, 1, BLOCK)
        jobs.run_next()
        await first
        second = asyncio.create_task(volume.flush(0, 1))
        await settle()
        assert jobs.names() == ["flush"]
        jobs.run_next()
        await second

    run(work())


def test_a_flush_outlives_its_first_awaiter() -> None:
    async def work() -> None:
        jobs = HeldJobs()
        volume = make_volume(threads=jobs)
        first = asyncio.create_task(volume.flush(0, 1))
        second = asyncio.create_task(volume.flush(0, 1))
        await settle()
        first.cancel()
        await settle()
        assert jobs.names() == ["flush"]
        jobs.run_next()
        await second
        with pytest.raises(asyncio.CancelledError):
            await first
        await volume.drain()

    run(work())


def test_a_failed_flush_fails_all_who_joined_and_those_after() -> None:
    async def work() -> None:
        volume = make_volume(FaultyFile(MemoryFile(1024 * 512), Script([Rule("flush", Fault.ERROR)])))
        volume.try_write(0, 1, BLOCK)
        results = await asyncio.gather(*(volume.flush(0, 1) for _flush in range(3)), return_exceptions=True)
        assert all(isinstance(result, MediumError) for result in results)
        with pytest.raises(MediumError):
            await volume.flush(0, 1)

    run(work())


@pytest.mark.parametrize("seed", range(40))
def test_after_a_power_failure_everything_flushed_is_there(seed: int) -> None:
    """Writers and flushers run at random; then the power goes, at a random step, in the middle of what is going on."""
    chance = random.Random(seed)
    at_once = chance.choice([0.5, 1])
    survivor = chance.choice([chance.choice, lambda versions: versions[0]])

    async def work() -> None:
        file = MemoryFile(64 * 512)
        volume = make_volume(file, SynchronousThreads(lambda: chance.choice([0, 0.0001, 0.0003])), blocks=64)
        acknowledged = [0] * 64  # the number last acknowledged for each block
        flushed = [0] * 64
        issued = [0] * 64

        async def writer(first: int) -> None:
            for number in range(1, 200):
                lba = first + chance.randrange(16)
                issued[lba] = number
                data = number.to_bytes(2, "big") * 256
                if chance.random() >= at_once or not volume.try_write(lba, 1, data):
                    await volume.write(lba, data, durable=chance.random() < 0.1)
                acknowledged[lba] = number
                for _turn in range(chance.randrange(4)):
                    await asyncio.sleep(0)

        async def flusher() -> None:
            while True:
                before = list(acknowledged)
                await volume.flush(0, 64)
                flushed[:] = [max(old, new) for old, new in zip(flushed, before, strict=True)]
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(writer(first)) for first in (0, 16, 32, 48)]
        tasks += [asyncio.create_task(flusher()) for _flusher in range(3)]
        turns = chance.randrange(20, 300)
        while turns > 0 or not any(flushed):
            turns -= 1
            await asyncio.sleep(0)
        file.lose_power(survivor)
        survived = [int.from_bytes(file.read(lba * 512, 2), "big") for lba in range(64)]
        for lba in range(64):
            assert flushed[lba] <= survived[lba] <= issued[lba]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await volume.drain()

    run(work())

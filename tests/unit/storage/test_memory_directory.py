"""The twin of a pool's directory: like the real one while there is power, and what a failure of it leaves."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from san_target.storage.directory import DiskDirectory, PoolDirectory
from san_target.storage.interface import StorageFault
from san_target.storage.memory import PAGE_BYTES, MemoryDisk, MemoryFile, PowerLost
from san_target.storage.memory_directory import MemoryDirectory
from san_target.storage.pool import Pool
from san_target.storage.records import HeldRange, PoolError
from san_target.storage.threads import SynchronousThreads

VOLUME = "0123456789abcdef" * 2
GROUP = "ab" * 16
MIB = 1 << 20
STEPS_MAX = 60


@pytest.fixture(params=["disk", "memory"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> PoolDirectory:
    found: PoolDirectory = DiskDirectory(tmp_path) if request.param == "disk" else MemoryDirectory()
    found.make()
    return found


class TestBothAgree:
    def test_records_are_replaced(self, directory: PoolDirectory) -> None:
        assert not directory.exists("pool.json")
        for data in (b"one", b"two"):
            directory.write_durably("pool.json", data)
            assert directory.exists("pool.json")
            assert directory.read("pool.json") == data
        assert not directory.exists("pool.json.new")

    def test_names_are_those_of_volumes_in_order(self, directory: PoolDirectory) -> None:
        for name in ("pool.json", "volumes/b.held", "volumes/a.held", "volumes/a.deleting"):
            directory.write_durably(name, b"")
        assert directory.names(".held") == ["volumes/a.held", "volumes/b.held"]
        assert directory.names("") == ["volumes/a.deleting", "volumes/a.held", "volumes/b.held"]

    def test_a_file_is_made_once_renamed_and_removed(self, directory: PoolDirectory) -> None:
        file = directory.create_file("volumes/a.blocks", MIB)
        assert file.size_bytes == MIB
        assert not directory.has_data("volumes/a.blocks")
        with pytest.raises(FileExistsError):
            directory.create_file("volumes/a.blocks", MIB)
        file.write(4096, b"x" * 4096)
        assert directory.has_data("volumes/a.blocks")
        file.close()
        directory.rename("volumes/a.blocks", "volumes/b.blocks")
        assert not directory.exists("volumes/a.blocks")
        assert bytes(directory.open_file("volumes/b.blocks").read(4096, 4096)) == b"x" * 4096
        directory.remove("volumes/b.blocks")
        directory.remove("volumes/b.blocks")
        directory.sync("volumes")
        assert directory.names("") == []

    def test_what_is_missing_is_an_error_of_the_system(self, directory: PoolDirectory) -> None:
        for call in (directory.read, directory.open_file, directory.has_data):
            with pytest.raises(FileNotFoundError):
                call("volumes/a.blocks")
        with pytest.raises(FileNotFoundError):
            directory.rename("volumes/a.held", "volumes/a.deleting")

    def test_only_one_has_it(self, directory: PoolDirectory, tmp_path: Path) -> None:
        other = DiskDirectory(tmp_path) if isinstance(directory, DiskDirectory) else directory
        directory.lock()
        with pytest.raises(PoolError, match="in use by"):
            other.lock()
        directory.unlock()
        other.lock()
        other.unlock()


def test_removed_files_give_their_space_back() -> None:
    directory = MemoryDirectory(MemoryDisk(capacity_bytes=MIB))
    file = directory.create_file("volumes/a.blocks", MIB)
    file.write(0, b"x" * PAGE_BYTES)
    assert directory.space() == (MIB, MIB - PAGE_BYTES)
    directory.remove("volumes/a.blocks")
    directory.sync("volumes")
    assert directory.space() == (MIB, MIB)


def test_a_full_disk_takes_no_record() -> None:
    directory = MemoryDirectory(MemoryDisk(capacity_bytes=PAGE_BYTES - 1))
    with pytest.raises(OSError, match="No space"):
        directory.write_durably("pool.json", b"")


def test_what_was_not_synced_may_be_lost_or_not_but_in_order() -> None:
    seen = set()
    for seed in range(40):
        directory = MemoryDirectory()
        directory.create_file("volumes/a.blocks", MIB)
        directory.sync()
        directory.rename("volumes/a.blocks", "volumes/b.blocks")
        directory.remove("volumes/b.blocks")
        directory.lose_power(random.Random(seed).choice)
        seen.add(tuple(directory.names("")))
    assert seen == {("volumes/a.blocks",), ("volumes/b.blocks",), ()}


def test_a_flush_that_failed_can_never_be_made_up_for() -> None:
    """The pages count as clean: the next process flushes with success, and the data is lost nevertheless."""
    fails = [True]

    def before_step(step: str) -> None:
        if step == "flush" and fails.pop():
            raise OSError(5, "Input/output error")

    lost = 0
    for seed in range(20):
        fails[:] = [False, True, False]
        file = MemoryFile(MIB, MemoryDisk(before_step=before_step))
        file.write(0, b"old" + bytes(509))
        file.flush()
        fails[:] = [False, True]
        file.write(0, b"new" + bytes(509))
        with pytest.raises(StorageFault, match="fdatasync failed"):
            file.flush()
        assert file.failed
        file.reopen()
        file.write(PAGE_BYTES, b"another page")
        file.flush()
        assert bytes(file.read(0, 3)) == b"new"
        file.lose_power(random.Random(seed).choice)
        lost += bytes(file.read(0, 3)) == b"old"
        assert bytes(file.read(PAGE_BYTES, 12)) == b"another page"
    assert 0 < lost < 20


def held(blocks: int, generation: int = 1) -> tuple[HeldRange, ...]:
    return (HeldRange(0, blocks, generation),)


def create(pool: Pool) -> None:
    pool._create_volume(VOLUME, MIB, 512, held(2048))


def grow(pool: Pool) -> None:
    pool._resize_volume(VOLUME, 2 * MIB, (HeldRange(0, 2048, 1), HeldRange(2048, 4096, 5)))


def shrink(pool: Pool) -> None:
    pool._resize_volume(VOLUME, MIB // 2, (HeldRange(0, 1024, 1),))


def hold_other_ranges(pool: Pool) -> None:
    pool._update_held(VOLUME, held(1024, 7))


def delete(pool: Pool) -> None:
    pool._delete_volume(VOLUME)


async def opened(directory: MemoryDirectory) -> Pool:
    pool = Pool(Path("memory"), SynchronousThreads(), directory)
    await pool.open(GROUP, 9)
    return pool


@pytest.mark.parametrize("change", [create, grow, shrink, hold_other_ranges, delete])
def test_power_fails_at_any_step_of_a_change(change: Callable[[Pool], Any]) -> None:
    """The next start finds the volume as before or as after, with all that was durable; the change then succeeds."""

    async def work() -> None:
        for dies_at in range(STEPS_MAX):
            for seed in range(8):
                if await dies(dies_at, random.Random(f"{dies_at} {seed}").choice):
                    return
        raise AssertionError("the change has no end")

    async def dies(dies_at: int, choose: Any) -> bool:
        steps = iter(range(1 << 30))
        dying = False

        def before_step(_step: str) -> None:
            if dying and next(steps) >= dies_at:
                raise PowerLost

        directory = MemoryDirectory(MemoryDisk(before_step=before_step))
        pool = await opened(directory)
        if change is not create:
            create(pool)
            pool.open_volume(VOLUME).file.write(0, b"durable", durable=True)
        dying = True
        try:
            change(pool)
        except PowerLost:
            done = False
        else:
            done = True
        dying = False
        directory.lose_power(choose)
        pool = await opened(directory)
        assert pool.problems == {}
        if done:
            assert pool.list_volumes() == ([] if change is delete else [VOLUME])
        if change not in (create, delete) or pool.list_volumes() == [VOLUME]:
            found = pool.open_volume(VOLUME)
            assert found.file.size_bytes == found.record.size_bytes
            if change is not create:
                assert bytes(found.file.read(0, 7)) == b"durable"
        if not done or change is not create:
            change(pool)
        await pool.close()
        return done

    asyncio.run(work())

"""Each call of a volume on its own, at once and through threads, and how they keep out of each other's way."""

import asyncio

import pytest

from san_target.storage.faulty import Fault, FaultyFile, Rule, Script
from san_target.storage.interface import StorageFault
from san_target.storage.journal import Journal
from san_target.storage.memory import MemoryDisk, MemoryFile
from san_target.storage.records import HeldRange
from san_target.volume import local
from san_target.volume.device import Extent, MediumError, NotAtomic, OutOfSpace, Unavailable, WriteProtected
from san_target.volume.partition_map import PartitionMap, Placement
from tests.unit.volume.kit import Elsewhere, HeldJobs, make_volume, run, settle


def block(byte: int, blocks: int = 1, size: int = 512) -> bytes:
    return bytes([byte]) * (blocks * size)


def never(_offset: int, _length: int) -> int:
    return 0


def read_at_once(volume, lba: int, blocks: int = 1) -> bytes | None:
    into = bytearray(blocks * volume.block_size)
    return bytes(into) if volume.try_read_into(lba, blocks, memoryview(into)) else None


def test_cached_blocks_are_served_at_once() -> None:
    volume = make_volume()
    assert volume.try_write(3, 2, block(7, 2))
    assert read_at_once(volume, 2, 4) == block(0) + block(7, 2) + block(0)


def test_the_slow_way_reads_and_writes_the_same_blocks() -> None:
    async def work() -> None:
        volume = make_volume()
        await volume.write(3, block(7, 2))
        assert bytes(await volume.read(2, 4)) == block(0) + block(7, 2) + block(0)

    run(work())


def test_what_would_wait_says_so() -> None:
    volume = make_volume(MemoryFile(1024 * 512, wait_free=never))
    assert read_at_once(volume, 0) is None
    assert not volume.try_write(0, 1, block(1))


def test_a_range_outside_the_volume_is_a_bug() -> None:
    async def work() -> None:
        volume = make_volume()
        with pytest.raises(AssertionError):
            volume.try_write(1023, 2, block(1, 2))
        for call in (volume.read(1024, 1), volume.write(1023, block(0, 2)), volume.unmap([(1000, 25)])):
            with pytest.raises(AssertionError):
                await call

    run(work())


def test_a_half_done_write_is_finished_before_anybody_else_comes() -> None:
    async def work() -> None:
        half = [512]
        file = MemoryFile(1024 * 512, wait_free=lambda _offset, length: min(length, half[0]))
        volume = make_volume(file)
        assert not volume.try_write(0, 2, block(1, 2))
        half[0] = 1 << 20
        # Everybody else keeps out: readers would see half of it, writers would be overwritten.
        assert read_at_once(volume, 0) is None
        assert read_at_once(volume, 1) is None
        assert not volume.try_write(1, 1, block(9))
        assert read_at_once(volume, 2) == block(0)
        other = asyncio.create_task(volume.write(0, block(2)))
        reader = asyncio.create_task(volume.read(0, 2))
        await settle()
        assert not other.done()
        await volume.write(0, block(1, 2))
        await other
        assert bytes(await reader) == block(2) + block(1)
        assert read_at_once(volume, 0, 2) == block(2) + block(1)

    run(work())


def test_a_half_done_write_that_is_given_up_does_not_block_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "HANDOVER_S", 0.001)

    async def work() -> None:
        volume = make_volume(MemoryFile(1024 * 512, wait_free=lambda _offset, length: min(length, 512)))
        assert not volume.try_write(0, 2, block(1, 2))
        await volume.write(1, block(3))
        assert bytes(await volume.read(1, 1)) == block(3)

    run(work())


def test_a_read_in_a_thread_keeps_writers_out_but_not_readers() -> None:
    async def work() -> None:
        jobs = HeldJobs()
        volume = make_volume(threads=jobs)
        reading = asyncio.create_task(volume.read(0, 8))
        await settle()
        assert not volume.try_write(4, 1, block(1))
        assert volume.try_write(8, 1, block(1))
        assert read_at_once(volume, 4) == block(0)
        writing = asyncio.create_task(volume.write(4, block(2)))
        await settle()
        assert jobs.names() == ["read"]
        # The waiting writer came before this read.
        assert read_at_once(volume, 4) is None
        jobs.run_next()
        assert bytes(await reading) == block(0, 8)
        await settle()
        jobs.run_next()
        await writing
        assert read_at_once(volume, 4) == block(2)

    run(work())


def test_a_cancelled_write_keeps_its_lock_until_the_thread_has_ended() -> None:
    async def work() -> None:
        jobs = HeldJobs()
        volume = make_volume(threads=jobs)
        writing = asyncio.create_task(volume.write(0, block(1)))
        await settle()
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert not volume.try_write(0, 1, block(2))
        draining = asyncio.create_task(volume.drain())
        await settle()
        assert not draining.done()
        jobs.run_next()
        await draining
        assert read_at_once(volume, 0) == block(1)
        assert volume.try_write(0, 1, block(2))

    run(work())


def test_unmapped_blocks_read_as_zeros_to_the_block() -> None:
    async def work() -> None:
        volume = make_volume()
        await volume.write(0, block(9, 64))
        await volume.unmap([(1, 3), (10, 30), (50, 0), (63, 1)])
        expected = block(9) + block(0, 3) + block(9, 6) + block(0, 30) + block(9, 23) + block(0)
        assert bytes(await volume.read(0, 64)) == expected
        assert await volume.allocation(0, 64, 9) == [Extent(0, 16, True), Extent(16, 24, False), Extent(40, 24, True)]

    run(work())


@pytest.mark.parametrize("durable", [False, True])
def test_write_same_repeats_its_block_and_zeros_take_no_space(durable: bool) -> None:
    async def work() -> None:
        volume = make_volume(blocks=16384)
        await volume.write_same(5, 9000, b"ab" * 256, durable)
        assert bytes(await volume.read(4, 9002)) == block(0) + b"ab" * 256 * 9000 + block(0)
        await volume.write_same(0, 16384, block(0), durable)
        assert await volume.allocation(0, 16384, 4) == [Extent(0, 16384, False)]
        assert bytes(await volume.read(0, 16384)) == block(0, 16384)

    run(work())


@pytest.mark.parametrize("wait_free", [lambda _offset, length: length, never, lambda _offset, length: length // 2])
def test_compare_and_write(wait_free) -> None:
    async def work() -> None:
        volume = make_volume(MemoryFile(1024 * 512, wait_free=wait_free))
        await volume.write(1, block(1, 2))
        assert await volume.compare_and_write(1, block(1, 2), block(2, 2)) is None
        assert bytes(await volume.read(0, 4)) == block(0) + block(2, 2) + block(0)
        wrong = block(2) + b"\2\2\3" + block(2)[3:]
        assert await volume.compare_and_write(1, wrong, block(5, 2)) == 514
        assert await volume.compare_and_write(1, block(2), block(6), durable=True) is None
        assert bytes(await volume.read(1, 2)) == block(6) + block(2)
        await volume.drain()

    run(work())


def test_compare_and_write_lets_nobody_between() -> None:
    async def work() -> None:
        jobs = HeldJobs()
        volume = make_volume(MemoryFile(1024 * 512, wait_free=never), threads=jobs)
        tasks = [asyncio.create_task(volume.compare_and_write(0, block(old), block(old + 1))) for old in range(5)]
        tasks.append(asyncio.create_task(volume.compare_and_write(0, block(0), block(99))))
        await settle()
        while jobs.waiting:
            assert jobs.names() == ["compare_and_write"]
            jobs.run_next()
            await settle()
        assert await asyncio.gather(*tasks) == [None] * 5 + [0]

    run(work())


@pytest.mark.parametrize("wait_free", [lambda _offset, length: length, never, lambda _offset, length: length // 2])
def test_or_write(wait_free) -> None:
    async def work() -> None:
        volume = make_volume(MemoryFile(1024 * 512, wait_free=wait_free))
        await volume.write(0, b"\x0f" * 1024)
        await volume.or_write(0, b"\xf0" * 512 + b"\x05" * 512)
        await volume.or_write(1, b"\x10" * 512, durable=True)
        assert bytes(await volume.read(0, 2)) == b"\xff" * 512 + b"\x1f" * 512

    run(work())


@pytest.mark.parametrize("block_size", [512, 4096])
def test_write_atomic_up_to_its_maximum(block_size: int) -> None:
    async def work() -> None:
        volume = make_volume(
            block_size=block_size,
            file=MemoryFile(1024 * block_size),
            journal_file=MemoryFile(Journal.size_bytes(2)),
        )
        assert volume.atomic_blocks_max == 256
        for blocks in (1, 256):
            await volume.write_atomic(1024 - blocks, block(blocks % 251, blocks, block_size))
            assert bytes(await volume.read(1024 - blocks, blocks)) == block(blocks % 251, blocks, block_size)
        with pytest.raises(AssertionError):
            await volume.write_atomic(0, block(1, 257, block_size))

    run(work())


def test_without_a_journal_there_is_no_write_atomic() -> None:
    assert make_volume().atomic_blocks_max == 0


def test_allocation_knows_holes_and_data() -> None:
    async def work() -> None:
        volume = make_volume()
        await volume.write(8, block(1))
        await volume.write(100, block(1))
        assert await volume.allocation(0, 1024, 10) == [
            Extent(0, 8, False),
            Extent(8, 8, True),
            Extent(16, 80, False),
            Extent(96, 8, True),
            Extent(104, 920, False),
        ]
        assert await volume.allocation(10, 3, 10) == [Extent(10, 3, True)]
        assert await volume.allocation(0, 1024, 1) == [Extent(0, 8, False)]

    run(work())


def test_a_sanitized_volume_is_overwritten_or_erased() -> None:
    async def work() -> None:
        file = MemoryFile(1024 * 512)
        volume = make_volume(file)
        await volume.write(16, block(1, 16))
        await volume.sanitize_overwrite(0, block(0), 1024)
        assert bytes(await volume.read(0, 1024)) == block(0, 1024)
        assert file.allocated_bytes() == 16 * 512  # overwritten in place, not given back
        await volume.sanitize_overwrite(0, block(1) + block(2), 1024)
        assert bytes(await volume.read(0, 1024)) == (block(1) + block(2)) * 512
        await volume.sanitize_erase()
        assert file.allocated_bytes() == 0
        assert bytes(await volume.read(0, 1024)) == block(0, 1024)

    run(work())


def test_prefetch_asks_the_file() -> None:
    async def work() -> None:
        jobs = HeldJobs()
        volume = make_volume(threads=jobs)
        asking = asyncio.create_task(volume.prefetch(0, 8))
        await settle()
        assert jobs.names() == ["prefetch"]
        jobs.run_next()
        await asking

    run(work())


# Errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault.ERROR, MediumError),
        (Fault.FULL, OutOfSpace),
        (Fault.READ_ONLY, WriteProtected),
        (Fault.TORN, MediumError),
    ],
)
def test_errors_of_a_write(fault: Fault, kind: type[Exception]) -> None:
    async def work() -> None:
        volume = make_volume(FaultyFile(MemoryFile(1024 * 512), Script([Rule("write", fault)])))
        assert not volume.try_write(8, 8, block(1, 8))
        with pytest.raises(kind) as caught:
            await volume.write(8, block(1, 8))
        if isinstance(caught.value, MediumError):
            assert caught.value.writing
            assert caught.value.lba == (12 if fault is Fault.TORN else 8)
        await volume.write(8, block(2, 8))
        assert bytes(await volume.read(8, 8)) == block(2, 8)

    run(work())


def test_an_unreadable_block_is_named() -> None:
    async def work() -> None:
        volume = make_volume(FaultyFile(MemoryFile(1024 * 512), Script([Rule("read", Fault.ERROR, 5 * 512, 6 * 512)])))
        with pytest.raises(MediumError) as caught:
            await volume.read(5, 1)
        assert (caught.value.lba, caught.value.writing) == (5, False)

    run(work())


def test_a_full_disk_leaves_what_was_acknowledged() -> None:
    async def work() -> None:
        volume = make_volume(MemoryFile(1024 * 512, MemoryDisk(capacity_bytes=64 * 512)))
        assert volume.try_write(0, 64, block(1, 64))
        assert not volume.try_write(64, 8, block(2, 8))
        with pytest.raises(OutOfSpace):
            await volume.write(64, block(2, 8))
        # Half of this one fits, for it overwrites.
        assert not volume.try_write(56, 16, block(3, 16))
        with pytest.raises(OutOfSpace):
            await volume.write(56, block(3, 16))
        assert bytes(await volume.read(0, 56)) == block(1, 56)
        await volume.unmap([(0, 8)])
        assert volume.try_write(64, 8, block(2, 8))
        await volume.drain()

    run(work())


# Maps and sizes ------------------------------------------------------------------------------------------------------


def test_blocks_that_the_pool_does_not_hold_are_refused_never_zeros() -> None:
    async def work() -> None:
        volume = make_volume(held=(HeldRange(0, 512, 1),))
        assert read_at_once(volume, 511) == block(0)
        assert read_at_once(volume, 512) is None
        assert not volume.try_write(511, 2, block(1, 2))
        for call in (
            volume.read(500, 100),
            volume.write(600, block(1)),
            volume.unmap([(512, 1)]),
            volume.allocation(0, 1024, 8),
            volume.compare_and_write(600, block(0), block(1)),
            volume.write_same(0, 1024, block(0)),
        ):
            with pytest.raises(MediumError):
                await call
        assert volume.try_write(0, 1, block(1))

    run(work())


def test_blocks_of_another_owner_are_unavailable_without_a_way_to_it() -> None:
    async def work() -> None:
        volume = make_volume()
        volume_map = PartitionMap(1024, Placement("a", generation=1))
        volume_map.replace(512, 1024, Placement("b", generation=2))
        volume.update(volume_map.snapshot(), [HeldRange(0, 512, 1)])
        assert read_at_once(volume, 511, 2) is None
        with pytest.raises(Unavailable):
            await volume.read(511, 2)
        with pytest.raises(Unavailable):
            await volume.flush(0, 1024)
        assert volume.try_write(0, 1, block(1))
        await volume.flush(0, 512)

    run(work())


def test_a_request_over_two_owners_is_cut_and_put_together() -> None:
    async def work() -> None:
        other = make_volume()
        volume = make_volume(remote=Elsewhere(other))
        volume_map = PartitionMap(1024, Placement("a", generation=1))
        volume_map.replace(512, 1024, Placement("b", generation=2))
        volume.update(volume_map.snapshot(), [HeldRange(0, 512, 1)])
        await volume.write(510, block(1) + block(2) + block(3) + block(4))
        assert bytes(await volume.read(510, 4)) == block(1) + block(2) + block(3) + block(4)
        assert bytes(await other.read(510, 4)) == block(0, 2) + block(3) + block(4)
        await volume.or_write(511, block(4, 2))
        assert bytes(await volume.read(511, 2)) == block(6) + block(7)
        await volume.sanitize_overwrite(511, block(1) + block(2), 3)
        assert bytes(await volume.read(511, 3)) == block(1) + block(2) + block(1)
        await volume.unmap([(510, 3)])
        assert bytes(await volume.read(510, 4)) == block(0, 3) + block(1)
        await volume.write_same(500, 24, block(8))
        await volume.flush(0, 1024)
        assert await volume.allocation(496, 40, 9) == [Extent(496, 32, True), Extent(528, 8, False)]
        with pytest.raises(NotAtomic):
            await volume.compare_and_write(511, block(8, 2), block(1, 2))
        await volume.sanitize_erase()
        assert bytes(await other.read(0, 1024)) == block(0, 1024)

    run(work())


def test_growing_serves_the_new_blocks() -> None:
    async def work() -> None:
        file = MemoryFile(1024 * 512)
        volume = make_volume(file)
        file.resize(2048 * 512)
        await volume.resize(2048)
        assert volume.blocks == 2048
        assert volume.try_write(2047, 1, block(1))
        assert read_at_once(volume, 1024) == block(0)

    run(work())


def test_shrinking_waits_for_what_goes_on_and_refuses_what_waits() -> None:
    async def work() -> None:
        jobs = HeldJobs()
        volume = make_volume(threads=jobs)
        running = asyncio.create_task(volume.write(1000, block(1)))
        await settle()
        waiting = asyncio.create_task(volume.write(1000, block(2)))
        shrinking = asyncio.create_task(volume.resize(512))
        await settle()
        assert not shrinking.done()
        jobs.run_next()
        await running
        with pytest.raises(Unavailable):
            await waiting
        await shrinking
        assert volume.blocks == 512
        assert jobs.waiting == []
        with pytest.raises(AssertionError):
            volume.try_write(512, 1, block(1))
        assert volume.try_write(511, 1, block(1))

    run(work())


def test_a_write_through_volume_writes_only_durably() -> None:
    async def work() -> None:
        file = MemoryFile(1024 * 512, MemoryDisk())
        volume = make_volume(file, write_through=True, journal_file=MemoryFile(Journal.size_bytes(1)))
        assert not volume.try_write(0, 1, block(1))
        await volume.write(0, block(1, 8))
        await volume.write_same(8, 8, block(2))
        await volume.compare_and_write(0, block(1), block(3))
        await volume.or_write(1, block(4))
        await volume.write_atomic(16, block(5, 8))
        await volume.unmap([(24, 8)])
        file.lose_power(lambda versions: versions[0])
        expected = block(3) + block(5) + block(1, 6) + block(2, 8) + block(5, 8)
        assert bytes(await volume.read(0, 24)) == expected

    run(work())


def test_a_file_that_failed_fails_everything() -> None:
    async def work() -> None:
        script = Script([Rule("flush", Fault.ERROR)])
        volume = make_volume(FaultyFile(MemoryFile(1024 * 512), script))
        with pytest.raises(MediumError):
            await volume.flush(0, 1024)
        assert read_at_once(volume, 0) is None
        assert not volume.try_write(0, 1, block(1))
        for call in (volume.read(0, 1), volume.write(0, block(1)), volume.flush(0, 1024), volume.unmap([(0, 1)])):
            with pytest.raises(MediumError):
                await call

    run(work())


def test_storage_faults_carry_their_place() -> None:
    fault = StorageFault(4096, "x", True)
    assert (fault.offset_bytes, fault.writing) == (4096, True)


def test_a_command_in_several_steps_is_told_of_a_shrink_between_them() -> None:
    """It was checked before its first step, so this is no bug of the caller."""

    async def work() -> None:
        volume = make_volume()
        await volume.resize(512)
        for call in (volume.read(1000, 1), volume.flush(0, 1024), volume.unmap([(510, 3)])):
            with pytest.raises(Unavailable, match="shrunk to 512 blocks"):
                await call
        with pytest.raises(AssertionError):
            await volume.read(1024, 1)

    run(work())


def test_a_retired_volume_begins_nothing_any_more() -> None:
    """What outlives sessions must not reach a file that is about to be closed."""

    async def work() -> None:
        file, jobs = MemoryFile(1024 * 512), HeldJobs()
        volume = make_volume(file, jobs)
        running = asyncio.create_task(volume.write(8, block(1)))
        await settle()
        waiting = asyncio.create_task(volume.sanitize_erase())
        await settle()
        volume.retire()
        draining = asyncio.create_task(volume.drain())
        await settle()
        assert not draining.done()
        jobs.run_next()
        await running
        with pytest.raises(Unavailable):
            await waiting
        await draining
        assert not volume.try_write(0, 1, block(1))
        assert not volume.try_read_into(0, 1, memoryview(bytearray(512)))
        for call in (volume.sanitize_overwrite(0, block(7), 8), volume.sanitize_erase(), volume.flush(0, 1024)):
            with pytest.raises(Unavailable):
                await call
        assert jobs.waiting == []

    run(work())

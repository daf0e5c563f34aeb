"""Mirrored changes: what the destination has when an initiator hears that its write is done, and what it has not."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from san_target.peer.frames import Operation
from san_target.storage.faulty import Fault, FaultyFile, Rule, Script
from san_target.storage.memory import MemoryFile
from san_target.volume.device import Unavailable, VolumeError
from san_target.volume.router import NotHere
from san_target.volume.volume import Volume
from tests.unit.volume.kit import HeldJobs, run, settle
from tests.unit.volume.migration_kit import BLOCK, BLOCKS, PIECE, End, Pair, block

START, END = PIECE
LBA = START + 10

Change = Callable[[Volume], Awaitable[object]]

CHANGES: dict[str, Change] = {
    "write": lambda volume: volume.write(LBA, block(7) * 4),
    "write over the beginning": lambda volume: volume.write(START - 2, block(7) * 4),
    "write over the end": lambda volume: volume.write(END - 2, block(7) * 4),
    "write of all and more": lambda volume: volume.write(START - 8, block(9) * (END - START + 16)),
    "durable write": lambda volume: volume.write(LBA, block(7), durable=True),
    "write same": lambda volume: volume.write_same(LBA, 20, block(3)),
    "write same, zeros": lambda volume: volume.write_same(LBA, 20, bytes(BLOCK)),
    "unmap": lambda volume: volume.unmap([(LBA, 30)]),
    "unmap of all and more": lambda volume: volume.unmap([(START - 8, END - START + 16)]),
    "or write": lambda volume: volume.or_write(LBA, block(0x0F0F) * 2),
    "compare and write": lambda volume: volume.compare_and_write(LBA, block(1), block(2)),
    "miscompare": lambda volume: volume.compare_and_write(LBA, block(5), block(2)),
    "sanitize overwrite": lambda volume: volume.sanitize_overwrite(LBA, block(8), 16),
    "sanitize erase": lambda volume: volume.sanitize_erase(),
}


async def filled() -> Pair:
    """Block 1 everywhere, on both sides of an attempt that has copied everything."""
    pair = Pair()
    await pair.source.volume.write(0, block(1) * BLOCKS)
    mirror = await pair.begin()
    local = pair.source.local
    await mirror.send_blocks(Operation.COPY, local.file, local.threads, START, END - START)
    return pair


@pytest.mark.parametrize("name", CHANGES)
def test_both_have_every_change_when_it_is_acknowledged(name: str) -> None:
    async def work() -> None:
        pair = await filled()
        await CHANGES[name](pair.source.volume)
        assert pair.destination.read(START, END - START) == pair.source.read(START, END - START)
        assert pair.source.volume.mirror is not None
        assert pair.source.volume.mirror.spoiled == ""
        # And nothing beside the piece was touched there.
        assert pair.destination.read(0, START) == bytes(START * BLOCK)
        assert pair.destination.read(END, BLOCKS - END) == bytes((BLOCKS - END) * BLOCK)

    run(work())


@pytest.mark.parametrize("name", sorted(CHANGES.keys() - {"miscompare"}))
@pytest.mark.parametrize("fault", ["fail", "lost", "silent"])
def test_a_change_that_fails_there_is_acknowledged_and_spoils_the_attempt(name: str, fault: str) -> None:
    async def work() -> None:
        pair = await filled()
        mirror = pair.source.volume.mirror
        assert mirror is not None
        pair.faults = {Operation.MIRROR: [fault], Operation.MIRROR_UNMAP: [fault]}
        await CHANGES[name](pair.source.volume)
        assert mirror.spoiled != ""
        sent = len(pair.sent)
        await pair.source.volume.write(LBA, block(11))
        assert len(pair.sent) == sent, "a spoiled attempt is not fed any more"

    run(work())


def test_nothing_is_written_at_once_while_it_is_mirrored() -> None:
    async def work() -> None:
        pair = await filled()
        assert not pair.source.volume.try_write(LBA, 1, block(4))
        assert pair.source.volume.try_write(0, 1, block(4))
        assert pair.source.volume.try_read_into(LBA, 1, memoryview(bytearray(BLOCK)))

    run(work())


def test_a_write_that_was_begun_before_the_mirror_is_waited_for() -> None:
    async def work() -> None:  # [7]
        jobs = HeldJobs()
        pair = Pair(source_threads=jobs)
        early = asyncio.create_task(pair.source.volume.write(LBA, block(5)))
        await settle()
        assert jobs.names() == ["write"]
        await pair.begin()
        locks = pair.source.local.locks
        drained = asyncio.create_task(locks.acquire(START, END - START, True))
        await settle()
        assert not drained.done()
        jobs.run_next()
        locks.release(await drained)
        await early
        assert pair.source.read(LBA) == block(5)  # which the copy, begun after that, carries over

    run(work())


def test_blocks_stay_locked_until_the_destination_has_them() -> None:
    async def work() -> None:
        jobs = HeldJobs()
        pair = Pair(destination_threads=jobs)
        await_prepare = asyncio.create_task(pair.begin())
        while not await_prepare.done():
            await settle()
            if jobs.waiting:
                jobs.run_next()
        assert pair.source.volume.mirror is not None
        pair.destination.file.try_write = lambda offset, data: 0  # type: ignore[method-assign, assignment]
        first = asyncio.create_task(pair.source.volume.write(LBA, block(1)))
        await settle()
        second = asyncio.create_task(pair.source.volume.write(LBA, block(2)))
        reading = asyncio.create_task(pair.source.volume.read(LBA, 1))
        await settle()
        assert not first.done()
        assert not second.done()
        assert not reading.done()
        assert len(jobs.waiting) == 1
        jobs.run_next()
        await first
        await settle()
        jobs.run_next()
        await second
        assert bytes(await reading) == block(2)
        assert pair.destination.read(LBA) == block(2)

    run(work())


def test_a_write_that_fails_half_way_here_leaves_the_same_there() -> None:
    async def work() -> None:  # [12]
        script = Script([Rule("write", Fault.TORN, start=LBA * BLOCK, after=1)])
        pair = Pair()
        pair.source = End("a", file=FaultyFile(MemoryFile(BLOCKS * BLOCK), script))
        await pair.source.volume.write(LBA, block(1) * 8)
        mirror = await pair.begin()
        local = pair.source.local
        await mirror.send_blocks(Operation.COPY, local.file, local.threads, START, END - START)
        with pytest.raises(VolumeError):
            await pair.source.volume.write(LBA, block(2) * 8)
        torn = pair.source.read(LBA, 8)
        assert torn != block(1) * 8
        assert pair.destination.read(LBA, 8) == torn

    run(work())


# --- While nobody knows whether the piece was handed over -------------------------------------------------------------


def test_in_doubt_a_change_is_acknowledged_only_when_both_have_it() -> None:
    async def work() -> None:  # [1]
        pair = await filled()
        mirror = pair.source.volume.mirror
        assert mirror is not None
        mirror.mandatory = True
        pair.faults = {Operation.MIRROR: ["lost", "fail"]}
        await pair.source.volume.write(LBA, block(6))
        assert pair.destination.read(LBA) == block(6)
        assert [each.flags for each in pair.sent if each.operation == Operation.MIRROR] == [1, 1, 1], "durable"

    run(work())


@pytest.mark.parametrize("committed", [True, False])
def test_in_doubt_a_change_that_cannot_be_mirrored_waits_for_the_outcome(committed: bool) -> None:
    async def work() -> None:
        pair = await filled()
        mirror = pair.source.volume.mirror
        assert mirror is not None
        mirror.mandatory = True
        pair.faults = {Operation.MIRROR: ["lost"] * 100}
        writing = asyncio.create_task(pair.source.local.write(LBA, block(6)))
        await asyncio.sleep(0.35)
        assert not writing.done()
        if committed:
            mirror.close()
            with pytest.raises(NotHere):
                await writing
        else:
            mirror.release()
            await writing
            assert pair.source.read(LBA) == block(6)

    run(work())


def test_in_doubt_nothing_is_served_without_the_lease() -> None:
    async def work() -> None:
        pair = await filled()
        lease = [True]
        mirror = pair.mirror(may_serve=lambda: lease[0])
        pair.source.volume.mirror = mirror
        buffer = memoryview(bytearray(BLOCK))
        mirror.mandatory = True
        assert pair.source.volume.try_read_into(LBA, 1, buffer)
        lease[0] = False
        assert not pair.source.volume.try_read_into(LBA, 1, buffer)
        assert pair.source.volume.try_view(LBA, 1) is None
        assert not pair.source.volume.try_write(LBA, 1, block(1))
        for request in (pair.source.local.read(LBA, 1), pair.source.local.write(LBA, block(1))):
            with pytest.raises(Unavailable):
                await request
        assert pair.source.volume.try_read_into(0, 1, buffer), "beside the piece all goes on"
        lease[0] = True
        assert bytes(await pair.source.local.read(LBA, 1)) == block(1)

    run(work())

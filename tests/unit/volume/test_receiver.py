"""The destination: what it takes and when, what it records, and what it never serves."""

import asyncio
from types import SimpleNamespace

import pytest

from san_target.peer.frames import Operation, Status
from san_target.storage.records import HELD, HeldRange
from san_target.volume.held import RECEIVING, SEALED
from san_target.volume.mirror import MirrorFailed
from san_target.volume.partition_map import Placement
from tests.unit.volume.kit import HeldJobs, run, settle
from tests.unit.volume.migration_kit import BLOCK, GENERATION, ID, PIECE, Pair, block

START, END = PIECE
BLOCKS_OF_PIECE = END - START


async def sealed(pair: Pair) -> None:
    mirror = await pair.begin()
    await pair.request(pair.frame(Operation.COPY, START, block(9) * 8), 0)
    await mirror.ask(Operation.SEAL, START, BLOCKS_OF_PIECE, durable=True)


def test_the_steps_of_a_piece() -> None:
    async def work() -> None:
        pair = Pair()
        await sealed(pair)
        assert pair.destination.states() == {SEALED}
        assert not pair.destination.local.router.serves(START, 1)
        await pair.mirror().ask(Operation.HANDOVER, START, BLOCKS_OF_PIECE, revision=8)
        assert pair.destination.states() == {HELD}
        assert bytes(await pair.destination.volume.read(START, 8)) == block(9) * 8
        assert bytes(await pair.destination.volume.read(END - 1, 1)) == bytes(BLOCK)
        await pair.mirror().ask(Operation.HANDOVER, START, BLOCKS_OF_PIECE, revision=8)  # once more: harmless

    run(work())


def test_what_is_sealed_survives_a_power_failure() -> None:
    async def work() -> None:
        pair = Pair()
        recorded: list[bytes] = []

        def lose_power(held: tuple[HeldRange, ...]) -> None:
            if {each.state for each in held} == {SEALED}:
                pair.destination.file.lose_power(lambda versions: versions[0])  # type: ignore[attr-defined]
                recorded.append(pair.destination.read(START, 8))

        pair.destination.on_held = lose_power
        await sealed(pair)
        assert recorded == [block(9) * 8], "the record may be there when the blocks are, not before"

    run(work())


def test_in_doubt_changes_survive_a_power_failure_of_the_destination() -> None:
    async def work() -> None:
        pair = Pair()
        await sealed(pair)
        assert (await pair.deliver(pair.frame(Operation.MIRROR, START, block(5), flags=1))).status == Status.GOOD
        assert (await pair.deliver(pair.frame(Operation.MIRROR_UNMAP, START + 1, blocks=1, flags=1))).status == 0
        pair.destination.file.lose_power(lambda versions: versions[0])  # type: ignore[attr-defined]
        assert pair.destination.read(START, 3) == block(5) + bytes(BLOCK) + block(9)

    run(work())


def test_what_is_received_is_recorded_before_the_first_block() -> None:
    async def work() -> None:
        pair = Pair()
        seen: list[set[str]] = []
        pair.destination.on_held = lambda held: seen.append({each.state for each in held})
        await pair.begin()
        assert seen == [{RECEIVING}]
        assert not pair.destination.local.router.serves(START, 1)

    run(work())


def test_each_attempt_begins_empty() -> None:
    async def work() -> None:  # [4]
        pair = Pair()
        await pair.begin(1)
        await pair.request(pair.frame(Operation.COPY, START, block(9) * 8), 0)
        await pair.begin(2)
        assert pair.destination.read(START, 8) == bytes(8 * BLOCK)

    run(work())


@pytest.mark.parametrize("operation", [Operation.COPY, Operation.MIRROR])
def test_frames_of_an_earlier_attempt_are_not_applied(operation: Operation) -> None:
    async def work() -> None:  # [6]
        pair = Pair()
        await pair.begin(1)
        await pair.begin(2)
        await pair.request(pair.frame(Operation.COPY, START, block(2), attempt=2), 0)
        late = await pair.deliver(pair.frame(operation, START, block(1), attempt=1))
        unmap = await pair.deliver(pair.frame(Operation.MIRROR_UNMAP, START, attempt=1, blocks=1))
        assert (late.status, unmap.status) == (Status.MOVED, Status.MOVED)
        assert pair.destination.read(START) == block(2)

    run(work())


def test_the_next_attempt_waits_for_frames_of_the_one_before() -> None:
    async def work() -> None:  # [6]
        jobs = HeldJobs()
        pair = Pair(destination_threads=jobs)
        beginning = asyncio.create_task(pair.begin(1))
        while not beginning.done():
            await settle()
            if jobs.waiting:
                jobs.run_next()
        durable = pair.deliver(pair.frame(Operation.MIRROR, START, block(1), flags=1))
        await settle()
        assert jobs.names() == ["write"]
        again = asyncio.create_task(pair.begin(2))
        await settle()
        assert jobs.names() == ["write"], "the piece is not emptied yet"
        while not again.done():
            await settle()
            if jobs.waiting:
                jobs.run_next()
        assert (await durable).status == Status.GOOD
        assert pair.destination.read(START) == bytes(BLOCK)

    run(work())


def test_frames_are_applied_in_the_order_they_came() -> None:
    async def work() -> None:
        jobs = HeldJobs()
        pair = Pair(destination_threads=jobs)
        beginning = asyncio.create_task(pair.begin(1))
        while not beginning.done():
            await settle()
            if jobs.waiting:
                jobs.run_next()
        first = pair.deliver(pair.frame(Operation.MIRROR, START, block(1), flags=1))
        second = pair.deliver(pair.frame(Operation.MIRROR, START, block(2)))  # could be written at once
        for _ in range(3):
            await settle()
            if jobs.waiting:
                jobs.run_next()
        await asyncio.gather(first, second)
        assert pair.destination.read(START) == block(2)

    run(work())


def test_another_life_of_the_source_must_begin_anew() -> None:
    async def work() -> None:
        pair = Pair()
        await pair.begin(1)
        pair.peer = SimpleNamespace(name="a", incarnation=4, lost=False)
        answer = await pair.deliver(pair.frame(Operation.COPY, START, block(1)))
        assert answer.status == Status.MOVED
        await pair.begin(1)
        pair.peer = SimpleNamespace(name="a", incarnation=3, lost=False)
        with pytest.raises(MirrorFailed, match="FENCED"):
            await pair.begin(99)

    run(work())


def test_only_the_owner_may_bring_blocks() -> None:
    async def work() -> None:
        pair = Pair()
        pair.peer = SimpleNamespace(name="c", incarnation=1, lost=False)
        with pytest.raises(MirrorFailed, match="BUSY"):
            await pair.begin(1)
        assert pair.destination.held == ()

    run(work())


def test_blocks_that_are_held_are_never_emptied() -> None:
    async def work() -> None:  # [5]
        pair = Pair()
        await pair.destination.volume.local.bring(START, block(3), False)
        pair.destination.held = (HeldRange(0, END, 1),)
        with pytest.raises(MirrorFailed, match="has not been cleared away"):
            await pair.begin(1)
        assert pair.destination.read(START) == block(3)

    run(work())


def test_frames_outside_the_piece_are_refused() -> None:
    async def work() -> None:
        pair = Pair()
        await pair.begin(1)
        for lba, data in ((START - 1, block(1) * 2), (END - 1, block(1) * 2), (0, block(1)), (START, b"")):
            answer = await pair.deliver(pair.frame(Operation.COPY, lba, data))
            assert answer.status == Status.MOVED
        short = pair.frame(Operation.COPY, START, block(1), blocks=2)
        assert (await pair.deliver(short)).status == Status.MALFORMED

    run(work())


def test_nothing_is_taken_over_that_was_not_sealed() -> None:
    async def work() -> None:
        pair = Pair()
        mirror = await pair.begin(1)
        with pytest.raises(MirrorFailed, match="was not sealed"):
            await mirror.ask(Operation.HANDOVER, START, BLOCKS_OF_PIECE, revision=8)
        assert pair.destination.states() == {RECEIVING}

    run(work())


def test_a_piece_that_is_being_taken_over_is_not_taken_for_left_over() -> None:
    async def work() -> None:
        pair = Pair()
        await sealed(pair)
        recorded, go_on = asyncio.Event(), asyncio.Event()
        change_held = pair.destination.change_held

        async def slowly(change: object) -> None:
            recorded.set()
            await go_on.wait()
            await change_held(change)  # type: ignore[arg-type]

        pair.destination.change_held = slowly  # type: ignore[method-assign, assignment]
        handing_over = asyncio.create_task(pair.mirror().ask(Operation.HANDOVER, START, BLOCKS_OF_PIECE, revision=8))
        await recorded.wait()
        assert pair.receiver.is_receiving(ID, GENERATION)
        with pytest.raises(Exception, match="received anew"):
            await pair.receiver.discard(pair.destination, ID, GENERATION, START, END)
        go_on.set()
        await handing_over
        assert not pair.receiver.is_receiving(ID, GENERATION)
        assert bytes(await pair.destination.volume.read(START, 8)) == block(9) * 8

    run(work())


def test_the_handover_must_be_of_what_lies_there() -> None:
    async def work() -> None:
        pair = Pair()
        await sealed(pair)
        with pytest.raises(MirrorFailed, match="was not sealed"):
            await pair.mirror().ask(Operation.HANDOVER, START - 1, BLOCKS_OF_PIECE + 1, revision=8)
        assert pair.destination.states() == {SEALED}

    run(work())


def test_after_the_handover_nothing_is_mirrored_any_more() -> None:
    async def work() -> None:
        pair = Pair()
        await sealed(pair)
        await pair.mirror().ask(Operation.HANDOVER, START, BLOCKS_OF_PIECE, revision=8)
        await pair.destination.volume.write(START, block(5))
        late = await pair.deliver(pair.frame(Operation.MIRROR, START, block(1)))
        assert late.status == Status.MOVED
        assert pair.destination.read(START) == block(5)

    run(work())


def test_cancel_clears_what_was_received() -> None:
    async def work() -> None:
        pair = Pair()
        await sealed(pair)
        await pair.mirror().ask(Operation.CANCEL, START, BLOCKS_OF_PIECE)
        assert pair.destination.held == ()
        assert pair.destination.read(START, 8) == bytes(8 * BLOCK)

    run(work())


def test_what_is_received_anew_is_not_discarded() -> None:
    async def work() -> None:
        pair = Pair()
        await sealed(pair)
        await pair.begin(2)
        await pair.request(pair.frame(Operation.COPY, START, block(4), attempt=2), 0)
        with pytest.raises(Exception, match="received anew"):
            await pair.receiver.discard(pair.destination, ID, GENERATION, START, END)
        assert pair.destination.read(START) == block(4)
        assert pair.destination.states() == {RECEIVING}

    run(work())


def test_what_is_held_is_not_discarded() -> None:
    async def work() -> None:
        pair = Pair()
        await sealed(pair)
        await pair.mirror().ask(Operation.HANDOVER, START, BLOCKS_OF_PIECE, revision=8)
        with pytest.raises(Exception, match="this member's by now"):
            await pair.receiver.discard(pair.destination, ID, GENERATION, START, END)
        assert pair.destination.states() == {HELD}
        assert pair.destination.map_now.find(START) == Placement("b", generation=GENERATION)

    run(work())

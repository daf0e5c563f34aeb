"""What one member asks of another: whatever is lost, moved or changed on the way, it is done once, or not at all."""

import asyncio

import pytest

from san_target.peer.frames import Operation, Request, Status
from san_target.scsi.command import RESERVATION_CONFLICT, Outcome
from san_target.storage.interface import StorageFull
from san_target.storage.records import HeldRange
from san_target.volume import volume as volume_module
from san_target.volume.device import MediumError, OutOfSpace, Unavailable
from san_target.volume.origin import ORIGIN, Origin, Overtaken
from tests.unit.volume.group_kit import BLOCK, BLOCKS, HALF, Wire, halves
from tests.unit.volume.kit import VOLUME_ID, HeldJobs, run


def block(byte: int, blocks: int = 1) -> bytes:
    return bytes([byte]) * (blocks * BLOCK)


def test_each_command_reaches_its_owner_through_any_member() -> None:
    async def work() -> None:
        wire = Wire()
        a, b = wire.site("a"), wire.site("b")
        for here, there in ((a, b), (b, a)):
            await here.volume.write(HALF - 1, block(1) + block(2))
            assert bytes(await there.volume.read(HALF - 1, 2)) == block(1) + block(2)
            await here.volume.or_write(HALF - 1, block(4, 2))
            assert bytes(await there.volume.read(HALF - 1, 2)) == block(5) + block(6)
            for lba in (HALF - 1, HALF):
                old = bytes(await here.volume.read(lba, 1))
                assert await here.volume.compare_and_write(lba, old, block(9)) is None
                assert await here.volume.compare_and_write(lba, old, block(8)) == 0
                assert bytes(await there.volume.read(lba, 1)) == block(9)
            await here.volume.write_same(HALF - 4, 8, block(3))
            assert bytes(await there.volume.read(HALF - 4, 8)) == block(3, 8)
            await here.volume.unmap([(HALF - 8, 16)])
            assert bytes(await there.volume.read(HALF - 8, 16)) == block(0, 16)
            await here.volume.sanitize_overwrite(HALF - 3, block(1) + block(2), 6)
            assert bytes(await there.volume.read(HALF - 3, 6)) == (block(1) + block(2)) * 3
            await here.volume.flush(0, BLOCKS)
            await here.volume.prefetch(0, BLOCKS)
            extents = await here.volume.allocation(0, BLOCKS, 9)
            assert [extent.lba for extent in extents if extent.mapped] == [HALF - 8]
            assert [extent.lba for extent in extents if not extent.mapped] == [0, HALF + 8]
            await here.volume.sanitize_erase()
            assert bytes(await there.volume.read(0, BLOCKS)) == block(0, BLOCKS)

    run(work())


@pytest.mark.parametrize("faults", [["before"], ["after"], ["before", "after", "before"], ["unsent", "after"]])
def test_a_change_that_was_lost_is_carried_out_once(faults: list[str]) -> None:
    """COMPARE AND WRITE tells: carried out twice it would find its own data, and miscompare [33]."""

    async def work() -> None:
        wire = Wire()
        a, _b = wire.site("a"), wire.site("b")
        wire.faults = list(faults)
        assert await a.volume.compare_and_write(HALF, block(0), block(1)) is None
        assert bytes(await a.volume.read(HALF, 1)) == block(1)
        wire.faults = list(faults)
        assert await a.volume.compare_and_write(HALF, block(0), block(2)) == 0

    run(work())


def test_a_write_that_was_lost_does_not_come_again_after_a_younger_one() -> None:
    async def work() -> None:
        wire = Wire()
        a, b = wire.site("a"), wire.site("b")
        wire.faults = ["after"]
        younger = False

        def between(request: Request) -> None:
            nonlocal younger
            if len(wire.sent) == 2 and not younger:
                younger = True
                assert b.volume.try_write(HALF, 1, block(2))

        wire.on_request = between
        await a.volume.write(HALF, block(1))
        assert younger
        assert bytes(await b.volume.read(HALF, 1)) == block(2)

    run(work())


def test_nobody_knows_what_a_life_did_that_has_ended() -> None:
    async def work() -> None:
        wire = Wire()
        a, b = wire.site("a"), wire.site("b")
        wire.faults = ["after"]

        def restart(_request: Request) -> None:
            b.incarnation += 1
            b.start()

        wire.on_request = restart
        with pytest.raises(Unavailable, match="'b' ended"):
            await a.volume.write(HALF, block(1))
        wire.on_request = lambda request: None
        await a.volume.write(HALF, block(1))

    run(work())


def test_a_read_that_was_lost_is_asked_again() -> None:
    async def work() -> None:
        wire = Wire()
        a, b = wire.site("a"), wire.site("b")
        await b.volume.write(HALF, block(7))
        wire.faults = ["before", "after", "unsent"]
        assert bytes(await a.volume.read(HALF, 1)) == block(7)

    run(work())


def test_blocks_that_have_moved_are_found_where_they_are() -> None:
    async def work() -> None:
        wire = Wire()
        a, b, c = wire.site("a"), wire.site("b"), wire.site("c")
        moved = halves("a", "c", (1, 7))
        b.volume.update(moved, (), 7)
        c.volume.update(moved, (HeldRange(HALF, BLOCKS, 7),), 7)
        hurried: list[int] = []
        a.forwarder.hurry = lambda: hurried.append(a.revision)
        writing = asyncio.create_task(a.volume.write(HALF, block(1)))
        await asyncio.sleep(0.02)
        assert not writing.done()  # b says that they moved; a has to learn it
        assert set(hurried) == {5}
        a.volume.update(moved, (HeldRange(0, HALF, 1),), 7)
        await writing
        assert bytes(await c.volume.read(HALF, 1)) == block(1)
        assert bytes(b.file.read(HALF * BLOCK, BLOCK)) == block(0)

    run(work())


def test_an_older_generation_is_refused_though_the_owner_is_the_same() -> None:
    """The blocks went away and came back: what was meant for the owner of before is not for the one of now [16]."""

    async def work() -> None:
        wire = Wire()
        a, b = wire.site("a"), wire.site("b")
        back = halves("a", "b", (1, 8))
        b.volume.update(back, (HeldRange(HALF, BLOCKS, 8),), 8)
        writing = asyncio.create_task(a.volume.write(HALF, block(1)))
        await asyncio.sleep(0.02)
        assert bytes(b.file.read(HALF * BLOCK, BLOCK)) == block(0)
        a.volume.update(back, (HeldRange(0, HALF, 1),), 8)
        await writing
        assert bytes(b.file.read(HALF * BLOCK, BLOCK)) == block(1)

    run(work())


def test_an_owner_waits_for_its_watch_to_see_what_the_sender_has_seen() -> None:
    async def work() -> None:
        wire = Wire()
        a, b = wire.site("a"), wire.site("b")
        back = halves("a", "b", (1, 7))
        a.volume.update(back, (HeldRange(0, HALF, 1),), 50)
        reading = asyncio.create_task(a.volume.read(HALF, 1))
        await asyncio.sleep(0.02)
        assert not reading.done()
        b.volume.update(back, (HeldRange(HALF, BLOCKS, 7),), 50)
        b.seen = 50
        await reading
        assert len(wire.sent) == 1  # it was not sent back and forth meanwhile [9]

    run(work())


def test_an_owner_does_not_wait_where_both_mean_the_same_stay_of_the_blocks() -> None:
    """Something else of the map has changed, as it does many times a second while a volume migrates."""

    async def work() -> None:
        wire = Wire()
        a, b = wire.site("a"), wire.site("b")
        a.volume.update(halves(), (HeldRange(0, HALF, 1),), 50)
        await a.volume.write(HALF, block(1))
        assert bytes(await a.volume.read(HALF, 1)) == block(1)
        assert await a.volume.compare_and_write(HALF, block(1), block(2)) is None
        assert b.seen < 50
        flushing = asyncio.create_task(a.volume.flush(0, BLOCKS))  # of all that b has, which it may not know yet
        await asyncio.sleep(0.02)
        assert not flushing.done()
        b.seen = 50
        await flushing

    run(work())


def test_a_flush_reaches_an_owner_that_only_the_old_one_knows() -> None:
    """The map of a is old: it knows nothing of c, which has the data. b, asked by a, tells of it [32]."""

    async def work() -> None:
        wire = Wire()
        a, b, c = wire.site("a"), wire.site("b"), wire.site("c")
        moved = halves("a", "c", (1, 7))
        b.volume.update(moved, (), 7)
        c.volume.update(moved, (HeldRange(HALF, BLOCKS, 7),), 7)
        assert c.volume.try_write(HALF, 1, block(1))
        flushing = asyncio.create_task(a.volume.flush(0, BLOCKS))
        await asyncio.sleep(0.02)
        assert not flushing.done()
        a.volume.update(moved, (HeldRange(0, HALF, 1),), 7)
        await flushing
        c.file.lose_power(lambda versions: versions[0])
        assert bytes(c.file.read(HALF * BLOCK, BLOCK)) == block(1)

    run(work())


def test_an_owner_that_is_away_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        wire = Wire()
        a, _b = wire.site("a"), wire.site("b")
        wire.down = True
        writing = asyncio.create_task(a.volume.write(HALF, block(1)))
        await asyncio.sleep(0.05)
        assert not writing.done()
        wire.down = False
        await writing
        wire.down = True
        monkeypatch.setattr(volume_module, "PATIENCE_S", 0.05)
        with pytest.raises(Unavailable, match="cannot be reached"):
            await a.volume.write(HALF, block(1))
        with pytest.raises(Unavailable, match="cannot be reached"):
            await a.volume.flush(0, BLOCKS)
        await a.volume.write(0, block(1))  # what is here goes on

    run(work())


def test_what_the_disk_of_the_owner_says_is_said_here() -> None:
    async def work() -> None:
        wire = Wire()
        a, b = wire.site("a"), wire.site("b")

        def full(*_arguments: object) -> None:
            raise StorageFull("no space")

        b.volume.local._file.write = full
        b.volume.local._file.try_write = lambda *_arguments: 0
        with pytest.raises(OutOfSpace):
            await a.volume.write(HALF, block(1))

    run(work())


# --- what a command was judged by -------------------------------------------------------------------------------------


async def _as_command(doing, epoch: int, heard_s: float = 1.0, outcome: object = None, wanted=lambda: True):
    """Carry out as a command of an initiator. outcome: how it ends when it is judged again; None: it goes on."""

    async def judge_again(wanted: int) -> int:
        if outcome is not None:
            raise Overtaken("judged again", outcome)
        return wanted

    async def hear_again() -> float:
        return 2.0

    ORIGIN.set(Origin(VOLUME_ID, epoch, heard_s, judge_again, hear_again, wanted))
    return await doing


def test_a_write_judged_by_an_older_state_is_judged_again_at_the_owner() -> None:
    """A PREEMPT came while the write was on its way [29]."""

    async def work() -> None:
        wire = Wire()
        a, b = wire.site("a"), wire.site("b")
        b.epoch = 9
        refused = Outcome(RESERVATION_CONFLICT)
        with pytest.raises(Overtaken) as raised:
            await asyncio.create_task(_as_command(a.volume.write(HALF, block(1)), 8, outcome=refused))
        assert raised.value.outcome is refused
        assert bytes(b.file.read(HALF * BLOCK, BLOCK)) == block(0)
        await asyncio.create_task(_as_command(a.volume.write(HALF, block(1)), 8))
        assert bytes(b.file.read(HALF * BLOCK, BLOCK)) == block(1)
        await asyncio.create_task(_as_command(a.volume.read(HALF, 1), 8, outcome=refused))

    run(work())


def test_the_state_is_looked_at_under_the_lock_not_at_the_door() -> None:
    async def work() -> None:
        wire = Wire()
        a, b = wire.site("a"), wire.site("b")
        lock = b.volume.local.locks.try_acquire(HALF, 1, True)
        assert lock is not None
        refused = Outcome(RESERVATION_CONFLICT)
        writing = asyncio.create_task(_as_command(a.volume.write(HALF, block(1)), 8, outcome=refused))
        await asyncio.sleep(0.02)
        b.epoch = 9  # while it waits for its turn
        b.volume.local.locks.release(lock)
        with pytest.raises(Overtaken):
            await writing
        assert bytes(b.file.read(HALF * BLOCK, BLOCK)) == block(0)

    run(work())


def test_what_was_begun_before_a_change_of_state_is_done_before_anything_after_it() -> None:
    """A thread does not look again; but nobody sees these blocks before it has ended."""

    async def work() -> None:
        wire, jobs = Wire(), HeldJobs()
        a, b = wire.site("a"), wire.site("b", jobs)
        old = asyncio.create_task(a.volume.write(HALF, block(1), durable=True))
        while not jobs.waiting:
            await asyncio.sleep(0.001)
        b.epoch = 7
        later = [
            asyncio.create_task(a.volume.read(HALF, 1)),
            asyncio.create_task(b.volume.read(HALF, 1)),
        ]
        into = bytearray(BLOCK)
        assert not b.volume.try_read_into(HALF, 1, memoryview(into))
        assert not b.volume.try_write(HALF, 1, block(2))
        await asyncio.sleep(0.01)
        assert len(jobs.waiting) == 1
        assert not any(task.done() for task in (old, *later))
        while not all(task.done() for task in later):
            jobs.run_next()
            await asyncio.sleep(0.001)
        await old
        assert [bytes(task.result()) for task in later] == [block(1)] * 2

    run(work())


def test_a_write_of_an_initiator_not_heard_for_long_waits_for_a_sign_of_life() -> None:
    """The member was stopped with the write in its hands, and its initiator has gone elsewhere [28]."""

    async def work() -> None:
        wire = Wire()
        a, b = wire.site("a"), wire.site("b")
        await asyncio.create_task(_as_command(a.volume.write(HALF, block(1)), 0, heard_s=-1.0))
        assert [request.tick for request in wire.sent] == [1, 100]
        assert bytes(b.file.read(HALF * BLOCK, BLOCK)) == block(1)

    run(work())


def test_nothing_is_tried_again_for_a_session_that_has_ended() -> None:
    async def work() -> None:
        wire = Wire()
        a, b = wire.site("a"), wire.site("b")
        wire.down = True
        ended: list[bool] = []
        writing = asyncio.create_task(_as_command(a.volume.write(HALF, block(1)), 0, wanted=lambda: not ended))
        await asyncio.sleep(0.02)
        ended.append(True)
        wire.down = False
        with pytest.raises(Overtaken):
            await writing
        assert bytes(b.file.read(HALF * BLOCK, BLOCK)) == block(0)

    run(work())


def test_nothing_of_a_lost_peer_is_begun() -> None:
    async def work() -> None:
        wire = Wire()
        _a, b = wire.site("a"), wire.site("b")
        answers = []
        peer = wire.peers_of(wire.sites["a"]).link("b").peer
        lock = b.volume.local.locks.try_acquire(HALF, 1, True)
        assert lock is not None
        request = Request(
            Operation.WRITE, bytes.fromhex(VOLUME_ID), HALF, 1, block(1), generation=1, tick=100, request_id=1
        )
        b.owner.handle(peer, request, answers.append)
        await asyncio.sleep(0.01)
        peer.lost = True
        b.volume.local.locks.release(lock)
        await asyncio.sleep(0.01)
        assert [answer.status for answer in answers] == [Status.FENCED]
        assert bytes(b.file.read(HALF * BLOCK, BLOCK)) == block(0)

    run(work())


@pytest.mark.parametrize(
    "request_",
    [
        Request(Operation.WRITE, bytes.fromhex(VOLUME_ID), HALF, 2, block(1), generation=1),
        Request(Operation.WRITE_SAME, bytes.fromhex(VOLUME_ID), HALF, 2, b"x", generation=1),
        Request(Operation.COMPARE_AND_WRITE, bytes.fromhex(VOLUME_ID), HALF, 1, block(1), generation=1),
        Request(Operation.WRITE_ATOMIC, bytes.fromhex(VOLUME_ID), HALF, 1, block(1), generation=1),
        Request(Operation.SEAL, bytes.fromhex(VOLUME_ID), HALF, 1, generation=1),
        Request(Operation.SANITIZE_OVERWRITE, bytes.fromhex(VOLUME_ID), HALF, 1, b"", generation=1),
        Request(Operation.READ, bytes.fromhex(VOLUME_ID), HALF, 2, answer_bytes=BLOCK, generation=1),
        Request(Operation.ALLOCATION, bytes.fromhex(VOLUME_ID), HALF, 2, answer_bytes=16, generation=1),
    ],
    ids=lambda request: Operation(request.operation).name,
)
def test_a_request_that_makes_no_sense_is_refused(request_: Request) -> None:
    async def work() -> None:
        wire = Wire()
        _a, b = wire.site("a"), wire.site("b")
        request_.request_id, request_.tick = 1, 100
        answers = []
        b.owner.handle(wire.peers_of(wire.sites["a"]).link("b").peer, request_, answers.append)
        await asyncio.sleep(0.01)
        assert [answer.status for answer in answers] == [Status.MALFORMED]

    run(work())


def test_a_volume_that_is_not_served_here_is_said_to_be_unknown() -> None:
    async def work() -> None:
        wire = Wire()
        _a, b = wire.site("a"), wire.site("b")
        answers = []
        request = Request(Operation.READ, bytes(16), 0, 1, generation=1, request_id=1)
        b.owner.handle(wire.peers_of(wire.sites["a"]).link("b").peer, request, answers.append)
        await asyncio.sleep(0.01)
        assert [answer.status for answer in answers] == [Status.UNKNOWN_VOLUME]

    run(work())


def test_a_lost_block_is_a_medium_error_through_every_member() -> None:
    async def work() -> None:
        wire = Wire()
        a, b = wire.site("a"), wire.site("b")

        def broken(*_arguments: object) -> bytearray:
            raise MediumError(HALF + 1, "lost")

        b.volume.local._file.try_read_into = lambda *_arguments: False
        b.volume.local._file.read = broken
        with pytest.raises(MediumError) as raised:
            await a.volume.read(HALF, 4)
        assert raised.value.lba == HALF + 1

    run(work())

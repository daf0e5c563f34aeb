"""Atomic writes: the power fails before and after every step, also during the replay; old or new data, never a mix."""

import asyncio
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from san_target.storage.faulty import Fault, FaultyFile, Rule, Script
from san_target.storage.interface import StorageFault, StorageFull
from san_target.storage.journal import DATA_BYTES_MAX, Journal
from san_target.storage.memory import MemoryDisk, MemoryFile, PowerLost
from san_target.storage.pool import JOURNAL_SLOTS, Pool
from san_target.storage.records import HeldRange
from san_target.storage.threads import SynchronousThreads

VOLUME = "0123456789abcdef" * 2
OTHER = "fedcba9876543210" * 2
GROUP = "ab" * 16
SIZE = 64 * 1024
OFFSET, LENGTH = 6144, 20 * 512
OLD, NEW, YOUNGER = b"o" * LENGTH, b"n" * LENGTH, b"y" * LENGTH
MIB = 1 << 20

Choice = Callable[[Sequence[bytes]], bytes]


def oldest(versions: Sequence[bytes]) -> bytes:
    return versions[0]


def newest(versions: Sequence[bytes]) -> bytes:
    return versions[-1]


CHOICES: list[Choice] = [oldest, newest, *(random.Random(seed).choice for seed in range(6))]


class Machine:
    """One disk with a journal and a place; the power fails at a chosen step."""

    def __init__(self) -> None:
        self.steps_left = 1 << 30
        self.steps: list[str] = []
        disk = MemoryDisk(before_step=self._step)
        self.journal_file = MemoryFile(Journal.size_bytes(2), disk)
        self.place = MemoryFile(SIZE, disk)
        self.place.write(0, b"o" * SIZE, durable=True)

    def _step(self, name: str) -> None:
        self.steps.append(name)
        if self.steps_left == 0:
            raise PowerLost(name)
        self.steps_left -= 1

    def lose_power(self, choice: Choice) -> None:
        self.steps_left = 1 << 30
        self.journal_file.lose_power(choice)
        self.place.lose_power(choice)

    def start(self) -> Journal:
        journal = Journal(self.journal_file)
        journal.replay(lambda volume, _offset, _length: self.place if volume == VOLUME else None)
        return journal

    def steps_of(self, work: Callable[[], object]) -> int:
        before = len(self.steps)
        work()
        return len(self.steps) - before


def write(machine: Machine, journal: Journal) -> None:
    journal.write(VOLUME, machine.place, OFFSET, NEW)


def check(machine: Machine, acknowledged: bool) -> None:
    whole = machine.place.read(0, SIZE)
    found = bytes(whole[OFFSET : OFFSET + LENGTH])
    assert found == NEW or (found == OLD and not acknowledged)
    assert whole[:OFFSET] + whole[OFFSET + LENGTH :] == b"o" * (SIZE - LENGTH)


def steps_of_a_write() -> int:
    machine = Machine()
    journal = machine.start()
    return machine.steps_of(lambda: write(machine, journal))


def test_a_write_syncs_the_slot_then_the_place_then_the_freed_slot() -> None:
    machine = Machine()
    journal = machine.start()
    del machine.steps[:]
    write(machine, journal)
    assert machine.steps == ["write", "sync write"] * 3


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("step", range(steps_of_a_write() + 1))
def test_power_fails_at_every_step(step: int, choice: Choice) -> None:
    machine = Machine()
    journal = machine.start()
    machine.steps_left = step
    acknowledged = True
    try:
        write(machine, journal)
    except PowerLost:
        acknowledged = False
    machine.lose_power(choice)
    machine.start()
    check(machine, acknowledged)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("step", range(steps_of_a_write() + 1))
def test_power_fails_again_at_every_step_of_the_replay(step: int, choice: Choice) -> None:
    for replay_step in range(steps_of_a_write()):
        machine = Machine()
        journal = machine.start()
        machine.steps_left = step
        acknowledged = True
        try:
            write(machine, journal)
        except PowerLost:
            acknowledged = False
        machine.lose_power(choice)
        machine.steps_left = replay_step
        try:
            machine.start()
        except PowerLost:
            machine.lose_power(choice)
        machine.start()
        check(machine, acknowledged)


@pytest.mark.parametrize("choice", CHOICES)
def test_a_younger_ordinary_write_is_never_overwritten_by_a_replay(choice: Choice) -> None:
    """After an acknowledged atomic write, and also after one that was cut off and replayed."""
    for step in range(steps_of_a_write() + 1):
        machine = Machine()
        journal = machine.start()
        machine.steps_left = step
        try:
            write(machine, journal)
        except PowerLost:
            machine.lose_power(choice)
            machine.start()
        machine.steps_left = 1 << 30
        machine.place.write(OFFSET, YOUNGER)
        machine.place.flush()
        machine.lose_power(choice)
        machine.start()
        assert machine.place.read(OFFSET, LENGTH) == YOUNGER


def test_a_replay_is_idempotent() -> None:
    machine = Machine()
    journal = machine.start()
    machine.steps_left = 3  # the slot is whole, the place is not yet written
    with pytest.raises(PowerLost):
        write(machine, journal)
    machine.lose_power(oldest)
    again = Journal(machine.journal_file)
    assert again.replay(lambda _volume, _offset, _length: machine.place) == 1
    assert Journal(machine.journal_file).replay(lambda _volume, _offset, _length: machine.place) == 0
    check(machine, acknowledged=True)


def test_slots_are_used_again_and_again() -> None:
    machine = Machine()
    journal = machine.start()
    for number in range(10):
        journal.write(VOLUME, machine.place, number * 512, bytes([number]) * 512)
    assert [machine.place.read(number * 512, 1)[0] for number in range(10)] == list(range(10))


def test_the_largest_write_fits_and_a_larger_one_is_a_bug() -> None:
    place = MemoryFile(4 * MIB)
    journal = Journal(MemoryFile(Journal.size_bytes(1)))
    journal.replay(lambda _volume, _offset, _length: None)
    journal.write(VOLUME, place, MIB, b"x" * DATA_BYTES_MAX)
    assert place.read(MIB, DATA_BYTES_MAX) == b"x" * DATA_BYTES_MAX
    with pytest.raises(AssertionError):
        journal.write(VOLUME, place, MIB, b"x" * (DATA_BYTES_MAX + 1))


def test_a_write_before_the_replay_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        Journal(MemoryFile(Journal.size_bytes(1))).write(VOLUME, MemoryFile(SIZE), 0, NEW)


def test_a_full_disk_is_found_before_anything_changes() -> None:
    place = MemoryFile(SIZE, MemoryDisk(capacity_bytes=8192))
    place.write(0, b"o" * 8192)
    journal = Journal(MemoryFile(Journal.size_bytes(1)))
    journal.replay(lambda _volume, _offset, _length: None)
    with pytest.raises(StorageFull):
        journal.write(VOLUME, place, 4096, b"n" * 8192)
    assert not place.failed
    assert place.read(0, 8192) == b"o" * 8192
    place.punch(0, 4096)
    journal.write(VOLUME, place, 4096, b"n" * 8192)


def test_a_broken_journal_does_not_take_healthy_volumes_down() -> None:
    journal_file, place = MemoryFile(Journal.size_bytes(1)), MemoryFile(SIZE)
    journal = Journal(journal_file)
    journal.replay(lambda _volume, _offset, _length: None)
    journal_file.fail("a test")
    with pytest.raises(StorageFault):
        journal.write(VOLUME, place, 0, NEW)
    assert not place.failed


def test_without_a_slot_left_nobody_waits_for_ever() -> None:
    """The only slot is live: once because this start could not replay it, once because it has just come to be so."""
    journal_file, place, other = MemoryFile(Journal.size_bytes(1)), MemoryFile(SIZE), MemoryFile(SIZE)

    def unknown(volume_id: str, offset_bytes: int, length_bytes: int) -> MemoryFile:
        raise LookupError(volume_id)

    journal = Journal(journal_file)
    journal.replay(unknown)
    with pytest.raises(StorageFault, match="interrupted"):
        journal.write(VOLUME, FaultyFile(place, Script([Rule("write", Fault.TORN)])), OFFSET, NEW)
    restarted = Journal(journal_file)
    restarted.replay(unknown)
    for full in (journal, restarted):
        with pytest.raises(StorageFault, match="journal is full"):
            full.write(OTHER, other, 0, NEW)
    assert not other.failed


# With a pool of real files -------------------------------------------------------------------------------------------


def interrupted(directory: Path, work_after: Callable[[Pool], None]) -> None:
    """A pool whose journal has one live slot; then a restart."""

    async def work() -> None:
        pool = Pool(directory, SynchronousThreads())
        await pool.open(GROUP, 1)
        for volume_id in (VOLUME, OTHER):
            volume = await pool.create_volume(volume_id, MIB, 512, [HeldRange(0, MIB // 512, 1)])
            volume.file.write(0, b"o" * MIB)
        broken = FaultyFile(pool.open_volume(VOLUME).file, Script([Rule("write", Fault.TORN)]))
        with pytest.raises(StorageFault):
            pool.journal.write(VOLUME, broken, OFFSET, NEW)
        file = pool.open_volume(VOLUME).file
        assert file.failed  # nobody may see, or overwrite, what is there now
        with pytest.raises(StorageFault, match="a restart completes"):
            file.read(0, 512)
        for _ in range(2 * JOURNAL_SLOTS):  # others go on, without the slot that the restart needs
            pool.journal.write(OTHER, pool.open_volume(OTHER).file, 0, NEW)
        work_after(pool)
        await pool.close()

    asyncio.run(work())


def reopened(directory: Path, work: Callable[[Pool], None]) -> None:
    async def reopen() -> None:
        pool = Pool(directory, SynchronousThreads())
        await pool.open(GROUP, 1)
        work(pool)
        await pool.close()

    asyncio.run(reopen())


def test_a_restart_completes_an_interrupted_write(tmp_path: Path) -> None:
    interrupted(tmp_path, lambda _pool: None)

    def verify(pool: Pool) -> None:
        file = pool.open_volume(VOLUME).file
        assert file.read(0, MIB) == b"o" * OFFSET + NEW + b"o" * (MIB - OFFSET - LENGTH)
        file.write(OFFSET, YOUNGER)

    reopened(tmp_path, verify)
    reopened(tmp_path, lambda pool: _expect(pool.open_volume(VOLUME).file.read(OFFSET, LENGTH), YOUNGER))


def test_a_write_to_a_range_that_is_no_longer_held_is_dropped(tmp_path: Path) -> None:
    interrupted(tmp_path, lambda pool: pool._update_held(VOLUME, (HeldRange(0, 20, 1), HeldRange(30, 2048, 1))))
    reopened(tmp_path, lambda pool: _expect(pool.open_volume(VOLUME).file.read(OFFSET + LENGTH // 2, 512), b"o" * 512))


def test_a_write_waits_for_a_volume_that_cannot_be_opened_now(tmp_path: Path) -> None:
    interrupted(tmp_path, lambda _pool: None)
    blocks = tmp_path / "volumes" / f"{VOLUME}.blocks"
    away = tmp_path / "away"
    blocks.rename(away)

    def verify(pool: Pool) -> None:
        assert list(pool.problems) == [VOLUME]
        for number in range(20):  # the kept slot is not used for others
            pool.journal.write(OTHER, pool.open_volume(OTHER).file, number * 512, b"z" * 512)

    reopened(tmp_path, verify)
    away.rename(blocks)
    reopened(tmp_path, lambda pool: _expect(pool.open_volume(VOLUME).file.read(OFFSET, LENGTH), NEW))


def test_a_write_of_a_deleted_volume_is_dropped(tmp_path: Path) -> None:
    interrupted(tmp_path, lambda pool: pool._delete_volume(VOLUME))
    reopened(tmp_path, lambda pool: _expect(pool.list_volumes(), [OTHER]))


def _expect(found: object, expected: object) -> None:
    assert found == expected

"""The history of a disk: commands of many blocks, crashes of some, and what is shown of a violation."""

from __future__ import annotations

import random

import pytest

from initiator_sim.blocks import Stamper, WrongBlock
from initiator_sim.disk_history import FOUND_MAX, Command, DiskHistory
from initiator_sim.history import INITIAL, NOT_DURABLE, What

BLOCK = 512


class Clock:
    """A history in which each call takes a second, one after the other."""

    def __init__(self) -> None:
        self.history = DiskHistory()
        self.now = 0.0
        self.number = 0

    def tick(self) -> float:
        self.now += 1
        return self.now

    def send_write(self, lba: int = 0, blocks: int = 4, fua: bool = False) -> Command:
        self.number += 1
        return self.history.write(lba, blocks, (1, self.number), self.tick(), fua)

    def write(self, lba: int = 0, blocks: int = 4, fua: bool = False) -> int:
        """Its number."""
        self.history.answered(self.send_write(lba, blocks, fua), self.tick())
        return self.number

    def read(self, *numbers: int, lba: int = 0) -> None:
        """A read that found these writes, 0 being the initial content."""
        reading = self.history.read(lba, len(numbers), self.tick())
        self.history.answered(reading, self.tick(), [(1, number) if number else INITIAL for number in numbers])

    def flush(self, lba: int = 0, blocks: int = 1 << 63) -> None:
        self.history.answered(self.history.flush(self.tick(), lba, blocks), self.tick())

    def crash(self, lba: int = 0, blocks: int = 1 << 63) -> None:
        self.history.crash(self.tick(), lba, blocks)

    def wrong(self) -> list[tuple[int, int]]:
        return [(found.lba, found.last) for found in self.history.check()]


def test_blocks_are_judged_one_by_one() -> None:
    clock = Clock()
    clock.write(0, 8)
    clock.write(4, 2)
    clock.read(1, 1, 1, 1, 2, 2, 1, 1)
    assert clock.wrong() == []
    clock.read(1, 1, 1, 1, 1, 1, 1, 1)
    assert clock.wrong() == [(4, 5)]


def test_the_shortest_proof_comes_first_and_says_where() -> None:
    clock = Clock()
    clock.write(0, 1)
    clock.write(9, 1)
    clock.write(9, 1)
    clock.read(2, lba=9)
    clock.read(0, lba=0)
    first, second = clock.history.check()
    assert (first.lba, second.lba) == (0, 9)
    assert [operation.what for operation in first.violation.operations] == [What.WRITE, What.READ]
    assert str(first).startswith("LBA 0: ")
    assert len(second.violation.operations) == 3


def test_a_crash_may_leave_some_blocks_of_a_write_and_take_others() -> None:
    clock = Clock()
    clock.write()
    clock.flush()
    clock.write()
    clock.crash()
    clock.read(1, 2, 1, 2)
    assert clock.wrong() == []
    clock.read(0, 2, 1, 0)
    assert clock.wrong() == [(0, 0), (3, 3)]


def test_what_was_flushed_is_not_lost() -> None:
    clock = Clock()
    clock.write()
    clock.flush()
    clock.crash()
    clock.read(1, 0, 1, 1)
    [found] = clock.history.check()
    assert (found.lba, found.violation.reason) == (1, NOT_DURABLE)


def test_a_crash_of_some_blocks_excuses_no_others() -> None:
    clock = Clock()
    clock.write()
    clock.crash(lba=2, blocks=2)
    clock.read(0, 0, 0, 0)
    assert clock.wrong() == [(0, 1)]


def test_a_flush_of_some_blocks_keeps_no_others() -> None:
    clock = Clock()
    clock.write()
    clock.flush(lba=0, blocks=1)
    clock.crash()
    clock.read(0, 0, 0, 0)
    assert clock.wrong() == [(0, 0)]


def test_a_flush_that_one_member_s_crash_interrupts_counts_for_the_others() -> None:
    clock = Clock()
    clock.write()
    flushing = clock.history.flush(clock.tick())
    clock.crash(lba=0, blocks=2)
    clock.history.answered(flushing, clock.tick())
    clock.crash()
    clock.read(0, 0, 0, 0)
    assert clock.wrong() == [(2, 3)]


def test_fua_is_durable_without_a_flush() -> None:
    clock = Clock()
    clock.write(0, 2, fua=True)
    clock.write(2, 2)
    clock.crash()
    clock.read(0, 0, 0, 0)
    assert clock.wrong() == [(0, 1)]


def test_what_became_of_a_write_without_an_answer() -> None:
    clock = Clock()
    unknown, over, refused = clock.send_write(0, 1), clock.send_write(1, 1), clock.send_write(2, 1)
    clock.history.gave_up(over, clock.tick())
    clock.history.refused(refused)
    clock.read(0, 0, 0)
    assert clock.wrong() == []
    clock.read(1, 2, 3)
    assert clock.wrong() == [(2, 2), (1, 1)], "a refused write was seen; one that was over happened late"
    assert unknown.end > clock.now


def test_many_wrong_blocks_are_counted_up_to_a_limit() -> None:
    clock = Clock()
    for lba in range(0, 4 * FOUND_MAX, 2):
        clock.write(lba, 1)
        clock.read(0, lba=lba)
    assert len(clock.wrong()) == FOUND_MAX


def test_what_makes_no_sense_is_refused() -> None:
    history = DiskHistory()
    with pytest.raises(ValueError, match="initial"):
        history.write(0, 1, INITIAL, 0.0)
    with pytest.raises(ValueError, match="blocks"):
        history.write(0, 0, (1, 1), 0.0)
    writing = history.write(0, 1, (1, 1), 5.0)
    with pytest.raises(ValueError, match="sent at 5"):
        history.answered(writing, 4.0)
    history.answered(writing, 6.0)
    with pytest.raises(ValueError, match="already"):
        history.gave_up(writing, 7.0)
    with pytest.raises(ValueError, match="2 values for 1"):
        history.answered(history.read(0, 1, 7.0), 8.0, [INITIAL, INITIAL])
    history.write(0, 1, (1, 1), 9.0)
    with pytest.raises(ValueError, match="two writes"):
        history.check()


def test_stamped_blocks_say_whose_they_are() -> None:
    stamper = Stamper("disk", 7, BLOCK)
    data = bytearray(4 * BLOCK)
    stamper.write_into(data, 100, 3, 9)
    data[BLOCK : 2 * BLOCK] = bytes(BLOCK)
    other_run = bytearray(BLOCK)
    Stamper("disk", 8, BLOCK).write_into(other_run, 102, 5, 5)
    data[2 * BLOCK : 3 * BLOCK] = other_run
    assert stamper.values(data, 100) == [(3, 9), INITIAL, INITIAL, (3, 9)]
    with pytest.raises(WrongBlock, match="block 101 holds what was written to block 100"):
        stamper.values(data, 101)
    data[300] ^= 1
    with pytest.raises(WrongBlock, match="block 100 is damaged"):
        stamper.values(data, 100)


class CachedDisk:
    """A disk with a write cache; `honest` = it keeps its promise of a flush."""

    def __init__(self, blocks: int, honest: bool) -> None:
        self.cache: list[int] = [0] * blocks
        self.medium: list[int] = [0] * blocks
        self.honest = honest

    def flush(self) -> None:
        if self.honest:
            self.medium = list(self.cache)

    def lose_power(self, chance: random.Random) -> None:
        for lba in range(len(self.cache)):
            if chance.random() < 0.5:
                self.cache[lba] = self.medium[lba]
        self.medium = list(self.cache)


@pytest.mark.parametrize("honest", [True, False])
def test_a_long_life_of_a_disk_with_a_cache(honest: bool) -> None:
    chance = random.Random(5)
    disk, clock = CachedDisk(16, honest), Clock()
    for _ in range(3000):
        lba, blocks = chance.randrange(12), chance.randint(1, 4)
        what = chance.random()
        if what < 0.45:
            number = clock.write(lba, blocks)
            disk.cache[lba : lba + blocks] = [number] * blocks
        elif what < 0.9:
            clock.read(*disk.cache[lba : lba + blocks], lba=lba)
        elif what < 0.97:
            disk.flush()
            clock.flush()
        else:
            disk.lose_power(chance)
            clock.crash()
    assert (clock.wrong() == []) == honest

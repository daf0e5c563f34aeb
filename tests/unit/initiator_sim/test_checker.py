"""The recorder: what it says about reads of good, old, torn, misplaced and damaged blocks."""

from __future__ import annotations

import pytest

from initiator_sim.blocks import Stamp, Stamper
from initiator_sim.history import What
from initiator_sim.recorder import FOLD_AT, Maybe, Recorder

BLOCK = 512
BLOCKS = 4


class Disk:
    """A recorder, and the content that a test lets a disk have. One operation after the other, a second each."""

    def __init__(self, crashes: bool = False, strict: bool = True) -> None:
        name = "iqn.2026-01.org.example:disk"
        self.recorder = Recorder(name, BLOCKS, BLOCK, 0x5EED, crashes=crashes, strict=strict)
        self.maybes: list[Maybe] = []
        self.now = 0.0
        self.sequence = 0

    def content(self, position: int, sequence: int) -> bytearray:
        buffer = bytearray(BLOCKS * BLOCK)
        self.recorder.stamper.write_into(buffer, position * BLOCKS, 1, sequence)
        return buffer

    def write(self, position: int = 0, answered: bool = True) -> bytearray:
        self.sequence += 1
        self.recorder.begins(position, What.WRITE)
        if answered:
            self.recorder.wrote(position, (1, self.sequence), self.now, self.now + 1)
        else:
            self.maybes.append(self.recorder.may_have_written(position, (1, self.sequence), self.now))
        self.now += 2
        return self.content(position, self.sequence)

    def flush(self) -> None:
        self.recorder.flushed(self.now, self.now + 1)
        self.now += 2

    def crash(self) -> None:
        self.recorder.crashed(self.now)
        self.now += 2

    def read(self, content: bytes | bytearray, position: int = 0) -> None:
        self.recorder.begins(position, What.READ)
        self.recorder.read(position, content, self.now, self.now + 1)
        self.now += 2

    def judge(self) -> list[str]:
        self.recorder.check_all()
        return self.recorder.violations


def test_a_good_disk() -> None:
    disk = Disk()
    disk.read(bytes(BLOCKS * BLOCK))
    for _ in range(3 * FOLD_AT):
        content = disk.write()
        disk.read(content)
        disk.read(content)
    assert disk.judge() == []
    assert disk.recorder.folded > FOLD_AT


def test_a_lost_write() -> None:
    disk = Disk()
    first = disk.write()
    disk.read(first)
    disk.write()
    disk.read(first)
    [violation] = disk.judge()
    assert "LBA 0 to 3" in violation
    assert "write 2 of writer 1" in violation


def test_a_lost_write_is_found_behind_a_fold_too() -> None:
    disk = Disk()
    first = disk.write()
    for _ in range(2 * FOLD_AT):
        disk.read(disk.write())
    disk.read(first)
    assert len(disk.judge()) == 1


def test_a_write_that_never_arrived_on_a_fresh_disk() -> None:
    disk = Disk()
    disk.write()
    disk.read(bytes(BLOCKS * BLOCK))
    assert len(disk.judge()) == 1


def test_a_torn_write() -> None:
    disk = Disk()
    first = disk.write()
    second = disk.write()
    disk.read(second[: 2 * BLOCK] + first[2 * BLOCK :])
    [violation] = disk.judge()
    assert "block 2" in violation


def test_blocks_of_two_writes_under_way_at_once_are_no_error() -> None:
    disk = Disk()
    one, other = disk.write(answered=False), disk.write(answered=False)
    disk.read(one[: 2 * BLOCK] + other[2 * BLOCK :])
    disk.read(one)
    assert disk.judge() == []


def test_a_write_without_an_answer_may_happen_late_until_it_is_known_to_be_over() -> None:
    for over in (False, True):
        disk = Disk()
        ghost = disk.write(answered=False)
        disk.read(disk.write())
        if over:
            disk.maybes[0].until = disk.now
        disk.now += 1
        disk.read(disk.write())
        disk.read(ghost)
        assert len(disk.judge()) == over


@pytest.mark.parametrize("over", [False, True])
def test_nothing_is_folded_while_something_can_still_happen(over: bool) -> None:
    disk = Disk()
    disk.write(answered=False)
    if over:
        disk.maybes[0].until = disk.now
    for _ in range(2 * FOLD_AT):
        disk.read(disk.write())
    assert (disk.recorder.folded > 0) == over
    assert disk.judge() == []


def test_what_was_not_flushed_may_be_lost_in_a_crash_block_by_block() -> None:
    disk = Disk(crashes=True)
    first = disk.write()
    disk.flush()
    disk.read(disk.write())
    second = disk.write()
    disk.crash()
    disk.read(second[: 2 * BLOCK] + first[2 * BLOCK :])
    assert disk.judge() == []
    assert disk.recorder.folded == 0


@pytest.mark.parametrize("flushes", [1, 3])
def test_what_was_flushed_must_survive_every_crash(flushes: int) -> None:
    disk = Disk(crashes=True)
    disk.crash()
    first = disk.write()
    disk.flush()
    disk.write()
    for _ in range(flushes):
        disk.flush()
    disk.crash()
    disk.read(first)
    [violation] = disk.judge()
    assert "flush" in violation
    assert "crash" in violation


def test_a_flush_across_a_crash_keeps_nothing() -> None:
    disk = Disk(crashes=True)
    disk.write()
    disk.crash()
    disk.recorder.flushed(disk.now - 3, disk.now)
    disk.read(bytes(BLOCKS * BLOCK))
    assert disk.judge() == []


def test_an_unexpected_crash_is_refused() -> None:
    with pytest.raises(ValueError, match="without crashes"):
        Disk().crash()


def test_a_block_torn_within() -> None:
    disk = Disk()
    content = disk.write()
    content[300] ^= 1
    disk.read(content)
    assert "damaged" in disk.recorder.violations[0]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("torn_at", [100, 512 * 3 + 5])
@pytest.mark.parametrize("new_first", [False, True])
def test_a_block_torn_by_a_write_under_way(strict: bool, torn_at: int, new_first: bool) -> None:
    disk = Disk(strict=strict)
    old = bytes(BLOCKS * BLOCK)
    disk.read(old)
    disk.recorder.begins(0, What.WRITE)
    new = disk.content(0, 1)
    disk.read(new[:torn_at] + old[torn_at:] if new_first else old[:torn_at] + new[torn_at:])
    disk.recorder.wrote(0, (1, 1), disk.now - 3, disk.now)
    disk.now += 1
    disk.read(new)
    assert bool(disk.judge()) == strict
    assert disk.recorder.torn_reads == (not strict)


def test_what_is_first_seen_during_a_write_says_nothing() -> None:
    disk = Disk(strict=False)
    disk.recorder.begins(0, What.WRITE)
    disk.read(b"x" * BLOCKS * BLOCK)
    disk.recorder.wrote(0, (1, 1), disk.now - 3, disk.now)
    disk.now += 1
    disk.read(disk.content(0, 1))
    assert disk.judge() == []
    assert disk.recorder.torn_reads == 0


def test_a_block_that_stays_torn_is_found() -> None:
    disk = Disk(strict=False)
    old = bytes(BLOCKS * BLOCK)
    disk.read(old)
    new = disk.write()
    disk.read(new[:100] + old[100:])
    assert "damaged" in disk.recorder.violations[0]


def test_what_was_discarded_reads_as_zeros() -> None:
    disk = Disk()
    disk.write()
    disk.write()
    disk.recorder.piece(0).discard = (1, 2)
    disk.read(bytes(BLOCKS * BLOCK))
    assert disk.judge() == []
    disk.read(bytes(BLOCKS * BLOCK - 1) + b"x")
    assert "does not read as zeros" in disk.recorder.violations[0]


def test_a_block_of_another_place() -> None:
    disk = Disk()
    disk.write(position=5)
    disk.write(position=6)
    disk.read(disk.content(6, 2), position=5)
    assert "holds what was written to block" in disk.recorder.violations[0]


def test_an_unwritten_block_that_changes() -> None:
    disk = Disk()
    disk.read(bytes(BLOCKS * BLOCK))
    disk.read(b"\1" + bytes(BLOCKS * BLOCK - 1))
    assert "nobody wrote" in disk.recorder.violations[0]


def test_a_short_read() -> None:
    disk = Disk()
    disk.read(bytes(BLOCK))
    assert "512 bytes" in disk.recorder.violations[0]


@pytest.mark.parametrize("block_bytes", [512, 4096])
def test_a_stamp_comes_back(block_bytes: int) -> None:
    stamper = Stamper("volume", 77, block_bytes)
    buffer = bytearray(2 * block_bytes)
    stamper.write_into(buffer, 1 << 40, 3, 1 << 50)
    for index in range(2):
        block = buffer[index * block_bytes : (index + 1) * block_bytes]
        assert stamper.parse(block) == Stamp(stamper.volume, 77, (1 << 40) + index, 3, 1 << 50)
        for position in range(0, block_bytes, 37):
            block[position] ^= 0x40
            assert stamper.parse(block) is None
            block[position] ^= 0x40


def test_a_block_must_hold_a_stamp() -> None:
    with pytest.raises(ValueError, match="hold no stamp"):
        Stamper("volume", 1, 16)

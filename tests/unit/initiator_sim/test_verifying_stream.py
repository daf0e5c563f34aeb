"""What a verifying stream tells its recorder when commands are lost, sent again, refused or late."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf
from typing import Any, cast

from initiator_sim import task as scsi
from initiator_sim.checker import VerifyingStream
from initiator_sim.history import What
from initiator_sim.measure import Meter
from initiator_sim.path import Path
from initiator_sim.personalities import ESXI
from initiator_sim.recorder import Recorder
from initiator_sim.task import Failure, Task
from initiator_sim.workload import Plan, Tally

BLOCK = 512
UNIT_ATTENTION = bytes((0x70, 0, 0x06, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x29, 0, 0, 0, 0, 0))
MEDIUM_ERROR = bytes((0x70, 0, 0x03, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x0C, 0, 0, 0, 0, 0))


class HeldPath:
    """A path that sends nothing: the test answers."""

    def __init__(self) -> None:
        self.address = "here"
        self.personality = ESXI
        self.failed: str | None = None
        self.on_reissue: Callable[[Task], None] | None = None
        self.sent: list[Task] = []

    def enqueue(self, task: Task) -> None:
        task.reset()
        self.sent.append(task)

    def plan_flush(self) -> None:
        pass


class Bench:
    """A disk of a single piece, one command at a time."""

    def __init__(self) -> None:
        self.path = HeldPath()
        self.recorder = Recorder("disk", 1, BLOCK, 1, strict=True)
        self.tally = Tally()
        options: dict[str, Any] = {"disk_blocks": 1, "disk_block_bytes": BLOCK, "lun_value": 0, "number": 0}
        self.stream = VerifyingStream(
            cast(Path, self.path),
            Plan("randwrite", depth=1, block_bytes=BLOCK),
            meter=Meter(0.0),
            tally=self.tally,
            recorder=self.recorder,
            **options,
        )
        self.stream.start()

    @property
    def task(self) -> Task:
        return self.path.sent[-1]

    def written(self) -> bytes:
        """What the command under way writes."""
        assert self.task.write_data is not None
        return bytes(self.task.write_data)

    def answer(self, status: int = scsi.GOOD, sense: bytes = b"") -> None:
        self.task.status, self.task.sense = status, sense
        self.task.on_done(self.task)

    def lose(self) -> None:
        """The connection is lost, and the command will be sent again."""
        assert self.path.on_reissue is not None
        self.path.on_reissue(self.task)

    def fail(self, failure: Failure) -> None:
        self.task.reset()
        self.task.failure = failure
        self.task.on_done(self.task)

    def find(self, content: bytes) -> list[str]:
        """What a last look finds, and what is wrong then."""
        self.stream.stop()
        self.answer()
        self.stream.read_back(self.recorder.written_positions())
        self.task.data = content
        self.answer()
        self.recorder.check_all()
        return self.recorder.violations


def play(scenario: Callable[[Bench], None]) -> None:
    async def run() -> None:
        scenario(Bench())

    asyncio.run(run())


def test_a_command_that_is_sent_again_writes_something_new() -> None:
    def scenario(bench: Bench) -> None:
        first = bench.written()
        bench.lose()
        assert bench.written() != first
        again = bench.written()
        bench.answer()
        last = bench.written()
        assert len({first, again, last}) == 3
        assert bench.find(last) == []

    play(scenario)


def test_the_first_sending_may_happen_as_long_as_the_second_has_no_answer() -> None:
    def scenario(bench: Bench) -> None:
        first = bench.written()
        bench.lose()
        bench.lose()
        assert bench.find(first) == [], "the first may have been executed late, behind the third"

    play(scenario)


def test_a_ghost_write_is_found() -> None:
    def scenario(bench: Bench) -> None:
        first = bench.written()
        bench.lose()
        bench.answer()
        [violation] = bench.find(first)
        assert "LBA 0" in violation

    play(scenario)


def test_a_refusal_of_the_second_sending_says_nothing_about_the_first() -> None:
    def scenario(bench: Bench) -> None:
        first = bench.written()
        bench.lose()
        bench.answer(scsi.CHECK_CONDITION, UNIT_ATTENTION)
        assert bench.recorder.violations == []
        assert bench.find(first) == []

    play(scenario)


def test_a_write_that_ended_in_an_error_may_have_happened_but_not_later() -> None:
    def both(later: bool) -> list[str]:
        found: list[str] = []

        def scenario(bench: Bench) -> None:
            first = bench.written()
            bench.answer(scsi.CHECK_CONDITION, MEDIUM_ERROR)
            if later:
                bench.answer()
            found.extend(bench.find(first) if later else bench.find(bench.written()))
            assert bench.tally.errors == 1

        play(scenario)
        return found

    assert both(later=False) == []
    assert len(both(later=True)) == 1


def test_a_write_that_ended_with_busy_may_have_happened_but_not_later() -> None:
    """The member that owned the blocks may have died with it."""

    def scenario(bench: Bench) -> None:
        first = bench.written()
        bench.answer(scsi.BUSY)
        now = bench.stream.clock()
        bench.recorder.begins(0, What.READ)
        bench.recorder.read(0, first, now, now)
        bench.recorder.check_all()
        assert bench.recorder.violations == []
        bench.stream.again(bench.task, now)
        [violation] = bench.find(first)
        assert "LBA 0" in violation

    play(scenario)


def test_busy_for_the_second_sending_says_nothing_about_the_first() -> None:
    def scenario(bench: Bench) -> None:
        bench.lose()
        bench.answer(scsi.BUSY)
        assert [maybe.until == inf for maybe in bench.recorder.piece(0).maybes] == [True, False]

    play(scenario)


def test_a_write_that_was_never_executed_must_not_be_seen() -> None:
    def scenario(bench: Bench) -> None:
        first = bench.written()
        bench.answer(scsi.CHECK_CONDITION, UNIT_ATTENTION)
        [violation] = bench.find(first)
        assert "nobody wrote" in violation

    play(scenario)


def test_a_write_without_a_path_may_happen_for_ever() -> None:
    def scenario(bench: Bench) -> None:
        bench.fail(Failure.PATH_LOST)
        piece = bench.recorder.piece(0)
        assert [maybe.until for maybe in piece.maybes] == [float("inf")]

    play(scenario)

"""Verification of a run: every block read is checked at once, the history of every piece of the disk in the end.

A piece is one I/O long. Its blocks share one history as long as they agree; where a read found blocks of different
writes, each block is checked by itself. Histories are folded whenever a read shows, with nothing else under way on the
piece, which value is there: memory stays in bounds in long runs.

Only this process may write to the disk meanwhile. Discards are the one kind of write without a value of its own, so
nothing else is done to a piece that is being discarded.
"""

import secrets
from collections.abc import Callable, Iterator
from math import inf
from typing import TYPE_CHECKING, Any, Final

from crc32c import crc32c

from initiator_sim import task as scsi
from initiator_sim.blocks import Stamper
from initiator_sim.history import INITIAL, Operation, Value, Violation, What, check
from initiator_sim.sense import NOT_READY, UNIT_ATTENTION, Sense
from initiator_sim.task import Task
from initiator_sim.workload import Stream

if TYPE_CHECKING:
    from typing_extensions import Buffer

FOLD_AT: Final = 32
VIOLATIONS_MAX: Final = 20
_NOT_EXECUTED: Final = frozenset({scsi.BUSY, scsi.TASK_SET_FULL, scsi.RESERVATION_CONFLICT})
_PICKS: Final = 64

Values = Value | tuple[Value, ...]
"""Of a piece: one value for all its blocks, or one for each."""


class _Piece:
    """The history of one piece. `tainted`: a discard had no answer, so nothing can be said any more."""

    __slots__ = ("discard", "discarding", "in_flight", "operations", "tainted", "unanswered", "written")

    def __init__(self) -> None:
        self.operations: list[tuple[What, Values, float, float]] = []
        self.in_flight = 0
        self.unanswered = False
        self.written = False
        self.discarding = False
        self.discard: Value | None = None
        self.tainted = False


class Recorder:
    """The history of a disk. on_violation(text) hears of each violation when it is found."""

    def __init__(self, volume: str, io_blocks: int, block_bytes: int) -> None:
        self.stamper = Stamper(volume, secrets.randbits(32), block_bytes)
        self.io_blocks = io_blocks
        self.block_bytes = block_bytes
        self.reads_checked = 0
        self.operations = 0
        self.folded = 0
        self.violations: list[str] = []
        self.violation_count = 0
        self.on_violation: Callable[[str], None] | None = None
        self.to_look_at: set[int] = set()
        self._pieces: dict[int, _Piece] = {}
        self._initial_checksums: dict[int, int] = {}

    def piece(self, position: int) -> _Piece:
        found = self._pieces.get(position)
        if found is None:
            found = self._pieces[position] = _Piece()
        return found

    def written_positions(self) -> Iterator[int]:
        """The pieces that were written or discarded, in order."""
        return iter(sorted(position for position, piece in self._pieces.items() if piece.written))

    def _violation(self, position: int, text: str) -> None:
        self.violation_count += 1
        if len(self.violations) < VIOLATIONS_MAX:
            first = position * self.io_blocks
            message = f"LBA {first} to {first + self.io_blocks - 1}: {text}"
            self.violations.append(message)
            if self.on_violation is not None:
                self.on_violation(message)

    # --- what happened --------------------------------------------------------------------------------------------

    def begins(self, position: int, what: What) -> None:
        piece = self.piece(position)
        piece.in_flight += 1
        if what is What.WRITE:
            piece.written = True

    def wrote(self, position: int, value: Value, begin: float, end: float) -> None:
        """An acknowledged write, or one with an unknown outcome (end infinite)."""
        piece = self._pieces[position]
        piece.in_flight -= 1
        piece.operations.append((What.WRITE, value, begin, end))
        self.operations += 1
        if end == inf:
            piece.unanswered = True
        if len(piece.operations) >= FOLD_AT and not piece.unanswered:
            self.to_look_at.add(position)

    def never_happened(self, position: int) -> None:
        """A command ended in a way that means it was not executed, or a read without an answer."""
        self._pieces[position].in_flight -= 1

    def read(self, position: int, data: "Buffer", begin: float, end: float) -> None:
        """What an answered read found."""
        piece = self._pieces[position]
        piece.in_flight -= 1
        self.reads_checked += 1
        if piece.tainted:
            return
        values = self._values(position, piece, memoryview(data))
        if not piece.written:
            return  # nothing has been written yet: the checksum of the initial content says it all
        piece.operations.append((What.READ, values, begin, end))
        self.operations += 1
        if len(piece.operations) >= FOLD_AT:
            self._fold(position, piece, values, begin)

    def _values(self, position: int, piece: _Piece, data: memoryview) -> Values:
        lba = position * self.io_blocks
        size = self.block_bytes
        if len(data) != self.io_blocks * size:
            self._violation(position, f"a read returned {len(data)} bytes")
            return INITIAL
        found = [
            self._value(position, piece, lba + index, data[index * size : (index + 1) * size])
            for index in range(self.io_blocks)
        ]
        first = found[0]
        return first if all(value == first for value in found) else tuple(found)

    def _value(self, position: int, piece: _Piece, lba: int, block: memoryview) -> Value:
        value, wrong = self.stamper.identify(block, lba)
        if wrong:
            self._violation(position, wrong)
        if value is not None:
            return value
        if piece.discard is not None:
            return piece.discard
        checksum = crc32c(block)
        if self._initial_checksums.setdefault(lba, checksum) != checksum:
            self._violation(position, f"block {lba} changed, and nobody wrote to it")
        return INITIAL

    # --- checking -------------------------------------------------------------------------------------------------

    def _fold(self, position: int, piece: _Piece, values: Values, begin: float) -> None:
        """Check and shorten the history if the read that just ended shows what is there now."""
        if piece.in_flight or piece.unanswered or isinstance(values[0], tuple):
            return
        if any(end > begin for _, _, _, end in piece.operations[:-1]):
            return
        self.to_look_at.discard(position)
        self._check(position, piece)
        self.folded += len(piece.operations) - 1
        # From here on this value is what the piece begins with; INITIAL may not come back.
        value = values
        piece.operations = [(What.WRITE, value, begin, begin)]

    def check_all(self) -> None:
        """Check what was not folded yet."""
        for position in sorted(self._pieces):
            piece = self._pieces[position]
            if not piece.tainted:
                self._check(position, piece)

    def _check(self, position: int, piece: _Piece) -> None:
        mixed = any(isinstance(values[0], tuple) for _, values, _, _ in piece.operations)
        for index in range(self.io_blocks if mixed else 1):
            violation = check(_operations(piece, index))
            if violation is not None:
                where = f"block {position * self.io_blocks + index}" if mixed else "all blocks"
                self._violation(position, f"{where}: {violation}")
                return

    def report(self) -> dict[str, Any]:
        return {
            "reads_checked": self.reads_checked,
            "operations": self.operations,
            "pieces": len(self._pieces),
            "violations": self.violations,
            "violation_count": self.violation_count,
        }


def _operations(piece: _Piece, index: int) -> Iterator[Operation]:
    """The history of one block of a piece."""
    for what, values, begin, end in piece.operations:
        value: Any = values[index] if isinstance(values[0], tuple) else values
        if what is What.WRITE and value == INITIAL:
            continue  # a fold on the initial content: `check` knows it anyway
        yield Operation(what, value, begin, end)


class _Work:
    """What a task of a verifying stream is doing."""

    __slots__ = ("begin", "buffer", "discard", "position", "value", "what")

    def __init__(self, io_bytes: int) -> None:
        self.buffer = bytearray(io_bytes)
        self.position = 0
        self.what: What | None = None
        self.discard = False
        self.value: Value = INITIAL
        self.begin = 0.0


class VerifyingStream(Stream):
    """A stream whose writes are stamped and whose every operation goes to a recorder. `number` + 1 is the writer."""

    def __init__(self, *arguments: Any, recorder: Recorder, number: int, **options: Any) -> None:
        super().__init__(*arguments, number=number, **options)
        self._recorder = recorder
        self._writer = number + 1
        self._sequence = 0
        self._simple = False
        self._read_back: Iterator[int] | None = None

    def _work(self, task: Task) -> _Work:
        work = task.context
        if not isinstance(work, _Work):
            work = task.context = _Work(self.plan.block_bytes)
        return work

    def prepare(self, task: Task) -> None:
        self._work(task).what = None
        if self._recorder.to_look_at:
            position = self._recorder.to_look_at.pop()
            if not self._recorder.piece(position).discarding:
                self.make_read(task, position)
                return
        super().prepare(task)

    def _free(self, position: int) -> int:
        """This position, or another one that nobody discards just now."""
        for _ in range(_PICKS):
            if not self._recorder.piece(position).discarding:
                break
            position = self._next_position()
        return position

    def _begins(self, task: Task, position: int, what: What) -> _Work:
        work = self._work(task)
        work.position = position
        work.what = what
        work.discard = False
        work.begin = self.clock()
        self._recorder.begins(position, what)
        return work

    def make_read(self, task: Task, position: int) -> None:
        position = self._free(position)
        self._begins(task, position, What.READ)
        super().make_read(task, position)

    def make_write(self, task: Task, position: int, data: memoryview) -> None:
        position = self._free(position)
        work = self._begins(task, position, What.WRITE)
        self._stamp(work)
        super().make_write(task, position, memoryview(work.buffer))

    def _stamp(self, work: _Work) -> None:
        self._sequence += 1
        work.value = self._writer, self._sequence
        self._recorder.stamper.write_into(work.buffer, work.position * self.io_blocks, *work.value)

    def make_discard(self, task: Task, position: int) -> None:
        piece = self._recorder.piece(position)
        if piece.in_flight or piece.discarding:
            self.make_read(task, position)
            return
        work = self._begins(task, position, What.WRITE)
        self._sequence += 1
        work.value = self._writer, self._sequence
        work.discard = piece.discarding = True
        super().make_discard(task, position)

    def finished(self, task: Task, now: float) -> None:
        work = self._work(task)
        if work.what is What.READ:
            self._recorder.read(work.position, task.data, work.begin, self.clock())
        elif work.what is What.WRITE:
            if work.discard:
                piece = self._recorder.piece(work.position)
                piece.discard = work.value
                piece.discarding = False
            self._recorder.wrote(work.position, work.value, work.begin, self.clock())

    def given_up(self, task: Task, now: float) -> None:
        """What is sent again is a new operation; of the old one it may not be known whether it happened."""
        work = self._work(task)
        if work.what is None:
            return
        if work.what is What.READ or _not_executed(task):
            self._recorder.never_happened(work.position)
            if work.discard:
                self._recorder.piece(work.position).discarding = False
        else:
            if work.discard:
                piece = self._recorder.piece(work.position)
                piece.discarding, piece.tainted = False, True
            self._recorder.wrote(work.position, work.value, work.begin, inf)

    def again(self, task: Task, now: float) -> None:
        self._renew(task)
        super().again(task, now)

    def _renew(self, task: Task) -> None:
        work = self._work(task)
        if work.what is None:
            return
        discard = work.discard
        self._begins(task, work.position, work.what)
        if discard:
            self._sequence += 1
            work.value = self._writer, self._sequence
            work.discard = self._recorder.piece(work.position).discarding = True
        elif work.what is What.WRITE:
            self._stamp(work)

    def _reissued(self, task: Task) -> None:
        super()._reissued(task)
        self.given_up(task, self.clock())
        self._renew(task)

    # --- the last look --------------------------------------------------------------------------------------------

    def read_back(self, positions: Iterator[int]) -> None:
        """After `stop` and `idle`: read the given pieces, shared with other streams; then `idle` is set again."""
        self._read_back = positions
        self.idle.clear()
        self._in_flight += 1
        resting, self._resting = self._resting, []
        for task in resting:
            self._in_flight += 1
            self._next(task, self.clock())
        self._in_flight -= 1
        if self._in_flight == 0:
            self.idle.set()
        self.path.plan_flush()

    def _next(self, task: Task, now: float) -> None:
        if self._read_back is None:
            super()._next(task, now)
            return
        position = next(self._read_back, None)
        if position is None or self.path.failed is not None:
            self._rest(task)
            return
        self.make_read(task, position)
        task.started = now
        self.path.enqueue(task)


def _not_executed(task: Task) -> bool:
    """True for an end that says that the command was not begun (SAM-5 5.3.1, 5.14)."""
    if task.status in _NOT_EXECUTED:
        return True
    sense = Sense.parse(task.sense) if task.status == scsi.CHECK_CONDITION else None
    return sense is not None and sense.key in (UNIT_ATTENTION, NOT_READY)


__all__ = ["Recorder", "VerifyingStream", "Violation"]

"""Verified load: a stream whose writes are stamped and whose every operation goes to a recorder."""

from collections.abc import Iterator
from typing import Any, Final

from initiator_sim import task as scsi
from initiator_sim.history import INITIAL, Value, What
from initiator_sim.recorder import Maybe, Recorder
from initiator_sim.sense import NOT_READY, UNIT_ATTENTION, Sense
from initiator_sim.task import Failure, Task
from initiator_sim.workload import Stream

# Not BUSY: a member says it too of a write whose owner died with it, when nobody can say any more what became of it;
# initiators send it again, which is all that is to be had. What it did, it did before the answer.
_NOT_EXECUTED: Final = frozenset({scsi.TASK_SET_FULL, scsi.RESERVATION_CONFLICT})
_SAYS_NOTHING: Final = (scsi.NO_STATUS, scsi.BUSY)
"""Of what was sent before in the place of a command that ended like this."""
_PICKS: Final = 64


class _Work:
    """What a task of a verifying stream is doing."""

    __slots__ = ("begin", "buffer", "discard", "earlier", "position", "value", "what")

    def __init__(self, io_bytes: int) -> None:
        self.buffer = bytearray(io_bytes)
        self.position = 0
        self.what: What | None = None
        self.discard = False
        self.value: Value = INITIAL
        self.begin = 0.0
        self.earlier: list[Maybe] = []
        """What was sent before for the same purpose, without an answer: over when this one is answered."""


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

    def _forget(self, task: Task) -> None:
        """The task begins something new."""
        work = self._work(task)
        work.what = None
        work.earlier.clear()

    def prepare(self, task: Task) -> None:
        self._forget(task)
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

    def make_flush(self, task: Task) -> None:
        work = self._work(task)
        work.what = What.FLUSH
        work.begin = self.clock()
        super().make_flush(task)

    def finished(self, task: Task, now: float) -> None:
        work = self._work(task)
        if work.what is What.READ:
            self._recorder.read(work.position, task.data, work.begin, self.clock())
        elif work.what is What.FLUSH:
            self._recorder.flushed(work.begin, self.clock())
        elif work.what is What.WRITE:
            self._over(work)
            if work.discard:
                piece = self._recorder.piece(work.position)
                piece.discard = work.value
                piece.discarding = False
            self._recorder.wrote(work.position, work.value, work.begin, self.clock())

    def given_up(self, task: Task, now: float) -> None:
        """What is sent again is a new operation; of the old one it may not be known whether it happened."""
        work = self._work(task)
        executed = not _not_executed(task)
        if work.what is What.WRITE and executed:
            if work.discard:
                piece = self._recorder.piece(work.position)
                piece.discarding, piece.tainted = False, True
            maybe = self._recorder.may_have_written(work.position, work.value, work.begin)
            if task.status == scsi.BUSY:
                maybe.until = self.clock()
            work.earlier.append(maybe)
        elif work.what in (What.READ, What.WRITE):
            self._recorder.never_happened(work.position, work.what)
            if work.discard:
                self._recorder.piece(work.position).discarding = False
        if executed and (task.status not in _SAYS_NOTHING or task.failure not in (None, Failure.PATH_LOST)):
            self._over(work)

    def _over(self, work: _Work) -> None:
        """The target has answered: what was sent before in the place of this command can no longer happen."""
        for maybe in work.earlier:
            maybe.until = self.clock()
        work.earlier.clear()

    def again(self, task: Task, now: float) -> None:
        self._renew(task)
        super().again(task, now)

    def _renew(self, task: Task) -> None:
        work = self._work(task)
        if work.what is What.FLUSH:
            work.begin = self.clock()
        if work.what not in (What.READ, What.WRITE):
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
        self._forget(task)
        self.make_read(task, position)
        task.started = now
        self.path.enqueue(task)


def _not_executed(task: Task) -> bool:
    """True for an end that says that the command was not begun (SAM-5 5.3.1, 5.14)."""
    if task.status in _NOT_EXECUTED:
        return True
    sense = Sense.parse(task.sense) if task.status == scsi.CHECK_CONDITION else None
    return sense is not None and sense.key in (UNIT_ATTENTION, NOT_READY)


__all__ = ["Recorder", "VerifyingStream"]

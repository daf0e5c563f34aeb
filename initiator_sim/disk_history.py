"""What was done to a disk and what was found on it, judged block by block: for simulations and tests.

Pure: times are arguments, from one clock of any unit. One history takes the commands of all initiators:

    history = DiskHistory()
    writing = history.write(lba, 8, (writer, number), now)     # every write has a value of its own
    history.answered(writing, now)
    reading = history.read(lba, 8, now)
    history.answered(reading, now, values)                     # a value for each block: `blocks.Stamper` finds them
    history.answered(history.flush(now), later)
    history.crash(now)                                         # from here on the target may have lost what was in cache
    for wrong in history.check():
        print(wrong)

A command begins when it is sent and ends when its answer was received. Of a write of which nothing more is told, it is
not known whether and when it happened. A command that is sent again is another command, with another value: see
`gave_up` for the first one. Each block is judged by itself (`history.check`): a write of several blocks need not be
atomic, and blocks that a crash took may lie beside blocks of the same write that it left.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from math import inf
from typing import Final, NamedTuple

from initiator_sim.history import INITIAL, Operation, Value, Violation, What, check

EVERYWHERE: Final = 1 << 63
"""So many blocks from LBA 0 are the whole disk, whatever its size."""
FOUND_MAX: Final = 20


class Command:
    """A command as its initiator knows it; made by `DiskHistory`. end is infinite while there is no answer."""

    __slots__ = ("answered", "begin", "blocks", "end", "fua", "lba", "refused", "value", "values", "what")

    def __init__(self, what: What, lba: int, blocks: int, value: Value, begin: float, fua: bool = False) -> None:
        if blocks < 1 or lba < 0:
            raise ValueError(f"{blocks} blocks from LBA {lba}")
        self.what = what
        self.lba = lba
        self.blocks = blocks
        self.value = value
        self.values: Sequence[Value] = ()
        self.begin = begin
        self.end = inf
        self.answered = False
        self.refused = False
        self.fua = fua

    @property
    def lbas(self) -> range:
        return range(self.lba, self.lba + self.blocks)

    def at(self, lba: int) -> Operation:
        """What the command did to one of its blocks."""
        value = self.values[lba - self.lba] if self.what is What.READ else self.value
        return Operation(self.what, value, self.begin, self.end, self.answered, self.fua)


class WrongBlocks(NamedTuple):
    """Blocks from `lba` to `last` whose history cannot have happened, and the fewest operations that show it."""

    lba: int
    last: int
    violation: Violation

    def __str__(self) -> str:
        where = f"LBA {self.lba}" if self.lba == self.last else f"LBA {self.lba} to {self.last}"
        return f"{where}: {self.violation}"


class DiskHistory:
    """All commands to one disk, and its crashes."""

    def __init__(self) -> None:
        self._by_block: dict[int, list[Command]] = {}
        self._flushes: list[Command] = []
        self._crashes: list[Command] = []

    # --- what happened --------------------------------------------------------------------------------------------

    def write(self, lba: int, blocks: int, value: Value, now: float, fua: bool = False) -> Command:
        """A write was sent. fua: it must be durable when answered. ValueError for the value INITIAL."""
        if value == INITIAL:
            raise ValueError("the value of the initial content")
        return self._touch(Command(What.WRITE, lba, blocks, value, now, fua))

    def read(self, lba: int, blocks: int, now: float) -> Command:
        """A read was sent; without an answer it says nothing."""
        return Command(What.READ, lba, blocks, INITIAL, now)

    def flush(self, now: float, lba: int = 0, blocks: int = EVERYWHERE) -> Command:
        """A flush of these blocks was sent; without an answer it says nothing."""
        return Command(What.FLUSH, lba, blocks, INITIAL, now)

    def answered(self, command: Command, now: float, values: Sequence[Value] = ()) -> None:
        """GOOD status; `values` of a read: whose write each block holds, INITIAL for the content before all of them."""
        if command.what is What.READ and len(values) != command.blocks:
            raise ValueError(f"{len(values)} values for {command.blocks} blocks")
        self.gave_up(command, now)
        command.answered = True
        if command.what is What.READ:
            command.values = values
            self._touch(command)
        elif command.what is What.FLUSH:
            self._flushes.append(command)

    def gave_up(self, command: Command, now: float) -> None:
        """The command ended some other way: it may have happened until now, or not, but will not happen later.

        For BUSY (a member that owned the blocks may have died with the command), an error status, an abort that the
        target confirmed, and for what was sent before the answered command that took its place. Not for a lost
        connection alone: there nothing is known until the target has confirmed the end of the session, such as by
        letting the same initiator log in again.
        """
        if command.end != inf:
            raise ValueError("the command has ended already")
        if now < command.begin:
            raise ValueError(f"an end at {now} of what was sent at {command.begin}")
        command.end = now

    def refused(self, command: Command) -> None:
        """The command ended with a status that says that it was not executed, such as RESERVATION CONFLICT."""
        command.refused = True

    def crash(self, now: float, lba: int = 0, blocks: int = EVERYWHERE) -> None:
        """From this instant on these blocks may have lost what was not flushed: a power failure, not a dead process.

        Choose an instant at which the target is dead. What was answered before it counts as answered before.
        """
        command = Command(What.CRASH, lba, blocks, INITIAL, now)
        command.end, command.answered = now, True
        self._crashes.append(command)

    def _touch(self, command: Command) -> Command:
        for lba in command.lbas:
            self._by_block.setdefault(lba, []).append(command)
        return command

    # --- what is wrong --------------------------------------------------------------------------------------------

    @property
    def lbas(self) -> list[int]:
        """The blocks that were written or read, in order."""
        return sorted(self._by_block)

    def operations(self, lba: int) -> list[Operation]:
        """The history of one block, as `history.check` takes it."""
        return list(self._of_block(lba, *self._times()))

    def check(self) -> list[WrongBlocks]:
        """What cannot have happened, the shortest proof first; empty if all is well. Neighbours with the same fault are
        one entry; there are at most FOUND_MAX. Near-linear in the number of commands times their blocks."""
        found: list[WrongBlocks] = []
        times = self._times()
        for lba in self.lbas:
            violation = check(self._of_block(lba, *times))
            if violation is None:
                continue
            if found and found[-1].last == lba - 1 and found[-1].violation == violation:
                found[-1] = found[-1]._replace(last=lba)
            elif len(found) < FOUND_MAX:
                found.append(WrongBlocks(lba, lba, violation))
        return sorted(found, key=lambda wrong: len(wrong.violation.operations))

    def _times(self) -> tuple[list[Command], list[Command]]:
        """(flushes, crashes) to look at: of all flushes of the whole disk between two crashes the last is enough."""
        crashes = sorted(self._crashes, key=lambda command: command.begin)
        if not crashes:
            return [], []
        instants = [crash.begin for crash in crashes]
        last: dict[int, Command] = {}
        others = []
        for flush in self._flushes:
            era = bisect_left(instants, flush.end)
            if flush.blocks < EVERYWHERE or bisect_right(instants, flush.begin) != era:
                others.append(flush)
            elif era not in last or last[era].begin < flush.begin:
                last[era] = flush
        return [*last.values(), *others], crashes

    def _of_block(self, lba: int, *shared: Iterable[Command]) -> Iterator[Operation]:
        for command in self._by_block.get(lba, ()):
            if not command.refused:
                yield command.at(lba)
        for commands in shared:
            for command in commands:
                if lba in command.lbas:
                    yield command.at(lba)

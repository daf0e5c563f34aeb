"""What all initiators did to one volume and what they saw of it: the simulation's memory, and its judgement.

Every write has a value of its own. `DiskHistory` says whether all of it can have happened (promises 1, 2 and 4: the
last since a write of a fenced nexus has an instant after which it cannot happen any more). What a history of single
blocks cannot see is looked at here: blocks that change as one (WRITE ATOMIC), and COMPARE AND WRITE, which replaces
each value once.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import TYPE_CHECKING, Final

from initiator_sim.blocks import Stamper, WrongBlock
from initiator_sim.disk_history import EVERYWHERE, Command, DiskHistory
from initiator_sim.history import INITIAL, Value, What

if TYPE_CHECKING:
    from collections.abc import Callable

WRONG_MAX: Final = 20


class Book:
    """times: the virtual clock. wrong: what was found so far that is no matter of the history."""

    def __init__(self, volume: str, block_size: int, clock: Callable[[], float]) -> None:
        self.block_size = block_size
        self.stamper = Stamper(volume, 1, block_size)
        self.history = DiskHistory()
        self.wrong: list[str] = []
        self._clock = clock
        self._limits: dict[Command, float] = {}
        self._open: dict[Command, None] = {}
        self._unmapped: dict[int, Value] = {}
        self._written: set[int] = set()  # holds something since the last crash
        self._tainted: set[int] = set()
        self._replaced: dict[tuple[int, Value], Value] = {}
        self._crashed_s = -inf

    def complain(self, text: str) -> None:
        if len(self.wrong) < WRONG_MAX:
            self.wrong.append(f"{self._clock():.6f}: {text}")

    # Commands begin ---------------------------------------------------------------------------------------------------

    def write(self, lba: int, blocks: int, value: Value, fua: bool = False) -> Command:
        command = self.history.write(lba, blocks, value, self._clock(), fua)
        self._open[command] = None
        return command

    def read(self, lba: int, blocks: int) -> Command:
        return self.history.read(lba, blocks, self._clock())

    def flush(self, lba: int = 0, blocks: int = EVERYWHERE) -> Command:
        return self.history.flush(self._clock(), lba, blocks)

    def may_unmap(self, lba: int, blocks: int) -> bool:
        """Zeros name no writer: they must not be there yet, and each block is unmapped once."""
        return all(each in self._written and each not in self._unmapped for each in range(lba, lba + blocks))

    def unmap(self, lba: int, blocks: int, value: Value) -> Command:
        for each in range(lba, lba + blocks):
            self._unmapped[each] = value
        return self.write(lba, blocks, value)

    def taint(self, lba: int, blocks: int) -> None:
        """An unmap is sent once more: which of them zeros come from is not known any more."""
        self._tainted.update(range(lba, lba + blocks))

    # Commands end -----------------------------------------------------------------------------------------------------

    def good(self, command: Command) -> None:
        """A write or flush was answered with GOOD."""
        self._open.pop(command, None)
        if command.what is What.WRITE and command.begin > self._crashed_s:
            self._written.update(command.lbas)
        self.history.answered(command, self._end(command))

    def found(self, command: Command, data: memoryview, atomic: bool = False) -> list[Value] | None:
        """A read was answered. atomic: its blocks are only ever written as one. None where nothing can be said."""
        if len(data) != command.blocks * self.block_size:
            self.complain(f"a read of {command.blocks} blocks brought {len(data)} bytes")
            return None
        try:
            values = self.stamper.values(data, command.lba)
        except WrongBlock as error:
            self.complain(str(error))
            return None
        for index, value in enumerate(values):
            if value == INITIAL:
                block = data[index * self.block_size : (index + 1) * self.block_size]
                values[index] = self._unstamped(command.lba + index, block)
        if atomic and len(set(values)) > 1:
            self.complain(f"LBA {command.lba}: an atomic write was torn: {values}")
        if any(command.lba + index in self._tainted and value == INITIAL for index, value in enumerate(values)):
            return None
        self.history.answered(command, self._clock(), values)
        return values

    def _unstamped(self, lba: int, block: memoryview) -> Value:
        if any(block):
            self.complain(f"LBA {lba} holds what nobody wrote")
        return INITIAL if lba in self._tainted else self._unmapped.get(lba, INITIAL)

    def refused(self, command: Command) -> None:
        """It was not executed, says its status."""
        self._open.pop(command, None)
        self.history.refused(command)

    def ended(self, command: Command) -> None:
        """It ended badly: it may have happened until now, and will not happen later."""
        self.no_later(command, self._clock())

    def no_later(self, command: Command, at_s: float) -> None:
        """Whatever becomes of it, it will not happen after this instant."""
        if command in self._open:
            self._limits[command] = min(at_s, self._limits.get(command, inf))

    def no_more(self, commands: Iterable[Command]) -> None:
        now_s = self._clock()
        for command in commands:
            self.no_later(command, now_s)

    def may_be_later(self, commands: Iterable[Command]) -> None:
        """Take back what was said about these, if they have no answer yet."""
        for command in commands:
            self._limits.pop(command, None)

    def _end(self, command: Command) -> float:
        return max(command.begin, min(self._clock(), self._limits.pop(command, inf)))

    def replaced(self, command: Command, old: Value) -> None:
        """A COMPARE AND WRITE said that it has replaced the value `old` of its block."""
        if command.begin <= self._crashed_s:
            return  # what replaced it may be gone
        first = self._replaced.setdefault((command.lba, old), command.value)
        if first != command.value:
            self.complain(f"LBA {command.lba}: {first} and {command.value} have both replaced {old}")

    # Power failures ---------------------------------------------------------------------------------------------------

    def crash(self, lba: int = 0, blocks: int = EVERYWHERE) -> None:
        self._crashed_s = self._clock()
        self.history.crash(self._crashed_s, lba, blocks)
        self._replaced.clear()
        self._written.clear()
        self._tainted.update(self._unmapped)

    # Judgement --------------------------------------------------------------------------------------------------------

    def check(self) -> list[str]:
        """Everything that is wrong. Call it once, at the end."""
        for command, limit in self._limits.items():
            if command.end == inf:
                self.history.gave_up(command, max(command.begin, limit))
        return [*self.wrong, *map(str, self.history.check())]

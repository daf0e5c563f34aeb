"""The record of a verified run: every block read is checked at once, the history of every piece of the disk in the end.

A piece is one I/O long. Its blocks share one history as long as they agree; where a read found blocks of different
writes, each block is checked by itself. Histories are folded whenever a read shows, with nothing else under way on the
piece, which value is there: memory stays in bounds in long runs. Not so where crashes are expected: a crash may bring
back what was folded away.

Only the streams that share a recorder may write to the disk meanwhile. Discards are the one kind of write without a
value of its own, so nothing else is done to a piece that is being discarded.

Pure: times are arguments, from one clock, in seconds.
"""

from collections.abc import Callable, Iterator
from math import inf
from typing import TYPE_CHECKING, Any, Final

from crc32c import crc32c

from initiator_sim.blocks import Stamper
from initiator_sim.history import INITIAL, Operation, Value, What, check

if TYPE_CHECKING:
    from typing_extensions import Buffer

FOLD_AT: Final = 32
VIOLATIONS_MAX: Final = 20

Values = Value | tuple[Value, ...]
"""Of a piece: one value for all its blocks, or one for each."""


class Maybe:
    """A write with unknown outcome: it happened between begin and until, or never. Lower `until` when more is known."""

    __slots__ = ("begin", "until", "value")

    def __init__(self, value: Value, begin: float) -> None:
        self.value = value
        self.begin = begin
        self.until = inf


class _Piece:
    """The history of one piece. `tainted`: a discard had no answer, so nothing can be said any more."""

    __slots__ = ("discard", "discarding", "in_flight", "maybes", "operations", "tainted", "writes_in_flight", "written")

    def __init__(self) -> None:
        self.operations: list[tuple[What, Values, float, float]] = []
        self.maybes: list[Maybe] = []
        self.in_flight = 0
        self.writes_in_flight = 0
        self.written = False
        self.discarding = False
        self.discard: Value | None = None
        self.tainted = False

    def is_settled(self, now: float) -> bool:
        """Nothing is under way, and nothing that was sent earlier can still happen."""
        return not self.in_flight and all(maybe.until <= now for maybe in self.maybes)

    def is_being_written(self, since: float) -> bool:
        """A write is, was or may have been under way since then."""
        if self.writes_in_flight or any(maybe.until > since for maybe in self.maybes):
            return True
        return any(what is What.WRITE and end > since for what, _, _, end in self.operations)


class Recorder:
    """The history of a disk. on_violation(text) hears of each violation when it is found.

    run is a random number, to tell the blocks of this run from all others. crashes: the target may lose what was not
    flushed, and `crashed` will say when. strict: a read during a write finds each block whole, old or new; no SCSI
    standard says so, and targets with several threads break it now and then. Otherwise such reads are only counted.
    """

    def __init__(
        self,
        volume: str,
        io_blocks: int,
        block_bytes: int,
        run: int,
        *,
        crashes: bool = False,
        strict: bool = False,
    ) -> None:
        self.stamper = Stamper(volume, run, block_bytes)
        self.io_blocks = io_blocks
        self.block_bytes = block_bytes
        self.crashes = crashes
        self.strict = strict
        self.reads_checked = 0
        self.torn_reads = 0
        self.operations = 0
        self.folded = 0
        self.violations: list[str] = []
        self.violation_count = 0
        self.on_violation: Callable[[str], None] | None = None
        self.to_look_at: set[int] = set()
        self._pieces: dict[int, _Piece] = {}
        self._initial_checksums: dict[int, int] = {}
        self._zeros_checksum = crc32c(bytes(block_bytes))
        self._crashes: list[Operation] = []
        self._flushes: list[Operation] = []

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
            piece.writes_in_flight += 1
            piece.written = True

    def wrote(self, position: int, value: Value, begin: float, end: float) -> None:
        """An acknowledged write."""
        piece = self._pieces[position]
        piece.in_flight -= 1
        piece.writes_in_flight -= 1
        piece.operations.append((What.WRITE, value, begin, end))
        self.operations += 1
        if len(piece.operations) >= FOLD_AT and not self.crashes and piece.is_settled(end):
            self.to_look_at.add(position)

    def may_have_written(self, position: int, value: Value, begin: float) -> Maybe:
        """A write with an unknown outcome."""
        piece = self._pieces[position]
        piece.in_flight -= 1
        piece.writes_in_flight -= 1
        self.operations += 1
        maybe = Maybe(value, begin)
        piece.maybes.append(maybe)
        return maybe

    def flushed(self, begin: float, end: float) -> None:
        """A flush of the whole disk was answered."""
        flush = Operation(What.FLUSH, INITIAL, begin, end)
        if not self.crashes or (self._crashes and begin < self._crashes[-1].begin):
            return  # of no use, or the crash interrupted it
        # Between two crashes the flush that began last says more than all others.
        before = self._flushes[-1] if self._flushes else None
        if before is None or (self._crashes and before.begin < self._crashes[-1].begin):
            self._flushes.append(flush)
        elif begin > before.begin:
            self._flushes[-1] = flush

    def crashed(self, at: float) -> None:
        """From now on the target may have lost what was not flushed. ValueError if this was not to be expected."""
        if not self.crashes:
            raise ValueError("this recorder was made without crashes: what a crash may bring back is forgotten")
        self._crashes.append(Operation(What.CRASH, INITIAL, at, at))

    def never_happened(self, position: int, what: What) -> None:
        """A command ended in a way that means it was not executed, or a read without an answer."""
        piece = self._pieces[position]
        piece.in_flight -= 1
        if what is What.WRITE:
            piece.writes_in_flight -= 1

    def read(self, position: int, data: "Buffer", begin: float, end: float) -> None:
        """What an answered read found."""
        piece = self._pieces[position]
        piece.in_flight -= 1
        self.reads_checked += 1
        if piece.tainted:
            return
        values = self._values(position, piece, memoryview(data), begin)
        if not piece.written or values is None:
            return  # nothing has been written yet: the checksum of the initial content says it all
        piece.operations.append((What.READ, values, begin, end))
        self.operations += 1
        if len(piece.operations) >= FOLD_AT and not self.crashes:
            self._fold(position, piece, values, begin)

    def _values(self, position: int, piece: _Piece, data: memoryview, begin: float) -> Values | None:
        """What a read found; None for a read that says nothing, of blocks that are just being written."""
        lba = position * self.io_blocks
        size = self.block_bytes
        if len(data) != self.io_blocks * size:
            self._violation(position, f"a read returned {len(data)} bytes")
            return None
        may_be_torn = not self.strict and piece.is_being_written(begin)
        found = []
        for index in range(self.io_blocks):
            block = data[index * size : (index + 1) * size]
            value, wrong = self.stamper.identify(block, lba + index)
            if value is None and not wrong:
                value, wrong = self._unstamped(piece, lba + index, block, may_be_torn)
            if value is None and may_be_torn:
                self.torn_reads += bool(wrong)
                return None
            if wrong:
                self._violation(position, wrong)
            found.append(INITIAL if value is None else value)
        first = found[0]
        return first if all(value == first for value in found) else tuple(found)

    def _unstamped(self, piece: _Piece, lba: int, block: memoryview, may_be_torn: bool) -> tuple[Value | None, str]:
        """(the value of a block that this run has not written, what is wrong with it), as `Stamper.identify`."""
        checksum = crc32c(block)
        if piece.discard is not None:
            wrong = "" if checksum == self._zeros_checksum else f"block {lba} was discarded and does not read as zeros"
            return None if wrong else piece.discard, wrong
        expected = self._initial_checksums.get(lba)
        if expected is None:
            if may_be_torn:
                return None, ""  # seen for the first time: what it was before the write cannot be known
            expected = self._initial_checksums[lba] = checksum
        if checksum != expected:
            return None, f"block {lba} changed, and nobody wrote to it"
        return INITIAL, ""

    # --- checking -------------------------------------------------------------------------------------------------

    def _fold(self, position: int, piece: _Piece, values: Values, begin: float) -> None:
        """Check and shorten the history if the read that just ended shows what is there now."""
        if isinstance(values[0], tuple) or not piece.is_settled(begin):
            return
        if any(end > begin for _, _, _, end in piece.operations[:-1]):
            return
        self.to_look_at.discard(position)
        self._check(position, piece)
        self.folded += len(piece.operations) - 1
        # From here on this value is what the piece begins with; INITIAL may not come back.
        piece.operations = [(What.WRITE, values, begin, begin)]
        piece.maybes.clear()

    def check_all(self) -> None:
        """Check what was not folded yet."""
        for position in sorted(self._pieces):
            piece = self._pieces[position]
            if not piece.tainted:
                self._check(position, piece)

    def _check(self, position: int, piece: _Piece) -> None:
        mixed = any(isinstance(values[0], tuple) for _, values, _, _ in piece.operations)
        for index in range(self.io_blocks if mixed else 1):
            violation = check([*_operations(piece, index), *self._flushes, *self._crashes])
            if violation is not None:
                where = f"block {position * self.io_blocks + index}" if mixed else "all blocks"
                self._violation(position, f"{where}: {violation}")
                return

    def report(self) -> dict[str, Any]:
        return {
            "reads_checked": self.reads_checked,
            "torn_reads": self.torn_reads,
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
    for maybe in piece.maybes:
        yield Operation(What.WRITE, maybe.value, maybe.begin, maybe.until, answered=False)

"""The history of one block as a register, and whether it can have happened.

Without crashes the question is linearizability (Herlihy and Wing 1990): is there one order of all operations, each at
an instant between its begin and its end, in which every read finds the last write? A crash adds durability, as in
"Linearizability of Persistent Memory Objects" (Izraelevitz, Mendes and Scott 2016): at the instant of a crash the
block goes back to a value that it has had since the last flush, to the value at the flush at the earliest, and that
value is durable from then on. So what was acknowledged before a completed flush began is never lost; what came later
may be lost, as a whole.

Values are unique per write, which makes the question near-linear (Gibbons and Korach 1997, "Testing shared memories"):
all operations on one value form a cluster, whose zone runs from the earliest end to the latest begin among them. If the
end comes first, the value must have been there all through the zone ("forward"); otherwise one instant is enough
("backward"). A history without crashes can have happened if and only if no two forward zones overlap, no backward zone
lies wholly inside a forward zone, no read ended before its write began, and every value read was written.

Crashes cut time into eras. A value that was read in a later era than it was written in must have survived every crash
between the two, and no other value can have survived one of them. Each era is then judged by itself: the survivor is
there from its start, and the survivor at its end must be there at or after the begin of its last flush, which is one
more read; a write with FUA must fit before it.

Of operations that a crash interrupts only this much is used: a write happened before the crash and was lost, or after
it, or never; a flush promises nothing; a read says that its value was written.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from enum import Enum
from itertools import pairwise
from math import inf, nextafter
from typing import Final, NamedTuple

Value = tuple[int, int]
"""Writer and sequence number of a write; INITIAL for what was there before."""
INITIAL: Final[Value] = (0, 0)


class What(Enum):
    READ = "read"
    WRITE = "write"
    FLUSH = "flush"
    CRASH = "crash"


class Operation(NamedTuple):
    """Something that happened to a block. Times are from one clock.

    answered  False for a write with unknown outcome: it happened between begin and end, or never. An infinite end
              means the same, with no limit.
    fua       the write was followed by a flush of its own before it was answered

    A flush or crash has the value INITIAL. A crash is an instant, begin = end: what ended at it ended before it.
    """

    what: What
    value: Value
    begin: float
    end: float
    answered: bool = True
    fua: bool = False

    @property
    def is_certain(self) -> bool:
        """False for a write with unknown outcome."""
        return self.answered and self.end != inf

    def __str__(self) -> str:
        if self.what is What.CRASH:
            return f"[{self.begin:.6f}] crash"
        name = "the initial content" if self.value == INITIAL else f"write {self.value[1]} of writer {self.value[0]}"
        text = {What.READ: f"read found {name}", What.WRITE: name, What.FLUSH: "flush"}[self.what]
        until = f"{self.end:.6f}" if self.is_certain else "no answer"
        return f"[{self.begin:.6f} .. {until}] {text}{', FUA' if self.fua else ''}"


class Violation(NamedTuple):
    """Why a history cannot have happened, and the fewest of its operations that already show it."""

    reason: str
    operations: tuple[Operation, ...]

    def __str__(self) -> str:
        return "\n".join([self.reason, *(f"    {operation}" for operation in self.operations)])


NOBODY_WROTE: Final = "a value was read that nobody wrote"
BEFORE_WRITTEN: Final = "a read found a value before its write began"
TWO_SURVIVORS: Final = "two values would have had to survive the same crash"
NOT_DURABLE: Final = "a value was there after a crash that had been overwritten before a completed flush"
TWO_AT_ONCE: Final = "two values would have had to be there at the same time"
NO_ROOM: Final = "a write happened while another value was there all the time"


def check(history: Iterable[Operation]) -> Violation | None:
    """None if the operations on one block can have happened; near-linear in their number.

    ValueError for two writes of one value: every write needs a value of its own.
    """
    operations = list(history)
    found = _Judgement(operations).find()
    if found is None:
        return None
    witnesses = _with_crashes(found.operations, operations)
    if _Judgement(witnesses).find() is None:
        witnesses = operations  # what was left out has a part in it
    shown = shrink(witnesses)
    shown.sort(key=lambda operation: (operation.begin, operation.end))
    reason = (_Judgement(shown).find() or found).reason
    return Violation(reason, tuple(shown))


def shrink(operations: Sequence[Operation]) -> list[Operation]:
    """Leave out what is not needed to show that the operations cannot have happened.

    A write is kept as long as a read of it is: without it the reason would be another one. Crashes explain much, so
    they are kept, but for those before and after everything else.
    """
    kept = [one for one in operations if one.what is not What.CRASH]
    size = max(1, len(kept) // 2)
    while True:
        before, start = len(kept), 0
        while start < len(kept):
            rest = _without(kept, start, size)
            if len(rest) < len(kept) and _Judgement(_with_crashes(rest, operations)).find() is not None:
                kept = rest
            else:
                start += size
        if size > 1:
            size //= 2
        elif len(kept) == before:
            return _with_crashes(kept, operations)


def _without(operations: Sequence[Operation], start: int, size: int) -> list[Operation]:
    """All but operations[start : start + size]; writes among these stay where a read of them stays."""
    rest = [*operations[:start], *operations[start + size :]]
    read = {one.value for one in rest if one.what is What.READ}
    needed = [one for one in operations[start : start + size] if one.what is What.WRITE and one.value in read]
    return [*operations[:start], *needed, *operations[start + size :]]


def _with_crashes(some: Iterable[Operation], history: Iterable[Operation]) -> list[Operation]:
    """`some` operations, and of all crashes in a history one for each gap between the operations that had any."""
    kept = [one for one in some if one.what is not What.CRASH and one.begin != -inf]
    begins = sorted(one.begin for one in kept)
    ends = sorted(one.end for one in kept if one.end != inf)
    gaps: dict[tuple[int, int], Operation] = {}
    for one in history:
        if one.what is What.CRASH:
            gaps.setdefault((bisect_left(begins, one.begin), bisect_right(ends, one.begin)), one)
    gaps.pop((0, 0), None)
    gaps.pop((len(begins), len(ends)), None)
    return kept + list(gaps.values())


class _Cluster:
    """All operations on one value. `era`: where its write took effect; reads are kept by era."""

    __slots__ = ("certain", "era", "fua", "reads", "write")

    def __init__(self) -> None:
        self.write: Operation | None = None
        self.certain = True
        self.fua = False
        self.era = 0
        self.reads: dict[int, list[Operation]] = {}


class _Zone:
    """Of one cluster in one era. `low` is the earliest end, `high` the latest begin; forward if low < high.

    The operations that make it so are kept, to be shown.
    """

    __slots__ = ("cluster", "forward", "from_start", "high", "high_read", "low", "witnesses")

    def __init__(self, cluster: _Cluster, era: int, start: float, end: float, until: float) -> None:
        """until: the last instant at which the value must be there; -infinity if there is none."""
        write = cluster.write
        assert write is not None
        self.cluster = cluster
        self.from_start = cluster.era != era  # it survived the last crash
        # Nothing of this era comes before what was there at its start.
        first_end = nextafter(start, -inf) if self.from_start else min(write.end, end)
        last_begin = start if self.from_start else max(write.begin, start)
        first: Operation | None = None
        last: Operation | None = None
        for read in cluster.reads.get(era, ()):
            if read.end < first_end:
                first_end, first = read.end, read
            if read.begin > last_begin:
                last_begin, last = read.begin, read
        self.witnesses = [write, *(one for one in (first, last) if one is not None)]
        self.high_read = last_begin
        self.low = first_end
        self.high = max(last_begin, until)
        self.forward = self.low < self.high

    @property
    def begin(self) -> float:
        return min(self.low, self.high)

    @property
    def end(self) -> float:
        return max(self.low, self.high)


class _Judgement:
    """The answer for one history; `find` returns what is wrong, with operations that show it."""

    def __init__(self, history: Sequence[Operation]) -> None:
        self._crashes = sorted({one.begin for one in history if one.what is What.CRASH})
        self._starts = [-inf, *self._crashes]
        self._ends = [*self._crashes, inf]
        self._clusters: dict[Value, _Cluster] = {}
        self._survivors: list[_Cluster | None] = [None] * len(self._starts)
        self._last_flush: dict[int, Operation] = {}
        self._sort(history)

    def _eras(self, operation: Operation) -> tuple[int, int]:
        """In which eras an operation began and ended. At the instant of a crash it begins after and ends before it."""
        if not self._crashes:
            return 0, 0
        last = bisect_left(self._crashes, operation.end)
        return min(bisect_right(self._crashes, operation.begin), last), last

    def _sort(self, history: Sequence[Operation]) -> None:
        """Writes first: what a read says depends on when its value was written."""
        initial = self._clusters[INITIAL] = _Cluster()
        initial.write = Operation(What.WRITE, INITIAL, -inf, -inf)
        for one in history:
            if one.what is What.WRITE:
                cluster = self._clusters.setdefault(one.value, _Cluster())
                if cluster.write is not None:
                    raise ValueError(f"two writes have the value {one.value}")
                cluster.write = one
                first, cluster.era = self._eras(one)
                cluster.certain = one.is_certain and first == cluster.era
                cluster.fua = one.fua and one.is_certain
            elif one.what is What.FLUSH:
                first, last = self._eras(one)
                if first == last and (last not in self._last_flush or one.begin > self._last_flush[last].begin):
                    self._last_flush[last] = one
        for one in history:
            if one.what is What.READ:
                cluster = self._clusters.setdefault(one.value, _Cluster())
                first, last = self._eras(one)
                write = cluster.write
                if write is None or first == last or self._eras(write)[0] == last:
                    cluster.reads.setdefault(last, []).append(one)

    # --- what is wrong --------------------------------------------------------------------------------------------

    def find(self) -> Violation | None:
        return self._wrong_reads() or self._place() or self._judge_eras()

    def _wrong_reads(self) -> Violation | None:
        for cluster in self._clusters.values():
            for reads in cluster.reads.values():
                if cluster.write is None:
                    return Violation(NOBODY_WROTE, tuple(reads[:1]))
                for read in reads:
                    if read.end < cluster.write.begin:
                        return Violation(BEFORE_WRITTEN, (cluster.write, read))
        return None

    def _place(self) -> Violation | None:
        """Decide in which era each write took effect, and so which values survived which crashes."""
        if not self._crashes:
            return None
        for cluster in self._clusters.values():
            if not cluster.reads:
                continue
            write = cluster.write
            assert write is not None
            first, last = min(cluster.reads), max(cluster.reads)
            if not cluster.certain:
                # As late as the first read and its limit allow: so it takes room in one era only. If that is before
                # its last era, the flush of a write with FUA may have come later, when it meant nothing.
                cluster.fua = cluster.fua and cluster.era <= first
                cluster.era = min(cluster.era, first)
            if first < cluster.era or cluster.era < self._eras(write)[0]:
                return Violation(BEFORE_WRITTEN, (write, cluster.reads[first][0]))
            for era in range(cluster.era + 1, last + 1):
                other = self._survivors[era]
                if other is not None:
                    return Violation(TWO_SURVIVORS, (*self._survival(other), *self._survival(cluster)))
                self._survivors[era] = cluster
        return None

    @staticmethod
    def _survival(cluster: _Cluster) -> list[Operation]:
        """What shows in which era a cluster began, and how far it lasted."""
        write = cluster.write
        assert write is not None
        eras = sorted(cluster.reads)
        return [write, *(cluster.reads[era][0] for era in dict.fromkeys((*eras[:1], *eras[-1:])))]

    def _judge_eras(self) -> Violation | None:
        by_era: dict[int, list[_Cluster]] = {}
        for cluster in self._clusters.values():
            if cluster.reads or cluster.certain:  # else it was never seen and need not have happened
                by_era.setdefault(cluster.era, []).append(cluster)
        for era in range(len(self._starts)):
            clusters = by_era.get(era, [])
            survivor = self._survivors[era]
            found = self._judge_era(era, clusters if survivor is None else [survivor, *clusters])
            if found is not None:
                return found
        return None

    def _judge_era(self, era: int, clusters: list[_Cluster]) -> Violation | None:
        start, end = self._starts[era], self._ends[era]
        heir = self._survivors[era + 1] if era + 1 < len(self._starts) else None
        flush = self._last_flush.get(era)
        must_last = start if flush is None else max(start, flush.begin)
        zones = [_Zone(each, era, start, end, must_last if each is heir else -inf) for each in clusters]
        forward = sorted((zone for zone in zones if zone.forward), key=lambda zone: zone.low)
        for before, after in pairwise(forward):
            if after.low < before.high:
                lost = before.cluster is heir and after.low >= before.high_read
                lost = lost or (after.cluster is heir and after.low >= after.high_read)
                return self._violation(NOT_DURABLE if lost else TWO_AT_ONCE, before, after, flush=flush)
        # Forward zones do not overlap here, so only the last one that begins before an instant can contain it.
        lows = [zone.low for zone in forward]
        for zone in zones:
            if not zone.forward:
                position = bisect_left(lows, zone.begin) - 1
                if position >= 0 and zone.end < forward[position].high:
                    around = forward[position]
                    lost = around.cluster is heir and zone.end >= around.high_read
                    return self._violation(NOT_DURABLE if lost else NO_ROOM, around, zone, flush=flush)
        return None if heir is None else self._judge_fua(zones, forward, lows, heir)

    def _judge_fua(
        self, zones: list[_Zone], forward: list[_Zone], lows: list[float], heir: _Cluster
    ) -> Violation | None:
        """Whatever was written with FUA in an era must fit before the value that survives its end."""
        own = next(zone for zone in zones if zone.cluster is heir)
        latest = own.low
        if not own.forward:
            position = bisect_left(lows, latest) - 1
            if position >= 0 and latest < forward[position].high:
                latest = forward[position].low
        for zone in zones:
            if zone is own or not zone.cluster.fua or zone.from_start:
                continue
            earliest = zone.high
            if not zone.forward:
                position = bisect_left(lows, earliest) - 1
                if position >= 0:
                    earliest = max(earliest, forward[position].high)
            if own.from_start or earliest > latest:
                between = [one for one in forward if one.low <= earliest and one.high >= latest]
                return self._violation(NOT_DURABLE, own, zone, *between)
        return None

    def _violation(self, reason: str, *zones: _Zone, flush: Operation | None = None) -> Violation:
        shown: dict[int, Operation] = {} if flush is None else {id(flush): flush}
        for zone in zones:
            for one in (*zone.witnesses, *(self._survival(zone.cluster) if self._crashes else ())):
                shown[id(one)] = one
        return Violation(reason, tuple(shown.values()))

"""The history of one block as a register, and whether it can have happened: linearizability (Herlihy and Wing 1990).

Values are unique per write, which makes the question near-linear (Gibbons and Korach 1997, "Testing shared memories"):
all operations on one value form a cluster, whose zone runs from the earliest end to the latest begin among them. If the
end comes first, the value must have been there all through the zone ("forward"); otherwise one instant is enough
("backward"). A history can have happened if and only if no two forward zones overlap, no backward zone lies wholly
inside a forward zone, no read ended before its write began, and every value read was written.

A write without an answer may have happened at any time after it began, or never: it ends at infinity.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise, permutations
from math import inf
from typing import Final, NamedTuple

Value = tuple[int, int]
"""Writer and sequence number of a write; INITIAL for what was there before."""
INITIAL: Final[Value] = (0, 0)


class What(Enum):
    READ = "read"
    WRITE = "write"


class Operation(NamedTuple):
    """One read or write of a block. Times are from one clock; end is infinite for a write with unknown outcome."""

    what: What
    value: Value
    begin: float
    end: float

    def __str__(self) -> str:
        name = "the initial content" if self.value == INITIAL else f"write {self.value[1]} of writer {self.value[0]}"
        verb = f"read found {name}" if self.what is What.READ else name
        until = "no answer" if self.end == inf else f"{self.end:.6f}"
        return f"[{self.begin:.6f} .. {until}] {verb}"


@dataclass(frozen=True, slots=True)
class Violation:
    """Why a history cannot have happened, and the fewest of its operations that already show it."""

    reason: str
    operations: tuple[Operation, ...]

    def __str__(self) -> str:
        return "\n".join([self.reason, *(f"    {operation}" for operation in self.operations)])


class _Cluster:
    """All operations on one value."""

    __slots__ = ("first_end", "last_begin", "operations", "value", "write")

    def __init__(self, value: Value) -> None:
        self.value = value
        self.write: Operation | None = None
        self.operations: list[Operation] = []
        self.first_end: Operation | None = None
        self.last_begin: Operation | None = None

    def add(self, operation: Operation) -> None:
        self.operations.append(operation)
        if operation.what is What.WRITE:
            self.write = operation
        if self.first_end is None or operation.end < self.first_end.end:
            self.first_end = operation
        if self.last_begin is None or operation.begin > self.last_begin.begin:
            self.last_begin = operation

    @property
    def zone(self) -> tuple[float, float]:
        """(earliest end, latest begin)."""
        assert self.first_end is not None
        assert self.last_begin is not None
        return self.first_end.end, self.last_begin.begin

    def witnesses(self) -> list[Operation]:
        """The operations that make the zone what it is."""
        found = [self.write, self.first_end, self.last_begin]
        return [one for index, one in enumerate(found) if one is not None and one not in found[:index]]


def check(history: Iterable[Operation]) -> Violation | None:
    """None if the operations on one block can have happened; near-linear in their number."""
    clusters: dict[Value, _Cluster] = {}
    initial = _Cluster(INITIAL)
    initial.add(Operation(What.WRITE, INITIAL, -inf, -inf))
    clusters[INITIAL] = initial
    for operation in history:
        clusters.setdefault(operation.value, _Cluster(operation.value)).add(operation)
    zones: list[tuple[float, float, _Cluster]] = []
    for cluster in clusters.values():
        if cluster.write is None:
            return Violation("a value was read that nobody wrote", tuple(cluster.operations[:1]))
        for operation in cluster.operations:
            if operation.end < cluster.write.begin:
                return Violation("a read found a value before its write began", (cluster.write, operation))
        if cluster.write.end == inf and len(cluster.operations) == 1:
            continue  # never answered, never seen: it need not have happened
        first_end, last_begin = cluster.zone
        zones.append((min(first_end, last_begin), max(first_end, last_begin), cluster))
    return _conflict(zones)


def _conflict(zones: list[tuple[float, float, _Cluster]]) -> Violation | None:
    """Two zones that exclude each other. Zones are (from, to, cluster), of both directions."""
    forward = sorted((zone for zone in zones if _is_forward(zone)), key=lambda zone: zone[0])
    for (_, before_to, before), (after_from, _, after) in pairwise(forward):
        if after_from < before_to:
            return _smallest("two values would have had to be there at the same time", before, after)
    backward = sorted((zone for zone in zones if not _is_forward(zone)), key=lambda zone: zone[0])
    position = 0
    for low, high, cluster in backward:
        # Forward zones do not overlap here, so only the last one that begins before this zone can contain it.
        while position < len(forward) and forward[position][0] < low:
            position += 1
        if position and high < forward[position - 1][1]:
            return _smallest(
                "a write happened while another value was there all the time", forward[position - 1][2], cluster
            )
    return None


def _is_forward(zone: tuple[float, float, _Cluster]) -> bool:
    first_end, last_begin = zone[2].zone
    return first_end < last_begin


def _smallest(reason: str, one: _Cluster, other: _Cluster) -> Violation:
    operations = [op for op in one.witnesses() + other.witnesses() if op.begin != -inf]
    return Violation(reason, tuple(sorted(shrink(operations), key=lambda operation: operation.begin)))


def shrink(operations: Sequence[Operation]) -> list[Operation]:
    """Leave out what is not needed to show that the operations cannot have happened.

    A write is kept as long as a read of it is: without it the reason would be another one.
    """
    kept = list(operations)
    for candidate in operations:
        rest = [one for one in kept if one is not candidate]
        if candidate.what is What.WRITE and any(one.value == candidate.value for one in rest):
            continue
        if check(rest) is not None:
            kept = rest
    return kept


def check_brute_force(history: Sequence[Operation]) -> bool:
    """The definition, tried out: is there an order of all operations, some unanswered writes left out, that respects
    real time and in which each read finds the last write? For at most about eight operations."""
    unanswered = [op for op in history if op.what is What.WRITE and op.end == inf]
    for left_out in range(1 << len(unanswered)):
        omitted = [op for index, op in enumerate(unanswered) if left_out >> index & 1]
        kept = [op for op in history if not any(op is one for one in omitted)]
        if any(map(_is_legal, permutations(kept))):
            return True
    return False


def _is_legal(order: Sequence[Operation]) -> bool:
    value = INITIAL
    latest_begin = -inf
    for operation in order:
        # Whatever was put before this one must not have begun after it ended.
        if operation.end < latest_begin:
            return False
        latest_begin = max(latest_begin, operation.begin)
        if operation.what is What.WRITE:
            value = operation.value
        elif operation.value != value:
            return False
    return True

"""Where a request goes: the parts of it that are served here, and the parts that other members own.

Pure look-ups over a map snapshot and the held records. A range is served here only if the map says that this member
owns it *and* the pool's record says that its blocks are here, complete, as of the same generation. So a range that has
moved away, or was never filled, is refused instead of being read as zeros.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from san_target.storage.records import HELD, HeldRange
from san_target.volume.device import BlockDevice, MediumError, Unavailable, VolumeError
from san_target.volume.partition_map import MapSnapshot, Segment

Remote = Callable[[Segment], BlockDevice]
"""Gives a way to the blocks of a segment that another member owns; Unavailable if there is none."""


class Served(NamedTuple):
    """Blocks [start, end) that this member serves."""

    start: int
    end: int


def no_forwarding(segment: Segment) -> BlockDevice:
    raise Unavailable(f"blocks {segment.lba}+{segment.blocks} are owned by member {segment.owner!r}")


def served_ranges(snapshot: MapSnapshot, member_name: str, held: Sequence[HeldRange]) -> tuple[Served, ...]:
    """What is owned and held under equal generations, in order, neighbours joined."""
    ranges: list[Served] = []
    for start, end, generation in _owned(snapshot, member_name):
        for piece in held:
            if piece.state != HELD or piece.generation != generation:
                continue
            low, high = max(start, piece.start_lba), min(end, piece.end_lba)
            if low < high:
                if ranges and ranges[-1].end == low:
                    ranges[-1] = Served(ranges[-1].start, high)
                else:
                    ranges.append(Served(low, high))
    return tuple(ranges)


def _owned(snapshot: MapSnapshot, member_name: str) -> Iterator[tuple[int, int, int]]:
    for start, end, placement in zip(snapshot.starts, snapshot.ends, snapshot.placements, strict=True):
        if placement.owner == member_name:
            yield start, end, placement.generation


class Router:
    """One member's view of one volume's map."""

    __slots__ = ("held", "member_name", "served", "snapshot", "whole")

    def __init__(self, snapshot: MapSnapshot, member_name: str, held: Sequence[HeldRange]) -> None:
        self.snapshot: Final = snapshot
        self.member_name: Final = member_name
        self.held: Final = tuple(held)
        self.served: Final = served_ranges(snapshot, member_name, held)
        # True: every block of the volume is served here, and nothing needs to be looked up.
        self.whole: Final = self.served == (Served(0, snapshot.blocks),)

    def serves(self, lba: int, blocks: int) -> bool:
        """Is all of the range served here?"""
        return self.whole or any(piece.start <= lba and lba + blocks <= piece.end for piece in self._near(lba))

    def segments(self, lba: int, blocks: int) -> list[Segment]:
        """The range, cut by owner and generation."""
        return self.snapshot.segments(lba, blocks)

    def refusal(self, lba: int, blocks: int) -> VolumeError:
        """Why a range that this member owns, but does not serve, is refused."""
        for piece in self._near(lba):
            if piece.start <= lba < piece.end:
                lba = piece.end  # the first block that is not served
        for known in self.held:
            if known.start_lba <= lba < known.end_lba:
                return Unavailable(
                    f"block {lba} is {known.state} here under generation {known.generation}, the map says "
                    f"{self.snapshot.find(lba).generation}"
                )
        return MediumError(lba, f"the map says that block {lba} is here, but the pool has no record of holding it")

    def _near(self, lba: int) -> tuple[Served, ...]:
        """The served range that contains `lba`, if any."""
        low, high = 0, len(self.served)
        while low < high:
            middle = (low + high) // 2
            if self.served[middle].end <= lba:
                low = middle + 1
            else:
                high = middle
        return self.served[low : low + 1]

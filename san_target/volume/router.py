"""Where a request goes: the parts of it that are served here, and the parts that other members own.

Pure look-ups over a map snapshot and the held records. A range is served here only if the map says that this member
owns it *and* the pool's record says that its blocks are here, complete, as of the same generation. So a range that has
moved away, or was never filled, is refused instead of being read as zeros.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final, NamedTuple

from san_target.storage.records import HELD, HeldRange
from san_target.volume.device import MediumError, NotAtomic, Unavailable, VolumeError
from san_target.volume.partition_map import LOST, MapSnapshot, Segment


class NotHere(Unavailable):
    """The map says that these blocks are here, but they are not here (yet) under that generation."""


class Served(NamedTuple):
    """Blocks [start, end) that this member serves."""

    start: int
    end: int


def served_ranges(snapshot: MapSnapshot, member_name: str, held: Sequence[HeldRange]) -> tuple[Served, ...]:
    """What is owned and held under equal generations, in order, neighbours joined."""
    ranges: list[Served] = []
    for start, end, placement in snapshot.ranges():
        if placement.owner != member_name:
            continue
        for piece in held:
            if piece.state != HELD or piece.generation != placement.generation:
                continue
            low, high = max(start, piece.start_lba), min(end, piece.end_lba)
            if low < high:
                if ranges and ranges[-1].end == low:
                    ranges[-1] = Served(ranges[-1].start, high)
                else:
                    ranges.append(Served(low, high))
    return tuple(ranges)


def uncut(parts: list[Segment]) -> list[Segment]:
    """Neighbours as one, under the youngest of their generations (`Router.serves_up_to`). NotAtomic: of several owners.

    Blocks that are lost stay a part of their own.
    """
    if any(part.owner == LOST for part in parts):
        return parts
    first, blocks = parts[0], sum(part.blocks for part in parts)
    if any(part.owner != first.owner for part in parts):
        raise NotAtomic(f"blocks {first.lba}+{blocks} have several owners, and must be changed at one")
    return [Segment(first.owner, first.lba, blocks, max(part.generation for part in parts))]


class Router:
    """One member's view of one volume's map."""

    __slots__ = ("_held_starts", "held", "member_name", "revision", "snapshot", "whole")

    def __init__(self, snapshot: MapSnapshot, member_name: str, held: Sequence[HeldRange], revision: int = 0) -> None:
        """held: in order. revision: of the store, at which the map last changed."""
        self.snapshot: Final = snapshot
        self.revision: Final = revision
        self.member_name: Final = member_name
        self.held: Final = tuple(held)
        self._held_starts: Final = tuple([piece.start_lba for piece in self.held])
        # True: every block of the volume is served here, and nothing needs to be looked up. (A map of many chunks is
        # not looked through at each change.)
        self.whole: Final = len(snapshot.chunks) == 1 and self.serves_each(0, snapshot.blocks)

    def serves(self, lba: int, blocks: int) -> bool:
        """Is all of the range served here?"""
        return self.whole or self.serves_each(lba, blocks)

    def serves_each(self, lba: int, blocks: int) -> bool:
        end = lba + blocks
        while lba < end:
            found = self._served_at(lba)
            if found is None:
                return False
            lba = found[0]
        return True

    def serves_under(self, lba: int, blocks: int, generation: int) -> bool:
        """Is all of the range served here, as a part of what this generation placed here?"""
        end = lba + blocks
        while lba < end:
            found = self._served_at(lba)
            if found is None or found[1] != generation:
                return False
            lba = found[0]
        return True

    def serves_up_to(self, lba: int, blocks: int, generation: int) -> bool:
        """Is all of the range served here, and this the youngest generation in it?

        As good as naming all of them: what has left and come back is younger than all that was known before it left.
        """
        end, youngest = lba + blocks, 0
        while lba < end:
            found = self._served_at(lba)
            if found is None:
                return False
            lba, youngest = found[0], max(youngest, found[1])
        return youngest == generation

    def _served_at(self, lba: int) -> tuple[int, int] | None:
        """Up to where, and under which generation, blocks from `lba` on are served here; None: that one is not."""
        snapshot = self.snapshot
        chunk = snapshot.chunks[bisect_right(snapshot.firsts, lba) - 1]
        index = bisect_right(chunk.starts, lba) - 1
        placement, end = chunk.placements[index], chunk.ends[index]
        position = bisect_right(self._held_starts, lba) - 1
        if placement.owner != self.member_name or lba >= end or position < 0:
            return None
        piece = self.held[position]
        if piece.end_lba <= lba or piece.state != HELD or piece.generation != placement.generation:
            return None
        return min(end, piece.end_lba), placement.generation

    @property
    def served(self) -> tuple[Served, ...]:
        """Everything that is served here. Looks through the whole map."""
        return served_ranges(self.snapshot, self.member_name, self.held)

    def segments(self, lba: int, blocks: int) -> list[Segment]:
        """The range, cut by owner and generation."""
        return self.snapshot.segments(lba, blocks)

    def refusal(self, lba: int, blocks: int) -> VolumeError:
        """Why a range that this member does not serve is refused; NotHere: the next look at the map may say more."""
        end = lba + blocks
        while lba < end and (found := self._served_at(lba)) is not None:
            lba = found[0]  # the first block that is not served
        owner = self.snapshot.find(min(lba, end - 1)).owner
        if owner != self.member_name:
            return NotHere(f"block {lba} belongs to member {owner!r} by now")
        for known in self.held:
            if known.start_lba <= lba < known.end_lba:
                return NotHere(
                    f"block {lba} is {known.state} here under generation {known.generation}, the map says "
                    f"{self.snapshot.find(lba).generation}"
                )
        return MediumError(lba, f"the map says that block {lba} is here, but the pool has no record of holding it")

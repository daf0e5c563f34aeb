"""The routing table of a volume: who holds which blocks.

`PartitionMap` is the master: ranges keyed by their first LBA, each ending where the next begins, so a gap or an
overlap cannot be expressed. `MapSnapshot` is what requests look at: immutable, parallel tuples, found by bisection.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from sortedcontainers import SortedDict

from san_target.metadata.schema import PlacementRecord


class PartitionMapError(Exception):
    """The ranges read from the store are no map of the volume."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Who holds a range: owner, in-sync copies, and the member that is being filled ("" = none)."""

    owner: str
    copies: tuple[str, ...] = ()
    joining: str = ""
    generation: int = 0


class Segment(NamedTuple):
    """A part of a request that has one owner, under one generation."""

    owner: str
    lba: int
    blocks: int
    generation: int


class MapChange(NamedTuple):
    """What a change did to the keys: starts that are gone, and starts that are new or have another end or placement."""

    removed: tuple[int, ...]
    written: tuple[int, ...]


class MapSnapshot:
    """A map at one moment. `starts`, `ends` and `placements` are parallel and in order."""

    __slots__ = ("blocks", "ends", "placements", "starts")

    def __init__(
        self, starts: tuple[int, ...], ends: tuple[int, ...], placements: tuple[Placement, ...], blocks: int
    ) -> None:
        self.starts: Final = starts
        self.ends: Final = ends
        self.placements: Final = placements
        self.blocks: Final = blocks

    def index(self, lba: int) -> int:
        """Where `lba` (inside the volume) is in the parallel tuples."""
        return bisect_right(self.starts, lba) - 1

    def find(self, lba: int) -> Placement:
        return self.placements[bisect_right(self.starts, lba) - 1]

    def segments(self, lba: int, blocks: int) -> list[Segment]:
        """[lba, lba + blocks), which lies in the volume, cut where owner or generation changes."""
        end = lba + blocks
        if not 0 <= lba <= end <= self.blocks:
            raise AssertionError(f"blocks {lba}+{blocks} of a volume of {self.blocks}")
        segments: list[Segment] = []
        index = self.index(lba)
        while lba < end:
            placement = self.placements[index]
            stop = min(end, self.ends[index])
            last = segments[-1] if segments else None
            if last and (last.owner, last.generation) == (placement.owner, placement.generation):
                segments[-1] = Segment(last.owner, last.lba, stop - last.lba, last.generation)
            else:
                segments.append(Segment(placement.owner, lba, stop - lba, placement.generation))
            lba = stop
            index += 1
        return segments

    def resized(self, blocks: int) -> "MapSnapshot":
        """Cut to `blocks`, or with the last range reaching that far."""
        count = bisect_right(self.starts, blocks - 1)
        return MapSnapshot(self.starts[:count], (*self.starts[1:count], blocks), self.placements[:count], blocks)


class PartitionMap:
    """The whole of [0, blocks), always. Replacing merges equal neighbours; ranges read from the store stay as read."""

    def __init__(self, blocks: int, placement: Placement) -> None:
        if blocks <= 0:
            raise AssertionError(f"a map of {blocks} blocks")
        self._blocks = blocks
        self._placements: SortedDict[int, Placement] = SortedDict({0: placement})
        self._snapshot: MapSnapshot | None = None

    @classmethod
    def from_records(cls, blocks: int, items: Iterable[tuple[int, PlacementRecord]]) -> "PartitionMap":
        """items: (start LBA, record), in any order. PartitionMapError: not exactly one placement for each block."""
        ordered = sorted(items, key=lambda item: item[0])
        end = 0
        for start, record in ordered:
            if start != end or record.end_lba <= start:
                raise PartitionMapError(
                    f"the partition map has a gap or an overlap at LBA {min(start, end)} (a range of "
                    f"{start}-{record.end_lba} follows the end {end}); restore the store from a backup"
                )
            end = record.end_lba
        if not ordered or end != blocks:
            raise PartitionMapError(
                f"the partition map ends at LBA {end}, the volume at {blocks}; restore the store from a backup"
            )
        made = cls(blocks, _placement(ordered[0][1]))
        made._placements.update({start: _placement(record) for start, record in ordered})
        return made

    @property
    def blocks(self) -> int:
        return self._blocks

    def snapshot(self) -> MapSnapshot:
        """The map as it is now; the same object until the map changes."""
        if self._snapshot is None:
            starts = tuple(self._placements)
            self._snapshot = MapSnapshot(
                starts, (*starts[1:], self._blocks), tuple(self._placements.values()), self._blocks
            )
        return self._snapshot

    def records(self) -> dict[int, PlacementRecord]:
        """By start LBA, as they are kept in the store."""
        map_now = self.snapshot()
        return {
            start: PlacementRecord(
                end_lba=end,
                owner=placement.owner,
                copies=placement.copies,
                joining=placement.joining,
                generation=placement.generation,
            )
            for start, end, placement in zip(map_now.starts, map_now.ends, map_now.placements, strict=True)
        }

    def replace(self, start: int, end: int, placement: Placement) -> MapChange:
        """Place the blocks [start, end) anew: ranges are split at the ends, and equal neighbours merged."""
        if not 0 <= start < end <= self._blocks:
            raise AssertionError(f"replacing {start}-{end} of {self._blocks} blocks")
        before = self.snapshot()
        self._split(start)
        if end < self._blocks:
            self._split(end)
        for inner in list(self._placements.irange(start, end, inclusive=(False, False))):
            del self._placements[inner]
        self._placements[start] = placement
        self._merge_at(start)
        if end < self._blocks:
            self._merge_at(end)
        return self._changed(before)

    def resize(self, blocks: int, placement: Placement) -> MapChange:
        """Cut the map to `blocks`, or extend it by blocks that `placement` holds."""
        if blocks <= 0:
            raise AssertionError(f"a map of {blocks} blocks")
        before = self.snapshot()
        for beyond in list(self._placements.irange(blocks)):
            del self._placements[beyond]
        if blocks > self._blocks:
            self._placements[self._blocks] = placement
            self._merge_at(self._blocks)
        self._blocks = blocks
        return self._changed(before)

    def _split(self, lba: int) -> None:
        """Make `lba` the start of a range."""
        if lba not in self._placements:
            index = self._placements.bisect_right(lba) - 1
            self._placements[lba] = self._placements.peekitem(index)[1]

    def _merge_at(self, lba: int) -> None:
        """Join the range that starts at `lba` to the one before, if both have the same placement."""
        index = self._placements.index(lba)
        if index > 0 and self._placements.peekitem(index - 1)[1] == self._placements[lba]:
            del self._placements[lba]

    def _changed(self, before: MapSnapshot) -> MapChange:
        self._snapshot = None
        after = self.snapshot()
        old = {
            start: (end, held) for start, end, held in zip(before.starts, before.ends, before.placements, strict=True)
        }
        new = {start: (end, held) for start, end, held in zip(after.starts, after.ends, after.placements, strict=True)}
        return MapChange(
            tuple(start for start in old if start not in new),
            tuple(start for start, value in new.items() if old.get(start) != value),
        )


def _placement(record: PlacementRecord) -> Placement:
    return Placement(record.owner, record.copies, record.joining, record.generation)

"""The routing table of a volume: who holds which blocks.

`PartitionMap` is the master: ranges keyed by their first LBA, each ending where the next begins, so a gap or an
overlap cannot be expressed. `MapSnapshot` is what requests look at: immutable, found by bisection. It consists of
chunks of some hundred ranges, and the next snapshot shares the chunks that have not changed: a change of a map of a
million ranges costs what it touches, and not the million.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Final, NamedTuple

from sortedcontainers import SortedDict

from san_target.metadata.schema import PlacementRecord

LOST: Final = ""
"""The owner of blocks that nobody holds any more: their member was given up."""

CHUNK_RANGES: Final = 512
INTERNED_MAX: Final = 4096


class PartitionMapError(Exception):
    """The ranges read from the store are no map of the volume."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Who holds a range: owner (or LOST), in-sync copies, and the member that is being filled ("" = none)."""

    owner: str
    copies: tuple[str, ...] = ()
    joining: str = ""
    generation: int = 0

    @property
    def holders(self) -> frozenset[str]:
        """The members that may have blocks of the range."""
        return frozenset((self.owner, *self.copies, self.joining)) - {""}


class Segment(NamedTuple):
    """A part of a request that has one owner, under one generation."""

    owner: str
    lba: int
    blocks: int
    generation: int


class Range(NamedTuple):
    """Blocks [start, end) and who holds them."""

    start: int
    end: int
    placement: Placement


class MapChange(NamedTuple):
    """What a change did to the keys: starts that are gone, and starts that are new or have another end or placement."""

    removed: tuple[int, ...]
    written: tuple[int, ...]


class Chunk:
    """Some neighbouring ranges: parallel tuples, in order. holders: of any of them; lost_blocks: that nobody holds."""

    __slots__ = ("ends", "holders", "lost_blocks", "placements", "starts")

    def __init__(self, starts: tuple[int, ...], ends: tuple[int, ...], placements: tuple[Placement, ...]) -> None:
        self.starts: Final = starts
        self.ends: Final = ends
        self.placements: Final = placements
        # Most ranges share their placement with others, as one object.
        distinct = {id(placement): placement for placement in placements}.values()
        self.holders: Final = frozenset[str]().union(*(placement.holders for placement in distinct))
        self.lost_blocks: Final = (
            sum(
                end - start
                for start, end, placement in zip(starts, ends, placements, strict=True)
                if placement.owner == LOST
            )
            if any(placement.owner == LOST for placement in distinct)
            else 0
        )


class MapSnapshot:
    """A map at one moment. firsts: the first LBA of each chunk."""

    __slots__ = ("blocks", "chunks", "firsts")

    def __init__(self, chunks: tuple[Chunk, ...], blocks: int) -> None:
        self.chunks: Final = chunks
        self.firsts: Final = tuple([chunk.starts[0] for chunk in chunks])
        self.blocks: Final = blocks

    def find(self, lba: int) -> Placement:
        """Who holds the block `lba`, which lies in the volume."""
        chunk = self.chunks[bisect_right(self.firsts, lba) - 1]
        return chunk.placements[bisect_right(chunk.starts, lba) - 1]

    def range_at(self, lba: int) -> Range:
        """The range that `lba`, which lies in the volume, belongs to."""
        return next(self.ranges(lba))

    def only_segment(self, lba: int, blocks: int) -> Segment | None:
        """[lba, lba + blocks) as one segment; None: it reaches over the end of a range, see `segments`."""
        chunk = self.chunks[bisect_right(self.firsts, lba) - 1]
        index = bisect_right(chunk.starts, lba) - 1
        if lba + blocks > chunk.ends[index]:
            return None
        placement = chunk.placements[index]
        return Segment(placement.owner, lba, blocks, placement.generation)

    def ranges(self, lba: int = 0) -> Iterator[Range]:
        """All ranges in order, from the one that `lba` belongs to."""
        first = bisect_right(self.firsts, lba) - 1
        index = bisect_right(self.chunks[first].starts, lba) - 1
        for chunk in self.chunks[first:]:
            for position in range(index, len(chunk.starts)):
                yield Range(chunk.starts[position], chunk.ends[position], chunk.placements[position])
            index = 0

    @property
    def last(self) -> Placement:
        """Who holds the last block."""
        return self.chunks[-1].placements[-1]

    @property
    def holders(self) -> frozenset[str]:
        """Every member that may have blocks of the volume. Costs one look at each chunk."""
        return frozenset[str]().union(*(chunk.holders for chunk in self.chunks))

    @property
    def lost_blocks(self) -> int:
        """How many blocks nobody holds any more."""
        return sum(chunk.lost_blocks for chunk in self.chunks)

    def __len__(self) -> int:
        """The number of ranges."""
        return sum(len(chunk.starts) for chunk in self.chunks)

    # The whole map in parallel tuples: made anew by each look.
    @property
    def starts(self) -> tuple[int, ...]:
        return tuple(start for chunk in self.chunks for start in chunk.starts)

    @property
    def ends(self) -> tuple[int, ...]:
        return tuple(end for chunk in self.chunks for end in chunk.ends)

    @property
    def placements(self) -> tuple[Placement, ...]:
        return tuple(placement for chunk in self.chunks for placement in chunk.placements)

    def segments(self, lba: int, blocks: int) -> list[Segment]:
        """[lba, lba + blocks), which lies in the volume, cut where owner or generation changes."""
        end = lba + blocks
        if not 0 <= lba <= end <= self.blocks:
            raise AssertionError(f"blocks {lba}+{blocks} of a volume of {self.blocks}")
        segments: list[Segment] = []
        if lba == end:
            return segments
        for _start, range_end, placement in self.ranges(lba):
            stop = min(end, range_end)
            last = segments[-1] if segments else None
            if last and (last.owner, last.generation) == (placement.owner, placement.generation):
                segments[-1] = Segment(last.owner, last.lba, stop - last.lba, last.generation)
            else:
                segments.append(Segment(placement.owner, lba, stop - lba, placement.generation))
            lba = stop
            if lba == end:
                break
        return segments

    def replaced(self, start: int, end: int, placement: Placement) -> "MapSnapshot":
        """The same, with [start, end) placed anew. Costs what the chunks concerned cost."""
        if not 0 <= start < end <= self.blocks:
            raise AssertionError(f"replacing {start}-{end} of {self.blocks} blocks")
        # With the neighbours, which may become one with it.
        first, last = max(start - 1, 0), min(end, self.blocks - 1)
        low, high = bisect_right(self.firsts, first) - 1, bisect_right(self.firsts, last)
        kept: list[Range] = []
        for chunk in self.chunks[low:high]:
            for old in map(Range, chunk.starts, chunk.ends, chunk.placements):
                if old.start < start:
                    kept.append(Range(old.start, min(old.end, start), old.placement))
                if old.end > end:
                    kept.append(Range(max(old.start, end), old.end, old.placement))
        ranges: list[Range] = []
        for new in sorted([*kept, Range(start, end, placement)]):
            # Elsewhere equal neighbours stay apart, as they are in the store.
            if ranges and new.start in (start, end) and ranges[-1].placement == new.placement:
                ranges[-1] = Range(ranges[-1].start, new.end, new.placement)
            else:
                ranges.append(new)
        chunk = Chunk(
            tuple([each.start for each in ranges]),
            tuple([each.end for each in ranges]),
            tuple([each.placement for each in ranges]),
        )
        return MapSnapshot((*self.chunks[:low], chunk, *self.chunks[high:]), self.blocks)

    def resized(self, blocks: int) -> "MapSnapshot":
        """Cut to `blocks`, or with the last range reaching that far."""
        count = bisect_right(self.firsts, blocks - 1)
        last = self.chunks[count - 1]
        kept = bisect_right(last.starts, blocks - 1)
        end = Chunk(last.starts[:kept], (*last.starts[1:kept], blocks), last.placements[:kept])
        return MapSnapshot((*self.chunks[: count - 1], end), blocks)


class PartitionMap:
    """The whole of [0, blocks), always. Replacing merges equal neighbours; ranges read from the store stay as read."""

    def __init__(self, blocks: int, placement: Placement) -> None:
        if blocks <= 0:
            raise AssertionError(f"a map of {blocks} blocks")
        self._blocks = blocks
        self._placements: SortedDict[int, Placement] = SortedDict({0: placement})
        self._chunks: list[Chunk] = []
        self._snapshot: MapSnapshot | None = None
        self._touched: set[int] = set()  # LBAs at which a range began, begins now, or got another placement
        self._interned: dict[Placement, Placement] = {}

    @classmethod
    def from_records(cls, blocks: int, items: Iterable[tuple[int, PlacementRecord]]) -> "PartitionMap":
        """items: (start LBA, record), in any order. PartitionMapError: not exactly one placement for each block."""
        ordered = sorted(items, key=lambda item: item[0])
        if not ordered or ordered[0][0] != 0 or ordered[0][1].end_lba <= 0:
            raise PartitionMapError("the partition map does not begin at LBA 0; restore the store from a backup")
        made = cls(ordered[0][1].end_lba, placement_of(ordered[0][1]))
        for start, record in ordered[1:]:
            made.append(start, record)
        check_end(made.blocks, blocks)
        return made

    @property
    def blocks(self) -> int:
        return self._blocks

    def __len__(self) -> int:
        """The number of ranges."""
        return len(self._placements)

    def range_at(self, lba: int) -> Range:
        """The range that `lba`, which lies in the volume, belongs to."""
        start = self._at_or_before(lba)
        return Range(start, self._end_of(start), self._placements[start])

    def records(self) -> dict[int, PlacementRecord]:
        """By start LBA, as they are kept in the store."""
        return {start: record_of(end, placement) for start, end, placement in self.snapshot().ranges()}

    def record_at(self, start: int) -> PlacementRecord:
        """The range that begins at `start`, as it is kept in the store. KeyError: none does."""
        return record_of(self._end_of(start), self._placements[start])

    # Changes ----------------------------------------------------------------------------------------------------------

    def replace(self, start: int, end: int, placement: Placement) -> MapChange:
        """Place the blocks [start, end) anew: ranges are split at the ends, and equal neighbours merged."""
        if not 0 <= start < end <= self._blocks:
            raise AssertionError(f"replacing {start}-{end} of {self._blocks} blocks")
        low = self.range_at(max(start - 1, 0)).start
        high = self.range_at(min(end, self._blocks - 1)).end
        before = self._window(low, high)
        self._split(start)
        if end < self._blocks:
            self._split(end)
        for inner in list(self._placements.irange(start, end, inclusive=(False, False))):
            self._remove(inner)
        self._put(start, placement)
        self._merge_at(start)
        if end < self._blocks:
            self._merge_at(end)
        return _difference(before, self._window(low, high))

    def append(self, start: int, record: PlacementRecord) -> None:
        """Add the next range, as read from the store in order. PartitionMapError: it does not begin at the end."""
        if start != self._blocks or record.end_lba <= start:
            raise PartitionMapError(
                f"the partition map has a gap or an overlap at LBA {min(start, self._blocks)} (a range of "
                f"{start}-{record.end_lba} follows the end {self._blocks}); restore the store from a backup"
            )
        self._put(start, self._shared(record))
        self._blocks = record.end_lba

    def apply(self, changes: Mapping[int, PlacementRecord | None]) -> None:
        """Take over the ranges that one revision of the store changed, by start LBA; None: the key is gone.

        PartitionMapError: they do not make a map with the others, and this one must not be used any more.
        """
        before = self.snapshot()
        for start, record in changes.items():
            if record is not None:
                self._put(start, self._shared(record))
            elif start in self._placements:
                self._remove(start)
        if 0 not in self._placements:
            raise PartitionMapError("the partition map does not begin at LBA 0; restore the store from a backup")
        last = next(reversed(self._placements))
        self._blocks = self._said_end(before, changes, last)
        for start in changes:
            for near in (self._at_or_before(start - 1), self._at_or_before(start)):
                said = self._said_end(before, changes, near)
                if said != self._end_of(near) or said <= near:
                    raise PartitionMapError(
                        f"the partition map has a gap or an overlap at LBA {min(said, self._end_of(near))} (the range "
                        f"from {near} ends at {said}, the next begins at {self._end_of(near)}); restore the store from "
                        "a backup"
                    )

    def _said_end(self, before: MapSnapshot, changes: Mapping[int, PlacementRecord | None], start: int) -> int:
        """Where the store says that the range from `start` ends; a range it has not changed ends where it did."""
        record = changes.get(start)
        return before.range_at(start).end if record is None else record.end_lba

    def _shared(self, record: PlacementRecord) -> Placement:
        """Equal placements, of which a map has many, as one object."""
        placement = placement_of(record)
        if len(self._interned) >= INTERNED_MAX:
            self._interned.clear()
        return self._interned.setdefault(placement, placement)

    def _at_or_before(self, lba: int) -> int:
        """The start of the last range that begins at `lba` or before; 0 where there is none."""
        # By irange, for the dictionary's positions would be counted anew after each change.
        return next(self._placements.irange(maximum=lba, reverse=True), 0)

    def _end_of(self, start: int) -> int:
        return next(self._placements.irange(minimum=start, inclusive=(False, True)), self._blocks)

    def _window(self, low: int, high: int) -> dict[int, tuple[int, Placement]]:
        """start -> (end, placement) of the ranges that begin in [low, high)."""
        starts = list(self._placements.irange(low, high, inclusive=(True, False)))
        if not starts:
            return {}
        ends = [*starts[1:], self._end_of(starts[-1])]
        return {start: (end, self._placements[start]) for start, end in zip(starts, ends, strict=True)}

    def _put(self, start: int, placement: Placement) -> None:
        self._placements[start] = placement
        self._touched.add(start)

    def _remove(self, start: int) -> None:
        del self._placements[start]
        self._touched.add(start)

    def _split(self, lba: int) -> None:
        """Make `lba` the start of a range."""
        if lba not in self._placements:
            self._put(lba, self.range_at(lba).placement)

    def _merge_at(self, lba: int) -> None:
        """Join the range that starts at `lba` to the one before, if both have the same placement."""
        if lba > 0 and self.range_at(lba - 1).placement == self._placements[lba]:
            self._remove(lba)

    # Snapshots --------------------------------------------------------------------------------------------------------

    def snapshot(self) -> MapSnapshot:
        """The map as it is now; the same object until the map changes."""
        if self._snapshot is None:
            self._chunks = self._cut(0, self._blocks)
        elif self._touched:
            for first, last in reversed(self._runs(self._snapshot)):
                low = self._chunks[first].starts[0]
                high = self._chunks[last + 1].starts[0] if last + 1 < len(self._chunks) else self._blocks
                self._chunks[first : last + 1] = self._cut(low, high)
        else:
            return self._snapshot
        self._touched.clear()
        self._snapshot = MapSnapshot(tuple(self._chunks), self._blocks)
        return self._snapshot

    def _runs(self, before: MapSnapshot) -> list[tuple[int, int]]:
        """Runs (first, last) of neighbouring chunks to be made anew, in order.

        A range that begins or vanishes gives the one before another end; the chunk of that one is made anew too. So no
        run begins at a range that is gone: the run would hold the chunk before.
        """
        changed = {bisect_right(before.firsts, lba) - 1 for lba in self._touched}
        changed |= {bisect_right(before.firsts, self._at_or_before(lba - 1)) - 1 for lba in self._touched}
        for index in list(changed):
            low = before.firsts[index]
            high = before.firsts[index + 1] if index + 1 < len(before.firsts) else self._blocks
            ranges = self._placements.irange(low, high, inclusive=(True, False))
            few = next(islice(ranges, CHUNK_RANGES // 4, None), None) is None
            if few and index + 1 < len(before.firsts):  # joined to the next, lest many small chunks be left
                changed.add(index + 1)
        runs: list[tuple[int, int]] = []
        for index in sorted(changed):
            if runs and runs[-1][1] == index - 1:
                runs[-1] = (runs[-1][0], index)
            else:
                runs.append((index, index))
        return runs

    def _cut(self, low: int, high: int) -> list[Chunk]:
        """Chunks of the ranges that begin in [low, high), where high is the start of a range or the end of the map."""
        starts = tuple(self._placements.irange(low, high, inclusive=(True, False)))
        count = max(1, len(starts) // CHUNK_RANGES)
        cuts = [len(starts) * number // count for number in range(count + 1)]
        return [
            Chunk(
                starts[first:last],
                (*starts[first + 1 : last], starts[last] if last < len(starts) else high),
                tuple(self._placements[start] for start in starts[first:last]),
            )
            for first, last in pairwise(cuts)
        ]


def check_end(map_blocks: int, volume_blocks: int) -> None:
    """PartitionMapError: the map does not reach to the end of the volume, or beyond."""
    if map_blocks != volume_blocks:
        raise PartitionMapError(
            f"the partition map ends at LBA {map_blocks}, the volume at {volume_blocks}; "
            "restore the store from a backup"
        )


def placement_of(record: PlacementRecord) -> Placement:
    return Placement(record.owner, record.copies, record.joining, record.generation)


def record_of(end: int, placement: Placement) -> PlacementRecord:
    """A range that ends at `end`, as it is kept in the store."""
    return PlacementRecord(
        end_lba=end,
        owner=placement.owner,
        copies=placement.copies,
        joining=placement.joining,
        generation=placement.generation,
    )


def _difference(before: dict[int, tuple[int, Placement]], after: dict[int, tuple[int, Placement]]) -> MapChange:
    return MapChange(
        tuple(start for start in before if start not in after),
        tuple(start for start, value in after.items() if before.get(start) != value),
    )

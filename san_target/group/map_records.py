"""Partition maps in the store: one key for each range. Read in pages, changed by compare-and-set in small transactions.

A change of a map compares the keys that it touches and the volume's own key, so that it cannot come true beside another
change of the same ranges, nor of a volume that is being resized or deleted meanwhile.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Final, NamedTuple

from san_target.group.errors import Conflict
from san_target.metadata.schema import PlacementRecord, decode, encode, map_key, map_prefix
from san_target.metadata.store import Compare, Delete, Item, Put, Store
from san_target.volume.partition_map import MapSnapshot, Placement, record_of

KEYS_AT_ONCE: Final = 100
"""How many ranges one transaction changes: fewer than the store takes, for the volume's own keys come along."""


class MapEntry(NamedTuple):
    """A range as it is stored. revision: of its last change."""

    start: int
    placement: PlacementRecord
    revision: int

    def is_held_only_by(self, member_name: str) -> bool:
        """True too for a range that nobody holds any more."""
        holders = {self.placement.owner, *self.placement.copies, self.placement.joining}
        return holders <= {member_name, ""}


class MapTransaction(NamedTuple):
    """What to give to `Store.transact`."""

    compares: list[Compare]
    operations: list[Put | Delete]


def start_lba(key: str) -> int:
    """The LBA in a map key."""
    return int(key.rpartition("/")[2], 16)


def entry_of(item: Item) -> MapEntry:
    return MapEntry(start_lba(item.key), decode(PlacementRecord, item.value, item.key), item.mod_revision)


async def entries(store: Store, volume_id: str) -> AsyncIterator[MapEntry]:
    """All ranges of a volume by LBA, of one revision. StoreError."""
    async for page in store.pages(map_prefix(volume_id)):
        for item in page.items:
            yield entry_of(item)


async def placement_transaction(
    store: Store, volume_id: str, before: MapSnapshot, start: int, end: int, placement: Placement
) -> MapTransaction:
    """What places [start, end) anew; the caller adds the volume's key. Costs what it touches.

    Conflict: the store has other ranges than `before`.
    """
    low = before.range_at(max(start - 1, 0)).start
    high = before.range_at(min(end, before.blocks - 1)).end
    old = _records(before, low, high)
    new = _records(before.replaced(start, end, placement), low, high)
    changed = sorted(lba for lba in old.keys() | new.keys() if old.get(lba) != new.get(lba))
    compares: list[Compare] = []
    operations: list[Put | Delete] = []
    for lba, item in zip(
        changed, await asyncio.gather(*(store.get(map_key(volume_id, lba)) for lba in changed)), strict=True
    ):
        key = map_key(volume_id, lba)
        if (None if item is None else decode(PlacementRecord, item.value, key)) != old.get(lba):
            raise Conflict(f"the range at LBA {lba} was changed at the same time")
        compares.append(Compare(key, 0 if item is None else item.mod_revision))
        operations.append(Put(key, encode(new[lba])) if lba in new else Delete(key))
    return MapTransaction(compares, operations)


def _records(snapshot: MapSnapshot, low: int, high: int) -> dict[int, PlacementRecord]:
    """The ranges that begin in [low, high), as they are stored."""
    found = {}
    for start, end, placement in snapshot.ranges(low):
        if start >= high:
            break
        found[start] = record_of(end, placement)
    return found

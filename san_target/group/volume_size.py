"""Resizing a volume: what the store holds before, while and after its members carry it out.

Growth adds ranges to the map at once, and names the members that make their blocks; nobody shows the new size before
all have done so. A shrink names all that hold anything; each destroys what lies beyond, and until all have, the volume
does not grow. A growth that cannot be carried out is taken back by a shrink to the old size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from san_target.group.errors import Conflict
from san_target.group.map_records import KEYS_AT_ONCE, MapEntry, entries
from san_target.group.spread import SPREAD_BYTES_MIN, Candidate, spread
from san_target.metadata.schema import PlacementRecord, VolumeRecord, encode, map_key
from san_target.metadata.store import Compare, Delete, Put, Store
from san_target.volume.partition_map import LOST

TRIM_TRIES: Final = 16


def shown_bytes(record: VolumeRecord) -> int:
    """The size that initiators see."""
    return record.growing_from_bytes or record.size_bytes


def shown_blocks(record: VolumeRecord) -> int:
    return shown_bytes(record) // record.block_size


def check_resize(record: VolumeRecord, size_bytes: int, force: bool) -> None:
    """May the volume get this (valid) size now? Conflict."""
    shown, name = shown_bytes(record), record.name
    if size_bytes > shown and record.shrinking:
        raise Conflict(f"the volume {name!r} is being shrunk to {record.size_bytes} bytes; try again soon")
    if size_bytes > shown and record.growing_from_bytes:
        raise Conflict(f"the volume {name!r} is growing to {record.size_bytes} bytes; try again soon")
    if size_bytes < shown and not force:
        raise Conflict(
            f"{size_bytes} bytes is smaller than the volume {name!r} ({shown}): "
            "that destroys what lies beyond; use --force if you mean it"
        )


@dataclass(slots=True)
class MapFacts:
    """What a resize has to know of a map: all holders, and the last range."""

    holders: set[str] = field(default_factory=set)
    last: MapEntry | None = None


async def map_facts(store: Store, volume_id: str) -> MapFacts:
    facts = MapFacts()
    async for entry in entries(store, volume_id):
        facts.holders |= {entry.placement.owner, *entry.placement.copies, entry.placement.joining} - {""}
        facts.last = entry
    return facts


@dataclass(frozen=True, slots=True)
class Growth:
    """The changed record, and what goes into the map with it."""

    record: VolumeRecord
    compares: Sequence[Compare]
    puts: Sequence[Put]


def grown(
    record: VolumeRecord, size_bytes: int, last: MapEntry, candidates: Sequence[Candidate], generation: int
) -> Growth:
    """The volume with `size_bytes`, its new blocks at `candidates` (one at least). Conflict.

    generation: the store's revision of now. `last`, the last range, is extended if the next blocks go to its owner; in
    any case to the end of its region, as a region has one owner.
    """
    old_end, end = record.size_bytes // record.block_size, size_bytes // record.block_size
    region = record.region_bytes // record.block_size
    start = min(end, -(-old_end // region) * region)
    owner = last.placement.owner
    others = {*last.placement.copies, *filter(None, (last.placement.joining,))}
    names = {candidate.name for candidate in candidates}
    if owner == LOST:
        raise Conflict(f"the last blocks of the volume {record.name!r} are lost, so that it cannot grow")
    if start > old_end and not {owner, *others} <= names:
        away = ", ".join(sorted({owner, *others} - names))
        raise Conflict(f"the volume {record.name!r} ends at member {away}, which must take part; it is not running")
    extended_to = start
    puts = []
    holders: set[str] = set()
    if start < end:
        if (end - start) * record.block_size < SPREAD_BYTES_MIN and owner in names:
            candidates = [one for one in candidates if one.name == owner]
        for share in spread(f"{record.id}/{start}", start, end, record.block_size, record.region_bytes, candidates):
            holders.add(share.owner)
            if share.start == extended_to and share.owner == owner and not others:
                extended_to = share.end
            else:
                placement = PlacementRecord(end_lba=share.end, owner=share.owner, generation=generation)
                puts.append(Put(map_key(record.id, share.start), encode(placement)))
    if extended_to > old_end:
        holders |= {owner, *others}
        placement = msgspec.structs.replace(last.placement, end_lba=extended_to)
        puts.insert(0, Put(map_key(record.id, last.start), encode(placement)))
    changed: VolumeRecord = msgspec.structs.replace(
        record,
        size_bytes=size_bytes,
        growing_from_bytes=record.size_bytes,
        unconfirmed=tuple(sorted(holders)),
        failure="",
    )
    return Growth(changed, [Compare(map_key(record.id, last.start), last.revision)], puts)


def shrunk(record: VolumeRecord, size_bytes: int, holders: set[str]) -> VolumeRecord:
    """The volume cut to `size_bytes`; `holders` have something of it, and destroy what lies beyond."""
    changed: VolumeRecord = msgspec.structs.replace(
        record,
        size_bytes=size_bytes,
        shrinking=True,
        growing_from_bytes=0,
        unconfirmed=tuple(sorted(holders)),
        failure="",
    )
    return changed


async def trim(store: Store, record: VolumeRecord) -> None:
    """Make the map of a volume that shrinks end where the volume does, from the end on, some ranges at a time.

    Harmless once more, and beside another that does the same. Nobody adds ranges meanwhile: a migration compares the
    volume's key, and the volume does not grow. StoreError.
    """
    end_lba = record.size_bytes // record.block_size
    for _ in range(TRIM_TRIES):
        beyond = [entry async for entry in entries(store, record.id) if entry.placement.end_lba > end_lba]
        if await _cut_off(store, record.id, beyond, end_lba):
            return
    raise Conflict(f"the map of the volume {record.name!r} changes all the time; it will be cut later")


async def _cut_off(store: Store, volume_id: str, beyond: list[MapEntry], end_lba: int) -> bool:
    """False: somebody else changed one of them."""
    while beyond:
        some = beyond[-KEYS_AT_ONCE:]
        del beyond[-KEYS_AT_ONCE:]
        operations: list[Put | Delete] = []
        for entry in some:
            key = map_key(volume_id, entry.start)
            if entry.start >= end_lba:
                operations.append(Delete(key))
            else:
                operations.append(Put(key, encode(msgspec.structs.replace(entry.placement, end_lba=end_lba))))
        compares = [Compare(map_key(volume_id, entry.start), entry.revision) for entry in some]
        if not (await store.transact(compares, operations)).succeeded:
            return False
    return True

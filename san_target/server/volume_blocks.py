"""What this member's pool holds of a volume, brought to what the volume's record asks of it.

Blocks are made only by a member that the record names (`unconfirmed`) and only where the record says that they are new:
all of a volume being created, the end of one that grows. Wherever else the map gives blocks to this member, the pool
must hold them already, or they are lost.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from san_target.group.volumes import CREATING
from san_target.metadata.schema import VolumeRecord
from san_target.storage.records import HeldRange, cut, joined

if TYPE_CHECKING:
    from san_target.storage.pool import Pool, PoolVolume
    from san_target.volume.partition_map import MapSnapshot

INCOMPLETE: Final = "the pool does not hold all of its blocks; restore the pool or the store from a backup"


class NotServable(Exception):
    """Why a volume cannot be served here, for the operator."""


async def bring(pool: "Pool", record: VolumeRecord, whole_map: "MapSnapshot", member_name: str) -> "PoolVolume | None":
    """Make the pool hold what it should; None if that is nothing. Once more, it changes nothing.

    whole_map: with the ranges that a growth adds. Before a shrink the caller ends all requests to the cut blocks.
    PoolError, NotServable: it cannot be; then nothing has been changed.
    """
    blocks, new_from = record.size_bytes // record.block_size, first_new_block(record, member_name)
    found = pool.find_volume(record.id)
    if found is not None and found.record.block_size != record.block_size:
        raise NotServable(
            f"the pool has it with blocks of {found.record.block_size} bytes, the store with {record.block_size}; "
            "restore one of them from a backup"
        )
    needed = owned(whole_map, member_name, 0, new_from)
    if found is None and needed:
        found = pool.open_volume(record.id)  # which says what is wrong
    if found is not None and not covers(found.held, needed):
        raise NotServable(INCOMPLETE)
    made = owned(whole_map, member_name, new_from, blocks)
    if found is None:
        return await pool.create_volume(record.id, record.size_bytes, record.block_size, made) if made else None
    held = joined((*cut(found.held, new_from), *made))
    if (found.record.size_bytes, found.held) != (record.size_bytes, held):
        return await pool.resize_volume(record.id, record.size_bytes, held)
    return found


def first_new_block(record: VolumeRecord, member_name: str) -> int:
    """From where on this member may make blocks; the number of blocks where it may make none."""
    blocks = record.size_bytes // record.block_size
    if member_name not in record.unconfirmed:
        return blocks
    if record.state == CREATING:
        return 0
    return record.growing_from_bytes // record.block_size if record.growing_from_bytes else blocks


def owned(map_now: "MapSnapshot", member_name: str, low: int, high: int) -> tuple[HeldRange, ...]:
    """What the map gives to this member of the blocks [low, high), as the pool records it."""
    ranges = []
    for start, end, placement in map_now.ranges(low) if low < min(high, map_now.blocks) else ():
        if start >= high:
            break
        if member_name == placement.owner or member_name in placement.copies:
            ranges.append(HeldRange(max(start, low), min(end, high), placement.generation))
    return joined(ranges)


def covers(held: Sequence[HeldRange], needed: Sequence[HeldRange]) -> bool:
    """Does the pool know of every block of `needed`, under whatever generation and in whatever state?"""
    position = 0
    for piece in needed:
        lba = piece.start_lba
        while lba < piece.end_lba:
            while position < len(held) and held[position].end_lba <= lba:
                position += 1
            if position == len(held) or held[position].start_lba > lba:
                return False
            lba = held[position].end_lba
    return True

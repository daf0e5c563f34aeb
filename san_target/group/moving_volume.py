"""A volume as migrations see it at its source, and what they leave behind there."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

from san_target.metadata.schema import VolumeRecord
from san_target.storage.records import HELD, HeldRange
from san_target.volume.held import overlapping, without
from san_target.volume.origin import CHECK, Overtaken
from san_target.volume.partition_map import Placement

if TYPE_CHECKING:
    from san_target.volume.partition_map import MapSnapshot
    from san_target.volume.volume import Volume

HeldChange = Callable[[tuple[HeldRange, ...]], Sequence[HeldRange]]


class MovingVolume(Protocol):
    """A volume that is open at the source. `change_held` is durable when it returns, and one at a time."""

    @property
    def record(self) -> VolumeRecord: ...

    @property
    def volume(self) -> "Volume | None": ...

    @property
    def held(self) -> tuple[HeldRange, ...]: ...

    @property
    def map_now(self) -> "MapSnapshot": ...

    async def change_held(self, change: HeldChange) -> None:
        """PoolError."""
        ...

    def place(self, start: int, end: int, placement: Placement, revision: int) -> None: ...


async def clear_moved(moving: MovingVolume, member_name: str) -> None:
    """Clear away blocks that the map gives to others by now, and forget them. VolumeError, PoolError.

    Under their lock, and only what is still recorded as then: so this never reaches blocks that have come back. Nor a
    piece whose commit is in doubt at its source: it is cleared away when it was handed over.
    """
    volume = moving.volume
    for piece in gone(moving, member_name) if volume is not None else ():

        def check(piece: HeldRange = piece) -> None:
            if piece not in gone(moving, member_name, piece.start_lba, piece.end_lba):
                raise Overtaken("the blocks are another's no more, or still in doubt")

        if volume is None:
            return
        token = CHECK.set(check)
        try:
            await volume.local.clear(piece.start_lba, piece.end_lba - piece.start_lba)
        finally:
            CHECK.reset(token)
        change = partial(without, start=piece.start_lba, end=piece.end_lba, generation=piece.generation)
        await moving.change_held(change)


def gone(moving: MovingVolume, member_name: str, low: int = 0, high: int | None = None) -> list[HeldRange]:
    """What is held here of [low, high), complete, though the map gives it to others by a later decision."""
    snapshot = moving.map_now
    mirror = None if moving.volume is None else moving.volume.mirror
    high = snapshot.blocks if high is None else min(high, snapshot.blocks)
    found = []
    for known in overlapping(moving.held, low, high):
        for start, end, placement in snapshot.ranges(known.start_lba):
            if start >= known.end_lba:
                break
            is_others = bool(placement.owner) and member_name not in placement.holders
            if known.state == HELD and is_others and placement.generation > known.generation:
                low_lba, high_lba = max(start, known.start_lba), min(end, known.end_lba)
                if mirror is not None and mirror.start < high_lba and low_lba < mirror.end:
                    continue
                found.append(HeldRange(low_lba, high_lba, known.generation))
    return found

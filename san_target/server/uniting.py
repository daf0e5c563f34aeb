"""Blocks of several owners that a command has to change as a whole are brought to one of them first.

A map changes owners at multiples of the volume's region only, so such a command reaches over one such place, and moving
one region is enough. It is an ordinary migration; the next command there finds it done.
"""

from typing import TYPE_CHECKING, NamedTuple

import structlog

from san_target.group.errors import AdministrationError, Conflict
from san_target.group.migration import FINISHED
from san_target.group.migration_requests import MigrationRequests
from san_target.group.volume_size import shown_blocks
from san_target.metadata.store import StoreError
from san_target.volume.device import Unavailable
from san_target.volume.partition_map import LOST, PartitionMapError

if TYPE_CHECKING:
    from san_target.metadata.schema import VolumeRecord
    from san_target.server.member import Member
    from san_target.volume.partition_map import MapSnapshot

log = structlog.get_logger()


class Way(NamedTuple):
    """Blocks [start, end) to that member."""

    destination: str
    start: int
    end: int


def ways(snapshot: "MapSnapshot", lba: int, blocks: int, region_blocks: int) -> list[Way]:
    """The migrations of which each gives [lba, lba + blocks) one owner: the rest to the first one, or the first part to
    the last one. [] if there is one owner already, or nobody has some of it any more. Pure."""
    parts = snapshot.segments(lba, blocks)
    owners = [part.owner for part in parts]
    if LOST in owners or len(set(owners)) < 2:
        return []
    first, last = parts[0], parts[-1]
    low, high = lba // region_blocks * region_blocks, -(-(lba + blocks) // region_blocks) * region_blocks
    after_first = next(part.lba for part in parts if part.owner != first.owner)
    before_last = next(part.lba + part.blocks for part in reversed(parts) if part.owner != last.owner)
    return [
        Way(first.owner, after_first, min(high, snapshot.blocks)),
        Way(last.owner, low, before_last),
    ]


class Uniting:
    """What this member asks for, for its initiators."""

    def __init__(self, member: "Member") -> None:
        self._member = member
        self._asking: set[str] = set()

    async def unite(self, volume_id: str, lba: int, blocks: int) -> None:
        """Ask for one owner of these blocks; harmless if that is under way. Returns before it is done. Unavailable."""
        if volume_id in self._asking:
            return
        self._asking.add(volume_id)
        try:
            await self._ask(volume_id, lba, blocks)
        except (AdministrationError, StoreError, PartitionMapError) as error:
            raise Unavailable(f"blocks {lba}+{blocks} cannot be brought to one member: {error}") from error
        finally:
            self._asking.discard(volume_id)

    async def _ask(self, volume_id: str, lba: int, blocks: int) -> None:
        member = self._member
        record, stored_map = member.exports.record(volume_id), member.exports.stored_map(volume_id)
        if record is None or stored_map is None:
            raise Conflict("the volume is not ready")
        snapshot = stored_map.snapshot(shown_blocks(record))
        refused: Conflict | None = None
        for way in ways(snapshot, lba, blocks, record.region_bytes // record.block_size):
            if self._is_moving(record, way):
                return
            try:
                await self._start(record, snapshot, way)
            except Conflict as error:
                refused = refused or error  # the destination is being drained, say
            else:
                return
        if refused is not None:
            raise refused

    def _is_moving(self, record: "VolumeRecord", way: Way) -> bool:
        return any(
            each.volume_id == record.id
            and each.state not in FINISHED
            and each.start_lba < way.end
            and way.start < each.end_lba
            for each, _generation in self._member.life.migrations.known.values()
        )

    async def _start(self, record: "VolumeRecord", snapshot: "MapSnapshot", way: Way) -> None:
        member, environment = self._member, self._member.environment
        requests = MigrationRequests(member.store, environment.new_id, environment.wall_clock_s)
        await requests.start(record, snapshot, member.members.view, way.destination, (way.start, way.end))
        log.info(
            "blocks that are written as a whole are brought to one member",
            volume=record.name,
            member=way.destination,
            blocks=f"{way.start}-{way.end}",
        )

"""Migrations as the administration sees them."""

from typing import TYPE_CHECKING

from msgspec import UNSET

from san_target.admin import service as values
from san_target.group.errors import Conflict
from san_target.group.migration import PIECE_BYTES, RUNNING
from san_target.group.migration_requests import MigrationRequests
from san_target.group.volume_size import shown_blocks
from san_target.server.local_sessions import utc
from san_target.volume.partition_map import PartitionMapError

if TYPE_CHECKING:
    from san_target.metadata.schema import MigrationRecord
    from san_target.server.member import Member


class ShownMigrations:
    """Refusals are `group.errors`; StoreError if the store fails."""

    def __init__(self, member: "Member") -> None:
        self._member = member

    @property
    def _requests(self) -> MigrationRequests:
        member = self._member
        return MigrationRequests(member.store, member.environment.new_id, member.environment.wall_clock_s)

    async def all(self) -> tuple[values.Migration, ...]:
        return tuple(shown(record) for record in await self._requests.all())

    async def one(self, migration_id: str) -> values.Migration:
        return shown(await self._requests.one(migration_id))

    async def start(self, request: values.MigrationRequest) -> tuple[values.Migration, ...]:
        member = self._member
        record = await member.volumes.named(request.volume)
        stored_map = member.exports.stored_map(record.id)
        if stored_map is None:
            raise Conflict(f"the volume {record.name!r} is not ready; see `volume show`")
        blocks = shown_blocks(record)
        try:
            snapshot = stored_map.snapshot(blocks)
        except PartitionMapError as error:
            raise Conflict(str(error)) from None
        start = 0 if request.start_lba is UNSET else request.start_lba
        end = blocks if request.end_lba is UNSET else request.end_lba
        made = await self._requests.start(
            record, snapshot, member.members.view, request.to, (start, end), request.limit_bytes_per_second
        )
        return tuple(shown(each) for each in made)

    async def pause(self, migration_id: str) -> values.Migration:
        return shown(await self._requests.pause(migration_id))

    async def resume(self, migration_id: str) -> values.Migration:
        return shown(await self._requests.resume(migration_id))

    async def cancel(self, migration_id: str) -> values.Migration:
        return shown(await self._requests.cancel(migration_id))


def shown(record: "MigrationRecord") -> values.Migration:
    speed = record.speed_bytes_per_second if record.state == RUNNING else 0.0
    left_bytes = max(0, record.pieces_total - record.pieces_done) * PIECE_BYTES
    return values.Migration(
        id=record.id,
        volume=record.volume,
        range=values.BlockRange(start_lba=record.start_lba, end_lba=record.end_lba),
        source=record.source,
        destination=record.destination,
        state=record.state,
        wanted=record.wanted,
        reason=record.reason,
        pieces_done=record.pieces_done,
        pieces_total=record.pieces_total,
        restarts=record.restarts,
        mirrored_writes=record.mirrored_writes,
        bytes_copied=record.bytes_copied,
        limit_bytes_per_second=record.limit_bytes_per_second,
        bytes_per_second=speed,
        eta_s=left_bytes / speed if speed else None,
        created=utc(record.created_s),
        finished=utc(record.finished_s) if record.finished_s else "",
    )

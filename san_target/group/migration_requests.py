"""What operators ask of migrations, at any member: the store is changed, the source does the rest."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from san_target.group.errors import Conflict, Invalid, NotFound
from san_target.group.members import MemberView
from san_target.group.migration import CANCEL, CANCELLED, FINISHED, PAUSE, PAUSED, RUN, owned
from san_target.group.volumes import READY
from san_target.metadata.schema import MigrationRecord, VolumeRecord, decode, encode, migration_key, volume_key
from san_target.metadata.store import Compare, Delete, Put, Store
from san_target.volume.partition_map import LOST

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from san_target.volume.partition_map import MapSnapshot

PREFIX: Final = migration_key("")
TRIES: Final = 16
FINISHED_KEPT: Final = 64
"""So many migrations that are over are still shown."""
ID_DIGITS: Final = 12


class MigrationRequests:
    """new_id: 32 hex digits that nobody else has; wall_clock_s: seconds since 1970."""

    def __init__(self, store: Store, new_id: Callable[[], str], wall_clock_s: Callable[[], float]) -> None:
        self._store = store
        self._new_id = new_id
        self._wall_clock_s = wall_clock_s

    async def all(self) -> list[MigrationRecord]:
        """The oldest first. StoreError."""
        found = [decode(MigrationRecord, item.value, item.key) for item in (await self._store.range(PREFIX)).items]
        return sorted(found, key=lambda record: (record.created_s, record.id))

    async def one(self, migration_id: str) -> MigrationRecord:
        return (await self._find(migration_id))[0]

    async def _find(self, migration_id: str) -> tuple[MigrationRecord, int]:
        key = migration_key(migration_id)
        item = await self._store.get(key) if migration_id else None
        if item is None:
            raise NotFound(f"there is no migration {migration_id!r}; `migrate list` shows all")
        return decode(MigrationRecord, item.value, key), item.mod_revision

    # Start ------------------------------------------------------------------------------------------------------------

    async def start(
        self,
        volume: VolumeRecord,
        snapshot: "MapSnapshot",
        members: "Mapping[str, MemberView]",
        destination: str,
        wanted_range: tuple[int, int] | None = None,
        limit_bytes_per_second: int = 0,
        only_source: str = "",
    ) -> list[MigrationRecord]:
        """One migration for each member that owns some of the range; [] if only_source is given and owns nothing.

        NotFound, Invalid, Conflict, StoreError.
        """
        self._check_destination(members, destination)
        start, end = wanted_range or (0, snapshot.blocks)
        _check_range(volume, snapshot.blocks, start, end)
        sources = [only_source] if only_source else sorted(_owners(snapshot, start, end) - {destination, LOST})
        sources = [name for name in sources if next(owned(snapshot, name, start, end), None) is not None]
        if not sources:
            if only_source:
                return []
            raise Conflict(f"member {destination!r} owns all of that already")
        for record in await self.all():
            is_same = record.volume_id == volume.id and record.start_lba < end and start < record.end_lba
            if is_same and record.state not in FINISHED and record.source in sources:
                raise Conflict(
                    f"migration {record.id} moves some of that already (to member {record.destination!r}); "
                    "cancel it first, or wait for it"
                )
        made = [
            MigrationRecord(
                id=self._new_id()[:ID_DIGITS],
                volume_id=volume.id,
                volume=volume.name,
                start_lba=start,
                end_lba=end,
                source=source,
                destination=destination,
                limit_bytes_per_second=limit_bytes_per_second,
                created_s=self._wall_clock_s(),
            )
            for source in sources
        ]
        # One after another: the revision that creates a migration names what it moves.
        for record in made:
            await self._create(volume, record)
        await self.forget_old()
        return made

    async def _create(self, volume: VolumeRecord, record: MigrationRecord) -> None:
        item = await self._store.get(volume_key(volume.id))
        if item is None or decode(VolumeRecord, item.value, item.key).state != READY:
            raise Conflict(f"the volume {volume.name!r} is not ready; see `volume show`")
        key = migration_key(record.id)
        compares = [Compare(volume_key(volume.id), item.mod_revision), Compare(key, 0)]
        if not (await self._store.transact(compares, [Put(key, encode(record))])).succeeded:
            raise Conflict(f"the volume {volume.name!r} was changed at the same time; try again")

    def _check_destination(self, members: "Mapping[str, MemberView]", name: str) -> None:
        member = members.get(name)
        if member is None or member.state == "removed":
            raise NotFound(f"there is no member {name!r}; `member list` shows all")
        if not member.alive:
            raise Conflict(f"member {name!r} is not running; start it, or choose another")
        if member.state not in ("active", "starting"):
            raise Conflict(f"member {name!r} is {member.state}; activate it, or choose another")
        if not member.peer:
            raise Conflict(f"member {name!r} has no peer port; start it with --peer")

    # Later ------------------------------------------------------------------------------------------------------------

    async def pause(self, migration_id: str) -> MigrationRecord:
        return await self._wish(migration_id, PAUSE)

    async def resume(self, migration_id: str) -> MigrationRecord:
        return await self._wish(migration_id, RUN)

    async def cancel(self, migration_id: str) -> MigrationRecord:
        """What was moved stays where it is."""
        return await self._wish(migration_id, CANCEL)

    async def abandon(self, migration_id: str, reason: str) -> None:
        """Its source is not in the group any more, so nobody will end it."""
        record, revision = await self._find(migration_id)
        if record.state not in FINISHED:
            changed = msgspec.structs.replace(
                record, wanted=CANCEL, state=CANCELLED, reason=reason, finished_s=self._wall_clock_s()
            )
            await self._store.transact(
                [Compare(migration_key(migration_id), revision)], [Put(migration_key(migration_id), encode(changed))]
            )

    async def _wish(self, migration_id: str, wanted: str) -> MigrationRecord:
        for _ in range(TRIES):
            record, revision = await self._find(migration_id)
            if record.state in FINISHED:
                raise Conflict(f"migration {migration_id} is {record.state} already")
            if record.wanted == CANCEL and wanted != CANCEL:
                raise Conflict(f"migration {migration_id} is being cancelled")
            changed: MigrationRecord = msgspec.structs.replace(record, wanted=wanted)
            if record.state == PAUSED and wanted == CANCEL:  # nobody works on it
                changed = msgspec.structs.replace(changed, state=CANCELLED, finished_s=self._wall_clock_s())
            if changed == record:
                return record
            key = migration_key(migration_id)
            if (await self._store.transact([Compare(key, revision)], [Put(key, encode(changed))])).succeeded:
                return changed
        raise Conflict(f"migration {migration_id} changes all the time; try again")

    async def forget_old(self) -> None:
        """Those that ended long ago."""
        over = [record for record in await self.all() if record.state in FINISHED]
        over.sort(key=lambda record: record.finished_s)
        deletes = [Delete(migration_key(record.id)) for record in over[:-FINISHED_KEPT]]
        if deletes:
            await self._store.transact([], deletes[:100])


def _owners(snapshot: "MapSnapshot", start: int, end: int) -> set[str]:
    owners = set()
    for found in snapshot.ranges(start):
        if found.start >= end:
            break
        owners.add(found.placement.owner)
    return owners


def _check_range(volume: VolumeRecord, blocks: int, start: int, end: int) -> None:
    region = volume.region_bytes // volume.block_size
    if not 0 <= start < end <= blocks:
        raise Invalid(f"{start}:{end} is no range of the volume {volume.name!r}, which has {blocks} blocks")
    if start % region or (end % region and end != blocks):
        raise Invalid(f"a range begins and ends at multiples of {region} blocks, or at the end of the volume")


def unfinished(records: "Sequence[MigrationRecord]") -> list[MigrationRecord]:
    return [record for record in records if record.state not in FINISHED]

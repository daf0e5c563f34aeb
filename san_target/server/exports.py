"""All volumes of this member, kept as the store says: what the follower of the store tells is carried out here.

Each volume is brought to its latest record and map by its own task, one at a time, so that a volume that waits (for a
disk, for sessions to end) holds up no other. What is known is a state, not a list of steps: a task that was interrupted
anywhere does the rest the next time.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog

from san_target.group.errors import AdministrationError
from san_target.group.follower import StoreFollower
from san_target.group.map_records import entry_of, start_lba
from san_target.group.volumes import DELETING, Volumes
from san_target.metadata.schema import GROUP_KEY, GroupRecord, PlacementRecord, VolumeRecord, decode, reservations_key
from san_target.metadata.store import Event, Item, StoreError
from san_target.server.export import Export, Surroundings
from san_target.server.sessions import add_counters
from san_target.session.session import Counters
from san_target.storage.records import PoolError
from san_target.volume.device import Unavailable, VolumeError
from san_target.volume.stored_map import StoredMap

if TYPE_CHECKING:
    from san_target.scsi.logical_unit import LogicalUnit
    from san_target.server.environment import Environment

log = structlog.get_logger()

KINDS: Final = ("group", "volumes", "maps")
VOLUMES: Final = "volumes"
MAPS: Final = "maps"
RESERVATIONS_PREFIX: Final = reservations_key("")
RETRY_S: Final = 1.0
RETRY_FAILED_S: Final = 30.0
OPENED_AT_ONCE: Final = 16


@dataclass(slots=True)
class _Known:
    """What the store says. A volume that is being deleted needs no map any more."""

    group: GroupRecord | None = None
    records: dict[str, VolumeRecord] = field(default_factory=dict)
    maps: dict[str, StoredMap] = field(default_factory=dict)

    def put(self, key: str, item: Item | None) -> str:
        """A key other than a map's; returns the volume concerned, or ""."""
        if key == GROUP_KEY and item is not None:
            self.group = decode(GroupRecord, item.value, key)
        kind, _, volume_id = key.partition("/")
        if kind != VOLUMES:
            return ""
        if item is None:
            self.records.pop(volume_id, None)
        else:
            record = self.records[volume_id] = decode(VolumeRecord, item.value, key)
            if record.state == DELETING:
                self.maps.pop(volume_id, None)
        return volume_id

    def is_deleting(self, volume_id: str) -> bool:
        record = self.records.get(volume_id)
        return record is not None and record.state == DELETING


class Exports:
    """A consumer of the follower. by_id: the volumes served, or shown as not ready. ended, ended_logins: counts of
    volumes that are gone."""

    def __init__(
        self,
        follower: StoreFollower,
        volumes: Volumes,
        group: GroupRecord,
        surroundings: Surroundings,
        environment: "Environment",
    ) -> None:
        self._follower = follower
        self._volumes = volumes
        self._around = surroundings
        self._environment = environment
        self._known = _Known(group)
        self._read = _Known(group)
        self._dirty: set[str] = set()
        self._working: set[str] = set()
        self._retrying: set[str] = set()
        self._progress = follower.progress
        self._gate = asyncio.Semaphore(OPENED_AT_ONCE)
        self.group = group
        self.by_id: dict[str, Export] = {}
        self.ended = Counters()
        self.ended_logins = 0
        follower.add(KINDS, self)
        follower.before = self._note

    @property
    def store_problem(self) -> str:
        """Why the store cannot be followed now, or ""."""
        return self._follower.problem

    def records(self) -> list[VolumeRecord]:
        """Of all volumes, by name, as the store said last; those being deleted too."""
        return sorted(self._known.records.values(), key=lambda record: record.name)

    def record(self, volume_id: str) -> VolumeRecord | None:
        return self._known.records.get(volume_id)

    def stored_map(self, volume_id: str) -> StoredMap | None:
        return self._known.maps.get(volume_id)

    # Following the store ----------------------------------------------------------------------------------------------

    async def _note(self, revision: int, events: Sequence[Event]) -> None:
        """The pool remembers, before anything is done, that the store has come this far.

        With reservations too: an older store would let in whom they keep out.
        """
        if any(event.key.startswith(("volumes/", "maps/", RESERVATIONS_PREFIX)) for event in events):
            try:
                await self._around.pool.note_revision(revision)
            except PoolError as error:
                log.error("the pool cannot be written", reason=str(error))

    def begin(self) -> None:
        self._read = _Known()

    def read(self, items: Sequence[Item]) -> None:
        concerned: dict[str, StoredMap] = {}
        for item in items:
            kind, _, rest = item.key.partition("/")
            if kind != MAPS:
                self._read.put(item.key, item)
                continue
            volume_id = rest.partition("/")[0]  # maps are read before records, by the order of keys
            entry = entry_of(item)
            stored_map = concerned[volume_id] = self._read.maps.setdefault(volume_id, StoredMap())
            stored_map.append(entry.start, entry.placement, entry.revision)
        for stored_map in concerned.values():
            stored_map.completed()

    def complete(self, revision: int) -> None:
        before, self._known, self._read = self._known, self._read, _Known()
        self.group = self._known.group or self.group
        here = self._around.pool.list_volumes()
        self._kick({*before.records, *before.maps, *self._known.records, *self._known.maps, *here})

    def take(self, revision: int, events: Sequence[Event]) -> None:
        dirty: set[str] = set()
        maps: dict[str, dict[int, PlacementRecord | None]] = {}
        for event in events:
            kind, _, rest = event.key.partition("/")
            if kind == MAPS:
                placement = None if event.item is None else decode(PlacementRecord, event.item.value, event.key)
                maps.setdefault(rest.partition("/")[0], {})[start_lba(event.key)] = placement
            else:
                dirty.add(self._known.put(event.key, event.item))
        for volume_id, changes in maps.items():
            if not self._known.is_deleting(volume_id):
                stored_map = self._known.maps.setdefault(volume_id, StoredMap())
                stored_map.apply(changes, revision)
                if not len(stored_map):
                    del self._known.maps[volume_id]
        self.group = self._known.group or self.group
        self._kick((dirty | maps.keys()) - {""})

    async def opened(self) -> None:
        """Return when every volume is served or known not to be, also those that only waited for this member."""
        me = self._around.member_name
        await self._progress.until(
            lambda: (
                not self._dirty
                and not self._working
                and not any(one.unconfirmed == (me,) and not one.failure for one in self._known.records.values())
            )
        )

    async def settled(self, volume_id: str, revision: int) -> None:
        """Return when the volume is as the store says at `revision` (or cannot be: see its export)."""
        await self._progress.until(lambda: self._is_settled(volume_id, revision))

    async def carried_out(self, volume_id: str, revision: int) -> VolumeRecord | None:
        """Return when every member has carried out what the store asks at `revision`, or one of them cannot.

        None: there is no such volume any more.
        """

        def is_over() -> bool:
            record = self._known.records.get(volume_id)
            is_done = record is None or not record.unconfirmed or bool(record.failure)
            return is_done and self._is_settled(volume_id, revision)

        await self._progress.until(is_over)
        return self._known.records.get(volume_id)

    async def gone(self, volume_id: str) -> None:
        """Return when nothing is left of a volume being deleted."""
        await self._progress.until(lambda: volume_id not in self._known.records)

    def has_failed(self, volume_id: str) -> bool:
        """Something of it could not be done here, and is tried again later."""
        return volume_id in self._retrying

    def _is_settled(self, volume_id: str, revision: int) -> bool:
        busy = volume_id in self._dirty or volume_id in self._working
        return self._follower.revision >= revision and not busy

    # One task for each volume -----------------------------------------------------------------------------------------

    def _kick(self, volume_ids: Iterable[str]) -> None:
        for volume_id in sorted(volume_ids):
            self._dirty.add(volume_id)
            if volume_id not in self._working:
                self._working.add(volume_id)
                self._around.background.spawn(self._work(volume_id))

    async def _work(self, volume_id: str) -> None:
        try:
            while volume_id in self._dirty:
                self._dirty.discard(volume_id)
                try:
                    await self._bring(volume_id)
                except (StoreError, AdministrationError, Unavailable) as error:
                    # Nothing is lost: the state in the store says what is left to do.
                    log.warning("volume waits for the store", volume_id=volume_id, reason=str(error))
                    await self._environment.sleep(RETRY_S)
                    self._dirty.add(volume_id)
                except PoolError as error:
                    reason = str(error)
                    log.error("the data of a deleted volume cannot be removed yet", volume_id=volume_id, reason=reason)
                    self._retry_later(volume_id)
        finally:
            self._working.discard(volume_id)
            self._progress.tell()

    async def _bring(self, volume_id: str) -> None:
        """Make this volume what the store says of it now."""
        record = self._known.records.get(volume_id)
        if record is None:
            # Its record is gone without a tombstone, so its data stays.
            await self._drop(volume_id, "the volume is gone")
            await self._remove_empty(volume_id)
        elif record.state == DELETING:
            await self._delete(volume_id)
        else:
            stored_map = self._known.maps.get(volume_id) or StoredMap()
            export = self.by_id.get(volume_id)
            if export is None:
                export = self.by_id[volume_id] = Export(self._around, record, stored_map)
            if export.is_served:
                await export.take(record, stored_map)
            else:
                async with self._gate:
                    await export.take(record, stored_map)
            await self._report(export, record)

    async def _report(self, export: Export, record: VolumeRecord) -> None:
        """Tell the group what became of what this member was asked for."""
        me = self._around.member_name
        if me not in record.unconfirmed:
            return
        if export.has_carried_out(record):
            await self._volumes.confirm(record, me)
        else:
            await self._volumes.fail(record, me, export.reason or export.failed_change)
            self._retry_later(record.id)

    async def _delete(self, volume_id: str) -> None:
        await self._drop(volume_id, "the volume is deleted")
        await self._around.pool.delete_volume(volume_id)
        if await self._volumes.forget(volume_id, self._around.member_name):
            log.info("volume is deleted", volume_id=volume_id)

    async def _remove_empty(self, volume_id: str) -> None:
        """A file of which nothing is held: all had moved away, and the volume was deleted without this member."""
        try:
            found = self._around.pool.find_volume(volume_id)
        except PoolError:
            return
        if found is not None and not found.held:
            await self._around.pool.delete_volume(volume_id)

    async def _drop(self, volume_id: str, reason: str) -> None:
        export = self.by_id.get(volume_id)
        if export is not None:
            await export.withdraw(reason)
            add_counters(self.ended, export.sessions.total())
            self.ended_logins += export.sessions.logins
            del self.by_id[volume_id]

    def _retry_later(self, volume_id: str) -> None:
        if volume_id not in self._retrying:
            self._retrying.add(volume_id)
            self._around.background.spawn(self._retry(volume_id))

    async def _retry(self, volume_id: str) -> None:
        await self._environment.sleep(RETRY_FAILED_S)
        self._retrying.discard(volume_id)
        self._kick([volume_id])

    def unit_of(self, designator: bytes) -> "LogicalUnit | None":
        """The served unit with this NAA designator."""
        for export in self.by_id.values():
            if export.is_served and export.target.ready and export.identity.naa == designator:
                return export.target.unit
        return None

    # The end ----------------------------------------------------------------------------------------------------------

    async def flush(self) -> list[str]:
        """Bring all volumes to stable storage; returns what went wrong, by volume."""
        problems = []
        for export in self.by_id.values():
            try:
                await export.flush()
            except VolumeError as error:
                problems.append(f"volume {export.record.name}: {error}")
        return problems

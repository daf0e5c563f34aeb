"""All volumes of this member, kept as the store says: read once, then followed by a watch over whole revisions.

Each volume is brought to its latest record and map by its own task, one at a time, so that a volume that waits (for a
disk, for sessions to end) holds up no other. What is read is a state, not a list of steps: a task that was interrupted
anywhere does the rest the next time.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import structlog

from san_target.group.errors import AdministrationError
from san_target.group.volumes import CREATING, DELETING, Volumes, start_lba
from san_target.metadata.schema import GROUP_KEY, GroupRecord, PlacementRecord, VolumeRecord, decode, reservations_key
from san_target.metadata.store import Event, Item, RevisionCompacted, Snapshot, Store, StoreError
from san_target.server.export import Export, Surroundings
from san_target.server.sessions import add_counters
from san_target.session.session import Counters
from san_target.storage.records import PoolError
from san_target.volume.device import Unavailable, VolumeError

if TYPE_CHECKING:
    from san_target.scsi.logical_unit import LogicalUnit
    from san_target.server.environment import Environment

log = structlog.get_logger()

RESERVATIONS_PREFIX = reservations_key("")
RETRY_S = 1.0
RETRY_DELETION_S = 30.0
OPENED_AT_ONCE = 16


class Exports:
    """by_id: the volumes served, or shown as not ready. ended, ended_logins: counts of volumes that are gone.

    store_problem: why the store cannot be followed now, or "".
    """

    def __init__(
        self, store: Store, volumes: Volumes, group: GroupRecord, surroundings: Surroundings, environment: "Environment"
    ) -> None:
        self._store = store
        self._volumes = volumes
        self._around = surroundings
        self._environment = environment
        self._records: dict[str, VolumeRecord] = {}
        self._maps: dict[str, dict[int, PlacementRecord]] = {}
        self._revision = 0
        self._dirty: set[str] = set()
        self._working: set[str] = set()
        self._progress = asyncio.Condition()
        self._gate = asyncio.Semaphore(OPENED_AT_ONCE)
        self.group = group
        self.by_id: dict[str, Export] = {}
        self.ended = Counters()
        self.ended_logins = 0
        self.store_problem = ""

    # Following the store ----------------------------------------------------------------------------------------------

    async def load(self, snapshot: Snapshot) -> None:
        """Take over the whole store as read by `range("")`; returns when every volume is served or known not to be."""
        self._replace(snapshot)
        await self._until(lambda: not self._dirty and not self._working)

    async def follow(self) -> None:
        """Carry out every later change, until the store is closed. Outages of the store are waited out."""
        while True:
            try:
                async for batch in self._store.watch("", self._revision + 1):
                    if batch.revision <= self._revision:
                        continue  # everything was read again meanwhile
                    dirty = self._take(batch.events)
                    # Reservations too: an older store would let in whom they keep out.
                    if dirty or any(event.key.startswith(RESERVATIONS_PREFIX) for event in batch.events):
                        await self._note(batch.revision)
                    self._revision = batch.revision
                    self._kick(dirty)
                    self.store_problem = ""
                    await self._tell()
                return
            except RevisionCompacted:
                log.info("the store's history was shortened meanwhile; reading everything again")
                await self.reload()
            except StoreError as error:
                if not self.store_problem:
                    log.error("the store cannot be followed", reason=str(error))
                self.store_problem = str(error)
                await self._environment.sleep(RETRY_S)

    async def reload(self) -> None:
        """Read everything again, and carry out what differs."""
        try:
            self._replace(await self._store.range(""))
        except StoreError as error:
            self.store_problem = str(error)
            await self._environment.sleep(RETRY_S)

    async def settled(self, volume_id: str, revision: int) -> None:
        """Return when the volume is as the store says at `revision` (or cannot be: see its export)."""
        await self._until(
            lambda: self._revision >= revision and volume_id not in self._dirty and volume_id not in self._working
        )

    def _replace(self, snapshot: Snapshot) -> None:
        known = set(self._records)
        self._records.clear()
        self._maps.clear()
        dirty = self._take(Event(item.key, item) for item in snapshot.items)
        self._revision = snapshot.revision
        self._kick(known | dirty)

    def _take(self, events: Iterable[Event]) -> set[str]:
        """Remember what changed; returns the volumes concerned."""
        dirty = set()
        for event in events:
            kind, _, rest = event.key.partition("/")
            volume_id = rest.partition("/")[0]
            if kind == "volumes":
                self._take_record(volume_id, event.key, event.item)
            elif kind == "maps":
                self._take_placement(volume_id, event.key, event.item)
            else:
                if event.key == GROUP_KEY and event.item is not None:
                    self.group = decode(GroupRecord, event.item.value, event.key)
                continue
            dirty.add(volume_id)
        return dirty

    def _take_record(self, volume_id: str, key: str, item: Item | None) -> None:
        if item is None:
            self._records.pop(volume_id, None)
        else:
            self._records[volume_id] = decode(VolumeRecord, item.value, key)

    def _take_placement(self, volume_id: str, key: str, item: Item | None) -> None:
        placements = self._maps.setdefault(volume_id, {})
        if item is None:
            placements.pop(start_lba(key), None)
        else:
            placements[start_lba(key)] = decode(PlacementRecord, item.value, key)
        if not placements:
            del self._maps[volume_id]

    async def _note(self, revision: int) -> None:
        """The pool remembers, before anything is done, that the store has come this far."""
        try:
            await self._around.pool.note_revision(revision)
        except PoolError as error:
            log.error("the pool cannot be written", reason=str(error))

    # One task for each volume -----------------------------------------------------------------------------------------

    def _kick(self, volume_ids: Iterable[str]) -> None:
        for volume_id in volume_ids:
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
                    self._around.background.spawn(self._retry(volume_id))
        finally:
            self._working.discard(volume_id)
            await self._tell()

    async def _bring(self, volume_id: str) -> None:
        """Make this volume what the store says of it now."""
        record = self._records.get(volume_id)
        placements = tuple(sorted(self._maps.get(volume_id, {}).items()))
        export = self.by_id.get(volume_id)
        if record is None:
            # Its record is gone without a tombstone, so its data stays.
            await self._drop(volume_id, "the volume is gone")
        elif record.state == DELETING:
            await self._delete(volume_id)
        elif export is None:
            export = self.by_id[volume_id] = Export(self._around, record, placements)
            await self._open(export)
            await self._note_shrink(export, record)
        else:
            await export.change(record, placements)
            if not export.is_served:
                await self._open(export)
            await self._note_shrink(export, record)

    async def _open(self, export: Export) -> None:
        async with self._gate:
            served = await export.open()
        if served and export.record.state == CREATING:
            await self._volumes.made(export.record.id)

    async def _note_shrink(self, export: Export, record: VolumeRecord) -> None:
        if record.shrinking and export.is_served and not export.failed_change:
            await self._volumes.shrunk(record.id, record.size_bytes)

    async def _delete(self, volume_id: str) -> None:
        await self._drop(volume_id, "the volume is deleted")
        await self._around.pool.delete_volume(volume_id)
        if await self._volumes.forget(volume_id, self._around.member_name):
            log.info("volume is deleted", volume_id=volume_id)

    async def _drop(self, volume_id: str, reason: str) -> None:
        export = self.by_id.get(volume_id)
        if export is not None:
            await export.withdraw(reason)
            add_counters(self.ended, export.sessions.total())
            self.ended_logins += export.sessions.logins
            del self.by_id[volume_id]

    async def _retry(self, volume_id: str) -> None:
        await self._environment.sleep(RETRY_DELETION_S)
        self._kick([volume_id])

    def unit_of(self, designator: bytes) -> "LogicalUnit | None":
        """The served unit with this NAA designator."""
        for export in self.by_id.values():
            if export.is_served and export.target.ready and export.identity.naa == designator:
                return export.target.unit
        return None

    # Waiting ----------------------------------------------------------------------------------------------------------

    async def _tell(self) -> None:
        async with self._progress:
            self._progress.notify_all()

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with self._progress:
            await self._progress.wait_for(condition)

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

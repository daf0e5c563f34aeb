"""One volume as this member serves it: from record and map to file, unit and target, and every later change of them.

A volume that cannot be served still has its target: logins are told to try again (status 0x0301, never a final one),
and `reason` says to the operator what is wrong. Nothing here touches another volume.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import structlog

from san_target.group.volume_size import shown_blocks, shown_bytes
from san_target.group.volumes import CREATING
from san_target.metadata.schema import ChapRecord, ReservationsRecord, VolumeRecord
from san_target.scsi import sense
from san_target.scsi.identity import Identity
from san_target.scsi.logical_unit import LogicalUnit
from san_target.server.absent import AbsentDevice
from san_target.server.fencing import abort_tasks, drain_tasks, end_sessions
from san_target.server.sessions import SessionTable
from san_target.server.volume_blocks import NotServable, bring
from san_target.session.target import Access, Credentials, Target
from san_target.storage.late_file import LateFile
from san_target.storage.records import HeldRange, PoolError, cut
from san_target.volume.device import Unavailable, VolumeError
from san_target.volume.forward import Forwarder
from san_target.volume.local import LocalBlocks
from san_target.volume.partition_map import MapSnapshot, PartitionMapError, Placement
from san_target.volume.volume import Volume

if TYPE_CHECKING:
    from san_target.scsi.services import Services
    from san_target.server.background import Background
    from san_target.server.directory import TargetDirectory
    from san_target.session.session import Session
    from san_target.storage.pool import Pool, PoolVolume
    from san_target.storage.threads import Threads
    from san_target.volume.stored_map import StoredMap

log = structlog.get_logger()

INQUIRY_DATA_CHANGED = sense.Condition(0x6, 0x3F, 0x03)  # SPC-4 table 56


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all volumes of a member share.

    services_for: by volume id. stored_state: of a unit, and its epoch; None: nothing was ever stored. power_lost:
    nobody served the group's volumes before this member. forwarder_for: by volume id and block size, the way to the
    blocks of other members. owned: what is open here, by the bytes of its id.
    """

    member_name: str
    portal_group_tag: int
    pool: "Pool"
    threads: "Threads"
    directory: "TargetDirectory"
    background: "Background"
    services_for: Callable[[str], "Services"]
    stored_state: Callable[[str], tuple[ReservationsRecord, int] | None]
    power_lost: Callable[[], bool]
    forwarder_for: Callable[[str, int], Forwarder | None]
    owned: "dict[bytes, Export]"


class Export:
    """A volume at this member. reason: "" while it is served, else why it is not; failed_change: the last change of its
    record that could not be carried out, and why.

    record, stored_map: what the store says; stored_map goes on with the store, `snapshot` is the map that is served by.
    """

    def __init__(self, surroundings: Surroundings, record: VolumeRecord, stored_map: "StoredMap") -> None:
        self._around = surroundings
        self.record = record
        self.stored_map = stored_map
        self.snapshot: MapSnapshot | None = None
        self.reason = "it is being opened"
        self.failed_change = ""
        self.sessions = SessionTable()
        self._volume: Volume | None = None
        self._held: PoolVolume | None = None  # None: nothing of it is in this pool
        self._file: LateFile | None = None  # in its place, then
        self._brought: tuple[object, ...] | None = None
        self._changing_pool = asyncio.Lock()
        unit = LogicalUnit(
            AbsentDevice(record.block_size, shown_blocks(record), self.reason),
            self.identity,
            services=surroundings.services_for(record.id),
        )
        self.target = Target(
            record.iqn,
            record.name,
            surroundings.portal_group_tag,
            unit,
            access_of(record),
            ready=False,
            sessions=self.sessions,
        )
        surroundings.directory.put(self.target, record.multipath)

    @property
    def identity(self) -> Identity:
        return Identity(self.record.id, self.record.iqn, self._around.portal_group_tag, self.record.name)

    @property
    def is_served(self) -> bool:
        return self._volume is not None

    @property
    def failed(self) -> bool:
        """The file was taken out of service after a failed flush."""
        return self._held is not None and self._held.file.failed

    @property
    def trouble(self) -> str:
        """What is wrong though it is served; "" = nothing.

        A change that failed, a file that others removed or cut, a disk that takes no writes, blocks that are lost.
        """
        refusal = self._volume.refusal if self._volume is not None else ""
        damage = "" if self._held is None or self._held.file.failed else self._held.file.damage()
        lost_bytes = self.snapshot.lost_blocks * self.record.block_size if self.snapshot is not None else 0
        return "; ".join(
            filter(
                None,
                (
                    self.failed_change,
                    damage,
                    f"writes are refused: {refusal}" if refusal else "",
                    f"{lost_bytes} bytes of it are lost with a member that was removed" if lost_bytes else "",
                ),
            )
        )

    @property
    def held(self) -> tuple[HeldRange, ...]:
        """What of it lies in this pool."""
        return () if self._held is None else self._held.held

    def allocated_bytes(self) -> int:
        """Pool space taken here."""
        return 0 if self._held is None or self._held.file.failed else self._held.file.allocated_bytes()

    # What it is to other members --------------------------------------------------------------------------------------

    @property
    def local(self) -> LocalBlocks:
        """See `volume.owner.OwnedVolume`."""
        if self._volume is None:
            raise AssertionError("a volume that is not open has no blocks")
        return self._volume.local

    @property
    def revision(self) -> int:
        return 0 if self._volume is None else self._volume.revision

    @property
    def epoch(self) -> int:
        return self.target.unit.shared.epoch

    # What the store says ----------------------------------------------------------------------------------------------

    async def take(self, record: VolumeRecord, stored_map: "StoredMap") -> None:
        """Take over what the store says of it now: open it if it is not open yet, and carry out what has changed.

        StoreError, Unavailable: not now, the store is away.
        """
        if self._volume is None:
            self.record, self.stored_map = record, stored_map
            self.target.access = access_of(record)
            self._around.directory.put(self.target, record.multipath)
            await self._try_open()
        else:
            await self._change(self._volume, record, stored_map)

    def has_carried_out(self, record: VolumeRecord) -> bool:
        """Does the pool hold what this record asks of it?"""
        return self._brought == self._asked(record)

    def _asked(self, record: VolumeRecord) -> tuple[object, ...]:
        """What a record asks of this pool."""
        is_asked = self._around.member_name in record.unconfirmed
        return record.state, record.size_bytes, record.growing_from_bytes, record.shrinking, is_asked

    async def _bring(self, record: VolumeRecord, stored_map: "StoredMap") -> None:
        """The pool, where it is not as asked for yet. Later changes of the map alone are the business of migrations."""
        if self.has_carried_out(record):
            return
        async with self._changing_pool:
            self._held = await bring(self._around.pool, record, stored_map.whole(), self._around.member_name)
            self._brought = self._asked(record)
            if self._held is not None and self._file is not None:
                self._file.file = self._held.file

    # Migrations -------------------------------------------------------------------------------------------------------

    @property
    def volume(self) -> Volume | None:
        """None while it is not open."""
        return self._volume

    @property
    def map_now(self) -> MapSnapshot:
        """What is served by; it may know of a migration of this member that the store has not told of yet."""
        if self._volume is None:
            raise AssertionError("a volume that is not open has no map")
        return self._volume.snapshot

    async def change_held(self, change: Callable[[tuple[HeldRange, ...]], Sequence[HeldRange]]) -> None:
        """What the pool records to hold of it, durably. PoolError."""
        record, pool = self.record, self._around.pool
        async with self._changing_pool:
            if self._held is None:
                self._held = await pool.create_volume(record.id, record.size_bytes, record.block_size, ())
                if self._file is not None:
                    self._file.file = self._held.file
            held = tuple(change(self._held.held))
            if held != self._held.held:
                self._held = await pool.update_held(record.id, held)
            if self._volume is not None:
                self._volume.update(self._volume.snapshot, self.held)

    def place(self, start: int, end: int, placement: Placement, revision: int) -> None:
        """A migration from or to this member was committed at this revision."""
        if self._volume is not None:
            self._volume.place(start, end, placement, self.held, revision)

    # Opening ----------------------------------------------------------------------------------------------------------

    async def _try_open(self) -> None:
        try:
            await self._open()
        except Unavailable:
            raise
        except (NotServable, PoolError, PartitionMapError, VolumeError, ValueError) as error:
            self.reason = str(error)
            log.error("volume is not served", volume=self.record.name, reason=self.reason)
            return
        if self._volume is not None:
            self.reason = ""
            self.target.ready = True
            size_bytes = shown_bytes(self.record)
            log.info("volume is served", volume=self.record.name, target=self.record.iqn, bytes=size_bytes)

    async def _open(self) -> None:
        record, stored_map = self.record, self.stored_map
        await self._bring(record, stored_map)
        if record.state == CREATING:
            others = ", ".join(sorted({*record.unconfirmed} - {self._around.member_name}))
            self.reason = f"it is being made at member {others}" if others else "it is being made"
            if record.failure:
                self.reason += f" ({record.failure})"
            return
        snapshot = stored_map.snapshot(shown_blocks(record))
        volume = Volume(
            record.id,
            record.block_size,
            snapshot.blocks,
            snapshot,
            self._around.member_name,
            self._held.file if self._held is not None else self._late_file(),
            self.held,
            self._around.threads,
            self._around.pool.journal,
            remote=self._around.forwarder_for(record.id, record.block_size),
            revision=stored_map.revision,
        )
        unit = await self._unit(volume)
        self.snapshot, self._volume, self.target.unit = snapshot, volume, unit
        self._around.owned[bytes.fromhex(record.id)] = self

    def _late_file(self) -> LateFile:
        self._file = LateFile(self.record.size_bytes)
        return self._file

    async def _unit(self, volume: Volume) -> LogicalUnit:
        record, target = self.record, self.target
        unit = LogicalUnit(
            volume,
            self.identity,
            services=self._around.services_for(record.id),
            read_only=record.read_only,
            removable=record.removable,
            write_through=record.write_through,
        )
        # Between the last look and the moment at which the unit is told of changes there is no waiting.
        while (stored := self._around.stored_state(record.id)) is not None and stored[1] != unit.shared.epoch:
            state, epoch = stored
            unit.shared.load(state, epoch, power_lost=self._around.power_lost())
            if unit.shared.record != state:
                # What a restart ended must not come back with a later look at the store.
                unit.shared.epoch = await unit.services.save_reservations(unit.shared.record, epoch)
                break
        unit.drop_sessions = self._drop_sessions
        unit.abort_tasks = lambda nexuses: abort_tasks(target, nexuses)
        unit.reservations.drain = lambda nexuses: drain_tasks(target, nexuses)
        return unit

    def _drop_sessions(self) -> None:
        self._around.background.spawn(end_sessions(self.target, "target cold reset"))

    # Changes ----------------------------------------------------------------------------------------------------------

    async def _change(self, volume: Volume, record: VolumeRecord, stored_map: "StoredMap") -> None:
        """What fails is told in `failed_change`; the rest goes on as before."""
        old, self.record, self.stored_map = self.record, record, stored_map
        self.target.access = access_of(record)
        self._around.directory.put(self.target, record.multipath)
        self._change_flags(old, record)
        try:
            if record.write_through and not old.write_through:
                # Hosts stop flushing once they hear of it, so what was acknowledged before must be durable too.
                await volume.flush(0, volume.blocks)
            await self._move_to(volume, record, stored_map)
            self.failed_change = ""
        except (NotServable, PoolError, PartitionMapError, VolumeError) as error:
            if self.failed_change != str(error):
                log.error("volume could not be changed", volume=record.name, reason=str(error))
            self.failed_change = str(error)

    def _change_flags(self, old: VolumeRecord, record: VolumeRecord) -> None:
        unit = self.target.unit
        if (record.read_only, record.write_through) != (old.read_only, old.write_through):
            unit.read_only, unit.write_through = record.read_only, record.write_through
            unit.change_parameters(replace(unit.parameters, write_cache_enabled=not record.write_through))
            unit.establish(sense.MODE_PARAMETERS_CHANGED)
        if record.removable != old.removable:
            unit.removable = record.removable
            unit.preventing.clear()
            unit.set_medium(unit.stopped, False)
            unit.establish(INQUIRY_DATA_CHANGED)

    async def _move_to(self, volume: Volume, record: VolumeRecord, stored_map: "StoredMap") -> None:
        """The blocks: size and map. They are there before they can be asked for, and nobody uses them any more before
        they go."""
        snapshot, revision = stored_map.snapshot(shown_blocks(record)), stored_map.revision
        old_blocks = volume.blocks
        if snapshot.blocks < old_blocks:
            await volume.resize(snapshot.blocks, snapshot, cut(self.held, snapshot.blocks), revision)
            self.target.unit.capacity_changed()
        await self._bring(record, stored_map)
        if snapshot.blocks > old_blocks:
            await volume.resize(snapshot.blocks, snapshot, self.held, revision)
            self.target.unit.capacity_changed()
        else:
            volume.update(snapshot, self.held, revision)
        self.snapshot = snapshot
        if snapshot.blocks != old_blocks:
            log.info("volume has a new size", volume=record.name, bytes=shown_bytes(record))

    # The end ----------------------------------------------------------------------------------------------------------

    async def withdraw(self, reason: str) -> None:
        """End all sessions, take no more, and return when nothing is under way on the blocks."""
        self.reason = reason
        self.target.ready = False
        self._around.directory.remove(self.target)

        def refuse(session: "Session") -> None:
            self._around.background.spawn(session.connection.terminate(reason))

        self.sessions.withdrawn = refuse
        await end_sessions(self.target, reason)
        self._around.owned.pop(bytes.fromhex(self.record.id), None)
        if self._volume is not None:
            # A SANITIZE outlives sessions, and must not reach a file (or what is opened next) that is being closed.
            self._volume.retire()
            await self._volume.drain()

    async def flush(self) -> None:
        """Everything acknowledged that is here is on stable storage. VolumeError."""
        if self._volume is not None:
            await self._volume.drain()
            await self._volume.local.flush(0, self._volume.blocks)


def access_of(record: VolumeRecord) -> Access:
    return Access(
        frozenset(record.allow),
        tuple(_credentials(user) for user in record.chap),
        None if record.mutual_chap is None else _credentials(record.mutual_chap),
    )


def _credentials(user: ChapRecord) -> Credentials:
    return Credentials(user.user, user.secret.encode())

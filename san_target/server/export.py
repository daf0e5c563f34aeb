"""One volume as this member serves it: from record and map to file, unit and target, and every later change of them.

A volume that cannot be served still has its target: logins are told to try again (status 0x0301, never a final one),
and `reason` says to the operator what is wrong. Nothing here touches another volume.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec
import structlog

from san_target.group.volumes import CREATING
from san_target.metadata.schema import ChapRecord, PlacementRecord, ReservationsRecord, VolumeRecord
from san_target.scsi import sense
from san_target.scsi.identity import Identity
from san_target.scsi.logical_unit import LogicalUnit
from san_target.server.absent import AbsentDevice
from san_target.server.fencing import abort_tasks, drain_tasks, end_sessions
from san_target.server.sessions import SessionTable
from san_target.session.target import Access, Credentials, Target
from san_target.storage.records import HELD, HeldRange, HeldRecord, PoolError
from san_target.volume.device import Unavailable, VolumeError
from san_target.volume.partition_map import MapSnapshot, PartitionMap, PartitionMapError
from san_target.volume.router import Served, served_ranges
from san_target.volume.volume import Volume

if TYPE_CHECKING:
    from san_target.scsi.services import Services
    from san_target.server.background import Background
    from san_target.server.directory import TargetDirectory
    from san_target.session.session import Session
    from san_target.storage.pool import Pool, PoolVolume
    from san_target.storage.threads import Threads

log = structlog.get_logger()

Placements = tuple[tuple[int, PlacementRecord], ...]
INCOMPLETE = "the pool does not hold all of its blocks; restore the pool or the store from a backup"
INQUIRY_DATA_CHANGED = sense.Condition(0x6, 0x3F, 0x03)  # SPC-4 table 56


class NotServable(Exception):
    """Why a volume cannot be served here, for the operator."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all volumes of a member share. services_for: by volume id; load_reservations: None = nothing stored."""

    member_name: str
    portal_group_tag: int
    pool: "Pool"
    threads: "Threads"
    directory: "TargetDirectory"
    background: "Background"
    services_for: Callable[[str], "Services"]
    load_reservations: Callable[[str], Awaitable[ReservationsRecord | None]]


class Export:
    """A volume at this member. reason: "" while it is served, else why it is not; failed_change: the last change of its
    record that could not be carried out, and why."""

    def __init__(self, surroundings: Surroundings, record: VolumeRecord, placements: Placements) -> None:
        self._around = surroundings
        self.record = record
        self.placements = placements
        self.reason = "it is being opened"
        self.failed_change = ""
        self.sessions = SessionTable()
        self._volume: Volume | None = None
        self._held: PoolVolume | None = None
        unit = LogicalUnit(
            AbsentDevice(record.block_size, record.size_bytes // record.block_size, self.reason),
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
        """What is wrong though it is served: a change that failed, a disk that takes no writes. "" = nothing."""
        refusal = self._volume.refusal if self._volume is not None else ""
        return self.failed_change or (f"writes are refused: {refusal}" if refusal else "")

    def allocated_bytes(self) -> int:
        """Pool space taken here."""
        return 0 if self._held is None or self._held.file.failed else self._held.file.allocated_bytes()

    # Opening ----------------------------------------------------------------------------------------------------------

    async def open(self) -> bool:
        """Begin to serve. False: it cannot be, see `reason`. StoreError, Unavailable: not now, the store is away."""
        try:
            await self._open()
        except Unavailable:
            raise
        except (NotServable, PoolError, PartitionMapError, VolumeError, ValueError) as error:
            self.reason = str(error)
            log.error("volume is not served", volume=self.record.name, reason=self.reason)
            return False
        self.reason = ""
        self.target.ready = True
        log.info("volume is served", volume=self.record.name, target=self.record.iqn, bytes=self.record.size_bytes)
        return True

    async def _open(self) -> None:
        record = self.record
        snapshot = self._snapshot()
        elsewhere = sorted({placement.owner for _, placement in self.placements} - {self._around.member_name})
        if elsewhere:
            raise NotServable(f"its blocks are at member {', '.join(elsewhere)}: log in there")
        held = await self._pool_volume()
        if served_ranges(snapshot, self._around.member_name, held.held) != (Served(0, snapshot.blocks),):
            raise NotServable(INCOMPLETE)
        volume = Volume(
            record.id,
            record.block_size,
            snapshot.blocks,
            snapshot,
            self._around.member_name,
            held.file,
            held.held,
            self._around.threads,
            self._around.pool.journal,
        )
        unit = await self._unit(volume)
        self._held, self._volume, self.target.unit = held, volume, unit

    async def _pool_volume(self) -> "PoolVolume":
        """The blocks in the pool: made if the volume is new, resized if a resize was interrupted."""
        record, pool = self.record, self._around.pool
        if record.state == CREATING:
            held = held_by(self._around.member_name, self.placements)
            return await pool.create_volume(record.id, record.size_bytes, record.block_size, held)
        found = pool.open_volume(record.id)
        if found.record.block_size != record.block_size:
            raise NotServable(
                f"the pool has it with blocks of {found.record.block_size} bytes, the store with {record.block_size}; "
                "restore one of them from a backup"
            )
        if not _is_whole(found.record):
            raise NotServable(INCOMPLETE)  # said before anything is changed
        if found.record.size_bytes != record.size_bytes:
            found = await pool.resize_volume(record.id, record.size_bytes, self.placements[-1][1].generation)
        return found

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
        stored = await self._around.load_reservations(record.id)
        if stored is not None:
            unit.reservations.load(stored, power_lost=True)
            # What a restart ended must not come back with a later look at the store.
            if unit.reservations.record() != stored:
                await self._around.services_for(record.id).save_reservations(unit.reservations.record())
        unit.abort_tasks = lambda nexuses: abort_tasks(target, nexuses)
        unit.reservations.drain = lambda nexuses: drain_tasks(target, nexuses)
        return unit

    def _snapshot(self) -> MapSnapshot:
        blocks = self.record.size_bytes // self.record.block_size
        return PartitionMap.from_records(blocks, self.placements).snapshot()

    # Changes ----------------------------------------------------------------------------------------------------------

    async def change(self, record: VolumeRecord, placements: Placements) -> None:
        """Take over a changed record and map. What fails is told in `failed_change`; the rest goes on as before."""
        old = self.record
        self.target.access = access_of(record)
        self._around.directory.put(self.target, record.multipath)
        if self._volume is None:
            self.record, self.placements = record, placements
            return
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
        try:
            if record.write_through and not old.write_through:
                # Hosts stop flushing once they hear of it, so what was acknowledged before must be durable too.
                await self._volume.flush(0, self._volume.blocks)
            await self._move_to(self._volume, record, placements)
            self.failed_change = ""
        except (PoolError, PartitionMapError, VolumeError) as error:
            self.failed_change = str(error)
            log.error("volume could not be changed", volume=record.name, reason=self.failed_change)
            self.record = msgspec.structs.replace(record, size_bytes=old.size_bytes)

    async def _move_to(self, volume: Volume, record: VolumeRecord, placements: Placements) -> None:
        """The blocks: size and map."""
        old_record, old_placements = self.record, self.placements
        self.record, self.placements = record, placements
        try:
            snapshot = self._snapshot()
            if record.size_bytes != old_record.size_bytes:
                await self._resize(volume, snapshot, placements[-1][1].generation)
            elif placements != old_placements and self._held is not None:
                volume.update(snapshot, self._held.held)
        except BaseException:
            self.record, self.placements = old_record, old_placements
            raise

    async def _resize(self, volume: Volume, snapshot: MapSnapshot, generation: int) -> None:
        """Blocks are there before they can be asked for, and nobody uses them any more before they go."""
        pool, record = self._around.pool, self.record
        if snapshot.blocks <= volume.blocks:  # equal: a shrink that got no further than this is tried again
            await volume.resize(snapshot.blocks)
            self.target.unit.capacity_changed()
            self._held = await pool.resize_volume(record.id, record.size_bytes, generation)
            volume.update(snapshot, self._held.held)
        else:
            self._held = await pool.resize_volume(record.id, record.size_bytes, generation)
            await volume.resize(snapshot.blocks, snapshot, self._held.held)
            self.target.unit.capacity_changed()
        log.info("volume has a new size", volume=record.name, bytes=record.size_bytes)

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
        if self._volume is not None:
            # A SANITIZE outlives sessions, and must not reach a file (or what is opened next) that is being closed.
            self._volume.retire()
            await self._volume.drain()

    async def flush(self) -> None:
        """Everything acknowledged is on stable storage. VolumeError."""
        if self._volume is not None:
            await self._volume.drain()
            await self._volume.flush(0, self._volume.blocks)


def access_of(record: VolumeRecord) -> Access:
    return Access(
        frozenset(record.allow),
        tuple(_credentials(user) for user in record.chap),
        None if record.mutual_chap is None else _credentials(record.mutual_chap),
    )


def _credentials(user: ChapRecord) -> Credentials:
    return Credentials(user.user, user.secret.encode())


def _is_whole(record: HeldRecord) -> bool:
    """Every block of the size that the record knows is here."""
    end_lba = 0
    for piece in record.held:
        if piece.start_lba != end_lba or piece.state != HELD:
            return False
        end_lba = piece.end_lba
    return end_lba * record.block_size == record.size_bytes


def held_by(member_name: str, placements: Placements) -> tuple[HeldRange, ...]:
    """What a new volume's pool holds: everything that the map gives to this member."""
    return tuple(
        HeldRange(start, placement.end_lba, placement.generation)
        for start, placement in placements
        if placement.owner == member_name
    )

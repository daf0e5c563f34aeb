"""A migration at its source: piece after piece, until all is moved, or the operator wishes otherwise."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
import structlog

from san_target.group.migration import (
    BACK_OFF_MIN_S,
    CANCELLED,
    DONE,
    FAILURES_MAX,
    FINISHED,
    PAUSE,
    PAUSED,
    PIECE_BYTES,
    RETRYING,
    RUN,
    RUNNING,
    Piece,
    back_off_s,
    largest_piece,
    next_piece,
    owned,
    pieces_left,
    units,
)
from san_target.group.moving_volume import MovingVolume, clear_moved
from san_target.group.pacing import Pace
from san_target.group.piece_mover import Journal, PieceMover, Source, hand_over
from san_target.group.volumes import DELETING
from san_target.metadata.schema import MigrationRecord, VolumeRecord, decode, encode, migration_key, volume_key
from san_target.metadata.store import Compare, Item, Put, StoreError
from san_target.storage.records import PoolError
from san_target.volume.device import VolumeError
from san_target.volume.mirror import MirrorFailed

if TYPE_CHECKING:
    from san_target.volume.volume import Volume

log = structlog.get_logger()

STORE_RETRY_S: Final = 0.5
NOTICED_S: Final = 0.5


class Over(Exception):
    """There is nothing to do any more at this member."""


@dataclass(slots=True)
class Totals:
    """What a member's migrations did since its start."""

    bytes_copied: int = 0
    restarts: int = 0
    mirrored_writes: int = 0


class Migrator:
    """One migration. wall_clock_s: for people. totals: counted on. piece_bytes: of an ordinary piece."""

    def __init__(
        self,
        source: Source,
        migration_id: str,
        incarnation: int,
        volume_of: Callable[[str], MovingVolume | None],
        wall_clock_s: Callable[[], float],
        totals: Totals | None = None,
        piece_bytes: int = PIECE_BYTES,
    ) -> None:
        self._source = source
        self._id = migration_id
        self._key = migration_key(migration_id)
        self._incarnation = incarnation
        self._volume_of = volume_of
        self._wall_clock_s = wall_clock_s
        self._totals = totals or Totals()
        self._piece_bytes = piece_bytes
        self._attempt = 0
        self._failures = 0
        self._changed = asyncio.Event()
        self._journal: Journal | None = None
        self.mover: PieceMover | None = None

    def wish(self, wanted: str) -> None:
        """What the operator wants, as the store says."""
        if self._journal is not None and wanted != self._journal.record.wanted:
            self._journal.is_stopped = wanted != RUN
            self._changed.set()

    # --- The whole ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Returns when there is nothing to do now: it is done, paused or cancelled."""
        journal = await self._take_over()
        if journal is None:
            return
        self._journal = journal
        await self._hand_over_what_was_moved(journal)
        while True:
            if journal.record.wanted != RUN:
                await self._end(PAUSED if journal.record.wanted == PAUSE else CANCELLED, "")
                return
            moving = self._volume_of(journal.record.volume_id)
            if moving is None or moving.volume is None:
                if not await self._volume_is_there(journal):
                    return
                continue
            if moving.volume.mirror is not None:
                await self._rest(NOTICED_S)  # an earlier life left it; the map is not known yet
                await self._look_again()
                continue
            piece = next_piece(moving.map_now, journal.record, journal.generation, self._blocks(moving.volume))
            if piece is None:
                with suppress(VolumeError, PoolError):  # else it is done soon
                    await clear_moved(moving, self._source.name)
                await self._end(DONE, "")
                return
            await self._move(journal, moving, moving.volume, piece)

    async def _hand_over_what_was_moved(self, journal: Journal) -> None:
        """An earlier life may have ended between a commit and its handover, and the destination waits for that."""
        record = journal.record
        destination = record.destination
        while journal.record.wanted == RUN:
            moving = self._volume_of(record.volume_id)
            if moving is None or moving.volume is None:
                return
            snapshot, generation = moving.map_now, journal.generation
            moved = [
                piece
                for piece in owned(snapshot, destination, record.start_lba, record.end_lba)
                if snapshot.find(piece.start).generation == generation
            ]
            link = self._source.link(destination)
            try:
                for piece in moved if link is not None else ():
                    await hand_over(
                        self._source, journal, link, moving.volume.block_size, piece, moving.volume.revision
                    )
                if link is not None or not moved:
                    return
                reason = f"member {destination!r} cannot be reached"
            except MirrorFailed as error:
                reason = str(error)
            await self._write(state=RETRYING, reason=reason)
            await self._rest(BACK_OFF_MIN_S)
            await self._look_again()

    def _blocks(self, volume: "Volume") -> int:
        return self._piece_bytes // volume.block_size

    async def _volume_is_there(self, journal: Journal) -> bool:
        """Wait a moment for a volume that is not open; False: it is gone."""
        item = await self._ask_store(lambda: self._source.store.get(volume_key(journal.record.volume_id)))
        if item is None or decode(VolumeRecord, item.value, item.key).state == DELETING:
            await self._end(CANCELLED, "the volume was deleted")
            return False
        await self._rest(NOTICED_S)
        await self._look_again()
        return True

    async def _move(self, journal: Journal, moving: MovingVolume, volume: "Volume", piece: Piece) -> None:
        piece = await self._as_large_as_possible(journal, moving, volume, piece)
        self._attempt += 1
        before = journal.record
        step = units(piece, self._blocks(volume))
        # What the commit will write, if it comes to that.
        journal.record = msgspec.structs.replace(
            before,
            state=RUNNING,
            reason="",
            source_incarnation=self._incarnation,
            pieces_done=before.pieces_done + step,
            pieces_total=max(before.pieces_total, before.pieces_done + step),
        )
        began_s = self._source.now_s()
        mover = self.mover = PieceMover(self._source, journal, moving, volume, piece, self._attempt)
        is_moved = await mover.run()
        took_s = max(self._source.now_s() - began_s, 1e-3)
        self._totals.mirrored_writes += mover.mirrored_writes
        if is_moved:
            self._totals.bytes_copied += mover.bytes_copied
            self._failures = 0
            speed = (piece.end - piece.start) * volume.block_size / took_s
            old = journal.record.speed_bytes_per_second or speed
            journal.record = msgspec.structs.replace(journal.record, speed_bytes_per_second=0.8 * old + 0.2 * speed)
            return
        await self._failed(journal, before, mover)

    async def _failed(self, journal: Journal, before: MigrationRecord, mover: PieceMover) -> None:
        """Nothing was committed. Tell why, and rest if it happens again and again."""
        journal.record = before
        if journal.is_stopped:
            await self._look_again()
            return
        self._failures += 1
        self._totals.restarts += 1
        rest_s = back_off_s(self._failures)
        log.info(
            "a piece of a migration begins anew",
            migration=self._id,
            volume=before.volume,
            phase=mover.phase.name.lower(),
            reason=mover.reason,
            failures=self._failures,
        )
        await self._look_again()
        await self._write(
            state=RETRYING if self._failures >= FAILURES_MAX else RUNNING,
            reason=mover.reason,
            restarts=journal.record.restarts + 1,
            mirrored_writes=journal.record.mirrored_writes + mover.mirrored_writes,
        )
        if rest_s:
            await self._rest(rest_s)
            await self._look_again()

    async def _as_large_as_possible(
        self, journal: Journal, moving: MovingVolume, volume: "Volume", piece: Piece
    ) -> Piece:
        """Where there is no data, a piece is as large as the hole."""
        largest = largest_piece(moving.map_now, journal.record, journal.generation, piece, volume.block_size)
        size, local = volume.block_size, volume.local
        if largest.end <= piece.end:
            return piece
        length = (largest.end - piece.start) * size
        extents = await local.threads.start(local.file.extents, piece.start * size, length, size, 1)
        if not extents or extents[0].is_data:
            return piece
        hole_end = piece.start + extents[0].length_bytes // size
        blocks = self._blocks(volume)
        end = largest.end if hole_end >= largest.end else hole_end // blocks * blocks
        return Piece(piece.start, max(piece.end, end))

    # --- The migration's key ------------------------------------------------------------------------------------------

    async def _ask_store(self, ask: "Callable[[], Awaitable[Item | None]]") -> Item | None:
        while True:
            try:
                return await ask()
            except StoreError as error:
                log.info("a migration waits for the store", migration=self._id, reason=str(error))
                await self._source.sleep(STORE_RETRY_S)

    async def _take_over(self) -> Journal | None:
        """This life of the member works on it from now on; what an earlier one began to commit cannot come true any
        more."""
        while True:
            item = await self._ask_store(lambda: self._source.store.get(self._key))
            if item is None:
                return None
            record = decode(MigrationRecord, item.value, self._key)
            if record.state in FINISHED or (record.state == PAUSED and record.wanted == PAUSE):
                return None  # the watch has not told that yet
            moving = self._volume_of(record.volume_id)
            total = record.pieces_total
            if moving is not None and moving.volume is not None:
                blocks = self._blocks(moving.volume)
                total = record.pieces_done + pieces_left(moving.map_now, record, item.create_revision, blocks)
            changed = msgspec.structs.replace(
                record,
                source_incarnation=self._incarnation,
                pieces_total=total,
                state=RUNNING if record.wanted == RUN else record.state,
            )
            journal = Journal(changed, item.mod_revision, item.create_revision)
            journal.pace = Pace(record.limit_bytes_per_second)
            if await self._put(journal, changed):
                return journal

    async def _put(self, journal: Journal, record: MigrationRecord) -> bool:
        """False: somebody else wrote it, or nobody knows."""
        try:
            result = await self._source.store.transact(
                [Compare(self._key, journal.revision)], [Put(self._key, encode(record))]
            )
        except StoreError as error:
            log.info("a migration waits for the store", migration=self._id, reason=str(error))
            await self._source.sleep(STORE_RETRY_S)
            return False
        if result.succeeded:
            journal.record, journal.revision = record, result.revision
        return result.succeeded

    async def _look_again(self) -> None:
        """Take over what others wrote, which is what the operator wants."""
        journal = self._journal
        if journal is None:
            raise AssertionError("the migration has not begun")
        item = await self._ask_store(lambda: self._source.store.get(self._key))
        if item is None:
            raise Over("the migration is gone")
        journal.record, journal.revision = decode(MigrationRecord, item.value, self._key), item.mod_revision
        journal.is_stopped = journal.record.wanted != RUN
        if journal.record.source_incarnation != self._incarnation:
            raise Over("a later life of this member works on it")

    async def _write(self, **changes: "str | int | float") -> None:
        journal = self._journal
        if journal is None:
            raise AssertionError("the migration has not begun")
        while not await self._put(journal, msgspec.structs.replace(journal.record, **changes)):
            await self._look_again()

    async def _end(self, state: str, reason: str) -> None:
        """Done, paused or cancelled."""
        journal = self._journal
        if journal is None:
            raise AssertionError("the migration has not begun")
        finished_s = 0.0 if state == PAUSED else self._wall_clock_s()
        total = journal.record.pieces_done if state == DONE else journal.record.pieces_total
        await self._write(state=state, reason=reason, finished_s=finished_s, pieces_total=total)
        log.info("a migration ends for now", migration=self._id, volume=journal.record.volume, state=state)

    async def _rest(self, seconds: float) -> None:
        """Until then, or until the operator wishes something else."""
        self._changed.clear()
        sleeping = asyncio.ensure_future(self._source.sleep(seconds))
        waking = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait((sleeping, waking), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            waking.cancel()

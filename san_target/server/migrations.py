"""The migrations of this member: those that it is the source of are worked on, and what it receives is looked after.

At the beginning of each life, and whenever members or migrations change, this looks at what the pool records: blocks
that the map gives to others are cleared away, what was being received is given up, and what was sealed becomes this
member's if the store says so - as soon as nobody else can serve it.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import structlog

from san_target.group.errors import AdministrationError
from san_target.group.migration import FINISHED, PAUSED, RETRYING, RUN
from san_target.group.migration_requests import MigrationRequests
from san_target.group.migrator import Migrator, Over, Totals
from san_target.group.moving_volume import clear_moved, gone
from san_target.group.piece_mover import Source
from san_target.metadata.schema import MigrationRecord, decode
from san_target.metadata.store import StoreError
from san_target.server.background import Background
from san_target.storage.records import HELD, HeldRange, PoolError
from san_target.volume.device import VolumeError
from san_target.volume.held import RECEIVING
from san_target.volume.partition_map import PartitionMapError

if TYPE_CHECKING:
    import asyncio

    from san_target.metadata.store import Event, Item
    from san_target.server.export import Export
    from san_target.server.member import Member
    from san_target.volume.mirror import Mirror
    from san_target.volume.receiver import Receiver

log = structlog.get_logger()

AT_ONCE: Final = 2
"""Migrations that one member works on."""
LOOK_S: Final = 1.0
NONCE_BYTES: Final = 12


class Migrations:
    """A consumer of the follower. known: all migrations with their generations, by id."""

    KINDS = ("migrations",)

    def __init__(self, member: "Member", receiver: "Receiver") -> None:
        self._member = member
        self._receiver = receiver
        self._lives = False
        self._background = Background()
        self._working: dict[str, tuple[Migrator, asyncio.Task[None]]] = {}
        self._gone_since_s: dict[str, float] = {}
        self._read: dict[str, tuple[MigrationRecord, int]] = {}
        self._complete_at = 0
        self.totals = Totals()
        self.known: dict[str, tuple[MigrationRecord, int]] = {}

    # What the follower calls ------------------------------------------------------------------------------------------

    def begin(self) -> None:
        self._read = {}

    def read(self, items: "Sequence[Item]") -> None:
        for item in items:
            record = decode(MigrationRecord, item.value, item.key)
            self._read[record.id] = record, item.create_revision

    def complete(self, revision: int) -> None:
        self.known, self._read = self._read, {}
        self._complete_at = revision
        self._look()

    def take(self, revision: int, events: "Sequence[Event]") -> None:
        for event in events:
            if event.item is None:
                self.known.pop(event.key.partition("/")[2], None)
            else:
                record = decode(MigrationRecord, event.item.value, event.key)
                self.known[record.id] = record, event.item.create_revision
        self._look()

    # Life -------------------------------------------------------------------------------------------------------------

    def begin_life(self) -> None:
        """The map that this member knows is as new as its lease, at least."""
        self._lives = True
        for export in self._member.exports.by_id.values():
            if export.volume is not None and export.volume.mirror is not None:
                self._background.spawn(self._reopen(export, export.volume.mirror))
        self._background.spawn(self._keep_looking())
        self._look()

    async def _reopen(self, export: "Export", mirror: "Mirror") -> None:
        """What an earlier life left in doubt is served again, or not, by the map of now."""
        await self._member.exports.settled(export.record.id, self._member.follower.revision)
        if export.volume is not None and export.volume.mirror is mirror:
            export.volume.mirror = None

    async def end_life(self) -> None:
        self._lives = False
        await self._background.cancel()
        self._working.clear()

    async def _keep_looking(self) -> None:
        while self._lives:
            for export in list(self._member.exports.by_id.values()):
                try:
                    await self._settle(export)
                except (VolumeError, PoolError, PartitionMapError) as error:
                    log.info("what migrations left waits", volume=export.record.name, reason=str(error))
            await self._end_orphans()
            await self._member.environment.sleep(LOOK_S)

    async def _end_orphans(self) -> None:
        """Migrations that nobody will work on: their source was removed from the group. Their destination ends them."""
        member = self._member
        for record, _generation in list(self.known.values()):
            view = member.members.view.get(record.source)
            is_gone = view is None or view.state == "removed"
            if record.destination == member.name and record.state not in FINISHED and is_gone:
                requests = MigrationRequests(member.store, member.environment.new_id, member.environment.wall_clock_s)
                with suppress(StoreError, AdministrationError):
                    await requests.abandon(record.id, f"member {record.source!r} was removed from the group")

    @property
    def working(self) -> int:
        """How many are worked on here."""
        return len(self._working)

    def phase_of(self, migration_id: str) -> str:
        """How far the piece is that is moved now; "" if none is, here."""
        found = self._working.get(migration_id)
        mover = None if found is None else found[0].mover
        return "" if mover is None else mover.phase.name.lower()

    # The source -------------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Work on what is to be worked on, the oldest first; one migration of a volume at a time."""
        if not self._lives:
            return
        me = self._member.name
        for migrator_id, (migrator, _task) in self._working.items():
            found = self.known.get(migrator_id)
            migrator.wish("cancel" if found is None else found[0].wanted)
        working = [self.known[each][0] for each in self._working if each in self.known]
        busy = {record.volume_id for record in working}
        # One that rests after failures (its destination is away, say) keeps no other from being worked on.
        slots = AT_ONCE - sum(record.state != RETRYING for record in working)
        for record, _generation in sorted(self.known.values(), key=lambda each: each[1]):
            is_due = record.wanted == RUN or record.state not in (PAUSED, *FINISHED)
            if record.source != me or record.state in FINISHED or not is_due or record.id in self._working:
                continue
            if record.volume_id not in busy and slots > 0:
                busy.add(record.volume_id)
                slots -= 1
                self._begin(record)

    def _begin(self, record: MigrationRecord) -> None:
        member, environment = self._member, self._member.environment
        source = Source(
            member.name,
            member.store,
            member.life.peering.link,
            member.membership.is_valid,
            lambda: environment.random_bytes(NONCE_BYTES).hex(),
            environment.now_s,
            environment.sleep,
        )
        migrator = Migrator(
            source,
            record.id,
            member.membership.incarnation,
            lambda volume_id: member.exports.by_id.get(volume_id),
            environment.wall_clock_s,
            self.totals,
        )
        task = self._background.spawn(self._work(record, migrator))
        self._working[record.id] = migrator, task

    async def _work(self, record: MigrationRecord, migrator: Migrator) -> None:
        try:
            await migrator.run()
        except Over as error:
            log.info("a migration is left", migration=record.id, reason=str(error))
        finally:
            self._working.pop(record.id, None)
        # Its end may not have been told by the watch yet; then that starts what is due.
        self._look_later()

    def _look_later(self) -> None:
        self._background.spawn(self._look_when_followed())

    async def _look_when_followed(self) -> None:
        await self._member.environment.sleep(LOOK_S / 4)
        self._look()

    # The destination --------------------------------------------------------------------------------------------------

    async def _settle(self, export: "Export") -> None:
        """Bring what the pool records of one volume in line with the store."""
        if export.volume is None or not self._knows():
            return
        if gone(export, self._member.name):
            await clear_moved(export, self._member.name)
        for piece in export.held:
            if piece.state != HELD and piece in export.held:
                await self._settle_piece(export, piece)

    def _knows(self) -> bool:
        """Are map and migrations of one revision? (While everything is read again, one comes before the other.)"""
        return self._lives and self._complete_at <= self._member.follower.revision

    async def _settle_piece(self, export: "Export", piece: HeldRange) -> None:
        """What was received and is not handed over: by an earlier life, from a source that ended, or still coming."""
        volume_id = bytes.fromhex(export.record.id)
        record = next((each[0] for each in self.known.values() if each[1] == piece.generation), None)
        is_over = record is None or record.state in FINISHED
        is_coming = self._receiver.is_receiving(volume_id, piece.generation)
        source_ended = record is None or is_over or self._has_ended(record)
        if is_coming and not source_ended:
            return
        mine = self._mine(export, piece)
        if mine:
            for start, end in mine if source_ended and piece.state != RECEIVING else ():
                revision = 0 if export.volume is None else export.volume.revision
                await self._receiver.take_over(export, volume_id, piece.generation, start, end, revision)
        elif is_over or not is_coming:
            # No commit can come true any more: it compares the migration's key, and the lease of this life.
            if is_coming:
                await self._receiver.end_of(volume_id, piece.generation)
            await self._receiver.discard(
                export,
                volume_id,
                piece.generation,
                piece.start_lba,
                piece.end_lba,
                lambda: self._knows() and not self._mine(export, piece),
            )

    def _mine(self, export: "Export", piece: HeldRange) -> list[tuple[int, int]]:
        """What of the piece is this member's by the store, or by what it knows better."""
        stored_map = self._member.exports.stored_map(export.record.id)
        snapshots = [export.map_now, *([] if stored_map is None else [stored_map.whole()])]
        found = set()
        for snapshot in snapshots:
            for start, end, placement in snapshot.ranges(piece.start_lba):
                if start >= piece.end_lba:
                    break
                if placement.owner == self._member.name and placement.generation == piece.generation:
                    found.add((max(start, piece.start_lba), min(end, piece.end_lba)))
        return sorted(found)

    def _has_ended(self, record: MigrationRecord) -> bool:
        """Is the life of the source that worked on it over, and everything with it?

        A lease that is gone may have ended early, so a lease's time is waited for.
        """
        view = self._member.members.view.get(record.source)
        if view is None or view.state == "removed" or view.incarnation > record.source_incarnation:
            return True
        now_s = self._member.environment.now_s()
        if view.alive:
            self._gone_since_s.pop(record.source, None)
            return False
        since_s = self._gone_since_s.setdefault(record.source, now_s)
        return now_s - since_s > self._member.environment.lease_ttl_s

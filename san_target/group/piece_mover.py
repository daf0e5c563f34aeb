"""One attempt at one piece: carries out at the source what `group.migration` says is to be done.

Kept here: while the outcome of a commit is unknown the mirror stays on and must succeed; and an old value read from the
store never counts as "not committed" - only a successful write of the migration's key does, which the commit compares.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
import structlog

from san_target.group.errors import Conflict
from san_target.group.map_records import MapTransaction, placement_transaction
from san_target.group.migration import ENDS, FIRST, UNSURE, Do, Event, Phase, Piece, next_step
from san_target.group.moving_volume import MovingVolume
from san_target.group.pacing import Pace
from san_target.group.volumes import READY
from san_target.metadata.schema import (
    LeaseRecord,
    MigrationRecord,
    VolumeRecord,
    decode,
    encode,
    lease_key,
    migration_key,
    volume_key,
)
from san_target.metadata.store import Compare, Put, Store, StoreError, TransactionResult
from san_target.peer.frames import Operation
from san_target.storage.interface import StorageError
from san_target.storage.records import PoolError
from san_target.volume.device import VolumeError
from san_target.volume.mirror import Mirror, MirrorFailed, MirrorLink
from san_target.volume.partition_map import Placement

if TYPE_CHECKING:
    from san_target.volume.range_locks import RangeLock
    from san_target.volume.volume import Volume

log = structlog.get_logger()

COPY_BYTES: Final = 256 << 10
COPIES_AT_ONCE: Final = 4
EXTENTS_AT_ONCE: Final = 1024
COMMIT_S: Final = 1.5
"""How long initiators wait for the store; then the piece is served again, in doubt."""
CONFLICTS_MAX: Final = 5
SEAL_S: Final = 3.0
HANDOVER_S: Final = 2.0
HANDOVER_RETRY_S: Final = 0.2
RESOLVE_RETRY_S: Final = 0.2
CANCEL_S: Final = 2.0


class PeerLinkNow(MirrorLink, Protocol):
    @property
    def incarnation(self) -> int: ...

    @property
    def state(self) -> str: ...


@dataclass(slots=True)
class Source:
    """The member that moves. link: to the present life of a member; may_serve: its lease surely holds."""

    name: str
    store: Store
    link: Callable[[str], PeerLinkNow | None]
    may_serve: Callable[[], bool]
    new_nonce: Callable[[], str]
    now_s: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]


@dataclass(slots=True)
class Journal:
    """The migration's key, as this member wrote or saw it last; its generation; and whether it is to go on."""

    record: MigrationRecord
    revision: int
    generation: int
    pace: Pace = field(default_factory=Pace)
    is_stopped: bool = False


class StepFailed(Exception):
    """The attempt is over; the message says why."""


class PieceMover:
    """phase, reason: how far it has come, and what went wrong last."""

    def __init__(
        self, source: Source, journal: Journal, moving: MovingVolume, volume: "Volume", piece: Piece, attempt: int
    ) -> None:
        self._source = source
        self._journal = journal
        self._moving = moving
        self._volume = volume
        self._piece = piece
        self._attempt = attempt
        self._mirror: Mirror | None = None
        self._lock: RangeLock | None = None
        self._link: PeerLinkNow | None = None
        self._plan: MapTransaction | None = None
        self._commit: asyncio.Future[TransactionResult] | None = None
        self._committed: MigrationRecord | None = None
        self._revision = 0
        self._conflicts = 0
        self.phase = Phase.PREPARING
        self.reason = ""
        self.bytes_copied = 0
        # For each: an event, or None = done.
        self._doing: dict[Do, Callable[[], Awaitable[Event | None]]] = {
            Do.PREPARE: self._prepare,
            Do.MIRROR: self._mirror_on,
            Do.DRAIN: self._drain,
            Do.COPY: self._copy,
            Do.PLAN: self._make_plan,
            Do.LOCK: self._take_lock,
            Do.UNLOCK: self._give_lock_back,
            Do.SEAL: self._seal,
            Do.REQUIRE: self._require,
            Do.COMMIT: self._try_commit,
            Do.RESOLVE: self._resolve,
            Do.CLOSE: self._close,
            Do.HANDOVER: self._hand_over,
            Do.ROUTE: self._route,
            Do.RELEASE: self._release,
            Do.CANCEL: self._cancel,
        }

    @property
    def mirrored_writes(self) -> int:
        return 0 if self._mirror is None else self._mirror.writes

    async def run(self) -> bool:
        """True: the piece is the destination's. Cancelled: this life of the member ends."""
        step = FIRST
        try:
            while True:
                self.phase = step.phase
                event = await self._carry_out(step.instructions)
                if self.phase in ENDS:
                    return self.phase is Phase.MOVED
                step = next_step(self.phase, event)
        finally:
            self._leave()

    async def _carry_out(self, instructions: Sequence[Do]) -> Event:
        event = Event.DONE
        for instruction in instructions:
            if self._journal.is_stopped and self.phase not in UNSURE and self.phase is not Phase.GIVING_UP:
                return Event.STOPPED
            try:
                event = await self._doing[instruction]() or Event.DONE
            except (StepFailed, MirrorFailed, StoreError, VolumeError, StorageError, PoolError, Conflict) as error:
                self.reason = str(error) if self.phase is not Phase.GIVING_UP else self.reason
                return Event.FAILED
        return event

    def _leave(self) -> None:
        """However it ended: nothing stays locked; and what may be another's is not served here."""
        if self._mirror is not None and self._volume.mirror is self._mirror:
            if self.phase in UNSURE:
                self._mirror.close()
            else:
                self._mirror.release()
                self._volume.mirror = None
        if self._lock is not None:
            self._volume.local.locks.release(self._lock)
            self._lock = None

    # --- Steps --------------------------------------------------------------------------------------------------------

    @property
    def _blocks(self) -> int:
        return self._piece.end - self._piece.start

    def _on(self) -> Mirror:
        if self._mirror is None:
            raise AssertionError("the mirror is not on")
        return self._mirror

    async def _prepare(self) -> None:
        destination = self._journal.record.destination
        link = self._link = self._source.link(destination)
        if link is None:
            raise StepFailed(f"member {destination!r} cannot be reached")
        self._mirror = Mirror(
            link,
            bytes.fromhex(self._journal.record.volume_id),
            self._volume.block_size,
            *self._piece,
            self._journal.generation,
            self._attempt,
            self._source.may_serve,
        )
        await self._ask(Operation.PREPARE, revision=self._journal.generation)

    async def _ask(self, operation: Operation, patience_s: float = 10.0, **options: int | bool) -> None:
        revision, durable = int(options.get("revision", 0)), bool(options.get("durable", False))
        await self._on().ask(operation, self._piece.start, self._blocks, b"", patience_s, durable, revision)

    async def _mirror_on(self) -> None:
        self._volume.mirror = self._on()

    async def _drain(self) -> None:
        locks = self._volume.local.locks
        locks.release(await locks.acquire(self._piece.start, self._blocks, True))

    async def _copy(self) -> None:
        local, size = self._volume.local, self._volume.block_size
        lba = self._piece.start
        while lba < self._piece.end:
            extents = await local.threads.start(
                local.file.extents, lba * size, (self._piece.end - lba) * size, size, EXTENTS_AT_ONCE
            )
            for extent in extents:
                first = extent.offset_bytes // size
                lba = first + extent.length_bytes // size
                if extent.is_data:
                    await self._copy_extent(first, lba)
        self._check_clean()

    async def _copy_extent(self, first: int, end: int) -> None:
        """Some blocks at a time, side by side; then a rest."""
        step = COPY_BYTES // self._volume.block_size
        for low in range(first, end, step * COPIES_AT_ONCE):
            began_s = self._source.now_s()
            high = min(end, low + step * COPIES_AT_ONCE)
            lag = asyncio.ensure_future(self._lag_s())
            outcomes = await asyncio.gather(
                *(self._copy_blocks(lba, min(step, high - lba)) for lba in range(low, high, step)),
                return_exceptions=True,
            )
            lag_s = await lag
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    self._on().spoil(str(outcome))
                    raise outcome
            self._check_clean()
            self.bytes_copied += (high - low) * self._volume.block_size
            if self._journal.is_stopped:
                raise StepFailed("stopped")
            now_s, busy = self._source.now_s(), not self._volume.local.locks.idle
            length = (high - low) * self._volume.block_size
            rest_s = self._journal.pace.rest_s(now_s, now_s - began_s, lag_s, length, busy)
            if rest_s > 0:
                await self._source.sleep(rest_s)

    async def _lag_s(self) -> float:
        """How late the event loop comes to what is due at once."""
        began_s = self._source.now_s()
        await asyncio.sleep(0)
        return self._source.now_s() - began_s

    async def _copy_blocks(self, lba: int, blocks: int) -> None:
        """Under the lock until the destination has them: so no older blocks can come after younger ones there."""
        local = self._volume.local
        lock = await local.locks.acquire(lba, blocks, False)
        try:
            await self._on().send_blocks(Operation.COPY, local.file, local.threads, lba, blocks)
        finally:
            local.locks.release(lock)

    def _check_clean(self) -> None:
        spoiled = self._on().spoiled
        if spoiled:
            raise StepFailed(spoiled)

    async def _make_plan(self) -> None:
        """What the commit compares is read before the piece is locked: initiators do not wait for that."""
        if self._lock is None:
            await self._ask(Operation.SEAL)  # what is there by now becomes durable
            await self._read_plan()
            return
        try:
            async with asyncio.timeout(COMMIT_S):
                await self._read_plan()
        except TimeoutError:
            raise StepFailed("the store does not answer in time") from None

    async def _read_plan(self) -> None:
        record, store, me = self._journal.record, self._source.store, self._source.name
        link = self._link
        leases = await asyncio.gather(store.get(lease_key(record.destination)), store.get(lease_key(me)))
        item = await store.get(volume_key(record.volume_id))
        if item is None:
            raise StepFailed("the volume is gone")
        volume = decode(VolumeRecord, item.value, item.key)
        if volume.state != READY or volume.shrinking or volume.growing_from_bytes:
            raise StepFailed(f"the volume {volume.name!r} is being resized or deleted")
        compares = [Compare(volume_key(record.volume_id), item.mod_revision)]
        for lease in leases:
            if lease is None:
                raise StepFailed("a member's lease has ended")
            # A life that began later has forgotten what was sealed, or has read an older map.
            compares.append(Compare(lease.key, lease.mod_revision))
        there = leases[0]
        if there is None or link is None or decode(LeaseRecord, there.value, there.key).incarnation != link.incarnation:
            raise StepFailed(f"member {record.destination!r} has started again")
        placement = Placement(record.destination, generation=self._journal.generation)
        change = await placement_transaction(store, record.volume_id, self._moving.map_now, *self._piece, placement)
        self._plan = MapTransaction([*compares, *change.compares], change.operations)

    async def _take_lock(self) -> None:
        if self._lock is None:
            self._lock = await self._volume.local.locks.acquire(self._piece.start, self._blocks, True)

    async def _give_lock_back(self) -> None:
        if self._lock is not None:
            self._volume.local.locks.release(self._lock)
            self._lock = None

    async def _seal(self) -> None:
        self._check_clean()
        await self._ask(Operation.SEAL, SEAL_S, durable=True)
        self._check_clean()

    async def _require(self) -> None:
        self._on().mandatory = True

    async def _try_commit(self) -> Event:
        plan, journal = self._plan, self._journal
        if plan is None:
            raise AssertionError("a commit without a plan")
        key = migration_key(journal.record.id)
        self._committed = self._record_after()
        self._commit = asyncio.ensure_future(
            self._source.store.transact(
                [Compare(key, journal.revision), *plan.compares], [Put(key, encode(self._committed)), *plan.operations]
            )
        )
        self._commit.add_done_callback(_look_at_result)
        await asyncio.wait([self._commit], timeout=COMMIT_S)
        return self._outcome() or Event.UNANSWERED

    def _record_after(self) -> MigrationRecord:
        record: MigrationRecord = msgspec.structs.replace(
            self._journal.record,
            nonce=self._source.new_nonce(),
            mirrored_writes=self._journal.record.mirrored_writes + self.mirrored_writes,
            bytes_copied=self._journal.record.bytes_copied + self.bytes_copied,
        )
        return record

    def _outcome(self) -> Event | None:
        """What the store's answer says; None: there is none, or it says that it does not know."""
        if self._commit is None or not self._commit.done() or self._commit.cancelled():
            return None
        if self._commit.exception() is not None:
            return None
        result = self._commit.result()
        if not result.succeeded:
            self.reason = "the map, the volume or a member changed at the same time"
            self._conflicts += 1
            return Event.CONFLICT if self._conflicts < CONFLICTS_MAX else Event.REFUSED
        return self._note_commit(result.revision)

    def _note_commit(self, revision: int) -> Event:
        if self._committed is None:
            raise AssertionError("nothing was committed")
        self._revision = revision
        self._journal.record, self._journal.revision = self._committed, revision
        return Event.COMMITTED

    async def _resolve(self) -> Event:
        outcome = self._outcome()
        if outcome is not None:
            return outcome
        try:
            return await self._look_into_store()
        except StoreError as error:
            self.reason = str(error)
        await self._source.sleep(RESOLVE_RETRY_S)
        return Event.UNANSWERED

    async def _look_into_store(self) -> Event:
        journal, store = self._journal, self._source.store
        key = migration_key(journal.record.id)
        item = await store.get(key)
        if item is None:
            self.reason = "the migration is gone"
            return Event.REFUSED  # the commit compares its key
        found = decode(MigrationRecord, item.value, key)
        if self._committed is not None and found.nonce == self._committed.nonce:
            self._committed = found
            outcome = self._note_commit(item.mod_revision)
            self._revision = await self._map_revision() or item.mod_revision
            return outcome
        # That it is not there yet says nothing. But once the key is written anew, the commit finds another revision.
        changed = msgspec.structs.replace(found, nonce=self._source.new_nonce())
        result = await store.transact([Compare(key, item.mod_revision)], [Put(key, encode(changed))])
        if not result.succeeded:
            return Event.UNANSWERED
        journal.record, journal.revision = changed, result.revision
        self.reason = "the store did not answer in time"
        return Event.REFUSED

    async def _map_revision(self) -> int:
        """At which the map got the piece, or changed again there."""
        operations = [] if self._plan is None else self._plan.operations
        revisions = [0]
        for each in operations:
            item = await self._source.store.get(each.key)
            revisions.append(0 if item is None else item.mod_revision)
        return max(revisions)

    async def _close(self) -> None:
        self._on().close()

    async def _hand_over(self) -> None:
        """Also to a later life of the destination. Waits between two tries only if nobody waits for it."""
        record = self._journal.record
        link = self._source.link(record.destination)
        if self._lock is None:
            await self._source.sleep(HANDOVER_RETRY_S)
        if link is None:
            raise StepFailed(f"member {record.destination!r} cannot be reached")
        await hand_over(self._source, self._journal, link, self._volume.block_size, self._piece, self._revision)

    async def _route(self) -> None:
        placement = Placement(self._journal.record.destination, generation=self._journal.generation)
        self._moving.place(*self._piece, placement, self._revision)
        if self._volume.mirror is self._mirror:
            self._volume.mirror = None

    async def _release(self) -> None:
        if self._mirror is not None:
            self._mirror.release()
            if self._volume.mirror is self._mirror:
                self._volume.mirror = None

    async def _cancel(self) -> None:
        if self._link is not None and self._link.state == "up":
            await self._ask(Operation.CANCEL, CANCEL_S)


async def hand_over(
    source: Source, journal: Journal, link: PeerLinkNow | None, block_size: int, piece: Piece, revision: int
) -> None:
    """Tell the present life of the destination that blocks are its own, by the store. MirrorFailed."""
    if link is None:
        raise MirrorFailed("the destination cannot be reached")
    volume_id = bytes.fromhex(journal.record.volume_id)
    asking = Mirror(link, volume_id, block_size, *piece, journal.generation, 0, source.may_serve)
    await asking.ask(Operation.HANDOVER, piece.start, piece.end - piece.start, b"", HANDOVER_S, revision=revision)


def _look_at_result(commit: "asyncio.Future[TransactionResult]") -> None:
    """Nobody may wait for it any more; an unseen exception would be logged as a bug."""
    if not commit.cancelled():
        commit.exception()

"""The volumes of the group, as records: create, change, resize, delete.

Everything here is compare-and-set on the store; members see the result by their watches and carry it out. A volume
begins in the state "creating", until every owner has made its blocks and said so (`confirm`): a member makes missing
blocks only while it is asked to, since later they would be lost ones. A volume that is deleted first gets the state
"deleting". That record is the tombstone: members drop their data because of it, never because a record is missing, and
the last one removes it (`forget`).
"""

import uuid
from collections.abc import Callable, Sequence
from typing import Final, TypedDict, Unpack

import msgspec

from san_target.group import rules
from san_target.group.errors import Conflict, Invalid, NotFound
from san_target.group.map_records import KEYS_AT_ONCE, MapEntry, entries
from san_target.group.membership import ACTIVE, LEASES_PREFIX, is_member, member_records
from san_target.group.spread import RANGES_MAX, Candidate, spread
from san_target.group.volume_size import check_resize, grown, map_facts, shrunk, trim
from san_target.metadata.schema import (
    ChapRecord,
    GroupRecord,
    MemberRecord,
    PlacementRecord,
    VolumeRecord,
    decode,
    encode,
    map_key,
    reservations_key,
    target_name_key,
    volume_key,
)
from san_target.metadata.store import Compare, Delete, Item, Put, Store

CREATING: Final = "creating"
READY: Final = "ready"
DELETING: Final = "deleting"
VOLUMES_PREFIX: Final = volume_key("")
MEMBERS_MAX: Final = RANGES_MAX // 2
TRIES: Final = 64
"""How often a member that confirms tries again: each failure is another member's success."""


class VolumeOptions(TypedDict, total=False):
    """What can be changed of a volume."""

    allow: Sequence[str]
    chap: Sequence[ChapRecord]
    mutual_chap: ChapRecord | None
    write_through: bool
    read_only: bool
    removable: bool
    multipath: bool


class Volumes:
    """The group's volumes.

    sessions_on: how many sessions are logged in to a volume (by its id). new_id: 32 hex digits, never the same twice.
    All methods raise StoreError if the store fails.
    """

    def __init__(
        self,
        store: Store,
        group: GroupRecord,
        sessions_on: Callable[[str], int] = lambda volume_id: 0,
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        self._store = store
        self._group = group
        self._sessions_on = sessions_on
        self._new_id = new_id

    # Create -----------------------------------------------------------------------------------------------------------

    async def create(
        self,
        name: str,
        size_bytes: int,
        *,
        block_size: int = 512,
        copies: int = 1,
        members: Sequence[str] = (),
        **options: Unpack[VolumeOptions],
    ) -> VolumeRecord:
        """A new volume, spread over `members` (each gets a part), or by free space over all that run.

        Invalid, Conflict (name taken, a member does not run), NotFound (member).
        """
        record = VolumeRecord(
            id=self._new_id(),
            name=name,
            iqn=rules.iqn_of(name),
            size_bytes=size_bytes,
            block_size=block_size,
            copies=copies,
            members=tuple(dict.fromkeys(members)),
            state=CREATING,
        )
        record = msgspec.structs.replace(record, **_checked_options(options))
        rules.check_volume(record)
        candidates = await self._candidates(record.members)
        began = await self._store.range(VOLUMES_PREFIX)
        self._check_name_is_free(name, record.iqn, began.items)
        blocks = size_bytes // block_size
        shares = spread(
            record.id, 0, blocks, block_size, record.region_bytes, candidates, every_one=bool(record.members)
        )
        record = msgspec.structs.replace(record, unconfirmed=tuple(sorted({share.owner for share in shares})))
        key, name_key = volume_key(record.id), target_name_key(record.iqn)
        placements: list[Put | Delete] = [
            Put(
                map_key(record.id, share.start),
                encode(PlacementRecord(end_lba=share.end, owner=share.owner, generation=began.revision)),
            )
            for share in shares
        ]
        result = await self._store.transact(
            [Compare(key, 0), Compare(name_key, 0)],
            [Put(key, encode(record)), Put(name_key, record.id.encode()), *placements],
        )
        if not result.succeeded:
            raise Conflict(f"a volume with the target name {record.iqn} exists already; choose another name")
        return record

    async def _candidates(self, names: Sequence[str]) -> list[Candidate]:
        """The members `names`, all of which must run; without names all that run and are not being drained."""
        if len(names) > MEMBERS_MAX:
            raise Invalid(f"a volume can be placed on at most {MEMBERS_MAX} members by name; leave --members out")
        known = {record.name: record for record in await member_records(self._store) if is_member(record)}
        unknown = sorted(set(names) - known.keys())
        if unknown:
            raise NotFound(f"there is no member {', '.join(map(repr, unknown))}; `member list` shows all")
        alive = {item.key.removeprefix(LEASES_PREFIX) for item in (await self._store.range(LEASES_PREFIX)).items}
        fit = [record for record in known.values() if record.name in alive and record.state == ACTIVE]
        missing = sorted(set(names) - {record.name for record in fit})
        if missing:
            raise Conflict(_why_not(known[missing[0]], missing[0] in alive))
        if not fit:
            raise Conflict("no member of the group can take a volume now: none runs that is not being drained")
        return [Candidate(record.name, record.free_bytes) for record in fit if not names or record.name in names]

    @staticmethod
    def _check_name_is_free(name: str, iqn: str, items: Sequence[Item]) -> None:
        for item in items:
            other = decode(VolumeRecord, item.value, item.key)
            if other.iqn == iqn and other.state == DELETING:
                raise Conflict(f"the volume {other.name!r} is still being deleted; try again soon")
            if other.name == name:
                raise Conflict(f"a volume named {name!r} exists already; choose another name")
            if other.iqn == iqn:
                raise Conflict(
                    f"{name!r} would have the target name {iqn} of the volume {other.name!r}; choose another name"
                )

    # Look -------------------------------------------------------------------------------------------------------------

    async def all(self) -> list[VolumeRecord]:
        """By name, those being deleted too."""
        snapshot = await self._store.range(VOLUMES_PREFIX)
        records = [decode(VolumeRecord, item.value, item.key) for item in snapshot.items]
        return sorted(records, key=lambda record: record.name)

    async def named(self, name: str) -> VolumeRecord:
        """NotFound if there is none."""
        return (await self._find(name))[0]

    async def _find(self, name: str) -> tuple[VolumeRecord, int]:
        """The record and its mod_revision."""
        for item in (await self._store.range(VOLUMES_PREFIX)).items:
            record = decode(VolumeRecord, item.value, item.key)
            if record.name == name:
                return record, item.mod_revision
        raise NotFound(f"there is no volume {name!r}; `volume list` shows all")

    async def _find_ready(self, name: str) -> tuple[VolumeRecord, int]:
        record, revision = await self._find(name)
        if record.state != READY:
            doing = "deleted" if record.state == DELETING else "created"
            raise Conflict(f"the volume {name!r} is being {doing}; try again soon")
        return record, revision

    async def entries_of(self, name: str) -> list[MapEntry]:
        """The map, by LBA. NotFound."""
        record = await self.named(name)
        return [entry async for entry in entries(self._store, record.id)]

    # What members report ----------------------------------------------------------------------------------------------

    async def confirm(self, done: VolumeRecord, member_name: str) -> None:
        """`member_name` has carried out, durably, what `done` asks of it: creation, growth or shrink.

        With the last one it is done: the volume is ready, the new size shown, and growth possible again. Harmless if
        something else is asked by now. Conflict: others confirm all the time.
        """
        key = volume_key(done.id)
        for _ in range(TRIES):
            item = await self._store.get(key)
            if item is None:
                return
            record = decode(VolumeRecord, item.value, key)
            if _task(record) != _task(done) or member_name not in record.unconfirmed:
                return
            left = tuple(name for name in record.unconfirmed if name != member_name)
            if not left and record.shrinking:
                await trim(self._store, record)
            changed = msgspec.structs.replace(record, unconfirmed=left, failure="") if left else _finished(record)
            if (await self._store.transact([Compare(key, item.mod_revision)], [Put(key, encode(changed))])).succeeded:
                return
        raise Conflict(f"the volume {done.name!r} changes all the time; this is confirmed later")

    async def fail(self, tried: VolumeRecord, member_name: str, reason: str) -> None:
        """`member_name` cannot carry out what `tried` asks of it; it will try again. Harmless as `confirm` is."""
        key = volume_key(tried.id)
        item = await self._store.get(key)
        if item is None:
            return
        record = decode(VolumeRecord, item.value, key)
        failure = f"member {member_name}: {reason}"
        if _task(record) == _task(tried) and member_name in record.unconfirmed and record.failure != failure:
            changed: VolumeRecord = msgspec.structs.replace(record, failure=failure)
            await self._store.transact([Compare(key, item.mod_revision)], [Put(key, encode(changed))])

    # Change -----------------------------------------------------------------------------------------------------------

    async def change(self, name: str, **options: Unpack[VolumeOptions]) -> VolumeRecord:
        """Change what is given, keep the rest. NotFound, Invalid, Conflict."""
        record, revision = await self._find_ready(name)
        changed: VolumeRecord = msgspec.structs.replace(record, **_checked_options(options))
        rules.check_volume(changed)
        if changed != record:
            await self._replace(changed, revision)
        return changed

    async def _replace(
        self, record: VolumeRecord, revision: int, compares: Sequence[Compare] = (), puts: Sequence[Put | Delete] = ()
    ) -> None:
        key = volume_key(record.id)
        result = await self._store.transact([Compare(key, revision), *compares], [Put(key, encode(record)), *puts])
        if not result.succeeded:
            raise Conflict(f"the volume {record.name!r} was changed at the same time; look at it and try again")

    async def resize(self, name: str, size_bytes: int, force: bool = False) -> VolumeRecord:
        """Ask for a new size. Conflict for a smaller one without `force`: what lies beyond it is destroyed.

        Conflict too for growth while another size is not carried out everywhere. The same size once more asks again for
        a shrink that is not, and takes back a growth that is not.
        """
        record, revision = await self._find_ready(name)
        rules.check_size(size_bytes, record.block_size)
        if size_bytes == record.size_bytes and not record.shrinking:
            return record
        check_resize(record, size_bytes, force)
        facts = await map_facts(self._store, record.id)
        if facts.last is None:
            raise Conflict(f"the volume {name!r} has no partition map; restore the store from a backup")
        if size_bytes > record.size_bytes:
            candidates = await self._candidates_to_grow(record)
            now = (await self._store.range(volume_key(record.id))).revision
            growth = grown(record, size_bytes, facts.last, candidates, now)
            await self._replace(growth.record, revision, growth.compares, growth.puts)
            return growth.record
        changed = shrunk(record, size_bytes, facts.holders)
        await self._replace(changed, revision)
        await trim(self._store, changed)
        if not changed.unconfirmed:  # everything was lost: there is nobody to confirm
            changed, revision = await self._find(name)
            await self._replace(_finished(changed), revision)
        return changed

    async def _candidates_to_grow(self, record: VolumeRecord) -> list[Candidate]:
        """Those of the members that the volume was given to which run; any that run, if it was given to nobody."""
        running = await self._candidates(())
        fit = [one for one in running if not record.members or one.name in record.members]
        if not fit:
            raise Conflict(
                f"the volume {record.name!r} grows at member {', '.join(record.members)}, of which none is running"
            )
        return fit

    async def delete(self, name: str, force: bool = False) -> VolumeRecord:
        """Begin to delete: the record gets the state "deleting". Conflict while sessions are logged in and not `force`.

        Deleting what is being deleted already is no error.
        """
        record, revision = await self._find(name)
        if record.state == DELETING:
            return record
        sessions = self._sessions_on(record.id)
        if sessions and not force:
            raise Conflict(
                f"{sessions} session{'s are' if sessions > 1 else ' is'} logged in to the volume {name!r}; "
                "log out first, or use --force"
            )
        changed: VolumeRecord = msgspec.structs.replace(record, state=DELETING, unconfirmed=(), failure="")
        await self._replace(changed, revision)
        return changed

    async def forget(self, volume_id: str, member_name: str) -> bool:
        """After `member_name` dropped its data of a volume being deleted: remove its ranges from the map.

        With the last range the volume's other keys go too. True if nothing of the volume is left in the store.
        """
        key = volume_key(volume_id)
        item = await self._store.get(key)
        if item is None:
            return True
        record = decode(VolumeRecord, item.value, key)
        if record.state != DELETING:
            raise Conflict(f"the volume {record.name!r} is not being deleted")
        whose = [entry async for entry in entries(self._store, volume_id)]
        mine = [entry for entry in whose if entry.is_held_only_by(member_name)]
        is_last = len(mine) == len(whose)
        while mine or is_last:
            some = mine[-KEYS_AT_ONCE:]
            del mine[-KEYS_AT_ONCE:]
            compares = [Compare(map_key(volume_id, entry.start), entry.revision) for entry in some]
            deletes = [Delete(map_key(volume_id, entry.start)) for entry in some]
            if is_last and not mine:
                deletes += [Delete(target_name_key(record.iqn)), Delete(reservations_key(volume_id)), Delete(key)]
            # Ranges are not added to a volume being deleted: who adds some compares its key.
            result = await self._store.transact([Compare(key, item.mod_revision), *compares], deletes)
            if not result.succeeded:
                return False
            if not mine:
                return is_last
        return False


def _why_not(record: MemberRecord, is_alive: bool) -> str:
    """Why a member cannot take a volume."""
    if not is_alive:
        return f"member {record.name!r} is not running; start it, or leave it out"
    return f"member {record.name!r} is {record.state}; activate it, or leave it out"


def _task(record: VolumeRecord) -> tuple[object, ...]:
    """What the record asks its members to carry out."""
    return record.state, record.size_bytes, record.shrinking, record.growing_from_bytes


def _finished(record: VolumeRecord) -> VolumeRecord:
    """Everybody has carried out what the record asked for."""
    changed: VolumeRecord = msgspec.structs.replace(
        record,
        state=READY if record.state == CREATING else record.state,
        shrinking=False,
        growing_from_bytes=0,
        unconfirmed=(),
        failure="",
    )
    return changed


def _checked_options(options: VolumeOptions) -> "dict[str, object]":
    """Sequences as tuples, repeated names once; unknown options are a caller's bug (TypeError)."""
    unknown = options.keys() - VolumeOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"unknown volume options: {sorted(unknown)}")
    checked: dict[str, object] = dict(options)
    if "allow" in options:
        checked["allow"] = tuple(dict.fromkeys(options["allow"]))
    if "chap" in options:
        checked["chap"] = tuple(options["chap"])
    return checked

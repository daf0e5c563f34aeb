"""Taking a member out of the group for good.

A member that holds nothing goes in peace: one that has ended, or a drained one, which ends by itself when it sees that
it is being removed. With force, one that never comes back is given up: its ranges are lost, which volumes tell as
MEDIUM ERROR instead of waiting for it. Nothing of that happens while its lease lasts, nor for a lease's time after
that; and once its record says that it is being removed it gets no lease any more.

The record goes from "removing" to "removed" when nothing refers to the member any more; a removal that was interrupted
is done by asking for it again. The record stays, so that the member is recognised should it start after all.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from san_target.group.errors import Conflict, NotFound
from san_target.group.map_records import KEYS_AT_ONCE, MapEntry, entries
from san_target.group.membership import DRAINING, LEASE_TTL_S, REMOVED, REMOVING, is_member
from san_target.group.volumes import VOLUMES_PREFIX, Volumes
from san_target.metadata.schema import (
    MemberRecord,
    PlacementRecord,
    VolumeRecord,
    decode,
    encode,
    lease_key,
    map_key,
    member_key,
    volume_key,
)
from san_target.metadata.store import Compare, Item, Put, Store
from san_target.volume.partition_map import LOST

LOOK_S: Final = 0.25
TRIES: Final = 16


@dataclass(slots=True)
class Share:
    """What a member holds of a volume. lost: it is the only one."""

    volume: str
    ranges: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a removal: the shares that are lost, by volume."""

    name: str
    lost: list[Share] = field(default_factory=list)


class Removal:
    """sleep: waits so many seconds. ttl_s: how long a member's lease lasts after its last sign of life."""

    def __init__(
        self,
        store: Store,
        volumes: Volumes,
        own_name: str,
        sleep: Callable[[float], Awaitable[None]],
        ttl_s: float = LEASE_TTL_S,
    ) -> None:
        self._store = store
        self._volumes = volumes
        self._own_name = own_name
        self._sleep = sleep
        self._ttl_s = ttl_s
        self._looks = int(ttl_s * 1.5 / LOOK_S) + 1

    async def remove(self, name: str, force: bool = False) -> Report:
        """Take the member `name` out of the group. NotFound, Conflict (what hinders it), StoreError."""
        record, revision = await self._find(name)
        if name == self._own_name:
            raise Conflict(f"member {name!r} cannot remove itself; ask another member")
        if force and await self._store.get(lease_key(name)) is not None:
            await self._until_it_has_ended(name, f"member {name!r} is running; stop it first")
        is_alive = await self._store.get(lease_key(name)) is not None
        if is_alive and record.state not in (DRAINING, REMOVING):
            raise Conflict(f"member {name!r} is running; stop it first, or drain it")
        shares = await shares_of(self._store, name)
        if shares and not force:
            raise Conflict(
                f"member {name!r} holds {_in_words(shares)}; drain it first. If it never comes back, use --force: then "
                "these blocks are lost"
            )
        if record.state != REMOVING:
            await self._mark(record, revision, is_alive)
        await self._until_it_has_ended(
            name, f"member {name!r} is being removed, but still runs; stop it, and try again"
        )
        if shares:
            # A lease's key that is gone does not prove that its time is over: etcd can end a lease early.
            await self._sleep(self._ttl_s)
            await self._until_it_has_ended(name, f"member {name!r} has started meanwhile; stop it, and try again")
        lost = await self._give_up(name)
        record, revision = await self._find(name)
        await self._put(
            msgspec.structs.replace(record, state=REMOVED, serving=False), [Compare(member_key(name), revision)]
        )
        return Report(name, lost)

    async def _find(self, name: str) -> tuple[MemberRecord, int]:
        item = await self._store.get(member_key(name))
        record = None if item is None else decode(MemberRecord, item.value, item.key)
        if item is None or record is None or not is_member(record):
            raise NotFound(f"there is no member {name!r}; `member list` shows all")
        return record, item.mod_revision

    async def _mark(self, record: MemberRecord, revision: int, is_alive: bool) -> None:
        compares = [Compare(member_key(record.name), revision)]
        if not is_alive:
            compares.append(Compare(lease_key(record.name), 0))
        await self._put(msgspec.structs.replace(record, state=REMOVING), compares)

    async def _put(self, record: MemberRecord, compares: list[Compare]) -> None:
        result = await self._store.transact(compares, [Put(member_key(record.name), encode(record))])
        if not result.succeeded:
            raise Conflict(f"member {record.name!r} has changed at the same time (did it start?); try again")

    async def _until_it_has_ended(self, name: str, otherwise: str) -> None:
        for _ in range(self._looks):
            if await self._store.get(lease_key(name)) is None:
                return
            await self._sleep(LOOK_S)
        raise Conflict(otherwise)

    # What it holds ----------------------------------------------------------------------------------------------------

    async def _give_up(self, name: str) -> list[Share]:
        """Take the name out of every map and volume record; returns what nobody holds any more."""
        lost = []
        for record, _item in await _records(self._store):
            share = Share(record.name)
            for _ in range(TRIES):
                if await self._give_up_ranges(record, name, share):
                    break
            else:
                raise Conflict(f"the map of the volume {record.name!r} changes all the time; try again")
            if name in record.unconfirmed:
                await self._volumes.confirm(record, name)
            await self._forget_place(record.id, name)
            if share.ranges:
                lost.append(share)
        return lost

    async def _give_up_ranges(self, record: VolumeRecord, name: str, share: Share) -> bool:
        """False: another change came in between."""
        generation = (await self._store.range(volume_key(record.id))).revision
        held = [entry async for entry in entries(self._store, record.id) if _holds(entry.placement, name)]
        while held:
            some = held[-KEYS_AT_ONCE:]
            del held[-KEYS_AT_ONCE:]
            changed = [entry._replace(placement=without(entry.placement, name, generation)) for entry in some]
            result = await self._store.transact(
                [Compare(map_key(record.id, entry.start), entry.revision) for entry in some],
                [Put(map_key(record.id, entry.start), encode(entry.placement)) for entry in changed],
            )
            if not result.succeeded:
                return False
            _count_lost(changed, record.block_size, share)
        return True

    async def _forget_place(self, volume_id: str, name: str) -> None:
        """The volume is not wanted at this member any more."""
        for _ in range(TRIES):
            item = await self._store.get(volume_key(volume_id))
            record = None if item is None else decode(VolumeRecord, item.value, item.key)
            if item is None or record is None or name not in record.members:
                return
            members = tuple(one for one in record.members if one != name)
            put = Put(item.key, encode(msgspec.structs.replace(record, members=members)))
            if (await self._store.transact([Compare(item.key, item.mod_revision)], [put])).succeeded:
                return
        raise Conflict(f"the volume {volume_id} changes all the time; try again")


async def _records(store: Store) -> list[tuple[VolumeRecord, Item]]:
    items = (await store.range(VOLUMES_PREFIX)).items
    return [(decode(VolumeRecord, item.value, item.key), item) for item in items]


async def shares_of(store: Store, name: str) -> list[Share]:
    """What a member holds, by volume; those of which it holds nothing are left out. StoreError."""
    shares = []
    for record, _item in await _records(store):
        share = Share(record.name)
        async for entry in entries(store, record.id):
            if _holds(entry.placement, name):
                share.ranges += 1
                share.bytes += (entry.placement.end_lba - entry.start) * record.block_size
        if share.ranges:
            shares.append(share)
    return shares


def without(placement: PlacementRecord, name: str, generation: int) -> PlacementRecord:
    """The placement after `name` is gone. An owner's blocks are lost, under a new generation."""
    changed: PlacementRecord = msgspec.structs.replace(
        placement,
        copies=tuple(copy for copy in placement.copies if copy != name),
        joining="" if placement.joining == name else placement.joining,
    )
    if placement.owner == name:
        changed = msgspec.structs.replace(changed, owner=LOST, generation=generation)
    return changed


def _holds(placement: PlacementRecord, name: str) -> bool:
    return name in (placement.owner, placement.joining, *placement.copies)


def _count_lost(changed: list[MapEntry], block_size: int, share: Share) -> None:
    for entry in changed:
        if entry.placement.owner == LOST:
            share.ranges += 1
            share.bytes += (entry.placement.end_lba - entry.start) * block_size


def _in_words(shares: list[Share]) -> str:
    total = sum(share.bytes for share in shares)
    names = [repr(share.volume) for share in shares[:3]] + (["others"] if len(shares) > 3 else [])
    return f"{total} bytes of {', '.join(names)}"

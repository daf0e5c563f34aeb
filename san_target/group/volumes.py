"""The volumes of the group, as records: create, change, resize, delete.

Everything here is compare-and-set on the store; members see the result by their watches and carry it out. A volume
begins in the state "creating", until its blocks exist (`made`): a member makes missing blocks in that state only, since
later they would be lost ones. A volume that is deleted first gets the state "deleting". That record is the tombstone:
members drop their data because of it, never because a record is missing, and the last one removes it (`forget`).
"""

import uuid
from collections.abc import Callable, Sequence
from typing import TypedDict, Unpack

import msgspec

from san_target.group import rules
from san_target.group.errors import Conflict, Invalid, NotFound
from san_target.group.membership import member_names
from san_target.metadata.schema import (
    ChapRecord,
    GroupRecord,
    PlacementRecord,
    VolumeRecord,
    decode,
    encode,
    map_key,
    map_prefix,
    reservations_key,
    target_name_key,
    volume_key,
)
from san_target.metadata.store import Compare, Delete, Item, Put, Store

CREATING = "creating"
READY = "ready"
DELETING = "deleting"
VOLUMES_PREFIX = volume_key("")


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
    """The group's volumes, seen from the member `member_name`.

    sessions_on: how many sessions are logged in to a volume (by its id). new_id: 32 hex digits, never the same twice.
    All methods raise StoreError if the store fails.
    """

    def __init__(
        self,
        store: Store,
        group: GroupRecord,
        member_name: str,
        sessions_on: Callable[[str], int] = lambda volume_id: 0,
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        self._store = store
        self._group = group
        self._member_name = member_name
        self._sessions_on = sessions_on
        self._new_id = new_id

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
        """A new volume, all of it at one member (default: this one). Invalid, Conflict (name), NotFound (member)."""
        owners = tuple(members) or (self._member_name,)
        record = VolumeRecord(
            id=self._new_id(),
            name=name,
            iqn=rules.iqn_of(name),
            size_bytes=size_bytes,
            block_size=block_size,
            copies=copies,
            members=owners,
            state=CREATING,
        )
        record = msgspec.structs.replace(record, **_checked_options(options))
        rules.check_volume(record)
        await self._check_members(owners)
        began = await self._store.range(VOLUMES_PREFIX)
        self._check_name_is_free(name, record.iqn, began.items)
        placement = PlacementRecord(end_lba=size_bytes // block_size, owner=owners[0], generation=began.revision)
        key, name_key = volume_key(record.id), target_name_key(record.iqn)
        result = await self._store.transact(
            [Compare(key, 0), Compare(name_key, 0)],
            [
                Put(key, encode(record)),
                Put(name_key, record.id.encode()),
                Put(map_key(record.id, 0), encode(placement)),
            ],
        )
        if not result.succeeded:
            raise Conflict(f"a volume with the target name {record.iqn} exists already; choose another name")
        return record

    async def _check_members(self, owners: Sequence[str]) -> None:
        unknown = sorted(set(owners) - await member_names(self._store) - {self._member_name})
        if unknown:
            raise NotFound(f"there is no member {', '.join(map(repr, unknown))}; `member list` shows all")
        if len(owners) > 1:
            raise Invalid("spreading a volume over several members is not supported by this version: name one")

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

    async def made(self, volume_id: str) -> None:
        """The blocks of a volume in the state "creating" exist now: it is ready. Harmless in any other state."""
        key = volume_key(volume_id)
        item = await self._store.get(key)
        if item is None:
            return
        record = decode(VolumeRecord, item.value, key)
        if record.state == CREATING:
            await self._replace(msgspec.structs.replace(record, state=READY), item.mod_revision)

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
        """A new size. Conflict for a smaller one without `force`: what lies beyond it is destroyed.

        Conflict too for growth while a shrink is not carried out (`shrunk`); the same size once more asks for it again.
        """
        record, revision = await self._find_ready(name)
        rules.check_size(size_bytes, record.block_size)
        if size_bytes == record.size_bytes and not record.shrinking:
            return record
        if size_bytes > record.size_bytes and record.shrinking:
            raise Conflict(f"the volume {name!r} is being shrunk to {record.size_bytes} bytes; try again soon")
        if size_bytes < record.size_bytes and not force:
            raise Conflict(
                f"{size_bytes} bytes is smaller than the volume {name!r} ({record.size_bytes}): "
                "that destroys what lies beyond; use --force if you mean it"
            )
        shrinking = size_bytes <= record.size_bytes
        changed: VolumeRecord = msgspec.structs.replace(record, size_bytes=size_bytes, shrinking=shrinking)
        items = (await self._store.range(map_prefix(record.id))).items
        compares = [Compare(item.key, item.mod_revision) for item in items]
        await self._replace(changed, revision, compares, _fit(changed, items))
        return changed

    async def shrunk(self, volume_id: str, size_bytes: int) -> None:
        """Nothing is left beyond `size_bytes`: the volume may grow again. Harmless if it has another size by now."""
        key = volume_key(volume_id)
        item = await self._store.get(key)
        if item is None:
            return
        record = decode(VolumeRecord, item.value, key)
        if record.shrinking and record.size_bytes == size_bytes and record.state == READY:
            await self._replace(msgspec.structs.replace(record, shrinking=False), item.mod_revision)

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
        changed: VolumeRecord = msgspec.structs.replace(record, state=DELETING)
        await self._replace(changed, revision)
        return changed

    async def forget(self, volume_id: str, member_name: str) -> bool:
        """After `member_name` dropped its data of a volume being deleted: remove its map entries.

        With the last entry the volume's other keys go too. True if nothing of the volume is left in the store.
        """
        key = volume_key(volume_id)
        item = await self._store.get(key)
        if item is None:
            return True
        record = decode(VolumeRecord, item.value, key)
        if record.state != DELETING:
            raise Conflict(f"the volume {record.name!r} is not being deleted")
        entries = (await self._store.range(map_prefix(volume_id))).items
        mine = [entry for entry in entries if _held_only_by(entry, member_name)]
        deletes = [Delete(entry.key) for entry in mine]
        is_last = len(mine) == len(entries)
        if is_last:
            deletes += [Delete(target_name_key(record.iqn)), Delete(reservations_key(volume_id)), Delete(key)]
        if not deletes:
            return False
        compares = [Compare(entry.key, entry.mod_revision) for entry in entries]
        result = await self._store.transact([Compare(key, item.mod_revision), *compares], deletes)
        return result.succeeded and is_last

    async def map_of(self, name: str) -> list[tuple[int, PlacementRecord]]:
        """(start LBA, placement) by LBA. NotFound."""
        record = await self.named(name)
        return placements((await self._store.range(map_prefix(record.id))).items)


def placements(items: Sequence[Item]) -> list[tuple[int, PlacementRecord]]:
    """Map items of one volume as (start LBA, placement) by LBA."""
    return [(start_lba(item.key), decode(PlacementRecord, item.value, item.key)) for item in items]


def start_lba(key: str) -> int:
    """The LBA in a map key."""
    return int(key.rpartition("/")[2], 16)


def _held_only_by(entry: Item, member_name: str) -> bool:
    placement = decode(PlacementRecord, entry.value, entry.key)
    return {placement.owner, *placement.copies, *filter(None, (placement.joining,))} == {member_name}


def _fit(record: VolumeRecord, items: Sequence[Item]) -> list[Put | Delete]:
    """The changes that make the map end where the volume does."""
    end_lba = record.size_bytes // record.block_size
    changes: list[Put | Delete] = []
    entries = list(zip(items, placements(items), strict=True))
    for position, (item, (start, placement)) in enumerate(entries):
        if start >= end_lba:
            changes.append(Delete(item.key))
        elif placement.end_lba > end_lba or position == len(entries) - 1:
            changed = msgspec.structs.replace(placement, end_lba=end_lba)
            changes.append(Put(item.key, encode(changed)))
    return changes


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

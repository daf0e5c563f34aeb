"""A store made anew of what the pools hold, for a store that is lost or older than its pools.

Who holds what is taken from the pools' records: of two that hold the same blocks, the later placement counts. What only
a store knows (names, access rules, reservations) comes from a backup, however old; without one, volumes get new names,
and nobody may log in to them before the operator has said who.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec

from san_target.group import rules
from san_target.group.backup import Backup
from san_target.group.membership import ACTIVE, MEMBERS_PREFIX, REMOVED, REMOVING
from san_target.group.volumes import DELETING, READY, VOLUMES_PREFIX
from san_target.metadata.schema import (
    GROUP_KEY,
    GROUP_SECRET_KEY,
    GroupRecord,
    GroupSecretRecord,
    MemberRecord,
    PlacementRecord,
    RestoreRecord,
    VolumeRecord,
    decode,
    encode,
    map_key,
    map_prefix,
    member_key,
    reservations_key,
    target_name_key,
    volume_key,
)
from san_target.storage.pool_contents import PoolContents
from san_target.storage.records import HELD, HeldRecord
from san_target.volume.partition_map import LOST, PartitionMap, Placement, placement_of

NOBODY: Final = f"{rules.IQN_PREFIX}nobody"


class RebuildError(Exception):
    """What was given does not belong together."""


class Claim(NamedTuple):
    """A member holds blocks [start, end), under a generation."""

    generation: int
    start: int
    end: int
    member: str


@dataclass(slots=True)
class Found:
    """A volume of the new store. lost_bytes: that nobody holds; is_new: the backup does not know it."""

    record: VolumeRecord
    holders: tuple[str, ...]
    lost_bytes: int
    is_new: bool


@dataclass(slots=True)
class Rebuilt:
    """values: of the new store by key; revision: later ones must be greater; notes: what the operator should know."""

    values: dict[str, bytes] = field(default_factory=dict)
    revision: int = 0
    volumes: list[Found] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Fresh(NamedTuple):
    """New things: the id of this restore (32 hex digits), the group's name and secret for want of a backup."""

    restore_id: str
    group_name: str
    secret: bytes


def rebuild(
    pools: Mapping[str, PoolContents], backup: Backup | None, fresh: Fresh, names: Mapping[str, str]
) -> Rebuilt:
    """pools: by the name of their member, all there are; names: of volumes that the backup does not know, by id."""
    if not pools:
        raise RebuildError("give at least one pool: --pool NAME=PATH")
    made = Rebuilt()
    made.revision = max([0 if backup is None else backup.header.revision, *map(_newest, pools.values())]) + 1
    _check_pools(pools, backup)
    _put_group(made, pools, backup, fresh)
    _put_members(made, pools, backup)
    known = {} if backup is None else _volumes_of(backup)
    held: dict[str, dict[str, HeldRecord]] = {volume_id: {} for volume_id in known}
    for name, contents in sorted(pools.items()):
        for record in contents.volumes:
            held.setdefault(record.volume_id, {})[name] = record
        for volume_id, problem in sorted(contents.unreadable.items()):
            made.notes.append(f"member {name}: {problem}")
            held.setdefault(volume_id, {})
    for volume_id, records in sorted(held.items()):
        _put_volume(made, known.get(volume_id), volume_id, records, pools, backup, names)
    _check_names(made.volumes)
    return made


def _newest(contents: PoolContents) -> int:
    """The highest revision that a pool knows of."""
    generations = [piece.generation for record in contents.volumes for piece in record.held]
    return max([contents.pool.revision, *generations])


def _check_pools(pools: Mapping[str, PoolContents], backup: Backup | None) -> None:
    by_pool: dict[str, str] = {}
    groups = {contents.pool.group_id for contents in pools.values()} | ({backup.group.id} if backup else set())
    if len(groups) > 1:
        raise RebuildError(f"the pools and the backup belong to different groups: {', '.join(sorted(groups))}")
    for name, contents in sorted(pools.items()):
        rules.check_name(name)
        other = by_pool.setdefault(contents.pool.pool_id, name)
        if other != name:
            raise RebuildError(f"members {other} and {name} are given the same pool")
    for record in () if backup is None else _members_of(backup):
        name = by_pool.get(record.pool_id, record.name)
        if name != record.name:
            raise RebuildError(f"the pool given for member {name} is that of member {record.name} in the backup")


def _put_group(made: Rebuilt, pools: Mapping[str, PoolContents], backup: Backup | None, fresh: Fresh) -> None:
    """With restores by which every pool that is given is admitted, and any that has seen more is not."""
    if backup is None:
        group = GroupRecord(id=next(iter(pools.values())).pool.group_id, name=fresh.group_name)
        made.values[GROUP_SECRET_KEY] = encode(GroupSecretRecord(secret=fresh.secret))
    else:
        group = backup.group
        secret = backup.values.get(GROUP_SECRET_KEY) or encode(GroupSecretRecord(secret=fresh.secret))
        made.values[GROUP_SECRET_KEY] = secret
    seen = [restore.id for restore in group.restores]
    seen += sorted({contents.pool.restore for contents in pools.values()} - {"", *seen})
    restores = tuple(RestoreRecord(one, made.revision) for one in (*seen, fresh.restore_id))
    made.values[GROUP_KEY] = encode(msgspec.structs.replace(group, restores=restores))


def _put_members(made: Rebuilt, pools: Mapping[str, PoolContents], backup: Backup | None) -> None:
    """Under incarnations that are newer than any there was: each was begun by a revision of the store."""
    known = {record.name: record for record in (() if backup is None else _members_of(backup))}
    for name in sorted(known.keys() | pools.keys()):
        record = known.get(name) or MemberRecord(name=name, incarnation=0, portals=(), admin="")
        contents = pools.get(name)
        if contents is not None:
            state = ACTIVE if record.state in (REMOVING, REMOVED) else record.state
            record = msgspec.structs.replace(record, pool_id=contents.pool.pool_id, state=state)
        elif record.state not in (REMOVING, REMOVED):
            made.notes.append(f"member {name}: no pool was given; what it holds is taken from the backup")
        record = msgspec.structs.replace(record, incarnation=made.revision, serving=False)
        made.values[member_key(name)] = encode(record)


def _members_of(backup: Backup) -> list[MemberRecord]:
    return [decode(MemberRecord, value, key) for key, value in backup.values.items() if key.startswith(MEMBERS_PREFIX)]


def _volumes_of(backup: Backup) -> dict[str, VolumeRecord]:
    found = (decode(VolumeRecord, value, key) for key, value in backup.values.items() if key.startswith(VOLUMES_PREFIX))
    return {record.id: record for record in found}


# One volume -----------------------------------------------------------------------------------------------------------


def _put_volume(
    made: Rebuilt,
    known: VolumeRecord | None,
    volume_id: str,
    records: Mapping[str, HeldRecord],
    pools: Mapping[str, PoolContents],
    backup: Backup | None,
    names: Mapping[str, str],
) -> None:
    elsewhere = [] if known is None or backup is None else list(_claims_of_backup(backup, volume_id, pools.keys()))
    if not records and not elsewhere:
        what = f"volume {known.name}" if known else f"volume {volume_id}"
        made.notes.append(f"{what}: no pool holds anything of it (it was deleted, or its pool is not given); left out")
        return
    record = _record(made, known, volume_id, records, names)
    claims = [*elsewhere, *_claims_of_pools(records)]
    volume_map = painted(record.size_bytes // record.block_size, claims, made.revision, record.name)
    lost_bytes = volume_map.snapshot().lost_blocks * record.block_size
    made.volumes.append(Found(record, tuple(sorted(volume_map.snapshot().holders)), lost_bytes, known is None))
    made.values[volume_key(volume_id)] = encode(record)
    made.values[target_name_key(record.iqn)] = volume_id.encode()
    for start, placement in volume_map.records().items():
        made.values[map_key(volume_id, start)] = encode(placement)
    reservations = None if backup is None else backup.values.get(reservations_key(volume_id))
    if reservations is not None:
        made.values[reservations_key(volume_id)] = reservations
        made.notes.append(f"volume {record.name}: its reservations are those of the backup")


def _record(
    made: Rebuilt,
    known: VolumeRecord | None,
    volume_id: str,
    records: Mapping[str, HeldRecord],
    names: Mapping[str, str],
) -> VolumeRecord:
    block_sizes = {record.block_size for record in records.values()} | ({known.block_size} if known else set())
    if len(block_sizes) > 1:
        raise RebuildError(f"volume {volume_id} has blocks of {sorted(block_sizes)} bytes at different places")
    # The largest: what was cut off already at some member is lost there, and what was not is kept.
    size_bytes = max([record.size_bytes for record in records.values()] or [known.size_bytes if known else 0])
    if known is None:
        name = names.get(volume_id, f"recovered-{volume_id[:8]}")
        made.notes.append(
            f"volume {name}: the backup does not know it; nobody may log in before `volume set {name} --allow ...`"
        )
        return VolumeRecord(
            id=volume_id,
            name=name,
            iqn=rules.iqn_of(name),
            size_bytes=size_bytes,
            block_size=block_sizes.pop(),
            allow=(NOBODY,),
        )
    if size_bytes != known.size_bytes:
        made.notes.append(f"volume {known.name}: it has {size_bytes} bytes, {known.size_bytes} in the backup")
    changed: VolumeRecord = msgspec.structs.replace(
        known,
        size_bytes=size_bytes,
        state=DELETING if known.state == DELETING else READY,
        shrinking=False,
        growing_from_bytes=0,
        unconfirmed=(),
        failure="",
    )
    return changed


def _claims_of_pools(records: Mapping[str, HeldRecord]) -> Iterable[Claim]:
    for name, record in records.items():
        for piece in record.held:
            if piece.state == HELD:
                yield Claim(piece.generation, piece.start_lba, piece.end_lba, name)


def _claims_of_backup(backup: Backup, volume_id: str, given: Iterable[str]) -> Iterable[Claim]:
    """What members hold whose pools are not given."""
    missing = set(given)
    prefix = map_prefix(volume_id)
    for key, value in backup.values.items():
        if key.startswith(prefix):
            record = decode(PlacementRecord, value, key)
            placement = placement_of(record)
            if placement.owner != LOST and placement.owner not in missing:
                yield Claim(placement.generation, int(key.removeprefix(prefix), 16), record.end_lba, placement.owner)


def painted(blocks: int, claims: Iterable[Claim], lost_generation: int, name: str) -> PartitionMap:
    """The map by which each block is at the member with the latest claim to it; lost where there is none.

    RebuildError: two members have the same claim to a block.
    """
    made = PartitionMap(blocks, Placement(LOST, generation=lost_generation))
    for claim in sorted(claims):
        end = min(claim.end, blocks)
        if claim.start >= end:
            continue
        for start, _end, placement in made.snapshot().ranges(claim.start):
            if start >= end:
                break
            if placement.owner not in (LOST, claim.member) and placement.generation == claim.generation:
                raise RebuildError(
                    f"members {placement.owner} and {claim.member} hold the same blocks of volume {name} (LBA "
                    f"{max(start, claim.start)}) under the same generation; is a pool given twice, as a copy?"
                )
        made.replace(claim.start, end, Placement(claim.member, generation=claim.generation))
    return made


def _check_names(volumes: Iterable[Found]) -> None:
    by_iqn: dict[str, str] = {}
    for found in volumes:
        rules.check_name(found.record.name)
        other = by_iqn.setdefault(found.record.iqn, found.record.id)
        if other != found.record.id:
            raise RebuildError(
                f"volumes {other} and {found.record.id} would both be named {found.record.name!r}; give one another "
                f"name: --volume {found.record.id}=NAME"
            )

"""The group's own record and its secret: made by the first member on an empty store, found by all later ones."""

from typing import Final

import msgspec

from san_target.group.errors import Conflict
from san_target.metadata.schema import (
    GROUP_KEY,
    GROUP_SECRET_KEY,
    GroupRecord,
    GroupSecretRecord,
    decode,
    encode,
)
from san_target.metadata.store import Compare, Put, Store, StoreError

PORTAL_GROUP_TAG = 1  # one for all members: it is part of the I_T nexus, which a move must not change
SECRET_BYTES: Final = 32


async def ensure_group(store: Store, name: str, new_id: str, new_secret: bytes) -> GroupRecord:
    """The group record; if the store has none, made with this name and id (32 hex digits), and this secret.

    Refused for a store that holds other records but no group, and for a group of another name: both are a wrong
    --store. Raises StoreError.
    """
    record = await find_group(store)
    if record is None:
        if (await store.range("")).items and await store.get(GROUP_KEY) is None:
            raise StoreError(
                "the store holds records but no group: it is damaged, or was not restored completely; restore it from "
                "a backup"
            )
        mine = GroupRecord(id=new_id, name=name, portal_group_tag=PORTAL_GROUP_TAG)
        await store.transact(
            [Compare(GROUP_KEY, 0), Compare(GROUP_SECRET_KEY, 0)],
            [Put(GROUP_KEY, encode(mine)), Put(GROUP_SECRET_KEY, encode(GroupSecretRecord(secret=new_secret)))],
        )
        record = await find_group(store)
        if record is None:
            raise StoreError("the group's record vanished from the store while this member started; start it again")
    if record.name != name:
        raise StoreError(f"the store belongs to the group {record.name!r}, not {name!r}; check --store and --group")
    return record


async def find_group(store: Store) -> GroupRecord | None:
    item = await store.get(GROUP_KEY)
    return None if item is None else decode(GroupRecord, item.value, GROUP_KEY)


async def group_secret(store: Store, new_secret: bytes) -> bytes:
    """What members of the group prove to each other, made of `new_secret` where a store has none. StoreError."""
    for _ in range(2):
        item = await store.get(GROUP_SECRET_KEY)
        if item is not None:
            secret = decode(GroupSecretRecord, item.value, GROUP_SECRET_KEY).secret
            if len(secret) < SECRET_BYTES:
                raise StoreError("the group's secret in the store is damaged; restore the store from a backup")
            return secret
        record = GroupSecretRecord(secret=new_secret)
        await store.transact([Compare(GROUP_SECRET_KEY, 0)], [Put(GROUP_SECRET_KEY, encode(record))])
    raise StoreError("the group's secret vanished from the store; start this member again")


async def set_portal_policy(store: Store, policy: str) -> GroupRecord:
    """Change how portals answer logins. Raises Conflict if another change came in between."""
    item = await store.get(GROUP_KEY)
    if item is None:
        raise StoreError("the store has no group record; restore it from a backup")
    record = msgspec.structs.replace(decode(GroupRecord, item.value, GROUP_KEY), portal_policy=policy)
    result = await store.transact([Compare(GROUP_KEY, item.mod_revision)], [Put(GROUP_KEY, encode(record))])
    if not result.succeeded:
        raise Conflict("the portal group was changed at the same time; look at it and try again")
    return record

"""A member in the group: its record, its incarnation, and the lease that says it is alive.

A start makes a new incarnation. Whoever finds a live lease of the same name refuses to start, unless the lease names
the pool whose lock it holds itself: then the process that was granted it is dead. So does one that was removed from the
group, one whose pool is another member's, and one whose program does not fit those that run.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypedDict, Unpack

import msgspec

from san_target.group.compatibility import Versions, refusal
from san_target.group.errors import Conflict
from san_target.metadata.schema import LeaseRecord, MemberRecord, decode, encode, lease_key, member_key
from san_target.metadata.store import Compare, Put, Store

LEASE_TTL_S = 10.0
RENEWALS_PER_TTL = 3
DRIFT_MARGIN = 0.1  # share of the TTL by which a lease counts as over early, for clocks that run apart
TELL_TRIES: Final = 8
TELL_SPACE_S: Final = 60.0

ACTIVE: Final = "active"
DRAINING: Final = "draining"
REMOVING: Final = "removing"
REMOVED: Final = "removed"
MEMBERS_PREFIX: Final = member_key("")
LEASES_PREFIX: Final = lease_key("")


class Removed(Conflict):
    """This member was given up by the operator: it must not serve, now or later."""


class Told(TypedDict, total=False):
    """What a member changes in its own record."""

    portals: tuple[str, ...]
    admin: str
    peer: str
    serving: bool
    capacity_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """pool_id: names the pool that this process locks. has_volumes: blocks of some volume lie in it."""

    pool_id: str
    has_volumes: bool = False
    capacity_bytes: int = 0
    free_bytes: int = 0


class Membership:
    """One incarnation of one member after another. clock: CLOCK_BOOTTIME seconds."""

    def __init__(
        self,
        store: Store,
        name: str,
        pool: PoolFacts,
        clock: Callable[[], float],
        ttl_s: float = LEASE_TTL_S,
        versions: Versions | None = None,
    ) -> None:
        self._store = store
        self._name = name
        self._pool = pool
        self._clock = clock
        self._ttl_s = ttl_s
        self._versions = versions or Versions()
        self._lease_id = 0
        self._valid_until_s = float("-inf")
        self.record: MemberRecord | None = None

    @property
    def incarnation(self) -> int:
        return 0 if self.record is None else self.record.incarnation

    @property
    def lease_id(self) -> int:
        """0 = there is none."""
        return self._lease_id

    @property
    def renewal_interval_s(self) -> float:
        return self._ttl_s / RENEWALS_PER_TTL

    @property
    def valid_until_s(self) -> float:
        """Until when, by the clock, the lease surely holds. Counted from before the grant or renewal was asked for."""
        return self._valid_until_s

    def is_valid(self) -> bool:
        """Whether the lease surely holds now."""
        return self._clock() < self._valid_until_s

    async def join(self, portals: tuple[str, ...], admin: str, peer: str = "") -> MemberRecord:
        """Begin a new incarnation with these addresses and take its lease, in one revision. Conflict, StoreError.

        Others see that it does not serve yet (`tell(serving=True)`).
        """
        asked_at_s = self._clock()
        lease_id = await self._store.grant_lease(self._ttl_s)
        try:
            record = await self._register(lease_id, portals, admin, peer)
        except BaseException:
            await self._store.revoke_lease(lease_id)
            raise
        self._lease_id = lease_id
        self._valid_until_s = asked_at_s + self._ttl_s * (1 - DRIFT_MARGIN)
        self.record = record
        return record

    async def _register(self, lease_id: int, portals: tuple[str, ...], admin: str, peer: str) -> MemberRecord:
        key, alive_key = member_key(self._name), lease_key(self._name)
        alive = await self._store.get(alive_key)
        if alive is not None:
            other = decode(LeaseRecord, alive.value, alive_key)
            if other.pool_id != self._pool.pool_id:
                raise Conflict(
                    f"a member named {self._name!r} is running with another pool (or ended less than "
                    f"{self._ttl_s:.0f} s ago); give this one another --name, or its own --dir"
                )
        item = await self._store.get(key)
        last = None if item is None else decode(MemberRecord, item.value, key)
        self._check_not_removed(last)
        self._check_company([one for one in await member_records(self._store) if one.name != self._name])
        await self._check_versions()
        record = self._next(last, portals, admin, peer)
        lease = LeaseRecord(name=self._name, incarnation=record.incarnation, pool_id=self._pool.pool_id)
        result = await self._store.transact(
            [
                Compare(key, item.mod_revision if item else 0),
                Compare(alive_key, alive.mod_revision if alive else 0),
            ],
            [Put(key, encode(record)), Put(alive_key, encode(lease), lease_id)],
        )
        if not result.succeeded:
            raise Conflict(f"another process started as member {self._name!r} at the same time; start one only")
        return record

    def _next(self, last: MemberRecord | None, portals: tuple[str, ...], admin: str, peer: str) -> MemberRecord:
        """The record of the incarnation after `last`. A drain is the operator's will, and outlasts a restart."""
        is_new = last is None or last.state == REMOVED
        return MemberRecord(
            version=self._versions.schema,
            name=self._name,
            incarnation=1 if last is None else last.incarnation + 1,
            portals=portals,
            admin=admin,
            peer=peer,
            state=ACTIVE if last is None or is_new else last.state,
            pool_id=self._pool.pool_id,
            capacity_bytes=self._pool.capacity_bytes,
            free_bytes=self._pool.free_bytes,
            program=self._versions.program,
            protocol_min=self._versions.protocol_min,
            protocol_max=self._versions.protocol_max,
        )

    def _check_not_removed(self, last: MemberRecord | None) -> None:
        if last is None or last.state not in (REMOVING, REMOVED):
            return
        if last.state == REMOVED and last.pool_id != self._pool.pool_id and not self._pool.has_volumes:
            return  # a new disk, under the name of an old one
        raise Removed(
            f"member {self._name!r} was removed from the group, and the group has given up what lay in this pool; "
            "to join as a new member, start with an empty --dir"
        )

    def _check_company(self, others: Iterable[MemberRecord]) -> None:
        """A pool belongs to one name: the map knows its blocks by that."""
        for other in others:
            if other.pool_id == self._pool.pool_id:
                if other.state in (REMOVING, REMOVED):
                    raise Removed(
                        f"this pool belonged to member {other.name!r}, which was removed from the group; "
                        "to join as a new member, start with an empty --dir"
                    )
                raise Conflict(
                    f"this pool belongs to member {other.name!r}; start with --name {other.name}, or with another --dir"
                )

    async def _check_versions(self) -> None:
        alive = {item.key.removeprefix(LEASES_PREFIX) for item in (await self._store.range(LEASES_PREFIX)).items}
        others = [one for one in await member_records(self._store) if one.name in alive and one.name != self._name]
        reason = refusal(self._versions, others)
        if reason:
            raise Conflict(reason)

    async def tell(self, **changes: Unpack[Told]) -> None:
        """Change what others know of this incarnation.

        Removed: the operator has given this member up. Conflict: another incarnation has begun. StoreError.
        """
        key = member_key(self._name)
        for _ in range(TELL_TRIES):
            item = await self._store.get(key)
            if item is None or self.record is None:
                raise Removed(f"member {self._name!r} was removed from the group")
            found = decode(MemberRecord, item.value, key)
            if found.state in (REMOVING, REMOVED):
                raise Removed(f"member {self._name!r} was removed from the group")
            if found.incarnation != self.record.incarnation:
                break
            record = msgspec.structs.replace(found, **changes)
            if record == found:
                return
            if (await self._store.transact([Compare(key, item.mod_revision)], [Put(key, encode(record))])).succeeded:
                self.record = record
                return
        raise Conflict(f"another process has started as member {self._name!r}")

    async def renew(self) -> bool:
        """Renew the lease; False if it has ended, and with it this incarnation. StoreError if the store is away."""
        asked_at_s = self._clock()
        if not await self._store.renew_lease(self._lease_id):
            self._valid_until_s = float("-inf")
            return False
        self._valid_until_s = asked_at_s + self._ttl_s * (1 - DRIFT_MARGIN)
        return True

    async def leave(self) -> None:
        """Give the lease back: others see at once that this member is gone."""
        self._valid_until_s = float("-inf")
        if self._lease_id:
            lease_id, self._lease_id = self._lease_id, 0
            await self._store.revoke_lease(lease_id)


async def member_records(store: Store) -> list[MemberRecord]:
    """Every member that ever joined, by name, removed ones too."""
    return [decode(MemberRecord, item.value, item.key) for item in (await store.range(MEMBERS_PREFIX)).items]


def is_member(record: MemberRecord) -> bool:
    """Is it a member still, or at most on its way out?"""
    return record.state != REMOVED


def worth_telling(told_bytes: int, free_bytes: int, since_s: float) -> bool:
    """Should free space be told anew? When it changed by a twentieth, but not more often than every minute."""
    return since_s >= TELL_SPACE_S and abs(free_bytes - told_bytes) * 20 > max(told_bytes, 1)

"""A member in the group: its record, its incarnation, and the lease that says it is alive.

A start makes a new incarnation. Whoever finds a live lease of the same name refuses to start, unless the lease names
the pool whose lock it holds itself: then the process that was granted it is dead.
"""

from collections.abc import Callable

import msgspec

from san_target.group.errors import Conflict
from san_target.metadata.schema import LeaseRecord, MemberRecord, decode, encode, lease_key, member_key
from san_target.metadata.store import Compare, Put, Store

LEASE_TTL_S = 10.0
RENEWALS_PER_TTL = 3
DRIFT_MARGIN = 0.1  # share of the TTL by which a lease counts as over early, for clocks that run apart


class Membership:
    """One incarnation of one member. clock: CLOCK_BOOTTIME seconds; pool_id: names the pool that this process locks."""

    def __init__(
        self, store: Store, name: str, pool_id: str, clock: Callable[[], float], ttl_s: float = LEASE_TTL_S
    ) -> None:
        self._store = store
        self._name = name
        self._pool_id = pool_id
        self._clock = clock
        self._ttl_s = ttl_s
        self._lease_id = 0
        self._valid_until_s = float("-inf")
        self.record: MemberRecord | None = None

    @property
    def incarnation(self) -> int:
        return 0 if self.record is None else self.record.incarnation

    @property
    def renewal_interval_s(self) -> float:
        return self._ttl_s / RENEWALS_PER_TTL

    def is_valid(self) -> bool:
        """Whether the lease surely holds now. Counted from before the grant or renewal was asked for."""
        return self._clock() < self._valid_until_s

    async def join(self, portals: tuple[str, ...], admin: str, peer: str = "") -> MemberRecord:
        """Begin a new incarnation with these addresses and take its lease, in one revision. Conflict, StoreError."""
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
            if other.pool_id != self._pool_id:
                raise Conflict(
                    f"a member named {self._name!r} is running with another pool (or ended less than "
                    f"{self._ttl_s:.0f} s ago); give this one another --name, or its own --dir"
                )
        item = await self._store.get(key)
        last = 0 if item is None else decode(MemberRecord, item.value, key).incarnation
        record = MemberRecord(name=self._name, incarnation=last + 1, portals=portals, admin=admin, peer=peer)
        lease = LeaseRecord(name=self._name, incarnation=record.incarnation, pool_id=self._pool_id)
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

    async def tell(self, portals: tuple[str, ...], admin: str) -> None:
        """Change the addresses of this incarnation. Conflict: another incarnation has begun."""
        key = member_key(self._name)
        item = await self._store.get(key)
        if self.record is None or item is None or decode(MemberRecord, item.value, key) != self.record:
            raise Conflict(f"another process has started as member {self._name!r}")
        record = msgspec.structs.replace(self.record, portals=portals, admin=admin)
        result = await self._store.transact([Compare(key, item.mod_revision)], [Put(key, encode(record))])
        if not result.succeeded:
            raise Conflict(f"another process has started as member {self._name!r}")
        self.record = record

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


async def member_names(store: Store) -> set[str]:
    """All members that ever joined and were not removed."""
    prefix = member_key("")
    return {item.key.removeprefix(prefix) for item in (await store.range(prefix)).items}

"""The store in memory, for tests and simulation: clients share one `MemoryData`, nothing outlives the process."""

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

from sortedcontainers import SortedDict

from san_target.metadata.changes import batches, check_kept, check_transaction
from san_target.metadata.store import (
    PAGE_ITEMS,
    Compare,
    Delete,
    Event,
    Item,
    LeaseEnded,
    Put,
    Snapshot,
    StoreError,
    TransactionResult,
    WatchBatch,
)

HISTORY_REVISIONS = 10_000


class MemoryData:
    """What the clients share. clock: seconds, default the running event loop's time (virtual in a simulation)."""

    def __init__(self, clock: Callable[[], float] | None = None, history_revisions: int = HISTORY_REVISIONS) -> None:
        self._clock = clock
        self._history_revisions = history_revisions
        self._items: SortedDict[str, Item] = SortedDict()
        self._history: deque[tuple[int, Event]] = deque()
        self._leases: dict[int, tuple[float, float]] = {}  # id -> (expiry, TTL)
        self._lease_ids = itertools.count(1)
        self._compacted = 0
        self.revision = 0
        self.watchers: dict[asyncio.Event, None] = {}  # in the order they came

    def now(self) -> float:
        return asyncio.get_running_loop().time() if self._clock is None else self._clock()

    def get(self, key: str) -> Item | None:
        self.reap()
        item: Item | None = self._items.get(key)
        return item

    def range(self, prefix: str) -> Snapshot:
        self.reap()
        keys = self._items.irange(prefix, prefix + "\U0010ffff")
        return Snapshot(tuple(self._items[key] for key in keys), self.revision)

    def transact(self, compares: Sequence[Compare], operations: Sequence[Put | Delete]) -> TransactionResult:
        self.reap()
        for compare in compares:
            item = self._items.get(compare.key)
            if (item.mod_revision if item else 0) != compare.mod_revision:
                return TransactionResult(False, self.revision)
        for operation in operations:
            if isinstance(operation, Put) and operation.lease_id and operation.lease_id not in self._leases:
                raise LeaseEnded(f"lease {operation.lease_id} has ended")
        self._apply(operations)
        return TransactionResult(True, self.revision)

    def _apply(self, operations: Sequence[Put | Delete]) -> None:
        self.revision += 1
        for operation in operations:
            old = self._items.get(operation.key)
            item = None
            if isinstance(operation, Put):
                created = old.create_revision if old else self.revision
                item = Item(operation.key, operation.value, created, self.revision, operation.lease_id)
                self._items[operation.key] = item
            elif old:
                del self._items[operation.key]
            else:
                continue
            self._history.append((self.revision, Event(operation.key, item)))
        self._compacted = max(self._compacted, self.revision - self._history_revisions)
        while self._history and self._history[0][0] <= self._compacted:
            self._history.popleft()
        for changed in self.watchers:
            changed.set()

    def changes(self, prefix: str, from_revision: int) -> tuple[list[WatchBatch], int]:
        self.reap()
        check_kept(from_revision, self._compacted)
        found = [
            (revision, event)
            for revision, event in self._history
            if revision >= from_revision and event.key.startswith(prefix)
        ]
        return batches(found), max(from_revision, self.revision + 1)

    def grant_lease(self, ttl_s: float) -> int:
        lease_id = next(self._lease_ids)
        self._leases[lease_id] = (self.now() + ttl_s, ttl_s)
        for changed in self.watchers:  # they wait until the next lease may end
            changed.set()
        return lease_id

    def renew_lease(self, lease_id: int) -> bool:
        self.reap()
        lease = self._leases.get(lease_id)
        if lease is None:
            return False
        self._leases[lease_id] = (self.now() + lease[1], lease[1])
        return True

    def revoke_lease(self, lease_id: int) -> None:
        if self._leases.pop(lease_id, None) is None:
            return
        keys = [key for key, item in self._items.items() if item.lease_id == lease_id]
        if keys:
            self._apply([Delete(key) for key in keys])

    def reap(self) -> None:
        now = self.now()
        for lease_id in [lease_id for lease_id, (expiry, _) in self._leases.items() if expiry <= now]:
            self.revoke_lease(lease_id)

    def next_expiry_in_s(self) -> float | None:
        """Seconds until a lease may end; None = there is none."""
        if not self._leases:
            return None
        return max(0.0, min(expiry for expiry, _ in self._leases.values()) - self.now())


class MemoryStore:
    """`Store`: one client of a `MemoryData` (its own if none is given)."""

    def __init__(self, data: MemoryData | None = None) -> None:
        self.data = MemoryData() if data is None else data
        self._is_open = False
        self._watchers: dict[asyncio.Event, None] = {}

    async def open(self) -> None:
        self._is_open = True

    async def close(self) -> None:
        self._is_open = False
        for changed in self._watchers:
            changed.set()

    def _opened(self) -> MemoryData:
        if not self._is_open:
            raise StoreError("the store is not open")
        return self.data

    async def get(self, key: str) -> Item | None:
        return self._opened().get(key)

    async def range(self, prefix: str) -> Snapshot:
        return self._opened().range(prefix)

    async def pages(self, prefix: str) -> AsyncIterator[Snapshot]:
        whole = self._opened().range(prefix)
        for start in range(0, max(1, len(whole.items)), PAGE_ITEMS):
            yield Snapshot(whole.items[start : start + PAGE_ITEMS], whole.revision)

    async def transact(self, compares: Sequence[Compare], operations: Sequence[Put | Delete]) -> TransactionResult:
        check_transaction(compares, operations)
        return self._opened().transact(compares, operations)

    async def watch(self, prefix: str, from_revision: int) -> AsyncIterator[WatchBatch]:
        """Ends without an error only when this client is closed."""
        changed = asyncio.Event()
        self._watchers[changed] = self.data.watchers[changed] = None
        revision = from_revision
        try:
            while self._is_open:
                changed.clear()
                batches, revision = self.data.changes(prefix, revision)
                for batch in batches:
                    yield batch
                if revision <= self.data.revision:
                    continue
                try:
                    async with asyncio.timeout(self.data.next_expiry_in_s()):
                        await changed.wait()
                except TimeoutError:
                    pass
        finally:
            del self._watchers[changed], self.data.watchers[changed]

    def hurry(self) -> None:
        """Nothing: watches are told of each change when it is made."""

    async def skip_to(self, revision: int) -> None:
        data = self._opened()
        data.revision = max(data.revision, revision)

    async def grant_lease(self, ttl_s: float) -> int:
        return self._opened().grant_lease(ttl_s)

    async def renew_lease(self, lease_id: int) -> bool:
        return self._opened().renew_lease(lease_id)

    async def revoke_lease(self, lease_id: int) -> None:
        self._opened().revoke_lease(lease_id)

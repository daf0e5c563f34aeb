"""The store on etcd 3.4 or newer, for groups over several machines.

Keys lie below a prefix of their own, so an etcd may be shared. Revisions are etcd's: they also count what others write.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence

from san_target.metadata import etcd_connection as grpc
from san_target.metadata.changes import check_transaction
from san_target.metadata.etcd_client import RANGE, EtcdClient, Timeouts, prefix_end
from san_target.metadata.etcd_connection import Refused
from san_target.metadata.etcd_durability import check_durability
from san_target.metadata.etcd_messages import (
    Answer,
    DeleteRequest,
    LeaseAnswer,
    LeaseGrant,
    LeaseRequest,
    Operation,
    PutRequest,
    RangeAnswer,
    RangeRequest,
    RevisionCompare,
    TxnAnswer,
    TxnRequest,
)
from san_target.metadata.etcd_url import EtcdOptions
from san_target.metadata.etcd_watch import item_of, watch
from san_target.metadata.store import (
    PAGE_ITEMS,
    Compare,
    Delete,
    Item,
    LeaseEnded,
    Put,
    Snapshot,
    TransactionResult,
    WatchBatch,
)

TXN = "/etcdserverpb.KV/Txn"
LEASE_GRANT = "/etcdserverpb.Lease/LeaseGrant"
LEASE_REVOKE = "/etcdserverpb.Lease/LeaseRevoke"
LEASE_KEEP_ALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"
FETCHED_ITEMS = 5000  # of a long range at once; for each such request etcd walks over all keys that follow
RANGE_TRIES = 3
RENEWAL_TRIES = 4
SKIPPED_AT_ONCE = 128


class EtcdStore:
    """`Store` on the etcd that `options` tell of."""

    def __init__(self, options: EtcdOptions, timeouts: Timeouts | None = None) -> None:
        self._prefix = options.prefix
        self._client = EtcdClient(options, timeouts or Timeouts())
        self._renewed_at = (0, 0)  # connection and raft term of the last renewal that was confirmed

    async def open(self) -> None:
        await self._client.open()
        try:
            await check_durability(self._client.options, self._raft_write)
        except BaseException:
            self._client.close()
            raise

    async def _raft_write(self) -> None:
        """Something that every etcd process writes down, and that changes no key."""
        await self.revoke_lease(await self.grant_lease(1))

    async def close(self) -> None:
        self._client.close()

    async def get(self, key: str) -> Item | None:
        answer = await self._range(RangeRequest(key=self._key(key)))
        return item_of(answer.kvs[0], self._prefix) if answer.kvs else None

    async def range(self, prefix: str) -> Snapshot:
        for _ in range(RANGE_TRIES):
            try:
                return await self._range_pages(prefix)
            except Refused as error:  # compacted between two pages
                reason = error.text
        raise self._client.unavailable(f"forgets revisions faster than they can be read ({reason})")

    async def _range_pages(self, prefix: str) -> Snapshot:
        items: list[Item] = []
        revision = 0
        async for page in self._pages(prefix):
            items += page.items
            revision = page.revision
            await asyncio.sleep(0)
        return Snapshot(tuple(items), revision)

    async def pages(self, prefix: str) -> AsyncIterator[Snapshot]:
        try:
            async for page in self._pages(prefix):
                yield page
        except Refused as error:
            raise self._client.unavailable(f"forgets revisions faster than they can be read ({error.text})") from None

    async def _pages(self, prefix: str) -> AsyncIterator[Snapshot]:
        """All pages are of the revision of the first one. Refused: that is compacted by now."""
        key = self._key(prefix)
        request = RangeRequest(key=key, range_end=prefix_end(key), limit=FETCHED_ITEMS)
        while True:
            answer = await self._range(request)
            request.revision = request.revision or answer.header.revision
            for start in range(0, max(1, len(answer.kvs)), PAGE_ITEMS):
                found = answer.kvs[start : start + PAGE_ITEMS]
                yield Snapshot(tuple(item_of(one, self._prefix) for one in found), request.revision)
            if not answer.more or not answer.kvs:
                return
            request.key = answer.kvs[-1].key + b"\0"

    async def _range(self, request: RangeRequest) -> RangeAnswer:
        return await self._client.call(RANGE, request, RangeAnswer, repeatable=True, linearizable=True)

    async def transact(self, compares: Sequence[Compare], operations: Sequence[Put | Delete]) -> TransactionResult:
        check_transaction(compares, operations)
        request = TxnRequest(
            [RevisionCompare(self._key(compare.key), compare.mod_revision) for compare in compares],
            [self._operation(operation) for operation in operations],
        )
        try:
            answer = await self._client.call(TXN, request, TxnAnswer, repeatable=False, linearizable=True)
        except Refused as error:
            if error.code == grpc.NOT_FOUND:
                raise LeaseEnded("the lease has ended; nothing was changed") from None
            raise
        return TransactionResult(answer.succeeded, answer.header.revision)

    def _operation(self, operation: Put | Delete) -> Operation:
        key = self._key(operation.key)
        if isinstance(operation, Put):
            return Operation(put=PutRequest(key, operation.value, operation.lease_id))
        return Operation(delete=DeleteRequest(key))

    def watch(self, prefix: str, from_revision: int) -> AsyncIterator[WatchBatch]:
        return watch(self._client, prefix, from_revision)

    def hurry(self) -> None:
        """Nothing: etcd tells of each change when it is made."""

    async def skip_to(self, revision: int) -> None:
        """By changes, many at once: etcd gives out its revisions one by one, some ten thousand in a second."""
        key = "skipped"
        reached = (await self.range(key)).revision
        while reached < revision:
            some = min(revision - reached, SKIPPED_AT_ONCE)
            results = await asyncio.gather(*(self.transact([], [Put(key, b"")]) for _ in range(some)))
            reached = max(result.revision for result in results)
        await self.transact([], [Delete(key)])

    async def grant_lease(self, ttl_s: float) -> int:
        """At least so long: etcd counts whole seconds, and has a minimum. One whose answer was lost ends by itself."""
        request = LeaseGrant(max(1, math.ceil(ttl_s)))
        return (await self._client.call(LEASE_GRANT, request, LeaseAnswer, repeatable=True, linearizable=False)).id

    async def renew_lease(self, lease_id: int) -> bool:
        """A renewal is the leader's alone, not agreed on, and one that was replaced unawares says yes to it too.

        So it counts only if the leader of the same term then still had its quorum: a linearizable read, the raft terms
        before and after, all at one endpoint, where terms only grow.
        """
        try:
            async with asyncio.timeout(self._client.timeouts.request_s):
                return await self._renew(lease_id)
        except TimeoutError:
            raise self._client.unavailable("did not renew the lease in time") from None

    async def _renew(self, lease_id: int) -> bool:
        for _ in range(RENEWAL_TRIES):
            connection = self._client.connections
            renewed = await self._client.call(
                LEASE_KEEP_ALIVE, LeaseRequest(lease_id), LeaseAnswer, repeatable=True, linearizable=False
            )
            if renewed.ttl <= 0:
                return False
            confirmed = await self._range(RangeRequest(key=self._key(""), count_only=True))
            before, now = self._renewed_at, (connection, confirmed.header.raft_term)
            if self._client.connections != connection:
                continue
            self._renewed_at = now
            if now == before:
                return True
        raise self._client.unavailable("changes its leader all the time; the lease could not be renewed")

    async def revoke_lease(self, lease_id: int) -> None:
        try:
            await self._client.call(LEASE_REVOKE, LeaseRequest(lease_id), Answer, repeatable=True, linearizable=False)
        except Refused as error:
            if error.code != grpc.NOT_FOUND:
                raise

    def _key(self, key: str) -> bytes:
        return (self._prefix + key).encode()

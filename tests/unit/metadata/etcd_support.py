"""What the tests of the etcd store share: stores on ports, bounded runs, a watch in the background."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable

from san_target.metadata.etcd import EtcdStore
from san_target.metadata.etcd_client import Timeouts
from san_target.metadata.etcd_url import parse_etcd_url
from san_target.metadata.store import Put, Store, StoreError, WatchBatch

SECONDS_MAX = 60
# Quick to give up a try, and patient as a whole: for what must work at last, however busy the machine.
QUICK = Timeouts(connect_s=2.0, attempt_s=0.5, transaction_s=0.5, request_s=20.0, guard_s=0.2)
# For what cannot work.
GIVES_UP = Timeouts(connect_s=0.5, attempt_s=0.5, transaction_s=0.5, request_s=1.5, guard_s=0.2, watch_s=2.0)
_prefixes = itertools.count()


def store_on(*ports: int, options: str = "", timeouts: Timeouts | None = None, prefix: str = "") -> EtcdStore:
    """A store below a prefix of its own."""
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    url = f"etcd://{hosts}?prefix={prefix or f'/test-{next(_prefixes)}/'}{options}"
    return EtcdStore(parse_etcd_url(url), timeouts)


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(SECONDS_MAX):
            await body()

    asyncio.run(bounded())


async def put(store: Store, value: bytes, key: str = "a") -> int:
    """The revision of this change."""
    result = await store.transact([], [Put(key, value)])
    assert result.succeeded
    return result.revision


async def value_of(store: Store, key: str = "a") -> bytes | None:
    item = await store.get(key)
    return None if item is None else item.value


class Watcher:
    """Collects a watch in the background. batches: as they came; error: what ended it."""

    def __init__(self, store: Store, from_revision: int) -> None:
        self.batches: list[WatchBatch] = []
        self.error: StoreError | None = None
        self._changed = asyncio.Event()
        self._task = asyncio.ensure_future(self._watch(store, from_revision))

    async def _watch(self, store: Store, from_revision: int) -> None:
        try:
            async for batch in store.watch("", from_revision):
                self.batches.append(batch)
                self._changed.set()
        except StoreError as error:
            self.error = error
        self._changed.set()

    async def until(self, revision: int) -> list[int]:
        """The revisions seen, once this one has come."""
        while not self.batches or self.batches[-1].revision < revision:
            assert self.error is None, self.error
            self._changed.clear()
            await self._changed.wait()
        return [batch.revision for batch in self.batches]

    async def end(self) -> StoreError | None:
        await self._task
        return self.error

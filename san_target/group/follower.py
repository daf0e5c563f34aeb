"""One member's view of the whole store: read once, then followed by a single watch over whole revisions.

What is read and what changes goes to consumers, by the first part of its key. Nothing here takes long at once: a large
store is read in pages, and other work gets its turn between two of them, and between two revisions.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, Protocol, TypeVar

import structlog

from san_target.metadata.store import Event, Item, RevisionCompacted, Store, StoreError, WatchBatch

log = structlog.get_logger()

RETRY_S: Final = 1.0

T = TypeVar("T")


class Consumer(Protocol):
    """What keeps a part of the store in memory. All calls come one after another; none may fail for one bad volume.

    Everything is read by `begin`, any number of `read`, `complete`; it replaces what was known, at `complete` and not
    before. StoreError for a record that cannot be read: the store is not followed beyond it.
    """

    def begin(self) -> None: ...

    def read(self, items: Sequence[Item]) -> None:
        """More keys, in order of the keys."""
        ...

    def complete(self, revision: int) -> None: ...

    def take(self, revision: int, events: Sequence[Event]) -> None:
        """All changes that one revision made."""
        ...


class Progress:
    """For those that wait until something has become true."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[None], None] = {}

    def tell(self) -> None:
        """Something has changed: everybody looks again."""
        waiting, self._waiting = self._waiting, {}
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            future = asyncio.get_running_loop().create_future()
            self._waiting[future] = None
            try:
                await future
            finally:
                self._waiting.pop(future, None)


class StoreFollower:
    """revision: what the consumers know. problem: why the store cannot be followed now, or "".

    before: if set, awaited with each revision and its changes before the consumers learn of them.
    progress: told whenever `revision` has changed.
    """

    def __init__(self, store: Store, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._store = store
        self._sleep = sleep
        self._consumers: dict[str, Consumer] = {}
        self._order = asyncio.Lock()
        self.before: Callable[[int, Sequence[Event]], Awaitable[None]] | None = None
        self.progress = Progress()
        self.revision = 0
        self.problem = ""

    def add(self, kinds: Iterable[str], consumer: Consumer) -> None:
        """Before `load`. kinds: first parts of keys ("volumes", "maps")."""
        for kind in kinds:
            self._consumers[kind] = consumer

    async def load(self) -> None:
        """Read everything; the consumers have it when this returns. StoreError."""
        async with self._order:
            consumers = list(dict.fromkeys(self._consumers.values()))
            for consumer in consumers:
                consumer.begin()
            revision = 0
            async for page in self._store.pages(""):
                revision = page.revision
                for consumer, items in self._shares(page.items, lambda item: item.key):
                    consumer.read(items)
                await asyncio.sleep(0)
            for consumer in consumers:
                consumer.complete(revision)
                await asyncio.sleep(0)
            self.revision = revision
        self.progress.tell()

    async def reload(self) -> None:
        """Read everything again. A store that is away is told in `problem`, and waited for a moment."""
        try:
            await self.load()
        except StoreError as error:
            self.problem = str(error)
            await self._sleep(RETRY_S)

    async def follow(self) -> None:
        """Hand on every later change, until the store is closed. Outages of the store are waited out."""
        while True:
            try:
                async for batch in self._store.watch("", self.revision + 1):
                    await self._take(batch)
                    self.problem = ""
                return
            except RevisionCompacted:
                log.info("the store's history was shortened meanwhile; reading everything again")
                await self.reload()
            except StoreError as error:
                if not self.problem:
                    log.error("the store cannot be followed", reason=str(error))
                self.problem = str(error)
                await self._sleep(RETRY_S)

    async def _take(self, batch: WatchBatch) -> None:
        async with self._order:
            if batch.revision <= self.revision:
                return  # everything was read again meanwhile
            if self.before is not None:
                await self.before(batch.revision, batch.events)
            for consumer, events in self._shares(batch.events, lambda event: event.key):
                consumer.take(batch.revision, events)
            self.revision = batch.revision
        self.progress.tell()
        await asyncio.sleep(0)  # a watch that has much to tell never waits by itself

    def hurry(self) -> None:
        """There is a change that is not known here."""
        self._store.hurry()

    async def until(self, revision: int) -> None:
        """Return when the consumers know of this revision, which changed some key of the group."""
        if self.revision < revision:
            self.hurry()
        await self.progress.until(lambda: self.revision >= revision)

    def _shares(self, things: Iterable[T], key_of: Callable[[T], str]) -> list[tuple[Consumer, list[T]]]:
        """What concerns each consumer, in order."""
        shares: dict[int, tuple[Consumer, list[T]]] = {}
        for thing in things:
            consumer = self._consumers.get(key_of(thing).partition("/")[0])
            if consumer is not None:
                shares.setdefault(id(consumer), (consumer, []))[1].append(thing)
        return list(shares.values())

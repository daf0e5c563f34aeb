"""One watch for a whole member: everything is read once, and then every revision handed on whole, in order."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from san_target.group.follower import Progress, StoreFollower
from san_target.metadata.memory import MemoryData, MemoryStore
from san_target.metadata.sqlite import SqliteStore
from san_target.metadata.store import (
    OPERATIONS_MAX,
    PAGE_ITEMS,
    Delete,
    Event,
    Item,
    Put,
    Snapshot,
    Store,
    StoreUnavailable,
    WatchBatch,
)

SECONDS_MAX = 20


class Mirror:
    """A consumer that keeps keys and values, and what it was told."""

    def __init__(self) -> None:
        self.now: dict[str, bytes] = {}
        self.reading: dict[str, bytes] = {}
        self.told: list[tuple[int, tuple[str, ...]]] = []
        self.reads = 0

    def begin(self) -> None:
        self.reading = {}

    def read(self, items: Sequence[Item]) -> None:
        self.reads += 1
        self.reading |= {item.key: item.value for item in items}

    def complete(self, revision: int) -> None:
        self.now = self.reading

    def take(self, revision: int, events: Sequence[Event]) -> None:
        self.told.append((revision, tuple(event.key for event in events)))
        for event in events:
            if event.item is None:
                self.now.pop(event.key, None)
            else:
                self.now[event.key] = event.item.value


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(SECONDS_MAX):
            await body()

    asyncio.run(bounded())


@pytest.fixture(params=["memory", "sqlite"])
def new_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    data = MemoryData(lambda: 0.0)
    if request.param == "memory":
        return lambda: MemoryStore(data)
    return lambda: SqliteStore(tmp_path / "store", poll_s=0.002)


def test_consumers_get_their_keys_and_every_later_change(new_store: Callable[[], Store]) -> None:
    async def body() -> None:
        ours, others = new_store(), new_store()
        await ours.open()
        await others.open()
        for start in range(0, PAGE_ITEMS + 10, OPERATIONS_MAX):
            await others.transact(
                [], [Put(f"maps/{number:06}", b"") for number in range(start, start + OPERATIONS_MAX)]
            )
        await others.transact([], [Put("volumes/a", b"1"), Put("other/a", b"")])
        both, one = Mirror(), Mirror()
        follower = StoreFollower(ours)
        follower.add(("maps", "volumes"), both)
        follower.add(("members",), one)
        await follower.load()
        assert set(both.now) == {item.key for item in (await ours.range("")).items if not item.key.startswith("other")}
        assert both.reads > 1
        following = asyncio.ensure_future(follower.follow())
        last = 0
        for number in range(30):
            last = (await others.transact([], [Put("volumes/a", b"%d" % number), Put("maps/000001", b"x")])).revision
        await others.transact([], [Put("other/a", b"2")])
        last = (await others.transact([], [Delete("volumes/a"), Put("members/m", b"m")])).revision
        await follower.until(last)
        assert follower.revision == last
        # A revision that concerns a consumer twice comes once.
        assert [keys for _, keys in both.told] == [("volumes/a", "maps/000001")] * 30 + [("volumes/a",)]
        assert one.now == {"members/m": b"m"}
        await ours.close()
        await following  # ends with the store
        await others.close()

    run(body)


def test_nobody_waits_for_a_revision_that_is_there() -> None:
    async def body() -> None:
        store = MemoryStore(MemoryData(lambda: 0.0))
        await store.open()
        await store.transact([], [Put("maps/a", b"")])
        follower = StoreFollower(store)
        await follower.load()
        await follower.until(1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(follower.until(2), 0.01)

    run(body)


def test_who_waits_for_a_revision_has_others_changes_looked_for(tmp_path: Path) -> None:
    async def body() -> None:
        ours = SqliteStore(tmp_path / "store", poll_s=10 * SECONDS_MAX)  # it does not look by itself
        others = SqliteStore(tmp_path / "store")
        await ours.open()
        await others.open()
        follower, mirror = StoreFollower(ours), Mirror()
        follower.add(["maps"], mirror)
        await follower.load()
        following = asyncio.ensure_future(follower.follow())
        for value in (b"1", b"2"):
            revision = (await others.transact([], [Put("maps/a", value)])).revision
            await follower.until(revision)
            assert mirror.now == {"maps/a": value}
        await ours.close()
        await following
        await others.close()

    run(body)


def test_what_was_missed_since_the_history_was_cut_is_read_again() -> None:
    async def body() -> None:
        data = MemoryData(lambda: 0.0, history_revisions=4)
        store = MemoryStore(data)
        await store.open()
        mirror = Mirror()
        follower = StoreFollower(store)
        follower.add(("maps",), mirror)
        await follower.load()
        for number in range(20):
            await store.transact([], [Put("maps/a", b"%d" % number)])
        following = asyncio.ensure_future(follower.follow())
        await follower.until(20)
        assert mirror.now == {"maps/a": b"19"}
        await store.transact([], [Put("maps/b", b"")])
        await follower.until(21)
        assert set(mirror.now) == {"maps/a", "maps/b"}
        await store.close()
        await following

    run(body)


def test_an_outage_is_told_and_waited_out() -> None:
    class Flaky(MemoryStore):
        failures = 3

        async def watch(self, prefix: str, from_revision: int) -> AsyncIterator[WatchBatch]:
            async for batch in super().watch(prefix, from_revision):
                if self.failures:
                    self.failures -= 1
                    raise StoreUnavailable("the store is away")
                yield batch

    async def body() -> None:
        store = Flaky(MemoryData(lambda: 0.0))
        await store.open()
        problems: list[str] = []

        async def sleep(seconds: float) -> None:
            problems.append(follower.problem)
            await asyncio.sleep(0)

        mirror, follower = Mirror(), StoreFollower(store, sleep)
        follower.add(("maps",), mirror)
        await follower.load()
        following = asyncio.ensure_future(follower.follow())
        for number in range(3):
            await store.transact([], [Put("maps/a", b"%d" % number)])
        await follower.until(3)
        assert problems == ["the store is away"] * 3
        assert follower.problem == ""
        assert [revision for revision, _ in mirror.told] == [1, 2, 3]
        await store.close()
        await following

    run(body)


def test_reading_again_beside_the_watch_keeps_the_order() -> None:
    """What comes by the watch while everything is read waits, and what is older than what was read is left out."""

    class Slow(MemoryStore):
        async def pages(self, prefix: str) -> AsyncIterator[Snapshot]:
            async for page in super().pages(prefix):
                await asyncio.sleep(0.01)
                yield page

    async def body() -> None:
        data = MemoryData(lambda: 0.0)
        store, others = Slow(data), MemoryStore(data)
        await store.open()
        await others.open()
        mirror, follower = Mirror(), StoreFollower(store)
        follower.add(("maps",), mirror)
        await follower.load()
        following = asyncio.ensure_future(follower.follow())
        for number in range(50):
            await others.transact([], [Put(f"maps/{number % 7}", b"%d" % number)])
            if number % 10 == 0:
                await follower.reload()
        await follower.until(50)
        assert mirror.now == {item.key: item.value for item in (await others.range("")).items}
        assert [revision for revision, _ in mirror.told] == sorted(revision for revision, _ in mirror.told)
        await store.close()
        await following

    run(body)


def test_others_are_asked_before_the_consumers_learn_of_it() -> None:
    async def body() -> None:
        store = MemoryStore(MemoryData(lambda: 0.0))
        await store.open()
        mirror, follower = Mirror(), StoreFollower(store)
        seen: list[tuple[int, int]] = []

        async def before(revision: int, events: Sequence[Event]) -> None:
            await asyncio.sleep(0)
            seen.append((revision, len(mirror.told)))

        follower.add(("maps",), mirror)
        follower.before = before
        await follower.load()
        following = asyncio.ensure_future(follower.follow())
        await store.transact([], [Put("maps/a", b"")])
        await store.transact([], [Put("maps/a", b"2")])
        await follower.until(2)
        assert seen == [(1, 0), (2, 1)]
        await store.close()
        await following

    run(body)


def test_waiting_ends_when_it_has_become_true_and_not_before() -> None:
    async def body() -> None:
        progress, numbers = Progress(), [0]
        waiting = asyncio.ensure_future(progress.until(lambda: numbers[0] == 2))
        given_up = asyncio.ensure_future(progress.until(lambda: False))
        await asyncio.sleep(0)
        given_up.cancel()
        for number in (1, 2):
            assert not waiting.done()
            numbers[0] = number
            progress.tell()
            await asyncio.sleep(0)
        await waiting

    run(body)

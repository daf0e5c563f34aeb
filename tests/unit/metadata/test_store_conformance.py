"""What every store must do, run against each implementation."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from san_target.metadata.factory import make_store
from san_target.metadata.memory import MemoryData, MemoryStore
from san_target.metadata.sqlite import SqliteStore
from san_target.metadata.store import (
    OPERATIONS_MAX,
    Compare,
    Delete,
    LeaseEnded,
    Put,
    RevisionCompacted,
    Store,
    StoreError,
    WatchBatch,
)
from tests.support.etcd import Etcd

HISTORY = 8
SECONDS_MAX = 20


class Clock:
    """Lease time, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class World:
    """Makes clients of one and the same store, at revision `base` when the test begins.

    ttl_s: a lease that ends soon. clock: of leases; None where they end by the time of day.
    """

    ttl_s = 10.0
    base = 0
    clock: Clock | None = None

    def client(self) -> Store:
        raise NotImplementedError

    async def let_end(self, lease_id: int) -> None:
        """Return when the lease, which is not renewed, has ended."""
        assert self.clock is not None
        self.clock.now += self.ttl_s

    def compact(self, revision: int) -> None:
        """The history up to this revision is forgotten; by itself where only HISTORY revisions are kept."""

    def tick(self) -> None:
        """What looks for ended leases by the event loop's clock looks now."""


class MemoryWorld(World):
    def __init__(self) -> None:
        self.clock = Clock()
        self.data = MemoryData(self.clock, history_revisions=HISTORY)

    def client(self) -> Store:
        return MemoryStore(self.data)

    def tick(self) -> None:
        self.data.reap()


class SqliteWorld(World):
    def __init__(self, path: Path) -> None:
        self.clock = Clock()
        self.path = path / "group.sqlite"

    def client(self) -> Store:
        return SqliteStore(self.path, clock=self.clock, boot_id="boot", history_revisions=HISTORY, poll_s=0.002)


class EtcdWorld(World):
    ttl_s = 1.0

    def __init__(self, etcd: Etcd) -> None:
        self.etcd = etcd
        self.prefix = f"/{uuid.uuid4().hex}/"

    def client(self) -> Store:
        return make_store(f"etcd://{self.etcd.host}?prefix={self.prefix}")

    async def let_end(self, lease_id: int) -> None:
        await asyncio.to_thread(self.etcd.wait_until_ended, lease_id)

    def compact(self, revision: int) -> None:
        self.etcd.compact(revision)


@pytest.fixture(params=["memory", "sqlite", pytest.param("etcd", marks=pytest.mark.tool("etcd"))])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    if request.param == "memory":
        return MemoryWorld()
    return SqliteWorld(tmp_path) if request.param == "sqlite" else EtcdWorld(request.getfixturevalue("etcd"))


def run(world: World, test: Callable[[Store, Store], Awaitable[None]]) -> None:
    """Call `test` with two clients of the same store."""

    async def body() -> None:
        first, second = world.client(), world.client()
        await first.open()
        await second.open()
        try:
            async with asyncio.timeout(SECONDS_MAX):
                world.base = (await first.range("")).revision
                await test(first, second)
        finally:
            await first.close()
            await second.close()

    asyncio.run(body())


async def take(watch: AsyncIterator[WatchBatch], count: int) -> list[WatchBatch]:
    return [await anext(watch) for _ in range(count)]


def changes(batch: WatchBatch) -> dict[str, bytes | None]:
    return {event.key: event.item.value if event.item else None for event in batch.events}


class TestTransactions:
    def test_a_new_store_is_empty(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            snapshot = await first.range("")
            assert (snapshot.items, snapshot.revision) == ((), world.base)
            assert await first.get("a") is None

        run(world, test)

    def test_what_one_client_puts_another_reads(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            result = await first.transact([], [Put("a", b"1"), Put("b", b"\x00\xff")])
            at = world.base + 1
            assert (result.succeeded, result.revision) == (True, at)
            item = await second.get("b")
            assert item is not None
            assert (item.value, item.create_revision, item.mod_revision, item.lease_id) == (b"\x00\xff", at, at, 0)

        run(world, test)

    def test_revisions_of_an_item(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            await first.transact([], [Put("a", b"1")])
            await first.transact([], [Put("b", b"1")])
            await second.transact([], [Put("a", b"2")])
            item = await first.get("a")
            assert item is not None
            assert (item.value, item.create_revision, item.mod_revision) == (b"2", world.base + 1, world.base + 3)
            await first.transact([], [Delete("a")])
            await first.transact([], [Put("a", b"3")])
            item = await first.get("a")
            assert item is not None
            assert (item.create_revision, item.mod_revision) == (world.base + 5, world.base + 5)

        run(world, test)

    def test_range_is_by_key_and_by_prefix_only(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            await first.transact([], [Put(key, b"") for key in ("maps/b", "maps/a", "map", "mapsX", "maps0", "zz")])
            snapshot = await second.range("maps/")
            assert [item.key for item in snapshot.items] == ["maps/a", "maps/b"]
            assert [item.key for item in (await second.range("")).items] == [
                "map",
                "maps/a",
                "maps/b",
                "maps0",
                "mapsX",
                "zz",
            ]

        run(world, test)

    def test_one_failed_compare_changes_nothing(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            at = (await first.transact([], [Put("a", b"1"), Put("b", b"1")])).revision
            result = await second.transact([Compare("a", at), Compare("b", at + 8)], [Put("a", b"2"), Delete("b")])
            assert (result.succeeded, result.revision) == (False, at)
            assert [(item.key, item.value) for item in (await first.range("")).items] == [("a", b"1"), ("b", b"1")]
            assert (await second.transact([Compare("a", at), Compare("b", at)], [Put("a", b"2")])).succeeded

        run(world, test)

    def test_compare_with_zero_wants_absence(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            assert (await first.transact([Compare("a", 0)], [Put("a", b"1")])).succeeded
            assert not (await second.transact([Compare("a", 0)], [Put("a", b"2")])).succeeded
            await first.transact([], [Delete("a")])
            assert (await second.transact([Compare("a", 0)], [Put("a", b"3")])).succeeded

        run(world, test)

    def test_of_rival_transactions_exactly_one_wins(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            for _ in range(10):
                item = await first.get("a")
                seen = [Compare("a", item.mod_revision if item else 0)]
                results = await asyncio.gather(
                    first.transact(seen, [Put("a", b"first")]), second.transact(seen, [Put("a", b"second")])
                )
                assert sorted(result.succeeded for result in results) == [False, True]

        run(world, test)

    @pytest.mark.parametrize(
        "operations",
        [
            [Put("a", b""), Delete("a")],
            [Put("", b"")],
            [Put(f"a{number}", b"") for number in range(OPERATIONS_MAX + 1)],
        ],
        ids=["a key twice", "an empty key", "too many"],
    )
    def test_a_meaningless_transaction_is_refused(self, world: World, operations: list[Put | Delete]) -> None:
        async def test(first: Store, second: Store) -> None:
            with pytest.raises(ValueError):
                await first.transact([], operations)
            assert (await first.range("")).revision == world.base

        run(world, test)

    def test_the_largest_transaction(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            compares = [Compare(f"a{number}", 0) for number in range(OPERATIONS_MAX)]
            puts = [Put(compare.key, b"x" * 500) for compare in compares]
            assert (await first.transact(compares, puts)).succeeded
            assert len((await second.range("a")).items) == OPERATIONS_MAX
            assert not (await second.transact(compares, puts)).succeeded

        run(world, test)

    def test_a_transaction_that_only_compares(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            at = (await first.transact([], [Put("a", b"1")])).revision
            assert (await second.transact([Compare("a", at)], [])).succeeded
            assert not (await second.transact([Compare("a", at + 1)], [])).succeeded

        run(world, test)

    def test_a_range_of_many_items_is_of_one_revision(self, world: World) -> None:
        """Each revision moves one item from the head to the end, so that a read over two revisions sees too few."""

        async def test(first: Store, second: Store) -> None:
            keys = [f"k{number:05d}" for number in range(1000)]
            for start in range(0, len(keys), OPERATIONS_MAX):
                await first.transact([], [Put(key, key.encode()) for key in keys[start : start + OPERATIONS_MAX]])

            async def move() -> None:
                for number in range(100):
                    await first.transact([], [Delete(keys[number]), Put(f"k{1000 + number:05d}", b"")])

            moving = asyncio.ensure_future(move())
            snapshots = [await second.range("k") for _ in range(5)]
            await moving
            for snapshot in [*snapshots, await second.range("k")]:
                assert len(snapshot.items) == 1000
                assert [item.key for item in snapshot.items] == sorted(item.key for item in snapshot.items)
                assert max(item.mod_revision for item in snapshot.items) <= snapshot.revision

        run(world, test)

    def test_a_closed_client_says_so(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            await first.close()
            with pytest.raises(StoreError, match="not open"):
                await first.get("a")
            await first.open()
            assert await first.get("a") is None

        run(world, test)


class TestWatches:
    def test_history_from_a_revision_then_live(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            await first.transact([], [Put("v/a", b"1")])
            await first.transact([], [Put("v/a", b"2"), Put("v/b", b"1"), Put("other", b"")])
            watch = second.watch("v/", world.base + 2)
            [batch] = await take(watch, 1)
            assert (batch.revision, changes(batch)) == (world.base + 2, {"v/a": b"2", "v/b": b"1"})
            live = asyncio.ensure_future(anext(watch))
            await first.transact([], [Put("other", b"x")])
            await first.transact([], [Delete("v/a"), Put("v/c", b"3")])
            batch = await live
            assert (batch.revision, changes(batch)) == (world.base + 4, {"v/a": None, "v/c": b"3"})
            item = batch.events[1].item
            assert item is not None
            assert (item.create_revision, item.mod_revision) == (world.base + 4, world.base + 4)

        run(world, test)

    def test_own_changes_are_seen_too(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            live = asyncio.ensure_future(anext(first.watch("a", world.base + 1)))
            await asyncio.sleep(0)
            await first.transact([], [Put("a", b"1")])
            assert changes(await live) == {"a": b"1"}

        run(world, test)

    def test_no_gap_while_others_write(self, world: World) -> None:
        """A slow watcher started in the middle gets every revision once and in order."""

        async def test(first: Store, second: Store) -> None:
            async def write() -> None:
                for number in range(30):
                    await first.transact([], [Put("a", b"%d" % number), Put("b", b"%d" % number)])
                    while seen[-1:] < [max(0, number + 1 - HISTORY // 2)]:
                        await asyncio.sleep(0)  # never further ahead than the history is long

            seen: list[int] = []
            writer = asyncio.ensure_future(write())
            async for batch in second.watch("", world.base + 1):
                written = b"%d" % (batch.revision - world.base - 1)
                assert changes(batch) == {"a": written, "b": written}
                seen.append(batch.revision - world.base)
                if len(seen) == 30:
                    break
            await writer
            assert seen == list(range(1, 31))

        run(world, test)

    def test_deleting_what_is_absent_shows_nothing(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            deleted = await first.transact([], [Delete("a")])
            assert deleted.succeeded
            assert deleted.revision - world.base in (0, 1)
            at = (await first.transact([], [Put("a", b"")])).revision
            assert (await anext(second.watch("", world.base + 1))).revision == at

        run(world, test)

    def test_a_revision_not_reached_yet_is_waited_for(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            live = asyncio.ensure_future(anext(second.watch("", world.base + 3)))
            for value in (b"1", b"2", b"3"):
                await first.transact([], [Put("a", value)])
            batch = await live
            assert (batch.revision, changes(batch)) == (world.base + 3, {"a": b"3"})

        run(world, test)

    def test_a_compacted_revision_is_refused_and_reading_again_helps(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            for number in range(HISTORY + 3):
                await first.transact([], [Put(f"k{number}", b"")])
            world.compact(world.base + 3)
            for revision in (world.base + 2, world.base + 3):
                with pytest.raises(RevisionCompacted):
                    await anext(second.watch("", revision))
            assert (await anext(second.watch("", world.base + 4))).revision == world.base + 4
            snapshot = await second.range("")
            assert len(snapshot.items) == HISTORY + 3
            live = asyncio.ensure_future(anext(second.watch("", snapshot.revision + 1)))
            await first.transact([], [Put("new", b"")])
            assert changes(await live) == {"new": b""}

        run(world, test)

    def test_a_watch_ends_when_its_client_closes(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            async def watch_all() -> list[WatchBatch]:
                return [batch async for batch in second.watch("", world.base + 1)]

            watching = asyncio.ensure_future(watch_all())
            await first.transact([], [Put("a", b"1")])
            for _ in range(5):
                await asyncio.sleep(0)
            await second.close()
            assert [batch.revision for batch in await watching] in ([], [world.base + 1])

        run(world, test)

    def test_a_cancelled_watch_leaves_others_alone(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            cancelled = asyncio.ensure_future(anext(second.watch("", world.base + 1)))
            kept = asyncio.ensure_future(anext(second.watch("", world.base + 1)))
            await asyncio.sleep(0.01)
            cancelled.cancel()
            await asyncio.wait([cancelled])
            await first.transact([], [Put("a", b"1")])
            assert (await kept).revision == world.base + 1

        run(world, test)


class TestLeases:
    def test_a_lease_that_is_not_renewed_takes_its_keys_in_one_revision(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            lease = await first.grant_lease(world.ttl_s)
            assert lease > 0
            await first.transact([], [Put("leases/a", b"", lease), Put("kept", b""), Put("leases/b", b"", lease)])
            item = await second.get("leases/a")
            assert item is not None
            assert item.lease_id == lease
            await world.let_end(lease)
            assert await second.get("leases/a") is None
            snapshot = await second.range("")
            assert ([item.key for item in snapshot.items], snapshot.revision) == (["kept"], world.base + 2)
            batch = (await take(first.watch("", world.base + 2), 1))[0]
            assert changes(batch) == {"leases/a": None, "leases/b": None}

        run(world, test)

    @pytest.mark.parametrize("world", ["memory", "sqlite"], indirect=True)
    def test_a_lease_lasts_its_time(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            assert world.clock is not None
            lease = await first.grant_lease(10)
            await first.transact([], [Put("a", b"", lease)])
            world.clock.now += 9.9
            assert await second.get("a") is not None
            world.clock.now += 0.1
            assert await second.get("a") is None

        run(world, test)

    def test_renewing_keeps_it(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            lease = await first.grant_lease(world.ttl_s)
            await first.transact([], [Put("a", b"", lease)])
            for _ in range(5):
                if world.clock is None:
                    await asyncio.sleep(world.ttl_s / 3)
                else:
                    world.clock.now += world.ttl_s * 0.9
                assert await first.renew_lease(lease)
            assert await second.get("a") is not None
            await world.let_end(lease)
            assert not await first.renew_lease(lease)
            assert await second.get("a") is None

        run(world, test)

    def test_revoking_ends_it_at_once(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            lease, other = await first.grant_lease(10), await second.grant_lease(10)
            assert lease != other
            await first.transact([], [Put("a", b"", lease), Put("b", b"", other)])
            await first.revoke_lease(lease)
            assert [item.key for item in (await second.range("")).items] == ["b"]
            assert not await first.renew_lease(lease)
            await first.revoke_lease(lease)
            assert (await first.range("")).revision == world.base + 2
            await first.revoke_lease(other)

        run(world, test)

    def test_a_key_can_leave_its_lease(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            lease = await first.grant_lease(world.ttl_s)
            await first.transact([], [Put("a", b"1", lease)])
            await first.transact([], [Put("a", b"2")])
            await world.let_end(lease)
            item = await second.get("a")
            assert item is not None
            assert item.value == b"2"

        run(world, test)

    def test_a_key_cannot_be_bound_to_an_ended_lease(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            lease = await first.grant_lease(world.ttl_s)
            await world.let_end(lease)
            with pytest.raises(LeaseEnded):
                await second.transact([], [Put("free", b""), Put("a", b"", lease)])
            assert (await first.range("")).items == ()

        run(world, test)

    def test_an_expired_lease_fails_the_compares_of_its_keys(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            lease = await first.grant_lease(world.ttl_s)
            at = (await first.transact([], [Put("a", b"", lease)])).revision
            await world.let_end(lease)
            assert not (await second.transact([Compare("a", at)], [Put("b", b"")])).succeeded
            assert await first.get("b") is None

        run(world, test)

    def test_a_watcher_alone_sees_a_lease_end(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            lease = await first.grant_lease(world.ttl_s)
            await first.transact([], [Put("a", b"", lease)])
            live = asyncio.ensure_future(anext(second.watch("", world.base + 2)))
            await asyncio.sleep(0.01)
            await world.let_end(lease)
            world.tick()
            assert changes(await live) == {"a": None}

        run(world, test)

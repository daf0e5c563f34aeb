"""What every store must do, run against each implementation."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from san_target.metadata.memory import MemoryData, MemoryStore
from san_target.metadata.sqlite import SqliteStore
from san_target.metadata.store import (
    Compare,
    Delete,
    LeaseEnded,
    Put,
    RevisionCompacted,
    Store,
    StoreError,
    WatchBatch,
)

HISTORY = 8
SECONDS_MAX = 20


class Clock:
    """Lease time, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class World:
    """Makes clients of one and the same store."""

    def __init__(self, kind: str, path: Path) -> None:
        self.kind = kind
        self.path = path / "group.sqlite"
        self.clock = Clock()
        self.data = MemoryData(self.clock, history_revisions=HISTORY)

    def client(self) -> Store:
        if self.kind == "memory":
            return MemoryStore(self.data)
        return SqliteStore(self.path, clock=self.clock, boot_id="boot", history_revisions=HISTORY, poll_s=0.002)


@pytest.fixture(params=["memory", "sqlite"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    return World(request.param, tmp_path)


def run(world: World, test: Callable[[Store, Store], Awaitable[None]]) -> None:
    """Call `test` with two clients of the same store."""

    async def body() -> None:
        first, second = world.client(), world.client()
        await first.open()
        await second.open()
        try:
            async with asyncio.timeout(SECONDS_MAX):
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
    def test_a_new_store_is_empty_at_revision_zero(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            snapshot = await first.range("")
            assert (snapshot.items, snapshot.revision) == ((), 0)
            assert await first.get("a") is None

        run(world, test)

    def test_what_one_client_puts_another_reads(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            result = await first.transact([], [Put("a", b"1"), Put("b", b"\x00\xff")])
            assert (result.succeeded, result.revision) == (True, 1)
            item = await second.get("b")
            assert item is not None
            assert (item.value, item.create_revision, item.mod_revision, item.lease_id) == (b"\x00\xff", 1, 1, 0)

        run(world, test)

    def test_revisions_of_an_item(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            await first.transact([], [Put("a", b"1")])
            await first.transact([], [Put("b", b"1")])
            await second.transact([], [Put("a", b"2")])
            item = await first.get("a")
            assert item is not None
            assert (item.value, item.create_revision, item.mod_revision) == (b"2", 1, 3)
            await first.transact([], [Delete("a")])
            await first.transact([], [Put("a", b"3")])
            item = await first.get("a")
            assert item is not None
            assert (item.create_revision, item.mod_revision) == (5, 5)

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
            await first.transact([], [Put("a", b"1"), Put("b", b"1")])
            result = await second.transact([Compare("a", 1), Compare("b", 9)], [Put("a", b"2"), Delete("b")])
            assert (result.succeeded, result.revision) == (False, 1)
            assert [(item.key, item.value) for item in (await first.range("")).items] == [("a", b"1"), ("b", b"1")]
            assert (await second.transact([Compare("a", 1), Compare("b", 1)], [Put("a", b"2")])).succeeded

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

    @pytest.mark.parametrize("operations", [[Put("a", b""), Delete("a")], [Put("", b"")]])
    def test_a_meaningless_transaction_is_refused(self, world: World, operations: list[Put | Delete]) -> None:
        async def test(first: Store, second: Store) -> None:
            with pytest.raises(ValueError):
                await first.transact([], operations)
            assert (await first.range("")).revision == 0

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
            watch = second.watch("v/", 2)
            [batch] = await take(watch, 1)
            assert (batch.revision, changes(batch)) == (2, {"v/a": b"2", "v/b": b"1"})
            live = asyncio.ensure_future(anext(watch))
            await first.transact([], [Put("other", b"x")])
            await first.transact([], [Delete("v/a"), Put("v/c", b"3")])
            batch = await live
            assert (batch.revision, changes(batch)) == (4, {"v/a": None, "v/c": b"3"})
            item = batch.events[1].item
            assert item is not None
            assert (item.create_revision, item.mod_revision) == (4, 4)

        run(world, test)

    def test_own_changes_are_seen_too(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            live = asyncio.ensure_future(anext(first.watch("a", 1)))
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
            async for batch in second.watch("", 1):
                assert changes(batch) == {"a": b"%d" % (batch.revision - 1), "b": b"%d" % (batch.revision - 1)}
                seen.append(batch.revision)
                if len(seen) == 30:
                    break
            await writer
            assert seen == list(range(1, 31))

        run(world, test)

    def test_deleting_what_is_absent_shows_nothing(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            assert (await first.transact([], [Delete("a")])).revision == 1
            await first.transact([], [Put("a", b"")])
            assert (await anext(second.watch("", 1))).revision == 2

        run(world, test)

    def test_a_revision_not_reached_yet_is_waited_for(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            live = asyncio.ensure_future(anext(second.watch("", 3)))
            for value in (b"1", b"2", b"3"):
                await first.transact([], [Put("a", value)])
            batch = await live
            assert (batch.revision, changes(batch)) == (3, {"a": b"3"})

        run(world, test)

    def test_a_compacted_revision_is_refused_and_reading_again_helps(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            for number in range(HISTORY + 3):
                await first.transact([], [Put(f"k{number}", b"")])
            with pytest.raises(RevisionCompacted):
                await anext(second.watch("", 3))
            assert (await anext(second.watch("", 4))).revision == 4
            snapshot = await second.range("")
            assert len(snapshot.items) == HISTORY + 3
            live = asyncio.ensure_future(anext(second.watch("", snapshot.revision + 1)))
            await first.transact([], [Put("new", b"")])
            assert changes(await live) == {"new": b""}

        run(world, test)

    def test_a_watch_ends_when_its_client_closes(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            async def watch_all() -> list[WatchBatch]:
                return [batch async for batch in second.watch("", 1)]

            watching = asyncio.ensure_future(watch_all())
            await first.transact([], [Put("a", b"1")])
            for _ in range(5):
                await asyncio.sleep(0)
            await second.close()
            assert [batch.revision for batch in await watching] in ([], [1])

        run(world, test)

    def test_a_cancelled_watch_leaves_others_alone(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            cancelled = asyncio.ensure_future(anext(second.watch("", 1)))
            kept = asyncio.ensure_future(anext(second.watch("", 1)))
            await asyncio.sleep(0.01)
            cancelled.cancel()
            await asyncio.wait([cancelled])
            await first.transact([], [Put("a", b"1")])
            assert (await kept).revision == 1

        run(world, test)


class TestLeases:
    def test_a_lease_that_is_not_renewed_takes_its_keys_in_one_revision(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            lease = await first.grant_lease(10)
            assert lease > 0
            await first.transact([], [Put("leases/a", b"", lease), Put("kept", b""), Put("leases/b", b"", lease)])
            item = await second.get("leases/a")
            assert item is not None
            assert item.lease_id == lease
            world.clock.now += 9.9
            assert await second.get("leases/a") is not None
            world.clock.now += 0.1
            assert await second.get("leases/a") is None
            snapshot = await second.range("")
            assert ([item.key for item in snapshot.items], snapshot.revision) == (["kept"], 2)
            batch = (await take(first.watch("", 2), 1))[0]
            assert changes(batch) == {"leases/a": None, "leases/b": None}

        run(world, test)

    def test_renewing_keeps_it(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            lease = await first.grant_lease(10)
            await first.transact([], [Put("a", b"", lease)])
            for _ in range(5):
                world.clock.now += 9
                assert await first.renew_lease(lease)
            assert await second.get("a") is not None
            world.clock.now += 10
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
            assert (await first.range("")).revision == 2

        run(world, test)

    def test_a_key_can_leave_its_lease(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            lease = await first.grant_lease(10)
            await first.transact([], [Put("a", b"1", lease)])
            await first.transact([], [Put("a", b"2")])
            world.clock.now += 11
            item = await second.get("a")
            assert item is not None
            assert item.value == b"2"

        run(world, test)

    def test_a_key_cannot_be_bound_to_an_ended_lease(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            lease = await first.grant_lease(10)
            world.clock.now += 11
            with pytest.raises(LeaseEnded):
                await second.transact([], [Put("free", b""), Put("a", b"", lease)])
            assert (await first.range("")).items == ()

        run(world, test)

    def test_an_expired_lease_fails_the_compares_of_its_keys(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            lease = await first.grant_lease(10)
            await first.transact([], [Put("a", b"", lease)])
            world.clock.now += 11
            assert not (await second.transact([Compare("a", 1)], [Put("b", b"")])).succeeded
            assert await first.get("b") is None

        run(world, test)

    def test_a_watcher_alone_sees_a_lease_end(self, world: World) -> None:
        async def test(first: Store, second: Store) -> None:
            lease = await first.grant_lease(10)
            await first.transact([], [Put("a", b"", lease)])
            live = asyncio.ensure_future(anext(second.watch("", 2)))
            await asyncio.sleep(0.01)
            world.clock.now += 10
            if isinstance(second, MemoryStore):
                second.data.reap()  # its timer runs by the event loop's clock, not by the one moved here
            assert changes(await live) == {"a": None}

        run(world, test)

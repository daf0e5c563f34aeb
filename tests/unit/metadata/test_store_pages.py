"""Reading many keys page by page: every store gives what `range` gives, of one revision, whatever happens meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from san_target.metadata.sqlite import SqliteStore
from san_target.metadata.store import OPERATIONS_MAX, PAGE_ITEMS, Delete, Item, Put, Snapshot, Store
from tests.unit.metadata.test_store_conformance import World, run, world

__all__ = ["world"]

KEYS = 2 * PAGE_ITEMS + 7


async def fill(store: Store, keys: int = KEYS, prefix: str = "maps/") -> None:
    names = [f"{prefix}{number:06}" for number in range(keys)]
    for start in range(0, keys, OPERATIONS_MAX):
        await store.transact([], [Put(name, name.encode()) for name in names[start : start + OPERATIONS_MAX]])


async def collected(pages: AsyncIterator[Snapshot]) -> tuple[list[Item], set[int], list[int]]:
    """Items, revisions, and sizes of all pages."""
    items: list[Item] = []
    revisions, sizes = set(), []
    async for page in pages:
        items += page.items
        revisions.add(page.revision)
        sizes.append(len(page.items))
    return items, revisions, sizes


def test_pages_are_what_range_reads(world: World) -> None:
    async def test(first: Store, second: Store) -> None:
        await fill(first)
        await first.transact([], [Put("mapsX", b""), Put("map", b"")])
        whole = await second.range("maps/")
        items, revisions, sizes = await collected(second.pages("maps/"))
        assert tuple(items) == whole.items
        assert len(items) == KEYS
        assert revisions == {whole.revision}
        assert len(sizes) > 2
        assert max(sizes) <= PAGE_ITEMS

    run(world, test)


@pytest.mark.parametrize("keys", [0, 1, PAGE_ITEMS])
def test_few_keys_or_none(world: World, keys: int) -> None:
    async def test(first: Store, second: Store) -> None:
        await fill(first, keys)
        items, revisions, _ = await collected(second.pages("maps/"))
        assert len(items) == keys
        assert revisions == {(await second.range("")).revision}

    run(world, test)


def test_changes_meanwhile_are_not_seen(world: World) -> None:
    async def test(first: Store, second: Store) -> None:
        await fill(first)
        before = await first.range("maps/")
        seen: list[Item] = []
        async for page in first.pages("maps/"):
            seen += page.items
            assert page.revision == before.revision
            # By both clients: the one that reads can be used meanwhile.
            last = f"maps/{KEYS - 1:06}"
            await first.transact([], [Put("maps/000000", b"changed"), Put(f"maps/{KEYS - 2:06}", b"changed")])
            await second.transact([], [Delete(last)])
        assert tuple(seen) == before.items
        assert len((await first.range("maps/")).items) == KEYS - 1

    run(world, test)


def test_a_reader_that_stops_early_is_no_burden(world: World) -> None:
    async def test(first: Store, second: Store) -> None:
        await fill(first)
        pages = first.pages("maps/")
        async for _page in pages:
            break
        await pages.aclose()  # type: ignore[attr-defined]
        assert (await first.transact([], [Put("a", b"1")])).succeeded
        assert len((await collected(first.pages("maps/")))[0]) == KEYS

    run(world, test)


def test_keys_of_ended_leases_are_not_read(tmp_path: Path) -> None:
    async def body() -> None:
        now = [0.0]
        store = SqliteStore(tmp_path / "store", clock=lambda: now[0], boot_id="boot")
        await store.open()
        lease = await store.grant_lease(10)
        await store.transact([], [Put("leases/a", b"", lease), Put("other", b"")])
        now[0] = 11.0
        items, _, _ = await collected(store.pages(""))
        assert [item.key for item in items] == ["other"]
        await store.close()

    asyncio.run(body())


def test_revisions_can_be_skipped(world: World) -> None:
    """For a restored store: what is new in it must be newer than anything that its members have seen."""

    async def test(first: Store, second: Store) -> None:
        await first.transact([], [Put("a", b"1")])
        await first.skip_to(world.base + 300)
        result = await second.transact([], [Put("a", b"2")])
        assert world.base + 300 < result.revision <= world.base + 304
        watch = second.watch("", result.revision)
        assert (await anext(watch)).revision == result.revision
        await first.skip_to(world.base + 10)  # which was long ago
        assert (await first.transact([], [Put("a", b"3")])).revision <= result.revision + 2
        assert [item.key for item in (await first.range("")).items] == ["a"]

    run(world, test)

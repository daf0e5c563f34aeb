"""A store on a disk that initiators have filled: it works on, with the space it holds in reserve."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from san_target.metadata.sqlite import SqliteStore
from san_target.metadata.sqlite_database import CHECKPOINT_PAGES, COMPACT_EVERY, RESERVED_PAGES
from san_target.metadata.store import Delete, Put, StoreUnavailable
from tests.support.file_systems import MIB, fill

SmallDisk = Callable[[int], Path]
PAGE_BYTES = 4096


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(body(), 60)

    asyncio.run(bounded())


def test_leases_are_renewed_and_records_changed_for_long(small_disk: SmallDisk) -> None:
    disk = small_disk(8 * MIB)

    async def body() -> None:
        store = SqliteStore(disk / "group.sqlite")
        await store.open()
        lease = await store.grant_lease(1000)
        await store.transact([], [Put("volumes/a", b"x" * 500, lease)])
        fill(disk / "filling")
        # Each writes at least one page: the log must be used again and again.
        for _ in range(4 * RESERVED_PAGES):
            assert await store.renew_lease(lease)
        for number in range(COMPACT_EVERY + 10):
            assert (await store.transact([], [Put("volumes/a", b"%500d" % number)])).succeeded
        assert (await store.transact([], [Delete("volumes/a")])).succeeded
        await store.close()

    run(body)


def test_it_can_be_opened_again_on_the_full_disk(small_disk: SmallDisk) -> None:
    """Closing gives the log's space back, and the next start takes it again before anybody else runs."""
    disk = small_disk(8 * MIB)

    async def body() -> None:
        store = SqliteStore(disk / "group.sqlite")
        await store.open()
        await store.transact([], [Put("a", b"1")])
        fill(disk / "filling")
        await store.close()
        for _ in range(3):
            store = SqliteStore(disk / "group.sqlite")
            await store.open()
            for _ in range(2 * CHECKPOINT_PAGES):
                assert (await store.transact([], [Put("a", b"1")])).succeeded
            await store.close()

    run(body)


def test_a_change_that_finds_no_space_at_all_is_surely_not_made(small_disk: SmallDisk) -> None:
    """A single change larger than the reserve; what comes after it works."""
    disk = small_disk(8 * MIB)

    async def body() -> None:
        store = SqliteStore(disk / "group.sqlite")
        await store.open()
        fill(disk / "filling")
        with pytest.raises(StoreUnavailable, match="full, nothing was changed; free some space"):
            await store.transact([], [Put("large", bytes(4 * RESERVED_PAGES * PAGE_BYTES))])
        assert await store.get("large") is None
        assert (await store.transact([], [Put("a", b"1")])).succeeded
        await store.close()

    run(body)


def test_a_reserve_left_by_a_killed_process_is_cleared_away(tmp_path: Path) -> None:
    path = tmp_path / "group.sqlite"

    async def use() -> None:
        store = SqliteStore(path)
        await store.open()
        await store.transact([], [Put("a", b"1")])
        await store.close()

    run(use)
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE reserve (bytes BLOB)")
        connection.execute("INSERT INTO reserve VALUES (zeroblob(?))", (RESERVED_PAGES * PAGE_BYTES,))
    connection.close()
    run(use)
    connection = sqlite3.connect(path)
    assert ("reserve",) not in connection.execute("SELECT name FROM sqlite_master").fetchall()
    connection.close()

"""What only the SQLite store has: a file that outlives the process, other processes, and damage."""

import asyncio
import sqlite3
import stat
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from san_target.metadata import sqlite_database
from san_target.metadata.factory import make_store, open_store
from san_target.metadata.memory import MemoryStore
from san_target.metadata.sqlite import SqliteStore
from san_target.metadata.store import Compare, Put, Store, StoreError, StoreUnavailable

T = TypeVar("T")


def using(path: Path, action: Callable[[SqliteStore], Awaitable[T]], **options: object) -> T:
    async def body() -> T:
        store = SqliteStore(path, **options)  # type: ignore[arg-type]
        await store.open()
        try:
            return await action(store)
        finally:
            await store.close()

    return asyncio.run(asyncio.wait_for(body(), 30))


async def put(store: Store) -> None:
    assert (await store.transact([], [Put("a", b"1")])).succeeded


async def read(store: Store) -> list[tuple[str, bytes]]:
    return [(item.key, item.value) for item in (await store.range("")).items]


def test_reopening_finds_everything(tmp_path: Path) -> None:
    path = tmp_path / "group.sqlite"
    using(path, put)
    assert using(path, read) == [("a", b"1")]

    async def watch_history(store: Store) -> int:
        return (await anext(store.watch("", 1))).revision

    assert using(path, watch_history) == 1


def modes_in(directory: Path) -> dict[str, int]:
    return {found.name: stat.S_IMODE(found.stat().st_mode) for found in directory.iterdir()}


def test_the_file_and_its_companions_are_private(tmp_path: Path) -> None:
    path = tmp_path / "group.sqlite"
    path.touch(mode=0o644)
    path.chmod(0o644)

    async def modes(store: Store) -> dict[str, int]:
        await put(store)
        return modes_in(tmp_path)

    found = using(path, modes)
    assert "group.sqlite-wal" in found
    assert set(found.values()) == {0o600}


def test_commits_are_synchronous(tmp_path: Path) -> None:
    async def settings(store: SqliteStore) -> tuple[object, object]:
        connection = store._database._opened()

        def ask() -> tuple[object, object]:
            return (
                connection.execute("PRAGMA synchronous").fetchone()[0],
                connection.execute("PRAGMA journal_mode").fetchone()[0],
            )

        return await store._run(ask)

    assert using(tmp_path / "s", settings) == (2, "wal")


def test_leases_of_another_boot_have_ended(tmp_path: Path) -> None:
    path = tmp_path / "group.sqlite"

    async def bind(store: Store) -> int:
        lease = await store.grant_lease(3600)
        await store.transact([], [Put("leases/a", b"", lease)])
        return lease

    lease = using(path, bind, boot_id="monday", clock=lambda: 1e6)
    assert using(path, read, boot_id="monday", clock=lambda: 1e6) == [("leases/a", b"")]
    assert using(path, read, boot_id="tuesday", clock=lambda: 1.0) == []

    async def renew(store: Store) -> bool:
        return await store.renew_lease(lease)

    assert not using(path, renew, boot_id="tuesday", clock=lambda: 1.0)


def test_two_processes_count_together(tmp_path: Path) -> None:
    """Two processes increment one counter by compare-and-set; none is lost, and a watch here sees each revision."""
    path = tmp_path / "group.sqlite"
    program = textwrap.dedent(
        """
        import asyncio, sys
        from pathlib import Path
        from san_target.metadata.sqlite import SqliteStore
        from san_target.metadata.store import Compare, Put

        async def main():
            store = SqliteStore(Path(sys.argv[1]))
            await store.open()
            done = 0
            while done < 40:
                item = await store.get("counter")
                value = int(item.value) if item else 0
                compare = Compare("counter", item.mod_revision if item else 0)
                done += (await store.transact([compare], [Put("counter", b"%d" % (value + 1))])).succeeded
            await store.close()

        asyncio.run(main())
        """
    )

    async def watch_both(store: Store) -> list[bytes]:
        processes = [subprocess.Popen([sys.executable, "-c", program, str(path)]) for _ in range(2)]
        values: list[bytes] = []
        async for batch in store.watch("counter", 1):
            for event in batch.events:
                assert event.item is not None
                values.append(event.item.value)
            if len(values) == 80:
                break
        assert [await asyncio.to_thread(process.wait) for process in processes] == [0, 0]
        return values

    assert using(path, watch_both) == [b"%d" % number for number in range(1, 81)]


def test_changes_of_others_are_seen_in_a_steady_stream_of_own_requests(tmp_path: Path) -> None:
    path = tmp_path / "group.sqlite"

    async def body() -> None:
        busy, other = SqliteStore(path), SqliteStore(path)
        await busy.open()
        await other.open()
        seen = asyncio.ensure_future(anext(busy.watch("", 1)))
        await asyncio.sleep(0.05)
        await put(other)
        while not seen.done():
            await busy.get("a")  # never long enough apart for the store to be idle
        assert (await seen).revision == 1
        await busy.close()
        await other.close()

    asyncio.run(asyncio.wait_for(body(), 30))


def test_many_clients_may_create_it_together(tmp_path: Path) -> None:
    path = tmp_path / "group.sqlite"

    async def body() -> None:
        for number in range(20):
            stores = [SqliteStore(path.with_name(f"{number}.sqlite")) for _ in range(6)]
            await asyncio.gather(*(store.open() for store in stores))
            await asyncio.gather(*(store.close() for store in stores))
        stores = [SqliteStore(path) for _ in range(6)]
        await asyncio.gather(*(store.open() for store in stores))
        results = await asyncio.gather(*(store.transact([Compare("a", 0)], [Put("a", b"")]) for store in stores))
        assert sum(result.succeeded for result in results) == 1
        await asyncio.gather(*(store.close() for store in stores))

    asyncio.run(asyncio.wait_for(body(), 30))


def test_a_writer_that_holds_the_lock_gives_unavailable_and_readers_go_on(tmp_path: Path) -> None:
    path = tmp_path / "group.sqlite"
    using(path, put)

    async def blocked(store: Store) -> None:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        try:
            with pytest.raises(StoreUnavailable, match="nothing was changed"):
                await put(store)
            assert await read(store) == [("a", b"1")]
        finally:
            other.execute("ROLLBACK")
            other.close()
        await put(store)

    async def body() -> None:
        store = SqliteStore(path, busy_timeout_s=0.05)
        await store.open()
        await blocked(store)
        await store.close()

    asyncio.run(asyncio.wait_for(body(), 30))


def test_readers_do_not_wait_to_reap_a_lease(tmp_path: Path) -> None:
    path = tmp_path / "group.sqlite"
    now = [0.0]

    async def body(store: Store) -> None:
        lease = await store.grant_lease(1)
        await store.transact([], [Put("a", b"", lease)])
        now[0] = 2.0
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        assert await read(store) == [("a", b"")]
        other.execute("ROLLBACK")
        other.close()
        assert await read(store) == []

    using(path, body, clock=lambda: now[0], boot_id="b", busy_timeout_s=1000.0)


def opening_fails(path: Path) -> str:
    with pytest.raises(StoreError) as caught:
        using(path, read)
    return str(caught.value)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "group.sqlite"
    path.write_bytes(b"this is a text file, not a database\n" * 100)
    message = opening_fails(path)
    assert str(path) in message
    assert "restore it from a backup" in message
    assert path.read_bytes().startswith(b"this is a text")


def test_a_malformed_database(tmp_path: Path) -> None:
    path = tmp_path / "group.sqlite"

    async def fill(store: Store) -> None:
        for number in range(200):
            await store.transact([], [Put(f"volumes/{number}", bytes(200))])

    using(path, fill)
    data = bytearray(path.read_bytes())
    for offset in range(4096, len(data), 4096):
        data[offset : offset + 64] = b"\xa5" * 64
    path.write_bytes(data)
    assert "restore it from a backup" in opening_fails(path)


def test_a_truncated_database(tmp_path: Path) -> None:
    path = tmp_path / "group.sqlite"

    async def fill(store: Store) -> None:
        for number in range(100):
            await store.transact([], [Put(f"volumes/{number}", bytes(500))])

    using(path, fill)
    path.write_bytes(path.read_bytes()[:8192])
    assert "restore it from a backup" in opening_fails(path)


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE songs (title TEXT)")
    connection.close()
    before = path.read_bytes()
    assert "another program" in opening_fails(path)
    assert path.read_bytes() == before


def test_a_newer_schema_is_not_misread(tmp_path: Path) -> None:
    path = tmp_path / "group.sqlite"
    using(path, put)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    assert "schema version 2" in opening_fails(path)


def test_a_missing_directory(tmp_path: Path) -> None:
    message = opening_fails(tmp_path / "absent" / "group.sqlite")
    assert f"directory {tmp_path / 'absent'} of the store does not exist" in message


def test_a_directory_instead_of_a_file(tmp_path: Path) -> None:
    assert str(tmp_path) in opening_fails(tmp_path)


def test_a_store_that_failed_to_open_can_be_opened_later(tmp_path: Path) -> None:
    path = tmp_path / "group.sqlite"
    path.write_bytes(b"junk" * 1000)

    async def body() -> None:
        store = SqliteStore(path)
        with pytest.raises(StoreError):
            await store.open()
        path.unlink()
        await store.open()
        await put(store)
        await store.close()

    asyncio.run(asyncio.wait_for(body(), 30))


def test_a_read_only_store_is_said_to_be_that(tmp_path: Path) -> None:
    path = tmp_path / "group.sqlite"
    using(path, put)
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    with pytest.raises(sqlite3.Error) as caught:
        connection.execute("DELETE FROM items")
    connection.close()
    message = str(sqlite_database.translate(caught.value, path))
    assert "cannot be written" in message
    assert str(path) in message


def test_store_urls(tmp_path: Path) -> None:
    async def body() -> None:
        store = await open_store(f"sqlite://{tmp_path}/with%20space.sqlite")
        await put(store)
        await store.close()

    asyncio.run(body())
    assert (tmp_path / "with space.sqlite").is_file()
    assert isinstance(make_store("memory:"), MemoryStore)


@pytest.mark.parametrize("url", ["sqlite://host/path", "sqlite:///", "postgres://host", "/just/a/path", ""])
def test_other_store_urls_are_refused(url: str) -> None:
    with pytest.raises(StoreError, match="sqlite:///PATH"):
        make_store(url)

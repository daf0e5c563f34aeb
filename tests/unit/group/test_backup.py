"""A store as a file and back: whole or not at all, into any kind of store, and never over one that is in use."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from san_target.group.backup import Backup, BackupError, lines_of, read, restore
from san_target.group.group_record import ensure_group, find_group, group_secret
from san_target.group.membership import Membership, PoolFacts
from san_target.group.volumes import Volumes
from san_target.metadata.memory import MemoryData, MemoryStore
from san_target.metadata.schema import GROUP_KEY, RestoreRecord
from san_target.metadata.sqlite import SqliteStore
from san_target.metadata.store import Delete, Put, Store, StoreError, StoreUnavailable, TransactionResult

SECRET = bytes(range(32))


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await body()

    asyncio.run(bounded())


async def memory_store() -> MemoryStore:
    store = MemoryStore(MemoryData(lambda: 0.0))
    await store.open()
    return store


async def filled(store: Store) -> dict[str, bytes]:
    """A group with a member, volumes, and a value that is no text; what of it is to be backed up."""
    group = await ensure_group(store, "lab", "aa" * 16, SECRET)
    member = Membership(store, "one", PoolFacts("pool", free_bytes=1 << 40), lambda: 0.0)
    await member.join((), "")
    volumes = Volumes(store, group)
    for number in range(3):
        await volumes.create(f"disk{number}", 1 << 30)
    await store.transact([], [Put("reservations/x", b"\xff\x00")])
    return {item.key: item.value for item in (await store.range("")).items if not item.key.startswith("leases/")}


async def backed_up(store: Store) -> list[bytes]:
    return [line async for line in lines_of(store, "2026-01-31T12:00:00Z", "1.0")]


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_everything_but_leases_comes_back_in_any_store(kind: str, tmp_path: Path) -> None:
    async def body() -> None:
        source = await memory_store()
        values = await filled(source)
        lines = await backed_up(source)
        target: Store = SqliteStore(tmp_path / "store") if kind == "sqlite" else MemoryStore(MemoryData(lambda: 0.0))
        await target.open()
        backup = read(lines, "file")
        assert backup.header.revision == (await source.range("")).revision
        revision = await restore(target, backup, "bb" * 16)
        found = {item.key: item.value for item in (await target.range("")).items}
        assert {key: value for key, value in found.items() if key != GROUP_KEY} == {
            key: value for key, value in values.items() if key != GROUP_KEY
        }
        group = await find_group(target)
        assert group is not None
        assert (group.name, group.id) == ("lab", "aa" * 16)
        assert group.restores == (RestoreRecord("bb" * 16, backup.header.revision),)
        assert await group_secret(target, bytes(32)) == SECRET
        # What is new in it is newer than what anybody has seen.
        assert revision > backup.header.revision
        assert (await target.transact([], [Put("a", b"")])).revision > revision
        await target.close()

    run(body)


def test_a_backup_while_the_store_changes_is_of_one_moment() -> None:
    async def body() -> None:
        store = await memory_store()
        values = await filled(store)
        lines = []
        async for line in lines_of(store, "", ""):
            lines.append(line)
            await store.transact([], [Put("maps/new", b"x"), Delete("reservations/x")])
        assert read(lines, "file").values == values

    run(body)


def test_an_empty_store_is_not_backed_up() -> None:
    async def body() -> None:
        with pytest.raises(StoreError, match="nothing to back up; check --store"):
            await backed_up(await memory_store())

    run(body)


class TestDamage:
    def lines(self) -> list[bytes]:
        found: list[bytes] = []

        async def body() -> None:
            store = await memory_store()
            await filled(store)
            found.extend(await backed_up(store))

        run(body)
        return found

    def test_a_file_that_was_cut_anywhere(self) -> None:
        lines = self.lines()
        for count in range(len(lines)):
            with pytest.raises(BackupError, match="no end"):
                read(lines[:count], "file")
        with pytest.raises(BackupError, match=f"line {len(lines)} of file cannot be read"):
            read([*lines[:-1], lines[-1][:-5]], "file")

    def test_any_key_that_is_missing_doubled_or_changed(self) -> None:
        lines = self.lines()
        for number in range(1, len(lines) - 1):
            changed = lines[number].replace(b'"key":"', b'"key":"x', 1)
            for others in ([], [lines[number], lines[number]], [changed]):
                with pytest.raises(BackupError, match="damaged"):
                    read([*lines[:number], *others, *lines[number + 1 :]], "file")

    def test_other_files(self) -> None:
        for text in (b"hello\n", b"{}\n", b'{"kind":"key","key":"a","value":"b"}\n', b"\xff\n"):
            with pytest.raises(BackupError, match="file"):
                read([text], "file")

    def test_a_newer_format(self) -> None:
        lines = self.lines()
        header = msgspec.json.decode(lines[0]) | {"format": 2}
        with pytest.raises(BackupError, match="upgrade"):
            read([msgspec.json.encode(header) + b"\n", *lines[1:]], "file")


class TestRefusals:
    def test_a_store_that_is_in_use(self) -> None:
        async def body() -> None:
            store = await memory_store()
            await filled(store)
            backup = read(await backed_up(store), "file")
            for replace in (False, True):
                with pytest.raises(BackupError, match="member one runs with this store"):
                    await restore(store, backup, "bb" * 16, replace)

        run(body)

    def test_a_store_that_is_not_empty(self) -> None:
        async def body() -> None:
            source = await memory_store()
            await filled(source)
            backup = read(await backed_up(source), "file")
            target = await memory_store()
            await ensure_group(target, "other", "cc" * 16, SECRET)
            await target.transact([], [Put(f"maps/{number}", b"") for number in range(100)])
            with pytest.raises(BackupError, match=r"not empty.*--force"):
                await restore(target, backup, "bb" * 16)
            await restore(target, backup, "bb" * 16, replace=True)
            group = await find_group(target)
            assert group is not None
            assert group.name == "lab"
            assert (await target.range("maps/")).items == tuple(
                item for item in (await target.range("maps/")).items if item.key in backup.values
            )

        run(body)


def test_a_restore_that_was_interrupted_anywhere_is_taken_for_no_store_and_can_be_done_again() -> None:
    async def once(steps: int, backup: Backup) -> bool:
        class Dying(MemoryStore):
            left = steps

            async def transact(self, compares: object, operations: object) -> TransactionResult:
                if self.left == 0:
                    raise StoreUnavailable("gone")
                self.left -= 1
                return await super().transact(compares, operations)  # type: ignore[arg-type]

        data = MemoryData(lambda: 0.0)
        old, dying = MemoryStore(data), Dying(data)
        await old.open()
        await dying.open()
        await ensure_group(old, "old", "cc" * 16, SECRET)
        await old.transact([], [Put(f"maps/old{number}", b"") for number in range(120)])
        try:
            await restore(dying, backup, "bb" * 16, replace=True)
        except StoreUnavailable:
            if steps:
                with pytest.raises(StoreError, match="damaged"):
                    await ensure_group(old, "lab", "aa" * 16, SECRET)
            await restore(old, backup, "dd" * 16, replace=True)
        else:
            return False
        found = {item.key for item in (await old.range("")).items}
        assert found == backup.values.keys()
        return True

    async def body() -> None:
        source = await memory_store()
        await filled(source)
        backup = read(await backed_up(source), "file")
        steps = 0
        while await once(steps, backup):
            steps += 1
        assert steps >= 3

    run(body)

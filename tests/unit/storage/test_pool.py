"""The pool on disk: what it remembers, what it refuses, and what it says then."""

import asyncio
import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import pytest

from san_target.storage import records
from san_target.storage.pool import Pool
from san_target.storage.records import HeldRange, PoolError
from san_target.storage.threads import SynchronousThreads, ThreadPool

GROUP = "ab" * 16
VOLUME = "0123456789abcdef" * 2
OTHER = "fedcba9876543210" * 2
MIB = 1 << 20


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


@contextlib.asynccontextmanager
async def opened(directory: Path, group: str = GROUP, revision: int = 5) -> AsyncIterator[Pool]:
    pool = Pool(directory, SynchronousThreads())
    await pool.open(group, revision)
    try:
        yield pool
    finally:
        await pool.close()


async def create(pool: Pool, volume_id: str = VOLUME, generation: int = 5):
    return await pool.create_volume(volume_id, MIB, 512, [HeldRange(0, MIB // 512, generation)])


async def resize(pool: Pool, size_bytes: int, generation: int) -> None:
    """New blocks are held under `generation`."""
    volume = pool.open_volume(VOLUME)
    blocks = volume.record.size_bytes // volume.record.block_size
    held = records.resized(volume.held, blocks, size_bytes // volume.record.block_size, generation)
    await pool.resize_volume(VOLUME, size_bytes, held)


def test_a_volume_is_there_after_a_restart(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path / "pool") as pool:
            volume = await create(pool)
            volume.file.write(4096, b"hello")
            pool_id = pool.pool_id
        async with opened(tmp_path / "pool") as pool:
            assert pool.list_volumes() == [VOLUME]
            assert pool.problems == {}
            assert pool.pool_id == pool_id
            volume = pool.open_volume(VOLUME)
            assert volume.file.size_bytes == MIB
            assert volume.held == (HeldRange(0, 2048, 5),)
            assert volume.file.read(4096, 5) == b"hello"

    run(work())


def test_it_works_with_real_threads(tmp_path: Path) -> None:
    async def work() -> None:
        threads = ThreadPool(2, 1)
        pool = Pool(tmp_path, threads)
        await pool.open(GROUP, 1)
        await create(pool)
        await pool.close()
        threads.close()

    run(work())
    assert (tmp_path / "volumes" / f"{VOLUME}.blocks").stat().st_size == MIB


def test_changes_of_different_volumes_may_overlap(tmp_path: Path) -> None:
    async def work() -> None:
        threads = ThreadPool(8, 8)
        pool = Pool(tmp_path, threads)
        await pool.open(GROUP, 1)
        ids = [f"{number:032x}" for number in range(12)]
        await asyncio.gather(
            *(create(pool, volume_id, generation=2 + number) for number, volume_id in enumerate(ids)),
            *(pool.note_revision(revision) for revision in range(2, 30)),
        )
        await pool.close()
        await pool.open(GROUP, 29)
        assert pool.revision == 29
        assert pool.list_volumes() == ids
        assert pool.problems == {}
        await pool.close()
        threads.close()

    run(work())


RESTORES = (("first", 100), ("second", 150))


@pytest.mark.parametrize(
    ("seen", "revision", "restores", "allowed"),
    [
        ("", 90, (), 90),
        ("", 90, RESTORES, 100),  # never saw a restore: it may know what the first backup knew
        ("first", 90, RESTORES, 150),
        ("second", 90, RESTORES, 90),
        ("second", 90, RESTORES[:1], None),
        ("other", 90, RESTORES, None),
    ],
)
def test_what_a_pool_may_have_seen_of_a_restored_store(
    seen: str, revision: int, restores: tuple[tuple[str, int], ...], allowed: int | None
) -> None:
    assert records.revision_allowed(seen, revision, restores) == allowed


def test_a_restored_store_is_compared_with_what_its_backup_knew(tmp_path: Path) -> None:
    """Its own revisions may be far ahead of that, as those of an etcd that others use too."""

    async def start(revision: int, restores: tuple[tuple[str, int], ...]) -> None:
        pool = Pool(tmp_path, SynchronousThreads())
        await pool.open(GROUP, revision, restores)
        await pool.close()

    async def work() -> None:
        await start(120, ())
        with pytest.raises(PoolError, match=r"it is at revision 100, the pool has seen 120.*store rebuild"):
            await start(5000, (("first", 100),))
        await start(5000, (("first", 130),))
        await start(5001, (("first", 130),))
        with pytest.raises(PoolError, match="is at revision 4000, the pool has seen 5001"):
            await start(4000, (("first", 130),))
        with pytest.raises(PoolError, match="had been restored from a backup, and this is another one"):
            await start(9000, ())
        await start(5002, (("first", 130), ("second", 5001)))

    run(work())


def test_nobody_else_may_read_the_volumes(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path / "pool") as pool:
            await create(pool)

    run(work())
    assert (tmp_path / "pool" / "volumes").stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "pool" / "volumes").iterdir())


def test_creating_the_same_again_is_harmless_and_something_else_is_refused(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path) as pool:
            first = await create(pool)
            assert await create(pool) is first
            with pytest.raises(PoolError, match="already"):
                await pool.create_volume(VOLUME, 2 * MIB, 512, [HeldRange(0, 4096, 5)])

    run(work())


def test_a_deleted_volume_is_gone_and_deleting_again_is_harmless(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path) as pool:
            await create(pool)
            await create(pool, OTHER)
            await pool.delete_volume(VOLUME)
            await pool.delete_volume(VOLUME)
            assert pool.list_volumes() == [OTHER]
            with pytest.raises(PoolError):
                pool.open_volume(VOLUME)
        assert [path.name for path in sorted((tmp_path / "volumes").iterdir())] == [f"{OTHER}.blocks", f"{OTHER}.held"]

    run(work())


def test_an_interrupted_deletion_is_finished_at_the_next_start(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path) as pool:
            await create(pool)
        (tmp_path / "volumes" / f"{VOLUME}.held").rename(tmp_path / "volumes" / f"{VOLUME}.deleting")
        async with opened(tmp_path) as pool:
            assert pool.list_volumes() == []
        assert list((tmp_path / "volumes").iterdir()) == []

    run(work())


def test_deleting_removes_blocks_whose_record_was_lost(tmp_path: Path) -> None:
    """The tombstone in the store decides, not what the pool remembers: else nobody would ever remove the file."""

    async def work() -> None:
        async with opened(tmp_path) as pool:
            volume = await create(pool)
            volume.file.write(0, b"data")
        (tmp_path / "volumes" / f"{VOLUME}.held").unlink()
        async with opened(tmp_path) as pool:
            await pool.delete_volume(VOLUME)
        assert list((tmp_path / "volumes").iterdir()) == []

    run(work())


@pytest.mark.parametrize("step", ["replace", "unlink"])
def test_a_deletion_that_failed_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """As on a disk that was read-only for a while: the second time removes all, it does not just say so."""

    def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.EROFS, "read-only")

    async def work() -> None:
        async with opened(tmp_path) as pool:
            await create(pool)
            with monkeypatch.context() as patch:
                patch.setattr(os, step, refuse)
                patch.setattr(Path, "unlink", refuse)
                for _ in range(2):
                    with pytest.raises(PoolError, match="read-only"):
                        await pool.delete_volume(VOLUME)
            await pool.delete_volume(VOLUME)
            assert list((tmp_path / "volumes").iterdir()) == []

    run(work())


def test_half_written_records_of_a_killed_process_are_cleared_away(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path) as pool:
            await create(pool)
        strangers = tmp_path / "thesis.new"  # a pool's directory may hold what is not the pool's
        strangers.write_bytes(b"precious")
        left = [tmp_path / "pool.json.new", tmp_path / "volumes" / f"{VOLUME}.held.new"]
        for path in left:
            path.write_bytes(b"{")
        async with opened(tmp_path) as pool:
            assert pool.list_volumes() == [VOLUME]
            assert pool.problems == {}
        assert not any(path.exists() for path in left)
        assert strangers.read_bytes() == b"precious"

    run(work())


def test_an_interrupted_creation_can_be_repeated(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path) as pool:
            await create(pool)
        (tmp_path / "volumes" / f"{VOLUME}.held").unlink()
        async with opened(tmp_path) as pool:
            assert pool.list_volumes() == []
            assert pool.find_volume(VOLUME) is None
            await create(pool)
            assert pool.find_volume(VOLUME) is not None

    run(work())


def test_data_without_a_record_is_never_taken_over(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path) as pool:
            volume = await create(pool)
            volume.file.write(0, b"precious")
            volume.file.flush()
        (tmp_path / "volumes" / f"{VOLUME}.held").unlink()
        async with opened(tmp_path) as pool:
            with pytest.raises(PoolError, match="restore"):
                await create(pool)
            with pytest.raises(PoolError, match=r"held is missing.*bring it back"):
                pool.open_volume(VOLUME)
            with pytest.raises(PoolError, match="held is missing"):
                pool.find_volume(VOLUME)
        assert (tmp_path / "volumes" / f"{VOLUME}.blocks").read_bytes().startswith(b"precious")

    run(work())


def test_growing_adds_held_blocks_that_read_as_zeros(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path) as pool:
            await create(pool, generation=5)
            await resize(pool, 2 * MIB, 5)
            assert pool.open_volume(VOLUME).held == (HeldRange(0, 4096, 5),)
            await resize(pool, 3 * MIB, 9)
        async with opened(tmp_path, revision=9) as pool:
            volume = pool.open_volume(VOLUME)
            assert volume.held == (HeldRange(0, 4096, 5), HeldRange(4096, 6144, 9))
            assert volume.file.read(2 * MIB, MIB) == bytes(MIB)

    run(work())


def test_growing_may_add_blocks_that_are_not_held(tmp_path: Path) -> None:
    """Those of other members."""

    async def work() -> None:
        async with opened(tmp_path) as pool:
            await create(pool)
            held = (HeldRange(0, 2048, 5), HeldRange(3000, 4000, 9))
            await pool.resize_volume(VOLUME, 4 * MIB, held)
        async with opened(tmp_path, revision=9) as pool:
            volume = pool.open_volume(VOLUME)
            assert (volume.held, volume.record.size_bytes, volume.file.size_bytes) == (held, 4 * MIB, 4 * MIB)
            with pytest.raises(AssertionError):
                await pool.resize_volume(VOLUME, MIB, held)

    run(work())


def test_a_lost_journal_is_not_replaced_in_silence(tmp_path: Path) -> None:
    """It may hold an atomic write, half of which is in its place."""

    async def work() -> None:
        journal = tmp_path / "journal"
        async with opened(tmp_path) as pool:
            await create(pool)
        journal.unlink()
        with pytest.raises(PoolError, match="journal is missing") as caught:
            async with opened(tmp_path):
                pass
        assert not journal.exists()
        way_out = str(caught.value).partition("give them up: ")[2]
        subprocess.run(way_out.split(), check=True)
        async with opened(tmp_path) as pool:
            assert pool.list_volumes() == [VOLUME]

    run(work())


def test_a_journal_that_was_copied_without_its_space_gets_it_back(tmp_path: Path) -> None:
    """As by `cp --sparse` or a backup: an atomic write must never find that its journal has no space."""

    async def work() -> None:
        journal = tmp_path / "journal"
        async with opened(tmp_path) as pool:
            await create(pool)
        size_bytes = journal.stat().st_size
        os.truncate(journal, 0)
        os.truncate(journal, size_bytes)
        assert journal.stat().st_blocks == 0
        async with opened(tmp_path):
            assert journal.stat().st_blocks * 512 >= size_bytes

    run(work())


def test_shrinking_and_growing_again_shows_no_old_data(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path) as pool:
            volume = await create(pool)
            volume.file.write(0, b"\xff" * MIB)
            await resize(pool, MIB - 512, 5)
            assert pool.open_volume(VOLUME).held == (HeldRange(0, 2047, 5),)
            await resize(pool, MIB, 5)
            assert volume.file.read(MIB - 1024, 1024) == b"\xff" * 512 + bytes(512)

    run(work())


def test_a_shrink_that_the_disk_refuses_shows_no_old_data_after_a_growth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store has taken the smaller size already, so what lies beyond is given up, whatever else fails."""

    def refuse(_path: Path, _data: bytes) -> None:
        raise OSError(errno.EIO, "disk error")

    async def work() -> None:
        async with opened(tmp_path) as pool:
            volume = await create(pool)
            volume.file.write(0, b"\xff" * MIB)
            with monkeypatch.context() as patch:
                patch.setattr(records, "write_durably", refuse)
                with pytest.raises(PoolError, match="disk reports errors"):
                    await resize(pool, MIB // 2, 5)
            await resize(pool, 2 * MIB, 5)
            assert volume.file.read(0, 2 * MIB) == b"\xff" * (MIB // 2) + bytes(MIB + MIB // 2)

    run(work())


def test_an_interrupted_resize_ends_as_the_record_says(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path) as pool:
            await create(pool)
        os.truncate(tmp_path / "volumes" / f"{VOLUME}.blocks", 2 * MIB)
        async with opened(tmp_path) as pool:
            assert pool.open_volume(VOLUME).file.size_bytes == MIB
        assert (tmp_path / "volumes" / f"{VOLUME}.blocks").stat().st_size == MIB

    run(work())


def test_a_volume_that_would_be_too_large_stays_as_it_is(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path) as pool:
            await create(pool)
            with pytest.raises(PoolError, match=r"the file system (has no such large files|refuses)"):
                await resize(pool, (1 << 63) - 512, 6)
            assert pool.open_volume(VOLUME).file.size_bytes == MIB
        async with opened(tmp_path, revision=6) as pool:
            assert pool.open_volume(VOLUME).record.size_bytes == MIB

    run(work())


def test_the_held_ranges_can_be_replaced(tmp_path: Path) -> None:
    async def work() -> None:
        held = (HeldRange(0, 8, 5), HeldRange(16, 2048, 7, "receiving"))
        async with opened(tmp_path) as pool:
            await create(pool)
            await pool.update_held(VOLUME, held)
        async with opened(tmp_path, revision=7) as pool:
            assert pool.open_volume(VOLUME).held == held

    run(work())


def test_the_pool_of_another_group_is_refused(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path):
            pass
        with pytest.raises(PoolError, match=r"belongs to group .*another pool directory"):
            async with opened(tmp_path, group="cd" * 16):
                pass

    run(work())


def test_an_older_store_is_refused(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path, revision=5) as pool:
            await pool.note_revision(20)
            await pool.note_revision(10)
            assert pool.revision == 20
        with pytest.raises(PoolError, match=r"older than the pool .*backup"):
            async with opened(tmp_path, revision=19):
                pass
        async with opened(tmp_path, revision=20):
            pass

    run(work())


def test_a_generation_counts_as_a_seen_revision(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path, revision=5) as pool:
            await create(pool, generation=12)
        with pytest.raises(PoolError, match="older"):
            async with opened(tmp_path, revision=11):
                pass

    run(work())


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    import crc32c

    async def work() -> None:
        async with opened(tmp_path):
            pass
        body = b'{"format":2,"pool_id":"x","group_id":"' + GROUP.encode() + b'","revision":1}'
        (tmp_path / "pool.json").write_bytes(b'{"crc32c":%d,"record":%b}' % (crc32c.crc32c(body), body))
        with pytest.raises(PoolError, match="upgrade this member"):
            async with opened(tmp_path):
                pass

    run(work())


def test_a_pool_without_its_record_is_refused(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path) as pool:
            await create(pool)
        (tmp_path / "pool.json").unlink()
        with pytest.raises(PoolError, match="restore"):
            async with opened(tmp_path):
                pass

    run(work())


@pytest.mark.parametrize("damage", ["flipped digit", "cut", "not text", "empty"])
@pytest.mark.parametrize("name", ["pool.json", "held"])
def test_damaged_records_are_noticed(tmp_path: Path, damage: str, name: str) -> None:
    async def work() -> None:
        async with opened(tmp_path) as pool:
            await create(pool)
        path = tmp_path / name if name == "pool.json" else tmp_path / "volumes" / f"{VOLUME}.held"
        data = path.read_bytes()
        path.write_bytes(
            {
                "flipped digit": data.replace(b":5", b":4"),
                "cut": data[: len(data) // 2],
                "not text": b"\xff\xfe" + data,
                "empty": b"",
            }[damage]
        )
        if name == "pool.json":
            with pytest.raises(PoolError, match="damaged"):
                async with opened(tmp_path):
                    pass
        else:
            async with opened(tmp_path) as pool:
                with pytest.raises(PoolError, match="damaged"):
                    pool.open_volume(VOLUME)

    run(work())


@pytest.mark.parametrize("damage", ["missing", "too short"])
def test_a_damaged_volume_is_refused_and_the_others_are_served(tmp_path: Path, damage: str) -> None:
    async def work() -> None:
        async with opened(tmp_path) as pool:
            await create(pool)
            await create(pool, OTHER)
        path = tmp_path / "volumes" / f"{VOLUME}.blocks"
        if damage == "missing":
            path.unlink()
        else:
            os.truncate(path, 4096)
        async with opened(tmp_path) as pool:
            assert pool.list_volumes() == [VOLUME, OTHER]
            assert list(pool.problems) == [VOLUME]
            with pytest.raises(PoolError, match=r"backup.*delete the volume"):
                pool.open_volume(VOLUME)
            pool.open_volume(OTHER)
            with pytest.raises(PoolError):
                await create(pool)
            await pool.delete_volume(VOLUME)
            assert pool.list_volumes() == [OTHER]

    run(work())


def test_the_record_of_another_volume_is_refused(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path) as pool:
            await create(pool)
            await create(pool, OTHER)
        held = tmp_path / "volumes"
        (held / f"{OTHER}.held").write_bytes((held / f"{VOLUME}.held").read_bytes())
        async with opened(tmp_path) as pool:
            with pytest.raises(PoolError, match="belongs to volume"):
                pool.open_volume(OTHER)

    run(work())


def test_an_unknown_volume_is_refused_with_advice(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path) as pool:
            with pytest.raises(PoolError, match="another pool directory"):
                pool.open_volume(VOLUME)

    run(work())


def test_two_processes_never_open_one_pool(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import asyncio, sys, pathlib\n"
            "from san_target.storage.pool import Pool\n"
            "from san_target.storage.threads import SynchronousThreads\n"
            "pool = Pool(pathlib.Path(sys.argv[1]), SynchronousThreads())\n"
            f"asyncio.run(pool.open({GROUP!r}, 5))\n"
            "print('open', flush=True)\n"
            "sys.stdin.read()\n",
            str(tmp_path),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"

        async def refused() -> None:
            with pytest.raises(PoolError, match=f"in use by process {holder.pid}"):
                async with opened(tmp_path):
                    pass

        run(refused())
    finally:
        holder.communicate()

    async def free_now() -> None:
        async with opened(tmp_path):
            pass

    run(free_now())


def test_space_is_that_of_the_file_system(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path) as pool:
            total, free = pool.space()
            assert 0 < free <= total

    run(work())


def test_a_pool_in_a_file_is_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    async def work() -> None:
        with pytest.raises(PoolError, match="not a directory"):
            async with opened(tmp_path / "file"):
                pass

    run(work())


def test_it_exists_once_it_was_opened(tmp_path: Path) -> None:
    """A member takes it from this that there was a group before."""

    async def work() -> None:
        pool = Pool(tmp_path, SynchronousThreads())
        assert not pool.exists()
        async with opened(tmp_path):
            pass
        assert pool.exists()

    run(work())

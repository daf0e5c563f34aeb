"""What a pool remembers, read while nobody has it open."""

import asyncio
from pathlib import Path

import pytest

from san_target.storage.pool import Pool
from san_target.storage.pool_contents import encode_contents, read_contents, read_pool
from san_target.storage.records import HeldRange, PoolError
from san_target.storage.threads import ThreadPool

GROUP = "9" * 32
ONE, TWO = "1" * 32, "2" * 32


async def made(directory: Path, leave_open: bool = False) -> Pool:
    threads = ThreadPool(1, 1)
    pool = Pool(directory, threads)
    await pool.open(GROUP, 7)
    await pool.create_volume(ONE, 1 << 20, 512, [HeldRange(0, 1000, 5)])
    await pool.create_volume(TWO, 1 << 20, 4096, [HeldRange(0, 256, 6)])
    if not leave_open:
        await pool.close()
    threads.close()
    return pool


def test_it_tells_pool_and_volumes(tmp_path: Path) -> None:
    asyncio.run(made(tmp_path))
    contents = read_pool(tmp_path)
    assert (contents.pool.group_id, contents.pool.revision) == (GROUP, 7)
    assert {record.volume_id: record.held for record in contents.volumes} == {
        ONE: (HeldRange(0, 1000, 5),),
        TWO: (HeldRange(0, 256, 6),),
    }
    path = tmp_path / "contents"
    path.write_bytes(encode_contents(contents))
    assert read_contents(path) == contents == read_contents(tmp_path)
    asyncio.run(reopened(tmp_path))  # it was left as it was


async def reopened(directory: Path) -> None:
    threads = ThreadPool(1, 1)
    pool = Pool(directory, threads)
    await pool.open(GROUP, 7)
    assert pool.list_volumes() == [ONE, TWO]
    await pool.close()
    threads.close()


def test_a_damaged_record_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    asyncio.run(made(tmp_path))
    (tmp_path / "volumes" / f"{ONE}.held").write_bytes(b"{}")
    contents = read_pool(tmp_path)
    assert [record.volume_id for record in contents.volumes] == [TWO]
    assert "is damaged" in contents.unreadable[ONE]


def test_a_pool_that_is_in_use(tmp_path: Path) -> None:
    async def body() -> None:
        await made(tmp_path, leave_open=True)
        with pytest.raises(PoolError, match="in use by process"):
            read_pool(tmp_path)

    asyncio.run(body())


def test_what_is_no_pool(tmp_path: Path) -> None:
    with pytest.raises(PoolError, match=r"is no pool: there is no .*pool.json"):
        read_pool(tmp_path)
    other = tmp_path / "file"
    other.write_text("hello")
    with pytest.raises(PoolError, match="neither a pool nor"):
        read_contents(other)
    with pytest.raises(PoolError, match="cannot be read"):
        read_contents(tmp_path / "missing")
    asyncio.run(made(tmp_path / "pool"))
    (tmp_path / "pool" / "pool.json").write_bytes(b"{}")
    with pytest.raises(PoolError, match="is damaged"):
        read_pool(tmp_path / "pool")

"""Real file systems that are full or read-only: acknowledged data stays, freeing space heals."""

import asyncio
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from san_target.storage.pool import Pool
from san_target.storage.records import HeldRange, PoolError
from san_target.storage.threads import ThreadPool
from san_target.volume.device import OutOfSpace, WriteProtected
from san_target.volume.partition_map import PartitionMap, Placement
from san_target.volume.volume import Volume

GROUP = "ab" * 16
VOLUME = "0123456789abcdef" * 2
MIB = 1 << 20
BLOCKS = 64 * MIB // 4096
MS_RDONLY, MS_REMOUNT, MNT_DETACH = 1, 32, 2

_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 24 MiB."""
    directory = tmp_path / "small"
    directory.mkdir()
    if _libc.mount(b"none", bytes(directory), b"tmpfs", 0, b"size=24m") != 0:
        pytest.skip(f"mounting a tmpfs is not permitted here: {os.strerror(ctypes.get_errno())}")
    yield directory
    _libc.umount2(bytes(directory), MNT_DETACH)


def unfinished(directory: Path) -> list[Path]:
    return list(directory.rglob("*.new"))


async def open_volume(pool: Pool, threads: ThreadPool) -> Volume:
    await pool.open(GROUP, 1)
    if VOLUME in pool.list_volumes():
        there = pool.open_volume(VOLUME)
    else:
        there = await pool.create_volume(VOLUME, BLOCKS * 4096, 4096, [HeldRange(0, BLOCKS, 1)])
    return Volume(
        VOLUME,
        4096,
        BLOCKS,
        PartitionMap(BLOCKS, Placement("a", generation=1)).snapshot(),
        "a",
        there.file,
        there.held,
        threads,
        pool.journal,
    )


def test_a_full_pool_loses_nothing_and_heals(small_disk: Path) -> None:
    async def work() -> None:
        threads = ThreadPool(2, 2)
        pool = Pool(small_disk, threads)
        volume = await open_volume(pool, threads)
        written: dict[int, bytes] = {}

        async def write(lba: int, blocks: int) -> None:
            data = os.urandom(blocks * 4096)
            if not volume.try_write(lba, blocks, data):
                await volume.write(lba, data)
            written.update({lba + index: data[index * 4096 : (index + 1) * 4096] for index in range(blocks)})

        async def verify(volume: Volume) -> None:
            for lba, data in written.items():
                assert await volume.read(lba, 1) == data

        async def fill() -> None:
            for lba in range(0, BLOCKS - 37, 37):
                await write(lba, 37)

        with pytest.raises(OutOfSpace):
            await fill()
        assert len(written) > 500
        await verify(volume)
        for durable in (True, False):
            with pytest.raises(OutOfSpace):
                await volume.write(BLOCKS - 64, os.urandom(64 * 4096), durable)
        with pytest.raises(OutOfSpace):
            await volume.write_same(BLOCKS - 4096, 4096, b"x" * 4096)
        # The atomic write finds out before it changes anything.
        with pytest.raises(OutOfSpace):
            await volume.write_atomic(BLOCKS - 256, os.urandom(256 * 4096))
        await volume.flush(0, BLOCKS)
        await verify(volume)
        # What is there can be overwritten.
        await write(0, 37)
        # A full pool can be closed and opened again.
        await volume.drain()
        await pool.close()
        volume = await open_volume(pool, threads)
        await verify(volume)
        # Unmapping heals.
        await volume.unmap([(0, 370), (BLOCKS - 4096, 4096)])
        for lba in range(370):
            written[lba] = bytes(4096)
        await write(BLOCKS - 64, 64)
        await volume.flush(0, BLOCKS)
        await verify(volume)
        await volume.drain()
        await pool.close()
        threads.close()

    asyncio.run(work())


def test_a_volume_can_be_deleted_from_a_full_pool(small_disk: Path) -> None:
    async def work() -> None:
        threads = ThreadPool(2, 2)
        pool = Pool(small_disk, threads)
        volume = await open_volume(pool, threads)
        with pytest.raises(OutOfSpace):
            await volume.write(0, bytes(64 * MIB))
        with pytest.raises(PoolError, match="no space is left"):
            await pool.update_held(VOLUME, [HeldRange(0, 1, 1)])
        assert not unfinished(small_disk)  # what could not be written takes no space either
        await pool.delete_volume(VOLUME)
        assert pool.list_volumes() == []
        assert pool.space()[1] > 8 * MIB
        await pool.close()
        threads.close()

    asyncio.run(work())


def test_shrinking_a_volume_frees_space_in_a_full_pool(small_disk: Path) -> None:
    async def work() -> None:
        threads = ThreadPool(2, 2)
        pool = Pool(small_disk, threads)
        volume = await open_volume(pool, threads)
        with pytest.raises(OutOfSpace):
            await volume.write(0, b"x" * (64 * MIB))
        await volume.resize(MIB // 4096)
        await pool.resize_volume(VOLUME, MIB, [HeldRange(0, MIB // 4096, 1)])
        assert pool.space()[1] > 8 * MIB
        assert bytes(await volume.read(0, MIB // 4096)) == b"x" * MIB
        await volume.drain()
        await pool.close()
        threads.close()

    asyncio.run(work())


def test_a_file_system_that_becomes_read_only(small_disk: Path) -> None:
    async def work() -> None:
        threads = ThreadPool(2, 2)
        pool = Pool(small_disk, threads)
        await open_volume(pool, threads)
        await pool.close()
        assert _libc.mount(b"none", bytes(small_disk), b"tmpfs", MS_REMOUNT | MS_RDONLY, b"") == 0
        with pytest.raises(PoolError, match="read-only"):
            await pool.open(GROUP, 1)
        threads.close()

    asyncio.run(work())


def test_at_run_time_it_means_write_protected(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A mount with open writers cannot be made read-only; a disk error can (ext4's errors=remount-ro). So by hand:
    import errno

    async def work() -> None:
        threads = ThreadPool(2, 2)
        pool = Pool(small_disk, threads)
        volume = await open_volume(pool, threads)
        await volume.write(0, b"x" * 4096)

        def refuse(*_arguments: object) -> int:
            raise OSError(errno.EROFS, "read-only")

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwritev", refuse)
            assert not volume.try_write(0, 1, b"y" * 4096)
            for durable in (False, True):
                with pytest.raises(WriteProtected):
                    await volume.write(0, b"y" * 4096, durable)
        assert await volume.read(0, 1) == b"x" * 4096
        await volume.drain()
        await pool.close()
        threads.close()

    asyncio.run(work())

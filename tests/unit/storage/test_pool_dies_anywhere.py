"""A process that dies at any system call of a change: the next start and the same change once more put all right."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from san_target.storage import blocks_file
from san_target.storage.pool import Pool
from san_target.storage.records import HeldRange
from san_target.storage.threads import SynchronousThreads

VOLUME = "0123456789abcdef" * 2
GROUP = "ab" * 16
MIB = 1 << 20
STEPS_MAX = 60
CALLS = ("open", "write", "pwrite", "ftruncate", "fsync", "fdatasync", "replace", "unlink")

Change = Callable[[Pool], Any]


class Died(BaseException):
    """Nothing runs after it: each later call raises it again, so no clean-up helps."""


class Process:
    """Counts system calls that change something, and dies at the call number `dies_at`."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.dies_at = -1
        self.calls = 0
        self._watch(patch, os, CALLS)
        self._watch(patch, blocks_file, ("_allocate",))

    def _watch(self, patch: pytest.MonkeyPatch, module: Any, names: tuple[str, ...]) -> None:
        for name in names:
            patch.setattr(module, name, self._watched(getattr(module, name)))

    def _watched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            if 0 <= self.dies_at < self.calls:
                raise Died
            return call(*arguments, **options)

        return watched


async def opened(directory: Path) -> Pool:
    pool = Pool(directory, SynchronousThreads())
    await pool.open(GROUP, 9)
    return pool


def held(blocks: int) -> list[HeldRange]:
    return [HeldRange(0, blocks, 1)]


def create(pool: Pool) -> None:
    pool._create_volume(VOLUME, MIB, 512, tuple(held(2048)))


def grow(pool: Pool) -> None:
    pool._resize_volume(VOLUME, 2 * MIB, (HeldRange(0, 2048, 1), HeldRange(2048, 4096, 5)))


def shrink(pool: Pool) -> None:
    pool._resize_volume(VOLUME, MIB // 2, (HeldRange(0, 1024, 1),))


def delete(pool: Pool) -> None:
    pool._delete_volume(VOLUME)


async def check(pool: Pool, change: Change, data: bytes) -> None:
    if change is delete:
        assert pool.list_volumes() == []
        assert list((pool.directory / "volumes").iterdir()) == []
        return
    size = {create: MIB, grow: 2 * MIB, shrink: MIB // 2}[change]
    volume = pool.open_volume(VOLUME)
    assert (volume.record.size_bytes, volume.file.size_bytes) == (size, size)
    assert volume.held[-1].end_lba == size // 512
    expected = bytes(size) if change is create else data[:size].ljust(size, b"\0")
    assert bytes(volume.file.read(0, size)) == expected
    if change is shrink:
        await pool.resize_volume(VOLUME, MIB, [HeldRange(0, 1024, 1), HeldRange(1024, 2048, 6)])
        assert bytes(volume.file.read(size, MIB - size)) == bytes(MIB - size)
    assert sorted(path.suffix for path in (pool.directory / "volumes").iterdir()) == [".blocks", ".held"]


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("change", [create, grow, shrink, delete])
def test_the_same_change_once_more_puts_all_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change, twice: bool
) -> None:
    """twice: the next start dies too, at each of its first calls in turn."""
    data = os.urandom(MIB)
    process = Process(monkeypatch)

    async def scenario(directory: Path, step: int) -> bool:
        pool = await opened(directory)
        if change is not create:
            await pool.create_volume(VOLUME, MIB, 512, held(2048))
            pool.open_volume(VOLUME).file.write(0, data)
        process.calls, process.dies_at = 0, step
        try:
            change(pool)
            died = False
        except Died:
            died = True
        process.dies_at = -1
        await pool.close()
        if twice:
            process.calls, process.dies_at = 0, step % 12
            again = Pool(directory, SynchronousThreads())
            try:
                again._open(GROUP, 9)
            except Died:
                pass
            process.dies_at = -1
            again._close()
        pool = await opened(directory)
        assert pool.problems == {}
        pool.find_volume(VOLUME)  # what a member asks first; it does not say that something is wrong
        change(pool)
        await check(pool, change, data)
        await pool.close()
        return died

    for step in range(STEPS_MAX):
        directory = tmp_path / str(step)
        directory.mkdir()
        if not asyncio.run(scenario(directory, step)):
            assert step > 4
            return
    raise AssertionError("more calls than expected")

"""A volume against a plain model: one request at a time, and many at once."""

import asyncio
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from san_target.storage.blocks_file import SparseFile
from san_target.storage.checked import CheckedFile
from san_target.storage.journal import Journal
from san_target.storage.memory import MemoryFile
from san_target.storage.threads import SynchronousThreads
from tests.unit.volume.kit import make_volume

BLOCKS = 96
lbas = st.integers(0, BLOCKS - 1)
spans = st.tuples(lbas, st.integers(1, 24)).map(lambda pair: (pair[0], min(pair[1], BLOCKS - pair[0])))
NAMES = ["read", "write", "write_same", "unmap", "compare_and_write", "or_write", "write_atomic", "flush", "allocation"]
operations = st.tuples(st.sampled_from(NAMES), spans, st.integers(0, 255), st.booleans())


class Reference:
    """The volume's contents, plainly; `apply` does one operation on both and compares the answers."""

    def __init__(self, volume, block_size: int) -> None:
        self.volume = volume
        self.block_size = block_size
        self.data = bytearray(BLOCKS * block_size)

    async def apply(self, name: str, span: tuple[int, int], byte: int, flag: bool) -> None:
        (lba, blocks), size, volume = span, self.block_size, self.volume
        here = slice(lba * size, (lba + blocks) * size)
        old, new = bytes(self.data[here]), bytes([byte]) * (blocks * size)
        if name == "read":
            into = bytearray(blocks * size)
            at_once = volume.try_read_into(lba, blocks, memoryview(into))
            assert bytes(into if at_once else await volume.read(lba, blocks)) == old
            return
        if name == "flush":
            await volume.flush(lba, blocks)
            return
        if name == "allocation":
            self.check_allocation(lba, blocks, await volume.allocation(lba, blocks, 4 if flag else 1000))
            return
        if name == "write":
            if not volume.try_write(lba, blocks, new):
                await volume.write(lba, new, durable=flag)
        elif name == "write_same":
            await volume.write_same(lba, blocks, new[:size], flag)
        elif name == "unmap":
            new = bytes(blocks * size)
            await volume.unmap([(lba, blocks)])
        elif name == "compare_and_write":
            compare = old if flag else new
            expected = None if compare == old else next(i for i in range(len(old)) if old[i] != compare[i])
            assert await volume.compare_and_write(lba, compare, new) == expected
            if expected is not None:
                return
        elif name == "or_write":
            await volume.or_write(lba, new, flag)
            new = bytes(left | right for left, right in zip(old, new, strict=True))
        elif name == "write_atomic":
            await volume.write_atomic(lba, new)
        self.data[here] = new

    def check_allocation(self, lba: int, blocks: int, extents) -> None:
        position = lba
        for extent in extents:
            assert extent.lba == position
            position += extent.blocks
            if not extent.mapped:
                assert not any(self.data[extent.lba * self.block_size : position * self.block_size])
        assert position <= lba + blocks
        if len(extents) > 4:
            assert position == lba + blocks


@settings(max_examples=100, deadline=None)
@given(st.lists(operations, max_size=25), st.sampled_from([512, 4096]), st.integers(0, 1 << 30), st.booleans())
def test_one_at_a_time(steps, block_size: int, seed: int, real: bool) -> None:
    chance = random.Random(seed)

    async def work(directory: str) -> None:
        file = (
            SparseFile.create(Path(directory) / "a.blocks", BLOCKS * block_size)
            if real
            else MemoryFile(
                BLOCKS * block_size, wait_free=lambda _offset, length: chance.choice([0, length // 2, length])
            )
        )
        volume = make_volume(
            CheckedFile(file),
            block_size=block_size,
            blocks=BLOCKS,
            journal_file=MemoryFile(Journal.size_bytes(1)),
        )
        reference = Reference(volume, block_size)
        for step in steps:
            await reference.apply(*step)
        await volume.drain()
        assert bytes(await volume.read(0, BLOCKS)) == reference.data
        file.close()

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(asyncio.wait_for(work(directory), 60))


@pytest.mark.parametrize("seed", range(30))
def test_many_at_once_on_the_same_blocks_are_seen_whole_and_in_one_order(seed: int) -> None:
    """Every writer covers the same eight blocks with a value of its own. So a read shows one value only; and a value
    that was followed by another one never comes back (which half-done writes that are repeated would bring about)."""
    chance = random.Random(seed)
    seen: list[int] = []

    async def work() -> None:
        file = CheckedFile(
            MemoryFile(BLOCKS * 512, wait_free=lambda _offset, length: chance.choice([0, 512, length // 2, length]))
        )
        volume = make_volume(file, SynchronousThreads(lambda: chance.choice([0, 0.0001, 0.0004])), blocks=BLOCKS)

        async def pause() -> None:
            for _turn in range(chance.randrange(4)):
                await asyncio.sleep(0)

        async def writer(values: range) -> None:
            for value in values:
                data = value.to_bytes(2, "big") * 2048
                how = chance.choice(["write", "write", "durable", "compare_and_write"])
                if how == "compare_and_write":
                    old = bytes(await volume.read(8, 8))
                    await volume.compare_and_write(8, old, data)
                elif how == "durable" or not volume.try_write(8, 8, data):
                    await pause()  # the caller makes a task for it
                    await volume.write(8, data, durable=how == "durable")
                await pause()

        async def reader() -> None:
            while True:
                into = bytearray(4096)
                if not volume.try_read_into(8, 8, memoryview(into)):
                    into = bytearray(await volume.read(8, 8))
                assert into == into[:2] * 2048, "a torn read"
                seen.append(int.from_bytes(into[:2], "big"))
                await pause()
                await asyncio.sleep(0)

        reading = asyncio.create_task(reader())
        await asyncio.gather(*(writer(range(100 * number + 1, 100 * number + 40)) for number in range(4)))
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        if not reading.cancelled() and (error := reading.exception()) is not None:
            raise error
        await volume.drain()

    asyncio.run(asyncio.wait_for(work(), 60))
    changes = [value for index, value in enumerate(seen) if index == 0 or value != seen[index - 1]]
    assert len(changes) == len(set(changes))
    assert len(changes) > 5

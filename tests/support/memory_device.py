"""A `BlockDevice` in memory that is meant to be read at one glance: what tests hold other code against.

It keeps each written block by itself, so that mapped and deallocated blocks are told apart exactly. Everything it was
asked is recorded; `at_once` switches the waiting ways on or off; `fail` makes the next calls raise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from san_target.volume.device import Done, Extent, VolumeError

if TYPE_CHECKING:
    from typing_extensions import Buffer


class MemoryDevice:
    """written: the mapped blocks. at_once: whether try_* serve. calls: (name, arguments) of each waiting call.

    failures: raised by the next waiting calls, one each. durable: LBAs that are on "stable storage".
    """

    def __init__(self, blocks: int = 2048, block_size: int = 512, atomic_blocks_max: int = 0) -> None:
        self._block_size = block_size
        self._blocks = blocks
        self._atomic_blocks_max = atomic_blocks_max
        self.written: dict[int, bytes] = {}
        self.durable: set[int] = set()
        self.at_once = True
        self.calls: list[tuple[str, tuple[object, ...]]] = []
        self.failures: list[VolumeError] = []

    @property
    def block_size(self) -> int:
        return self._block_size

    @property
    def blocks(self) -> int:
        return self._blocks

    @property
    def atomic_blocks_max(self) -> int:
        return self._atomic_blocks_max

    def resize(self, blocks: int) -> None:
        self._blocks = blocks

    # --- at once ------------------------------------------------------------------------------------------------------

    def try_read_into(self, lba: int, blocks: int, into: memoryview) -> bool:
        self._check(lba, blocks)
        assert len(into) == blocks * self._block_size
        if not self.at_once or self.failures:
            return False
        into[:] = self._get(lba, blocks)
        return True

    def try_view(self, lba: int, blocks: int) -> memoryview | None:
        return None

    def reread(self, lba: int, blocks: int, into: memoryview) -> None:
        into[:] = self._get(lba, blocks)

    def try_write(self, lba: int, blocks: int, data: Buffer) -> bool:
        self._check(lba, blocks)
        assert len(memoryview(data)) == blocks * self._block_size
        if not self.at_once or self.failures:
            return False
        self._put(lba, data, durable=False)
        return True

    def start_read(self, lba: int, blocks: int, heard_s: float, epoch: int, done: Done) -> bool:
        return False

    def start_write(self, lba: int, data: Buffer, heard_s: float, epoch: int, done: Done) -> bool:
        return False

    # --- may wait -----------------------------------------------------------------------------------------------------

    async def read(self, lba: int, blocks: int) -> bytes:
        self._called("read", lba, blocks)
        self._check(lba, blocks)
        return self._get(lba, blocks)

    async def write(self, lba: int, data: Buffer, durable: bool = False) -> None:
        self._called("write", lba, len(memoryview(data)) // self._block_size, durable)
        self._put(lba, data, durable)

    async def write_same(self, lba: int, blocks: int, block: Buffer, durable: bool = False) -> None:
        self._called("write_same", lba, blocks, durable)
        self._put(lba, bytes(block) * blocks, durable)

    async def unmap(self, ranges: Sequence[tuple[int, int]]) -> None:
        self._called("unmap", tuple(ranges))
        for lba, blocks in ranges:
            self._check(lba, blocks)
            for at in range(lba, lba + blocks):
                self.written.pop(at, None)

    async def flush(self, lba: int, blocks: int) -> None:
        self._called("flush", lba, blocks)
        self._check(lba, blocks)
        self.durable.update(at for at in self.written if lba <= at < lba + blocks)

    async def compare_and_write(self, lba: int, compare: Buffer, data: Buffer, durable: bool = False) -> int | None:
        self._called("compare_and_write", lba, durable)
        expected = bytes(compare)
        found = self._get(lba, len(expected) // self._block_size)
        for offset, (wanted, byte) in enumerate(zip(expected, found, strict=True)):
            if wanted != byte:
                return offset
        self._put(lba, data, durable)
        return None

    async def or_write(self, lba: int, data: Buffer, durable: bool = False) -> None:
        self._called("or_write", lba, durable)
        new = bytes(data)
        old = self._get(lba, len(new) // self._block_size)
        self._put(lba, bytes(a | b for a, b in zip(old, new, strict=True)), durable)

    async def write_atomic(self, lba: int, data: Buffer, durable: bool = False) -> None:
        self._called("write_atomic", lba, durable)
        assert len(memoryview(data)) <= self._atomic_blocks_max * self._block_size
        self._put(lba, data, durable)

    async def allocation(self, lba: int, blocks: int, extents_max: int) -> list[Extent]:
        self._called("allocation", lba, blocks, extents_max)
        self._check(lba, blocks)
        extents: list[Extent] = []
        at = lba
        while at < lba + blocks and len(extents) < extents_max:
            mapped = at in self.written
            end = at + 1
            while end < lba + blocks and (end in self.written) == mapped:
                end += 1
            extents.append(Extent(at, end - at, mapped))
            at = end
        return extents

    async def prefetch(self, lba: int, blocks: int) -> None:
        self._called("prefetch", lba, blocks)
        self._check(lba, blocks)

    async def sanitize_overwrite(self, lba: int, pattern: Buffer, blocks: int) -> None:
        self._called("sanitize_overwrite", lba, blocks)
        filling = bytes(pattern) * blocks
        self._put(lba, filling[: blocks * self._block_size], durable=True)

    async def sanitize_erase(self) -> None:
        self._called("sanitize_erase")
        self.written.clear()

    # --- inside -------------------------------------------------------------------------------------------------------

    def names_called(self) -> list[str]:
        return [name for name, _ in self.calls]

    def content(self, lba: int, blocks: int = 1) -> bytes:
        """What a read would return, without being recorded."""
        return self._get(lba, blocks)

    def _called(self, name: str, *arguments: object) -> None:
        self.calls.append((name, arguments))
        if self.failures:
            raise self.failures.pop(0)

    def _check(self, lba: int, blocks: int) -> None:
        assert 0 <= lba <= lba + blocks <= self._blocks, f"{lba}+{blocks} of {self._blocks}"

    def _get(self, lba: int, blocks: int) -> bytes:
        hole = bytes(self._block_size)
        return b"".join(self.written.get(at, hole) for at in range(lba, lba + blocks))

    def _put(self, lba: int, data: Buffer, durable: bool) -> None:
        view = bytes(data)
        assert len(view) % self._block_size == 0, "part of a block"
        blocks = len(view) // self._block_size
        self._check(lba, blocks)
        for index in range(blocks):
            self.written[lba + index] = view[index * self._block_size : (index + 1) * self._block_size]
            if durable:
                self.durable.add(lba + index)
            else:
                self.durable.discard(lba + index)

"""The blocks of a volume that cannot be served: its target exists, so that logins are told to try again later."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from san_target.volume.device import Done, Extent, Unavailable

if TYPE_CHECKING:
    from typing_extensions import Buffer


class AbsentDevice:
    """A `BlockDevice` that has a size and nothing else: everything ends in Unavailable (BUSY)."""

    atomic_blocks_max = 0

    def __init__(self, block_size: int, blocks: int, reason: str) -> None:
        self.block_size = block_size
        self.blocks = blocks
        self.reason = reason

    def try_read_into(self, lba: int, blocks: int, into: memoryview) -> bool:
        return False

    def try_view(self, lba: int, blocks: int) -> memoryview | None:
        return None

    def reread(self, lba: int, blocks: int, into: memoryview) -> None:
        raise Unavailable(self.reason)

    def try_write(self, lba: int, blocks: int, data: "Buffer") -> bool:
        return False

    def start_read(self, lba: int, blocks: int, heard_s: float, epoch: int, done: Done) -> bool:
        return False

    def start_write(self, lba: int, data: "Buffer", heard_s: float, epoch: int, done: Done) -> bool:
        return False

    async def read(self, lba: int, blocks: int) -> "Buffer":
        raise Unavailable(self.reason)

    async def write(self, lba: int, data: "Buffer", durable: bool = False) -> None:
        raise Unavailable(self.reason)

    async def write_same(self, lba: int, blocks: int, block: "Buffer", durable: bool = False) -> None:
        raise Unavailable(self.reason)

    async def unmap(self, ranges: Sequence[tuple[int, int]]) -> None:
        raise Unavailable(self.reason)

    async def flush(self, lba: int, blocks: int) -> None:
        raise Unavailable(self.reason)

    async def compare_and_write(self, lba: int, compare: "Buffer", data: "Buffer", durable: bool = False) -> int | None:
        raise Unavailable(self.reason)

    async def or_write(self, lba: int, data: "Buffer", durable: bool = False) -> None:
        raise Unavailable(self.reason)

    async def write_atomic(self, lba: int, data: "Buffer", durable: bool = False) -> None:
        raise Unavailable(self.reason)

    async def allocation(self, lba: int, blocks: int, extents_max: int) -> list[Extent]:
        raise Unavailable(self.reason)

    async def prefetch(self, lba: int, blocks: int) -> None:
        raise Unavailable(self.reason)

    async def sanitize_overwrite(self, lba: int, pattern: "Buffer", blocks: int) -> None:
        raise Unavailable(self.reason)

    async def sanitize_erase(self) -> None:
        raise Unavailable(self.reason)

"""A volume as `scsi` sees it: consults the partition map, serves what is here, and passes on what is not.

A request whose blocks have several owners is done part by part, in order; parts that are done are not repeated when a
later one fails. What must be atomic has one owner.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from san_target.storage.records import HeldRange, resized
from san_target.volume.device import BlockDevice, Extent, Unavailable
from san_target.volume.local import LocalBlocks
from san_target.volume.router import Remote, Router, no_forwarding

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from san_target.storage.interface import BlocksFile
    from san_target.storage.journal import Journal
    from san_target.storage.threads import Threads
    from san_target.volume.partition_map import MapSnapshot, Segment


class Volume:
    """Implements `device.BlockDevice`."""

    __slots__ = (
        "_blocks_ever",
        "_direct",
        "_file_try_read_into",
        "_local",
        "_locks",
        "_remote",
        "_router",
        "block_size",
        "blocks",
        "volume_id",
    )

    def __init__(
        self,
        volume_id: str,
        block_size: int,
        blocks: int,
        map_snapshot: "MapSnapshot",
        member_name: str,
        blocks_file: "BlocksFile",
        held: Sequence[HeldRange],
        threads: "Threads",
        journal: "Journal | None" = None,
        write_through: bool = False,
        remote: Remote = no_forwarding,
    ) -> None:
        """volume_id: 32 hex digits; blocks_file and held: from `Pool.open_volume`; journal: `Pool.journal`."""
        self.volume_id: Final = volume_id
        self.block_size: Final = block_size
        self.blocks = blocks
        self._router = Router(map_snapshot, member_name, held)
        self._local: Final = LocalBlocks(
            volume_id, block_size, blocks, blocks_file, self._router, threads, journal, write_through
        )
        self._locks: Final = self._local.locks
        self._file_try_read_into: Final = blocks_file.try_read_into
        self._remote = remote
        self._direct = False
        self._blocks_ever = blocks  # the largest number of them there has been
        self._check_size(blocks)

    def _check_size(self, blocks: int) -> None:
        if blocks != self._router.snapshot.blocks:
            raise AssertionError(f"{blocks} blocks, but the map has {self._router.snapshot.blocks}")
        self.blocks = self._local.blocks = blocks
        self._blocks_ever = max(blocks, self._blocks_ever)
        self._direct = self._router.whole

    @property
    def refusal(self) -> str:
        """Why this member's disk refuses changes now (its file system became read-only), or ""."""
        return self._local.refusal

    # Changes of map and size ------------------------------------------------------------------------------------------

    def update(self, map_snapshot: "MapSnapshot", held: Sequence[HeldRange]) -> None:
        """The map or the held record has changed (not the size). Requests that wait for a lock see the new one."""
        self._router = self._local.router = Router(map_snapshot, self._router.member_name, held)
        self._check_size(self.blocks)

    async def resize(
        self,
        new_blocks: int,
        map_snapshot: "MapSnapshot | None" = None,
        held: Sequence[HeldRange] | None = None,
    ) -> None:
        """Serve `new_blocks` from now on. Grow after `Pool.resize_volume`, shrink before it.

        When this returns after a shrink, no request to the cut blocks is under way. Without a map and held record the
        last range grows or is cut.
        """
        old_blocks = self.blocks
        if map_snapshot is None:
            map_snapshot = self._router.snapshot.resized(new_blocks)
        if held is None:
            generation = self._router.snapshot.placements[-1].generation
            held = resized(self._router.held, old_blocks, new_blocks, generation)
        self._router = self._local.router = Router(map_snapshot, self._router.member_name, held)
        self._check_size(new_blocks)
        if new_blocks < old_blocks:
            lock = await self._locks.acquire(new_blocks, old_blocks - new_blocks, True)
            self._locks.release(lock)

    def retire(self) -> None:
        """Begin nothing any more, whoever asks; then `drain`, and the file can be closed. There is no way back."""
        self._router = self._local.router = Router(self._router.snapshot, self._router.member_name, ())
        self._direct = False
        self._local.retire()

    async def drain(self) -> None:
        """Wait until all that was begun here has ended, also what was cancelled. Needed before the file is closed."""
        await self._local.drain()

    # At once ----------------------------------------------------------------------------------------------------------

    def try_read_into(self, lba: int, blocks: int, into: memoryview) -> bool:
        if self._direct and self._locks.idle:
            return self._file_try_read_into(lba * self.block_size, into)
        return self._local.try_read_into(lba, blocks, into)

    def try_view(self, lba: int, blocks: int) -> memoryview | None:
        return self._local.try_view(lba, blocks)

    def reread(self, lba: int, blocks: int, into: memoryview) -> None:
        self._local.reread(lba, blocks, into)

    def try_write(self, lba: int, blocks: int, data: "Buffer") -> bool:
        return self._local.try_write(lba, blocks, data)

    # Part by part -----------------------------------------------------------------------------------------------------

    def _parts(self, lba: int, blocks: int) -> "list[tuple[BlockDevice, Segment]]":
        if not 0 <= lba <= lba + blocks <= self.blocks:
            if 0 <= lba <= lba + blocks <= self._blocks_ever:
                # A command in several steps was checked before its first.
                raise Unavailable(f"blocks {lba}+{blocks}: the volume was shrunk to {self.blocks} blocks")
            raise AssertionError(f"blocks {lba}+{blocks} of a volume of {self.blocks}")
        return [(self._device(segment), segment) for segment in self._router.segments(lba, blocks)]

    def _device(self, segment: "Segment") -> BlockDevice:
        return self._local if segment.owner == self._router.member_name else self._remote(segment)

    def _only_part(self, lba: int, blocks: int) -> BlockDevice:
        parts = self._parts(lba, blocks)
        if len(parts) != 1:
            raise Unavailable(f"blocks {lba}+{blocks} have {len(parts)} owners, and must be changed at one")
        return parts[0][0]

    def _data_parts(self, lba: int, data: "Buffer") -> "list[tuple[BlockDevice, Segment, memoryview]]":
        view = memoryview(data).cast("B")
        if len(view) % self.block_size:
            raise AssertionError(f"{len(view)} bytes for blocks of {self.block_size}")
        return [
            (
                device,
                segment,
                view[(segment.lba - lba) * self.block_size : (segment.lba - lba + segment.blocks) * self.block_size],
            )
            for device, segment in self._parts(lba, len(view) // self.block_size)
        ]

    async def read(self, lba: int, blocks: int) -> "Buffer":
        parts = self._parts(lba, blocks)
        if len(parts) == 1:
            return await parts[0][0].read(lba, blocks)
        data = bytearray()
        for device, segment in parts:
            data += await device.read(segment.lba, segment.blocks)
        return data

    async def write(self, lba: int, data: "Buffer", durable: bool = False) -> None:
        for device, segment, part in self._data_parts(lba, data):
            await device.write(segment.lba, part, durable)

    async def write_same(self, lba: int, blocks: int, block: "Buffer", durable: bool = False) -> None:
        for device, segment in self._parts(lba, blocks):
            await device.write_same(segment.lba, segment.blocks, block, durable)

    async def unmap(self, ranges: Sequence[tuple[int, int]]) -> None:
        for lba, blocks in ranges:
            for device, segment in self._parts(lba, blocks):
                await device.unmap([(segment.lba, segment.blocks)])

    async def flush(self, lba: int, blocks: int) -> None:
        for device, segment in self._parts(lba, blocks):
            await device.flush(segment.lba, segment.blocks)

    async def compare_and_write(self, lba: int, compare: "Buffer", data: "Buffer", durable: bool = False) -> int | None:
        device = self._only_part(lba, len(memoryview(data).cast("B")) // self.block_size)
        return await device.compare_and_write(lba, compare, data, durable)

    async def or_write(self, lba: int, data: "Buffer", durable: bool = False) -> None:
        for device, segment, part in self._data_parts(lba, data):
            await device.or_write(segment.lba, part, durable)

    async def write_atomic(self, lba: int, data: "Buffer", durable: bool = False) -> None:
        device = self._only_part(lba, len(memoryview(data).cast("B")) // self.block_size)
        await device.write_atomic(lba, data, durable)

    @property
    def atomic_blocks_max(self) -> int:
        return self._local.atomic_blocks_max

    async def allocation(self, lba: int, blocks: int, extents_max: int) -> list[Extent]:
        extents: list[Extent] = []
        for device, segment in self._parts(lba, blocks):
            for extent in await device.allocation(segment.lba, segment.blocks, extents_max):
                last = extents[-1] if extents else None
                if last and last.mapped == extent.mapped:
                    extents[-1] = Extent(last.lba, last.blocks + extent.blocks, last.mapped)
                else:
                    extents.append(extent)
            if len(extents) >= extents_max:
                break
        return extents[:extents_max]

    async def prefetch(self, lba: int, blocks: int) -> None:
        for device, segment in self._parts(lba, blocks):
            await device.prefetch(segment.lba, segment.blocks)

    async def sanitize_overwrite(self, lba: int, pattern: "Buffer", blocks: int) -> None:
        whole = bytes(pattern)
        for device, segment in self._parts(lba, blocks):
            turn = (segment.lba - lba) * self.block_size % len(whole)
            await device.sanitize_overwrite(segment.lba, whole[turn:] + whole[:turn], segment.blocks)

    async def sanitize_erase(self) -> None:
        for device in {id(device): device for device, _segment in self._parts(0, self.blocks)}.values():
            await device.sanitize_erase()

"""What `scsi` asks of a volume: blocks in, blocks out, by logical block address.

Two ways in, after ARCHITECTURE section 4: `try_read_into` / `try_write` serve cached, unlocked, local blocks at once
and never wait; where they return False the caller awaits `read` / `write`, which may. All other calls may wait.

LBA and block counts are in logical blocks of `block_size` bytes. Callers have checked the range; a range outside the
volume is a caller's bug (`AssertionError`).
"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer


class VolumeError(Exception):
    """Base of what the environment can do to a request; `scsi` maps each to a status or sense code."""


class OutOfSpace(VolumeError):
    """A pool is full: DATA PROTECT / SPACE ALLOCATION FAILED WRITE PROTECT (SBC-4 4.7.3.6)."""


class MediumError(VolumeError):
    """Blocks are lost or cannot be read or written; `lba` is the first of them."""

    def __init__(self, lba: int, message: str, writing: bool = False) -> None:
        super().__init__(message)
        self.lba = lba
        self.writing = writing


class WriteProtected(VolumeError):
    """The storage below became read-only (EROFS): DATA PROTECT / WRITE PROTECTED."""


class Unavailable(VolumeError):
    """Cannot be served now, may be later: BUSY."""


Resume = Callable[[], "Awaitable[Buffer | None]"]
Done = Callable[["Buffer | None", Resume | None], None]
"""Called once: with the data that was read (b"" for a write), valid during the call only, or with how to go on."""


class NotAtomic(VolumeError):
    """What must be changed at one owner has several."""


class Extent(NamedTuple):
    """A run of blocks that are all mapped (hold data) or all deallocated (read as zeros)."""

    lba: int
    blocks: int
    mapped: bool


class BlockDevice(Protocol):
    """A volume's blocks. `durable` writes are on stable storage before they return (FUA)."""

    @property
    def block_size(self) -> int: ...

    @property
    def blocks(self) -> int: ...

    def try_read_into(self, lba: int, blocks: int, into: memoryview) -> bool:
        """Fill `into` (exactly blocks * block_size bytes) without waiting, or return False with `into` undefined."""
        ...

    def try_view(self, lba: int, blocks: int) -> memoryview | None:
        """The blocks where they lie, read-only, to be sent without a copy; None: `try_read_into` may do better.

        The view shows every later change, so it is handed to the network before anything else is done, in the same
        turn of the event loop; what the network does not take is fetched again with `reread`.
        """
        ...

    def reread(self, lba: int, blocks: int, into: memoryview) -> None:
        """Fill `into` with blocks that `try_view` has just shown. VolumeError."""
        ...

    def try_write(self, lba: int, blocks: int, data: "Buffer") -> bool:
        """Write without waiting (data: exactly blocks * block_size bytes), or return False.

        After False the caller must `await write(lba, data)` with the same data at once, or report the blocks as
        undefined: some of them may have been written.
        """
        ...

    def start_read(self, lba: int, blocks: int, heard_s: float, epoch: int, done: Done) -> bool:
        """Begin to read what another member owns, without a task; False: nothing was begun, `read` may do it.

        heard_s, epoch: as in `volume.origin.Origin`.
        """
        ...

    def start_write(self, lba: int, data: "Buffer", heard_s: float, epoch: int, done: Done) -> bool:
        """Begin to write what another member owns, likewise. The data must stay as it is until the write has ended."""
        ...

    async def read(self, lba: int, blocks: int) -> "Buffer": ...

    async def write(self, lba: int, data: "Buffer", durable: bool = False) -> None: ...

    async def write_same(self, lba: int, blocks: int, block: "Buffer", durable: bool = False) -> None:
        """Write the one logical block `block` to each of `blocks` blocks."""
        ...

    async def unmap(self, ranges: "Sequence[tuple[int, int]]") -> None:
        """Deallocate (lba, blocks) ranges: they read as zeros afterwards (LBPRZ = 1) and give space back."""
        ...

    async def flush(self, lba: int, blocks: int) -> None:
        """Everything acknowledged in the range before this call is on stable storage when it returns."""
        ...

    async def compare_and_write(self, lba: int, compare: "Buffer", data: "Buffer", durable: bool = False) -> int | None:
        """Atomically write `data` if the blocks equal `compare`: None; else the first differing byte offset."""
        ...

    async def or_write(self, lba: int, data: "Buffer", durable: bool = False) -> None:
        """Atomically replace each byte by (old | data)."""
        ...

    async def write_atomic(self, lba: int, data: "Buffer", durable: bool = False) -> None:
        """All or nothing, also over a power failure (SBC-4 5.48); data is at most `atomic_blocks_max` blocks."""
        ...

    @property
    def atomic_blocks_max(self) -> int:
        """The largest write_atomic in blocks; 0 = not supported."""
        ...

    async def allocation(self, lba: int, blocks: int, extents_max: int) -> "list[Extent]":
        """The first `extents_max` extents of the range, in order and gap-free from `lba` (GET LBA STATUS)."""
        ...

    async def prefetch(self, lba: int, blocks: int) -> None:
        """Ask for the blocks to be cached; a hint."""
        ...

    async def sanitize_overwrite(self, lba: int, pattern: "Buffer", blocks: int) -> None:
        """Like write_same with any pattern of whole blocks, reaching remnants of the range too; durable."""
        ...

    async def sanitize_erase(self) -> None:
        """Deallocate the whole volume and every remnant of it, durably (SANITIZE BLOCK ERASE)."""
        ...

"""What the simulator writes: every block says whose it is, where it belongs, and which write put it there.

A block of 512 bytes or more: a 48-byte stamp, then filler that depends on the stamp. The checksum covers all of it, so
a block made of two writes, or with any wrong bit, is told from every block that was ever written.
"""

from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING, Final

from crc32c import crc32c

from initiator_sim.history import INITIAL, Value

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAGIC: Final = b"isim-blk"
# magic, volume, run, LBA, writer, sequence, reserved, checksum of all other bytes of the block
_STAMP: Final = Struct(">8sIIQIQQI")
_BEFORE_CHECKSUM: Final = _STAMP.size - 4
STAMP_BYTES: Final = _STAMP.size


@dataclass(frozen=True, slots=True)
class Stamp:
    """Of one block. volume and run are 32-bit numbers; writer and sequence name the write within the run."""

    volume: int
    run: int
    lba: int
    writer: int
    sequence: int


class WrongBlock(Exception):
    """A block holds what no write has put there; the text says which and what."""


class Stamper:
    """Makes the blocks of one run on one volume."""

    def __init__(self, volume: str, run: int, block_bytes: int) -> None:
        if block_bytes < STAMP_BYTES:
            raise ValueError(f"blocks of {block_bytes} bytes hold no stamp")
        self.volume = crc32c(volume.encode())
        self.run = run
        self.block_bytes = block_bytes
        self._zeros = bytes(block_bytes - STAMP_BYTES)

    def write_into(self, buffer: bytearray, lba: int, writer: int, sequence: int) -> None:
        """Fill `buffer`, whole blocks from `lba` on, with the blocks of one write."""
        filler = (sequence * 0x9E3779B97F4A7C15 + writer & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "big")
        rest = (filler * (self.block_bytes // 8))[: self.block_bytes - STAMP_BYTES]
        rest_checksum = crc32c(rest)
        for offset in range(0, len(buffer), self.block_bytes):
            head = _STAMP.pack(MAGIC, self.volume, self.run, lba, writer, sequence, 0, 0)[:_BEFORE_CHECKSUM]
            checksum = crc32c(head, rest_checksum)
            end = offset + STAMP_BYTES
            buffer[offset : end - 4] = head
            buffer[end - 4 : end] = checksum.to_bytes(4, "big")
            buffer[end : offset + self.block_bytes] = rest
            lba += 1

    def parse(self, block: "Buffer") -> Stamp | None:
        """The stamp of a whole and undamaged block of any run; None for anything else."""
        view = memoryview(block)
        magic, volume, run, lba, writer, sequence, _, checksum = _STAMP.unpack_from(view)
        if magic != MAGIC or crc32c(view[:_BEFORE_CHECKSUM], crc32c(view[STAMP_BYTES:])) != checksum:
            return None
        return Stamp(volume, run, lba, writer, sequence)

    def looks_stamped(self, block: "Buffer") -> bool:
        """True for a block that carries this run's mark, damaged or not."""
        magic, volume, run = _STAMP.unpack_from(memoryview(block))[:3]
        return bool(magic == MAGIC and volume == self.volume and run == self.run)

    def identify(self, block: "Buffer", lba: int) -> tuple[Value | None, str]:
        """(which write of this run the block read at `lba` is of, what is wrong with it).

        None for a block that no write of this run has made whole; "" for nothing wrong.
        """
        stamp = self.parse(block)
        if stamp is None:
            return None, f"block {lba} is damaged: its checksum is wrong" if self.looks_stamped(block) else ""
        if stamp.run != self.run:
            return None, ""
        wrong = stamp.volume != self.volume or stamp.lba != lba
        text = f"block {lba} holds what was written to block {stamp.lba}" if wrong else ""
        return (stamp.writer, stamp.sequence), text

    def values(self, data: "Buffer", lba: int) -> list[Value]:
        """Whose write each block of `data`, whole blocks read from `lba` on, is of: what `DiskHistory.answered` takes.

        INITIAL for every block without a stamp of this run. Raises WrongBlock for damaged and misplaced ones.
        """
        view = memoryview(data)
        found = []
        for offset in range(0, len(view), self.block_bytes):
            value, wrong = self.identify(view[offset : offset + self.block_bytes], lba)
            if wrong:
                raise WrongBlock(wrong)
            found.append(INITIAL if value is None else value)
            lba += 1
        return found

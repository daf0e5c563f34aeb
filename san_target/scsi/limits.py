"""What one command may ask of a logical unit: the Block Limits page (SBC-4 6.6.4), and the checks that enforce it."""

from dataclasses import dataclass

MAXIMUM_TRANSFER_BYTES = 8 << 20
OPTIMAL_TRANSFER_BYTES = 1 << 20
MAXIMUM_WRITE_SAME_BLOCKS = 0xFFFF  # what WRITE SAME (10) can say at all, and done in well under a second
MAXIMUM_UNMAP_BLOCKS = 1 << 20
MAXIMUM_UNMAP_DESCRIPTORS = 256
# Atomic with respect to other initiators at one owner; a longer one could span two owners of the volume.
MAXIMUM_COMPARE_AND_WRITE_BLOCKS = 1
# Sparse files give space back, and journals keep data, in units of the file system's block.
GRANULARITY_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Limits:
    """All in logical blocks. atomic_blocks is 0 where WRITE ATOMIC is not supported.

    granularity   what transfers, unmaps and atomic writes should be (atomic writes: must be) multiples of
    """

    transfer: int
    optimal_transfer: int
    write_same: int
    unmap: int
    unmap_descriptors: int
    granularity: int
    compare_and_write: int
    atomic_blocks: int

    @classmethod
    def of(cls, block_size: int, atomic_blocks_max: int = 0) -> "Limits":
        transfer = MAXIMUM_TRANSFER_BYTES // block_size
        return cls(
            transfer=transfer,
            optimal_transfer=OPTIMAL_TRANSFER_BYTES // block_size,
            write_same=MAXIMUM_WRITE_SAME_BLOCKS,
            unmap=MAXIMUM_UNMAP_BLOCKS,
            unmap_descriptors=MAXIMUM_UNMAP_DESCRIPTORS,
            granularity=max(1, GRANULARITY_BYTES // block_size),
            compare_and_write=MAXIMUM_COMPARE_AND_WRITE_BLOCKS,
            atomic_blocks=min(atomic_blocks_max, transfer),
        )

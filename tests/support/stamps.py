"""Blocks that say what they are: each carries its LBA and a version all over, so that a block in the wrong place, an
old block and a block made of two are told apart."""

from __future__ import annotations

from struct import Struct

_STAMP = Struct(">8sQQQ")
_MAGIC = b"SANBLOCK"


class Torn(AssertionError):
    """A block that no single write can have left."""


def stamp(lba: int, version: int, block_size: int) -> bytes:
    """One block. version: 1 or more; a block of zeros counts as version 0."""
    return _STAMP.pack(_MAGIC, lba, version, ~version & 0xFFFFFFFFFFFFFFFF) * (block_size // _STAMP.size)


def stamps(lba: int, blocks: int, version: int, block_size: int) -> bytes:
    """A run of blocks of one version."""
    return b"".join(stamp(lba + index, version, block_size) for index in range(blocks))


def version_of(block: bytes, lba: int) -> int:
    """The version of the block that was read at `lba`; 0 = zeros. Torn: it is no stamp of that place."""
    magic, place, version, _ = _STAMP.unpack_from(block)
    if magic == _MAGIC and place == lba and block == stamp(lba, version, len(block)):
        return int(version)
    if not any(block):
        return 0
    parts = {block[at : at + _STAMP.size] for at in range(0, len(block), _STAMP.size)}
    raise Torn(f"block {lba} is made of {len(parts)} parts, the first of them {block[: _STAMP.size].hex()}")


def versions_of(data: bytes, lba: int, block_size: int) -> list[int]:
    """The version of each block of a run."""
    return [version_of(data[at : at + block_size], lba + at // block_size) for at in range(0, len(data), block_size)]

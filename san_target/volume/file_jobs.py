"""What threads do with a volume's file in more than one call. The range is locked; offsets are in bytes."""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from san_target.storage.interface import BlocksFile

_FILL_BYTES: Final = 1 << 20


def fill(file: "BlocksFile", offset: int, length: int, pattern: bytes, durable: bool) -> None:
    """Zeros need no space: a hole reads as zeros."""
    if pattern.count(0) == len(pattern):
        file.punch(offset, length)
    else:
        _repeat(file, offset, length, pattern)
    if durable:
        file.flush()


def _repeat(file: "BlocksFile", offset: int, length: int, pattern: bytes) -> None:
    chunk = memoryview(pattern * max(1, _FILL_BYTES // len(pattern)))
    for start in range(0, length, len(chunk)):
        file.write(offset + start, chunk[: length - start])


def compare_and_write(file: "BlocksFile", offset: int, expected: bytes, data: memoryview, durable: bool) -> int | None:
    """None: written; else the first byte that differs."""
    old = file.read(offset, len(expected))
    if old != expected:
        return first_difference(old, expected)
    file.write(offset, data, durable)
    return None


def or_write(file: "BlocksFile", offset: int, data: memoryview, durable: bool) -> None:
    file.write(offset, either(file.read(offset, len(data)), data), durable)


def overwrite(file: "BlocksFile", offset: int, length: int, block_size: int, pattern: bytes) -> None:
    """Old data is really overwritten, never just given back; zeros need not fill what is a hole."""
    if pattern.count(0) < len(pattern):
        _repeat(file, offset, length, pattern)
    else:
        for extent in file.extents(offset, length, block_size, length):
            if extent.is_data:
                _repeat(file, extent.offset_bytes, extent.length_bytes, pattern)
    file.flush()


def erase(file: "BlocksFile") -> None:
    file.punch(0, file.size_bytes)
    file.flush()


def clear(file: "BlocksFile", offset: int, length: int, durable: bool) -> None:
    file.punch(offset, length)
    if durable:
        file.flush()


def first_difference(old: "Buffer", expected: "Buffer") -> int:
    """The offset of the first byte in which two buffers of equal length differ."""
    pairs = zip(memoryview(old).cast("B"), memoryview(expected).cast("B"), strict=True)
    return next(index for index, (left, right) in enumerate(pairs) if left != right)


def either(old: "Buffer", new: "Buffer") -> bytes:
    """The bitwise or of two buffers of equal length."""
    length = len(memoryview(old))
    return (int.from_bytes(bytes(old), "little") | int.from_bytes(bytes(new), "little")).to_bytes(length, "little")

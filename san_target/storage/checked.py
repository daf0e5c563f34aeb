"""A wrapper that checks, on every read, that it brings what was last written: the pair assertion around any file.

It remembers a checksum for each 512-byte sector that it has seen written, punched or read. Sectors whose contents are
undefined (a write failed on them) are forgotten. Overlapping calls must be kept apart by range locks, as always; an
overlap that slips through is found here.
"""

from threading import Lock
from typing import TYPE_CHECKING, Final

import crc32c

from san_target.storage.interface import BlocksFile, FileExtent

if TYPE_CHECKING:
    from typing_extensions import Buffer

SECTOR_BYTES: Final = 512
_ZERO_CHECKSUM: Final = crc32c.crc32c(bytes(SECTOR_BYTES))


class WrongData(AssertionError):
    """A read brought something else than what was written."""


class CheckedFile:
    """A BlocksFile around another one."""

    def __init__(self, file: BlocksFile) -> None:
        self._file = file
        self._checksums: dict[int, int] = {}
        self._guard = Lock()

    @property
    def size_bytes(self) -> int:
        return self._file.size_bytes

    @property
    def failed(self) -> bool:
        return self._file.failed

    def try_read_into(self, offset_bytes: int, into: memoryview) -> bool:
        if not self._file.try_read_into(offset_bytes, into):
            return False
        self._compare(offset_bytes, into)
        return True

    def read_into(self, offset_bytes: int, into: memoryview) -> None:
        self._file.read_into(offset_bytes, into)
        self._compare(offset_bytes, into)

    def read(self, offset_bytes: int, length_bytes: int) -> bytearray:
        data = self._file.read(offset_bytes, length_bytes)
        self._compare(offset_bytes, memoryview(data))
        return data

    def try_view(self, offset_bytes: int, length_bytes: int) -> memoryview | None:
        return None  # whatever is read is compared first

    def try_write(self, offset_bytes: int, data: "Buffer") -> int:
        view = memoryview(data).cast("B")
        self._forget(offset_bytes, len(view))
        written = self._file.try_write(offset_bytes, data)
        self._remember(offset_bytes, view[:written])
        return written

    def write(self, offset_bytes: int, data: "Buffer", durable: bool = False) -> None:
        view = memoryview(data).cast("B")
        self._forget(offset_bytes, len(view))
        self._file.write(offset_bytes, view, durable)
        self._remember(offset_bytes, view)

    def punch(self, offset_bytes: int, length_bytes: int) -> None:
        self._forget(offset_bytes, length_bytes)
        self._file.punch(offset_bytes, length_bytes)
        with self._guard:
            for sector in _whole_sectors(offset_bytes, length_bytes):
                self._checksums[sector] = _ZERO_CHECKSUM

    def flush(self) -> None:
        self._file.flush()

    def reserve(self, offset_bytes: int, length_bytes: int) -> None:
        self._file.reserve(offset_bytes, length_bytes)

    def extents(
        self, offset_bytes: int, length_bytes: int, granularity_bytes: int, extents_max: int
    ) -> list[FileExtent]:
        found = self._file.extents(offset_bytes, length_bytes, granularity_bytes, extents_max)
        with self._guard:
            for extent in found:
                if extent.is_data:
                    continue
                for sector in _whole_sectors(extent.offset_bytes, extent.length_bytes):
                    if self._checksums.get(sector, _ZERO_CHECKSUM) != _ZERO_CHECKSUM:
                        raise WrongData(f"the bytes at {sector * SECTOR_BYTES} are said to be a hole, but hold data")
        return found

    def prefetch(self, offset_bytes: int, length_bytes: int) -> None:
        self._file.prefetch(offset_bytes, length_bytes)

    def resize(self, size_bytes: int) -> None:
        old_bytes = self._file.size_bytes
        self._file.resize(size_bytes)
        if size_bytes < old_bytes:
            self._forget(size_bytes, old_bytes - size_bytes)
        elif size_bytes > old_bytes:
            with self._guard:
                for sector in _whole_sectors(old_bytes, size_bytes - old_bytes):
                    self._checksums[sector] = _ZERO_CHECKSUM

    def fail(self, reason: str) -> None:
        self._file.fail(reason)

    def close(self) -> None:
        self._file.close()

    def _forget(self, offset: int, length: int) -> None:
        with self._guard:
            for sector in range(offset // SECTOR_BYTES, -(-(offset + length) // SECTOR_BYTES)):
                self._checksums.pop(sector, None)

    def _remember(self, offset: int, view: memoryview) -> None:
        with self._guard:
            for sector in _whole_sectors(offset, len(view)):
                start = sector * SECTOR_BYTES - offset
                self._checksums[sector] = crc32c.crc32c(view[start : start + SECTOR_BYTES])

    def _compare(self, offset: int, view: memoryview) -> None:
        with self._guard:
            for sector in _whole_sectors(offset, len(view)):
                start = sector * SECTOR_BYTES - offset
                found = crc32c.crc32c(view[start : start + SECTOR_BYTES])
                if self._checksums.setdefault(sector, found) != found:
                    raise WrongData(f"the bytes at {sector * SECTOR_BYTES} are not what was written there last")


def _whole_sectors(offset: int, length: int) -> range:
    return range(-(-offset // SECTOR_BYTES), (offset + length) // SECTOR_BYTES)

"""In place of the file of a volume of which no block lies in this pool: nothing is read from it, and nothing kept.

Whoever asks for blocks looks first at what is held, and nothing of such a volume is. A call that comes here anyway is
refused; zeros would be taken for data. Should the pool get blocks of the volume, their file is put in.
"""

from typing import TYPE_CHECKING

from san_target.storage.interface import BlocksFile, FileExtent, StorageFault

if TYPE_CHECKING:
    from typing_extensions import Buffer


class LateFile:
    """A `BlocksFile` without bytes until `file` is set."""

    def __init__(self, size_bytes: int) -> None:
        self.file: BlocksFile | None = None
        self._size_bytes = size_bytes
        self._reason = ""

    def _there(self, offset_bytes: int, writing: bool) -> BlocksFile:
        if self.file is None:
            reason = self._reason or "no block of the volume lies in this pool"
            raise StorageFault(offset_bytes, reason, writing)
        return self.file

    @property
    def size_bytes(self) -> int:
        return self._size_bytes if self.file is None else self.file.size_bytes

    @property
    def failed(self) -> bool:
        return bool(self._reason) if self.file is None else self.file.failed

    def try_read_into(self, offset_bytes: int, into: memoryview) -> bool:
        return self.file is not None and self.file.try_read_into(offset_bytes, into)

    def try_view(self, offset_bytes: int, length_bytes: int) -> memoryview | None:
        return None if self.file is None else self.file.try_view(offset_bytes, length_bytes)

    def try_write(self, offset_bytes: int, data: "Buffer") -> int:
        return 0 if self.file is None else self.file.try_write(offset_bytes, data)

    def read_into(self, offset_bytes: int, into: memoryview) -> None:
        self._there(offset_bytes, writing=False).read_into(offset_bytes, into)

    def read(self, offset_bytes: int, length_bytes: int) -> bytearray:
        return self._there(offset_bytes, writing=False).read(offset_bytes, length_bytes)

    def write(self, offset_bytes: int, data: "Buffer", durable: bool = False) -> None:
        self._there(offset_bytes, writing=True).write(offset_bytes, data, durable)

    def flush(self) -> None:
        if self.file is not None:  # else nothing was written
            self.file.flush()

    def punch(self, offset_bytes: int, length_bytes: int) -> None:
        self._there(offset_bytes, writing=True).punch(offset_bytes, length_bytes)

    def reserve(self, offset_bytes: int, length_bytes: int) -> None:
        self._there(offset_bytes, writing=True).reserve(offset_bytes, length_bytes)

    def extents(
        self, offset_bytes: int, length_bytes: int, granularity_bytes: int, extents_max: int
    ) -> list[FileExtent]:
        there = self._there(offset_bytes, writing=False)
        return there.extents(offset_bytes, length_bytes, granularity_bytes, extents_max)

    def prefetch(self, offset_bytes: int, length_bytes: int) -> None:
        if self.file is not None:
            self.file.prefetch(offset_bytes, length_bytes)

    def resize(self, size_bytes: int) -> None:
        if self.file is None:
            self._size_bytes = size_bytes
        else:
            self.file.resize(size_bytes)

    def fail(self, reason: str) -> None:
        if self.file is None:
            self._reason = reason
        else:
            self.file.fail(reason)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()

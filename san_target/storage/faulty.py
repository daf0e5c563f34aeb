"""A wrapper that makes any blocks file misbehave, by a script.

The faults that disks are known for: errors, full and read-only media, failed flushes, delays, writes that are torn,
lost or land in the wrong place, and reads that bring old or misplaced data. All but the errors are silent.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from san_target.storage.interface import BlocksFile, FileExtent, StorageFault, StorageFull, StorageReadOnly

if TYPE_CHECKING:
    from typing_extensions import Buffer

_REMEMBERED_WRITES_MAX: Final = 64
_MISPLACED_BY_BYTES: Final = 4096


class Fault(Enum):
    ERROR = auto()  # StorageFault, nothing done; from a flush: the file fails
    FULL = auto()  # StorageFull after half of the write
    READ_ONLY = auto()  # StorageReadOnly
    DELAY = auto()  # done, but late
    TORN = auto()  # StorageFault after half of the write
    CUT = auto()  # a write says that it is done, and only its first half is
    LOST = auto()  # a write or flush says that it is done, and is not
    STALE = auto()  # a read brings what was there before the last write
    MISPLACED = auto()  # a read or write goes 4096 bytes further (or before, at the end)


@dataclass(slots=True)
class Rule:
    """`fault` strikes the calls of one operation ("read", "write", "flush", "punch") that touch [start, end).

    after: so many matching calls go well first; times: then so many are struck (-1 = all).
    """

    operation: str
    fault: Fault
    start: int = 0
    end: int = 1 << 63
    after: int = 0
    times: int = 1


@dataclass(slots=True)
class Script:
    """Rules, of which the first that matches counts; and `struck`, what has happened so far."""

    rules: list[Rule] = field(default_factory=list)
    struck: list[tuple[str, Fault]] = field(default_factory=list)

    def fault_for(self, operation: str, offset: int, length: int) -> Fault | None:
        for rule in self.rules:
            if rule.operation != operation or offset >= rule.end or offset + length <= rule.start or rule.times == 0:
                continue
            if rule.after > 0:
                rule.after -= 1
                continue
            if rule.times > 0:
                rule.times -= 1
            self.struck.append((operation, rule.fault))
            return rule.fault
        return None

    def threatens(self, operation: str, offset: int, length: int) -> bool:
        """Might a rule strike this call?"""
        return any(
            rule.operation == operation and rule.times != 0 and offset < rule.end and rule.start < offset + length
            for rule in self.rules
        )


class FaultyFile:
    """A BlocksFile around another one. A `try_` call under threat does nothing, so that a blocking call follows."""

    def __init__(self, file: BlocksFile, script: Script, delay: Callable[[], None] = lambda: None) -> None:
        self._file = file
        self._script = script
        self._delay = delay
        self._before: list[tuple[int, bytes]] = []

    @property
    def size_bytes(self) -> int:
        return self._file.size_bytes

    @property
    def failed(self) -> bool:
        return self._file.failed

    def try_read_into(self, offset_bytes: int, into: memoryview) -> bool:
        if self._script.threatens("read", offset_bytes, len(into)):
            return False
        return self._file.try_read_into(offset_bytes, into)

    def try_view(self, offset_bytes: int, length_bytes: int) -> memoryview | None:
        return None  # whatever is read goes through the faults

    def try_write(self, offset_bytes: int, data: "Buffer") -> int:
        length = len(memoryview(data).cast("B"))
        if self._script.threatens("write", offset_bytes, length) or self._script.threatens(
            "read", offset_bytes, length
        ):
            return 0
        return self._file.try_write(offset_bytes, data)

    def read(self, offset_bytes: int, length_bytes: int) -> bytearray:
        data = bytearray(length_bytes)
        self.read_into(offset_bytes, memoryview(data))
        return data

    def read_into(self, offset_bytes: int, into: memoryview) -> None:
        fault = self._struck("read", offset_bytes, len(into))
        if fault is Fault.MISPLACED:
            offset_bytes = self._misplaced(offset_bytes, len(into))
        self._file.read_into(offset_bytes, into)
        if fault is Fault.STALE:
            for start, old in reversed(self._before):
                low, high = max(start, offset_bytes), min(start + len(old), offset_bytes + len(into))
                if low < high:
                    into[low - offset_bytes : high - offset_bytes] = old[low - start : high - start]
                    break

    def write(self, offset_bytes: int, data: "Buffer", durable: bool = False) -> None:
        view = memoryview(data).cast("B")
        if not self._file.failed:
            self._before.append((offset_bytes, bytes(self._file.read(offset_bytes, len(view)))))
            del self._before[:-_REMEMBERED_WRITES_MAX]
        fault = self._struck("write", offset_bytes, len(view))
        if fault in (Fault.TORN, Fault.FULL):
            half = len(view) // 2
            self._file.write(offset_bytes, view[:half], durable)
            if fault is Fault.FULL:
                raise StorageFull("no space is left (by script)")
            raise StorageFault(offset_bytes + half, "writing failed half-way (by script)", True)
        if fault is Fault.LOST:
            return
        if fault is Fault.CUT:
            view = view[: len(view) // 2]
        if fault is Fault.MISPLACED:
            offset_bytes = self._misplaced(offset_bytes, len(view))
        self._file.write(offset_bytes, view, durable)

    def flush(self) -> None:
        if self._script.threatens("flush", 0, 1):
            fault = self._script.fault_for("flush", 0, 1)
            if fault is Fault.ERROR:
                self._file.fail("a flush failed (by script)")
            elif fault is Fault.LOST:
                return
            elif fault is Fault.DELAY:
                self._delay()
        self._file.flush()

    def punch(self, offset_bytes: int, length_bytes: int) -> None:
        if self._struck("punch", offset_bytes, length_bytes) is not Fault.LOST:
            self._file.punch(offset_bytes, length_bytes)

    def reserve(self, offset_bytes: int, length_bytes: int) -> None:
        self._file.reserve(offset_bytes, length_bytes)

    def extents(
        self, offset_bytes: int, length_bytes: int, granularity_bytes: int, extents_max: int
    ) -> list[FileExtent]:
        return self._file.extents(offset_bytes, length_bytes, granularity_bytes, extents_max)

    def prefetch(self, offset_bytes: int, length_bytes: int) -> None:
        self._file.prefetch(offset_bytes, length_bytes)

    def resize(self, size_bytes: int) -> None:
        self._file.resize(size_bytes)

    def fail(self, reason: str) -> None:
        self._file.fail(reason)

    def close(self) -> None:
        self._file.close()

    def _struck(self, operation: str, offset: int, length: int) -> Fault | None:
        """The fault for this call, if it is not one that all operations have in common."""
        fault = self._script.fault_for(operation, offset, length)
        if fault is Fault.ERROR:
            raise StorageFault(offset, f"{operation} failed (by script)", operation != "read")
        if fault is Fault.READ_ONLY:
            raise StorageReadOnly("the disk is read-only (by script)")
        if fault is Fault.DELAY:
            self._delay()
        return fault

    def _misplaced(self, offset: int, length: int) -> int:
        further = offset + _MISPLACED_BY_BYTES
        return further if further + length <= self.size_bytes else max(0, offset - _MISPLACED_BY_BYTES)

"""The intent journal that makes WRITE ATOMIC all-or-nothing over a power failure (SBC-4 4.29).

A slot is a header block and room for the data. The five steps of one atomic write, all under the exclusive range lock
of the caller:

1. `reserve` space in place, so that a full disk is found before anything has changed;
2. write header and data into a free slot, durably;
3. write the data in place, durably;
4. wipe the header, durably: the slot is free;
5. acknowledge.

A power failure before step 2 ends leaves a slot whose CRC32C is wrong (dropped) or right (replayed), and the place
untouched. Between 2 and 4 the replay writes all of the data again. So the place holds all old or all new data.

Why a replay never overwrites a later ordinary write: a slot is live only between steps 2 and 4, in which the range
lock keeps all other writers of the range out, and the wiping is durable before the lock is released. So no write to
the range, acknowledged or not, can be younger than a live slot. Should step 3 or 4 fail, the slot may be live while
the lock is released; then the file is taken out of service, so that again no younger write can exist, and the replay
at the next start completes the write. For the same reason live slots of different order never overlap, and the order
of replay does not matter.
"""

import itertools
import struct
from queue import Empty, SimpleQueue
from threading import Lock
from typing import TYPE_CHECKING, Final

import crc32c

from san_target.storage.interface import StorageError, StorageFault

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

    from san_target.storage.interface import BlocksFile

ATOMIC_BLOCKS_MAX: Final = 256
DATA_BYTES_MAX: Final = ATOMIC_BLOCKS_MAX * 4096

# magic, CRC32C of the rest of the header and of the data, volume id, offset and length in place, sequence number
_HEADER: Final = struct.Struct(">8sI16sQQQ")
_AFTER_CRC: Final = 12
_MAGIC: Final = b"SANWRAT1"
_HEADER_BYTES: Final = 4096
_LOOK_AGAIN_S: Final = 0.5
_SLOT_BYTES: Final = _HEADER_BYTES + DATA_BYTES_MAX


class Journal:
    """Slots in one file. `write` is called by threads; up to `slots` atomic writes go on at once, others wait."""

    def __init__(self, file: "BlocksFile") -> None:
        """file: of `size_bytes(slots)` bytes; call `replay` before the first `write`."""
        self._file = file
        self._slots = file.size_bytes // _SLOT_BYTES
        self._free: SimpleQueue[int] = SimpleQueue()
        self._usable = 0  # slots without an interrupted write, which only a replay at the next start frees
        self._guard = Lock()
        self._replayed = False
        self._sequence = itertools.count(1)

    @staticmethod
    def size_bytes(slots: int) -> int:
        return slots * _SLOT_BYTES

    def write(self, volume_id: str, place: "BlocksFile", offset_bytes: int, data: "Buffer") -> None:
        """Write `data` (at most DATA_BYTES_MAX) to `place`, all or nothing, durably.

        StorageError: nothing has changed, or `place` is out of service (`place.failed`) until it is opened again,
        after a replay.
        """
        payload = bytes(data)
        if not 0 < len(payload) <= DATA_BYTES_MAX:
            raise AssertionError(f"an atomic write of {len(payload)} bytes")
        if not self._replayed:
            raise AssertionError("an atomic write before the replay")
        if self._file.failed:
            raise StorageFault(offset_bytes, "the journal of atomic writes is out of service; check the disk", True)
        place.reserve(offset_bytes, len(payload))
        slot = self._take(offset_bytes)
        try:
            self._write_in(slot, volume_id, place, offset_bytes, payload)
        except BaseException:
            with self._guard:
                self._usable -= 1  # it may be live, and is kept for the replay
            raise
        self._free.put(slot)

    def _take(self, offset_bytes: int) -> int:
        """A free slot. Waits while others are in use."""
        while self._usable:
            try:
                return self._free.get(timeout=_LOOK_AGAIN_S)
            except Empty:
                continue
        raise StorageFault(offset_bytes, "the journal is full of interrupted atomic writes; restart this member", True)

    def _write_in(self, slot: int, volume_id: str, place: "BlocksFile", offset_bytes: int, payload: bytes) -> None:
        header = _pack(volume_id, offset_bytes, next(self._sequence), payload)
        try:
            self._file.write(slot * _SLOT_BYTES, header + payload, durable=True)
            place.write(offset_bytes, payload, durable=True)
            self._file.write(slot * _SLOT_BYTES, bytes(_HEADER_BYTES), durable=True)
        except StorageError as error:
            # Even a failed write of the slot may have left a whole one on the disk.
            place.fail(f"an atomic write was interrupted ({error}), which a restart completes")
            raise StorageFault(offset_bytes, f"an atomic write was interrupted ({error})", True) from error

    def replay(self, find: "Callable[[str, int, int], BlocksFile | None]") -> int:
        """Complete every interrupted write and free its slot; the number of writes completed.

        find: (volume id, offset_bytes, length_bytes) -> the file; None if the volume is gone or the range is no
        longer held here (the slot is dropped); LookupError if the file cannot be opened now (the slot is kept for the
        next start). Raises StorageError; nothing may be served then. Call it once, before the first `write`.
        """
        completed = 0
        for slot in range(self._slots):
            start = slot * _SLOT_BYTES
            live = _unpack(self._file, start)
            if live is not None:
                volume_id, offset_bytes, payload = live
                try:
                    place = find(volume_id, offset_bytes, len(payload))
                except LookupError:
                    continue
                if place is not None:
                    place.write(offset_bytes, payload, durable=True)
                    completed += 1
                self._file.write(start, bytes(_HEADER_BYTES), durable=True)
            self._free.put(slot)
            self._usable += 1
        self._replayed = True
        return completed


def _pack(volume_id: str, offset_bytes: int, sequence: int, payload: bytes) -> bytes:
    header = _HEADER.pack(_MAGIC, 0, bytes.fromhex(volume_id), offset_bytes, len(payload), sequence)
    checksum = crc32c.crc32c(payload, crc32c.crc32c(header[_AFTER_CRC:]))
    header = header[:8] + checksum.to_bytes(4, "big") + header[_AFTER_CRC:]
    return header.ljust(_HEADER_BYTES, b"\0")


def _unpack(file: "BlocksFile", start: int) -> tuple[str, int, bytes] | None:
    """(volume id, offset, data) of a live slot, or None for a free or torn one."""
    header = bytes(file.read(start, _HEADER.size))
    magic, checksum, volume_id, offset_bytes, length_bytes, _sequence = _HEADER.unpack(header)
    if magic != _MAGIC or not 0 < length_bytes <= DATA_BYTES_MAX:
        return None
    payload = bytes(file.read(start + _HEADER_BYTES, length_bytes))
    if crc32c.crc32c(payload, crc32c.crc32c(header[_AFTER_CRC:])) != checksum:
        return None
    return volume_id.hex(), offset_bytes, payload

"""What a pool remembers on disk, beside the blocks: JSON with a CRC32C around it.

A record replaces the old one as a whole: written to a temporary file, synced, renamed, the directory synced.
"""

import contextlib
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

import crc32c
import msgspec

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = 1
HELD = "held"
"""The state of a range whose blocks are complete here. Any other state means: do not serve."""


class PoolError(Exception):
    """The pool, or one volume in it, cannot be used; the message tells the operator what to do."""


class HeldRange(msgspec.Struct, frozen=True):
    """Blocks [start_lba, end_lba) lie in this pool, as of the placement with this generation."""

    start_lba: int
    end_lba: int
    generation: int
    state: str = HELD


class PoolRecord(msgspec.Struct, frozen=True, kw_only=True):
    """pool.json. revision: the highest store revision that this pool has seen; restore: the last restore of the store
    that it has seen ("" = none), since revisions go back with a restore."""

    format: int = FORMAT
    pool_id: str
    group_id: str
    revision: int
    restore: str = ""


class HeldRecord(msgspec.Struct, frozen=True, kw_only=True):
    """volumes/<id>.held. `held` is sorted and free of overlaps; blocks outside it are not here."""

    format: int = FORMAT
    volume_id: str
    size_bytes: int
    block_size: int
    held: tuple[HeldRange, ...]


class _Format(msgspec.Struct):
    format: int


class _Envelope(msgspec.Struct):
    crc32c: int
    record: msgspec.Raw


R = TypeVar("R", PoolRecord, HeldRecord)


def encode(record: PoolRecord | HeldRecord) -> bytes:
    body = msgspec.json.encode(record)
    return msgspec.json.encode(_Envelope(crc32c.crc32c(body), msgspec.Raw(body))) + b"\n"


def decode(kind: type[R], data: bytes, path: "Path") -> R:
    """Raises PoolError for a record that is damaged, contradicts itself, or was written by a newer version."""
    try:
        envelope = msgspec.json.decode(data, type=_Envelope)
        body = bytes(envelope.record)
        if crc32c.crc32c(body) != envelope.crc32c:
            raise PoolError(f"{path} is damaged (its checksum is wrong); restore it from a backup of the pool")
        version = msgspec.json.decode(body, type=_Format).format
        if version > FORMAT:
            raise PoolError(f"{path} has format {version}, this program knows up to {FORMAT}; upgrade this member")
        record = msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PoolError(f"{path} is damaged ({error}); restore it from a backup of the pool") from None
    if isinstance(record, HeldRecord):
        problem = contradiction(record)
        if problem:
            raise PoolError(f"{path} is damaged ({problem}); restore it from a backup of the pool")
    return record


def contradiction(record: HeldRecord) -> str:
    """What is wrong with a held record, or "" if nothing is."""
    if record.block_size not in (512, 4096):
        return f"block size {record.block_size}"
    if record.size_bytes <= 0 or record.size_bytes % record.block_size:
        return f"size {record.size_bytes} is not a whole number of blocks"
    end = 0
    for piece in record.held:
        if not end <= piece.start_lba < piece.end_lba:
            return f"held range {piece.start_lba}-{piece.end_lba} is empty or out of order"
        end = piece.end_lba
    if end * record.block_size > record.size_bytes:
        return "a held range ends behind the volume"
    return ""


def joined(held: Iterable[HeldRange]) -> tuple[HeldRange, ...]:
    """The same ranges, neighbours of one generation and state as one."""
    made: list[HeldRange] = []
    for piece in held:
        last = made[-1] if made else None
        if last and (last.end_lba, last.generation, last.state) == (piece.start_lba, piece.generation, piece.state):
            made[-1] = HeldRange(last.start_lba, piece.end_lba, piece.generation, piece.state)
        else:
            made.append(piece)
    return tuple(made)


def cut(held: Iterable[HeldRange], blocks: int) -> tuple[HeldRange, ...]:
    """What lies in the first `blocks`."""
    return tuple(
        HeldRange(piece.start_lba, min(piece.end_lba, blocks), piece.generation, piece.state)
        for piece in held
        if piece.start_lba < blocks
    )


def resized(held: tuple[HeldRange, ...], old_blocks: int, new_blocks: int, generation: int) -> tuple[HeldRange, ...]:
    """Cut to `new_blocks`, or extended by [old_blocks, new_blocks) under `generation`, merged where equal."""
    kept = cut(held, new_blocks)
    return joined((*kept, HeldRange(old_blocks, new_blocks, generation))) if new_blocks > old_blocks else kept


def revision_allowed(seen: str, store_revision: int, restores: Sequence[tuple[str, int]]) -> int | None:
    """The highest revision that a pool may have seen which last saw the restore `seen`; None: that is of another store.

    restores: of the store, in order: (id, revision of the backup). After a restore, revisions begin again at the
    backup's; what a pool has seen is to be compared with the store of its own time.
    """
    line = ["", *(restore_id for restore_id, _ in restores)]
    if seen not in line:
        return None
    position = line.index(seen)
    return store_revision if position == len(restores) else restores[position][1]


def sync_directory(directory: "Path") -> None:
    """Make creations, renames and removals in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: "Path", data: bytes) -> None:
    """Replace the file's contents at once and for good. OSError leaves the old contents."""
    temporary = path.with_name(path.name + ".new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()  # on a disk that is full, every block counts
        raise
    sync_directory(path.parent)

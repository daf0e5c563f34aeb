"""A member's disk space: one directory.

    pool.lock            held by flock while a process has the pool open; contains its process id
    pool.json            whose pool this is, and the highest store revision it has seen (records.PoolRecord)
    journal              the intent journal of atomic writes
    volumes/<id>.blocks  one sparse file per volume, with the volume's own offsets
    volumes/<id>.held    which ranges of it are really here (records.HeldRecord)
    volumes/<id>.deleting    the same record, once the volume's deletion has begun

A hole in a .blocks file never means "not held": only the .held record tells. So a pool refuses a store it does not
belong to, or one that is older than what it has seen (a restored backup would claim ranges that have moved away), and
it deletes data only when told to by `delete_volume`, `resize_volume`, or a deletion that was interrupted.
"""

import contextlib
import errno
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Final, TypeVar, TypeVarTuple

from san_target.storage import records
from san_target.storage.directory import VOLUMES, DiskDirectory, PoolDirectory, PoolFile
from san_target.storage.interface import StorageError, StorageFull
from san_target.storage.journal import Journal
from san_target.storage.records import HELD, HeldRange, HeldRecord, PoolError, PoolRecord
from san_target.storage.threads import Threads

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

JOURNAL_SLOTS: Final = 8
_RECORD: Final = "pool.json"
_JOURNAL: Final = "journal"


@dataclass(slots=True)
class PoolVolume:
    """A volume as far as it lies in this pool."""

    file: PoolFile
    record: HeldRecord

    @property
    def held(self) -> tuple[HeldRange, ...]:
        return self.record.held


class Pool:
    """Call `open` first. Afterwards `problems` tells which volumes cannot be opened, and what to do about each.

    Changes of different volumes may overlap, changes of one volume may not.
    """

    def __init__(
        self,
        directory: Path,
        threads: Threads,
        files: PoolDirectory | None = None,
        new_id: Callable[[], str] = secrets.token_hex,
    ) -> None:
        """Touches nothing. files: the contents of `directory`; new_id: an id that nobody else has."""
        self.directory = Path(directory)
        self.problems: dict[str, str] = {}
        self._files = DiskDirectory(self.directory) if files is None else files
        self._new_id = new_id
        self._threads = threads
        self._record: PoolRecord | None = None
        self._record_guard = Lock()  # changes of different volumes meet in pool.json
        self._volumes: dict[str, PoolVolume] = {}
        self._journal: Journal | None = None
        self._journal_file: PoolFile | None = None

    def exists(self) -> bool:
        """Has the directory been a pool before?"""
        return self._files.exists(_RECORD)

    # Open and close --------------------------------------------------------------------------------------------------

    async def open(self, group_id: str, store_revision: int, restores: Sequence[tuple[str, int]] = ()) -> None:
        """Open the pool, or make an empty directory one. Completes interrupted atomic writes and deletions.

        store_revision: the revision at which the store was read just now; restores: of the store, in order (id,
        revision of the backup). PoolError: nothing is open.
        """
        try:
            await self._threads.run(self._open, group_id, store_revision, tuple(restores))
        except (OSError, StorageError, PoolError) as error:
            await self.close()
            raise _explained(error, self.directory) from error

    async def close(self) -> None:
        """Close all files; no request may be under way."""
        await self._threads.run(self._close)

    def _open(self, group_id: str, store_revision: int, restores: tuple[tuple[str, int], ...] = ()) -> None:
        self._files.make()
        self._files.lock()
        path = self.directory / _RECORD
        if self._files.exists(_RECORD):
            self._record = records.decode(PoolRecord, self._files.read(_RECORD), path)
            _refuse_foreign(self._record, group_id, self.directory)
            _refuse_older(self._record, store_revision, restores, self.directory)
        elif self._files.names(""):
            raise PoolError(
                f"{path} is missing, but {self.directory / VOLUMES} is not empty; restore {path} from a backup, or use "
                "an empty directory for a new pool"
            )
        else:
            self._record = PoolRecord(pool_id=self._new_id(), group_id=group_id, revision=store_revision)
        self._remove_unfinished_records()
        try:
            self._write_pool_record(store_revision, restores[-1][0] if restores else "")
        except OSError as error:
            # A full pool must be able to start, else nobody could free space in it. The guard is then a little older.
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self._files.exists(_RECORD):
                raise
        self._files.sync()
        for name in self._files.names(".deleting"):
            self._remove(Path(name).stem)
        for name in self._files.names(".held"):
            volume_id = Path(name).stem
            try:
                self._open_volume(volume_id)
            except (OSError, StorageError, PoolError) as error:
                self.problems[volume_id] = str(_explained(error, self.directory))
        self._open_journal()

    def _remove_unfinished_records(self) -> None:
        """What a killed process left in the middle of replacing a record: nothing ever refers to it."""
        for name in (f"{_RECORD}.new", *self._files.names(".held.new")):
            self._files.remove(name)

    def _write_pool_record(self, revision: int, restore: str | None = None) -> None:
        """restore: None = the one of before."""
        with self._record_guard:
            record = self._opened()
            newer = PoolRecord(
                pool_id=record.pool_id,
                group_id=record.group_id,
                revision=max(record.revision, revision),
                restore=record.restore if restore is None else restore,
            )
            self._files.write_durably(_RECORD, records.encode(newer))
            self._record = newer

    def _open_volume(self, volume_id: str) -> None:
        name, blocks_name = _held(volume_id), _blocks(volume_id)
        path, blocks_path = self.directory / name, self.directory / blocks_name
        record = records.decode(HeldRecord, self._files.read(name), path)
        if record.volume_id != volume_id:
            raise PoolError(f"{path} belongs to volume {record.volume_id}; restore it from a backup of the pool")
        if not self._files.exists(blocks_name):
            raise PoolError(
                f"{blocks_path} is missing, but {path} says that blocks are held there; bring the file back (or "
                "restore it from a backup), or delete the volume"
            )
        file = self._files.open_file(blocks_name)
        try:
            if file.size_bytes < record.size_bytes:
                raise PoolError(
                    f"{blocks_path} has {file.size_bytes} bytes instead of {record.size_bytes}: its end is lost; "
                    "restore it from a backup, or delete the volume"
                )
            if file.size_bytes > record.size_bytes:
                # A shrink or a growth was interrupted; the record is what was decided.
                file.resize(record.size_bytes)
                file.flush()
        except BaseException:
            file.close()
            raise
        self._volumes[record.volume_id] = PoolVolume(file, record)

    def _open_journal(self) -> None:
        path = self.directory / _JOURNAL
        give_up = f"or give them up: truncate -s {Journal.size_bytes(JOURNAL_SLOTS)} {path}"
        if not self._files.exists(_JOURNAL):
            if self._volumes or self.problems:  # it was made before them
                raise PoolError(
                    f"{path} is missing, which holds atomic writes that a crash interrupted; bring it back, {give_up}"
                )
            temporary = f"{_JOURNAL}.new"
            self._files.remove(temporary)
            file = self._files.create_file(temporary, Journal.size_bytes(JOURNAL_SLOTS))
            try:
                file.reserve(0, file.size_bytes)
                file.flush()
            finally:
                file.close()
            self._files.rename(temporary, _JOURNAL)
            self._files.sync()
        self._journal_file = self._files.open_file(_JOURNAL)
        if self._journal_file.size_bytes < Journal.size_bytes(JOURNAL_SLOTS):
            raise PoolError(
                f"{path} was cut, which holds atomic writes that a crash interrupted; restore it, {give_up}"
            )
        # No atomic write is to fail for want of journal space. At each start: a pool that was copied may have holes.
        with contextlib.suppress(StorageFull):
            self._journal_file.reserve(0, self._journal_file.size_bytes)
        journal = Journal(self._journal_file)
        journal.replay(self._find_for_replay)
        self._journal = journal

    def _find_for_replay(self, volume_id: str, offset_bytes: int, length_bytes: int) -> PoolFile | None:
        if volume_id in self.problems:
            raise LookupError(volume_id)
        volume = self._volumes.get(volume_id)
        if volume is None:
            return None
        start = offset_bytes // volume.record.block_size
        end = (offset_bytes + length_bytes) // volume.record.block_size
        whole = any(
            piece.start_lba <= start and end <= piece.end_lba and piece.state == HELD for piece in volume.record.held
        )
        return volume.file if whole else None

    def _close(self) -> None:
        for volume in self._volumes.values():
            volume.file.close()
        self._volumes.clear()
        if self._journal_file is not None:
            self._journal_file.close()
        self._journal_file = self._journal = self._record = None
        self._files.unlock()

    # Look -------------------------------------------------------------------------------------------------------------

    @property
    def pool_id(self) -> str:
        return self._opened().pool_id

    @property
    def revision(self) -> int:
        """The highest store revision that this pool has seen."""
        return self._opened().revision

    @property
    def journal(self) -> Journal:
        """For the atomic writes of all volumes of the pool."""
        if self._journal is None:
            raise AssertionError("the pool is not open")
        return self._journal

    def list_volumes(self) -> list[str]:
        """The ids of all volumes with blocks in this pool, in order; those with `problems` too."""
        return sorted({*self._volumes, *self.problems})

    def open_volume(self, volume_id: str) -> PoolVolume:
        """PoolError: the volume is not here, or has a problem."""
        self._opened()
        if volume_id in self.problems:
            raise PoolError(self.problems[volume_id])
        try:
            return self._volumes[volume_id]
        except KeyError:
            if self._files.exists(_blocks(volume_id)):
                raise PoolError(
                    f"{self.directory / _held(volume_id)} is missing, which says what blocks the file beside it holds; "
                    "bring it back (or restore it from a backup), or delete the volume"
                ) from None
            raise PoolError(
                f"no blocks of volume {volume_id} lie in the pool {self.directory}; was this member started with "
                "another pool directory?"
            ) from None

    def find_volume(self, volume_id: str) -> PoolVolume | None:
        """None if nothing of the volume is here. PoolError: the volume has a problem.

        A file without its record to which nothing was ever written is nothing: the process that made it was killed
        before it wrote the record. `create_volume` takes its place.
        """
        name = _blocks(volume_id)
        known = volume_id in self._volumes or volume_id in self.problems
        if not known and not (self._files.exists(name) and self._files.has_data(name)):
            return None
        return self.open_volume(volume_id)

    def space(self) -> tuple[int, int]:
        """(total_bytes, free_bytes) of the file system, as far as this process may use it."""
        return self._files.space()

    # Change -----------------------------------------------------------------------------------------------------------

    async def create_volume(
        self, volume_id: str, size_bytes: int, block_size: int, held: Sequence[HeldRange]
    ) -> PoolVolume:
        """Make a volume's file, all holes, durably. Creating the same once more is harmless."""
        return await self._change(self._create_volume, volume_id, size_bytes, block_size, tuple(held))

    async def resize_volume(self, volume_id: str, size_bytes: int, held: Sequence[HeldRange]) -> PoolVolume:
        """Grow by holes, or shrink (the cut blocks' data is gone), durably. held: all that is held afterwards.

        Before a shrink the caller ends all requests to the cut blocks.
        """
        return await self._change(self._resize_volume, volume_id, size_bytes, tuple(held))

    async def update_held(self, volume_id: str, held: Sequence[HeldRange]) -> PoolVolume:
        """Record, durably, which ranges are held. Touches no blocks."""
        return await self._change(self._update_held, volume_id, tuple(held))

    async def delete_volume(self, volume_id: str) -> None:
        """Remove the volume's data, for good. Only after a tombstone in the store; no request may be under way."""
        await self._change(self._delete_volume, volume_id)

    async def note_revision(self, revision: int) -> None:
        """Remember that the store has reached this revision, before acting on what it says."""
        if revision > self._opened().revision:
            await self._change(self._write_pool_record, revision)

    async def _change(self, function: Callable[[*Arguments], T], *arguments: *Arguments) -> T:
        self._opened()
        try:
            return await self._threads.run(function, *arguments)
        except (OSError, StorageError) as error:
            raise _explained(error, self.directory) from error

    def _create_volume(
        self, volume_id: str, size_bytes: int, block_size: int, held: tuple[HeldRange, ...]
    ) -> PoolVolume:
        if bytes.fromhex(volume_id).hex() != volume_id or len(volume_id) != 32:
            raise AssertionError(f"{volume_id!r} is not a volume id")
        record = HeldRecord(volume_id=volume_id, size_bytes=size_bytes, block_size=block_size, held=held)
        problem = records.contradiction(record)
        if problem:
            raise AssertionError(problem)
        if volume_id in self.problems:
            raise PoolError(self.problems[volume_id])
        there = self._volumes.get(volume_id)
        if there is not None:
            if there.record == record:
                return there
            raise PoolError(f"volume {volume_id} is in the pool {self.directory} already, with another size or place")
        name = _blocks(volume_id)
        if self._files.exists(name):
            self._remove_if_empty(name)
        self._note_generations(held)
        file = self._files.create_file(name, size_bytes)
        try:
            # The file's name becomes durable with the record's, in the same directory.
            self._write_held(record)
        except BaseException:
            file.close()
            self._files.remove(_held(volume_id))
            self._files.remove(name)
            raise
        volume = self._volumes[volume_id] = PoolVolume(file, record)
        return volume

    def _remove_if_empty(self, name: str) -> None:
        """A creation that was interrupted leaves a file without a record; it never got any data."""
        if self._files.has_data(name):
            path = self.directory / name
            raise PoolError(
                f"{path} holds data, but the record of what is held there is missing; restore "
                f"{path.with_suffix('.held')} from a backup, or move {path} away"
            )
        self._files.remove(name)

    def _resize_volume(self, volume_id: str, size_bytes: int, held: tuple[HeldRange, ...]) -> PoolVolume:
        volume = self.open_volume(volume_id)
        old = volume.record
        record = HeldRecord(volume_id=volume_id, size_bytes=size_bytes, block_size=old.block_size, held=held)
        problem = records.contradiction(record)
        if problem:
            raise AssertionError(problem)
        self._note_generations(record.held)
        if size_bytes > old.size_bytes:
            volume.file.resize(size_bytes)
            volume.file.flush()
        elif size_bytes < old.size_bytes:
            # Before the record, for shrinking is a way out of a full pool, and the record needs space. And punched, not
            # only cut: should the file system keep the tail of a block, a later growth would show it.
            volume.file.punch(size_bytes, old.size_bytes - size_bytes)
        self._write_held(record)
        volume.record = record
        if size_bytes < old.size_bytes:
            volume.file.resize(size_bytes)
            volume.file.flush()
        return volume

    def _update_held(self, volume_id: str, held: tuple[HeldRange, ...]) -> PoolVolume:
        volume = self.open_volume(volume_id)
        old = volume.record
        record = HeldRecord(volume_id=volume_id, size_bytes=old.size_bytes, block_size=old.block_size, held=held)
        problem = records.contradiction(record)
        if problem:
            raise AssertionError(problem)
        self._note_generations(held)
        self._write_held(record)
        volume.record = record
        return volume

    def _delete_volume(self, volume_id: str) -> None:
        volume = self._volumes.pop(volume_id, None)
        self.problems.pop(volume_id, None)
        if volume is not None:
            volume.file.close()
        # What is there counts, not what was known: a deletion that failed is repeated, a record may have been lost.
        # A rename, for it needs no space: deleting is the way out of a full pool.
        with contextlib.suppress(FileNotFoundError):
            self._files.rename(_held(volume_id), _deleting(volume_id))
            self._files.sync(VOLUMES)
        self._remove(volume_id)

    def _remove(self, volume_id: str) -> None:
        """The record goes last: until then the deletion is known to be under way."""
        self._files.remove(_blocks(volume_id))
        self._files.sync(VOLUMES)
        self._files.remove(_deleting(volume_id))
        self._files.sync(VOLUMES)

    def _note_generations(self, held: Sequence[HeldRange]) -> None:
        """A generation is a store revision, so the store has reached it."""
        generation = max((piece.generation for piece in held), default=0)
        if generation > self._opened().revision:
            self._write_pool_record(generation)

    def _write_held(self, record: HeldRecord) -> None:
        self._files.write_durably(_held(record.volume_id), records.encode(record))

    def _opened(self) -> PoolRecord:
        if self._record is None:
            raise AssertionError("the pool is not open")
        return self._record


def _blocks(volume_id: str) -> str:
    return f"{VOLUMES}/{volume_id}.blocks"


def _held(volume_id: str) -> str:
    return f"{VOLUMES}/{volume_id}.held"


def _deleting(volume_id: str) -> str:
    return f"{VOLUMES}/{volume_id}.deleting"


def _refuse_foreign(record: PoolRecord, group_id: str, directory: Path) -> None:
    if record.group_id != group_id:
        raise PoolError(
            f"the pool {directory} belongs to group {record.group_id}, but the store is of group {group_id}; start "
            "this member with the store of its group, or with another pool directory"
        )


def _refuse_older(
    record: PoolRecord, store_revision: int, restores: Sequence[tuple[str, int]], directory: Path
) -> None:
    allowed = records.revision_allowed(record.restore, store_revision, restores)
    if allowed is None:
        raise PoolError(
            f"the pool {directory} was used with a store that had been restored from a backup, and this is another "
            "one; use the newest store, or make one of what the pools hold with `san-target store rebuild`"
        )
    if allowed < record.revision:
        raise PoolError(
            f"the store is older than the pool {directory}: it is at revision {allowed}, the pool has seen "
            f"{record.revision}; was the store restored from a backup? Use the newest store, since an old one does "
            "not know where blocks are now; or make one of what the pools hold with `san-target store rebuild`"
        )


def _explained(error: Exception, directory: Path) -> PoolError:
    """What an operator should do about an error of the operating system."""
    if isinstance(error, PoolError):
        return error
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno in (errno.EFBIG, errno.EINVAL, errno.ENOSPC, errno.EDQUOT):
        error = cause
    if not isinstance(error, OSError):
        return PoolError(f"the pool {directory} cannot be used: {error}")
    what = error.filename or directory
    advice = {
        errno.EROFS: "the file system is read-only; mount it writable (and check the disk, if it was writable before)",
        errno.EACCES: "permission is denied; give the pool directory to the user that runs the member",
        errno.EPERM: "permission is denied; give the pool directory to the user that runs the member",
        errno.ENOSPC: "no space is left; free some, or delete volumes",
        errno.EDQUOT: "the disk quota is used up; raise it, or delete volumes",
        errno.EIO: "the disk reports errors; check it",
        errno.ENOTDIR: "it is not a directory; give the pool another place",
        errno.EEXIST: "it is not a directory; move it away, or give the pool another place",
        errno.EFBIG: "the file system has no such large files; make the volume smaller, or use another file system",
        errno.EINVAL: "the file system refuses; does it support sparse files of this size?",
    }.get(error.errno or 0, error.strerror or str(error))
    return PoolError(f"{what}: {advice}")

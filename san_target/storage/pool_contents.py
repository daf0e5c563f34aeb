"""What a pool remembers, read without opening it: for a store that is lost, and for people.

The pool is locked while it is read, so that nobody changes it.
"""

import os
from pathlib import Path
from typing import Final

import msgspec

from san_target.storage import records
from san_target.storage.directory import VOLUMES, DiskDirectory
from san_target.storage.records import HeldRecord, PoolError, PoolRecord

FORMAT: Final = 1


class PoolContents(msgspec.Struct, frozen=True, kw_only=True):
    """unreadable: by volume id, why its record cannot be read."""

    format: int = FORMAT
    pool: PoolRecord
    volumes: tuple[HeldRecord, ...]
    unreadable: dict[str, str] = {}


def read_pool(directory: Path) -> PoolContents:
    """PoolError: it is no pool, a member has it open, or its own record is damaged."""
    files = DiskDirectory(directory)
    path = directory / "pool.json"
    if not path.is_file():
        raise PoolError(f"{directory} is no pool: there is no {path}")
    try:
        files.lock()
        pool = records.decode(PoolRecord, path.read_bytes(), path)
        found, unreadable = [], {}
        for held in sorted((directory / VOLUMES).glob("*.held")):
            try:
                found.append(records.decode(HeldRecord, held.read_bytes(), held))
            except PoolError as error:
                unreadable[held.stem] = str(error)
    except OSError as error:
        raise PoolError(
            f"the pool {directory} cannot be read: {error.strerror or os.strerror(error.errno or 0)}"
        ) from error
    finally:
        files.unlock()
    return PoolContents(pool=pool, volumes=tuple(found), unreadable=unreadable)


def read_contents(path: Path) -> PoolContents:
    """A pool's directory, or a file that `encode_contents` was written to. PoolError."""
    if path.is_dir():
        return read_pool(path)
    try:
        contents = msgspec.json.decode(path.read_bytes(), type=PoolContents)
    except OSError as error:
        raise PoolError(f"{path} cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PoolError(f"{path} is neither a pool nor what `san-target store held` prints ({error})") from None
    if contents.format > FORMAT:
        raise PoolError(f"{path} has format {contents.format}, this program knows up to {FORMAT}; upgrade it")
    return contents


def encode_contents(contents: PoolContents) -> bytes:
    return msgspec.json.encode(contents)

"""A store as a file, and back: one line of JSON for each key, the same for every kind of store.

The first line says what it is, the last that nothing is missing. Leases are left out: they say who runs, and a restored
store begins with nobody running. The file has every secret of the group, so it is as private as the store.
"""

import base64
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import crc32c
import msgspec

from san_target.metadata.schema import GROUP_KEY, GroupRecord, RestoreRecord, decode, encode
from san_target.metadata.store import OPERATIONS_MAX, Delete, Item, Put, Store, StoreError

FORMAT: Final = 1
LEASES: Final = "leases/"
RESTORING: Final = "restoring"
"""A key that is there until a store is restored completely."""


class BackupError(Exception):
    """The file is no backup, or not a whole one; or the store is not one to restore into."""


class Header(msgspec.Struct, frozen=True, tag="san-target-backup", tag_field="kind"):
    """revision: of the store when it was read; written: UTC text, program: its version; for people."""

    format: int
    group: str
    group_id: str
    revision: int
    written: str = ""
    program: str = ""


class Entry(msgspec.Struct, frozen=True, tag="key", tag_field="kind", omit_defaults=True):
    """One key. value: as text; base64: where it is none."""

    key: str
    value: str | None = None
    base64: str = ""

    @property
    def content(self) -> bytes:
        return base64.b64decode(self.base64) if self.value is None else self.value.encode()


class Footer(msgspec.Struct, frozen=True, tag="end", tag_field="kind"):
    """keys: how many there are; crc32c: of all lines before this one."""

    keys: int
    crc32c: int


@dataclass(slots=True)
class Backup:
    """What a file holds: values by key."""

    header: Header
    values: dict[str, bytes] = field(default_factory=dict)

    @property
    def group(self) -> GroupRecord:
        return decode(GroupRecord, self.values[GROUP_KEY], GROUP_KEY)


# Writing --------------------------------------------------------------------------------------------------------------


async def lines_of(store: Store, written: str, program: str) -> AsyncIterator[bytes]:
    """The lines of a backup of the store as it is now; its members may go on. StoreError: also for an empty store."""
    item = await store.get(GROUP_KEY)
    if item is None:
        raise StoreError("the store holds no group: there is nothing to back up; check --store")
    group = decode(GroupRecord, item.value, GROUP_KEY)
    keys = checksum = 0
    is_first = True
    async for page in store.pages(""):
        if is_first:
            is_first = False
            line = _line(Header(FORMAT, group.name, group.id, page.revision, written, program))
            checksum = crc32c.crc32c(line, checksum)
            yield line
        for one in page.items:
            if not one.key.startswith(LEASES) and one.key != RESTORING:
                line = _line(_entry(one))
                checksum = crc32c.crc32c(line, checksum)
                keys += 1
                yield line
    yield _line(Footer(keys, checksum))


def _entry(item: Item) -> Entry:
    try:
        return Entry(item.key, value=item.value.decode())
    except UnicodeDecodeError:
        return Entry(item.key, base64=base64.b64encode(item.value).decode())


def _line(value: Header | Entry | Footer) -> bytes:
    return msgspec.json.encode(value) + b"\n"


# Reading --------------------------------------------------------------------------------------------------------------


def read(lines: Iterable[bytes], name: str) -> Backup:
    """A whole backup. BackupError, with the file's `name`."""
    backup: Backup | None = None
    checksum = 0
    for number, value, line in _values(lines, name):
        if backup is None:
            if not isinstance(value, Header):
                raise BackupError(f"{name} is no backup of a store")
            if value.format > FORMAT:
                raise BackupError(f"{name} has format {value.format}, this program knows up to {FORMAT}; upgrade it")
            backup = Backup(value)
        elif isinstance(value, Entry):
            backup.values[value.key] = value.content
        elif isinstance(value, Footer):
            if (value.keys, value.crc32c) != (len(backup.values), checksum):
                raise BackupError(f"{name} is damaged: its keys are not those that were written")
            if GROUP_KEY not in backup.values:
                raise BackupError(f"{name} holds no group")
            return backup
        else:
            raise BackupError(f"line {number} of {name} is out of place")
        checksum = crc32c.crc32c(line, checksum)
    raise BackupError(f"{name} has no end: it was cut, or is no backup of a store")


def _values(lines: Iterable[bytes], name: str) -> Iterator[tuple[int, Header | Entry | Footer, bytes]]:
    decoder = msgspec.json.Decoder(Header | Entry | Footer)
    for number, line in enumerate(lines, start=1):
        try:
            yield number, decoder.decode(line), line
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BackupError(f"line {number} of {name} cannot be read ({error})") from None


# Restoring ------------------------------------------------------------------------------------------------------------


async def restore(store: Store, backup: Backup, restore_id: str, replace: bool = False) -> int:
    """Make the store what was backed up; its new revision. BackupError: the store is in use, or not empty.

    restore_id: 32 hex digits, never the same twice. replace: also a store that holds something, which is lost.
    Interrupted, it leaves a store without a group, which no member takes for one; `replace` starts anew.
    """
    group = backup.group
    restored = msgspec.structs.replace(
        group, restores=(*group.restores, RestoreRecord(restore_id, backup.header.revision))
    )
    return await write(store, backup.values | {GROUP_KEY: encode(restored)}, backup.header.revision, replace)


async def write(store: Store, values: dict[str, bytes], revision: int, replace: bool) -> int:
    """Fill a store whose later revisions are greater than `revision`. BackupError as `restore`."""
    await _clear(store, replace)
    await store.skip_to(revision)
    puts = [Put(key, value) for key, value in sorted(values.items()) if key != GROUP_KEY]
    for some in _slices(puts):
        await store.transact([], some)
    # Last: without it nobody takes the store for a whole one.
    return (await store.transact([], [Put(GROUP_KEY, values[GROUP_KEY]), Delete(RESTORING)])).revision


async def _clear(store: Store, replace: bool) -> None:
    running = [item.key.removeprefix(LEASES) for item in (await store.range(LEASES)).items]
    if running:
        raise BackupError(
            f"member {', '.join(running)} runs with this store (or ended less than 10 s ago); stop all members first"
        )
    keys = [item.key async for page in store.pages("") for item in page.items]
    if keys and not replace:
        raise BackupError("the store is not empty; give another --store, or --force to replace what it holds")
    # From now on it is no whole store, and no empty one in which a group could be made.
    await store.transact([], [Put(RESTORING, b""), *([Delete(GROUP_KEY)] if GROUP_KEY in keys else [])])
    for some in _slices([Delete(key) for key in keys if key not in (GROUP_KEY, RESTORING)]):
        await store.transact([], some)


def _slices(operations: Sequence[Put | Delete]) -> Iterator[list[Put | Delete]]:
    for start in range(0, len(operations), OPERATIONS_MAX):
        yield list(operations[start : start + OPERATIONS_MAX])

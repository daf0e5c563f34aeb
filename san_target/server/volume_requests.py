"""Creating, changing, resizing and deleting volumes at the administration's request.

The store is changed first; the request is answered when this member has carried it out, or could not.
"""

import asyncio
from typing import TYPE_CHECKING

from msgspec import UNSET

from san_target.admin.service import ChapUser, VolumeChanges, VolumeSpec
from san_target.group.errors import Conflict, NotFound
from san_target.metadata.schema import ChapRecord, volume_key

if TYPE_CHECKING:
    from san_target.group.volumes import VolumeOptions
    from san_target.server.export import Export
    from san_target.server.member import Member

SETTLE_S = 30.0
BUSY = "it is stored and will be carried out, but takes long; look at `volume show`"


class VolumeRequests:
    """Refusals are `group.errors`; StoreError if the store fails."""

    def __init__(self, member: "Member") -> None:
        self._member = member

    async def create(self, spec: VolumeSpec) -> None:
        volumes = self._member.volumes
        record = await volumes.create(
            spec.name,
            spec.size_bytes,
            block_size=spec.block_size,
            copies=spec.copies,
            members=spec.members,
            allow=spec.allow,
            chap=_records(spec.chap),
            mutual_chap=_record(spec.mutual_chap),
            write_through=spec.write_through,
            read_only=spec.read_only,
            removable=spec.removable,
            multipath=spec.multipath,
        )
        export = await self._settled(record.id)
        if export is not None and not export.is_served and self._member.name in record.members:
            reason = export.reason
            await volumes.delete(spec.name)
            await self._settled(record.id)
            raise Conflict(f"the volume {spec.name!r} cannot be created: {reason}")

    async def change(self, name: str, changes: VolumeChanges) -> None:
        options: VolumeOptions = {}
        if changes.allow is not UNSET:
            options["allow"] = changes.allow
        if changes.chap is not UNSET:
            options["chap"] = _records(changes.chap)
        if changes.mutual_chap is not UNSET:
            options["mutual_chap"] = _record(changes.mutual_chap)
        if changes.write_through is not UNSET:
            options["write_through"] = changes.write_through
        if changes.read_only is not UNSET:
            options["read_only"] = changes.read_only
        if changes.removable is not UNSET:
            options["removable"] = changes.removable
        if changes.multipath is not UNSET:
            options["multipath"] = changes.multipath
        record = await self._member.volumes.change(name, **options)
        await self._settled(record.id)

    async def resize(self, name: str, size_bytes: int, force: bool) -> None:
        volumes = self._member.volumes
        old = await volumes.named(name)
        opened = self._member.exports.by_id.get(old.id)
        if opened is not None and not opened.is_served:
            # What is there is to be repaired first, not changed: a lost file that is brought back must fit its record.
            raise Conflict(f"the volume {name!r} is not served now: {opened.reason}")
        record = await volumes.resize(name, size_bytes, force)
        export = await self._settled(record.id)
        if export is not None and export.failed_change:
            reason = export.failed_change
            if size_bytes > old.size_bytes:  # nobody has used the new blocks: what was promised can be taken back
                await volumes.resize(name, old.size_bytes, force=True)
                await self._settled(record.id)
            raise Conflict(f"the volume {name!r} cannot be resized: {reason}")

    async def delete(self, name: str, force: bool) -> None:
        record = await self._member.volumes.delete(name, force)
        await self._settled(record.id)
        try:
            left = await self._member.volumes.named(name)
        except NotFound:
            return
        if left.id == record.id and self._member.name in record.members:
            raise Conflict(f"the volume {name!r} is deleted, but its data cannot be removed yet; see the member's log")

    async def _settled(self, volume_id: str) -> "Export | None":
        """Wait until this member has done what the store now says of the volume."""
        exports = self._member.exports
        item = await self._member.store.get(volume_key(volume_id))
        revision = item.mod_revision if item else 0
        try:
            async with asyncio.timeout(SETTLE_S):
                await exports.settled(volume_id, revision)
        except TimeoutError:
            raise Conflict(BUSY) from None
        return exports.by_id.get(volume_id)


def _record(user: ChapUser | None) -> ChapRecord | None:
    return None if user is None else ChapRecord(user.user, user.secret)


def _records(users: tuple[ChapUser, ...]) -> tuple[ChapRecord, ...]:
    return tuple(ChapRecord(user.user, user.secret) for user in users)

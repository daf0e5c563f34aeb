"""Creating, changing, resizing and deleting volumes at the administration's request.

The store is changed first; the request is answered when every member concerned has carried it out, or one could not.
"""

import asyncio
from typing import TYPE_CHECKING

from msgspec import UNSET

from san_target.admin.service import ChapUser, VolumeChanges, VolumeSpec
from san_target.group.errors import Conflict
from san_target.group.volume_size import shown_bytes
from san_target.metadata.schema import ChapRecord, VolumeRecord, volume_key
from san_target.volume.partition_map import PartitionMapError

if TYPE_CHECKING:
    from san_target.group.volumes import VolumeOptions
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
        done = await self._carried_out(record.id)
        export = self._member.exports.by_id.get(record.id)
        if done is None or export is None:
            raise Conflict(f"the volume {spec.name!r} was deleted while it was created")
        reason = self._failure(done) or ("" if export.is_served else export.reason)
        if reason:
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
        done = await self._carried_out(record.id)
        reason = "" if done is None else self._failure(done)
        if reason:
            if size_bytes > shown_bytes(old):  # nobody has used the new blocks: what was promised can be taken back
                await volumes.resize(name, shown_bytes(old), force=True)
                await self._carried_out(record.id)
            raise Conflict(f"the volume {name!r} cannot be resized: {reason}")

    async def delete(self, name: str, force: bool) -> None:
        exports = self._member.exports
        record = await self._member.volumes.named(name)
        away = self._holders(record.id) - {member.name for member in self._member.members.alive()}
        await self._member.volumes.delete(name, force)
        await self._settled(record.id)
        if exports.has_failed(record.id):
            raise Conflict(f"the volume {name!r} is deleted, but its data cannot be removed yet; see the member's log")
        if away and exports.record(record.id) is not None:
            raise Conflict(
                f"the volume {name!r} is being deleted; member {', '.join(sorted(away))}, which holds some of its "
                "data, is not running, and removes it when it starts"
            )
        try:
            async with asyncio.timeout(SETTLE_S):
                await exports.gone(record.id)
        except TimeoutError:
            raise Conflict(BUSY) from None

    def _holders(self, volume_id: str) -> frozenset[str]:
        """The members that have blocks of a volume, as far as this one knows."""
        stored_map = self._member.exports.stored_map(volume_id)
        try:
            return frozenset() if stored_map is None else stored_map.whole().holders
        except PartitionMapError:
            return frozenset()

    def _failure(self, record: VolumeRecord) -> str:
        """Why the volume's members cannot do what its record asks; "" = they have done it."""
        return record.failure.removeprefix(f"member {self._member.name}: ")

    async def _carried_out(self, volume_id: str) -> VolumeRecord | None:
        """Wait until every member has done what the store now says of the volume, or one of them cannot."""
        try:
            async with asyncio.timeout(SETTLE_S):
                return await self._member.exports.carried_out(volume_id, await self._revision(volume_id))
        except TimeoutError:
            record = self._member.exports.record(volume_id)
            waiting = ", ".join(record.unconfirmed) if record is not None else ""
            raise Conflict(f"{BUSY} (waiting for member {waiting})" if waiting else BUSY) from None

    async def _settled(self, volume_id: str) -> None:
        """Wait until this member has done what the store now says of the volume."""
        try:
            async with asyncio.timeout(SETTLE_S):
                await self._member.exports.settled(volume_id, await self._revision(volume_id))
        except TimeoutError:
            raise Conflict(BUSY) from None

    async def _revision(self, volume_id: str) -> int:
        item = await self._member.store.get(volume_key(volume_id))
        return item.mod_revision if item else 0


def _record(user: ChapUser | None) -> ChapRecord | None:
    return None if user is None else ChapRecord(user.user, user.secret)


def _records(users: tuple[ChapUser, ...]) -> tuple[ChapRecord, ...]:
    return tuple(ChapRecord(user.user, user.secret) for user in users)

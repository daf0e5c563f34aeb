"""Draining a member: the operator's will goes into its record; the balancer moves its sessions and its blocks."""

from typing import TYPE_CHECKING

import msgspec

from san_target.admin import service as values
from san_target.admin.drain import MemberDrain, StayingSession
from san_target.group.errors import Conflict, NotFound
from san_target.group.membership import ACTIVE, DRAINING, REMOVED
from san_target.group.migration import FINISHED
from san_target.group.removal import shares_of
from san_target.metadata.schema import MemberRecord, decode, encode, member_key
from san_target.metadata.store import Compare, Put

if TYPE_CHECKING:
    from san_target.server.member import Member

TRIES = 8


class Drains:
    """Refusals are `group.errors`; StoreError if the store fails."""

    def __init__(self, member: "Member") -> None:
        self._member = member

    async def set_state(self, name: str, state: str) -> None:
        """DRAINING or ACTIVE. The last member that would be active is not drained: nothing could go anywhere."""
        key = member_key(name)
        for _ in range(TRIES):
            item = await self._member.store.get(key)
            record = None if item is None else decode(MemberRecord, item.value, key)
            if item is None or record is None or record.state == REMOVED:
                raise NotFound(f"there is no member {name!r}; `member list` shows all")
            if record.state == state:
                return
            if record.state not in (ACTIVE, DRAINING):
                raise Conflict(f"member {name!r} is {record.state}")
            if state == DRAINING:
                self._check_others(name)
            changed = msgspec.structs.replace(record, state=state)
            if (
                await self._member.store.transact([Compare(key, item.mod_revision)], [Put(key, encode(changed))])
            ).succeeded:
                return
        raise Conflict(f"member {name!r} changes all the time; try again")

    def _check_others(self, name: str) -> None:
        view = self._member.members.view.values()
        if not any(one.alive and one.state == "active" and one.name != name for one in view):
            raise Conflict(f"no other member is active that could take over from member {name!r}")

    async def status(self, name: str, shown: values.Member) -> MemberDrain:
        member = self._member
        shares = await shares_of(member.store, name)
        gathered = await member.group_sessions.all()
        reasons = await self._reasons()
        sessions = tuple(
            StayingSession(id=one.id, initiator=one.initiator, volume=one.volume, reason=reasons.get(one.id, ""))
            for one in gathered.sessions
            if one.member == name
        )
        known = member.life.migrations.known.values()
        migrating = tuple(record.id for record, _ in known if record.source == name and record.state not in FINISHED)
        is_known = name not in gathered.missing or not shown.sessions
        return MemberDrain(
            name=name,
            state=shown.state,
            done=not shares and not sessions and not migrating and is_known,
            left=tuple(values.LostShare(volume=one.volume, ranges=one.ranges, size_bytes=one.bytes) for one in shares),
            migrating=migrating,
            sessions=sessions,
        )

    async def _reasons(self) -> dict[str, str]:
        """Why sessions were not moved, by their id, as far as is known."""
        try:
            report = await self._member.balancing.balance("explain")
        except Conflict:
            return {}
        return {one.session: one.reason for one in report.decisions if one.kind == "move" and not one.taken}

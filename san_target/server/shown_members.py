"""The members of the group as the administration sees them: this one from its live parts, others by what they told."""

import os
from typing import TYPE_CHECKING, Literal

import san_target
from san_target.admin import service as values
from san_target.group.errors import NotFound
from san_target.group.members import MemberView
from san_target.server.last_known import LastKnown
from san_target.server.local_sessions import utc

if TYPE_CHECKING:
    from san_target.server.member import Member

PoolState = Literal["ok", "low", "full", "failed"]
POOL_LOW_SHARE = 0.1  # of the file system: below it the pool's state is "low"
POOL_FULL_BYTES = 16 << 20
REASONS = {
    "unreachable": "it has not renewed its lease",
    "removing": "it is being removed from the group; `member remove` once more finishes that",
    "removed": "it was removed from the group",
}


class ShownMembers:
    """reasons: what is not as it should be with this member, though it serves."""

    def __init__(self, member: "Member", last_known: LastKnown) -> None:
        self._member = member
        self._last_known = last_known

    async def all(self, reasons: list[str]) -> tuple[tuple[values.Member, ...], str]:
        """By name, and what is to be said of all of them."""
        views, old = await self._last_known.members()
        mine = [*reasons, old] if old else reasons
        shown = (
            self._self(view, mine)
            if view.name == self._member.name
            else shown_other(view, self._volumes_at(view.name), old)
            for view in views
        )
        return tuple(shown), old

    async def one(self, name: str, reasons: list[str]) -> values.Member:
        members, old = await self.all(reasons)
        for member in members:
            if member.name == name:
                return member
        said = f"; {old}" if old else ""
        raise NotFound(f"there is no member {name!r}; `member list` shows all{said}")

    def _self(self, view: MemberView, reasons: list[str]) -> values.Member:
        member, sessions = self._member, self._member.local_sessions.all()
        now_s = member.environment.now_s()
        rates = [member.rates.rate(session, now_s) for session in sessions]
        return values.Member(
            name=member.name,
            # It knows better than its lease whether it serves.
            state=member.state if member.state != "active" or not view.alive else view.state,
            incarnation=view.incarnation,
            portals=view.portals,
            admin=view.admin,
            peer=view.peer,
            version=san_target.__version__,
            pid=os.getpid(),
            since=utc(member.since_s),
            volumes=self._volumes_at(view.name),
            sessions=len(sessions),
            iops=sum(rate.commands for rate in rates),
            bytes_per_second=sum(rate.bytes for rate in rates),
            pool=self.pool(),
            reason="; ".join(reasons),
        )

    def _volumes_at(self, name: str) -> int:
        """How many volumes have blocks at a member."""
        snapshots = [export.snapshot for export in self._member.exports.by_id.values()]
        return sum(snapshot is not None and name in snapshot.holders for snapshot in snapshots)

    def pool(self) -> values.Pool:
        """This member's own."""
        pool = self._member.pool
        capacity_bytes, free_bytes = pool.space()
        state, reason = pool_state(capacity_bytes, free_bytes)
        return values.Pool(
            directory=str(pool.directory),
            capacity_bytes=capacity_bytes,
            free_bytes=free_bytes,
            allocated_bytes=sum(export.allocated_bytes() for export in self._member.exports.by_id.values()),
            state=state,
            reason=reason,
        )


def shown_other(view: MemberView, volumes: int, old: str) -> values.Member:
    """Another member, by what it has told of itself. old: what is to be said of that, or ""."""
    is_here = view.state not in ("removed", "unreachable")
    return values.Member(
        name=view.name,
        state=view.state,
        incarnation=view.incarnation,
        portals=view.portals,
        admin=view.admin,
        peer=view.peer,
        version=view.program,
        volumes=volumes,
        pool=values.Pool(
            directory="",
            capacity_bytes=view.capacity_bytes if is_here else 0,
            free_bytes=view.free_bytes if is_here else 0,
            state=pool_state(view.capacity_bytes, view.free_bytes)[0] if is_here and view.capacity_bytes else "ok",
        ),
        reason="; ".join(filter(None, (REASONS.get(view.state, ""), old))),
    )


def pool_state(capacity_bytes: int, free_bytes: int) -> tuple[PoolState, str]:
    """(state, reason)"""
    if free_bytes < POOL_FULL_BYTES:
        return "full", f"the pool is full ({free_bytes} bytes left): free some space, or delete volumes"
    if free_bytes < capacity_bytes * POOL_LOW_SHARE:
        return "low", f"the pool has only {free_bytes} of {capacity_bytes} bytes left"
    return "ok", ""

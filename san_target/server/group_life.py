"""This member's life in the group: what it does for the others, and they for it, from one incarnation to the next.

A life ends when the lease was lost, or when others take nothing any more from it. Before the next one begins every
session has ended, with all that it had under way: what an initiator gave to the old life must not be carried out by the
new one [28].
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from san_target.metadata.schema import target_name_key
from san_target.metadata.store import StoreError
from san_target.peer.identity import OwnIdentity
from san_target.scsi.services import Services
from san_target.server.migrations import Migrations
from san_target.server.other_members import OtherMembers
from san_target.server.peering import Peering
from san_target.server.reservation_records import save_reservations
from san_target.server.succession import Succession
from san_target.server.unit_states import UnitStates
from san_target.server.uniting import Uniting
from san_target.server.vigilance import Vigilance
from san_target.volume.forward import Forwarder
from san_target.volume.owner import Owner
from san_target.volume.receiver import Receiver

if TYPE_CHECKING:
    from san_target.group.follower import StoreFollower
    from san_target.group.members import MemberView
    from san_target.scsi.logical_unit import LogicalUnit
    from san_target.server.background import Background
    from san_target.server.export import Export
    from san_target.server.member import Member
    from san_target.session.session import Session
    from san_target.session.target import Target

log = structlog.get_logger()

REMOVED: Final = ("removing", "removed")
ASK_STORE_S: Final = 2.0


class GroupLife:
    """owned: the volumes that are open here, by the bytes of their ids. secret: the group's.

    forwarders: of all volumes that have been open, by id, for what they have counted
    """

    def __init__(
        self,
        member: "Member",
        follower: "StoreFollower",
        background: "Background",
        secret: bytes,
        on_fenced: Callable[[str], None],
    ) -> None:
        self._member = member
        self._secret = secret
        self._background = background
        self._asking = asyncio.Lock()
        self._lives: dict[str, int] = {}  # the incarnations that are known to live, by member
        self._gone: dict[str, tuple[int, float]] = {}  # those whose lease has vanished, and when that was seen
        self.owned: dict[bytes, Export] = {}
        self.forwarders: dict[str, Forwarder] = {}
        self.owner: Final = Owner(self.owned.get, lambda: follower.revision, follower.until, background.spawn)
        owner = self.owner
        self.receiver: Final = Receiver(member.name, self.owned.get, follower.until, background.spawn)
        owner.receiver = self.receiver
        self.migrations: Final = Migrations(member, self.receiver)
        self._uniting = Uniting(member)
        follower.add(Migrations.KINDS, self.migrations)
        self.peering: Final = Peering(member.environment, owner, on_fenced)
        self.others: Final = OtherMembers(member.name, lambda: member.members.view, self.peering.peers)
        self.units: Final = UnitStates(
            follower, self.peering, self.other_members, self.may_live, self._unit_of, background
        )
        self.succession: Final = Succession(self.peering, self.other_members, self._target_of, self._reinstated)
        self.vigilance: Final = Vigilance(
            member.environment.boottime_s,
            lambda: member.membership.valid_until_s,
            lambda: bool(self.other_members()),
            lambda: [export.target.unit for export in self.owned.values()],
            lambda _seconds: member.portal_server.abort_all("this member stood still"),
        )
        member.members.subscribe(self._members_changed)

    def other_members(self) -> "list[MemberView]":
        """All that have not been removed, alive or not."""
        members = self._member.members.view.values()
        return [each for each in members if each.name != self._member.name and each.state not in REMOVED]

    # Life -------------------------------------------------------------------------------------------------------------

    def begin(self, group_id: str) -> None:
        """The member has joined, under a new incarnation."""
        member = self._member
        own = OwnIdentity(group_id, self._secret, member.name, member.membership.incarnation)
        self.peering.begin(own, member.members.incarnation_of)
        self._members_changed(frozenset())
        self._member.portal_server.resume()
        self.migrations.begin_life()

    async def end(self, keep_sessions: bool = False) -> None:
        """This life is over. Returns when nothing of it is under way, neither here nor for others.

        keep_sessions: there are no other members that initiators could have gone to.
        """
        self._member.portal_server.pause()
        await self.migrations.end_life()
        self.peering.peers.end()  # what waits for other members need not be waited for
        if not keep_sessions:
            await self._member.portal_server.end_connections("this member begins anew")
        await self.peering.end()
        await self.receiver.end_all()

    def _members_changed(self, _names: frozenset[str]) -> None:
        view = self._member.members.view
        self.peering.follow(view.values())
        for name, incarnation in list(self._lives.items()):
            member = view.get(name)
            if member is None or not member.alive or member.incarnation != incarnation:
                del self._lives[name]
                self._background.spawn(self._note_end(name, incarnation))
        for member in self.other_members():
            if member.alive:
                self._lives[member.name] = member.incarnation
                self._gone.pop(member.name, None)
            elif self._gone.get(member.name, (0, 0.0))[0] != member.incarnation:
                self._gone[member.name] = member.incarnation, self._member.environment.boottime_s()

    def may_live(self, member: "MemberView") -> bool:
        """Whether a member may still go by a lease. That its key has vanished says so only after the time of a lease: a
        store whose leader was replaced can end one early that has just been renewed. Who ended in order gave it back.
        """
        if member.alive or not member.serving:
            return member.alive
        incarnation, since_s = self._gone.get(member.name, (0, 0.0))
        is_recent = self._member.environment.boottime_s() - since_s < self._member.environment.lease_ttl_s
        return incarnation == member.incarnation and is_recent

    async def _note_end(self, name: str, incarnation: int) -> None:
        member = self._member.members.view.get(name)
        if member is not None and member.serving and member.incarnation == incarnation:
            await self._member.environment.sleep(self._member.environment.lease_ttl_s)
            member = self._member.members.view.get(name)
            if member is not None and member.alive and member.incarnation == incarnation:
                return
        self.units.note_lost(f"{name}/{incarnation}")

    # What volumes and logins need -------------------------------------------------------------------------------------

    def power_lost(self) -> bool:
        """Whether nobody else served the group's volumes when this member came."""
        return not any(member.alive for member in self.other_members())

    def forwarder_for(self, volume_id: str, block_size: int) -> Forwarder:
        forwarder, old = Forwarder(volume_id, block_size, self.peering), self.forwarders.get(volume_id)
        forwarder.unite = partial(self._uniting.unite, volume_id)
        forwarder.hurry = self._member.follower.hurry
        if old is not None:
            forwarder.requests, forwarder.bytes = old.requests, old.bytes
        self.forwarders[volume_id] = forwarder
        return forwarder

    def services_for(self, volume_id: str) -> Services:
        member, environment = self._member, self._member.environment
        return Services(
            spawn=self._background.spawn,
            save_reservations=partial(save_reservations, member.store, volume_id),
            unit_of=lambda designator: member.exports.unit_of(designator),
            now=environment.now_s,
            sleep=environment.sleep,
            before_change=partial(self.units.before_change, volume_id),
            everyone_has=partial(self.units.everyone_has, volume_id),
            may_serve=member.membership.is_valid,
            is_alone=self.units.is_alone,
            place=lambda: f"{member.name}/{member.membership.incarnation}",
        )

    async def ask_store(self, iqn: str) -> None:
        """Return when a target that another member has made is known here, if there is one of this name.

        One question at a time: initiators that ask for what does not exist must not keep the store busy.
        """
        async with self._asking:
            try:
                async with asyncio.timeout(ASK_STORE_S):
                    item = await self._member.store.get(target_name_key(iqn))
                    if item is not None:
                        await self._member.follower.until(item.mod_revision)
                        await self._member.environment.sleep(0)
            except (StoreError, TimeoutError):
                return

    def _unit_of(self, volume_id: str) -> "LogicalUnit | None":
        export = self.owned.get(bytes.fromhex(volume_id))
        return None if export is None else export.target.unit

    def _target_of(self, volume_id: str) -> "Target | None":
        export = self._member.exports.by_id.get(volume_id)
        return None if export is None else export.target

    def _reinstated(self, old: "Session", address: str) -> None:
        self._member.directory.reinstated(old, address, self._member.environment.now_s())

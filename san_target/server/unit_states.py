"""The shared state of all units of this member: followed in the store, and made known to every member.

A change is answered when each member that lives has taken it over [31]; one that cannot be asked makes it BUSY, before
anything is stored. The change that first keeps somebody out of a volume also needs the word of members whose lease has
ended: they may still serve the volume, since until then nothing bound it to their lease [17]. A member that will never
come back has to be removed.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

import structlog

from san_target.metadata.schema import ReservationsRecord, decode, reservations_key
from san_target.metadata.store import Event, Item
from san_target.peer.link import PeerRefused, PeerUnreachable
from san_target.peer.messages import BindUnit, Done, Message, SyncUnit
from san_target.scsi.reservation_rules import Port
from san_target.volume.device import Unavailable

if TYPE_CHECKING:
    from san_target.group.follower import StoreFollower
    from san_target.group.members import MemberView
    from san_target.peer.identity import PeerIdentity
    from san_target.scsi.logical_unit import LogicalUnit
    from san_target.server.background import Background
    from san_target.server.peering import Peering

log = structlog.get_logger()

PREFIX: Final = reservations_key("")
KINDS: Final = ("reservations",)
DEADLINE_S: Final = 8.0
"""How long a change waits for members that live."""

Stored = tuple[ReservationsRecord, int]


class UnitStates:
    """A consumer of the follower.

    others: all other members that have not been removed. may_live: whether one of them may still go by a lease.
    """

    def __init__(
        self,
        follower: "StoreFollower",
        peering: "Peering",
        others: Callable[[], Iterable["MemberView"]],
        may_live: Callable[["MemberView"], bool],
        unit_of: Callable[[str], "LogicalUnit | None"],
        background: "Background",
    ) -> None:
        self._follower = follower
        self._peering = peering
        self._others = others
        self._may_live = may_live
        self._unit_of = unit_of
        self._background = background
        self._stored: dict[str, Stored] = {}
        self._read: dict[str, Stored] = {}
        follower.add(KINDS, self)
        peering.answer(SyncUnit, self._sync)
        peering.answer(BindUnit, self._bind)

    def stored(self, volume_id: str) -> Stored | None:
        """What the store held when it was looked at last, and its epoch. None: nothing was ever stored."""
        return self._stored.get(volume_id)

    # Following the store ----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        self._read = {}

    def read(self, items: Sequence[Item]) -> None:
        for item in items:
            record = decode(ReservationsRecord, item.value, item.key)
            self._read[item.key.removeprefix(PREFIX)] = record, item.mod_revision

    def complete(self, revision: int) -> None:
        self._stored = self._read
        for volume_id in list(self._stored):
            self._tell(volume_id)

    def take(self, revision: int, events: Sequence[Event]) -> None:
        for event in events:
            volume_id = event.key.removeprefix(PREFIX)
            if event.item is None:
                self._stored.pop(volume_id, None)
            else:
                record = decode(ReservationsRecord, event.item.value, event.key)
                self._stored[volume_id] = record, event.item.mod_revision
                self._tell(volume_id)

    def _tell(self, volume_id: str) -> None:
        unit = self._unit_of(volume_id)
        if unit is None:
            return
        try:
            unit.shared.take_over(*self._stored[volume_id])
        except ValueError as error:
            log.error("the state of a unit in the store makes no sense", volume_id=volume_id, reason=str(error))

    def note_lost(self, place: str) -> None:
        """A life of a member ("name/incarnation") has ended: a RESERVE(6) of a session there has ended with it."""
        for volume_id, (record, _epoch) in self._stored.items():
            unit = self._unit_of(volume_id)
            if unit is not None and record.reserved_by is not None and record.reserved_at == place:
                self._background.spawn(unit.reservations.give_up(Port(*record.reserved_by)))

    # Making known -----------------------------------------------------------------------------------------------------

    def is_alone(self) -> bool:
        return not any(self._may_live(member) for member in self._others())

    async def before_change(self, volume_id: str, binds: bool) -> None:
        """Can everybody be asked who will have to know? binds: it first keeps somebody out. Unavailable."""
        for member in self._others():
            link = self._peering.link(member.name)
            if (self._may_live(member) or binds) and (link is None or link.state != "up"):
                advice = "" if self._may_live(member) else "; if it never comes back: `member remove --force`"
                log.warning("a change of reservations has to wait for a member", member=member.name)
                raise Unavailable(f"member {member.name!r} has to know, and cannot be reached{advice}")
        if binds:
            await self._ask_all(BindUnit(volume_id), everybody=True)

    async def everyone_has(self, volume_id: str, epoch: int) -> None:
        await self._ask_all(SyncUnit(volume_id, epoch), everybody=False)

    async def _ask_all(self, message: Message, everybody: bool) -> None:
        members = [member for member in self._others() if self._may_live(member) or everybody]
        answers = await asyncio.gather(*(self._ask(member, message, everybody) for member in members))
        reasons = list(filter(None, answers))
        if reasons:
            raise Unavailable(reasons[0])

    async def _ask(self, member: "MemberView", message: Message, everybody: bool) -> str:
        """Why a member has not confirmed, or ""; one whose lease ends meanwhile does not serve what is bound to it."""
        try:
            await self._peering.peers.ask(member.name, message, DEADLINE_S)
        except (PeerUnreachable, PeerRefused) as error:
            is_alive = any(each.name == member.name and self._may_live(each) for each in self._others())
            return str(error) if is_alive or everybody else ""
        return ""

    async def _sync(self, _peer: "PeerIdentity", message: SyncUnit) -> Message:
        await self._follower.until(message.epoch)
        unit = self._unit_of(message.volume_id)
        if unit is not None:
            await unit.shared.settled(message.epoch)
        return Done()

    async def _bind(self, _peer: "PeerIdentity", message: BindUnit) -> Message:
        unit = self._unit_of(message.volume_id)
        if unit is not None:
            unit.reservations.bind_for_a_while()
            unit.refresh_all()
        return Done()

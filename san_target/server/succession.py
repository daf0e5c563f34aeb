"""Whoever logs in here may have been logged in at another member: nothing of that may still happen afterwards.

Before a login completes, each other member says that nothing is under way there of what this initiator began [28c]. A
member that says nothing may be dead, or stopped with commands in its hands: its present life is fenced, so that no
owner takes anything from it any more. The initiator port that is the same (name and ISID) is reinstated: its session
ends wherever it is. A live session with another ISID stays, but what it has in its hands is waited for: an address that
moves from one member to another may leave a connection behind that nobody uses any more, and some initiators take a new
ISID each time.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from san_target.peer.link import PeerRefused, PeerUnreachable
from san_target.peer.messages import ControlRefused, Done, EndSessions, Message, SessionsEnded
from san_target.scsi.nexus import Nexus
from san_target.server.fencing import drain_tasks
from san_target.session.target import Moved
from san_target.volume.forward import OUTDATED_S

if TYPE_CHECKING:
    from san_target.peer.identity import OwnIdentity, PeerIdentity
    from san_target.server.peering import Peering
    from san_target.session.session import Session
    from san_target.session.target import Target

log = structlog.get_logger()

ASK_S: Final = 2.0
"""How long a login waits for a member that cannot be reached before its life is fenced."""
DRAIN_S: Final = 8.0
"""How long it waits for commands that a member has under way to end; then the initiator has to try again."""

ARRIVING_MAX: Final = 1024
OVER: Final = "this member begins anew"
TURNS: Final = 2


class Alive(Protocol):
    """What is used here of the membership view."""

    @property
    def name(self) -> str: ...

    @property
    def incarnation(self) -> int: ...

    @property
    def alive(self) -> bool: ...


class Succession:
    """others: all other members. target_of: by volume id. ended: sessions that ended and whose tasks may not have.

    take_left: how a nexus left that was asked to go elsewhere, by volume id, name and ISID (`session_moves`)
    """

    def __init__(
        self,
        peering: "Peering",
        others: Callable[[], Iterable[Alive]],
        target_of: Callable[[str], "Target | None"],
        reinstated: Callable[["Session", str], None],
    ) -> None:
        self._peering = peering
        self._others = others
        self._target_of = target_of
        self._reinstated = reinstated
        self._fenced: dict[str, int] = {}
        self._logging_in: dict[tuple[str, str, bytes], int] = {}
        self._arriving: dict[tuple[str, str, bytes], Moved] = {}
        self.take_left: Callable[[str, str, bytes], Moved | None] = lambda _volume_id, _name, _isid: None
        peering.answer(EndSessions, self._end_sessions)

    async def succeed(self, volume_id: str, initiator_name: str, isid: bytes, address: str) -> str:
        """Make sure of it; why this login cannot be now, or ""."""
        key = volume_id, initiator_name, isid
        self._logging_in[key] = self._logging_in.get(key, 0) + 1
        own = self._peering.peers.own
        try:
            message = EndSessions(volume_id, initiator_name, isid, address)
            asked = [self._ask(member, message, own) for member in self._others()]
            target = self._target_of(volume_id)
            if target is not None:
                asked.append(_quiet(target, initiator_name))
            refusals = await asyncio.gather(*asked)
            return next(filter(None, refusals), "")
        finally:
            self._logging_in[key] -= 1
            if not self._logging_in[key]:
                del self._logging_in[key]

    async def _ask(self, member: Alive, message: EndSessions, own: "OwnIdentity | None") -> str:
        if self._is_over(own, member):
            return OVER
        if self._fenced.get(member.name, 0) >= member.incarnation:
            return ""  # this life of it is known to be over
        try:
            answer = await self._peering.peers.ask(
                member.name, message, DRAIN_S if self._is_up(member) else self._patience(member)
            )
            if isinstance(answer, SessionsEnded):
                key = message.volume_id, message.initiator_name, message.isid
                self._arriving[key] = Moved(answer.attentions, answer.epoch, answer.blocks)
                if len(self._arriving) > ARRIVING_MAX:
                    del self._arriving[next(iter(self._arriving))]
        except PeerRefused as error:
            return str(error)
        except PeerUnreachable:
            if self._is_over(own, member):
                return OVER
            if self._is_up(member):
                return f"member {member.name!r} has not ended yet what the initiator began there"
            await self._peering.fence(member.name, member.incarnation)
            self._fenced[member.name] = member.incarnation
        return ""

    def _is_over(self, own: "OwnIdentity | None", member: Alive) -> bool:
        """Has this member's own life ended, or does the other one say so? Then nobody else is to be fenced for that."""
        link = self._peering.peers.link(member.name)
        return own is None or self._peering.peers.own != own or (link is not None and link.fenced)

    def _is_up(self, member: Alive) -> bool:
        link = self._peering.peers.link(member.name)
        return link is not None and link.state == "up"

    @staticmethod
    def _patience(member: Alive) -> float:
        """Its lease has ended and nobody answers: why wait?"""
        return ASK_S if member.alive else 0.0

    def arrived(self, volume_id: str, initiator_name: str, isid: bytes) -> "Moved | None":
        """How a nexus that has just succeeded itself left the other member, if it was asked to come here."""
        return self._arriving.pop((volume_id, initiator_name, isid), None)

    # What others ask --------------------------------------------------------------------------------------------------

    async def _end_sessions(self, peer: "PeerIdentity", message: EndSessions) -> Message:
        target = self._target_of(message.volume_id)
        key = message.initiator_name, message.isid
        if (message.volume_id, *key) in self._logging_in:
            raise ControlRefused("the same initiator port logs in at another member at the same time")
        if target is None:
            return Done()
        while (old := target.sessions.get(key)) is not None:
            if not old.connection.ending and not old.connection.leaving:
                self._reinstated(old, message.address)
            await old.connection.terminate(f"session reinstated at member {peer.name}")
        ended = Nexus(*key, target.iqn, target.portal_group_tag)
        if not await target.unit.reservations.given_up(ended):
            raise ControlRefused("what the initiator had reserved here is not given back yet")
        for session in list(target.sessions.values()):
            if session.initiator_name == message.initiator_name and session.connection.ending:
                await session.connection.terminate("its initiator logs in at another member")
        await _quiet(target, message.initiator_name)
        left = self.take_left(message.volume_id, *key)
        return Done() if left is None else SessionsEnded(left.attentions, left.epoch, left.blocks)


async def _quiet(target: "Target", initiator_name: str) -> str:
    """What live sessions of this initiator have in their hands now has ended, or no owner would begin it any more."""
    for _ in range(TURNS):
        await asyncio.sleep(0)  # what has arrived is taken in first
    sessions = [each for each in target.sessions.values() if each.initiator_name == initiator_name]
    nexuses = [each.nexus for each in sessions if each.nexus is not None and not each.connection.ending]
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(drain_tasks(target, nexuses), OUTDATED_S)
    return ""

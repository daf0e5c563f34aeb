"""Moves of sessions to other members: this member's part in them, as the old member, the new one, or a bystander.

The order (ARCHITECTURE "Moves"): the new member has accepted the login; all members know where it is expected; no more
commands are taken and all that are under way are answered; the initiator is asked to go; it comes to the new member,
which owes it nothing for that. Whatever fails before it is asked, the session stays as it was.
"""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from san_target.group.portal_group import Login, is_random
from san_target.group.portal_moves import EXPECTED_S, Expected
from san_target.peer.messages import (
    Arrival,
    ArrivalRequest,
    Done,
    Message,
    MoveExpected,
    MoveReply,
    MoveSession,
    TicketReply,
    TicketRequest,
)
from san_target.scsi.shared_state import port_of
from san_target.server.other_members import NoAnswer
from san_target.session import leaving
from san_target.session.connection import Stage

if TYPE_CHECKING:
    from san_target.peer.identity import PeerIdentity
    from san_target.server.member import Member
    from san_target.server.portal_placement import PortalPlacement
    from san_target.session.session import Session
    from san_target.session.target import Moved

log = structlog.get_logger()

TICKET_S: Final = 1.0
NOTICE_S: Final = 0.5
"""Bystanders that have not heard by then may send the login anywhere; it is served there, too."""
DRAIN_S: Final = 5.0
"""Commands that are under way for longer keep their session where it is."""
POLL_S: Final = 0.001
OBEY_S: Final = 1.0
"""From the request to go; then the connection is closed, and the initiator comes back by itself."""
ARRIVE_S: Final = 8.0
REMEMBERED_S: Final = 10.0
REMEMBERED_MAX: Final = 1024


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of a move. session_id: at the new member, if it came; reason: why it was not moved, or "".

    dropped: it did not obey within its time. seconds: from the last answer of the old member to the new session.
    """

    session_id: str = ""
    reason: str = ""
    dropped: bool = False
    seconds: float = 0.0


def _port(volume_id: str, initiator_name: str, isid: bytes) -> tuple[str, str, bytes]:
    """By what one is known again that comes back: an initiator that takes a new ISID at each login, by its name."""
    return volume_id, initiator_name, b"" if is_random(isid) else isid


class SessionMoves:
    """moved, failed, disobeyed: counts."""

    def __init__(self, member: "Member") -> None:
        self._member = member
        self._moving: set[Session] = set()
        self._left: dict[tuple[str, str, bytes], tuple[Moved, float]] = {}
        self._arrivals: dict[tuple[str, str], asyncio.Future[str]] = {}
        self._placement: PortalPlacement | None = None
        self.moved = 0
        self.failed = 0
        self.disobeyed = 0

    @property
    def _expected(self) -> Expected:
        if self._placement is None:
            raise AssertionError("this member takes no part in moves yet")
        return self._placement.expected

    # Which ------------------------------------------------------------------------------------------------------------

    def why_held(self, session: "Session") -> str:
        """Why a session must not be moved, or ""."""
        target, nexus = session.target, session.nexus
        if target is None or nexus is None:
            return "it is a discovery session"
        if self._member.directory.is_multipath(target):
            return "a path of a multipath volume stays where it is"
        reservations = target.unit.reservations
        if reservations.reserved_by == port_of(nexus):
            return "it holds RESERVE(6), which ends with its session"
        if is_random(session.isid) and reservations.holds(nexus):
            return "it has a persistent registration, and takes another ISID at each login"
        return ""

    # At the old member ------------------------------------------------------------------------------------------------

    async def move(self, session: "Session", to: str) -> Outcome:
        """Move a session of this member to the member `to`."""
        reason = self._why_not(session, to)
        if reason:
            return Outcome(reason=reason)
        self._moving.add(session)
        try:
            outcome = await self._move(session, to)
        finally:
            self._moving.discard(session)
        self.moved += not outcome.reason
        self.failed += bool(outcome.reason)
        self.disobeyed += outcome.dropped
        log.info(
            "session is moved" if not outcome.reason else "session is not moved",
            initiator=session.initiator_name,
            target=session.target.iqn if session.target is not None else "",
            to=to,
            reason=outcome.reason,
            milliseconds=round(outcome.seconds * 1000),
            dropped=outcome.dropped,
        )
        return outcome

    def _why_not(self, session: "Session", to: str) -> str:
        if to == self._member.name:
            return f"it is at member {to} already"
        if session in self._moving:
            return "it is being moved already"
        if session.connection.stage is not Stage.FULL_FEATURE:
            return "it is ending"
        return self.why_held(session)

    async def _move(self, session: "Session", to: str) -> Outcome:
        if session.target is None:
            raise AssertionError("a discovery session is not moved")
        login = Login(session.target.iqn, session.initiator_name, session.isid)
        request = TicketRequest(login.target, login.initiator_name, login.isid, moved=True)
        try:
            ticket = await self._member.life.others.ask(to, request, TicketReply, TICKET_S)
        except NoAnswer as error:
            return Outcome(reason=str(error))
        if not ticket.accepted:
            return Outcome(reason=f"member {to} does not take it: {ticket.reason}")
        await self._announce(login, to)
        connection = session.connection
        leaving.close_window(connection)
        reason = await self._until_idle(session)
        if not reason:
            reason = self.why_held(session)  # reserved meanwhile
        if reason:
            if connection.stage is Stage.FULL_FEATURE:
                leaving.stay(connection)
            self._expected.forget(login)
            return Outcome(reason=reason)
        left_s = self._member.environment.now_s()
        self._remember(session, leaving.leave(connection, round(OBEY_S)), left_s)
        dropped = not await self._until_gone(session)
        if dropped:
            connection.close("it was asked to go to another member, and did not")
        arrived = await self._await_arrival(login, to)
        seconds = self._member.environment.now_s() - left_s
        if not arrived:
            return Outcome("", f"its initiator did not come to member {to} within {ARRIVE_S:.0f} s", dropped, seconds)
        return Outcome(arrived, "", dropped, seconds)

    async def _announce(self, login: Login, to: str) -> None:
        """Every member sends the login on to where it is expected, this one too."""
        message = MoveExpected(login.target, login.initiator_name, login.isid, to, EXPECTED_S)
        self._expect(message)
        others = [one.name for one in self._member.life.others.serving()]
        await asyncio.gather(*(self._notify(name, message) for name in others))

    async def _notify(self, name: str, message: MoveExpected) -> None:
        try:
            await self._member.life.others.ask(name, message, Done, NOTICE_S)
        except NoAnswer as error:
            log.debug("a member was not told of a move", member=name, reason=str(error))

    async def _until_idle(self, session: "Session") -> str:
        """Wait until all is answered that was sent. Why that is not so, or ""."""
        deadline_s = self._member.environment.now_s() + DRAIN_S
        connection = session.connection
        while connection.stage is Stage.FULL_FEATURE and not leaving.is_idle(connection):
            if self._member.environment.now_s() > deadline_s:
                return f"commands of it have been under way for {DRAIN_S:.0f} s"
            await self._member.environment.sleep(POLL_S)
        return "" if connection.stage is Stage.FULL_FEATURE else "it has ended meanwhile"

    async def _until_gone(self, session: "Session") -> bool:
        deadline_s = self._member.environment.now_s() + OBEY_S
        while session.connection.stage is not Stage.CLOSED:
            if self._member.environment.now_s() > deadline_s:
                return False
            await self._member.environment.sleep(POLL_S)
        return True

    async def _await_arrival(self, login: Login, to: str) -> str:
        request = ArrivalRequest(login.target, login.initiator_name, ARRIVE_S)
        try:
            return (await self._member.life.others.ask(to, request, Arrival, ARRIVE_S + NOTICE_S)).session_id
        except NoAnswer:
            return ""

    def _remember(self, session: "Session", moved: "Moved", now_s: float) -> None:
        if session.target is None:
            return
        key = _port(session.target.unit.identity.volume_id, session.initiator_name, session.isid)
        self._left[key] = moved, now_s
        if len(self._left) > REMEMBERED_MAX:
            del self._left[next(iter(self._left))]

    def take_left(self, volume_id: str, initiator_name: str, isid: bytes) -> "Moved | None":
        """How this nexus left, if it was asked to go elsewhere a moment ago.

        Where the ISID is a random one, that is the next login of the initiator with such an ISID.
        """
        found = self._left.pop(_port(volume_id, initiator_name, isid), None)
        if found is None or self._member.environment.now_s() - found[1] > REMEMBERED_S:
            return None
        return found[0]

    # Bystanders, and the new member -----------------------------------------------------------------------------------

    def _expect(self, message: MoveExpected) -> Message:
        login = Login(message.target, message.initiator_name, message.isid)
        until_s = self._member.environment.now_s() + message.seconds
        self._expected.note(login, message.member, until_s)
        if message.member == self._member.name:
            self._arrival(message.target, message.initiator_name)
        return Done()

    def _arrival(self, target: str, initiator_name: str) -> "asyncio.Future[str]":
        """Done when that initiator has logged in."""
        key = target, initiator_name
        future = asyncio.get_running_loop().create_future()
        self._arrivals.pop(key, None)
        self._arrivals[key] = future
        if len(self._arrivals) > REMEMBERED_MAX:
            del self._arrivals[next(iter(self._arrivals))]
        return future

    def logged_in(self, session: "Session") -> None:
        """A session of a target begins here."""
        if session.target is None:
            return
        future = self._arrivals.get((session.target.iqn, session.initiator_name))
        if future is not None and not future.done():
            future.set_result(self._member.local_sessions.id_of(session))

    async def _await(self, _peer: "PeerIdentity", message: ArrivalRequest) -> Message:
        future = self._arrivals.get((message.target, message.initiator_name))
        if future is None:
            return Arrival("")
        try:
            async with asyncio.timeout(min(message.seconds, ARRIVE_S)):
                return Arrival(await asyncio.shield(future))
        except TimeoutError:
            return Arrival("")
        finally:
            if self._arrivals.get((message.target, message.initiator_name)) is future:
                del self._arrivals[message.target, message.initiator_name]

    # By hand ----------------------------------------------------------------------------------------------------------

    async def _asked(self, _peer: "PeerIdentity", message: MoveSession) -> Message:
        outcome = await self.move_here(message.session_id, message.to)
        return MoveReply(outcome.session_id, outcome.reason, outcome.dropped, outcome.seconds)

    async def move_here(self, session_id: str, to: str) -> Outcome:
        """Of a session of this member, by its id."""
        session = self._member.local_sessions.find(session_id)
        if session is None:
            return Outcome(reason=f"there is no session {session_id!r} at member {self._member.name}")
        return await self.move(session, to)

    async def move_anywhere(self, session_id: str, to: str) -> Outcome:
        """Of a session of any member. NoAnswer."""
        member = self._member.group_sessions.elsewhere(session_id)
        if not member:
            return await self.move_here(session_id, to)
        timeout_s = TICKET_S + NOTICE_S + DRAIN_S + OBEY_S + ARRIVE_S + 1.0
        reply = await self._member.life.others.ask(member, MoveSession(session_id, to), MoveReply, timeout_s)
        return Outcome(reply.session_id, reply.reason, reply.dropped, reply.seconds)

    def answer(self, placement: "PortalPlacement") -> None:
        """From now on this member takes part in moves."""
        self._placement = placement
        peering = self._member.life.peering
        peering.answer_at_once(MoveExpected, self._expect)
        peering.answer(ArrivalRequest, self._await)
        peering.answer(MoveSession, self._asked)

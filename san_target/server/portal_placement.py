"""Logins among members: asks for tickets and gives them out, as `group.portal_group` decides.

A login waits for all of this TICKET_WAIT_S at most; whatever does not come in time, it is served where it is.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from san_target.group.portal_addresses import usable_portals
from san_target.group.portal_group import TICKET_WAIT_S, Candidate, Choice, Decision, Login, Policy, Tickets, decide
from san_target.group.portal_moves import Expected
from san_target.peer.messages import SessionCount, SessionCountRequest, TicketReply, TicketRequest
from san_target.server.other_members import DRAINING, NoAnswer

if TYPE_CHECKING:
    from san_target.server.directory import TargetDirectory
    from san_target.server.other_members import Handlers, MemberView, OtherMembers
    from san_target.session.target import Target

log = structlog.get_logger()

COUNT_FRESH_S: Final = 1.0
"""A number of sessions that is older is asked for again before a login is placed by it."""
COUNT_OLD_S: Final = 3.0
"""One that is older does not count any more."""
BEGINNING_S: Final = 2.0
"""How long a login that is served here counts while it is no session yet."""
BEGINNING_MAX: Final = 4096


Adaptive = Callable[["Target", str, list[str], int], list[str] | None]


@dataclass(slots=True)
class _Count:
    """sessions: None = the member did not say."""

    sessions: int | None
    at_s: float


class PortalPlacement:
    """This member's part in the portal group (`server.directory.PortalGroup`).

    policy      the portal group's, as stored
    sessions    how many sessions of targets there are here
    has_room    whether more connections would be accepted here
    now_s       monotonic
    expected    where sessions are to be sent that are moved just now
    adaptive    the order in which members are offered a login (target, initiator name, members, turn); None: not known
    tickets_issued, tickets_used: counts
    """

    def __init__(
        self,
        others: "OtherMembers",
        directory: "TargetDirectory",
        policy: Callable[[], str],
        sessions: Callable[[], int],
        has_room: Callable[[], bool],
        now_s: Callable[[], float],
    ) -> None:
        self._others = others
        self._directory = directory
        self._policy = policy
        self._sessions = sessions
        self._has_room = has_room
        self._now_s = now_s
        self._tickets = Tickets()
        self._turn = 0
        self._counts: dict[str, _Count] = {}
        self._counting: asyncio.Future[None] | None = None
        self._asking = Counter[str]()  # tickets asked for, without an answer yet
        self._beginning: dict[Login, float] = {}  # logins served here, and until when they count
        self.expected: Final = Expected()
        self.adaptive: Callable[[Target, str, list[str], int], list[str] | None] = (
            lambda _target, _name, _others, _turn: None
        )
        self.tickets_issued = 0
        self.tickets_used = 0

    # Logins here ------------------------------------------------------------------------------------------------------

    async def place(self, target: "Target", initiator_name: str, isid: bytes, asked_at: str) -> str | None:
        """See `session.target.Directory.place`; asked_at is this member's portal as initiators are told it."""
        login = Login(target.iqn, initiator_name, isid)
        began_s = self._now_s()
        sent_on = self._where_expected(login, asked_at, began_s)
        if sent_on:
            return sent_on
        if self._tickets.admits(login, began_s):
            self.tickets_used += 1
            self._begins_here(login)
            return None
        policy, draining = self._policy(), self._others.draining
        others = self._others.serving()
        if not others or (policy not in (Policy.ROUND_ROBIN, Policy.LEAST_LOADED, Policy.ADAPTIVE) and not draining):
            return None
        if draining or policy != Policy.ROUND_ROBIN:
            await self._refresh(others, began_s + TICKET_WAIT_S / 2)
        decision = self._decide(policy, draining, others, asked_at, target, initiator_name)
        chosen = await self._get_ticket(decision, login, began_s + TICKET_WAIT_S)
        if chosen is None:
            self._begins_here(login)
            return None
        log.debug("login is placed", target=login.target, member=chosen.member, reason=decision.reason)
        return chosen.portal

    def _begins_here(self, login: Login) -> None:
        """It counts as a session from now on: hosts that all come at once must not all see an empty member."""
        if len(self._beginning) < BEGINNING_MAX:
            self._beginning[login] = self._now_s() + BEGINNING_S

    def _logins_beginning(self) -> int:
        now_s = self._now_s()
        self._beginning = {
            login: until_s
            for login, until_s in self._beginning.items()
            if until_s > now_s and not self._is_session(login)
        }
        return len(self._beginning)

    def _is_session(self, login: Login) -> bool:
        target = self._directory.find(login.target)
        return target is None or (login.initiator_name, login.isid) in target.sessions

    def _where_expected(self, login: Login, asked_at: str, now_s: float) -> str:
        """The portal of the member that a session is moved to just now; "" also if that is this member.

        Where it is expected it may have been already, and have lost its connection as that member died.
        """
        member = self.expected.member_for(login, now_s)
        if not member or member == self._others.name or not self._others.is_linked(member):
            return ""
        found = [self._candidate(one, asked_at) for one in self._others.serving() if one.name == member]
        return found[0].portal or "" if found else ""

    def _decide(
        self,
        policy: str,
        draining: bool,
        others: "list[MemberView]",
        asked_at: str,
        target: "Target",
        initiator_name: str,
    ) -> Decision:
        candidates = [self._candidate(one, asked_at) for one in others]
        if policy == Policy.ADAPTIVE and not draining:
            names = [one.name for one in candidates if not one.draining and one.portal is not None]
            order = self.adaptive(target, initiator_name, names, self._turn)
            if order is not None:
                self._turn += 1
                portals = {one.name: one.portal for one in candidates}
                choices = ((name, portals.get(name)) for name in order)
                return Decision(
                    tuple(Choice(name, portal) for name, portal in choices if portal is not None),
                    "predicted efficiency",
                )
        decision = decide(policy, self._others.name, self.sessions_and_tickets(), draining, candidates, self._turn)
        self._turn += 1
        return decision

    def _candidate(self, one: "MemberView", asked_at: str) -> Candidate:
        # An address that is our own, too (of a balancer before the group, say) leads to anyone: no use as a direction.
        ours = {asked_at, *self._directory.portals.told()}
        portals = [portal for portal in usable_portals(one.portals, one.peer, asked_at) if portal not in ours]
        return Candidate(
            one.name,
            portals[0] if portals else None,
            alive=one.alive,
            draining=one.state == DRAINING,
            sessions=self._sessions_at(one.name),
        )

    def _sessions_at(self, member: str) -> int | None:
        """With those that are being sent there: many logins at a time must not all see the same empty member."""
        count = self._counts.get(member)
        if count is None or count.sessions is None or self._now_s() - count.at_s > COUNT_OLD_S:
            return None
        return count.sessions + self._asking[member]

    async def _get_ticket(self, decision: Decision, login: Login, until_s: float) -> Choice | None:
        """The first of the choices that accepts the login before `until_s`."""
        request = TicketRequest(login.target, login.initiator_name, login.isid)
        for choice in decision.choices:
            left_s = until_s - self._now_s()
            if left_s <= 0:
                return None
            self._asking[choice.member] += 1
            try:
                reply = await self._others.ask(choice.member, request, TicketReply, left_s)
            except NoAnswer as error:
                log.debug("no ticket", member=choice.member, reason=str(error))
                self._counts[choice.member] = _Count(None, self._now_s())
                continue
            finally:
                self._asking[choice.member] -= 1
            self._counts[choice.member] = _Count(reply.sessions, self._now_s())
            # An answer after the time is as good as none: the ticket expires, unused.
            if reply.accepted and self._now_s() < until_s:
                return choice
        return None

    # Loads of the others ----------------------------------------------------------------------------------------------

    async def _refresh(self, others: "list[MemberView]", until_s: float) -> None:
        """Ask those whose number of sessions is not fresh, all at once; many logins at a time ask once."""
        if self._counting is not None:
            await asyncio.wait([self._counting], timeout=max(0.0, until_s - self._now_s()))
            return
        now_s = self._now_s()
        stale = [one.name for one in others if not self._is_fresh(one.name, now_s)]
        if not stale:
            return
        counting = self._counting = asyncio.get_running_loop().create_future()
        try:
            await asyncio.gather(*(self._count(name, until_s - now_s) for name in stale))
        finally:
            self._counting = None
            counting.set_result(None)

    def _is_fresh(self, name: str, now_s: float) -> bool:
        count = self._counts.get(name)
        return count is not None and now_s - count.at_s <= COUNT_FRESH_S

    async def _count(self, name: str, timeout_s: float) -> None:
        try:
            answer = await self._others.ask(name, SessionCountRequest(), SessionCount, timeout_s)
        except NoAnswer:
            self._counts[name] = _Count(None, self._now_s())
        else:
            self._counts[name] = _Count(answer.sessions, self._now_s())

    # What others ask --------------------------------------------------------------------------------------------------

    def other_portals(self, asked_at: str) -> list[str]:
        """The portals of the others that take logins, by name of the member."""
        return [
            portal
            for one in self._others.serving()
            if one.state != DRAINING
            for portal in usable_portals(one.portals, one.peer, asked_at)
        ]

    def sessions_and_tickets(self) -> int:
        """Sessions here, and those that will be here in a moment."""
        return self._sessions() + self._logins_beginning() + self._tickets.live(self._now_s())

    def handlers(self) -> "Handlers":
        return {
            TicketRequest: self.give_ticket,
            SessionCountRequest: lambda _: SessionCount(self.sessions_and_tickets()),
        }

    def give_ticket(self, request: TicketRequest) -> TicketReply:
        """With an accepting answer this member promises to serve that login itself."""
        refusal = self._refusal(request)
        if not refusal:
            refusal = self._tickets.issue(Login(request.target, request.initiator_name, request.isid), self._now_s())
        self.tickets_issued += not refusal
        return TicketReply(accepted=not refusal, sessions=self.sessions_and_tickets(), reason=refusal)

    def _refusal(self, request: TicketRequest) -> str:
        target = self._directory.find(request.target)
        if target is None or not target.ready:
            return "the target is not served here"
        if self._directory.is_multipath(target):
            return "a path of a multipath volume stays where it is"
        if not target.access.admits(request.initiator_name):
            return "the initiator is not allowed here"
        if self._others.draining:
            return "this member drains"
        if not self._has_room():
            return "too many connections"
        return ""

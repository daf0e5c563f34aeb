"""The portal group: which member gets a login, and the tickets without which nobody is sent anywhere. Pure.

An initiator follows a redirection at once and without counting, so a loop of them would never end. None can exist:
- a member redirects only to one that has accepted it, by a ticket for this very login;
- a member that has given out a ticket for a login serves that login itself;
- a login that comes back without having used its ticket is not sent to the same member again.
What a member believes of the others may be as old and wrong as it likes; that costs balance, never a loop.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

TICKET_S: Final = 10.0
TICKET_WAIT_S: Final = 0.05
"""How long a login waits for a ticket; without one it is served where it is."""
UNUSED_S: Final = 60.0
"""How long a ticket that was not used counts against another one: its portal may be out of that initiator's reach."""
TICKETS_MAX: Final = 1024


class Policy(StrEnum):
    """How logins are spread. ADAPTIVE goes by predicted efficiency (`login_balancer`); without fresh reports it takes
    the number of sessions for the load, as LEAST_LOADED does."""

    ROUND_ROBIN = "round-robin"
    LEAST_LOADED = "least-loaded"
    ADAPTIVE = "adaptive"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Login:
    """What a ticket is bound to: a target (its IQN) and an initiator port (name and ISID, 6 bytes)."""

    target: str
    initiator_name: str
    isid: bytes


@dataclass(frozen=True, slots=True)
class Candidate:
    """A member as the decider sees it.

    portal    where this login would be sent ("host:port"), None if it has no portal that the initiator can use
    sessions  logged in, with tickets that are not used yet; None = not known
    """

    name: str
    portal: str | None
    alive: bool = True
    draining: bool = False
    sessions: int | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """A member to ask for a ticket, and where to send the login then."""

    member: str
    portal: str


@dataclass(frozen=True, slots=True)
class Decision:
    """Ask these members for a ticket, in this order; the first that accepts gets the login. None does: it stays."""

    choices: tuple[Choice, ...]
    reason: str


def decide(policy: str, name: str, sessions: int, draining: bool, others: Sequence[Candidate], turn: int) -> Decision:
    """Who gets a login that asked at the member `name`, which has `sessions` (with its own unused tickets).

    turn: how many logins were placed before, for taking turns. A policy that is not known counts as none.
    """
    ring = _ring(name, others)
    if draining:
        return Decision(_choices(sorted(ring, key=_load)), "this member drains")
    if policy == Policy.ROUND_ROBIN:
        # The turn of this member comes first: members that were started together must not all send to the same one.
        position = turn % (len(ring) + 1)
        ahead = ring[position - 1 :] if position else []
        return Decision(_choices(ahead), "taking turns")
    if policy in (Policy.LEAST_LOADED, Policy.ADAPTIVE):
        start = turn % (len(ring) or 1)  # equals take turns
        less = [one for one in (*ring[start:], *ring[:start]) if one.sessions is not None and one.sessions < sessions]
        return Decision(_choices(sorted(less, key=_load)), f"fewer sessions than the {sessions} here")
    return Decision((), "logins are not spread")


def _ring(name: str, others: Iterable[Candidate]) -> list[Candidate]:
    """Those that may be sent a login, by name, beginning after `name`."""
    eligible = sorted(
        (one for one in others if one.alive and not one.draining and one.portal is not None and one.name != name),
        key=lambda one: one.name,
    )
    return [one for one in eligible if one.name > name] + [one for one in eligible if one.name < name]


def _load(one: Candidate) -> tuple[bool, int]:
    """Those whose load is not known come last."""
    return one.sessions is None, one.sessions or 0


def _choices(candidates: Iterable[Candidate]) -> tuple[Choice, ...]:
    return tuple(Choice(one.name, one.portal) for one in candidates if one.portal is not None)


def is_random(isid: bytes) -> bool:
    """Whether an ISID is of the random format (RFC 7143 11.12.5): its initiator takes a new one for each session."""
    return isid[:1] != b"" and isid[0] & 0xC0 == 0x80


def is_same_port(one: bytes, other: bytes) -> bool:
    """Whether two ISIDs of one initiator name can be those of one session that comes again."""
    return one == other or (is_random(one) and is_random(other))


class Tickets:
    """The tickets that one member has given out: each for one login, good for one use within TICKET_S. Bounded.

    An initiator has one ticket for a target at a time. libiscsi takes a new ISID for each connection, so that what
    counts against another ticket is its name alone.
    """

    def __init__(self) -> None:
        # (target, initiator name) -> (ISID, valid until), in the order of issue, which is that of expiry
        self._issued: dict[tuple[str, str], tuple[bytes, float]] = {}

    def issue(self, login: Login, now_s: float) -> str:
        """Empty = issued, else why not."""
        self._forget(now_s)
        key = (login.target, login.initiator_name)
        if key in self._issued:
            return "an earlier ticket of this initiator was not used"
        if self.live(now_s) >= TICKETS_MAX:
            return "too many tickets are not used yet"
        if len(self._issued) >= TICKETS_MAX:
            del self._issued[next(iter(self._issued))]
        self._issued[key] = (login.isid, now_s + TICKET_S)
        return ""

    def admits(self, login: Login, now_s: float) -> bool:
        """Whether this login was sent here, so that it must be served here; its ticket is used up.

        A ticket for another ISID of the initiator admits too: one that changes its ISID on the way would otherwise be
        sent on, with a new ticket each time. It stays for the session that it was given for, unless that is what came:
        under another ISID of the random format.
        """
        key = (login.target, login.initiator_name)
        isid, valid_until_s = self._issued.get(key, (b"", float("-inf")))
        if isid and is_same_port(isid, login.isid):
            self._issued.pop(key, None)  # used, even if too late: the portal can be reached
        return valid_until_s > now_s

    def live(self, now_s: float) -> int:
        """How many logins may still arrive because of a ticket."""
        count = 0
        for _, valid_until_s in reversed(self._issued.values()):
            if valid_until_s <= now_s:
                break
            count += 1
        return count

    def _forget(self, now_s: float) -> None:
        while self._issued:
            key, (_, valid_until_s) = next(iter(self._issued.items()))
            if valid_until_s + UNUSED_S > now_s:
                return
            del self._issued[key]

"""The other members, for those who ask them something: who there is, and questions that always end in time."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeVar

from san_target.peer.link import PeerRefused, PeerUnreachable
from san_target.peer.messages import Message

M = TypeVar("M", bound=Message)

Handlers = Mapping[type[Message], Callable[[Any], Message]]
"""Kind of control message -> function that answers it at once."""

DRAINING = "draining"
REMOVING = "removing"
REMOVED = "removed"
SERVING = ("active", DRAINING)


class MemberView(Protocol):
    """What is used here of `group.members.MemberView`. Addresses are "host:port"."""

    @property
    def name(self) -> str: ...

    @property
    def peer(self) -> str: ...

    @property
    def admin(self) -> str: ...

    @property
    def portals(self) -> tuple[str, ...]:
        """As told to initiators."""
        ...

    @property
    def alive(self) -> bool: ...

    @property
    def state(self) -> str: ...


class Link(Protocol):
    """What is used here of `peer.link.PeerLink`."""

    @property
    def state(self) -> str: ...


class Peers(Protocol):
    """What is used here of `peer.peers.Peers`."""

    def ask(self, member: str, message: Message, timeout_s: float) -> Awaitable[Message]: ...

    def link(self, member: str) -> Link | None: ...


class NoAnswer(Exception):
    """A member did not answer, or not as it should; the message says why."""


class OtherMembers:
    """All members but `name`. view: the present membership, by name; it may hold this member, too."""

    def __init__(self, name: str, view: Callable[[], Mapping[str, MemberView]], peers: Peers) -> None:
        self.name = name
        self._view = view
        self._peers = peers

    @property
    def draining(self) -> bool:
        """Whether this member itself is to be left by its sessions."""
        me = self._view().get(self.name)
        return me is not None and me.state in (DRAINING, REMOVING)

    def all(self) -> list[MemberView]:
        """By name; those that are away, too, unless they are not to come back."""
        others = (one for one in self._view().values() if one.name != self.name)
        kept = (one for one in others if one.state != REMOVED and (one.alive or one.state != REMOVING))
        return sorted(kept, key=lambda one: one.name)

    def serving(self) -> list[MemberView]:
        """Those that serve initiators now, by name; draining ones, too."""
        return [one for one in self.all() if one.alive and one.state in SERVING]

    def is_linked(self, member: str) -> bool:
        """Whether there is a link to it now: one that has just died is `alive` for as long as its lease."""
        link = self._peers.link(member)
        return link is not None and link.state == "up"

    async def ask(self, member: str, message: Message, kind: type[M], timeout_s: float) -> M:
        """The answer of this kind. NoAnswer: there is none in time, or another."""
        try:
            answer = await self._peers.ask(member, message, timeout_s)
        except PeerUnreachable as error:
            raise NoAnswer(f"member {member} does not answer: {error}") from None
        except PeerRefused as error:
            raise NoAnswer(f"member {member} refuses: {error}") from None
        if not isinstance(answer, kind):
            raise NoAnswer(f"member {member} answers {type(answer).__name__} to {type(message).__name__}")
        return answer

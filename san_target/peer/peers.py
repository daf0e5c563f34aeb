"""All links of this member to others, kept in step with the membership view."""

import itertools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from san_target.peer.frame_stream import SpareBuffers
from san_target.peer.link import PeerLink, PeerUnreachable

if TYPE_CHECKING:
    from san_target.peer.identity import MemberAddress, OwnIdentity
    from san_target.peer.messages import Message
    from san_target.peer.transport import PeerNetwork


class Peers:
    """One link for each other member, whether its lease holds or not: without the store nobody can tell."""

    def __init__(self, network: "PeerNetwork", on_change: Callable[[PeerLink], None] | None = None) -> None:
        """on_change: called when a link has gone up or down."""
        self._network = network
        self._on_change = on_change
        self._own: OwnIdentity | None = None
        self._links: dict[str, PeerLink] = {}
        self._request_ids = itertools.count(1)
        self._spare = SpareBuffers()

    def begin(self, own: "OwnIdentity") -> None:
        """A life of this member begins: `follow` may be called."""
        self._own = own

    def end(self) -> None:
        """This life has ended. What is under way ends with LOST, from the event loop."""
        self._own = None
        for link in self._links.values():
            link.stop("this member's life in the group has ended")
        self._links.clear()

    @property
    def own(self) -> "OwnIdentity | None":
        """This life; None: it has ended."""
        return self._own

    def follow(self, members: "Iterable[MemberAddress]") -> None:
        """The membership view has changed: make links to new members, new lives and new addresses, drop the others.

        Does nothing before `begin`.
        """
        own = self._own
        if own is None:
            return
        wanted = {each.name: each for each in members if each.peer and each.name != own.name}
        for name, link in list(self._links.items()):
            member = wanted.get(name)
            if member is None:
                link.stop(f"member {name!r} has left the group")
                del self._links[name]
            elif (member.incarnation, member.peer) != (link.incarnation, link.address):
                link.stop(f"member {name!r} has started again")
                del self._links[name]
        for name, member in wanted.items():
            if name not in self._links:
                self._links[name] = PeerLink(
                    self._network,
                    own,
                    name,
                    member.incarnation,
                    member.peer,
                    self._request_ids,
                    self._spare,
                    self._on_change,
                )

    def link(self, member: str) -> PeerLink | None:
        """The link to the present life of a member. None: there is no such member, or it has no peer port."""
        return self._links.get(member)

    def names(self) -> list[str]:
        return sorted(self._links)

    async def ask(self, member: str, message: "Message", timeout_s: float) -> "Message":
        """A control message, and its reply. Raises PeerUnreachable, PeerRefused."""
        link = self._links.get(member)
        if link is None:
            raise PeerUnreachable(f"there is no member {member!r}, or it has no peer port; see `member list`", False)
        return await link.ask(message, timeout_s)

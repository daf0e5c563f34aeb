"""This member among the others: links to them, what is served to them, and whom nobody listens to any more.

Kept here: a notice that a member has to know of before it serves anything (a life that was fenced while it could not be
reached) is delivered before anything else is sent to it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog

from san_target.peer.identity import OwnIdentity
from san_target.peer.link import PeerLink, PeerRefused, PeerUnreachable
from san_target.peer.messages import ControlRefused, Done, FenceIngress, Message
from san_target.peer.peers import Peers
from san_target.peer.service import PeerService
from san_target.server.background import Background

if TYPE_CHECKING:
    from collections.abc import Iterable

    from san_target.peer.identity import MemberAddress, PeerIdentity
    from san_target.peer.transport import PeerNetwork
    from san_target.volume.owner import Owner

log = structlog.get_logger()

M = TypeVar("M", bound=Message)
Control = Callable[["PeerIdentity", Any], Awaitable[Message]]

ASK_S: Final = 3.0
LOOK_S: Final = 0.5


class Peering:
    """The peer layer of one member. `begin` at each incarnation, `end` when it is over.

    on_fenced: called once in a life, when another member takes nothing any more from it.
    """

    def __init__(self, network: "PeerNetwork", owner: "Owner", on_fenced: Callable[[str], None]) -> None:
        self._network = network
        self._owner = owner
        self._on_fenced = on_fenced
        self._own: OwnIdentity | None = None
        self._controls: dict[type[Message], Control] = {FenceIngress: self._fence_ingress}
        self._notices: dict[str, dict[str, int]] = {}  # for whom: the lives that are fenced, by member
        self._delivering: set[str] = set()
        self._background = Background()
        self.peers: Final = Peers(network, self._link_changed)
        self.service: Final = PeerService(network, self)
        self.handle: Final = owner.handle
        owner.tick_now, owner.memory = self.service.tick_now, self.service.memory
        self.address = ""

    # Life -------------------------------------------------------------------------------------------------------------

    async def listen(self, address: str) -> str:
        """OSError if the peer port cannot be opened."""
        self.address = await self.service.listen(address)
        return self.address

    def begin(self, own: OwnIdentity, known: Callable[[str], int | None]) -> None:
        """A life of this member begins. known: the incarnation of a member, None = there is no such member."""
        self._own = own
        self.service.begin(own, known)
        self.peers.begin(own)
        self._background.spawn(self._watch_for_fence(own))

    def follow(self, members: "Iterable[MemberAddress]") -> None:
        """All members, at each change of the membership view."""
        self.peers.follow(members)

    async def end(self) -> None:
        """This life is over: nothing is sent any more, and what was begun for others has ended."""
        self._own = None
        self.peers.end()
        await self._background.cancel()
        await self.service.end()

    async def stop(self) -> None:
        await self.end()
        await self.service.stop()

    async def _watch_for_fence(self, own: OwnIdentity) -> None:
        while self._own == own:
            for name in self.peers.names():
                link = self.peers.link(name)
                if link is not None and link.fenced and link.state != "up":
                    self._on_fenced(f"member {name!r} takes nothing any more from incarnation {own.incarnation}")
                    return
            await self._network.sleep(LOOK_S)

    # Control messages -------------------------------------------------------------------------------------------------

    def answer(self, kind: type[M], control: "Callable[[PeerIdentity, M], Awaitable[Message]]") -> None:
        """What answers control messages of a kind."""
        self._controls[kind] = control

    def answer_at_once(self, kind: type[M], control: Callable[[M], Message]) -> None:
        """The same for what needs no waiting, and is the same for every member that asks."""

        async def answer(_peer: "PeerIdentity", message: M) -> Message:
            return control(message)

        self._controls[kind] = answer

    async def control(self, peer: "PeerIdentity", message: Message) -> Message:
        control = self._controls.get(type(message))
        if control is None:
            raise ControlRefused(f"this member does not know the message {type(message).__name__}")
        return await control(peer, message)

    def lost(self, peer: "PeerIdentity") -> None:
        """Requests look at `peer.lost` under the lock; there is nothing else to drop."""

    async def _fence_ingress(self, _peer: "PeerIdentity", message: FenceIngress) -> Message:
        await self.service.fence(message.member, message.incarnation)
        return Done()

    # Links for the volumes --------------------------------------------------------------------------------------------

    def link(self, member: str) -> PeerLink | None:
        """The link to a member that may be sent requests; None: there is none, or it has to be told something first."""
        if member in self._notices:
            return None
        return self.peers.link(member)

    async def fence(self, member: str, incarnation: int) -> None:
        """A life of a member that cannot be reached: no owner takes anything from it any more.

        Returns when all have confirmed who can be reached; the others are told before anything else is sent to them.
        """
        log.warning("a member that does not answer is fenced", member=member, incarnation=incarnation)
        await self.service.fence(member, incarnation)
        for name in self.peers.names():
            if name != member:
                self._notices.setdefault(name, {})[member] = incarnation
        await asyncio.gather(*(self._deliver(name) for name in list(self._notices)))

    def _link_changed(self, link: PeerLink) -> None:
        if link.state == "up" and link.name in self._notices:
            self._background.spawn(self._deliver(link.name))

    async def _deliver(self, name: str) -> None:
        """Tell a member of all fences that it has to know of; one that cannot be reached is told when it can."""
        link = self.peers.link(name)
        if link is None:
            self._notices.pop(name, None)  # it has left the group
            return
        if name in self._delivering or link.state != "up":
            return
        self._delivering.add(name)
        try:
            while notices := self._notices.get(name):
                member, incarnation = next(iter(notices.items()))
                await self.peers.ask(name, FenceIngress(member, incarnation), ASK_S)
                if notices.get(member) == incarnation:
                    del notices[member]
                if not notices:
                    del self._notices[name]
        except (PeerUnreachable, PeerRefused) as error:
            log.info("a member is to be told of a fence when it can be reached", member=name, reason=str(error))
            self._background.spawn(self._deliver_later(name))
        finally:
            self._delivering.discard(name)

    async def _deliver_later(self, name: str) -> None:
        await self._network.sleep(LOOK_S)
        await self._deliver(name)

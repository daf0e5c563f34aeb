"""The server side of the peer layer: who may have a link to this member, and when.

At most one link of each other member serves. A new one replaces it at once - nothing of the old one is begun any more -
but is welcomed only when every request that the old one had begun has been answered. So nothing that a member sent over
a connection it gave up is executed after what it sends over the next one.
"""

import asyncio
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from san_target.peer.frame_stream import SpareBuffers
from san_target.peer.frames import PAYLOAD_BYTES_MAX, Answer, Request
from san_target.peer.handshake import NONCE_BYTES, Answering, Code, Hello, Refused, Standing, judge
from san_target.peer.messages import Message
from san_target.peer.served_link import Phase, ServedLink

if TYPE_CHECKING:
    from san_target.peer.identity import OwnIdentity, PeerIdentity
    from san_target.peer.transport import PeerListener, PeerNetwork, Transport

log = structlog.get_logger()

TICK_S: Final = 0.5
"""Of the ticks that owners hand out."""
LIFE_S: Final = 1.0
UNPROVEN_MAX: Final = 64
REFUSALS_TOLD_MAX: Final = 64  # different ones, in each REFUSALS_S; no caller can fill the log
REFUSALS_S: Final = 60
MEMORY_BYTES: Final = 4 << 20


class Handler(Protocol):
    """Who executes requests: the owner's side of the volumes."""

    def handle(self, peer: "PeerIdentity", request: Request, answer: Callable[[Answer], None]) -> None:
        """Execute a request, and answer it exactly once, now or later, with its request_id.

        The payload is valid only during this call. That of an answer given during this call must stay unchanged until
        it returns, and may come from `PeerService.memory`; that of a later one until the end of the loop's turn.
        Once `peer.lost`, nothing may begin any more, but what has begun is still to be answered when it has ended.
        """
        ...

    async def control(self, peer: "PeerIdentity", message: Message) -> Message:
        """The reply to a control message; cancelled when the link ends. Raises ControlRefused."""
        ...

    def lost(self, peer: "PeerIdentity") -> None:
        """The link has ended: drop what has not begun, and answer it."""
        ...


class AnswerMemory:
    """Memory for the payloads of answers that are given at once, used again as soon as they are sent."""

    __slots__ = ("_view", "used_bytes")

    def __init__(self, size_bytes: int = MEMORY_BYTES) -> None:
        self._view = memoryview(bytearray(size_bytes))
        self.used_bytes = 0

    def take(self, size_bytes: int) -> memoryview:
        """Memory for the answer to the request that is being handled; its contents are undefined.

        ValueError: more than any answer may hold; a handler may ask for what a peer's request says.
        """
        if size_bytes > PAYLOAD_BYTES_MAX:
            raise ValueError(f"an answer of {size_bytes} bytes; the most is {PAYLOAD_BYTES_MAX}")
        start = self.used_bytes
        end = start + size_bytes
        if end > len(self._view):
            return memoryview(bytearray(size_bytes))
        self.used_bytes = end
        return self._view[start:end]


class PeerService:
    """The peer port of a member. Refuses everybody until `begin`."""

    def __init__(self, network: "PeerNetwork", handler: Handler) -> None:
        self.handler: Final = handler
        self.memory: Final = AnswerMemory()
        self.spare_buffers: Final = SpareBuffers()
        self._network = network
        self._own: OwnIdentity | None = None
        self._known: Callable[[str], int | None] = lambda _name: None
        self._began_s = 0.0
        self._listener: PeerListener | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._refusals_told: set[tuple[str, str]] = set()
        # Everything that is connected; those without proof also in `_unproven`, the oldest first.
        self._links: dict[ServedLink, None] = {}
        self._unproven: dict[ServedLink, None] = {}
        # By the caller's name: the link that serves or waits for that; and those that ended with requests under way.
        self._present: dict[str, ServedLink] = {}
        self._unfinished: dict[str, dict[ServedLink, None]] = {}
        self._ended_incarnations: dict[str, int] = {}

    # --- Life ---------------------------------------------------------------------------------------------------------

    async def listen(self, address: str) -> str:
        """Take connections at "host:port" (port 0 = a free one); returns the bound address. OSError."""
        self._listener = await self._network.listen_peers(address, self._accepted)
        self._ticker = asyncio.get_running_loop().create_task(self._tick())
        return self._listener.address

    def begin(self, own: "OwnIdentity", known: Callable[[str], int | None]) -> None:
        """A life of this member begins. known: a member's incarnation in the membership view, None = no member."""
        self._own = own
        self._known = known
        self._began_s = self._network.boottime_s()

    async def end(self) -> None:
        """This life has ended: no links any more. Returns when all requests have been answered."""
        self._own = None
        for link in list(self._links):
            link.drop("this member's life in the group has ended")
        await self._all_finished(lambda _link: True)

    async def stop(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        await self.end()
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None

    def tick_now(self) -> int:
        """This owner's tick: counts from 1, one each TICK_S, by a clock that goes on while the machine sleeps, or while
        this process is stopped; so what waited in a socket is as old as it is."""
        return 1 + int((self._network.boottime_s() - self._began_s) / TICK_S)

    def peers(self) -> "list[PeerIdentity]":
        """Those who are served, by name."""
        served = (link for link in self._present.values() if link.phase is Phase.SERVING)
        return sorted((link.identity for link in served), key=lambda identity: identity.name)

    async def fence(self, name: str, incarnation: int) -> None:
        """Nothing more from this incarnation of a member, or from older ones. Returns when what it had begun ended."""
        self._ended_incarnations[name] = max(incarnation, self._ended_incarnations.get(name, 0))
        for link in list(self._links):
            identity = link.identity
            if identity.name == name and identity.incarnation <= incarnation:
                link.drop(f"incarnation {identity.incarnation} of member {name!r} is fenced")
        await self._all_finished(lambda link: link.identity.name == name and link.identity.incarnation <= incarnation)

    async def _all_finished(self, which: Callable[[ServedLink], bool]) -> None:
        for links in list(self._unfinished.values()):
            for link in list(links):
                if which(link):
                    await link.finished.wait()

    async def _tick(self) -> None:
        for second in itertools.count():
            await self._network.sleep(LIFE_S)
            if second % REFUSALS_S == 0:
                self._refusals_told.clear()
            for link in list(self._links):
                link.tick()

    # --- What the links call ------------------------------------------------------------------------------------------

    def _accepted(self, transport: "Transport", address: str) -> ServedLink:
        nonce = self._network.random_bytes(NONCE_BYTES)
        link = ServedLink(self, transport, address, Answering(self._own, self._standing, nonce))
        self._links[link] = None
        self._unproven[link] = None
        if len(self._unproven) > UNPROVEN_MAX:
            # Those that never finish must not keep out those that would.
            next(iter(self._unproven)).drop("too many connections shake hands at the same time")
        return link

    def _standing(self, name: str) -> Standing:
        return Standing(self._known(name), self._ended_incarnations.get(name, 0))

    def proven(self, link: ServedLink, hello: Hello) -> None:
        """The caller is who it says. Raises Refused."""
        self._unproven.pop(link, None)
        if self._own is None:
            raise Refused(Code.NOT_READY, "this member's life in the group has ended", send=True)
        judge(hello, self._own, self._standing(hello.member))  # things may have changed since it said hello
        name = hello.member
        self._ended_incarnations[name] = max(hello.incarnation - 1, self._ended_incarnations.get(name, 0))
        before = self._present.get(name)
        self._present[name] = link
        if before is not None:
            before.drop("the member has made another link")
        self._welcome_if_due(name)

    def _welcome_if_due(self, name: str) -> None:
        link = self._present.get(name)
        if link is not None and link.phase is Phase.WAITING and not self._unfinished.get(name):
            link.welcome()
            log.info("peer linked", peer=name, incarnation=link.identity.incarnation, address=link.address)

    def ended(self, link: ServedLink, served: bool) -> None:
        """No more bytes from this connection."""
        self._links.pop(link, None)
        self._unproven.pop(link, None)
        name = link.identity.name
        if served:
            self._unfinished.setdefault(name, {})[link] = None
            log.info("peer link ended", peer=name, incarnation=link.identity.incarnation, reason=link.reason)
        else:
            self._tell_refusal(name or "unknown", link)
        if self._present.get(name) is link:
            del self._present[name]

    def _tell_refusal(self, name: str, link: ServedLink) -> None:
        """Once a minute: a member that is refused tries again each second."""
        told = (name, link.reason)
        if told not in self._refusals_told and len(self._refusals_told) < REFUSALS_TOLD_MAX:
            self._refusals_told.add(told)
            log.info("peer link refused", peer=name, address=link.address, reason=link.reason)

    def finished(self, link: ServedLink) -> None:
        """It has ended, and so has every request of it."""
        name = link.identity.name
        unfinished = self._unfinished.get(name)
        if unfinished is not None:
            unfinished.pop(link, None)
            if not unfinished:
                del self._unfinished[name]
                self._welcome_if_due(name)

"""Two members: `a` calls, `b` owns. In memory and virtual time."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from san_target.peer.frame_stream import AnswerStream, SpareBuffers
from san_target.peer.frames import Answer, Operation, Payload, Request, Status, pack_request
from san_target.peer.handshake import Calling, HandshakeStream, Refused
from san_target.peer.identity import OwnIdentity, PeerIdentity
from san_target.peer.link import PeerLink
from san_target.peer.messages import ControlRefused, Done, FenceIngress, Message
from san_target.peer.peers import Peers
from san_target.peer.service import PeerService
from san_target.peer.transport import Transport
from tests.support.memory_network import MemoryNetwork, MemoryTransport, Wires

SECRET = b"the secret of a group, 32 bytes!"
GROUP = "0123456789abcdef"
BLOCK = 512


@dataclass(frozen=True)
class Address:
    """A `MemberAddress`."""

    name: str
    incarnation: int
    peer: str


def own(name: str, incarnation: int = 1, secret: bytes = SECRET, group_id: str = GROUP) -> OwnIdentity:
    return OwnIdentity(group_id, secret, name, incarnation)


class Owner:
    """A `Handler` with a medium.

    hold    requests wait in `held` until `release`
    begun   they have begun then, so they are executed even if their peer is lost
    """

    def __init__(self) -> None:
        self.medium: dict[int, bytes] = {}
        self.requests: list[Request] = []  # as they arrived, payload copied
        self.executed: list[int] = []
        self.held: list[tuple[PeerIdentity, Request, Callable[[Answer], None]]] = []
        self.hold = False
        self.begun = False
        self.lost_peers: list[PeerIdentity] = []
        self.service: PeerService
        self.control_gate = asyncio.Event()
        self.controls_cancelled = 0

    def handle(self, peer: PeerIdentity, request: Request, answer: Callable[[Answer], None]) -> None:
        request.payload = bytes(request.payload)
        self.requests.append(request)
        if self.hold:
            self.held.append((peer, request, answer))
        else:
            self.execute(request, answer)

    def execute(self, request: Request, answer: Callable[[Answer], None]) -> None:
        self.executed.append(request.request_id)
        if request.operation == Operation.READ:
            memory = self.service.memory.take(request.answer_bytes)
            memory[:] = self.medium.get(request.lba, b"").ljust(request.answer_bytes, b"\0")[: request.answer_bytes]
            answer(Answer(request.request_id, payload=memory))
        elif request.operation == Operation.FLUSH:
            raise RuntimeError("a defect")
        elif request.operation == Operation.UNMAP:
            answer(Answer(request.request_id, Status.MOVED, 77, b"member c"))
        else:
            self.medium[request.lba] = bytes(request.payload)
            answer(Answer(request.request_id, detail=len(request.payload)))

    def release(self) -> None:
        self.hold = False
        held, self.held = self.held, []
        for peer, request, answer in reversed(held):  # in any order; this is the worst
            if peer.lost and not self.begun:
                answer(Answer(request.request_id, Status.FAILED))
            else:
                self.execute(request, answer)

    async def control(self, peer: PeerIdentity, message: Message) -> Message:
        if isinstance(message, FenceIngress):
            if message.member == "wait":
                try:
                    await self.control_gate.wait()
                except asyncio.CancelledError:
                    self.controls_cancelled += 1
                    raise
            if message.member == "refuse":
                raise ControlRefused("not today")
            if message.member == "defect":
                raise RuntimeError("a defect")
            return FenceIngress(message.member, message.incarnation + 1)
        return Done()

    def lost(self, peer: PeerIdentity) -> None:
        self.lost_peers.append(peer)


class World:
    """`service` of b with its `owner`; `peers` of a, and `link`, its link to b."""

    def __init__(self) -> None:
        self.wires = Wires()
        self.a = MemoryNetwork(self.wires, seed=1)
        self.b = MemoryNetwork(self.wires, seed=2)
        self.owner = Owner()
        self.service = self.owner.service = PeerService(self.b, self.owner)
        self.known: dict[str, int] = {"a": 1, "b": 1, "c": 1}
        self.changes: list[str] = []
        self.peers = Peers(self.a, lambda link: self.changes.append(link.state))

    @property
    def link(self) -> PeerLink:
        link = self.peers.link("b")
        assert link is not None
        return link

    @property
    def transports(self) -> tuple[MemoryTransport, MemoryTransport]:
        """The caller's and the answerer's end of the newest connection."""
        return self.wires.connections[-1]

    async def up(self, seconds: float = 10.0) -> PeerLink:
        await self.link.settled(self.a.now_s() + seconds)
        return self.link


@asynccontextmanager
async def world(secret: bytes = SECRET, incarnation: int = 1, up: bool = True) -> AsyncIterator[World]:
    """secret, incarnation: of the caller. up: wait until the link is."""
    found = World()
    found.known["a"] = incarnation
    await found.service.listen("b:1")
    found.service.begin(own("b"), found.known.get)
    found.peers.begin(own("a", incarnation, secret))
    found.peers.follow([Address("a", incarnation, "a:1"), Address("b", 1, "b:1")])
    try:
        if up:
            await found.up()
        yield found
    finally:
        found.owner.release()
        found.peers.end()
        await found.service.stop()
        await asyncio.sleep(0)


class Calls:
    """Collects answers of `try_send`."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []

    def __call__(self, answer: Answer) -> None:
        answer.payload = bytes(answer.payload)
        self.answers.append(answer)

    @property
    def statuses(self) -> list[int]:
        return [answer.status for answer in self.answers]


def write(lba: int, data: bytes = b"x" * BLOCK) -> Request:
    return Request(Operation.WRITE, lba=lba, blocks=1, payload=data)


def read(lba: int, size_bytes: int = BLOCK) -> Request:
    return Request(Operation.READ, lba=lba, blocks=1, answer_bytes=size_bytes)


async def turns(count: int = 5) -> None:
    """Let the event loop go round."""
    for _ in range(count):
        await asyncio.sleep(0)


class RawCaller:
    """A caller that sends whatever bytes it is told. answers: what came back after the handshake."""

    def __init__(self, both: World, name: str = "c", incarnation: int = 1, secret: bytes = b"") -> None:
        identity = own(name, incarnation)
        self._calling = Calling(identity._replace(secret=secret or identity.secret), "b", 1, bytes(32))
        self._stream: HandshakeStream | None = HandshakeStream()
        self._answers = AnswerStream(self._answered, SpareBuffers())
        self._both = both
        self.transport: Transport
        self.answers: list[Answer] = []
        self.ended = ""

    @property
    def welcome(self) -> bool:
        return self._calling.welcome is not None

    async def connect(self, hello: bool = True) -> "RawCaller":
        await self._both.a.connect_peer("b:1", self._attach)
        if hello:
            self.send(self._calling.hello())
            await turns(8)
        return self

    def _attach(self, transport: Transport) -> "RawCaller":
        self.transport = transport
        return self

    def send(self, *buffers: Payload) -> None:
        self.transport.send(list(buffers))

    def send_request(self, request: Request) -> None:
        self.send(pack_request(request), request.payload)

    def received(self, data: memoryview) -> None:
        if self._stream is None:
            self._answers.received(data)
            return
        payload = self._stream.received(data)
        if payload is not None:
            try:
                self.send(self._calling.receive(payload))
            except Refused as error:
                self.ended = str(error)
            if self.welcome:
                self._stream = None

    def _answered(self, answer: Answer) -> None:
        answer.payload = bytes(answer.payload)
        self.answers.append(answer)

    def lost(self, reason: str) -> None:
        self.ended = self.ended or reason

    def drained(self) -> None:
        pass


def numbered(request: Request, request_id: int) -> Request:
    request.request_id = request_id
    return request

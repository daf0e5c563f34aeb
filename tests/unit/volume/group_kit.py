"""Two members that share a volume, joined by a wire that loses what a test tells it to."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from san_target.peer.frames import Answer, Request
from san_target.peer.link import PeerUnreachable
from san_target.storage.checked import CheckedFile
from san_target.storage.memory import MemoryFile
from san_target.storage.records import HeldRange
from san_target.storage.threads import SynchronousThreads, Threads
from san_target.volume.forward import Forwarder
from san_target.volume.owner import Owner
from san_target.volume.partition_map import MapSnapshot, PartitionMap, Placement
from san_target.volume.volume import Volume
from tests.unit.volume.kit import VOLUME_ID

BLOCKS = 1024
HALF = BLOCKS // 2
BLOCK = 512


def halves(first: str = "a", second: str = "b", generations: tuple[int, int] = (1, 1)) -> MapSnapshot:
    """One half of the blocks at each of two owners."""
    volume_map = PartitionMap(BLOCKS, Placement(first, generation=generations[0]))
    volume_map.replace(HALF, BLOCKS, Placement(second, generation=generations[1]))
    return volume_map.snapshot()


class Site:
    """A member: its part of the volume, and what it does for its peers. epoch: of reservations, as it knows it."""

    def __init__(self, name: str, wire: "Wire", threads: Threads | None = None) -> None:
        self.name = name
        self.wire = wire
        self.incarnation = 1
        self.epoch = 0
        self.seen = 10  # the store revision that its watch has reached
        self.forwarder = Forwarder(VOLUME_ID, BLOCK, wire.peers_of(self))  # type: ignore[arg-type]
        held = (HeldRange(0, HALF, 1),) if name == "a" else (HeldRange(HALF, BLOCKS, 1),)
        self.file = MemoryFile(BLOCKS * BLOCK)
        self.volume = Volume(
            VOLUME_ID,
            BLOCK,
            BLOCKS,
            halves(),
            name,
            CheckedFile(self.file),
            held,
            threads or SynchronousThreads(),
            None,
            False,
            self.forwarder,
            revision=5,
        )
        self.start()

    def start(self) -> None:
        """A new life: nothing is remembered."""
        self.owner = Owner(
            lambda volume_id: self if volume_id == bytes.fromhex(VOLUME_ID) else None,  # type: ignore[return-value]
            lambda: self.seen,
            self._until,
            lambda coroutine: asyncio.get_running_loop().create_task(coroutine),
        )
        self.owner.tick_now = lambda: self.wire.tick
        self.owner.memory = SimpleNamespace(take=lambda size: memoryview(bytearray(size)))  # type: ignore[assignment]

    @property
    def local(self) -> Any:
        return self.volume.local

    @property
    def revision(self) -> int:
        return self.volume.revision

    async def _until(self, revision: int) -> None:
        while self.seen < revision:
            await asyncio.sleep(0.001)


class Wire:
    """faults: what becomes of the next requests: "before" (lost on the way), "after" (carried out, answer lost)."""

    def __init__(self) -> None:
        self.sites: dict[str, Site] = {}
        self.faults: list[str] = []
        self.sent: list[Request] = []
        self.tick = 100
        self.down = False
        self.on_request: Callable[[Request], None] = lambda request: None

    def site(self, name: str, threads: Threads | None = None) -> Site:
        self.sites[name] = Site(name, self, threads)
        return self.sites[name]

    def peers_of(self, site: Site) -> Any:
        links: dict[tuple[str, int], Any] = {}

        def link(name: str) -> Any:
            other = self.sites.get(name)
            if other is None or self.down:
                return None
            return links.setdefault((name, other.incarnation), Link(self, site, other))

        return SimpleNamespace(link=link)


class Link:
    def __init__(self, wire: Wire, sender: Site, receiver: Site) -> None:
        self.wire, self.sender, self.receiver = wire, sender, receiver
        self.name, self.incarnation = receiver.name, receiver.incarnation
        self.peer = SimpleNamespace(name=sender.name, incarnation=sender.incarnation, lost=False)
        self.numbers = 0

    @property
    def tick(self) -> int:
        return self.wire.tick

    def tick_at(self, moment_s: float) -> int:
        return self.wire.tick if moment_s > 0 else 1

    async def request(self, request: Request, deadline_s: float) -> Answer:
        if not request.request_id:
            self.numbers += 1
            request.request_id = self.numbers
        self.wire.sent.append(request)
        fault = self.wire.faults.pop(0) if self.wire.faults else ""
        if self.receiver.incarnation != self.incarnation:
            raise PeerUnreachable("it has ended", True)
        if fault == "before":
            raise PeerUnreachable("lost on the way", True)
        if fault == "unsent":
            raise PeerUnreachable("not sent", False)
        self.wire.on_request(request)
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.receiver.owner.handle(self.peer, request, answered.set_result)  # type: ignore[arg-type]
        answer = await answered
        if fault == "after":
            raise PeerUnreachable("the answer is lost", True)
        answer.payload = bytes(answer.payload)
        return answer

"""The portal group over real peer links: tickets, sessions and drops as frames; links that end, pulled cables."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from san_target.group.portal_group import TICKET_WAIT_S
from san_target.peer.frames import Answer, Request
from san_target.peer.identity import OwnIdentity, PeerIdentity
from san_target.peer.messages import ControlRefused, Message
from san_target.peer.peers import Peers
from san_target.peer.service import PeerService
from san_target.server.directory import Portals, TargetDirectory
from san_target.server.group_sessions import ANSWER_S, GroupSessions
from san_target.server.other_members import OtherMembers
from san_target.server.portal_placement import PortalPlacement
from san_target.session.target import Access, Target
from tests.support.fake_peers import FakeMember
from tests.support.memory_network import MemoryNetwork, Wires
from tests.support.virtual_time import run
from tests.unit.server.test_group_sessions import FakeOwn

NAMES = ("m1", "m2", "m3")
IQN = "iqn.2026-01.x:disk"
HOST = "iqn.1993-08.org.debian:01:host"


class OnLinks:
    """A member: its links, what answers over them, and its part in the portal group. (`peer.service.Handler`)"""

    def __init__(self, wires: Wires, name: str, sessions: int) -> None:
        self.name = name
        network = MemoryNetwork(wires, seed=NAMES.index(name))
        self.service = PeerService(network, self)
        self.peers = Peers(network)
        self.own = FakeOwn(name, range(1, sessions + 1))
        others = OtherMembers(name, lambda: VIEW, self.peers)
        self.directory = TargetDirectory(Access(), lambda tsih: False)
        self.directory.portals = Portals(VIEW[name].portals)
        unit: Any = None  # nobody looks into it
        self.target = Target(IQN, "disk", 1, unit, Access())
        self.directory.put(self.target, multipath=False)
        self.placement = self.directory.group = PortalPlacement(
            others, self.directory, lambda: "least-loaded", lambda: len(self.own.handles), lambda: True, network.now_s
        )
        self.sessions = GroupSessions(name, self.own, others)
        self._handlers = {**self.placement.handlers(), **self.sessions.handlers()}

    async def begin(self) -> None:
        identity = OwnIdentity("0123456789abcdef", bytes(32), self.name, 1)
        await self.service.listen(VIEW[self.name].peer)
        self.service.begin(identity, dict.fromkeys(NAMES, 1).get)
        self.peers.begin(identity)
        self.peers.follow(VIEW.values())

    async def settled(self) -> None:
        for name in self.peers.names():
            link = self.peers.link(name)
            assert link is not None
            await link.settled(asyncio.get_running_loop().time() + 10)

    async def end(self) -> None:
        self.peers.end()
        await self.service.stop()

    async def log_in(self, initiator: str = HOST) -> str | None:
        return await self.directory.place(self.target, initiator, bytes(6), self.directory.portals.bound[0])

    def handle(self, peer: PeerIdentity, request: Request, answer: Callable[[Answer], None]) -> None:
        raise AssertionError("nobody asks for blocks here")

    async def control(self, peer: PeerIdentity, message: Message) -> Message:
        if type(message) not in self._handlers:
            raise ControlRefused("unknown")
        return self._handlers[type(message)](message)

    def lost(self, peer: PeerIdentity) -> None:
        pass


VIEW = {
    name: FakeMember(name, (f"10.0.0.{number}:3260",), f"10.0.0.{number}:3300") for number, name in enumerate(NAMES, 1)
}


@contextlib.asynccontextmanager
async def three(*sessions: int) -> AsyncIterator[tuple[Wires, list[OnLinks]]]:
    wires = Wires()
    members = [OnLinks(wires, name, count) for name, count in zip(NAMES, sessions, strict=True)]
    for one in members:
        await one.begin()
    for one in members:
        await one.settled()
    try:
        yield wires, members
    finally:
        wires.revive()
        for one in members:
            await one.end()


def test_logins_and_administration_over_links() -> None:
    async def scenario() -> None:
        async with three(3, 500, 1) as (_, [m1, m2, m3]):
            assert await m1.log_in() == "10.0.0.3:3260"
            assert m3.placement.sessions_and_tickets() == 2
            assert await m3.log_in() is None
            for asked in (m1, m2, m3):
                gathered = await asked.sessions.all()
                assert (len(gathered.sessions), gathered.missing) == (504, [])
            assert [one.member for one in await m1.sessions.other_portals()] == ["m2", "m3"]
            await m1.sessions.drop("m2-500")
            assert m2.own.dropped == ["m2-500"]

    run(scenario())


def test_a_pulled_cable_costs_a_login_its_waiting_time_and_a_listing_two_seconds() -> None:
    async def scenario() -> None:
        async with three(3, 0, 0) as (wires, [m1, *_]):
            wires.dead = True
            loop = asyncio.get_running_loop()
            began_s = loop.time()
            assert await m1.log_in() is None
            assert loop.time() - began_s <= TICKET_WAIT_S + 0.001
            began_s = loop.time()
            gathered = await m1.sessions.all()
            assert (len(gathered.sessions), gathered.missing) == (3, ["m2", "m3"])
            assert loop.time() - began_s <= ANSWER_S + 0.001

    run(scenario())


def test_links_that_end_come_back_and_logins_are_spread_again() -> None:
    async def scenario() -> None:
        async with three(3, 0, 0) as (wires, [m1, *_]):
            wires.cut()
            assert (await m1.sessions.all()).missing == []  # it waits for the new links
            assert await m1.log_in() in ("10.0.0.2:3260", "10.0.0.3:3260")

    run(scenario())

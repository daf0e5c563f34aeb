"""A group of members in this process: one store in memory, peer links over the loopback interface."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from san_target.admin.service import MemberService
from san_target.server.member import Member
from tests.unit.server.conftest import MIB, MemoryEnvironment, Site, spec
from tests.unit.server.initiator import Initiator

IQN = "iqn.2026-01.io.san-target:disk"
HOST_A = "iqn.1993-08.org.debian:01:a"
HOST_B = "iqn.1993-08.org.debian:01:b"
ISID = bytes.fromhex("00023d000001")
OTHER_ISID = bytes.fromhex("00023d000002")


class Group:
    """members, services: by name. The volume "disk" lies on all of them; logins stay where they come."""

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}
        self.services: dict[str, MemberService] = {}
        self.initiators: list[Initiator] = []

    async def log_in(self, at: str, name: str = HOST_A, isid: bytes = ISID, ready: bool = True) -> Initiator:
        initiator = await Initiator.connect(self.members[at].portals.bound[0], isid)
        self.initiators.append(initiator)
        assert await initiator.login(IQN, name) == 0
        if ready:
            await initiator.ready()
        return initiator

    async def linked(self) -> None:
        """Return when every member has a link to every other."""
        async with asyncio.timeout(20):
            for name, member in self.members.items():
                for other in self.members.keys() - {name}:
                    while (link := member.life.peering.peers.link(other)) is None or link.state != "up":
                        await asyncio.sleep(0.01)

    def first_lba_of(self, owner: str, seen_by: str = "m1") -> int:
        """A block that this member owns."""
        member = self.members[seen_by]
        export = next(iter(member.exports.by_id.values()))
        assert export.snapshot is not None
        return next(each.start for each in export.snapshot.ranges() if each.placement.owner == owner)


@contextlib.asynccontextmanager
async def group(directory: Path, *names: str, size_bytes: int = 96 * MIB) -> AsyncIterator[Group]:
    environment, made = MemoryEnvironment(), Group()
    async with contextlib.AsyncExitStack() as stack:
        for name in names:
            site = Site(directory / name, environment)
            started = await stack.enter_async_context(site.started(name=name, peer="127.0.0.1:0"))
            made.members[name], made.services[name] = started
        await made.linked()
        first = made.services[names[0]]
        await first.create_volume(spec("disk", size_bytes=size_bytes, members=names))
        async with asyncio.timeout(20):
            for member in made.members.values():
                while not all(each.target.ready for each in member.exports.by_id.values()) or not member.exports.by_id:
                    await asyncio.sleep(0.01)
        yield made
        for initiator in made.initiators:
            initiator.close()

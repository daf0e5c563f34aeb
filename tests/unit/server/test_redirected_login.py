"""Logins at real portals of two members that place them between each other; the administration asked at either.

The members have a store each, with a volume of the same name: what they share is what they ask each other.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from san_target.admin.service import ChapUser, MemberService
from san_target.group.errors import Conflict, NotFound
from san_target.server.member import Member
from san_target.server.other_members import OtherMembers
from tests.support.fake_peers import FakeMember, FakePeers
from tests.unit.server.conftest import MemoryEnvironment, Site, run, spec
from tests.unit.server.initiator import Initiator

CHAP = ChapUser(user="alice", secret="a secret of alice")
HOST = "iqn.1993-08.org.debian:01:host"
ISID = bytes.fromhex("00023d000001")
OTHER_ISID = bytes.fromhex("00023d000002")


class Pair:
    """Members "m1" and "m2" with the volumes "disk", "secret" (CHAP) and "paths" (multipath)."""

    def __init__(self, members: dict[str, tuple[Member, MemberService]], peers: FakePeers) -> None:
        self.members = {name: member for name, (member, _) in members.items()}
        self.services = {name: service for name, (_, service) in members.items()}
        self.peers = peers
        self.states = dict.fromkeys(members, "active")
        self.initiators: list[Initiator] = []  # they stay logged in

    def view(self) -> dict[str, FakeMember]:
        return {name: FakeMember(name, (self.portal(name),), state=self.states[name]) for name in self.members}

    def portal(self, name: str) -> str:
        return self.members[name].portals.bound[0]

    async def log_in(self, at: str, volume: str = "disk", isid: bytes = ISID, name: str = HOST) -> tuple[int, str]:
        """(status, TargetAddress or "") of the first Login Request."""
        initiator = await Initiator.connect(self.portal(at), isid)
        self.initiators.append(initiator)
        status = await initiator.login(f"iqn.2026-01.io.san-target:{volume}", name)
        address = initiator.login_keys.get("TargetAddress", "")
        if status:
            assert await initiator.ended()
        return status, address


@contextlib.asynccontextmanager
async def pair(directory: Path, policy: str = "least-loaded") -> AsyncIterator[Pair]:
    async with contextlib.AsyncExitStack() as stack:
        started = {}
        for name in ("m1", "m2"):
            site = Site(directory / name, MemoryEnvironment())
            member, service = started[name] = await stack.enter_async_context(site.started(name=name))
            await service.create_volume(spec("disk"))
            await service.create_volume(spec("secret", chap=(CHAP,)))
            await service.create_volume(spec("paths", multipath=True))
            await service.set_portal_policy(policy)  # type: ignore[arg-type]
        both = Pair(started, FakePeers())
        for name, member in both.members.items():
            others = OtherMembers(name, both.view, both.peers)
            both.peers.handlers[name] = dict(member.join_portal_group(others))
        yield both


def test_a_login_is_sent_to_the_other_member_and_served_there(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with pair(tmp_path) as both:
            assert await both.log_in("m1") == (0, "")
            assert await both.log_in("m1", isid=OTHER_ISID) == (0x0101, both.portal("m2"))
            assert await both.log_in("m2", isid=OTHER_ISID) == (0, "")
            for service in both.services.values():
                listed = await service.sessions()
                assert [(one.id, one.isid) for one in listed.sessions] == [
                    ("m1-1", ISID.hex()),
                    ("m2-1", OTHER_ISID.hex()),
                ]
                assert [one.id for one in (await service.volume("disk")).sessions] == ["m1-1", "m2-1"]
                assert [(one.member, one.sessions, one.state) for one in await service.portals()] == [
                    ("m1", 1, "active"),
                    ("m2", 1, "active"),
                ]
            assert both.services["m1"].counters().redirections == 1
            assert both.services["m1"].counters().login_failures == 0

    run(scenario)


def test_before_authentication_and_never_for_who_is_not_served(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with pair(tmp_path) as both:
            await both.log_in("m1")
            assert await both.log_in("m1", "secret") == (0x0101, both.portal("m2"))
            # There, the initiator that skips authentication is told so.
            assert await both.log_in("m2", "secret") == (0x0201, "")
            assert await both.log_in("m1", "none") == (0x0203, "")
            both.members["m1"].directory.find("iqn.2026-01.io.san-target:disk").ready = False  # type: ignore[union-attr]
            assert await both.log_in("m1", isid=OTHER_ISID) == (0x0301, "")

    run(scenario)


def test_multipath_volumes_stay_and_show_every_portal(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with pair(tmp_path) as both:
            await both.log_in("m1")
            assert await both.log_in("m1", "paths") == (0, "")
            addresses: dict[tuple[str, str], set[str]] = {}
            for at in ("m1", "m2"):
                initiator = await Initiator.connect(both.portal(at))
                assert await initiator.login(None) == 0
                pairs = await initiator.send_targets()
                initiator.close()
                for name, value in pairs:
                    if name == "TargetName":
                        volume = value.rpartition(":")[2]
                    else:
                        addresses.setdefault((at, volume), set()).add(value)
            every = {f"{both.portal(name)},1" for name in both.members}
            for at in both.members:
                assert addresses[at, "paths"] == every
                assert addresses[at, "disk"] == addresses[at, "secret"] == {f"{both.portal(at)},1"}

    run(scenario)


@pytest.mark.parametrize("policy", ["none", "round-robin"])
def test_a_draining_member_sends_everybody_away(tmp_path: Path, policy: str) -> None:
    async def scenario() -> None:
        async with pair(tmp_path, policy) as both:
            both.states["m1"] = "draining"
            assert await both.log_in("m1") == (0x0101, both.portal("m2"))
            assert await both.log_in("m1", "paths") == (0, "")
            both.peers.silent = {"m2"}
            assert await both.log_in("m1", isid=OTHER_ISID) == (0, "")

    run(scenario)


def test_a_session_is_dropped_from_the_other_member(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with pair(tmp_path, "none") as both:
            initiator = await Initiator.connect(both.portal("m1"), ISID)
            assert await initiator.login("iqn.2026-01.io.san-target:disk") == 0
            elsewhere = both.services["m2"]
            with pytest.raises(NotFound, match="ask member m1"):
                elsewhere.set_trace("m1-1", lambda direction, header: None)
            with pytest.raises(Conflict, match="logged in to the volume 'disk' at member m1"):
                await elsewhere.delete_volume("disk", force=False)
            await elsewhere.drop_session("m1-1")
            assert await initiator.ended()
            with pytest.raises(NotFound):
                await elsewhere.drop_session("m1-1")
            both.peers.down = {"m1"}
            with pytest.raises(Conflict, match="member m1 does not answer"):
                await elsewhere.drop_session("m1-1")
            with pytest.raises(Conflict, match="m1 does not say whether sessions"):
                await elsewhere.delete_volume("disk", force=False)
            volume = await elsewhere.volume("disk")
            assert volume.unreachable == ("m1",)
            await elsewhere.delete_volume("disk", force=True)

    run(scenario)


def test_clones_are_told_wherever_an_operator_looks(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with pair(tmp_path, "none") as both:
            service, member = both.services["m1"], both.members["m1"]
            for number in range(4):
                initiator = await Initiator.connect(both.portal("m1"), ISID)
                both.initiators.append(initiator)
                while len(member.portal_server.connections) == len(member.portal_server.sessions()):
                    await asyncio.sleep(0)
                # All of them come over loopback here: what the portal saw is changed before the login.
                [new] = [one for one in member.portal_server.connections if one.connection.session is None]
                new.connection.peer_address = f"192.0.2.{1 + number % 2}:5000"
                assert await initiator.login("iqn.2026-01.io.san-target:disk", HOST) == 0
            problem = "logs in from 192.0.2.1 and 192.0.2.2 in turn"
            for asked in both.services.values():
                [session] = (await asked.sessions()).sessions
                assert problem in session.problem
                volume = await asked.volume("disk")
                assert (volume.state, problem in volume.reason) == ("ready", True)
            assert problem in (await service.member("m1")).reason
            assert problem in " ".join((await service.group_status()).reasons)
            assert service.health().status == "degraded"
            counters = service.counters()
            assert (counters.reinstatements, counters.shared_initiator_ports) == (3, 1)
            assert (await service.volume("secret")).reason == ""

    run(scenario)

"""Logins placed among members that ask each other for tickets: who is asked, what is believed, what is waited for."""

import asyncio
import itertools
from typing import Any

import pytest

from san_target.group.portal_group import TICKET_S, TICKET_WAIT_S, Login
from san_target.peer.messages import SessionCountRequest, TicketReply, TicketRequest
from san_target.server.directory import Portals, TargetDirectory
from san_target.server.other_members import OtherMembers
from san_target.server.portal_placement import BEGINNING_S, COUNT_FRESH_S, PortalPlacement
from san_target.session.target import Access, Target
from tests.support.fake_peers import FakeMember, FakePeers
from tests.support.virtual_time import run

NAMES = ("m1", "m2", "m3")
HOST = "iqn.1993-08.org.debian:01:host"
ISIDS = itertools.count(1)


def now_s() -> float:
    return asyncio.get_running_loop().time()


def portal_of(name: str) -> str:
    return f"10.0.0.{name[1:]}:3260"


class One:
    """A member with its targets."""

    def __init__(self, group: "Group", name: str) -> None:
        self.directory = TargetDirectory(Access(), lambda tsih: False)
        self.directory.portals = Portals((portal_of(name),))
        self.sessions = 0
        self.has_room = True
        others = OtherMembers(name, lambda: group.view, group.peers)
        self.placement = PortalPlacement(
            others,
            self.directory,
            lambda: group.policy,
            lambda: self.sessions,
            lambda: self.has_room,
            now_s,
        )
        self.directory.group = self.placement
        group.peers.handlers[name] = dict(self.placement.handlers())


class Group:
    """Three members with the target "disk"."""

    def __init__(self, policy: str = "least-loaded") -> None:
        self.policy = policy
        self.peers = FakePeers()
        self.view = {name: FakeMember(name, (portal_of(name),)) for name in NAMES}
        self.members = {name: One(self, name) for name in NAMES}
        for one in self.members.values():
            one.directory.put(self.target("disk"), multipath=False)

    def target(self, name: str, ready: bool = True, access: Access | None = None) -> Target:
        unit: Any = None  # nobody looks into it
        return Target(f"iqn.2026-01.x:{name}", name, 1, unit, access or Access(), ready)

    def set(self, name: str, **changes: Any) -> None:
        self.view = self.view | {name: FakeMember(name, **({"portals": (portal_of(name),)} | changes))}

    def loads(self, *sessions: int) -> None:
        for one, count in zip(self.members.values(), sessions, strict=True):
            one.sessions = count

    async def log_in(
        self, at: str = "m1", disk: str = "disk", initiator: str = HOST, isid: bytes | None = None
    ) -> list[str]:
        """Follow redirections; the members on the way, the last of which serves the login."""
        isid, way = isid or next(ISIDS).to_bytes(6, "big"), [at]
        for _ in range(10):
            directory = self.members[way[-1]].directory
            target = directory.find(f"iqn.2026-01.x:{disk}")
            assert target is not None
            address = await directory.place(target, initiator, isid, portal_of(way[-1]))
            if address is None:
                self.begin_session(way[-1], target, initiator, isid)
                return way
            way.append(next(name for name in NAMES if portal_of(name) == address))
        raise AssertionError(f"a redirection loop: {way}")

    def begin_session(self, at: str, target: Target, initiator: str, isid: bytes) -> None:
        session: Any = object()  # nobody looks into it
        self.members[at].sessions += 1
        target.sessions[initiator, isid] = session


def test_the_member_with_the_fewest_sessions_gets_the_login() -> None:
    async def scenario() -> None:
        group = Group()
        group.loads(5, 3, 1)
        assert await group.log_in() == ["m1", "m3"]
        assert await group.log_in(initiator="iqn.2026-01.x:b") == ["m1", "m3"]
        # 5, 3, 3: equals take turns.
        ways = [await group.log_in(initiator=f"iqn.2026-01.x:{number}") for number in range(4)]
        assert sorted(way[-1] for way in ways) == ["m2", "m2", "m3", "m3"]
        assert [one.sessions for one in group.members.values()] == [5, 5, 5]
        assert await group.log_in(initiator="iqn.2026-01.x:c") == ["m1"]

    run(scenario())


def test_logins_that_come_together_spread_by_the_tickets_under_way() -> None:
    async def scenario() -> None:
        group = Group()
        group.loads(6, 0, 0)
        directory = group.members["m1"].directory
        target = directory.find("iqn.2026-01.x:disk")
        assert target is not None
        # None of them has arrived where it was sent when the next one is placed.
        addresses = await asyncio.gather(
            *(directory.place(target, f"iqn.2026-01.x:{number}", bytes(6), portal_of("m1")) for number in range(12))
        )
        assert {name: addresses.count(portal_of(name)) for name in ("m2", "m3")} == {"m2": 6, "m3": 6}
        counted = [member for member, message in group.peers.asked if isinstance(message, SessionCountRequest)]
        assert sorted(counted) == ["m2", "m3"]  # asked once for all

    run(scenario())


def test_logins_that_come_together_to_an_empty_group_spread_too() -> None:
    """What is served here counts before it is a session, and no more when it is one or comes to nothing."""

    async def scenario() -> None:
        group = Group()
        placement, directory = group.members["m1"].placement, group.members["m1"].directory
        target = directory.find("iqn.2026-01.x:disk")
        assert target is not None
        hosts = [f"iqn.2026-01.x:{number}" for number in range(12)]
        addresses = await asyncio.gather(*(directory.place(target, host, bytes(6), portal_of("m1")) for host in hosts))
        assert [addresses.count(None), addresses.count(portal_of("m2")), addresses.count(portal_of("m3"))] == [4, 4, 4]
        assert placement.sessions_and_tickets() == 4
        begun = [host for host, address in zip(hosts, addresses, strict=True) if address is None][:3]
        for host in begun:
            group.begin_session("m1", target, host, bytes(6))
        assert placement.sessions_and_tickets() == 4
        await asyncio.sleep(BEGINNING_S)
        assert placement.sessions_and_tickets() == 3

    run(scenario())


def test_taking_turns() -> None:
    async def scenario() -> None:
        group = Group("round-robin")
        ways = [await group.log_in("m2", initiator=f"iqn.2026-01.x:{number}") for number in range(6)]
        assert [way[-1] for way in ways] == ["m2", "m3", "m1"] * 2
        assert all(kind == "TicketRequest" for _, kind in group.peers.kinds_asked())

    run(scenario())


def test_without_a_policy_nobody_is_asked() -> None:
    async def scenario() -> None:
        for policy in ("none", "of-a-later-version"):
            group = Group(policy)
            group.loads(100, 0, 0)
            assert await group.log_in() == ["m1"]
            assert group.peers.asked == []

    run(scenario())


@pytest.mark.parametrize("policy", ["none", "round-robin", "least-loaded", "adaptive"])
def test_a_draining_member_sends_logins_away_and_takes_none(policy: str) -> None:
    async def scenario() -> None:
        group = Group(policy)
        group.loads(0, 9, 4)
        group.set("m1", state="draining")
        assert await group.log_in("m1") == ["m1", "m3"]
        assert "m1" not in await group.log_in("m2")
        request = TicketRequest("iqn.2026-01.x:disk", HOST, bytes(6))
        assert group.members["m1"].placement.give_ticket(request) == TicketReply(False, 0, "this member drains")

    run(scenario())


def test_a_draining_member_serves_whom_it_was_sent_before() -> None:
    async def scenario() -> None:
        group = Group()
        isid = bytes(6)
        request = TicketRequest("iqn.2026-01.x:disk", HOST, isid)
        assert group.members["m1"].placement.give_ticket(request).accepted
        group.set("m1", state="draining")
        assert await group.log_in("m1", isid=isid) == ["m1"]
        assert await group.log_in("m1") != ["m1"]

    run(scenario())


@pytest.mark.parametrize("state", ["active", "draining"])
def test_without_an_answer_the_login_is_served_here(state: str) -> None:
    async def scenario() -> None:
        group = Group("round-robin")
        group.set("m1", state=state)
        group.peers.silent = {"m2", "m3"}
        assert await group.log_in() == ["m1"]
        assert await group.log_in() == ["m1"]

    run(scenario())


@pytest.mark.parametrize(("delay_s", "way"), [(0.04, ["m1", "m2"]), (0.06, ["m1"]), (1.0, ["m1"])])
def test_a_ticket_that_comes_too_late_is_none(delay_s: float, way: list[str]) -> None:
    async def scenario() -> None:
        group = Group("round-robin")
        await group.log_in(initiator="iqn.2026-01.x:another")
        group.peers.delay_s = dict.fromkeys(NAMES, delay_s)
        began_s = now_s()
        assert await group.log_in() == way
        assert now_s() - began_s <= TICKET_WAIT_S + 0.001

    run(scenario())


def test_a_ticket_whose_answer_was_lost_counts_until_it_expires() -> None:
    async def scenario() -> None:
        group = Group("round-robin")
        await group.log_in(initiator="iqn.2026-01.x:another")
        group.peers.lose_answers = {"m2"}
        assert await group.log_in() == ["m1"]
        assert group.members["m2"].placement.sessions_and_tickets() == 1
        await asyncio.sleep(TICKET_S)
        assert group.members["m2"].placement.sessions_and_tickets() == 0

    run(scenario())


def test_whoever_refuses_is_passed_over() -> None:
    async def scenario() -> None:
        group = Group()
        group.loads(5, 1, 2)
        group.members["m2"].has_room = False
        assert await group.log_in() == ["m1", "m3"]

    run(scenario())


@pytest.mark.parametrize("lost", [False, True])
def test_an_initiator_that_cannot_reach_a_member_is_not_sent_there_again(lost: bool) -> None:
    """It comes back to where it was, which then finds another member or serves it. Also with a new ISID (libiscsi)."""

    async def scenario() -> None:
        group = Group()
        group.loads(9, 0, 3)
        directory = group.members["m1"].directory
        target = directory.find("iqn.2026-01.x:disk")
        assert target is not None
        isids = [bytes(6), b"\x80\0\0\0\0\1" if lost else bytes(6), bytes(6)]
        answers = []
        for isid in isids:
            answers.append(await directory.place(target, HOST, isid, portal_of("m1")))
            await asyncio.sleep(5)
        assert answers == [portal_of("m2"), portal_of("m3"), None]

    run(scenario())


def test_members_that_are_away_or_have_no_portal_for_the_initiator_are_not_asked() -> None:
    async def scenario() -> None:
        group = Group("round-robin")
        group.set("m2", alive=False)
        group.set("m3", portals=("[2001:db8::3]:3260", "0.0.0.0:3260"), peer="0.0.0.0:3300")
        for _ in range(3):
            assert await group.log_in() == ["m1"]
        for state in ("starting", "unreachable", "removing", "removed"):  # whatever else is said of them
            group.set("m2", state=state)
            assert await group.log_in() == ["m1"]
        assert group.peers.asked == []

    run(scenario())


def test_a_session_is_sent_where_it_is_moved_to_but_not_after_that_member_has_died() -> None:
    """Its lease lasts for some seconds: a host that has lost its connection would try there in vain."""

    async def scenario() -> None:
        group = Group("none")
        isid = bytes.fromhex("00023d000007")
        for one in group.members.values():
            one.placement.expected.note(Login("iqn.2026-01.x:disk", HOST, isid), "m3", now_s() + 9.0)
        assert await group.log_in(isid=isid) == ["m1", "m3"]
        group.peers.down.add("m3")
        assert group.view["m3"].alive
        assert await group.log_in(isid=isid) == ["m1"]

    run(scenario())


def test_nobody_is_sent_to_an_address_that_is_our_own_too() -> None:
    """A balancer before the group, that all members advertise."""

    async def scenario() -> None:
        group = Group("round-robin")
        for name in NAMES:
            group.set(name, portals=("192.0.2.1:3260",))
            group.members[name].directory.portals = Portals((portal_of(name),), ("192.0.2.1:3260",))
        for _ in range(3):
            assert await group.log_in() == ["m1"]

    run(scenario())


def test_counts_are_asked_for_when_they_are_old() -> None:
    async def scenario() -> None:
        group = Group()
        counts = []
        for step_s in (0.0, COUNT_FRESH_S - 0.1, 0.2, 2 * COUNT_FRESH_S):
            await asyncio.sleep(step_s)
            group.peers.asked.clear()
            await group.log_in()
            counts.append([name for name, message in group.peers.asked if isinstance(message, SessionCountRequest)])
        # What a ticket's answer says of its member is fresh, too.
        assert counts == [["m2", "m3"], [], ["m2"], ["m2", "m3"]]

    run(scenario())


def test_a_member_that_is_silent_is_not_waited_for_at_each_login() -> None:
    async def scenario() -> None:
        group = Group()
        group.loads(5, 0, 50)
        group.peers.silent = {"m2"}
        for _ in range(3):
            assert await group.log_in() == ["m1"]
        assert [member for member, _ in group.peers.asked].count("m2") == 1
        group.peers.silent.clear()
        await asyncio.sleep(COUNT_FRESH_S + 0.1)
        assert await group.log_in() == ["m1", "m2"]

    run(scenario())


@pytest.mark.parametrize(
    ("disk", "reason"),
    [
        ("none", "not served"),
        ("starting", "not served"),
        ("private", "not allowed"),
        ("paths", "multipath"),
        ("disk", ""),
    ],
)
def test_tickets_are_given_for_what_can_be_served(disk: str, reason: str) -> None:
    async def scenario() -> None:
        group = Group()
        directory = group.members["m1"].directory
        directory.put(group.target("starting", ready=False), multipath=False)
        directory.put(group.target("private", access=Access(frozenset({"iqn.2026-01.x:other"}))), multipath=False)
        directory.put(group.target("paths"), multipath=True)
        reply = group.members["m1"].placement.give_ticket(TicketRequest(f"iqn.2026-01.x:{disk}", HOST, bytes(6)))
        assert (reply.accepted, reply.sessions) == (not reason, 0 if reason else 1)
        assert reason in reply.reason

    run(scenario())


def test_portals_of_the_others_for_multipathing() -> None:
    group = Group()
    placement = group.members["m1"].placement
    assert placement.other_portals(portal_of("m1")) == [portal_of("m2"), portal_of("m3")]
    group.set("m2", portals=("[2001:db8::2]:3260", "10.0.0.2:3260", "10.0.1.2:3260"))
    assert placement.other_portals(portal_of("m1")) == ["10.0.0.2:3260", "10.0.1.2:3260", portal_of("m3")]
    assert placement.other_portals("[2001:db8::1]:3260") == ["[2001:db8::2]:3260"]
    group.set("m2", alive=False)
    group.set("m3", state="draining")
    assert placement.other_portals(portal_of("m1")) == []
    group.set("m2", state="starting")
    assert placement.other_portals(portal_of("m1")) == []

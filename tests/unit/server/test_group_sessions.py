"""Sessions and portals of all members, asked from any of them; members that do not answer are named."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import pytest

from san_target.admin.service import Session
from san_target.group.errors import Conflict, NotFound
from san_target.peer import messages
from san_target.peer.messages import PortalInfo, SessionsReply, SessionsRequest
from san_target.server.group_sessions import ANSWER_S, LISTING_S, Entry, GroupSessions, OtherPortals
from san_target.server.other_members import OtherMembers
from tests.support.fake_peers import FakeMember, FakePeers
from tests.support.virtual_time import run


class FakeOwn:
    """What one member has."""

    def __init__(self, name: str, handles: Iterable[int]) -> None:
        self.name = name
        self.handles = list(handles)
        self.shown = 0
        self.initiator = "iqn.1993-08.org.debian:01:host"
        self.wrong: dict[str, list[str]] = {}
        self.dropped: list[str] = []

    def entries(self) -> Iterable[Entry]:
        return [Entry(handle, partial(self._show, handle)) for handle in self.handles]

    def _show(self, handle: int) -> Session:
        self.shown += 1
        return Session(
            id=f"{self.name}-{handle}",
            initiator=self.initiator,
            isid="00023d000001",
            volume="disk",
            member=self.name,
            address="10.0.0.9:50000",
            since="2026-01-31T12:00:00Z",
            iops=1.5,
            bytes_per_second=2.5,
            owners={"m1": 0.25, "m2": 0.75},
            user="alice",
            header_digest=True,
            data_digest=True,
            commands=7,
            commands_in_flight=2,
            read_bytes=1 << 40,
            written_bytes=3,
            problem="a clone",
        )

    def problems(self) -> Mapping[str, Sequence[str]]:
        return self.wrong

    def portals(self) -> Sequence[PortalInfo]:
        return [PortalInfo("0.0.0.0:3260", f"{self.name}.example:3260", len(self.handles))]

    def drop(self, session_id: str) -> bool:
        self.dropped.append(session_id)
        return session_id in {f"{self.name}-{handle}" for handle in self.handles}


class Group:
    """Members m1 (which is asked), m2 and san-3 (a name like a session's id)."""

    def __init__(self, m1: Iterable[int] = (), m2: Iterable[int] = (), san_3: Iterable[int] = ()) -> None:
        self.peers = FakePeers()
        self.owns = {"m1": FakeOwn("m1", m1), "m2": FakeOwn("m2", m2), "san-3": FakeOwn("san-3", san_3)}
        self.view = {name: FakeMember(name, (f"{name}.example:3260",)) for name in self.owns}
        for name, own in self.owns.items():
            self.peers.handlers[name] = dict(self.of(name).handlers())
            assert own.shown == 0

    def of(self, name: str) -> GroupSessions:
        return GroupSessions(name, self.owns[name], OtherMembers(name, lambda: self.view, self.peers))


def test_sessions_of_all_members() -> None:
    async def scenario() -> None:
        group = Group((5, 3), (1,), (2, 10))
        for name in group.owns:
            gathered = await group.of(name).all()
            assert [one.id for one in gathered.sessions] == ["m1-3", "m1-5", "m2-1", "san-3-2", "san-3-10"]
            assert gathered.missing == []
            assert all(one == group.owns[one.member]._show(int(one.id.split("-")[-1])) for one in gathered.sessions)

    run(scenario())


def test_a_member_alone_asks_nobody() -> None:
    async def scenario() -> None:
        own = FakeOwn("m1", (1,))
        alone = GroupSessions("m1", own)
        gathered = await alone.all()
        assert ([one.id for one in gathered.sessions], gathered.missing) == (["m1-1"], [])
        assert await alone.other_portals() == []
        await alone.drop("m1-1")
        with pytest.raises(NotFound):
            await alone.drop("m2-1")
        assert alone.elsewhere("m2-1") == ""

    run(scenario())


@pytest.mark.parametrize("dead", [{"m2"}, {"m2", "san-3"}])
def test_who_does_not_answer_is_named_and_not_waited_for_long(dead: set[str]) -> None:
    async def scenario() -> None:
        group = Group((1,), (1,), (1,))
        group.peers.silent = dead
        began_s = asyncio.get_running_loop().time()
        gathered = await group.of("m1").all()
        assert asyncio.get_running_loop().time() - began_s <= ANSWER_S + 0.001
        assert set(gathered.missing) == dead
        assert {one.member for one in gathered.sessions} == group.owns.keys() - dead

    run(scenario())


def test_members_that_were_removed_are_not_missed() -> None:
    async def scenario() -> None:
        group = Group((1,), (1,))
        group.view["m2"] = FakeMember("m2", alive=False, state="removed")
        group.view["san-3"] = FakeMember("san-3", alive=False, state="unreachable")
        group.peers.silent = {"m2", "san-3"}
        assert (await group.of("m1").all()).missing == ["san-3"]

    run(scenario())


def answering(*replies: Any) -> Callable[[Any], Any]:
    """A handler that answers these in turn, the last one for ever."""
    left = list(replies)

    def answer(_: Any) -> Any:
        return left.pop(0) if len(left) > 1 else left[0]

    return answer


def test_a_member_that_does_not_come_to_an_end_is_named() -> None:
    """Pages that do not go on are the last; pages that go on for ever end with the time."""

    async def scenario() -> None:
        group = Group((1,))
        group.peers.handlers["m2"][SessionsRequest] = answering(SessionsReply((), 5), SessionsReply((), 5))
        counter = iter(range(1, 1 << 40))
        group.peers.handlers["san-3"][SessionsRequest] = lambda _: SessionsReply((), next(counter))
        group.peers.delay_s = {"san-3": 1.0}
        began_s = asyncio.get_running_loop().time()
        assert (await group.of("m1").all()).missing == ["san-3"]
        assert asyncio.get_running_loop().time() - began_s <= LISTING_S + 0.001

    run(scenario())


def test_a_member_that_answers_something_else_is_named() -> None:
    async def scenario() -> None:
        group = Group((1,))
        group.peers.handlers["m2"][SessionsRequest] = lambda _: messages.Done()
        assert (await group.of("m1").all()).missing == ["m2"]
        group.peers.handlers["m2"] = {}
        with pytest.raises(Conflict, match="m2-1"):
            await group.of("m1").drop("m2-1")

    run(scenario())


@pytest.mark.parametrize("initiator", ["iqn.1993-08.org.debian:01:host", "iqn.2026-01.x:" + "y" * 209])
def test_many_sessions_come_in_pages_that_fit(initiator: str) -> None:
    async def scenario() -> None:
        group = Group(m2=range(1, 1001))
        group.owns["m2"].initiator = initiator
        group.owns["m2"].wrong = {f"disk-{number}": ["x" * 5000] for number in range(100)}
        gathered = await group.of("m1").all()
        assert [one.id for one in gathered.sessions] == [f"m2-{number}" for number in range(1, 1001)]
        asked = [message.after for _, message in group.peers.asked if isinstance(message, SessionsRequest)]
        assert asked[0] == 0
        assert len(asked) > 5
        of_m2 = group.of("m2")
        for after in asked:
            assert len(messages.encode(of_m2.page(SessionsRequest(after)))) < 1 << 16
        # Sessions of other pages are not worked out.
        group.owns["m2"].shown = 0
        page = of_m2.page(SessionsRequest(asked[1]))
        assert group.owns["m2"].shown <= len(page.sessions) + 1
        assert page.sessions[0].id == f"m2-{asked[1] + 1}"

    run(scenario())


def test_problems_are_told_once_by_volume() -> None:
    async def scenario() -> None:
        group = Group()
        group.owns["m1"].wrong = {"disk": ["clones"]}
        group.owns["m2"].wrong = {"disk": ["clones", "others"], "idle": ["more"]}
        assert (await group.of("m1").all()).problems == {"disk": ["clones", "others"], "idle": ["more"]}

    run(scenario())


def test_a_session_is_dropped_wherever_it_is() -> None:
    async def scenario() -> None:
        group = Group((1,), (1,), (1,))
        for name in group.owns:
            for identifier in ("m1-1", "m2-1", "san-3-1"):
                await group.of(name).drop(identifier)
        assert group.owns["san-3"].dropped == ["san-3-1"] * 3
        for identifier in ("m1-9", "m2-9", "san-3-9", "m4-1", "nothing", ""):
            with pytest.raises(NotFound, match="session list"):
                await group.of("m1").drop(identifier)
        assert group.of("m1").elsewhere("san-3-9") == "san-3"
        assert group.of("m1").elsewhere("m1-9") == ""

    run(scenario())


def test_a_session_at_a_member_that_does_not_answer_cannot_be_dropped() -> None:
    async def scenario() -> None:
        group = Group(m2=(1,))
        group.peers.silent = {"m2"}
        with pytest.raises(Conflict, match="cannot be dropped: member m2 does not answer"):
            await group.of("m1").drop("m2-1")

    run(scenario())


def test_portals_of_the_others() -> None:
    async def scenario() -> None:
        group = Group((1,), (1, 2), (1,))
        group.peers.silent = {"san-3"}
        assert await group.of("m1").other_portals() == [
            OtherPortals("m2", (PortalInfo("0.0.0.0:3260", "m2.example:3260", 2),), True),
            OtherPortals("san-3", [PortalInfo("san-3.example:3260", "san-3.example:3260", 0)], False),
        ]

    run(scenario())

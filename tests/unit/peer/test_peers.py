"""Links follow the membership view; and what an operator reads where they cannot be."""

import asyncio

import pytest

from san_target.peer.frames import Status
from san_target.peer.link import PeerUnreachable
from san_target.peer.messages import Done
from san_target.peer.peers import Peers
from tests.support.memory_network import MemoryNetwork, Wires
from tests.support.virtual_time import run
from tests.unit.peer.kit import Address, Calls, own, turns, world, write


def test_links_come_and_go_with_members() -> None:
    async def scenario() -> None:
        peers = Peers(MemoryNetwork(Wires()))
        peers.follow([Address("b", 1, "b:1")])
        assert peers.names() == [], "nothing before this member's life begins"
        peers.begin(own("a"))
        members = [Address("a", 1, "a:1"), Address("c", 1, "c:1"), Address("b", 1, "b:1"), Address("d", 1, "")]
        peers.follow(members)
        assert peers.names() == ["b", "c"]
        assert peers.link("a") is peers.link("d") is peers.link("x") is None
        b, c = peers.link("b"), peers.link("c")
        peers.follow(members)
        assert (peers.link("b"), peers.link("c")) == (b, c)
        peers.follow([Address("b", 2, "b:1"), Address("c", 1, "c:2")])
        assert b is not None
        assert c is not None
        assert (b.state, b.reason) == ("stopped", "member 'b' has started again")
        assert c.state == "stopped"
        again = peers.link("b")
        assert again is not None
        assert (again.incarnation, again.state) == (2, "connecting")
        peers.follow([])
        assert again.reason == "member 'b' has left the group"
        assert peers.names() == []
        with pytest.raises(PeerUnreachable, match="there is no member 'b'") as caught:
            await peers.ask("b", Done(), 1)
        assert not caught.value.maybe_executed
        await turns()

    run(scenario())


def test_a_new_life_of_the_other_member_loses_what_was_under_way() -> None:
    async def scenario() -> None:
        async with world() as both:
            both.owner.hold = True
            calls = Calls()
            assert both.link.try_send(write(1), calls)
            both.link.flush()
            both.peers.follow([Address("b", 2, "b:1")])
            await turns()
            assert calls.statuses == [Status.LOST]

    run(scenario())


def test_request_ids_differ_between_links() -> None:
    async def scenario() -> None:
        async with world() as both:
            first = write(1)
            await both.link.request(first, both.a.now_s() + 1)
            both.peers.follow([])
            both.peers.follow([Address("b", 1, "b:1")])
            await both.up()
            second = write(1)
            await both.link.request(second, both.a.now_s() + 1)
            assert first.request_id != second.request_id

    run(scenario())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"secret": b"another"}, "it does not know the secret of this group; check its --store"),
        ({"group_id": "other"}, "this member belongs to another group; check --store and --peer"),
        ({"incarnation": 0}, "incarnation 0 of member 'a' has ended"),
        ({"name": "stranger"}, "'stranger' is no member of the group that is known here"),
        ({"name": "b"}, "this member is called 'b' too; give one another --name"),
    ],
)
def test_why_a_link_is_not_up(change: dict[str, object], reason: str) -> None:
    async def scenario() -> None:
        async with world(up=False) as both:
            both.peers.end()
            peers = Peers(both.a)
            peers.begin(own("a")._replace(**change))  # type: ignore[arg-type]
            peers.follow([Address("b", 1, "b:1")] if change.get("name") != "b" else [Address("b2", 1, "b:1")])
            await asyncio.sleep(3)
            link = peers.link(peers.names()[0])
            assert link is not None
            assert link.reason == reason
            peers.end()
            await turns()

    run(scenario())


def test_changes_are_told() -> None:
    async def scenario() -> None:
        async with world() as both:
            both.wires.cut()
            await both.up()
            both.peers.end()
            assert both.changes == ["up", "waiting", "up", "stopped"]

    run(scenario())

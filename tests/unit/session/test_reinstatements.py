"""Cloned machines: who ends whose session is told from a host that only came back, or changed its address."""

import asyncio

import pytest

from san_target.session.connection import Stage
from san_target.session.reinstatements import PORTS_MAX, REMEMBERED_S, WINDOW_S, Reinstatements
from tests.support.session_driver import INITIATOR, IQN, Driver, OneTarget

ISID = bytes.fromhex("00023d000001")


def after(changes: str, seconds: float = 1.0, isid: bytes = ISID) -> tuple[Reinstatements, list[int]]:
    """ "ab ba": a's session is taken by b, then b's by a. Returns also at which changes a quarrel was told."""
    found, told = Reinstatements(), []
    for number, change in enumerate(changes.split()):
        addresses = (f"10.0.0.{ord(change[0])}:{1000 + number}", f"10.0.0.{ord(change[1])}:{2000 + number}")
        if found.note(IQN, INITIATOR, isid, *addresses, number * seconds) is not None:
            told.append(number)
    return found, told


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ("ab", []),
        ("ab ba", []),
        ("ab ba ab", [2]),
        ("ab ba ab ba ab ba", [2]),  # once
        ("aa aa aa aa aa", []),  # a host whose connection broke
        ("ab bb bb bb bb", []),  # a host that changed its address
        ("ab bc cd de ef", []),  # and again and again
        ("ab bc ca", [2]),  # three clones
        ("ab bc cd da", [3]),
        ("ab ab ab", [2]),  # b's session ends at another member each time
        ("ab bb ba aa ab", [4]),
    ],
)
def test_who_is_a_clone(changes: str, told: list[int]) -> None:
    found, when = after(changes)
    assert when == told
    assert found.count == len(changes.split())
    assert len(found.quarrels(10.0)) == bool(told)


def test_slow_changes_are_no_quarrel() -> None:
    assert after("ab ba ab ba", seconds=WINDOW_S / 2)[1] == [2]
    assert after("ab ba ab ba ab ba", seconds=WINDOW_S / 2 + 0.1)[1] == []


def test_what_is_told() -> None:
    found, _ = after("ab ba ab")
    [quarrel] = found.quarrels(3.0)
    assert (quarrel.target, quarrel.initiator_name, quarrel.isid) == (IQN, INITIATOR, ISID)
    assert quarrel.hosts == ("10.0.0.97", "10.0.0.98")
    assert str(quarrel) == (
        f"{INITIATOR} (ISID 00023d000001) logs in from 10.0.0.97 and 10.0.0.98 in turn, each time ending the other's "
        "session: they are clones; give each machine its own initiator name"
    )
    assert found.quarrel_of(IQN, INITIATOR, ISID, 3.0) == quarrel
    assert found.quarrel_of("iqn.2026-01.x:another", INITIATOR, ISID, 3.0) is None
    assert found.quarrel_of(IQN, INITIATOR, ISID, 3.0 + REMEMBERED_S) is None


def test_a_quarrel_is_over_after_a_while_and_told_again_when_it_comes_back() -> None:
    found, _ = after("ab ba ab")
    assert found.quarrels(2 + REMEMBERED_S)
    assert not found.quarrels(2 + REMEMBERED_S + 0.1)
    later_s = 1000.0
    told = [
        found.note(IQN, INITIATOR, ISID, *addresses, later_s + number) is not None
        for number, addresses in enumerate([("10.0.0.1:1", "10.0.0.2:1"), ("10.0.0.2:1", "10.0.0.1:1")] * 2)
    ]
    assert told == [False, False, True, False]


def test_ports_are_told_apart_and_bounded() -> None:
    found = Reinstatements()
    for number in range(PORTS_MAX + 10):
        found.note(IQN, f"iqn.2026-01.x:{number}", ISID, "10.0.0.1:1", "10.0.0.2:1", float(number) / PORTS_MAX)
    assert len(found._ports) == PORTS_MAX
    assert found.quarrels(1.0) == []


def test_a_connection_tells_whom_it_replaces(directory: OneTarget) -> None:
    async def scenario() -> None:
        first = Driver(directory, isid=ISID)
        await first.login()
        assert directory.reinstatements == []
        second = Driver(directory, isid=ISID)
        second.connection.peer_address = "127.0.0.2:5"
        await second.login()
        assert first.connection.stage is Stage.CLOSED
        assert directory.reinstatements == [("127.0.0.1:9", "127.0.0.2:5")]
        second.connection.lost()
        await Driver(directory, isid=ISID).login()
        await Driver(directory).login()  # another port
        assert len(directory.reinstatements) == 1

    asyncio.run(scenario())

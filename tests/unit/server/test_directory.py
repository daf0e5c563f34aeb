"""What discovery and login are told of targets and portals."""

import asyncio

import pytest

from san_target.server.directory import TSIH_MAX, Portals, TargetDirectory
from san_target.session.target import Access, Target

ASKED = "10.0.0.5:3260"


@pytest.mark.parametrize(
    ("bound", "advertised", "told", "all_for"),
    [
        (("0.0.0.0:3260",), (), ASKED, [ASKED]),
        (("10.0.0.5:3260", "10.0.1.5:3260"), (), ASKED, [ASKED, "10.0.1.5:3260"]),
        (("0.0.0.0:3260", "0.0.0.0:3261"), (), ASKED, [ASKED, "10.0.0.5:3261"]),
        (("0.0.0.0:3260",), ("san.example:9000",), "san.example:9000", ["san.example:9000"]),
        (
            ("10.0.1.5:3260", "10.0.0.5:3260"),
            ("b.example:3260", "a.example:3260"),
            "a.example:3260",
            ["b.example:3260", "a.example:3260"],
        ),
        (("10.0.1.5:3260", "10.0.2.5:3260"), ("x.example:1",), "x.example:1", ["x.example:1"]),
    ],
)
def test_addresses_told(bound: tuple[str, ...], advertised: tuple[str, ...], told: str, all_for: list[str]) -> None:
    portals = Portals(bound, advertised)
    assert portals.told_for(ASKED) == told
    assert portals.all_for(ASKED) == all_for


def test_ipv6_portals() -> None:
    portals = Portals(("[::]:3260", "[fd00::1]:3261"))
    assert portals.told_for("[fd00::5]:3260") == "[fd00::5]:3260"
    assert portals.all_for("[fd00::5]:3260") == ["[fd00::5]:3260", "[fd00::1]:3261"]
    assert portals.bound_for("[fd00::5]:3260") == "[::]:3260"


def target(name: str, *allowed: str) -> Target:
    unit: object = None  # nothing here looks at units
    return Target(f"iqn.2026-01.x:{name}", name, 1, unit, Access(frozenset(allowed)))  # type: ignore[arg-type]


def test_targets_come_and_go() -> None:
    directory = TargetDirectory(Access(), lambda tsih: False)
    directory.portals = Portals(("10.0.0.5:3260", "10.0.1.5:3260"))
    b, a, c = target("b"), target("a"), target("c", "iqn.2026-01.host:one")
    for one in (b, a, c):
        directory.put(one, multipath=False)
    assert directory.visible_to("iqn.2026-01.host:one") == [a, b, c]
    assert directory.visible_to("iqn.2026-01.host:two") == [a, b]
    assert directory.find(c.iqn) is c
    assert directory.portals_of(a, ASKED) == [(ASKED, 1)]
    directory.put(a, multipath=True)
    assert directory.portals_of(a, ASKED) == [(ASKED, 1), ("10.0.1.5:3260", 1)]
    directory.put(a, multipath=False)
    assert directory.portals_of(a, ASKED) == [(ASKED, 1)]
    successor = target("a")
    directory.put(successor, multipath=True)
    directory.remove(a)
    assert directory.portals_of(successor, ASKED) == [(ASKED, 1), ("10.0.1.5:3260", 1)]
    directory.remove(successor)
    directory.remove(successor)
    assert directory.find(a.iqn) is None


class OtherMember:
    """A portal group with one member more. It notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []

    async def place(self, target: Target, initiator_name: str, isid: bytes, asked_at: str) -> str | None:
        self.asked.append((target.alias, initiator_name, isid.hex(), asked_at))
        return "10.0.0.6:3260"

    def other_portals(self, asked_at: str) -> list[str]:
        return ["10.0.0.6:3260", "10.0.1.5:3260"] if asked_at == ASKED else ["[fd00::6]:3260"]


def test_other_members_are_told_to_hosts_with_multipathing_alone() -> None:
    directory = TargetDirectory(Access(), lambda tsih: False)
    directory.portals = Portals(("10.0.0.5:3260", "10.0.1.5:3260", "[fd00::5]:3260"))
    plain, multipath = target("plain"), target("multi")
    directory.put(plain, multipath=False)
    directory.put(multipath, multipath=True)
    directory.group = OtherMember()
    assert directory.portals_of(plain, ASKED) == [(ASKED, 1)]
    assert directory.portals_of(multipath, ASKED) == [(ASKED, 1), ("10.0.1.5:3260", 1), ("10.0.0.6:3260", 1)]
    six = "[fd00::5]:3260"
    assert directory.portals_of(multipath, six) == [(six, 1), ("[fd00::6]:3260", 1)]


def test_other_members_are_asked_about_where_the_initiator_thinks_it_is() -> None:
    directory = TargetDirectory(Access(), lambda tsih: False)
    directory.portals = Portals(("0.0.0.0:3260",), ("10.0.0.5:3260",))
    multipath = target("multi")
    directory.put(multipath, multipath=True)
    directory.group = OtherMember()
    inside = "172.17.0.2:3260"
    assert directory.portals_of(multipath, inside) == [(ASKED, 1), ("10.0.0.6:3260", 1), ("10.0.1.5:3260", 1)]


def test_logins_are_placed_unless_the_host_has_several_paths() -> None:
    async def placed(directory: TargetDirectory, one: Target) -> str | None:
        return await directory.place(one, "iqn.2026-01.host:one", bytes(6), "172.17.0.2:3260")

    async def scenario() -> None:
        directory = TargetDirectory(Access(), lambda tsih: False)
        directory.portals = Portals(("0.0.0.0:3260",), ("10.0.0.5:3260",))
        disk = target("disk")
        directory.put(disk, multipath=False)
        assert await placed(directory, disk) is None
        directory.group = group = OtherMember()
        assert await placed(directory, disk) == "10.0.0.6:3260"
        assert group.asked == [("disk", "iqn.2026-01.host:one", "000000000000", "10.0.0.5:3260")]
        directory.put(disk, multipath=True)
        assert await placed(directory, disk) is None
        assert len(group.asked) == 1

    asyncio.run(scenario())


def test_session_handles_are_unused_ones() -> None:
    used = set(range(1, TSIH_MAX)) - {7}
    directory = TargetDirectory(Access(), used.__contains__)
    assert [directory.new_tsih() for _ in range(TSIH_MAX)] == list(range(1, TSIH_MAX + 1))
    assert directory.new_tsih() == 7
    assert directory.new_tsih() == TSIH_MAX
    assert directory.new_tsih() == 7
    used |= {7, TSIH_MAX}
    with pytest.raises(AssertionError):
        directory.new_tsih()

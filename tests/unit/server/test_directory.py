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
    assert asyncio.run(directory.redirection(b, "iqn.2026-01.host:one", bytes(6))) is None


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

"""Unit attentions: who owes which, when they are reported, and what they hold back (SAM-5 5.14)."""

import pytest

from san_target.scsi.logical_unit import KNOWN_PORTS_MAX
from san_target.scsi.nexus import Nexus
from tests.unit.scsi.kit import IQN, Rig, cdb_10, run

POWER_ON = (0x6, 0x29, 0x00)
RESET = (0x6, 0x29, 0x03)
NEXUS_LOSS = (0x6, 0x29, 0x07)


def test_a_new_session_owes_power_on_once() -> None:
    rig = Rig()
    nexus = rig.login("new", moved=False)
    assert not nexus.may_read
    assert rig.code("00", nexus=nexus) == POWER_ON
    rig.good("00", nexus=nexus)
    assert nexus.may_read
    assert nexus.may_write


def test_the_same_port_again_owes_nexus_loss() -> None:
    rig = Rig()
    rig.unit.detach(rig.login("again", moved=False))
    assert rig.code("00", nexus=rig.login("again", moved=False)) == NEXUS_LOSS


def test_a_moved_session_owes_nothing() -> None:
    rig = Rig()
    nexus = rig.login("moved", moved=True)
    assert nexus.may_read
    rig.good("00", nexus=nexus)


def test_known_ports_are_bounded() -> None:
    rig = Rig()
    rig.unit.detach(rig.login("oldest"))
    for number in range(KNOWN_PORTS_MAX):
        nexus = Nexus("iqn.2026-01.host:many", number.to_bytes(6, "big"), IQN, 1)
        rig.unit.attach(nexus)
        rig.unit.detach(nexus)
    assert rig.code("00", nexus=rig.login("oldest", moved=False)) == POWER_ON


@pytest.mark.parametrize("cdb", ["12 00 00 00 ff 00", "a0 00 00 000000 00000040"])
def test_inquiry_and_report_luns_leave_it_pending(cdb: str) -> None:
    rig = Rig()
    nexus = rig.login("new", moved=False)
    rig.good(cdb, nexus=nexus)
    assert rig.code("00", nexus=nexus) == POWER_ON


def test_an_unknown_opcode_is_told_first_and_leaves_it_pending() -> None:
    rig = Rig()
    nexus = rig.login("new", moved=False)
    assert rig.code("c0", nexus=nexus) == (0x5, 0x20, 0x00)
    assert rig.code("00", nexus=nexus) == POWER_ON


def test_a_command_that_reports_it_does_nothing_else() -> None:
    rig = Rig()
    nexus = rig.login("new", moved=False)
    assert rig.code(cdb_10(0x2A, 0, 1), b"a" * 512, nexus=nexus) == POWER_ON
    assert rig.device.written == {}


def test_reset_is_told_to_all_and_makes_older_ones_pointless() -> None:
    rig = Rig()
    other = rig.login("other")
    rig.unit.capacity_changed()
    rig.unit.reset()
    for nexus in (rig.nexus, other):
        assert list(nexus.attentions) == [RESET[1:]]
        assert not nexus.may_read
        assert rig.code("00", nexus=nexus) == RESET
        rig.good("00", nexus=nexus)


def test_reset_with_another_code() -> None:
    rig = Rig()
    rig.unit.reset((0x29, 0x02))
    assert rig.code("00") == (0x6, 0x29, 0x02)


def test_reset_starts_a_stopped_unit_and_releases_reserve_6() -> None:
    rig = Rig()
    other = rig.login("other")
    rig.good("16")
    rig.good("1b 00 00 00 00 00")
    assert run(rig.unit.reset_everywhere())
    other.attentions.clear()
    rig.unit.refresh_all()
    rig.good("00", nexus=other)
    assert other.may_write


def test_reset_leaves_an_ejected_medium_out() -> None:
    rig = Rig(removable=True)
    rig.good("1b 00 00 00 02 00")
    rig.unit.reset()
    assert rig.code("00") == RESET
    assert rig.code("00") == (0x2, 0x3A, 0x02)


def test_several_are_told_in_order_and_one_of_a_kind_is_enough() -> None:
    rig = Rig()
    for _ in range(3):
        rig.unit.capacity_changed()
        rig.unit.commands_cleared([rig.nexus])
    assert rig.code("00") == (0x6, 0x2A, 0x09)
    assert not rig.nexus.may_read
    assert rig.code("00") == (0x6, 0x2F, 0x00)
    rig.good("00")


def test_commands_cleared_is_for_the_ones_named() -> None:
    rig = Rig()
    other = rig.login("other")
    rig.unit.commands_cleared([other])
    rig.good("00")
    assert rig.code("00", nexus=other) == (0x6, 0x2F, 0x00)


def test_nexus_loss_releases_what_it_held() -> None:
    rig = Rig()
    other = rig.login("other")
    rig.good("16")
    assert rig.send("00", nexus=other).status == 0x18
    rig.unit.nexus_lost(rig.nexus)
    rig.run_spawned()
    rig.good("00", nexus=other)
    assert rig.code("00") == NEXUS_LOSS


def test_after_detach_nothing_is_executed() -> None:
    rig = Rig()
    rig.unit.detach(rig.nexus)
    assert rig.nexus.fenced
    assert not rig.nexus.may_read
    assert not rig.nexus.may_write
    assert rig.send(cdb_10(0x2A, 0, 1), b"a" * 512).status == 0x40
    assert rig.send("12 00 00 00 ff 00").status == 0x40
    assert rig.device.written == {}
    assert rig.nexus not in rig.unit.nexuses
    rig.unit.capacity_changed()
    assert list(rig.nexus.attentions) == []

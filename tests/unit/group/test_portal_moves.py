"""Where sessions are expected that are on their way from one member to another."""

from san_target.group.portal_group import Login, Tickets, is_random, is_same_port
from san_target.group.portal_moves import EXPECTED_MAX, EXPECTED_S, Expected

OUI = bytes.fromhex("00023d000001")
OTHER = bytes.fromhex("00023d000002")
RANDOM = bytes.fromhex("80123456789a")
RANDOM_AGAIN = bytes.fromhex("80aaaaaaaaaa")


def login(isid: bytes = OUI, name: str = "iqn.x:host") -> Login:
    return Login("iqn.x:disk", name, isid)


def test_it_is_expected_where_it_was_announced_and_for_a_while() -> None:
    expected = Expected()
    assert expected.member_for(login(), 0.0) == ""
    expected.note(login(), "m2", 10.0)
    assert expected.member_for(login(), 9.9) == "m2"
    assert expected.member_for(login(name="iqn.x:other"), 9.9) == ""
    assert expected.member_for(login(), 10.0) == ""
    expected.note(login(), "m2", 20.0)
    expected.note(login(), "m3", 20.0)
    assert expected.member_for(login(), 11.0) == "m3"
    expected.forget(login())
    assert expected.member_for(login(), 11.0) == ""


def test_a_port_that_takes_a_new_isid_for_each_login_is_known_by_its_name() -> None:
    assert (is_random(RANDOM), is_random(OUI)) == (True, False)
    assert is_same_port(RANDOM, RANDOM_AGAIN)
    assert not is_same_port(OUI, OTHER)
    assert not is_same_port(OUI, RANDOM)
    expected = Expected()
    expected.note(login(RANDOM), "m2", 10.0)
    assert expected.member_for(login(RANDOM_AGAIN), 1.0) == "m2"
    assert expected.member_for(login(OUI), 1.0) == ""


def test_what_is_remembered_is_bounded() -> None:
    expected = Expected()
    for number in range(EXPECTED_MAX + 1):
        expected.note(login(name=f"iqn.x:{number}"), "m2", 10.0)
    assert expected.member_for(login(name="iqn.x:0"), 1.0) == ""
    assert expected.member_for(login(name="iqn.x:1"), 1.0) == "m2"


def test_a_ticket_outlasts_the_announcement_and_is_used_up_by_what_it_was_given_for() -> None:
    tickets = Tickets()
    assert tickets.issue(login(RANDOM), 0.0) == ""
    assert tickets.admits(login(RANDOM_AGAIN), EXPECTED_S)
    assert tickets.issue(login(RANDOM_AGAIN), EXPECTED_S + 0.1) == ""  # the next move, a moment later
    assert tickets.issue(login(OUI, "iqn.x:b"), 0.0) == ""
    assert tickets.admits(login(OTHER, "iqn.x:b"), 1.0)
    assert tickets.admits(login(OUI, "iqn.x:b"), 1.0)
    assert not tickets.admits(login(OUI, "iqn.x:b"), 1.0)

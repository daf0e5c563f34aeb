"""Tickets: one login each, one use, ten seconds, and a memory of those that were not used."""

import pytest

from san_target.group.portal_group import TICKET_S, TICKETS_MAX, UNUSED_S, Login, Tickets

ISID = bytes.fromhex("00023d000001")
OTHER_ISID = bytes.fromhex("800000000007")
LOGIN = Login("iqn.2026-01.x:disk", "iqn.2026-01.x:host", ISID)


def other(target: str = LOGIN.target, initiator: str = LOGIN.initiator_name, isid: bytes = ISID) -> Login:
    return Login(target, initiator, isid)


def test_a_ticket_admits_once() -> None:
    tickets = Tickets()
    assert not tickets.admits(LOGIN, 0)
    assert tickets.issue(LOGIN, 0) == ""
    assert tickets.live(0) == 1
    assert tickets.admits(LOGIN, TICKET_S - 0.001)
    assert not tickets.admits(LOGIN, TICKET_S - 0.001)
    assert tickets.live(0) == 0


@pytest.mark.parametrize("stranger", [other(target="iqn.2026-01.x:another"), other(initiator="iqn.2026-01.x:another")])
def test_a_ticket_is_for_one_initiator_and_one_target(stranger: Login) -> None:
    tickets = Tickets()
    tickets.issue(LOGIN, 0)
    assert not tickets.admits(stranger, 1)
    assert tickets.admits(LOGIN, 1)


def test_a_ticket_ends_after_its_time() -> None:
    tickets = Tickets()
    tickets.issue(LOGIN, 0)
    assert tickets.live(TICKET_S - 0.001) == 1
    assert tickets.live(TICKET_S) == 0
    assert not tickets.admits(LOGIN, TICKET_S)


def test_no_second_ticket_while_the_first_is_unused() -> None:
    """The portal may be out of the initiator's reach: it would be sent there again and again, and never be served."""
    tickets = Tickets()
    tickets.issue(LOGIN, 0)
    for now_s in (0, TICKET_S, TICKET_S + UNUSED_S - 0.001):
        assert "not used" in tickets.issue(LOGIN, now_s)
        assert "not used" in tickets.issue(other(isid=OTHER_ISID), now_s)
        assert tickets.issue(other(initiator=f"iqn.2026-01.x:{now_s}"), now_s) == ""
    assert tickets.issue(LOGIN, TICKET_S + UNUSED_S) == ""


def test_a_used_ticket_does_not_count_against_the_next() -> None:
    tickets = Tickets()
    for now_s in range(3):
        assert tickets.issue(LOGIN, now_s) == ""
        assert tickets.admits(LOGIN, now_s)


def test_a_login_that_comes_too_late_was_not_out_of_reach() -> None:
    tickets = Tickets()
    tickets.issue(LOGIN, 0)
    assert not tickets.admits(LOGIN, TICKET_S + 1)
    assert tickets.issue(LOGIN, TICKET_S + 1) == ""


def test_an_initiator_that_changes_its_isid_on_the_way_is_served() -> None:
    tickets = Tickets()
    tickets.issue(LOGIN, 0)
    changed = other(isid=OTHER_ISID)
    assert tickets.admits(changed, 1)
    assert tickets.admits(changed, 2)
    assert tickets.admits(LOGIN, 3)
    assert not tickets.admits(changed, 4)


def test_tickets_are_bounded_and_expired_ones_make_room() -> None:
    tickets = Tickets()
    for number in range(TICKETS_MAX):
        assert tickets.issue(other(initiator=f"iqn.2026-01.x:{number}"), number / TICKETS_MAX) == ""
    assert "too many" in tickets.issue(LOGIN, 1)
    assert tickets.live(1) == TICKETS_MAX
    # One has expired, but still counts against another: it is forgotten for one that may be used.
    assert tickets.issue(LOGIN, TICKET_S) == ""
    assert tickets.live(TICKET_S) == TICKETS_MAX
    assert tickets.admits(LOGIN, TICKET_S)
    assert tickets.admits(other(initiator="iqn.2026-01.x:1"), TICKET_S)
    assert len(tickets._issued) <= TICKETS_MAX


def test_nothing_is_kept_for_ever() -> None:
    tickets = Tickets()
    for number in range(100):
        tickets.issue(other(initiator=f"iqn.2026-01.x:{number}"), 0)
    tickets.issue(LOGIN, TICKET_S + UNUSED_S)
    assert len(tickets._issued) == 1

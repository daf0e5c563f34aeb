"""Every (stage, event) pair of the login phase, against the table of RFC 7143 6.3 written down once more."""

from itertools import product

import pytest

from san_target.session.login import Login
from tests.unit.session.login_support import NAMES, make_login, respond, status, text

# (state, CSG, NSG) that a request with T=1 may have; without T only the CSG counts.
TRANSITIONS = {
    ("start", 0, 1),
    ("start", 0, 3),
    ("start", 1, 3),
    ("security", 0, 1),
    ("security", 0, 3),
    ("operational", 1, 3),
}
STAYS = {("start", 0), ("start", 1), ("security", 0), ("operational", 1)}
STATES = ("start", "security", "operational", "full feature", "refused")


def login_in(state: str) -> Login:
    login = make_login()
    if state == "security":
        respond(login, text(*NAMES), transit=False, current_stage=0)
    elif state == "operational":
        respond(login, text(*NAMES), current_stage=0, next_stage=1)
    elif state == "full feature":
        assert respond(login, text(*NAMES)).transit
    elif state == "refused":
        assert status(respond(login)) == 0x0207
    return login


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("stages", list(product(range(4), range(4))), ids=lambda stages: f"{stages[0]}to{stages[1]}")
@pytest.mark.parametrize("transit", [False, True])
@pytest.mark.parametrize("continue_", [False, True])
def test_every_event_in_every_stage(state: str, stages: tuple[int, int], transit: bool, continue_: bool) -> None:
    current_stage, next_stage = stages
    login = login_in(state)
    response = respond(
        login,
        text(*NAMES) if state == "start" else b"",
        transit=transit,
        continue_=continue_,
        current_stage=current_stage,
        next_stage=next_stage,
    )
    if state in ("full feature", "refused"):
        assert status(response) == 0x020B
        assert not response.transit
        return
    if transit:
        legal = (state, current_stage, next_stage) in TRANSITIONS and not continue_
    else:
        legal = (state, current_stage) in STAYS
    assert status(response) == (0 if legal else 0x0200)
    assert login.failed is not legal
    assert response.transit is (legal and transit)
    assert (login.result is not None) is (legal and transit and next_stage == 3)
    assert not response.continue_
    if legal:
        assert response.current_stage == current_stage
        assert response.next_stage == (next_stage if transit else 0)
        assert response.tsih == (17 if login.result else 0)


@pytest.mark.parametrize("state", STATES)
def test_the_next_request_is_judged_by_the_new_stage(state: str) -> None:
    """After each legal transition exactly the new stage's CSG goes on."""
    for origin, current_stage, next_stage in sorted(TRANSITIONS):
        if origin != state:
            continue
        for following in range(4):
            login = login_in(state)
            data = text(*NAMES) if state == "start" else b""
            assert status(respond(login, data, current_stage=current_stage, next_stage=next_stage)) == 0
            second = respond(login, transit=False, current_stage=following)
            if next_stage == 3:
                assert status(second) == 0x020B
            else:
                assert status(second) == (0 if following == next_stage else 0x0200)

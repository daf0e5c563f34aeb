"""Login beyond transcripts: limits, long texts, names, and what the caller is told."""

import asyncio

import pytest

from san_target.session.keys import is_iscsi_name
from san_target.session.login import LoginRequest, LoginResult
from san_target.session.parameters import TargetLimits
from san_target.session.target import Access, Credentials, Target
from san_target.wire import opcodes, pdus
from tests.unit.session.login_support import (
    DISCOVERY_NAMES,
    INITIATOR,
    ISID,
    NAMES,
    PORTAL,
    TARGET,
    FakeDirectory,
    make_login,
    make_request,
    make_target,
    pairs_of,
    respond,
    status,
    text,
)


def test_request_is_read_from_the_wire() -> None:
    bhs = pdus.build(
        opcodes.LOGIN_REQUEST,
        5,
        transit=True,
        continue_=False,
        current_stage=1,
        next_stage=3,
        version_max=2,
        version_min=1,
        isid=ISID,
        tsih=9,
        initiator_task_tag=0x01020304,
        cid=7,
        cmd_sn=11,
        exp_stat_sn=12,
    )
    request = LoginRequest.parse(bhs, memoryview(b"A=bc\0"))
    assert request == make_request(
        b"A=bc\0", version_max=2, version_min=1, tsih=9, itt=0x01020304, cid=7, cmd_sn=11, exp_stat_sn=12
    )


def test_finish_sees_the_result_before_it_is_official() -> None:
    seen: list[LoginResult] = []

    async def finish(result: LoginResult) -> int | None:
        assert login.result is None
        seen.append(result)
        return 300

    login = make_login()
    login._finish = finish
    response = respond(login, text(*NAMES, "InitiatorAlias=host"), cid=4)
    assert response.tsih == 300
    assert seen == [login.result]
    assert (seen[0].initiator_name, seen[0].isid, seen[0].tsih, seen[0].cid) == (INITIATOR, ISID, 0, 4)
    assert seen[0].initiator_alias == "host"


def test_a_login_that_finish_refuses_has_no_result() -> None:
    login = make_login(tsih=None)
    response = respond(login, text(*NAMES))
    assert status(response) == 0x0302
    assert not response.transit
    assert login.result is None
    assert login.failed


def test_what_the_target_declares_it_declares_once() -> None:
    login = make_login(limits=TargetLimits(max_recv_data_segment_length=65536))
    first = respond(login, text(*NAMES), transit=False)
    assert pairs_of(first) == {"TargetPortalGroupTag": "1", "MaxRecvDataSegmentLength": "65536"}
    assert respond(login).data == b""


def test_requests_are_counted() -> None:
    login = make_login()
    for _ in range(64):
        assert status(respond(login, text(*NAMES) if not login._identified else b"", transit=False)) == 0
    assert status(respond(login)) == 0x0200


def test_text_is_counted() -> None:
    login = make_login()
    sent = 0
    while sent + 8192 <= 65536:
        assert status(respond(login, b"X" * 8192, transit=False, continue_=True)) == 0
        sent += 8192
    assert status(respond(login, b"X", transit=False, continue_=True)) == 0x0200


def test_a_long_answer_is_fetched_in_parts_and_the_transition_waits() -> None:
    # Answers are longer than offers here: 250 keys with an empty value, 55 bytes long as "...=NotUnderstood".
    offers = [f"X-net.example.{'x' * 20}.{number:04}=" for number in range(250)]
    login = make_login()
    half = text(*NAMES, *offers)
    assert status(respond(login, half[:8000], transit=False, continue_=True)) == 0
    response = respond(login, half[8000:])
    received = b""
    while response.continue_:
        assert not response.transit
        assert login.result is None
        assert 0 < len(response.data) <= 8192
        received += response.data
        response = respond(login)
        assert status(response) == 0
    received += response.data
    assert response.transit
    assert login.result is not None
    assert len(received) > 8192
    assert received.count(b"=NotUnderstood\0") == 250
    assert received.endswith(b"MaxRecvDataSegmentLength=1048576\0")


def test_text_while_the_answer_is_fetched_is_an_error() -> None:
    offers = [f"X-net.example.{'x' * 20}.{number:04}=" for number in range(250)]
    login = make_login()
    assert respond(login, text(*NAMES, *offers)).continue_
    assert status(respond(login, text("ImmediateData=No"))) == 0x0200


def test_a_login_is_placed_once_knowing_who_asks_where() -> None:
    directory = FakeDirectory()
    login = make_login(directory)
    respond(login, text(*NAMES), transit=False)
    respond(login)
    assert directory.places_asked == [(TARGET, INITIATOR, ISID, PORTAL)]


CHAP_ALICE = Access(chap=(Credentials("alice", b"alice-secret-1"),))


@pytest.mark.parametrize(
    ("target", "pairs", "fields", "refused_as"),
    [
        (make_target("iqn.2020-01.net.example:another"), NAMES, {}, 0x0203),
        (make_target(access=Access(frozenset({"iqn.2020-01.net.example:other"}))), NAMES, {}, 0x0202),
        (make_target(ready=False), NAMES, {}, 0x0301),
        (make_target(ready=False, access=CHAP_ALICE), (*NAMES, "AuthMethod=CHAP"), {"current_stage": 0}, 0x0301),
        (make_target(), NAMES, {"tsih": 9}, 0x020A),
        (make_target(), NAMES[:2], {"version_min": 1}, 0x0205),
        (make_target(), NAMES[1:], {}, 0x0207),
        (make_target(), (f"InitiatorName={INITIATOR}",), {}, 0x0207),
        (make_target(), ("InitiatorName=no name", *NAMES[1:]), {}, 0x0200),
        (make_target(), (*NAMES[:2], "SessionType=Strange"), {}, 0x0209),
        (make_target(), NAMES, {"next_stage": 2}, 0x0200),
    ],
)
def test_who_cannot_be_served_is_not_sent_elsewhere(
    target: Target, pairs: tuple[str, ...], fields: dict[str, int], refused_as: int
) -> None:
    directory = FakeDirectory([target], redirect_to="192.0.2.7:3260")
    assert status(respond(make_login(directory), text(*pairs), **fields)) == refused_as
    assert directory.places_asked == []


def test_a_discovery_session_is_not_sent_elsewhere() -> None:
    for more in ((), (f"TargetName={TARGET}",)):
        directory = FakeDirectory(redirect_to="192.0.2.7:3260")
        assert status(respond(make_login(directory), text(*DISCOVERY_NAMES, *more))) == 0
        assert directory.places_asked == []


def test_an_initiator_in_the_midst_of_authentication_is_not_sent_elsewhere() -> None:
    directory = FakeDirectory([make_target(access=CHAP_ALICE)])
    login = make_login(directory)
    assert status(respond(login, text(*NAMES, "AuthMethod=CHAP"), transit=False, current_stage=0)) == 0
    directory.redirect_to = "192.0.2.7:3260"
    assert status(respond(login, text("CHAP_A=7"), transit=False, current_stage=0)) == 0
    assert status(respond(login, text("CHAP_N=alice", "CHAP_R=0x00"), transit=False, current_stage=0)) == 0x0201
    assert len(directory.places_asked) == 1


def test_a_target_that_goes_away_while_others_are_asked_takes_no_login() -> None:
    target = make_target()
    directory = FakeDirectory([target], while_asked=lambda: setattr(target, "ready", False))
    assert status(respond(make_login(directory), text(*NAMES))) == 0x0301


def test_nobody_gets_in_without_the_proof() -> None:
    """All stages and transitions, with every AuthMethod but a finished CHAP: never a result."""
    access = Access(chap=(Credentials("alice", b"alice-secret-1"),))
    for stages in ((0, 1), (0, 3), (1, 3)):
        for method in ((), ("AuthMethod=None",), ("AuthMethod=CHAP,None",), ("AuthMethod=KRB5",)):
            login = make_login(FakeDirectory([make_target(access=access)]))
            for data in (text(*NAMES, *method), b"", b""):
                response = respond(login, data, current_stage=stages[0], next_stage=stages[1])
                assert not response.transit
            assert login.result is None


def test_the_reason_is_kept_for_the_log_and_holds_no_secret() -> None:
    access = Access(chap=(Credentials("alice", b"alice-secret-1"),))
    login = make_login(FakeDirectory([make_target(access=access)]))
    respond(login, text(*NAMES, "AuthMethod=CHAP"), transit=False, current_stage=0)
    respond(login, text("CHAP_A=5"), transit=False, current_stage=0)
    response = respond(login, text("CHAP_N=alice", "CHAP_R=0x00"), transit=False, current_stage=0)
    assert status(response) == 0x0201
    assert "alice" in login.reason
    assert "secret-1" not in login.reason


def test_an_error_of_our_own_is_not_hidden_as_a_refusal() -> None:
    async def finish(result: LoginResult) -> int | None:
        raise OSError("the disk is gone")

    login = make_login()
    login._finish = finish
    with pytest.raises(OSError, match="the disk is gone"):
        asyncio.run(login.respond(make_request(text(*NAMES))))
    assert login.result is None


@pytest.mark.parametrize(
    ("name", "valid"),
    [
        ("iqn.1993-08.org.debian:01:abc", True),
        ("iqn.1991-05.com.microsoft:desktop-1.example.net", True),
        ("iqn.2001-04.com.example", True),
        ("iqn.2007-10.com.github:sahlberg:libiscsi:iscsi-test", True),
        ("iqn.2020-01.net.example:host_name", True),
        ("iqn.2020-01.net.example:gerät", True),
        ("eui.0123456789ABCDEF", True),
        ("naa.52004567ba64678d", True),
        ("naa.62004567ba64678d0123456789abcdef", True),
        ("iqn.2020-01.net.example:" + "x" * 199, True),
        ("iqn.2020-01.net.example:" + "x" * 200, False),
        ("iqn.2020-01.net.example:" + "é" * 100, False),
        ("iqn.2020-13.net.example:disk", False),
        ("iqn.2020-1.net.example", False),
        ("iqn.2020-01.", False),
        ("iqn.net.example", False),
        ("IQN.2020-01.net.example", False),
        ("eui.0123456789ABCDE", False),
        ("naa.52004567ba64678d0", False),
        ("naa.52004567ba64678g", False),
        ("iqn.2020-01.net.example:a b", False),
        ("iqn.2020-01.net.example:a,i,0x1", False),
        ("iqn.2020-01.net.example:a\n", False),
        ("iqn.2020-01.net.example:a\u200b", False),
        ("", False),
    ],
)
def test_names(name: str, valid: bool) -> None:
    assert is_iscsi_name(name) is valid

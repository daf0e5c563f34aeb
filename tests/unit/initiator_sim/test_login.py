"""The initiator's side of a login: stages, authentication, negotiation, redirection, and refusals."""

from __future__ import annotations

from typing import Any

import pytest

from initiator_sim.chap import Chap, Credentials, response
from initiator_sim.login import ROUNDS_MAX, LoggedIn, Login, LoginError, LoginRequest, Redirected
from initiator_sim.parameters import NegotiationError, Pair, settle
from initiator_sim.personalities import LIBISCSI, OPEN_ISCSI, PERSONALITIES
from san_target.wire import opcodes, pdus
from san_target.wire.text import decode_pairs, encode_hex, encode_pairs

ISID = b"\x80\1\2\3\4\5"
IQN = "iqn.2026-01.org.example:disk"
NAME = "iqn.2026-01.org.example:host"


def chap(mutual: bool = False, algorithms: tuple[int, ...] = (5, 7)) -> Chap:
    target = Credentials("target", b"other secret") if mutual else None
    return Chap(Credentials("alice", b"secret secret"), target, algorithms, lambda count: bytes(range(1, count + 1)))


class Exchange:
    """A login against answers that the test gives."""

    def __init__(self, **options: Any) -> None:
        keys = options.pop("keys", OPEN_ISCSI.keys)
        self.login = Login(LoginRequest(NAME, ISID, options.pop("iqn", IQN), keys, **options))
        self.login.begin()
        self.stat_sn = 7

    def sent(self) -> tuple[Any, dict[str, str]]:
        raw = self.login.outgoing.pop(0)
        header = pdus.parse(raw[:48])
        return header, dict(decode_pairs(raw[48 : 48 + header.data_segment_length]))

    def answer(self, pairs: list[Pair] | None = None, **fields: Any) -> None:
        data = encode_pairs(pairs or [])
        usual = {"isid": ISID, "stat_sn": self.stat_sn, "exp_cmd_sn": 1, "max_cmd_sn": 32, "tsih": 0}
        self.stat_sn += 1
        self.login.receive(pdus.build(opcodes.LOGIN_RESPONSE, len(data), **(usual | fields)), data)

    def to_operational(self) -> None:
        self.answer([("AuthMethod", "None")], transit=True, current_stage=0, next_stage=1)

    def finish(self, pairs: list[Pair] | None = None) -> LoggedIn:
        self.answer(pairs, transit=True, current_stage=1, next_stage=3, tsih=9)
        assert isinstance(self.login.result, LoggedIn)
        return self.login.result


def test_a_login_without_authentication() -> None:
    exchange = Exchange()
    header, keys = exchange.sent()
    assert (header.immediate, header.transit, header.current_stage, header.next_stage) == (True, True, 0, 1)
    assert keys == {
        "InitiatorName": NAME,
        "TargetName": IQN,
        "SessionType": "Normal",
        "AuthMethod": "None",
    }
    exchange.to_operational()
    header, keys = exchange.sent()
    assert (header.current_stage, header.next_stage, header.exp_stat_sn) == (1, 3, 8)
    assert keys == dict(OPEN_ISCSI.keys)
    result = exchange.finish([("MaxBurstLength", "262144"), ("InitialR2T", "No"), ("MaxRecvDataSegmentLength", "8192")])
    assert (result.tsih, result.cmd_sn, result.exp_stat_sn, result.max_cmd_sn) == (9, 1, 9, 32)
    parameters = result.parameters
    assert (parameters.max_burst_length, parameters.initial_r2t) == (262144, False)
    assert (parameters.max_send_data_segment_length, parameters.max_recv_data_segment_length) == (8192, 262144)


def test_straight_to_the_operational_stage() -> None:
    exchange = Exchange(security_first=False, keys=LIBISCSI.keys)
    header, keys = exchange.sent()
    assert (header.current_stage, header.next_stage) == (1, 3)
    assert "AuthMethod" not in keys
    assert keys["HeaderDigest"] == "None,CRC32C"


def test_more_rounds_when_the_target_is_not_ready() -> None:
    exchange = Exchange(security_first=False)
    exchange.sent()
    exchange.answer([("X-org.example.key", "1"), ("MaxConnections", "1")], current_stage=1)
    header, keys = exchange.sent()
    assert keys == {"X-org.example.key": "NotUnderstood"}
    assert header.transit
    exchange.finish()


def test_an_answer_in_several_parts() -> None:
    exchange = Exchange(security_first=False)
    exchange.sent()
    exchange.answer([("MaxBurstLength", "4096")], current_stage=1, continue_=True)
    header, keys = exchange.sent()
    assert (keys, header.transit) == ({}, False)
    result = exchange.finish([("FirstBurstLength", "1024")])
    assert (result.parameters.max_burst_length, result.parameters.first_burst_length) == (4096, 1024)


def test_a_redirection_comes_before_authentication() -> None:
    exchange = Exchange(chap=chap())
    exchange.answer([("TargetAddress", "192.0.2.1:3261,1")], status_class=1, status_detail=1)
    assert exchange.login.result == Redirected("192.0.2.1:3261", permanent=False)


def test_a_redirection_without_an_address() -> None:
    exchange = Exchange()
    with pytest.raises(LoginError, match="without TargetAddress"):
        exchange.answer(status_class=1, status_detail=1)


@pytest.mark.parametrize(("status", "final"), [(0x0201, True), (0x0203, True), (0x0301, False)])
def test_a_refusal(status: int, final: bool) -> None:
    exchange = Exchange()
    with pytest.raises(LoginError) as caught:
        exchange.answer(status_class=status >> 8, status_detail=status & 0xFF)
    assert (caught.value.status, caught.value.final) == (status, final)


def challenge(exchange: Exchange, algorithm: int = 7) -> dict[str, str]:
    exchange.sent()
    exchange.answer([("AuthMethod", "CHAP")], current_stage=0)
    header, keys = exchange.sent()
    assert keys == {"CHAP_A": "5,7"}
    assert not header.transit
    exchange.answer([("CHAP_A", str(algorithm)), ("CHAP_I", "200"), ("CHAP_C", encode_hex(bytes(16)))], current_stage=0)
    header, keys = exchange.sent()
    assert header.transit
    assert keys["CHAP_N"] == "alice"
    assert keys["CHAP_R"] == encode_hex(response(algorithm, 200, b"secret secret", bytes(16)))
    return keys


def test_one_way_chap() -> None:
    exchange = Exchange(chap=chap())
    assert "CHAP_C" not in challenge(exchange)
    exchange.answer(transit=True, current_stage=0, next_stage=1)
    exchange.sent()
    exchange.finish()


def prove(keys: dict[str, str], secret: bytes) -> list[Pair]:
    """The target's proof for the initiator's challenge."""
    answer = response(7, int(keys["CHAP_I"]), secret, bytes.fromhex(keys["CHAP_C"][2:]))
    return [("CHAP_N", "target"), ("CHAP_R", encode_hex(answer))]


def test_mutual_chap() -> None:
    exchange = Exchange(chap=chap(mutual=True))
    keys = challenge(exchange)
    exchange.answer(prove(keys, b"other secret"), transit=True, current_stage=0, next_stage=1)
    exchange.sent()
    exchange.finish()


@pytest.mark.parametrize("proof", ["wrong", "none"])
def test_a_target_that_proves_nothing_is_left(proof: str) -> None:
    exchange = Exchange(chap=chap(mutual=True))
    keys = challenge(exchange)
    pairs = prove(keys, b"wrong secret") if proof == "wrong" else []
    with pytest.raises(LoginError, match="CHAP"):
        exchange.answer(pairs, transit=True, current_stage=0, next_stage=1)


def test_an_algorithm_that_was_not_offered() -> None:
    exchange = Exchange(chap=chap(algorithms=(7,)))
    exchange.answer([("AuthMethod", "CHAP")], current_stage=0)
    with pytest.raises(LoginError, match="not offered"):
        exchange.answer([("CHAP_A", "5"), ("CHAP_I", "1"), ("CHAP_C", "0x00")], current_stage=0)


def test_a_target_may_not_skip_the_authentication() -> None:
    exchange = Exchange(chap=chap())
    with pytest.raises(LoginError):
        exchange.answer([("AuthMethod", "None")], transit=True, current_stage=0, next_stage=1)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"isid": b"\x80\0\0\0\0\0"}, "ISID"),
        ({"initiator_task_tag": 4}, "initiator task tag"),
        ({"current_stage": 1}, "stage 1"),
        ({"version_active": 1}, "version"),
    ],
)
def test_an_answer_to_somebody_else(fields: dict[str, Any], complaint: str) -> None:
    exchange = Exchange()
    with pytest.raises(LoginError, match=complaint):
        exchange.answer([("AuthMethod", "None")], **({"transit": True, "next_stage": 1} | fields))


def test_the_status_number_is_counted() -> None:
    exchange = Exchange()
    exchange.to_operational()
    exchange.stat_sn += 1
    with pytest.raises(LoginError, match="StatSN"):
        exchange.finish()


def test_a_login_without_an_end() -> None:
    exchange = Exchange(security_first=False)
    for _ in range(ROUNDS_MAX):
        exchange.answer(current_stage=1)
    with pytest.raises(LoginError, match="no end"):
        exchange.answer(current_stage=1)


@pytest.mark.parametrize(
    ("offer", "answer", "field", "value"),
    [
        ("InitialR2T=No", "Yes", "initial_r2t", True),
        ("InitialR2T=No", "No", "initial_r2t", False),
        ("InitialR2T=Yes", None, "initial_r2t", True),
        ("ImmediateData=Yes", "No", "immediate_data", False),
        ("ImmediateData=No", None, "immediate_data", False),
        ("MaxBurstLength=16776192", "262144", "max_burst_length", 262144),
        ("MaxBurstLength=4096", "8192", "max_burst_length", 4096),
        ("MaxBurstLength=16776192", "Reject", "max_burst_length", 262144),
        ("DefaultTime2Wait=2", "0", "default_time2wait_s", 2),
        ("DefaultTime2Retain=0", "20", "default_time2retain_s", 0),
        ("HeaderDigest=CRC32C,None", "CRC32C", "header_digest", True),
        ("HeaderDigest=CRC32C,None", "None", "header_digest", False),
        ("MaxOutstandingR2T=16", "8", "max_outstanding_r2t", 8),
    ],
)
def test_what_offer_and_answer_make(offer: str, answer: str | None, field: str, value: object) -> None:
    key, _, offered = offer.partition("=")
    assert getattr(settle({key: offered}, {} if answer is None else {key: answer}), field) == value


@pytest.mark.parametrize(
    ("key", "offer", "answer"),
    [
        ("HeaderDigest", "None", "CRC32C"),
        ("MaxBurstLength", "262144", "511"),
        ("MaxBurstLength", "262144", "many"),
        ("InitialR2T", "No", "Maybe"),
    ],
)
def test_an_answer_that_no_offer_allows(key: str, offer: str, answer: str) -> None:
    with pytest.raises(NegotiationError, match=key):
        settle({key: offer}, {key: answer})


@pytest.mark.parametrize("personality", PERSONALITIES.values(), ids=lambda one: one.name)
def test_every_personality_offers_what_the_rules_know(personality: Any) -> None:
    own = dict(personality.keys)
    assert len(own) == len(personality.keys)
    settle(own, {key: value.split(",")[0] for key, value in own.items()})
    assert set(personality.reactions) == set(range(5))

"""CHAP: algorithms, challenges, formats, and the order of steps. Whole logins are in the transcripts."""

import base64
import hashlib

import pytest

from san_target.session.chap import AuthenticationError, Chap, Step
from san_target.session.negotiation import NegotiationError
from san_target.session.target import Access, Credentials
from tests.unit.session.login_support import CountingBytes

HASHES = {"5": "md5", "6": "sha1", "7": "sha256", "8": "sha3_256"}
ALICE = Credentials("alice", b"alice-secret-1")
BOB = Credentials("bob", b"bob-secret-12345")
TARGET = Credentials("target", b"target-secret-1")


def make_chap(weak: bool = True, mutual: Credentials | None = TARGET) -> Chap:
    return Chap(Access(chap=(ALICE, BOB), mutual_chap=mutual), CountingBytes(), weak)


def proof(algorithm: str, identifier: int, secret: bytes, challenge: bytes) -> bytes:
    return hashlib.new(HASHES[algorithm], bytes([identifier]) + secret + challenge).digest()


def challenged(chap: Chap, algorithms: str) -> tuple[str, int, bytes]:
    answer = dict(chap.receive({"CHAP_A": algorithms}))
    assert set(answer) == {"CHAP_A", "CHAP_I", "CHAP_C"}
    return answer["CHAP_A"], int(answer["CHAP_I"]), bytes.fromhex(answer["CHAP_C"].removeprefix("0x"))


@pytest.mark.parametrize("algorithm", HASHES)
@pytest.mark.parametrize("user", [ALICE, BOB], ids=lambda user: user.user)
@pytest.mark.parametrize("coded", ["hex", "base64"])
def test_both_sides_prove_themselves(algorithm: str, user: Credentials, coded: str) -> None:
    chap = make_chap()
    chosen, identifier, challenge = challenged(chap, algorithm)
    assert chosen == algorithm
    assert len(challenge) >= 16
    own_challenge = bytes(range(100, 150))

    def encode(data: bytes) -> str:
        return "0X" + data.hex().upper() if coded == "hex" else "0b" + base64.b64encode(data).decode()

    answer = dict(
        chap.receive(
            {
                "CHAP_N": user.user,
                "CHAP_R": encode(proof(algorithm, identifier, user.secret, challenge)),
                "CHAP_I": "0x07",
                "CHAP_C": encode(own_challenge),
            }
        )
    )
    assert answer == {"CHAP_N": "target", "CHAP_R": "0x" + proof(algorithm, 7, TARGET.secret, own_challenge).hex()}
    assert chap.step is Step.DONE
    assert chap.user == user.user


@pytest.mark.parametrize(
    ("offer", "weak", "chosen"),
    [
        ("5", True, "5"),
        ("7,5", True, "7"),
        ("5,7", True, "5"),
        ("5,7", False, "7"),
        ("6,8,7", False, "8"),
        ("4,9,0x7", True, "7"),
        ("5,6", False, None),
        ("4", True, None),
    ],
)
def test_choice_of_algorithm(offer: str, weak: bool, chosen: str | None) -> None:
    chap = make_chap(weak)
    if chosen is None:
        with pytest.raises(AuthenticationError):
            chap.receive({"CHAP_A": offer})
    else:
        assert challenged(chap, offer)[0] == chosen


def test_challenges_come_from_the_given_source_and_differ() -> None:
    source = CountingBytes()
    access = Access(chap=(ALICE,))
    first, second = (challenged(Chap(access, source), "5") for _ in range(2))
    assert first[2] != second[2]


def test_a_proof_is_bound_to_its_user_and_challenge() -> None:
    for secret, identifier_shift, name in (
        (BOB.secret, 0, "alice"),
        (ALICE.secret, 1, "alice"),
        (ALICE.secret, 0, "bob"),
    ):
        chap = make_chap()
        _, identifier, challenge = challenged(chap, "7")
        response = proof("7", identifier + identifier_shift, secret, challenge)
        with pytest.raises(AuthenticationError):
            chap.receive({"CHAP_N": name, "CHAP_R": "0x" + response.hex()})
        assert chap.user is None
        assert chap.step is not Step.DONE


def test_an_unknown_user_with_an_empty_secret_is_refused() -> None:
    chap = make_chap()
    _, identifier, challenge = challenged(chap, "7")
    with pytest.raises(AuthenticationError):
        chap.receive({"CHAP_N": "mallory", "CHAP_R": "0x" + proof("7", identifier, b"", challenge).hex()})
    assert chap.user is None


def answered(chap: Chap, **extra: str) -> None:
    _, identifier, challenge = challenged(chap, "7")
    chap.receive({"CHAP_N": "alice", "CHAP_R": "0x" + proof("7", identifier, ALICE.secret, challenge).hex(), **extra})


@pytest.mark.parametrize(
    "extra",
    [
        {"CHAP_I": "1"},
        {"CHAP_C": "0x00"},
        {"CHAP_I": "256", "CHAP_C": "0x00"},
        {"CHAP_I": "-1", "CHAP_C": "0x00"},
        {"CHAP_I": "1", "CHAP_C": "0x"},
        {"CHAP_I": "1", "CHAP_C": "text"},
        {"CHAP_I": "1", "CHAP_C": "0x" + "00" * 1025},
        {"CHAP_I": "1", "CHAP_C": "0x00", "CHAP_A": "7"},
    ],
)
def test_bad_challenges(extra: dict[str, str]) -> None:
    chap = make_chap()
    with pytest.raises(NegotiationError):
        answered(chap, **extra)
    assert chap.user is None


def test_refusals_of_mutual_chap_leave_nobody_authenticated() -> None:
    for mutual, challenge in (
        (None, bytes(16)),
        (Credentials("target", ALICE.secret), bytes(16)),
        (TARGET, bytes(range(2, 34))),  # the target's own challenge, as CountingBytes makes it
    ):
        chap = make_chap(mutual=mutual)
        with pytest.raises(AuthenticationError):
            answered(chap, CHAP_I="9", CHAP_C="0x" + challenge.hex())
        assert chap.user is None
        assert chap.step is not Step.DONE


@pytest.mark.parametrize("keys", [{"CHAP_A": "7"}, {"CHAP_N": "alice"}, {"CHAP_N": "alice", "CHAP_R": "0x00"}, {}])
def test_nothing_follows_the_end(keys: dict[str, str]) -> None:
    chap = make_chap()
    answered(chap)
    if keys:
        with pytest.raises(NegotiationError):
            chap.receive(keys)
    assert chap.user == "alice"

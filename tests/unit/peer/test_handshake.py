"""The handshake: what is refused, with which words; proofs that cannot be made without the secret, or used again."""

import msgspec
import pytest
from crc32c import crc32c

from san_target.peer import handshake
from san_target.peer.frames import FrameError
from san_target.peer.handshake import (
    MESSAGE_HEADER,
    Answering,
    Calling,
    Code,
    HandshakeStream,
    Hello,
    Offer,
    Proof,
    Refused,
    Standing,
    Step,
    Terms,
    Welcome,
    judge,
)
from san_target.peer.identity import OwnIdentity
from san_target.peer.lanes import LIMITS

GROUP = "a-group"
SECRET = b"32 random bytes, more or less..."
A = OwnIdentity(GROUP, SECRET, "a", 3)
B = OwnIdentity(GROUP, SECRET, "b", 7)
NONCE_A, NONCE_B = bytes(range(32)), bytes(range(100, 132))
STANDING = Standing(known=3, ended=2)

HELLO = Hello(
    versions=(1, 1),
    group_id=GROUP,
    member="a",
    incarnation=3,
    peer="b",
    peer_incarnation=7,
    purpose="requests",
    nonce=NONCE_A,
)


def payload(message: bytes) -> bytes:
    found = HandshakeStream().received(memoryview(message))
    assert found is not None
    return found


def answering(own: OwnIdentity | None = B, standing: Standing = STANDING, nonce: bytes = NONCE_B) -> Answering:
    return Answering(own, lambda name: standing, nonce)


def test_two_members_of_a_group() -> None:
    caller, answerer = Calling(A, "b", 7, NONCE_A), answering()
    offer = answerer.receive(payload(caller.hello()))
    proof = caller.receive(payload(offer))
    assert not caller.welcome
    assert answerer.receive(payload(proof)) == b""
    assert answerer.step is Step.PROVEN
    assert answerer.hello == HELLO
    assert caller.receive(payload(handshake.encode(Welcome(5, LIMITS)))) == b""
    assert caller.welcome == Welcome(5, LIMITS)
    for message in (caller.hello(), offer, proof):
        assert SECRET not in message


@pytest.mark.parametrize("versions", [(1, 1), (1, 9), (0, 1)])
def test_versions_that_meet(versions: tuple[int, int]) -> None:
    judge(msgspec.structs.replace(HELLO, versions=versions), B, STANDING)


REFUSALS = [
    ({"versions": (2, 4)}, STANDING, Code.VERSION, "speaks versions 2 to 4 of the peer protocol, this one 1 to 1"),
    ({"versions": (0, 0)}, STANDING, Code.VERSION, "upgrade the older program"),
    ({"versions": (2, 0)}, STANDING, Code.VERSION, "speaks versions 2 to 0"),
    ({"group_id": "other"}, STANDING, Code.GROUP, "belongs to another group; check --store"),
    ({"purpose": "gossip"}, STANDING, Code.PURPOSE, "no links for 'gossip'"),
    ({"member": "b"}, STANDING, Code.SAME_NAME, "called 'b' too; give one another --name"),
    ({"peer": "c"}, STANDING, Code.WRONG_MEMBER, "this is member 'b', not 'c'; check their --peer"),
    ({"peer_incarnation": 6}, STANDING, Code.WRONG_INCARNATION, "incarnation 6 of member 'b' was asked for, this is 7"),
    ({"peer_incarnation": 8}, STANDING, Code.WRONG_INCARNATION, "incarnation 8 of member 'b' was asked for, this is 7"),
    ({}, Standing(None, 0), Code.UNKNOWN_MEMBER, "'a' is no member of the group"),
    ({}, Standing(4, 0), Code.OLD_INCARNATION, "incarnation 3 of member 'a' has ended"),
    ({}, Standing(3, 3), Code.OLD_INCARNATION, "incarnation 3 of member 'a' has ended"),
]


@pytest.mark.parametrize(("change", "standing", "code", "text"), REFUSALS)
def test_refusals(change: dict[str, object], standing: Standing, code: Code, text: str) -> None:
    """The answerer says why, and the caller passes it on."""
    hello = msgspec.structs.replace(HELLO, **change)
    with pytest.raises(Refused, match=text) as caught:
        answering(standing=standing).receive(payload(handshake.encode(hello)))
    assert caught.value.code is code
    assert caught.value.refusal is not None
    with pytest.raises(Refused, match=text) as heard:
        Calling(A, "b", 7, NONCE_A).receive(payload(handshake.encode(caught.value.refusal)))
    assert heard.value.code is code
    assert heard.value.refusal is None


def test_every_rule_has_a_refusal_in_the_table() -> None:
    assert [code for code, _ in handshake.RULES] == list(dict.fromkeys(code for _, _, code, _ in REFUSALS))


def test_a_newer_life_than_the_view_knows_is_welcome() -> None:
    judge(HELLO, B, Standing(known=1, ended=2))


def test_a_member_that_has_not_joined_yet() -> None:
    with pytest.raises(Refused, match="has not joined the group yet") as caught:
        answering(own=None).receive(payload(Calling(A, "b", 7, NONCE_A).hello()))
    assert caught.value.code is Code.NOT_READY


def test_a_caller_without_the_secret() -> None:
    stranger = Calling(A._replace(secret=b"guessed"), "b", 7, NONCE_A)
    answerer = answering()
    offer = answerer.receive(payload(stranger.hello()))
    with pytest.raises(Refused, match="does not know the secret of this group") as caught:
        stranger.receive(payload(offer))  # nor is the answerer's proof worth anything to it
    assert caught.value.code is Code.SECRET
    with pytest.raises(Refused, match="secrets differ") as refused:
        answerer.receive(payload(handshake.encode(Proof(bytes(32)))))
    assert refused.value.code is Code.SECRET
    assert answerer.step is not Step.PROVEN


def test_an_answerer_without_the_secret() -> None:
    caller = Calling(A, "b", 7, NONCE_A)
    offer = answering(own=B._replace(secret=b"guessed")).receive(payload(caller.hello()))
    with pytest.raises(Refused, match="does not know the secret"):
        caller.receive(payload(offer))


@pytest.mark.parametrize(
    ("own", "text"),
    [(B._replace(name="c"), "it is incarnation 7 of member 'c'"), (B._replace(incarnation=8), "it is incarnation 8")],
)
def test_an_answerer_that_is_somebody_else(own: OwnIdentity, text: str) -> None:
    """It knows the secret but should have refused; the caller looks for itself."""
    caller = Calling(A, "b", 7, NONCE_A)
    hello = payload(caller.hello())
    terms = msgspec.msgpack.encode(Terms(1, own.name, own.incarnation, NONCE_B))
    proof = handshake._proof(handshake._ANSWERER, SECRET, hello, terms)
    with pytest.raises(Refused, match=text):
        caller.receive(payload(handshake.encode(Offer(terms, proof))))


def test_an_answerer_that_chooses_an_unknown_version() -> None:
    caller = Calling(A, "b", 7, NONCE_A)
    terms = msgspec.msgpack.encode(Terms(9, "b", 7, NONCE_B))
    proof = handshake._proof(handshake._ANSWERER, SECRET, payload(caller.hello()), terms)
    with pytest.raises(Refused, match="version 9"):
        caller.receive(payload(handshake.encode(Offer(terms, proof))))


def test_a_proof_cannot_be_used_again() -> None:
    caller, answerer = Calling(A, "b", 7, NONCE_A), answering()
    proof = caller.receive(payload(answerer.receive(payload(caller.hello()))))
    again = answering(nonce=bytes(32))
    again.receive(payload(caller.hello()))
    with pytest.raises(Refused, match="secrets differ"):
        again.receive(payload(proof))


def test_a_proof_cannot_be_sent_back() -> None:
    """What an answerer proves to a caller must be of no use to that caller."""
    answerer = answering()
    offer = msgspec.msgpack.decode(payload(answerer.receive(payload(Calling(A, "b", 7, NONCE_A).hello()))), type=Offer)
    with pytest.raises(Refused, match="secrets differ"):
        answerer.receive(payload(handshake.encode(Proof(offer.proof))))


@pytest.mark.parametrize("field", ["member", "incarnation", "nonce", "group_id"])
def test_what_was_claimed_cannot_be_changed_on_the_way(field: str) -> None:
    values = {"member": "c", "incarnation": 4, "nonce": bytes(32), "group_id": GROUP + " "}
    caller = Calling(A, "b", 7, NONCE_A)
    hello = handshake.encode(msgspec.structs.replace(HELLO, **{field: values[field]}))
    answerer = answering(own=B._replace(group_id=str(values["group_id"])) if field == "group_id" else B)
    with pytest.raises(Refused, match="does not know the secret"):
        caller.receive(payload(answerer.receive(payload(hello))))


@pytest.mark.parametrize(
    "order",
    [
        ("proof",),
        ("welcome",),
        ("hello", "hello"),
        ("hello", "welcome"),
        ("hello", "proof", "proof"),
        ("hello", "proof", "hello"),
    ],
)
def test_out_of_order_at_the_answerer(order: tuple[str, ...]) -> None:
    caller, answerer = Calling(A, "b", 7, NONCE_A), answering()
    offer = answering().receive(payload(caller.hello()))
    messages = {
        "hello": caller.hello(),
        "proof": caller.receive(payload(offer)),
        "welcome": handshake.encode(Welcome(1, LIMITS)),
    }
    for name in order[:-1]:
        answerer.receive(payload(messages[name]))
    with pytest.raises(FrameError, match="out of order"):
        answerer.receive(payload(messages[order[-1]]))


@pytest.mark.parametrize("order", [("welcome",), ("hello",), ("offer", "offer"), ("offer", "welcome", "welcome")])
def test_out_of_order_at_the_caller(order: tuple[str, ...]) -> None:
    caller = Calling(A, "b", 7, NONCE_A)
    messages = {
        "hello": caller.hello(),
        "offer": answering().receive(payload(caller.hello())),
        "welcome": handshake.encode(Welcome(1, LIMITS)),
    }
    for name in order[:-1]:
        caller.receive(payload(messages[name]))
    with pytest.raises(FrameError, match="out of order"):
        caller.receive(payload(messages[order[-1]]))


# --- The stream -------------------------------------------------------------------------------------------------------


def wrapped(body: bytes, magic: bytes = handshake.MAGIC) -> bytes:
    return magic + len(body).to_bytes(2, "big") + crc32c(body).to_bytes(4, "big") + body


def test_messages_in_pieces() -> None:
    stream = HandshakeStream()
    for _ in range(2):
        found = [stream.received(memoryview(bytes((byte,)))) for byte in wrapped(b"abc")]
        assert found == [None] * (len(found) - 1) + [b"abc"]


def test_the_declaration_agrees() -> None:
    message = Calling(A, "b", 7, NONCE_A).hello()
    header = MESSAGE_HEADER.parse(message)
    body = message[MESSAGE_HEADER.sizeof() :]
    assert (header.payload_bytes, header.payload_crc) == (len(body), crc32c(body))


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        (b"\x16\x03\x01\x02\x00\x01", "another protocol"),
        (b"G", "another protocol"),
        (b"GET / HTTP/1.1\r\n" * 1000, "another protocol"),
        (b"SANQ", "another protocol"),
        (wrapped(b"abc") + b"x", "too much"),
        (wrapped(bytes(3000)), "too much"),
        (wrapped(bytes(2049))[:20], "too much"),
        (wrapped(b"abc")[:-1] + b"d", "damaged message"),
    ],
)
def test_what_is_no_handshake(sent: bytes, text: str) -> None:
    with pytest.raises(FrameError, match=text):
        HandshakeStream().received(memoryview(sent))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode({"type": "hello"}),
        msgspec.msgpack.encode({"type": "other"}),
        msgspec.msgpack.encode({"type": "proof", "proof": bytes(31)}),
        msgspec.msgpack.encode({**msgspec.to_builtins(HELLO), "nonce": b"short"}),
        msgspec.msgpack.encode({**msgspec.to_builtins(HELLO), "incarnation": -1}),
        msgspec.msgpack.encode({**msgspec.to_builtins(HELLO), "member": "m" * 65}),
        b"\x81\xa4type\xff",
    ],
)
def test_damaged_messages(body: bytes) -> None:
    with pytest.raises(FrameError, match="damaged message"):
        answering().receive(body)
    with pytest.raises(FrameError, match="damaged message"):
        Calling(A, "b", 7, NONCE_A).receive(body)


def test_damaged_terms() -> None:
    with pytest.raises(FrameError, match="damaged message"):
        Calling(A, "b", 7, NONCE_A).receive(payload(handshake.encode(Offer(b"\xc1", bytes(32)))))

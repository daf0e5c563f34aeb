"""How two members come to trust a link: both prove that they know the group's secret, each over both sides' random
numbers and everything that was claimed; neither sends the secret. Pure; randomness is handed in.

    caller                                   answerer
    Hello: versions, group, who, whom, nonce
                                             Offer: version, who, nonce, and its proof
    Proof
                                             Welcome: credits, tick      (or a Refusal at any point)

The answerer may let the caller wait for its Welcome until the requests of an earlier link have ended. Nothing else may
be sent before. What follows is authenticated only by the connection being the same: where strangers can insert packets
into the members' network, links need TLS.
"""

import hmac
from collections.abc import Callable
from enum import Enum, auto
from struct import Struct
from typing import Annotated, Any, Final, NamedTuple

import construct  # type: ignore[import-untyped]
import msgspec
from construct import Const, Int16ub, Int32ub
from crc32c import crc32c
from msgspec import Meta

from san_target.peer.frames import FrameError
from san_target.peer.identity import OwnIdentity
from san_target.peer.lanes import Lanes

MAGIC: Final = b"SANP"
VERSION_OLDEST: Final = 1
VERSION_NEWEST: Final = 1
PURPOSE_REQUESTS: Final = "requests"
NONCE_BYTES: Final = 32
MESSAGE_BYTES_MAX: Final = 2048
_PROOF_BYTES: Final = 32
_ANSWERER: Final = b"san-target peer link, answerer\0"
_CALLER: Final = b"san-target peer link, caller\0"

MESSAGE_HEADER: Final = construct.Struct(
    "magic" / Const(MAGIC),
    "payload_bytes" / Int16ub,
    "payload_crc" / Int32ub,  # CRC32C
)
_HEADER: Final = Struct(">4sHI")

_Name = Annotated[str, Meta(min_length=1, max_length=64)]
_Number = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
_Nonce = Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
_ProofBytes = Annotated[bytes, Meta(min_length=_PROOF_BYTES, max_length=_PROOF_BYTES)]


class Code(Enum):
    """Why a link is refused."""

    VERSION = "version"
    GROUP = "group"
    PURPOSE = "purpose"
    SAME_NAME = "same-name"
    WRONG_MEMBER = "wrong-member"
    WRONG_INCARNATION = "wrong-incarnation"
    UNKNOWN_MEMBER = "unknown-member"
    OLD_INCARNATION = "old-incarnation"
    SECRET = "secret"
    NOT_READY = "not-ready"
    BUSY = "busy"


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """versions: the oldest and the newest that the caller speaks; peer, peer_incarnation: whom it wants to reach."""

    versions: tuple[_Number, _Number]
    group_id: _Name
    member: _Name
    incarnation: _Number
    peer: _Name
    peer_incarnation: _Number
    purpose: Annotated[str, Meta(max_length=64)]
    nonce: _Nonce


class Terms(msgspec.Struct, frozen=True):
    """What the answerer claims; sent encoded, since the proofs are over these very bytes."""

    version: _Number
    member: _Name
    incarnation: _Number
    nonce: _Nonce


class Offer(msgspec.Struct, frozen=True, tag="offer"):
    terms: Annotated[bytes, Meta(max_length=512)]
    proof: _ProofBytes


class Proof(msgspec.Struct, frozen=True, tag="proof"):
    proof: _ProofBytes


class Welcome(msgspec.Struct, frozen=True, tag="welcome"):
    """lanes: the credits, in the order of `lanes.LaneName`; tick: the answerer's."""

    tick: _Number
    lanes: Lanes


class Refusal(msgspec.Struct, frozen=True, tag="refusal"):
    code: Code
    reason: Annotated[str, Meta(max_length=512)]


_Message = Hello | Offer | Proof | Welcome | Refusal
_encode: Final = msgspec.msgpack.Encoder().encode
_decoder: Final = msgspec.msgpack.Decoder(_Message)
_terms_decoder: Final = msgspec.msgpack.Decoder(Terms)


class Refused(Exception):
    """The link cannot be. The message is for people; `refusal` is to be sent to the other side first, if any."""

    def __init__(self, code: Code, reason: str, send: bool = False) -> None:
        super().__init__(reason)
        self.code = code
        self.refusal = Refusal(code, reason[:512]) if send else None


# --- On the wire ------------------------------------------------------------------------------------------------------


def encode(message: _Message) -> bytes:
    """A handshake message with its header."""
    payload = _encode(message)
    return _HEADER.pack(MAGIC, len(payload), crc32c(payload)) + payload


def _decode(payload: bytes) -> Any:
    try:
        return _decoder.decode(payload)
    except msgspec.DecodeError:
        raise FrameError("damaged message in the handshake") from None


class HandshakeStream:
    """Cuts the payloads of handshake messages out of a stream; holds at most one message."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = b""

    def received(self, data: memoryview) -> bytes | None:
        """The payload of the message that `data` completes; None: it has not arrived in full.

        Whoever sends two messages at once breaks the protocol, as each is an answer. Raises FrameError.
        """
        if len(self._held) + len(data) > _HEADER.size + MESSAGE_BYTES_MAX:
            self._check_magic(self._held + bytes(data[: len(MAGIC)]))
            raise FrameError("too much was sent in the handshake")
        held = self._held + bytes(data)
        self._check_magic(held)
        if len(held) < _HEADER.size:
            self._held = held
            return None
        _magic, payload_bytes, payload_crc = _HEADER.unpack_from(held)
        end = _HEADER.size + payload_bytes
        if payload_bytes > MESSAGE_BYTES_MAX or len(held) > end:
            raise FrameError("too much was sent in the handshake")
        if len(held) < end:
            self._held = held
            return None
        self._held = b""
        payload = held[_HEADER.size :]
        if crc32c(payload) != payload_crc:
            raise FrameError("damaged message in the handshake")
        return payload

    @staticmethod
    def _check_magic(held: bytes) -> None:
        beginning = held[: len(MAGIC)]
        if beginning != MAGIC[: len(beginning)]:
            raise FrameError("another protocol is spoken there")


# --- Proofs -----------------------------------------------------------------------------------------------------------


def _proof(role: bytes, secret: bytes, hello: bytes, terms: bytes) -> bytes:
    """The role is part of it, so that no proof can be sent back; both inputs have their length before them."""
    content = role + len(hello).to_bytes(4, "big") + hello + len(terms).to_bytes(4, "big") + terms
    return hmac.digest(secret, content, "sha256")


# --- The answerer -----------------------------------------------------------------------------------------------------


class Standing(NamedTuple):
    """What the answerer knows of a caller's name. known: its incarnation in the membership view, None = no member;
    ended: this incarnation of it and older ones have ended or are fenced."""

    known: int | None
    ended: int


def _version(hello: Hello, _own: OwnIdentity, _standing: Standing) -> str:
    oldest, newest = hello.versions
    if oldest <= VERSION_NEWEST and newest >= VERSION_OLDEST and oldest <= newest:
        return ""
    return (
        f"member {hello.member!r} speaks versions {oldest} to {newest} of the peer protocol, this one "
        f"{VERSION_OLDEST} to {VERSION_NEWEST}; upgrade the older program"
    )


def _group(hello: Hello, own: OwnIdentity, _standing: Standing) -> str:
    return "" if hello.group_id == own.group_id else "this member belongs to another group; check --store and --peer"


def _purpose(hello: Hello, _own: OwnIdentity, _standing: Standing) -> str:
    return "" if hello.purpose == PURPOSE_REQUESTS else f"there are no links for {hello.purpose!r} here"


def _same_name(hello: Hello, own: OwnIdentity, _standing: Standing) -> str:
    return f"this member is called {own.name!r} too; give one another --name" if hello.member == own.name else ""


def _wrong_member(hello: Hello, own: OwnIdentity, _standing: Standing) -> str:
    return "" if hello.peer == own.name else f"this is member {own.name!r}, not {hello.peer!r}; check their --peer"


def _wrong_incarnation(hello: Hello, own: OwnIdentity, _standing: Standing) -> str:
    if hello.peer_incarnation == own.incarnation:
        return ""
    return f"incarnation {hello.peer_incarnation} of member {own.name!r} was asked for, this is {own.incarnation}"


def _unknown_member(hello: Hello, _own: OwnIdentity, standing: Standing) -> str:
    return "" if standing.known is not None else f"{hello.member!r} is no member of the group that is known here"


def _old_incarnation(hello: Hello, _own: OwnIdentity, standing: Standing) -> str:
    # A newer one than known is right: the membership view may lag behind.
    if hello.incarnation > standing.ended and hello.incarnation >= (standing.known or 0):
        return ""
    return f"incarnation {hello.incarnation} of member {hello.member!r} has ended"


RULES: Final[tuple[tuple[Code, Callable[[Hello, OwnIdentity, Standing], str]], ...]] = (
    (Code.VERSION, _version),
    (Code.GROUP, _group),
    (Code.PURPOSE, _purpose),
    (Code.SAME_NAME, _same_name),
    (Code.WRONG_MEMBER, _wrong_member),
    (Code.WRONG_INCARNATION, _wrong_incarnation),
    (Code.UNKNOWN_MEMBER, _unknown_member),
    (Code.OLD_INCARNATION, _old_incarnation),
)
"""What a Hello must satisfy, in this order: why not, or ""."""


def judge(hello: Hello, own: OwnIdentity, standing: Standing) -> None:
    """Raises Refused, with the refusal to send."""
    for code, rule in RULES:
        if reason := rule(hello, own, standing):
            raise Refused(code, reason, send=True)


class Step(Enum):
    HELLO = auto()
    PROOF = auto()
    PROVEN = auto()


class Answering:
    """The answerer's half. `hello` is what the caller claims, and true once `step` is PROVEN."""

    __slots__ = ("_expected", "_nonce", "_own", "_standing", "hello", "step")

    def __init__(self, own: OwnIdentity | None, standing: Callable[[str], Standing], nonce: bytes) -> None:
        """own: None while this member has no incarnation; nonce: NONCE_BYTES random bytes."""
        self._own = own
        self._standing = standing
        self._nonce = nonce
        self._expected = b""
        self.hello: Hello | None = None
        self.step = Step.HELLO

    def receive(self, payload: bytes) -> bytes:
        """What to send for the payload of a message, b"" = nothing now. Raises FrameError, Refused."""
        message = _decode(payload)
        if self.step is Step.HELLO and isinstance(message, Hello):
            return self._offer(message, payload)
        if self.step is Step.PROOF and isinstance(message, Proof):
            self._check(message)
            return b""
        raise FrameError("message out of order in the handshake")

    def _offer(self, hello: Hello, payload: bytes) -> bytes:
        own = self._own
        if own is None:
            raise Refused(Code.NOT_READY, "this member has not joined the group yet", send=True)
        judge(hello, own, self._standing(hello.member))
        version = min(VERSION_NEWEST, hello.versions[1])
        terms = _encode(Terms(version, own.name, own.incarnation, self._nonce))
        self._expected = _proof(_CALLER, own.secret, payload, terms)
        self.hello = hello
        self.step = Step.PROOF
        return encode(Offer(terms, _proof(_ANSWERER, own.secret, payload, terms)))

    def _check(self, proof: Proof) -> None:
        if self.hello is None or not hmac.compare_digest(proof.proof, self._expected):
            raise Refused(Code.SECRET, "the two members' secrets differ; both must use the same --store", send=True)
        self.step = Step.PROVEN


# --- The caller -------------------------------------------------------------------------------------------------------


class Calling:
    """The caller's half. `welcome` is set when the link may be used."""

    __slots__ = ("_hello", "_own", "_peer", "_peer_incarnation", "_proved", "welcome")

    def __init__(self, own: OwnIdentity, peer: str, peer_incarnation: int, nonce: bytes) -> None:
        """nonce: NONCE_BYTES random bytes."""
        self._own = own
        self._peer = peer
        self._peer_incarnation = peer_incarnation
        self._proved = False
        self._hello = Hello(
            versions=(VERSION_OLDEST, VERSION_NEWEST),
            group_id=own.group_id,
            member=own.name,
            incarnation=own.incarnation,
            peer=peer,
            peer_incarnation=peer_incarnation,
            purpose=PURPOSE_REQUESTS,
            nonce=nonce,
        )
        self.welcome: Welcome | None = None

    def hello(self) -> bytes:
        """The first message."""
        return encode(self._hello)

    def receive(self, payload: bytes) -> bytes:
        """What to send for the payload of a message, b"" = nothing now. Raises FrameError, Refused."""
        message = _decode(payload)
        if isinstance(message, Refusal):
            raise Refused(message.code, message.reason)
        if isinstance(message, Offer) and not self._proved:
            return self._prove(message)
        if isinstance(message, Welcome) and self._proved and self.welcome is None:
            self.welcome = message
            return b""
        raise FrameError("message out of order in the handshake")

    def _prove(self, offer: Offer) -> bytes:
        try:
            terms = _terms_decoder.decode(offer.terms)
        except msgspec.DecodeError:
            raise FrameError("damaged message in the handshake") from None
        hello = _encode(self._hello)
        if not hmac.compare_digest(offer.proof, _proof(_ANSWERER, self._own.secret, hello, offer.terms)):
            raise Refused(Code.SECRET, "it does not know the secret of this group; check its --store")
        if (terms.member, terms.incarnation) != (self._peer, self._peer_incarnation):
            raise Refused(Code.WRONG_MEMBER, f"it is incarnation {terms.incarnation} of member {terms.member!r}")
        if not VERSION_OLDEST <= terms.version <= VERSION_NEWEST:
            raise Refused(Code.VERSION, f"it chose version {terms.version} of the peer protocol, unknown here")
        self._proved = True
        return encode(Proof(_proof(_CALLER, self._own.secret, hello, offer.terms)))

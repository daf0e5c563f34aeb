"""CHAP as iSCSI uses it (RFC 7143 12.1.3, RFC 1994), on the target's side: a table of two steps.

The target always checks the initiator; it proves itself only if the initiator asks (mutual CHAP). Secrets never leave
this module, and what was expected is never said.
"""

import hashlib
import hmac
from collections.abc import Callable, Mapping
from enum import Enum, auto
from typing import Final

from san_target.session.negotiation import NegotiationError, Pair
from san_target.session.target import Access, Credentials
from san_target.wire.errors import TextError
from san_target.wire.text import decode_binary, decode_number, encode_hex

# CHAP_A values registered with IANA ("PPP authentication algorithms"; 6 to 8 for iSCSI).
ALGORITHMS: Final[Mapping[int, str]] = {5: "md5", 6: "sha1", 7: "sha256", 8: "sha3_256"}
WEAK_ALGORITHMS: Final = frozenset({5, 6})
CHALLENGE_BYTES_MIN: Final = 16
CHALLENGE_BYTES_MAX: Final = 1024
"""RFC 7143 12.1.3: CHAP_C and CHAP_R must not exceed 1024 bytes."""


class AuthenticationError(Exception):
    """The initiator could not be authenticated; the message is for the operator and holds no secret."""


class Step(Enum):
    ALGORITHM = auto()
    RESPONSE = auto()
    DONE = auto()


# What each step must hold, and what it may hold besides (all of it or nothing): RFC 7143 12.1.3.
STEP_KEYS: Final[Mapping[Step, tuple[frozenset[str], frozenset[str]]]] = {
    Step.ALGORITHM: (frozenset({"CHAP_A"}), frozenset()),
    Step.RESPONSE: (frozenset({"CHAP_N", "CHAP_R"}), frozenset({"CHAP_I", "CHAP_C"})),
    Step.DONE: (frozenset(), frozenset()),
}


def digest(algorithm: int, identifier: int, secret: bytes, challenge: bytes) -> bytes:
    """The response to a challenge (RFC 1994 4.1); identifier is 0 to 255."""
    content = bytes((identifier,)) + secret + challenge
    return hashlib.new(ALGORITHMS[algorithm], content, usedforsecurity=False).digest()


class Chap:
    """One authentication. `step` is DONE and `user` set once the initiator has proved who it is."""

    __slots__ = ("_access", "_algorithm", "_challenge", "_identifier", "_random_bytes", "_weak", "step", "user")

    def __init__(self, access: Access, random_bytes: Callable[[int], bytes], weak: bool = True) -> None:
        self._access = access
        self._random_bytes = random_bytes
        self._weak = weak
        self._algorithm = 0
        self._identifier = 0
        self._challenge = b""
        self.step = Step.ALGORITHM
        self.user: str | None = None

    def receive(self, keys: Mapping[str, str]) -> list[Pair]:
        """Answer the CHAP keys of one request.

        Raises NegotiationError for keys that are not this step's or malformed, AuthenticationError for a refusal.
        """
        required, optional = STEP_KEYS[self.step]
        if keys.keys() not in (required, required | optional):
            raise NegotiationError(f"{', '.join(sorted(keys))} out of order (RFC 7143 12.1.3)")
        try:
            return self._choose(keys) if self.step is Step.ALGORITHM else self._check(keys)
        except TextError as error:
            raise NegotiationError(f"malformed CHAP value: {error}") from None

    def _choose(self, keys: Mapping[str, str]) -> list[Pair]:
        ours = ALGORITHMS.keys() if self._weak else ALGORITHMS.keys() - WEAK_ALGORITHMS
        chosen = next((number for number in map(decode_number, keys["CHAP_A"].split(",")) if number in ours), None)
        if chosen is None:
            raise AuthenticationError(f"no CHAP algorithm of {keys['CHAP_A'][:64]!r} is allowed here")
        self._algorithm = chosen
        self._identifier = self._random_bytes(1)[0]
        size = max(CHALLENGE_BYTES_MIN, hashlib.new(ALGORITHMS[self._algorithm], usedforsecurity=False).digest_size)
        self._challenge = self._random_bytes(size)
        self.step = Step.RESPONSE
        return [("CHAP_A", str(chosen)), ("CHAP_I", str(self._identifier)), ("CHAP_C", encode_hex(self._challenge))]

    def _check(self, keys: Mapping[str, str]) -> list[Pair]:
        response = decode_binary(keys["CHAP_R"])
        user = self._credentials(keys["CHAP_N"])
        # An unknown user costs the same work as a wrong secret, and gets the same answer.
        expected = digest(self._algorithm, self._identifier, user.secret if user else b"", self._challenge)
        if not hmac.compare_digest(response, expected) or user is None:
            raise AuthenticationError(f"CHAP user {keys['CHAP_N'][:64]!r}: unknown name or wrong secret")
        answer = self._prove(keys, user) if "CHAP_C" in keys else []
        self.user = user.user
        self.step = Step.DONE
        return answer

    def _credentials(self, name: str) -> Credentials | None:
        return next((known for known in self._access.chap if known.user == name), None)

    def _prove(self, keys: Mapping[str, str], user: Credentials) -> list[Pair]:
        """The target's half of mutual CHAP."""
        identifier = decode_number(keys["CHAP_I"])
        challenge = decode_binary(keys["CHAP_C"])
        if identifier > 255 or not 1 <= len(challenge) <= CHALLENGE_BYTES_MAX:
            raise NegotiationError("CHAP_I or CHAP_C out of range (RFC 7143 12.1.3)")
        if hmac.compare_digest(challenge, self._challenge):
            # RFC 7143 12.1.3: a challenge sent back is an attempt to let this target compute the answer to it.
            raise AuthenticationError("the initiator sent this target's own challenge back")
        own = self._access.mutual_chap
        if own is None:
            raise AuthenticationError("the initiator asks for mutual CHAP, for which no credentials are set")
        if hmac.compare_digest(own.secret, user.secret):
            # RFC 7143 12.1.3: the same secret both ways would make reflection possible.
            raise AuthenticationError("the CHAP secrets of both directions are the same; set different ones")
        proof = digest(self._algorithm, identifier, own.secret, challenge)
        return [("CHAP_N", own.user), ("CHAP_R", encode_hex(proof))]

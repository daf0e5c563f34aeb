"""CHAP on the initiator's side (RFC 7143 12.1.3, RFC 1994): prove a name, and, for mutual CHAP, check the target's."""

import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from initiator_sim.parameters import Pair
from san_target.wire.text import TextError, decode_binary, decode_number, encode_hex

ALGORITHMS: Final[Mapping[int, str]] = {5: "md5", 6: "sha1", 7: "sha256", 8: "sha3_256"}
"""CHAP_A values for iSCSI and their hash."""
_CHALLENGE_BYTES: Final = 32


class ChapError(Exception):
    """The target's part of the exchange is malformed, or it could not prove who it is."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user's name and secret."""

    user: str
    secret: bytes


def response(algorithm: int, identifier: int, secret: bytes, challenge: bytes) -> bytes:
    """RFC 1994 4.1: the hash of identifier (one byte), secret and challenge."""
    return hashlib.new(ALGORITHMS[algorithm], bytes((identifier,)) + secret + challenge, usedforsecurity=False).digest()


class Chap:
    """One authentication: `offer`, then `answer` to the challenge, then `check` what the target sends back.

    mutual: what the target must prove; None = nothing. `algorithms` in order of preference.
    """

    def __init__(
        self,
        credentials: Credentials,
        mutual: Credentials | None,
        algorithms: Sequence[int],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._credentials = credentials
        self._mutual = mutual
        self._algorithms = tuple(algorithms)
        self._random_bytes = random_bytes
        self._algorithm = 0
        self._identifier = 0
        self._challenge = b""

    def offer(self) -> list[Pair]:
        return [("CHAP_A", ",".join(map(str, self._algorithms)))]

    def answer(self, keys: Mapping[str, str]) -> list[Pair]:
        """Our response to CHAP_A, CHAP_I, CHAP_C. Raises ChapError."""
        try:
            algorithm, identifier = decode_number(keys["CHAP_A"]), decode_number(keys["CHAP_I"])
            challenge = decode_binary(keys["CHAP_C"])
        except (KeyError, TextError) as error:
            raise ChapError(f"malformed challenge: {error}") from None
        if algorithm not in self._algorithms or identifier > 255:
            raise ChapError(f"algorithm {algorithm} or identifier {identifier} was not offered")
        proof = response(algorithm, identifier, self._credentials.secret, challenge)
        pairs = [("CHAP_N", self._credentials.user), ("CHAP_R", encode_hex(proof))]
        if self._mutual is not None:
            self._algorithm = algorithm
            self._identifier = self._random_bytes(1)[0]
            self._challenge = self._random_bytes(_CHALLENGE_BYTES)
            if self._challenge == challenge:
                raise ChapError("a challenge was used twice")  # RFC 7143 12.1.3: no reuse of the other's challenge
            pairs += [("CHAP_I", str(self._identifier)), ("CHAP_C", encode_hex(self._challenge))]
        return pairs

    def check(self, keys: Mapping[str, str]) -> None:
        """Hold the target to mutual CHAP, if that was asked for. Raises ChapError."""
        if self._mutual is None:
            return
        if "CHAP_N" not in keys or "CHAP_R" not in keys:
            raise ChapError("the target did not prove who it is")
        try:
            proof = decode_binary(keys["CHAP_R"])
        except TextError as error:
            raise ChapError(f"malformed response: {error}") from None
        expected = response(self._algorithm, self._identifier, self._mutual.secret, self._challenge)
        if not hmac.compare_digest(proof, expected) or keys["CHAP_N"] != self._mutual.user:
            raise ChapError("the target gave a wrong name or secret")

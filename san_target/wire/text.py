"""The key=value text of Login and Text PDUs (RFC 7143 6.1), with limits. Knows no key: meanings are `session`'s."""

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from san_target.wire.errors import TextError as TextError

if TYPE_CHECKING:
    from typing_extensions import Buffer

TEXT_BYTES_MAX: Final = 64 * 1024
"""The longest logical text data segment, which may have come in several PDUs."""
KEYS_MAX: Final = 256
KEY_BYTES_MAX: Final = 63
VALUE_BYTES_MAX: Final = 255
"""One text value. A list of values may be longer, each of its values not (RFC 7143 6.1)."""
LONG_VALUE_BYTES_MAX: Final = 8192
"""A list of values, or a large binary value as written: RFC 7143 12.1.3 allows 1024 bytes of CHAP challenge."""
DECIMAL_MAX: Final = (1 << 64) - 1
"""RFC 7143 6.1: a decimal constant is less than 2**64."""

# A standard-label must begin with a capital letter; this is not held against it, since an unknown key has a proper
# answer (NotUnderstood). "#" came with the registered X# extension keys of RFC 3720.
_KEY: Final = re.compile(rb"[A-Za-z][A-Za-z0-9.\-+@_#]*")
_BINARY: Final = re.compile(rb"0[xX][0-9a-fA-F]+|0[bB][A-Za-z0-9+/]+={0,2}")
_HEX: Final = re.compile(r"0[xX]([0-9a-fA-F]+)")
_BASE64: Final = re.compile(r"0[bB]([A-Za-z0-9+/]+={0,2})")
_DECIMAL: Final = re.compile(r"0|[1-9][0-9]{0,19}")


def decode_pairs(data: "Buffer") -> list[tuple[str, str]]:
    """The (key, value) pairs of one logical text data segment, in the order sent; a repeated key is left to the caller.

    `data` is the whole segment (the data of all PDUs joined, where the C bit split it), without PDU padding. Every pair
    must end with a NUL; more NULs than one are skipped, as some senders pad with them. A value is what follows the
    first "=", and may be empty. Raises TextError for anything else than UTF-8 pairs within the limits above.
    """
    text = bytes(data)
    if len(text) > TEXT_BYTES_MAX:
        raise TextError(f"text of {len(text)} bytes, more than {TEXT_BYTES_MAX}")
    if not text:
        return []
    if text[-1] != 0:
        raise TextError("the last pair does not end with NUL")
    pairs = [pair for pair in text.split(b"\0") if pair]
    if len(pairs) > KEYS_MAX:
        raise TextError(f"{len(pairs)} pairs, more than {KEYS_MAX}")
    return [_decode_pair(pair) for pair in pairs]


def _decode_pair(pair: bytes) -> tuple[str, str]:
    key, equals, value = pair.partition(b"=")
    if not equals:
        raise TextError(f"no '=' in {_shown(pair)}")
    if len(key) > KEY_BYTES_MAX or not _KEY.fullmatch(key):
        raise TextError(f"not a key: {_shown(key)}")
    if len(value) > VALUE_BYTES_MAX:
        _check_long_value(key, value)
    try:
        return key.decode("ascii"), value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextError(f"the value of {_shown(key)} is not UTF-8") from error


def _check_long_value(key: bytes, value: bytes) -> None:
    if len(value) > LONG_VALUE_BYTES_MAX:
        raise TextError(f"the value of {_shown(key)} has {len(value)} bytes, more than {LONG_VALUE_BYTES_MAX}")
    if not _BINARY.fullmatch(value) and any(len(item) > VALUE_BYTES_MAX for item in value.split(b",")):
        raise TextError(f"the value of {_shown(key)} is longer than {VALUE_BYTES_MAX} bytes")


def _shown(foreign: bytes) -> str:
    """Foreign bytes in a message: short, and harmless to a terminal or log."""
    return repr(foreign[:40])[1:]


def encode_pairs(pairs: Iterable[tuple[str, str]]) -> bytes:
    """The bytes of the pairs, each ended by NUL, without PDU padding.

    Held to the same limits as `decode_pairs`: raises TextError for what a strict receiver would refuse, so that no
    reply is ever cut or reinterpreted by a NUL or "=" in a name.
    """
    encoded = [_encode_pair(key, value) for key, value in pairs]
    if len(encoded) > KEYS_MAX:
        raise TextError(f"more than {KEYS_MAX} pairs")
    data = b"".join(encoded)
    if len(data) > TEXT_BYTES_MAX:
        raise TextError(f"text of {len(data)} bytes, more than {TEXT_BYTES_MAX}")
    return data


def _encode_pair(key: str, value: str) -> bytes:
    if "\0" in key or "\0" in value:
        raise TextError("a NUL inside a pair")
    pair = f"{key}={value}".encode()
    _decode_pair(pair)
    return pair + b"\0"


def split_text(data: bytes, segment_bytes_max: int) -> Sequence[bytes]:
    """The text cut into data segments of at most segment_bytes_max (> 0) bytes: all but the last go out with the C bit.

    At least one segment, which may be empty.
    """
    return [data[start : start + segment_bytes_max] for start in range(0, max(len(data), 1), segment_bytes_max)]


def decode_binary(value: str) -> bytes:
    """The bytes of a binary value: hex constant 0x.., base64 constant 0b.., or decimal constant (RFC 7143 6.1).

    A hex constant with an odd number of digits has a leading zero digit; a decimal constant gives its big-endian bytes
    without leading zeros, at least one byte. Raises TextError for anything else.
    """
    if found := _HEX.fullmatch(value):
        digits = found[1]
        return bytes.fromhex(digits if len(digits) % 2 == 0 else "0" + digits)
    if found := _BASE64.fullmatch(value):
        encoded = found[1].rstrip("=")
        try:
            # Some senders leave the "=" padding away; what they mean is still certain.
            return base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
        except binascii.Error as error:
            raise TextError("not a base64 constant") from error
    number = _decimal(value)
    if number is None:
        raise TextError("not a binary value")
    return number.to_bytes(max(1, (number.bit_length() + 7) // 8), "big")


def decode_number(value: str) -> int:
    """A numerical value, 0 to 2**64 - 1: decimal constant or hex constant (RFC 7143 6.1). Raises TextError."""
    found = _HEX.fullmatch(value)
    number = int(found[1], 16) if found and len(found[1]) <= LONG_VALUE_BYTES_MAX else _decimal(value)
    if number is None or number > DECIMAL_MAX:
        raise TextError("not a number")
    return number


def _decimal(value: str) -> int | None:
    if not _DECIMAL.fullmatch(value):
        return None
    number = int(value)
    return number if number <= DECIMAL_MAX else None


def encode_hex(data: bytes) -> str:
    """A hex constant, as every initiator understands it."""
    return "0x" + data.hex()

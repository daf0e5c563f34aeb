"""Additional header segments: RFC 7143 11.2.2."""

import pytest

from san_target.wire.ahs import AdditionalHeader, ExpectedBidirectionalReadLength, ExtendedCdb, build_ahs, parse_ahs
from san_target.wire.errors import PduError

# A 32-byte CDB: 16 bytes beyond the header, AHSLength = 32 - 15, padded to 20 bytes. Then a read length of 512.
EXTENDED = "0011 01 00" + "5a" * 16
BIDIRECTIONAL = "0005 02 00 00000200"


def test_both_kinds() -> None:
    data = bytes.fromhex(EXTENDED + BIDIRECTIONAL)
    headers: list[AdditionalHeader] = [ExtendedCdb(b"\x5a" * 16), ExpectedBidirectionalReadLength(512)]
    assert parse_ahs(data) == headers
    assert build_ahs(*headers) == data


def test_none() -> None:
    assert parse_ahs(b"") == []
    assert build_ahs() == b""


def test_padding_is_not_part_of_a_cdb() -> None:
    data = build_ahs(ExtendedCdb(b"\x01"))
    assert data.hex() == "0002010001000000"
    assert parse_ahs(data[:-3] + b"\xff\xff\xff") == [ExtendedCdb(b"\x01")]


def test_reserved_bits_are_ignored() -> None:
    assert parse_ahs(bytes.fromhex("0005 c2 ff 00000200")) == [ExpectedBidirectionalReadLength(512)]


def test_the_longest_cdb() -> None:
    tail = bytes(range(244))
    assert parse_ahs(build_ahs(ExtendedCdb(tail))) == [ExtendedCdb(tail)]
    with pytest.raises(PduError, match="extended CDB"):
        parse_ahs(build_ahs(ExtendedCdb(tail + b"x")))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("000101", "words"),
        ("00000100", "AHSLength 0"),
        ("00110100" + "5a" * 12, "AHSLength 17"),
        ("ffff0100", "AHSLength 65535"),
        ("00010100", "extended CDB"),
        ("0004020000000200", "AHSLength 4"),
        ("0009020000000200" + "00000000", "AHSLength 9"),
        ("0005000000000200", "reserved type 0"),
        ("0005030000000200", "reserved type 3"),
        ("00053f0000000200", "reserved type 63"),
        (BIDIRECTIONAL * 2, "two additional headers"),
        ("00000000" * 256, "more than 1020"),
        (BIDIRECTIONAL + "00000000", "AHSLength 0"),
    ],
)
def test_malformed(data: str, why: str) -> None:
    with pytest.raises(PduError, match=why):
        parse_ahs(bytes.fromhex(data))

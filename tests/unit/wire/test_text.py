"""Text segments: RFC 7143 6.1."""

import pytest

from san_target.wire.text import (
    KEYS_MAX,
    LONG_VALUE_BYTES_MAX,
    TEXT_BYTES_MAX,
    TextError,
    decode_binary,
    decode_number,
    decode_pairs,
    encode_hex,
    encode_pairs,
    split_text,
)


def test_pairs_in_order_with_repeats() -> None:
    data = b"InitiatorName=iqn.2026-01.example:a\0SessionType=Normal\0A=1\0A=2\0"
    pairs = [("InitiatorName", "iqn.2026-01.example:a"), ("SessionType", "Normal"), ("A", "1"), ("A", "2")]
    assert decode_pairs(data) == pairs
    assert encode_pairs(pairs) == data


def test_a_value_may_be_empty_or_hold_equals_signs() -> None:
    assert decode_pairs(b"A=\0B=x=y=\0") == [("A", ""), ("B", "x=y=")]


def test_no_text() -> None:
    assert decode_pairs(b"") == []
    assert encode_pairs([]) == b""


def test_more_nuls_than_needed_are_skipped() -> None:
    assert decode_pairs(memoryview(b"\0A=1\0\0B=2\0\0\0")) == [("A", "1"), ("B", "2")]


def test_utf8_values() -> None:
    assert decode_pairs("TargetAlias=Größe 磁盘\0".encode()) == [("TargetAlias", "Größe 磁盘")]


def test_extension_keys() -> None:
    assert decode_pairs(b"X-com.example.speed=9\0X#Node=1\0") == [("X-com.example.speed", "9"), ("X#Node", "1")]


def test_limits_are_inclusive() -> None:
    text = b"K" * 63 + b"=" + b"v" * 255 + b"\0"
    assert decode_pairs(text) == [("K" * 63, "v" * 255)]
    assert len(decode_pairs(b"A=1\0" * KEYS_MAX)) == KEYS_MAX


@pytest.mark.parametrize(
    "value",
    [
        "0x" + "ab" * 1024,
        "0b" + "QUJD" * 300,
        ",".join(["v" * 255] * 8),
        "0x" + "0" * (LONG_VALUE_BYTES_MAX - 2),
    ],
)
def test_binary_values_and_lists_may_be_long(value: str) -> None:
    assert decode_pairs(f"K={value}\0".encode()) == [("K", value)]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"A=1", "NUL"),
        (b"A\0", "no '='"),
        (b"=1\0", "not a key"),
        (b"A B=1\0", "not a key"),
        (b"1A=1\0", "not a key"),
        (b"A\n=1\0", "not a key"),
        ("Ä=1\0".encode(), "not a key"),
        (b"K" * 64 + b"=1\0", "not a key"),
        (b"K=" + b"v" * 256 + b"\0", "longer than 255"),
        (b"K=" + b"v" * 256 + b",v\0", "longer than 255"),
        (b"K=0x" + b"g" * 256 + b"\0", "longer than 255"),
        (b"K=0x" + b"0" * (LONG_VALUE_BYTES_MAX - 1) + b"\0", "more than 8192"),
        (b"A=\xff\0", "UTF-8"),
        (b"A=\xed\xa0\x80\0", "UTF-8"),
        (b"A=1\0" * (KEYS_MAX + 1), "pairs"),
        (b"\0" * (TEXT_BYTES_MAX + 1), "more than 65536"),
    ],
)
def test_malformed(data: bytes, why: str) -> None:
    with pytest.raises(TextError, match=why):
        decode_pairs(data)


def test_a_message_shows_foreign_bytes_harmlessly() -> None:
    with pytest.raises(TextError) as caught:
        decode_pairs(b"\x1b[2Jkey\r\n" + b"x" * 1000 + b"=1\0")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("pair", [("A", "x\0B=y"), ("A\0", "x"), ("", "x"), ("A", "v" * 256), ("A", "ä" * 200)])
def test_pairs_that_nobody_could_read_are_not_sent(pair: tuple[str, str]) -> None:
    with pytest.raises(TextError):
        encode_pairs([pair])


def test_too_much_is_not_sent() -> None:
    with pytest.raises(TextError, match="pairs"):
        encode_pairs([("A", "1")] * (KEYS_MAX + 1))
    with pytest.raises(TextError, match="bytes"):
        encode_pairs([("A", "0x" + "00" * 4000)] * 9)


def test_splitting() -> None:
    assert split_text(b"abcdefg", 3) == [b"abc", b"def", b"g"]
    assert split_text(b"abc", 3) == [b"abc"]
    assert split_text(b"", 3) == [b""]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0x0102", "0102"),
        ("0XaBcD", "abcd"),
        ("0x102", "0102"),
        ("0x0", "00"),
        ("0x000001", "000001"),
        ("0bAAEC", "000102"),
        ("0BAA==", "00"),
        ("0bAA", "00"),
        ("0", "00"),
        ("255", "ff"),
        ("256", "0100"),
        ("18446744073709551615", "ff" * 8),
    ],
)
def test_binary_values(value: str, expected: str) -> None:
    assert decode_binary(value).hex() == expected


@pytest.mark.parametrize(
    "value",
    [
        *("", "0x", "0b", "0xg0", "x10", "-1", "+1", "01", "1.5", " 1", "1\n", "0x10\n", "٣", "Yes"),
        *("0b=", "0bA", "0bA===", "0b AAEC", "0bAA_-", "18446744073709551616", "1" * 5000),
    ],
)
def test_malformed_binary_values(value: str) -> None:
    with pytest.raises(TextError):
        decode_binary(value)


@pytest.mark.parametrize(("value", "expected"), [("0", 0), ("8192", 8192), ("0x2000", 8192), ("0X0010", 16)])
def test_numbers(value: str, expected: int) -> None:
    assert decode_number(value) == expected


@pytest.mark.parametrize("value", ["", "0x", "0bAAEC", "010", "-1", "1_0", "18446744073709551616", "0x1" + "0" * 16])
def test_malformed_numbers(value: str) -> None:
    with pytest.raises(TextError):
        decode_number(value)


def test_hex_constants() -> None:
    assert encode_hex(b"\x00\xab\xcd") == "0x00abcd"
    assert decode_binary(encode_hex(b"\x00\xab\xcd")) == b"\x00\xab\xcd"

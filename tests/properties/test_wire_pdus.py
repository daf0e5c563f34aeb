"""Whatever bytes come, header, additional header and text parsers give a value or their own error; values survive."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from san_target.wire.ahs import ExpectedBidirectionalReadLength, ExtendedCdb, build_ahs, parse_ahs
from san_target.wire.errors import PduError, TextError
from san_target.wire.pdus import FIELDS, SPECS, build, int_to_lun, lun_to_int, parse
from san_target.wire.text import (
    LONG_VALUE_BYTES_MAX,
    VALUE_BYTES_MAX,
    decode_binary,
    decode_number,
    decode_pairs,
    encode_hex,
    encode_pairs,
    split_text,
)


@given(st.binary(max_size=96))
def test_a_header_parses_or_is_refused(data: bytes) -> None:
    try:
        parsed: Any = parse(data)
    except PduError:
        assert len(data) < 48 or data[0] & 0x3F not in SPECS
        return
    fields = {name: parsed[name] for name in FIELDS[parsed.opcode] if name != "opcode"}
    again = build(parsed.opcode, **fields)
    assert parse(again) == parsed
    # Only reserved bits can differ, and they are written as zero.
    assert all(new & ~old == 0 for new, old in zip(again, data, strict=False))


@given(st.sampled_from(sorted(SPECS)), st.binary(min_size=47, max_size=47))
def test_every_known_opcode_parses(opcode: int, rest: bytes) -> None:
    parsed: Any = parse(bytes([opcode]) + rest)
    assert parsed.opcode == opcode
    assert parsed.data_segment_length == int.from_bytes(rest[4:7], "big")


HEADERS = st.lists(
    st.one_of(
        st.builds(ExtendedCdb, st.binary(min_size=1, max_size=244)),
        st.builds(ExpectedBidirectionalReadLength, st.integers(0, 0xFFFFFFFF)),
    ),
    max_size=2,
    unique_by=type,
)


@given(HEADERS)
def test_additional_headers_survive(headers: list[ExtendedCdb | ExpectedBidirectionalReadLength]) -> None:
    data = build_ahs(*headers)
    assert len(data) % 4 == 0
    assert parse_ahs(data) == headers


@given(st.one_of(st.binary(max_size=1100), st.integers(0, 40).flatmap(lambda words: st.binary(max_size=4 * words))))
def test_additional_headers_parse_or_are_refused(data: bytes) -> None:
    try:
        headers = parse_ahs(data)
    except PduError:
        return
    assert len(build_ahs(*headers)) == len(data)


@given(st.binary(min_size=8, max_size=8))
def test_a_lun_names_a_unit_or_none(lun: bytes) -> None:
    number = lun_to_int(lun)
    assert number is None or 0 <= number < 16384


@given(st.integers(0, 16383))
def test_luns_survive(number: int) -> None:
    assert lun_to_int(int_to_lun(number)) == number


KEYS = st.from_regex(r"[A-Z][A-Za-z0-9.\-+@_]{0,62}", fullmatch=True)
VALUES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=63)
PAIRS = st.lists(st.tuples(KEYS, VALUES), max_size=30)


@given(PAIRS)
def test_pairs_survive(pairs: list[tuple[str, str]]) -> None:
    assert decode_pairs(encode_pairs(pairs)) == pairs


@given(PAIRS, st.integers(1, 100))
def test_pairs_survive_being_split(pairs: list[tuple[str, str]], segment_bytes_max: int) -> None:
    segments = split_text(encode_pairs(pairs), segment_bytes_max)
    assert all(len(segment) <= segment_bytes_max for segment in segments)
    assert decode_pairs(b"".join(segments)) == pairs


# Pieces that text is made of, so that much of it comes close to being right.
TEXT = st.lists(
    st.one_of(
        st.sampled_from([b"\0", b"=", b"A", b"Key", b",", b"0x", b"\xff", b"v" * VALUE_BYTES_MAX]),
        st.binary(max_size=8),
    ),
    max_size=40,
).map(b"".join)


@given(TEXT)
def test_text_is_read_or_refused(data: bytes) -> None:
    try:
        pairs = decode_pairs(data)
    except TextError:
        return
    assert decode_pairs(encode_pairs(pairs)) == pairs
    assert all(1 <= len(key) <= 63 for key, _ in pairs)
    assert all(len(value.encode()) <= LONG_VALUE_BYTES_MAX for _, value in pairs)


@given(st.binary(min_size=1, max_size=1024))
def test_binary_values_survive(data: bytes) -> None:
    assert decode_binary(encode_hex(data)) == data


@given(st.integers(0, (1 << 64) - 1))
def test_numbers_survive(number: int) -> None:
    assert decode_number(str(number)) == decode_number(hex(number)) == number
    assert int.from_bytes(decode_binary(str(number)), "big") == number


@given(st.one_of(st.text(max_size=20), st.from_regex(r"0[xXbB].{0,20}")))
def test_values_are_read_or_refused(value: str) -> None:
    for decode in (decode_binary, decode_number):
        try:
            decode(value)
        except TextError:
            pass

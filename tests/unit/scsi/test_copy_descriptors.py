"""EXTENDED COPY parameter lists: what is taken, what is refused with which sense, and that nothing else can happen."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from san_target.scsi.copy_descriptors import (
    CSCDS_MAX,
    DESCRIPTOR_LIST_BYTES_MAX,
    SEGMENTS_MAX,
    CopyRequest,
    Cscd,
    Segment,
    parse,
)
from san_target.scsi.sense import CheckCondition

NAA = bytes.fromhex("602534e0123456789abcdef012345678")


def header(cscds: int = 0, segments: int = 0, list_id: int = 1, usage: int = 0, inline: int = 0) -> bytes:
    return struct.pack(">BBH4xII", list_id, usage << 3, cscds, segments, inline)


def cscd(designator: bytes = NAA, block_size: int = 512, kind: int = 0xE4, device: int = 0, pad: int = 0) -> bytes:
    descriptor = struct.pack(">BBHBBBB", kind, device, 0, 1, 3, 0, len(designator)) + designator.ljust(20, b"\0")
    return descriptor + bytes([pad << 2]) + block_size.to_bytes(3, "big")


def segment(
    source: int = 0,
    destination: int = 0,
    blocks: int = 1,
    source_lba: int = 0,
    destination_lba: int = 0,
    flags: int = 0,
    kind: int = 2,
    length: int = 0x18,
) -> bytes:
    return struct.pack(">BBHHHHHQQ", kind, flags, length, source, destination, 0, blocks, source_lba, destination_lba)


def parameter_list(cscds: list[bytes], segments: list[bytes], list_id: int = 1, usage: int = 0) -> bytes:
    first, second = b"".join(cscds), b"".join(segments)
    return header(len(first), len(second), list_id, usage) + first + second


def test_a_list() -> None:
    data = parameter_list([cscd(), cscd(b"x" * 20, 4096, pad=1)], [segment(1, 0, 7, 11, 13, flags=3)], 5)
    assert parse(data) == CopyRequest(
        5,
        True,
        (Cscd(NAA, 3, 512, False, 16), Cscd(b"x" * 20, 3, 4096, True, 48)),
        (Segment(1, 0, 7, 11, 13, True, True, 80),),
    )


@pytest.mark.parametrize(
    ("list_id", "usage", "expected"), [(7, 0, (7, True)), (7, 2, (7, False)), (0, 3, (None, False))]
)
def test_list_id_usage(list_id: int, usage: int, expected: tuple[int | None, bool]) -> None:
    request = parse(parameter_list([], [], list_id, usage))
    assert (request.list_id, request.hold) == expected


LENGTH_ERROR, INVALID = (5, 0x1A, 0), (5, 0x26, 0)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", LENGTH_ERROR),
        (bytes(15), LENGTH_ERROR),
        (parameter_list([cscd()], [segment()])[:-1], LENGTH_ERROR),
        (parameter_list([cscd()], [])[:-1], LENGTH_ERROR),
        (header(31) + cscd(), LENGTH_ERROR),
        (header(0, 27) + segment(), LENGTH_ERROR),
        (header(0, DESCRIPTOR_LIST_BYTES_MAX + 1) + bytes(DESCRIPTOR_LIST_BYTES_MAX + 1), LENGTH_ERROR),
        (header(inline=1) + b"x", (5, 0x26, 0x0B)),
        (header(list_id=1, usage=1), INVALID),
        (header(list_id=1, usage=3), INVALID),
        (parameter_list([cscd()] * (CSCDS_MAX + 1), [segment()]), (5, 0x26, 6)),
        (parameter_list([cscd()], [segment()] * (SEGMENTS_MAX + 1)), (5, 0x26, 8)),
        (parameter_list([cscd(kind=0xE0)], [segment()]), (5, 0x26, 7)),
        (parameter_list([cscd()], [segment(kind=3)]), (5, 0x26, 9)),
        (parameter_list([cscd(device=1)], []), INVALID),
        (parameter_list([cscd(b"")], []), INVALID),
        (parameter_list([cscd()[:7] + b"\x15" + cscd()[8:]], []), INVALID),
        (parameter_list([], [segment(length=0x14)]), INVALID),
    ],
)
def test_refusals(data: bytes, expected: tuple[int, int, int]) -> None:
    with pytest.raises(CheckCondition) as caught:
        parse(data)
    assert tuple(caught.value.condition) == expected


def test_a_full_list_of_both_kinds_is_taken() -> None:
    request = parse(parameter_list([cscd()] * CSCDS_MAX, [segment()] * SEGMENTS_MAX))
    assert (len(request.cscds), len(request.segments)) == (CSCDS_MAX, SEGMENTS_MAX)


def test_obsolete_bits_of_the_descriptor_are_not_looked_at() -> None:
    # LU ID TYPE and NUL
    assert len(parse(parameter_list([cscd(device=0xE0)], [])).cscds) == 1


@given(
    st.binary(max_size=200)
    | st.builds(
        lambda cscds, segments, inline, rest: header(cscds, segments, inline=inline) + rest,
        st.integers(0, 100),
        st.integers(0, 100),
        st.integers(0, 3),
        st.binary(max_size=200),
    )
    | st.lists(st.sampled_from([cscd(), cscd(kind=0xE1), segment(), segment(kind=0xFF)]), max_size=6).map(
        lambda parts: parameter_list(parts[:3], parts[3:])
    )
)
def test_any_bytes_are_a_list_or_refused(data: bytes) -> None:
    try:
        request = parse(data)
    except CheckCondition as error:
        refusal = error.condition
    else:
        assert len(request.cscds) <= CSCDS_MAX
        assert len(request.segments) <= SEGMENTS_MAX
        return
    assert refusal.key == 5
    assert refusal.asc in (0x1A, 0x26)

"""The messages of etcd's API as bytes: against bytes made by others, and back."""

from collections.abc import Generator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from san_target.metadata.etcd_messages import (
    DELETE,
    Answer,
    DeleteRequest,
    Header,
    KeyEvent,
    KeyValue,
    Message,
    MessageError,
    Operation,
    PutRequest,
    RangeAnswer,
    RangeRequest,
    RevisionCompare,
    TxnRequest,
    WatchAnswer,
    WatchCreate,
    WatchRequest,
    decode,
    decode_in_steps,
)

# Made with Google's protobuf library from etcd's own rpc.proto.
GOLDEN: list[tuple[Message, str]] = [
    (RangeRequest(b"a", b"b", 250, 1 << 40, True, True), "0a016112016218fa012080808080802040014801"),
    (
        RangeAnswer(Header(-1, 2, 3, 4), [KeyValue(b"a", 1, 300, b"\xff", 7)], True),
        "0a1108ffffffffffffffffff01100218032004120d0a0161100118ac022a01ff30071801",
    ),
    (
        TxnRequest(
            [RevisionCompare(b"a", 5)],
            [Operation(put=PutRequest(b"a", b"x" * 200, 1 << 60)), Operation(delete=DeleteRequest(b"b"))],
        ),
        "0a0710021a0161300512db0112d8010a016112c80178787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878781880808080808080801012051a030a0162",
    ),
    (WatchRequest(WatchCreate(b"a", b"b", 9, True, True)), "0a0c0a0161120162180920014001"),
    (
        WatchAnswer(Header(1, 2, 3, 4), True, True, 8, "why", True, [KeyEvent(DELETE, KeyValue(b"a", mod_revision=9))]),
        "0a080801100218032004180120012808320377687938015a09080112050a01611809",
    ),
]

INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
KEY_VALUES = st.builds(KeyValue, st.binary(), INT64, INT64, st.binary(), INT64)
HEADERS = st.builds(Header, INT64, INT64, INT64, INT64)


@pytest.mark.parametrize(("message", "golden"), GOLDEN, ids=[type(message).__name__ for message, _ in GOLDEN])
def test_bytes_are_those_of_the_protobuf_library(message: Message, golden: str) -> None:
    assert message.encode().hex() == golden
    assert decode(type(message), bytes.fromhex(golden)) == message


@given(HEADERS, st.lists(KEY_VALUES, max_size=3), st.booleans())
def test_what_is_written_is_read_again(header: Header, kvs: list[KeyValue], more: bool) -> None:
    answer = RangeAnswer(header, kvs, more)
    assert decode(RangeAnswer, answer.encode()) == answer


@given(HEADERS, st.lists(KEY_VALUES, max_size=5), st.integers(1, 3))
def test_reading_in_steps_is_the_same(header: Header, kvs: list[KeyValue], step_fields: int) -> None:
    data = RangeAnswer(header, kvs).encode()
    found = []

    def steps() -> Generator[None, None, None]:
        found.append((yield from decode_in_steps(RangeAnswer, data, step_fields)))

    pauses = len(list(steps()))
    assert found == [decode(RangeAnswer, data)]
    assert pauses == (1 + len(kvs)) // step_fields


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_an_error(data: bytes) -> None:
    for kind in (RangeAnswer, WatchAnswer):
        try:
            decode(kind, data)
        except MessageError:
            pass


@given(HEADERS, st.integers(1, 200))
def test_a_message_cut_short_is_an_error(header: Header, cut: int) -> None:
    data = RangeAnswer(header, [KeyValue(b"key", 1, 2, b"value", 3)]).encode()
    # Cut inside the last field, whose length is then wrong: the lease's field begins four bytes before the end.
    with pytest.raises(MessageError):
        decode(RangeAnswer, data[: -1 - cut % 5])


def test_fields_of_newer_versions_are_skipped() -> None:
    unknown = bytes.fromhex("f80101" + "f9010102030405060708" + "fa0103616263" + "fd0101020304")
    known = Header(1, 2, 3, 4)
    assert decode(Answer, unknown + Answer(known).encode() + unknown) == Answer(known)


def test_a_field_of_another_type_is_an_error() -> None:
    with pytest.raises(MessageError):
        decode(Header, bytes.fromhex("0a0161"))

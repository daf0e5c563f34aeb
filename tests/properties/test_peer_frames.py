"""Peer frames: the fast codec and the declaration agree byte for byte, and any cutting of a stream gives the same."""

from hypothesis import given
from hypothesis import strategies as st

from san_target.peer.frame_stream import AnswerStream, RequestStream, SpareBuffers
from san_target.peer.frames import (
    ANSWER_BYTES,
    ANSWER_HEADER,
    PAYLOAD_BYTES_MAX,
    REQUEST_BYTES,
    REQUEST_HEADER,
    Answer,
    FrameError,
    Operation,
    Request,
    Status,
    header_fields,
    pack_answer,
    pack_request,
)

U64 = st.integers(0, (1 << 64) - 1)
REQUESTS = st.builds(
    Request,
    operation=st.integers(0, max(Operation)),
    volume_id=st.binary(min_size=16, max_size=16),
    lba=U64,
    blocks=U64,
    payload=st.binary(max_size=300),
    answer_bytes=st.integers(0, PAYLOAD_BYTES_MAX),
    generation=U64,
    epoch=U64,
    revision=U64,
    tick=U64,
    flags=st.integers(0, 0xFFFF),
    request_id=U64,
    acknowledged=U64,
)
ANSWERS = st.builds(
    Answer,
    request_id=U64,
    status=st.integers(0, Status.FAILED),
    detail=U64,
    payload=st.binary(max_size=300),
    tick=U64,
)
CUTS = st.lists(st.integers(1, 250), min_size=1, max_size=8)


@given(request=REQUESTS)
def test_requests(request: Request) -> None:
    header = pack_request(request)
    assert len(header) == REQUEST_BYTES == REQUEST_HEADER.sizeof()
    fields = header_fields(REQUEST_HEADER, header)
    for name in Request.__struct_fields__:
        if name != "payload":
            assert fields[name] == getattr(request, name), name
    assert fields["payload_bytes"] == len(request.payload)
    assert REQUEST_HEADER.build(fields) == header


@given(answer=ANSWERS, tick=U64)
def test_answers(answer: Answer, tick: int) -> None:
    header = pack_answer(answer, tick)
    assert len(header) == ANSWER_BYTES == ANSWER_HEADER.sizeof()
    fields = header_fields(ANSWER_HEADER, header)
    for name in ("request_id", "status", "detail"):
        assert fields[name] == getattr(answer, name), name
    assert (fields["tick"], fields["payload_bytes"]) == (tick, len(answer.payload))
    assert ANSWER_HEADER.build(fields) == header


def feed(stream: RequestStream | AnswerStream, whole: bytes, cuts: list[int]) -> None:
    position = turn = 0
    while position < len(whole):
        size = cuts[turn % len(cuts)]
        buffer = bytearray(whole[position : position + size])
        stream.received(memoryview(buffer))
        buffer[:] = bytes(len(buffer))
        position += size
        turn += 1


@given(requests=st.lists(REQUESTS, max_size=6), cuts=CUTS)
def test_requests_in_any_pieces(requests: list[Request], cuts: list[int]) -> None:
    taken: list[Request] = []

    def take(request: Request) -> None:
        request.payload = bytes(request.payload)
        taken.append(request)

    feed(
        RequestStream(take, SpareBuffers()),
        b"".join(pack_request(each) + bytes(each.payload) for each in requests),
        cuts,
    )
    assert taken == requests


@given(answers=st.lists(ANSWERS, max_size=6), cuts=CUTS)
def test_answers_in_any_pieces(answers: list[Answer], cuts: list[int]) -> None:
    taken: list[Answer] = []

    def take(answer: Answer) -> None:
        answer.payload = bytes(answer.payload)
        taken.append(answer)

    feed(
        AnswerStream(take, SpareBuffers()),
        b"".join(pack_answer(each, each.tick) + bytes(each.payload) for each in answers),
        cuts,
    )
    assert taken == answers


@given(request=REQUESTS, data=st.data())
def test_no_single_wrong_bit_passes(request: Request, data: st.DataObject) -> None:
    whole = bytearray(pack_request(request) + bytes(request.payload))
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    whole[bit // 8] ^= 1 << bit % 8
    taken: list[Request] = []
    try:
        RequestStream(taken.append, SpareBuffers()).received(memoryview(whole))
    except FrameError:
        pass
    assert not taken


@given(garbage=st.binary(max_size=3 * REQUEST_BYTES), cuts=CUTS)
def test_garbage_is_refused_and_nothing_is_held_for_it(garbage: bytes, cuts: list[int]) -> None:
    for stream in (
        RequestStream(lambda request: None, SpareBuffers()),
        AnswerStream(lambda answer: None, SpareBuffers()),
    ):
        try:
            feed(stream, garbage, cuts)
        except FrameError:
            assert len(garbage) >= ANSWER_BYTES
        assert stream.held_bytes <= REQUEST_BYTES

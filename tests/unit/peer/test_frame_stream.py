"""Frames out of a stream that arrives in any pieces."""

import pytest

from san_target.peer.frame_stream import SPARE_BUFFERS_MAX, AnswerStream, RequestStream, SpareBuffers
from san_target.peer.frames import (
    ANSWER_BYTES,
    PAYLOAD_BYTES_MAX,
    REFUSAL_BYTES_MAX,
    REQUEST_BYTES,
    Answer,
    FrameError,
    Operation,
    Request,
    Status,
    pack_answer,
    pack_request,
)


class Taken:
    """Keeps what a stream hands over, as it was during the call."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.answers: list[Answer] = []

    def request(self, request: Request) -> None:
        request.payload = bytes(request.payload)
        self.requests.append(request)

    def answer(self, answer: Answer) -> None:
        answer.payload = bytes(answer.payload)
        self.answers.append(answer)


def frame(request: Request) -> bytes:
    return pack_request(request) + bytes(request.payload)


REQUESTS = [
    Request(Operation.WRITE, payload=bytes(range(256)) * 4, request_id=1),
    Request(Operation.READ, answer_bytes=4096, request_id=2),
    Request(Operation.WRITE, payload=b"z", request_id=3),
    Request(Operation.NOP),
]


@pytest.mark.parametrize("piece", [1, 3, REQUEST_BYTES - 1, REQUEST_BYTES, REQUEST_BYTES + 1, 1000, 100000])
def test_any_pieces(piece: int) -> None:
    taken = Taken()
    stream = RequestStream(taken.request, SpareBuffers())
    whole = b"".join(map(frame, REQUESTS))
    for start in range(0, len(whole), piece):
        buffer = bytearray(whole[start : start + piece])
        stream.received(memoryview(buffer))
        buffer[:] = b"\xee" * len(buffer)
    assert taken.requests == REQUESTS
    assert stream.unfinished_bytes == stream.held_bytes == 0


def test_what_is_held_of_an_unfinished_frame() -> None:
    stream = RequestStream(lambda request: None, SpareBuffers())
    whole = frame(Request(Operation.WRITE, payload=bytes(1 << 20), request_id=1))
    stream.received(memoryview(whole[:50]))
    assert (stream.unfinished_bytes, stream.held_bytes) == (50, REQUEST_BYTES)
    stream.received(memoryview(whole[50:5000]))
    assert stream.unfinished_bytes == 5000
    assert len(whole) <= stream.held_bytes < 2 * len(whole)
    stream.received(memoryview(whole[5000:]))
    assert (stream.unfinished_bytes, stream.held_bytes) == (0, 0)


def test_a_length_is_not_believed_before_its_crc_was_checked() -> None:
    stream = RequestStream(lambda request: None, SpareBuffers())
    header = bytearray(pack_request(Request(Operation.WRITE, payload=b"x", request_id=1)))
    header[8:12] = PAYLOAD_BYTES_MAX.to_bytes(4, "big")
    with pytest.raises(FrameError, match="damaged header"):
        stream.received(memoryview(header))
    assert stream.held_bytes == 0


def test_who_has_enough_gets_no_more() -> None:
    seen: list[int] = []

    def take(request: Request) -> None:
        seen.append(request.request_id)
        stream.stopped = len(seen) == 2

    stream = RequestStream(take, SpareBuffers())
    stream.received(memoryview(b"".join(map(frame, REQUESTS))))
    assert seen == [1, 2]


@pytest.mark.parametrize(
    ("status", "size_bytes", "fits"),
    [
        (Status.GOOD, PAYLOAD_BYTES_MAX, True),
        (Status.GOOD, PAYLOAD_BYTES_MAX + 1, False),
        (Status.MOVED, REFUSAL_BYTES_MAX, True),
        (Status.MOVED, REFUSAL_BYTES_MAX + 1, False),
        (Status.FAILED + 1, 0, False),
        (Status.LOST, 0, False),
        (Status.UNSENT, 0, False),
    ],
)
def test_limits_of_answers(status: int, size_bytes: int, fits: bool) -> None:
    taken = Taken()
    stream = AnswerStream(taken.answer, SpareBuffers())
    answer = Answer(5, status, 6, bytes(size_bytes))
    whole = pack_answer(answer, 7) + bytes(size_bytes)
    if fits:
        stream.received(memoryview(whole))
        assert taken.answers == [Answer(5, status, 6, bytes(size_bytes), 7)]
    else:
        with pytest.raises(FrameError, match=f"answer {int(status)} with {size_bytes} bytes"):
            stream.received(memoryview(whole))


@pytest.mark.parametrize("position", [0, 2, 3, 7, 15, 23, 31, ANSWER_BYTES - 1])
def test_a_damaged_header_of_an_answer(position: int) -> None:
    header = bytearray(pack_answer(Answer(1), 2))
    header[position] ^= 0x10
    with pytest.raises(FrameError, match="damaged header of an answer"):
        AnswerStream(lambda answer: None, SpareBuffers()).received(memoryview(header))


def test_a_damaged_payload_of_an_answer() -> None:
    whole = pack_answer(Answer(1, payload=b"abc"), 2) + b"abd"
    with pytest.raises(FrameError, match="damaged payload of an answer"):
        AnswerStream(lambda answer: None, SpareBuffers()).received(memoryview(whole))


def test_spare_buffers_are_used_again_and_few_are_kept() -> None:
    spare = SpareBuffers()
    first = spare.take(100_000)
    assert len(first) == 1 << 17
    spare.give_back(first)
    assert spare.take(200_000) is not first
    assert spare.take(70_000) is first
    assert len(spare.take(104)) == 104, "a header does not take a large one"
    for _ in range(10):
        spare.give_back(memoryview(bytearray(1 << 20)))
    spare.give_back(memoryview(bytearray(104)))
    kept = [spare.take(1 << 20) for _ in range(SPARE_BUFFERS_MAX)]
    spare.give_back(kept[0])
    assert spare.take(1 << 20) is kept[0]


def test_a_large_frame_keeps_nothing_of_the_one_before_in_its_buffer() -> None:
    taken, spare = Taken(), SpareBuffers()
    stream = RequestStream(taken.request, spare)
    requests = [Request(Operation.WRITE, payload=bytes((n,)) * (300_000 - n), request_id=n) for n in range(1, 4)]
    whole = b"".join(map(frame, requests))
    for start in range(0, len(whole), 65536):
        stream.received(memoryview(whole[start : start + 65536]))
    assert taken.requests == requests

"""Any way to cut a stream of PDUs into receives gives the same PDUs; limits and digest errors end the stream."""

from dataclasses import dataclass

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from san_target.wire.digest import digest
from san_target.wire.framer import OWN_BUFFER_BYTES, Framer, FramingError

DATA_SEGMENT_MAX = 65536
SHARED_BYTES = OWN_BUFFER_BYTES + 4096


@dataclass(frozen=True)
class Sent:
    bhs: bytes
    ahs: bytes
    data: bytes

    def raw(self, header_digest: bool, data_digest: bool) -> bytes:
        padded = self.data + bytes(-len(self.data) % 4)
        head = self.bhs + self.ahs
        return b"".join(
            [head, digest(head) if header_digest else b"", padded, digest(padded) if data_digest and self.data else b""]
        )


def pdu(first: bytes, rest: bytes, ahs: bytes, data: bytes) -> Sent:
    return Sent(first + bytes([len(ahs) // 4]) + len(data).to_bytes(3, "big") + rest, ahs, data)


DATA = st.one_of(
    st.just(b""),
    st.binary(max_size=40),
    # Longer than what is kept in the shared buffer, as well as just around that limit.
    st.builds(
        lambda start, length: bytes((start + index) & 0xFF for index in range(length)),
        st.integers(0, 255),
        st.one_of(st.integers(OWN_BUFFER_BYTES - 60, OWN_BUFFER_BYTES + 10), st.integers(1, 40_000)),
    ),
)
PDUS = st.lists(
    st.builds(
        pdu,
        st.binary(min_size=4, max_size=4),
        st.binary(min_size=40, max_size=40),
        st.one_of(st.just(b""), st.integers(1, 255).map(lambda words: bytes(range(4)) * words)),
        DATA,
    ),
    max_size=6,
)
CHUNKS = st.lists(st.one_of(st.integers(1, 60), st.integers(1, 70_000)), min_size=1, max_size=40)


class Receiver:
    """What the socket shell does: receive a chunk into the framer's buffers, then take the PDUs."""

    def __init__(self, header_digest: bool, data_digest: bool, shared: memoryview | None = None) -> None:
        self.framer = Framer(DATA_SEGMENT_MAX)
        self.framer.header_digest = header_digest
        self.framer.data_digest = data_digest
        self.shared = memoryview(bytearray(SHARED_BYTES)) if shared is None else shared
        self.got: list[Sent] = []

    def receive(self, stream: memoryview) -> int:
        """Receive as much as the buffers take; returns how much that was."""
        count = 0
        for buffer in self.framer.buffers(self.shared):
            part = stream[count : count + len(buffer)]
            buffer[: len(part)] = part
            count += len(part)
        for cut in self.framer.received(self.shared, count):
            self.got.append(Sent(cut.bhs, cut.ahs, bytes(cut.data)))
        # Another connection receives into the shared buffer next.
        self.shared[:] = b"\xee" * len(self.shared)
        return count

    def receive_all(self, stream: bytes, chunks: list[int]) -> None:
        """Receive a stream in chunks of these sizes, over and over."""
        view = memoryview(stream)
        turn = 0
        while view:
            view = view[self.receive(view[: chunks[turn % len(chunks)]]) :]
            turn += 1


@given(PDUS, st.booleans(), st.booleans(), CHUNKS)
def test_any_split_gives_the_same_pdus(
    sent: list[Sent], header_digest: bool, data_digest: bool, chunks: list[int]
) -> None:
    receiver = Receiver(header_digest, data_digest)
    receiver.receive_all(b"".join(one.raw(header_digest, data_digest) for one in sent), chunks)
    assert receiver.got == sent
    assert receiver.framer.unfinished_bytes == 0


@given(st.lists(PDUS, min_size=2, max_size=3), CHUNKS)
def test_connections_that_share_a_buffer_do_not_disturb_each_other(
    streams: list[list[Sent]], chunks: list[int]
) -> None:
    shared = memoryview(bytearray(SHARED_BYTES))
    receivers = [Receiver(False, True, shared) for _ in streams]
    left = [memoryview(b"".join(one.raw(False, True) for one in sent)) for sent in streams]
    turn = 0
    while any(left):
        for index, receiver in enumerate(receivers):
            size = chunks[turn % len(chunks)]
            turn += 1
            left[index] = left[index][receiver.receive(left[index][:size]) :] if left[index] else left[index]
    assert [receiver.got for receiver in receivers] == streams


@given(PDUS, PDUS, st.booleans(), st.booleans())
def test_digests_begin_between_two_pdus(
    before: list[Sent], after: list[Sent], header_digest: bool, data_digest: bool
) -> None:
    """The digests that a login negotiated hold from the PDU after it, even where both came with one receive."""
    stream = b"".join(one.raw(False, False) for one in before)
    stream += b"".join(one.raw(header_digest, data_digest) for one in after)
    shared = memoryview(bytearray(len(stream) + SHARED_BYTES))
    shared[: len(stream)] = stream
    framer = Framer(DATA_SEGMENT_MAX)
    if not before:
        framer.header_digest, framer.data_digest = header_digest, data_digest
    got = []
    for cut in framer.received(shared, len(stream)):
        got.append(Sent(cut.bhs, cut.ahs, bytes(cut.data)))
        if len(got) == len(before):
            framer.header_digest, framer.data_digest = header_digest, data_digest
    assert got == before + after


@given(PDUS, st.booleans(), st.booleans(), CHUNKS, st.integers(0, 100_000))
def test_an_unfinished_pdu_is_held_and_nothing_else(
    sent: list[Sent], header_digest: bool, data_digest: bool, chunks: list[int], cut_at: int
) -> None:
    raws = [one.raw(header_digest, data_digest) for one in sent]
    stream = b"".join(raws)[:cut_at]
    receiver = Receiver(header_digest, data_digest)
    receiver.receive_all(stream, chunks)
    whole = 0
    while whole < len(raws) and sum(map(len, raws[: whole + 1])) <= len(stream):
        whole += 1
    assert receiver.got == sent[:whole]
    assert receiver.framer.unfinished_bytes == len(stream) - sum(map(len, raws[:whole]))


@given(PDUS, st.integers(DATA_SEGMENT_MAX + 1, 0xFFFFFF), st.binary(max_size=100), CHUNKS)
def test_a_data_segment_above_the_limit_is_refused_at_its_header(
    before: list[Sent], length: int, following: bytes, chunks: list[int]
) -> None:
    bhs = b"\x05\x80\0\0\0" + length.to_bytes(3, "big") + bytes(range(40))
    receiver = Receiver(False, False)
    with pytest.raises(FramingError, match="above the declared maximum") as caught:
        receiver.receive_all(b"".join(one.raw(False, False) for one in before) + bhs + following, chunks)
    assert caught.value.bhs == bhs
    assert not caught.value.digest
    assert receiver.got == before


@given(st.sampled_from([DATA_SEGMENT_MAX - 1, DATA_SEGMENT_MAX]), st.booleans(), CHUNKS)
def test_the_limit_itself_is_accepted(length: int, data_digest: bool, chunks: list[int]) -> None:
    sent = pdu(b"\x05\x80\0\0", bytes(40), b"", bytes(length))
    receiver = Receiver(False, data_digest)
    receiver.receive_all(sent.raw(False, data_digest), chunks)
    assert receiver.got == [sent]


ONE = pdu(b"\x01\xa0\0\0", bytes(range(40)), bytes(range(20)), b"some data")


@given(st.integers(0, 8 * (len(ONE.bhs + ONE.ahs) + 4) - 1), CHUNKS)
@example(8 * 5, [1])
def test_a_damaged_header_is_refused_before_its_lengths_are_believed(bit: int, chunks: list[int]) -> None:
    head = bytearray(ONE.raw(True, True)[: len(ONE.bhs + ONE.ahs) + 4])
    head[bit // 8] ^= 1 << bit % 8
    receiver = Receiver(True, True)
    # Only TotalAHSLength has to be believed to find the digest: at most 1020 bytes more.
    with pytest.raises(FramingError, match="header digest") as caught:
        receiver.receive_all(bytes(head) + bytes(1020), chunks)
    assert caught.value.bhs == b""
    assert caught.value.digest
    assert receiver.got == []


@given(st.integers(0, 8 * (len(ONE.data) + 3 + 4) - 1), st.booleans(), PDUS, CHUNKS)
def test_damaged_data_padding_or_digest_is_refused_with_its_header(
    bit: int, header_digest: bool, before: list[Sent], chunks: list[int]
) -> None:
    raw = bytearray(ONE.raw(header_digest, True))
    position = len(raw) - (len(ONE.data) + 3 + 4)
    raw[position + bit // 8] ^= 1 << bit % 8
    receiver = Receiver(header_digest, True)
    with pytest.raises(FramingError, match="data digest") as caught:
        receiver.receive_all(b"".join(one.raw(header_digest, True) for one in before) + bytes(raw), chunks)
    assert caught.value.digest
    assert caught.value.bhs == ONE.bhs
    assert receiver.got == before


@given(PDUS, st.booleans())
def test_kept_data_outlives_the_shared_buffer(sent: list[Sent], data_digest: bool) -> None:
    stream = b"".join(one.raw(False, data_digest) for one in sent)
    shared = memoryview(bytearray(len(stream) + SHARED_BYTES))
    shared[: len(stream)] = stream
    framer = Framer(DATA_SEGMENT_MAX)
    framer.data_digest = data_digest
    kept = [cut.keep() for cut in framer.received(shared, len(stream))]
    shared[:] = b"\xee" * len(shared)
    assert [bytes(data) for data in kept] == [one.data for one in sent]

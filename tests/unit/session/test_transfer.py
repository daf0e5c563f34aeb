"""Data-Out collection and Data-In segmentation by their rules (RFC 7143 4.2.5.2, 11.7, 11.8)."""

import itertools

import pytest

from san_target.session.parameters import Parameters
from san_target.session.transfer import (
    INCORRECT_AMOUNT_OF_DATA,
    OUT_OF_SEQUENCE,
    UNEXPECTED_UNSOLICITED_DATA,
    DataOutTransfer,
    segments,
)


def view(data: bytes) -> memoryview:
    return memoryview(data)


def parameters(**changes: object) -> Parameters:
    values: dict[str, object] = {
        "first_burst_length": 1024,
        "max_burst_length": 2048,
        "initial_r2t": False,
        "immediate_data": True,
    }
    return Parameters(**(values | changes))  # type: ignore[arg-type]


def pattern(length: int) -> bytes:
    return bytes(itertools.islice(itertools.cycle(range(251)), length))


def test_immediate_data_alone_completes() -> None:
    transfer = DataOutTransfer(512, 512, parameters())
    transfer.begin(view(pattern(512)), False, True)
    assert transfer.complete
    assert transfer.data() == pattern(512)


def test_owned_immediate_data_is_not_copied() -> None:
    data = view(pattern(512))
    transfer = DataOutTransfer(512, 512, parameters())
    transfer.begin(data, True, True)
    assert transfer.data() is data


def test_unsolicited_then_solicited() -> None:
    data = pattern(5000)
    transfer = DataOutTransfer(5000, 5000, parameters(max_outstanding_r2t=1))
    transfer.begin(view(data[:512]), False, False)
    assert transfer.solicit(itertools.count(7)) == []  # nothing is asked for while unsolicited data is under way
    transfer.receive(None, 0, 512, view(data[512:1024]), True)
    tags = itertools.count(7)
    received = 1024
    asked = []
    while not transfer.complete:
        (request,) = transfer.solicit(tags)
        asked.append((request.r2t_sn, request.offset, request.length))
        middle = request.offset + request.length // 2
        end = request.offset + request.length
        transfer.receive(request.ttt, 0, request.offset, view(data[request.offset : middle]), False)
        transfer.receive(request.ttt, 1, middle, view(data[middle:end]), True)
        received = end
    assert asked == [(0, 1024, 2048), (1, 3072, 1928)]
    assert received == 5000
    assert transfer.failure is None
    assert transfer.data() == data


def test_several_r2ts_outstanding_are_answered_in_order() -> None:
    data = pattern(8192)
    transfer = DataOutTransfer(8192, 8192, parameters(initial_r2t=True, max_outstanding_r2t=3))
    transfer.begin(view(b""), False, True)
    tags = itertools.count(1)
    requests = transfer.solicit(tags)
    assert [request.offset for request in requests] == [0, 2048, 4096]
    for request in requests:
        part = data[request.offset : request.offset + request.length]
        transfer.receive(request.ttt, 0, request.offset, view(part), True)
    (last,) = transfer.solicit(tags)
    transfer.receive(last.ttt, 0, last.offset, view(data[6144:]), True)
    assert transfer.complete
    assert transfer.data() == data


def test_more_expected_than_the_command_needs_is_dropped() -> None:
    transfer = DataOutTransfer(1024, 512, parameters())
    transfer.begin(view(pattern(1024)), False, True)
    assert transfer.complete
    assert transfer.data() == pattern(512)
    assert transfer.solicit(itertools.count(1)) == []


def test_less_expected_than_the_command_needs_ends_with_what_there_is() -> None:
    transfer = DataOutTransfer(512, 1024, parameters())
    transfer.begin(view(pattern(512)), False, True)
    assert transfer.complete
    assert transfer.data() == pattern(512)


@pytest.mark.parametrize("length", [1025, 2000])
def test_immediate_data_above_first_burst_fails(length: int) -> None:
    transfer = DataOutTransfer(4096, 4096, parameters())
    transfer.begin(view(bytes(length)), False, True)
    assert transfer.failure == UNEXPECTED_UNSOLICITED_DATA


def test_immediate_data_where_none_was_negotiated_fails() -> None:
    transfer = DataOutTransfer(512, 512, parameters(immediate_data=False))
    transfer.begin(view(bytes(512)), False, True)
    assert transfer.failure == UNEXPECTED_UNSOLICITED_DATA


def test_unsolicited_data_with_initial_r2t_fails() -> None:
    transfer = DataOutTransfer(512, 512, parameters(initial_r2t=True))
    transfer.begin(view(b""), False, False)
    assert transfer.failure == UNEXPECTED_UNSOLICITED_DATA


def test_unsolicited_data_after_its_end_fails() -> None:
    transfer = DataOutTransfer(512, 512, parameters())
    transfer.begin(view(b""), False, True)
    transfer.receive(None, 0, 0, view(bytes(512)), True)
    assert transfer.failure == UNEXPECTED_UNSOLICITED_DATA


@pytest.mark.parametrize(
    ("ttt_delta", "data_sn", "offset_delta", "length", "final", "failure"),
    [
        (1, 0, 0, 512, True, OUT_OF_SEQUENCE),
        (0, 1, 0, 512, True, OUT_OF_SEQUENCE),
        (0, 0xFFFFFFFF, 0, 512, True, OUT_OF_SEQUENCE),
        (0, 0, 4, 508, True, OUT_OF_SEQUENCE),
        (0, 0, 0, 516, True, INCORRECT_AMOUNT_OF_DATA),
        (0, 0, 0, 256, True, INCORRECT_AMOUNT_OF_DATA),
        (0, 0, 0, 512, False, INCORRECT_AMOUNT_OF_DATA),
    ],
)
def test_solicited_data_that_breaks_the_rules_fails(
    ttt_delta: int, data_sn: int, offset_delta: int, length: int, final: bool, failure: object
) -> None:
    transfer = DataOutTransfer(512, 512, parameters())
    transfer.begin(view(b""), False, True)
    (request,) = transfer.solicit(itertools.count(5))
    transfer.receive(request.ttt + ttt_delta, data_sn, request.offset + offset_delta, view(bytes(length)), final)
    assert transfer.failure == failure
    assert transfer.complete


@pytest.mark.parametrize("total", [0, 1, 511, 512, 513, 4096, 100_000])
@pytest.mark.parametrize(("pdu_max", "burst_max"), [(512, 512), (512, 1300), (8192, 4096), (262144, 16776192)])
def test_segments_cover_the_data_once(total: int, pdu_max: int, burst_max: int) -> None:
    cut = list(segments(total, pdu_max, burst_max))
    assert [segment.data_sn for segment in cut] == list(range(len(cut)))
    position = burst = 0
    for segment in cut:
        assert segment.offset == position
        assert 0 < segment.length <= pdu_max
        position += segment.length
        burst += segment.length
        assert burst <= burst_max
        assert segment.final == (burst == burst_max or segment.last)
        if segment.final:
            burst = 0
    assert position == total
    assert [segment.last for segment in cut] == [False] * (len(cut) - 1) + [True] * bool(cut)

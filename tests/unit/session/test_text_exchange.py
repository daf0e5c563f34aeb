"""Text exchanges beyond transcripts: long lists, resets, and when a value takes effect."""

from san_target.session.discovery import TextExchange, TextRequest
from san_target.session.parameters import Parameters
from san_target.wire import opcodes, pdus
from tests.unit.session.login_support import INITIATOR, PORTAL, FakeDirectory, make_target, text

RESERVED = 0xFFFFFFFF


def make_exchange(directory: FakeDirectory, parameters: Parameters, normal: bool = False) -> TextExchange:
    target = directory.targets[0] if normal else None
    return TextExchange(directory, parameters, INITIATOR, target, PORTAL)


def ask(
    data: bytes = b"", final: bool = True, continue_: bool = False, itt: int = 1, ttt: int = RESERVED
) -> TextRequest:
    return TextRequest(final, continue_, itt, ttt, bytes(8), data)


def test_request_is_read_from_the_wire() -> None:
    bhs = pdus.build(
        opcodes.TEXT_REQUEST,
        4,
        final=False,
        continue_=True,
        lun=b"12345678",
        initiator_task_tag=5,
        target_transfer_tag=6,
    )
    assert TextRequest.parse(bhs, bytearray(b"A=b\0")) == TextRequest(False, True, 5, 6, b"12345678", b"A=b\0")


def test_a_thousand_targets_arrive_whole_and_in_order() -> None:
    names = [f"iqn.2020-01.net.example:disk-{number:04}" for number in range(1000)]
    directory = FakeDirectory([make_target(name) for name in names])
    exchange = make_exchange(directory, Parameters(max_send_data_segment_length=512))
    response = exchange.respond(ask(text("SendTargets=All")))
    received = b""
    for _ in range(2000):
        assert response is not None
        assert len(response.data) <= 512
        received += response.data
        if response.final:
            break
        assert response.continue_
        assert response.ttt != RESERVED
        response = exchange.respond(ask(ttt=response.ttt))
    assert response is not None
    assert response.final
    assert not response.continue_
    assert response.ttt == RESERVED
    expected = [line for name in names for line in (f"TargetName={name}", f"TargetAddress={PORTAL},1")]
    assert received.decode().split("\0")[:-1] == expected


def test_a_pair_longer_than_a_segment_is_cut() -> None:
    directory = FakeDirectory(extra_portals=["h" * 240 + ":3260"] * 3)
    exchange = make_exchange(directory, Parameters(max_send_data_segment_length=100))
    response = exchange.respond(ask(text("SendTargets=All")))
    received = b""
    while response is not None and not response.final:
        received += response.data
        response = exchange.respond(ask(ttt=response.ttt))
    assert response is not None
    received += response.data
    assert received.count(b"h" * 240 + b":3260,1\0") == 3


def test_a_new_segment_length_counts_from_the_end_of_the_exchange() -> None:
    parameters = Parameters()
    exchange = make_exchange(FakeDirectory(), parameters, normal=True)
    response = exchange.respond(ask(text("MaxRecvDataSegmentLength=65536"), final=False))
    assert response is not None
    assert not response.final
    assert parameters.max_send_data_segment_length == 8192
    response = exchange.respond(ask(ttt=response.ttt))
    assert response is not None
    assert response.final
    assert parameters.max_send_data_segment_length == 65536


def test_a_reset_exchange_has_no_effect() -> None:
    parameters = Parameters()
    exchange = make_exchange(FakeDirectory(), parameters, normal=True)
    response = exchange.respond(ask(text("MaxRecvDataSegmentLength=65536"), final=False))
    assert response is not None
    exchange.reset()
    assert exchange.respond(ask(ttt=response.ttt)) is None
    response = exchange.respond(ask(text("MaxRecvDataSegmentLength=1024"), final=False))
    assert response is not None
    # A request without a transfer tag begins anew (RFC 7143 11.10.4).
    assert exchange.respond(ask()) is not None
    assert parameters.max_send_data_segment_length == 8192


def test_transfer_tags_are_never_the_reserved_one_and_not_reused_at_once() -> None:
    exchange = make_exchange(FakeDirectory(), Parameters())
    exchange._next_ttt = RESERVED - 1
    tags = []
    for _ in range(3):
        response = exchange.respond(ask(text("SendTargets=All"), final=False))
        assert response is not None
        tags.append(response.ttt)
    assert RESERVED not in tags
    assert len(set(tags)) == 3


def test_the_text_of_one_exchange_is_bounded() -> None:
    exchange = make_exchange(FakeDirectory(), Parameters())
    response = exchange.respond(ask(b"X" * 32768, final=False, continue_=True))
    assert response is not None
    assert exchange.respond(ask(b"X" * 32768, final=False, continue_=True, ttt=response.ttt)) is not None
    assert exchange.respond(ask(b"X", final=False, continue_=True, ttt=response.ttt)) is None
    assert exchange._exchange is None

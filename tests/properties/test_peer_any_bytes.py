"""Whatever arrives at the peer port: it costs at most its own connection, and a bounded amount of memory."""

from typing import Any

from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from san_target.peer.frames import PAYLOAD_BYTES_MAX, REQUEST_BYTES, Request, pack_request
from san_target.peer.lanes import LIMITS
from san_target.peer.served_link import UNSENT_MAX_BYTES, Phase
from tests.support.virtual_time import run
from tests.unit.peer.kit import RawCaller, turns, world, write

# Frames with a right CRC and any fields, so that they get past the first check.
U64 = st.integers(0, (1 << 64) - 1)
ANY_FIELDS = st.builds(
    Request,
    operation=st.integers(0, 255),
    volume_id=st.binary(min_size=16, max_size=16),
    lba=U64,
    blocks=U64,
    payload=st.binary(max_size=64),
    answer_bytes=st.integers(0, (1 << 32) - 1) | st.integers(0, 4096),
    flags=st.integers(0, 0xFFFF),
    request_id=st.integers(0, 5) | U64,
)


def frame(request: Request) -> bytes:
    return pack_request(request) + bytes(request.payload)


@st.composite
def wrong_lengths(draw: st.DrawFn) -> bytes:
    """A header with a right CRC that announces what does not follow."""
    header = pack_request(draw(ANY_FIELDS))
    header = header[:8] + draw(st.integers(0, (1 << 32) - 1)).to_bytes(4, "big") + header[12:-4]
    return header + crc32c(header).to_bytes(4, "big")


PIECES = st.lists(st.binary(max_size=300) | ANY_FIELDS.map(frame) | wrong_lengths(), max_size=12)


def documented(reason: str) -> bool:
    """Is this one of the ends that a connection may come to?"""
    return any(
        text in reason
        for text in (
            "damaged header",
            "damaged payload",
            "damaged message",
            "another protocol",
            "too much was sent",
            "out of order",
            "more requests than were granted",
            "is in use",
            "keepalive with contents",
            "which wants",
            "takes no answers",
            "before the welcome",
        )
    )


@settings(deadline=None, max_examples=150)
@given(pieces=PIECES, proven=st.booleans(), chunk=st.sampled_from([0, 1, 7, 103]), hold=st.booleans())
def test_any_bytes(pieces: list[bytes], proven: bool, chunk: int, hold: bool) -> None:
    async def scenario() -> None:
        async with world() as both:
            caller = await RawCaller(both).connect(hello=proven)
            link: Any = caller_link(both, proven)
            both.owner.hold = hold
            both.wires.chunk = chunk
            for piece in pieces:
                caller.send(piece)
            await turns(10)
            if link.phase is Phase.ENDED:
                assert documented(link.reason), link.reason
                assert caller.ended
            assert link._stream.held_bytes <= REQUEST_BYTES + PAYLOAD_BYTES_MAX
            assert len(link._outstanding) <= sum(each.requests for each in LIMITS)
            assert both.wires.connections[-1][1].unsent_bytes <= UNSENT_MAX_BYTES
            if not proven:
                assert not both.owner.requests
            both.owner.release()
            both.wires.chunk = 0
            assert (await both.link.request(write(1), both.a.now_s() + 1)).status == 0
            assert both.changes == ["up"], "another member's link has noticed nothing"

    run(scenario())


def caller_link(both: Any, proven: bool) -> Any:
    links = [each for each in both.service._links if each.identity.name != "a"]
    assert len(links) == 1
    assert (links[0].phase is Phase.SERVING) == proven
    return links[0]

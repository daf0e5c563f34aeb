"""The server side: who may have a link, in which order, and what a peer that breaks the rules costs."""

import asyncio
from collections.abc import Callable

import pytest
from crc32c import crc32c

from san_target.peer import handshake, served_link, service
from san_target.peer.frames import (
    PAYLOAD_BYTES_MAX,
    REFUSAL_BYTES_MAX,
    Answer,
    Operation,
    Request,
    Status,
    pack_request,
)
from san_target.peer.lanes import LIMITS, LaneName
from san_target.peer.messages import FenceIngress, encode
from san_target.peer.served_link import UNSENT_MAX_BYTES, UNSENT_PAUSE_BYTES
from tests.support.virtual_time import run
from tests.unit.peer.kit import Address, Calls, RawCaller, numbered, own, read, turns, world, write

# --- One link after the other -----------------------------------------------------------------------------------------


def test_a_new_link_waits_until_the_requests_of_the_old_one_have_ended() -> None:
    async def scenario() -> None:
        async with world() as both:
            both.owner.hold = True
            calls = Calls()
            assert both.link.try_send(write(1, b"old"), calls)
            await turns()
            both.transports[0].abort()  # only the caller knows that the connection is gone
            both.link.reset("test")
            await asyncio.sleep(1)
            assert calls.statuses == [Status.LOST]
            assert both.link.state == "connecting"
            assert [peer.lost for peer in both.owner.lost_peers] == [True]
            assert both.service.peers() == []
            _peer, request, answer = both.owner.held.pop()
            both.owner.execute(request, answer)  # it had begun; now it has ended
            await both.up(0.5)
            both.owner.hold = False
            assert (await both.link.request(write(1, b"new"), both.a.now_s() + 1)).status == Status.GOOD
            assert both.owner.medium[1] == b"new"

    run(scenario())


def test_bytes_of_the_old_link_that_arrived_unread_are_discarded() -> None:
    async def scenario() -> None:
        async with world() as both:
            old = await RawCaller(both).connect()
            assert old.welcome
            both.wires.connections[-1][1].pause()  # arrived, not read
            old.send_request(numbered(write(1, b"ghost"), 1))
            await turns()
            new = await RawCaller(both).connect()
            assert new.welcome
            both.wires.connections[-2][1].resume()
            await turns()
            new.send_request(numbered(write(1, b"new"), 2))
            await turns()
            assert [request.payload for request in both.owner.requests] == [b"new"]
            assert old.ended

    run(scenario())


def test_the_rest_of_a_batch_is_discarded_when_the_link_is_replaced_in_its_midst() -> None:
    async def scenario() -> None:
        async with world() as both:
            caller = await RawCaller(both).connect()
            handle = both.owner.handle

            def fenced(peer: object, request: Request, answer: Callable[[Answer], None]) -> None:
                handle(peer, request, answer)  # type: ignore[arg-type]
                asyncio.ensure_future(both.service.fence("c", 1)).add_done_callback(lambda _: None)
                for link in list(both.service._links):
                    if link.identity.name == "c":
                        link.drop("fenced")

            both.owner.handle = fenced  # type: ignore[method-assign]
            caller.send(*(pack_request(numbered(Request(Operation.UNMAP), n)) for n in range(1, 9)))
            await turns()
            assert [request.request_id for request in both.owner.requests] == [1]

    run(scenario())


def test_only_the_newest_of_several_new_links_gets_in() -> None:
    async def scenario() -> None:
        async with world() as both:
            both.owner.hold = True
            first = await RawCaller(both).connect()
            first.send_request(numbered(write(1), 1))
            await turns()
            second = await RawCaller(both).connect()
            third = await RawCaller(both).connect()
            assert (first.ended != "", second.welcome, second.ended != "", third.welcome) == (True, False, True, False)
            both.owner.release()
            await turns()
            assert third.welcome

    run(scenario())


def test_who_waits_too_long_learns_why() -> None:
    async def scenario() -> None:
        async with world() as both:
            both.owner.hold = True
            first = await RawCaller(both).connect()
            first.send_request(numbered(write(1), 1))
            await turns()
            second = await RawCaller(both).connect()
            await asyncio.sleep(5)
            assert second.ended == "requests of the link before have not ended yet"

    run(scenario())


def test_a_control_message_is_cancelled_with_its_link() -> None:
    async def scenario() -> None:
        async with world() as both:
            task = asyncio.ensure_future(both.link.ask(FenceIngress("wait", 1), 30))
            await turns()
            both.wires.cut()
            await both.up(1)
            assert both.owner.controls_cancelled == 1
            await asyncio.gather(task, return_exceptions=True)

    run(scenario())


def test_a_control_message_that_came_right_before_a_reset_ends_too() -> None:
    """Its task is cancelled before it has begun, and cannot say so itself."""

    async def scenario() -> None:
        async with world() as both:
            caller = await RawCaller(both).connect()
            message = encode(FenceIngress("wait", 1))
            caller.send_request(Request(Operation.CONTROL, payload=message, answer_bytes=4096, request_id=1))
            caller.transport.abort()
            await turns()
            async with asyncio.timeout(1):
                await both.service.end()

    run(scenario())


# --- Incarnations and fences ------------------------------------------------------------------------------------------


def test_an_older_life_is_refused_once_a_newer_one_was_here() -> None:
    async def scenario() -> None:
        async with world() as both:
            newer = await RawCaller(both, incarnation=5).connect()  # newer than the view knows: the view may lag
            assert newer.welcome
            older = await RawCaller(both, incarnation=4).connect()
            assert not older.welcome
            assert older.ended == "incarnation 4 of member 'c' has ended"
            assert newer.ended == ""

    run(scenario())


def test_a_newer_life_replaces_an_older_one() -> None:
    async def scenario() -> None:
        async with world() as both:
            both.owner.hold = True
            older = await RawCaller(both, incarnation=1).connect()
            older.send_request(numbered(write(1), 1))
            await turns()
            newer = await RawCaller(both, incarnation=2).connect()
            assert older.ended
            assert not newer.welcome
            both.owner.release()
            await turns()
            assert newer.welcome
            assert [(peer.name, peer.incarnation) for peer in both.service.peers()] == [("a", 1), ("c", 2)]

    run(scenario())


def test_fence() -> None:
    async def scenario() -> None:
        async with world() as both:
            both.owner.hold = True
            caller = await RawCaller(both, incarnation=3).connect()
            caller.send_request(numbered(write(1), 1))
            await turns()
            fence = asyncio.ensure_future(both.service.fence("c", 3))
            await turns()
            assert caller.ended
            assert not fence.done(), "a request of it is under way"
            assert not (await RawCaller(both, incarnation=3).connect()).welcome
            both.owner.release()
            await fence
            assert both.owner.executed == []
            assert not (await RawCaller(both, incarnation=3).connect()).welcome
            assert (await RawCaller(both, incarnation=4).connect()).welcome
            await both.service.fence("c", 3)
            assert [peer.name for peer in both.service.peers()] == ["a", "c"]
            assert both.link.state == "up"

    run(scenario())


def test_the_end_of_a_life_waits_for_what_had_begun_and_another_begins() -> None:
    async def scenario() -> None:
        async with world() as both:
            both.owner.hold = True
            calls = Calls()
            assert both.link.try_send(write(1), calls)
            await turns()
            end = asyncio.ensure_future(both.service.end())
            await asyncio.sleep(2)
            assert not end.done()
            assert calls.statuses == [Status.LOST]
            assert both.link.reason == "this member has not joined the group yet"
            both.owner.release()
            await end
            both.service.begin(own("b", 2), both.known.get)
            await asyncio.sleep(2)
            assert both.link.reason == "incarnation 1 of member 'b' was asked for, this is 2"
            both.peers.follow([Address("b", 2, "b:1")])
            await both.up(1)

    run(scenario())


# --- Ticks ------------------------------------------------------------------------------------------------------------


def test_ticks_go_on_while_the_machine_sleeps() -> None:
    async def scenario() -> None:
        async with world() as both:
            assert both.service.tick_now() == 1
            await asyncio.sleep(0.6)
            assert both.service.tick_now() == 2
            both.b.asleep_s += 30
            assert both.service.tick_now() == 62
            await both.link.request(write(1), both.a.now_s() + 1)
            assert both.link.tick == 62

    run(scenario())


# --- Those who break the rules ----------------------------------------------------------------------------------------


def damaged(frame: bytes, position: int) -> bytes:
    return frame[:position] + bytes((frame[position] ^ 1,)) + frame[position + 1 :]


def with_crc(header: bytes) -> bytes:
    return header[:-4] + crc32c(header[:-4]).to_bytes(4, "big")


GOOD_WRITE = numbered(write(1), 1)
HEADER = pack_request(GOOD_WRITE)
TOO_LONG = with_crc(HEADER[:8] + (0x800001).to_bytes(4, "big") + HEADER[12:])
WANTS_TOO_MUCH = with_crc(HEADER[:-8] + (0x800001).to_bytes(4, "big") + HEADER[-4:])
UNKNOWN_OPERATION = with_crc(HEADER[:3] + b"\x63" + HEADER[4:])
RULE_BREAKERS = {
    "header": (damaged(HEADER, 30) + b"x" * 512, "damaged header"),
    "header crc": (damaged(HEADER, len(HEADER) - 1) + b"x" * 512, "damaged header"),
    "payload": (HEADER + damaged(b"x" * 512, 17), "damaged payload"),
    "magic": (with_crc(b"XX" + HEADER[2:]), "damaged header"),
    "an answer": (with_crc(HEADER[:2] + b"\x02" + HEADER[3:]), "damaged header"),
    "too long": (TOO_LONG, "8388609 bytes"),
    "wants too much": (WANTS_TOO_MUCH, "wants 8388609"),
    "unknown operation": (UNKNOWN_OPERATION, "request 99"),
    "no id": (pack_request(Request(Operation.UNMAP)), "request id 0 is in use"),
    "keepalive with a payload": (pack_request(Request(Operation.NOP, payload=b"x")) + b"x", "keepalive with contents"),
    "keepalive with an id": (pack_request(Request(Operation.NOP, request_id=1)), "keepalive with contents"),
    "another protocol": (b"GET / HTTP/1.1\r\n" + bytes(200), "damaged header"),
}


@pytest.mark.parametrize("name", RULE_BREAKERS)
def test_a_rule_breaker_costs_its_own_link(name: str) -> None:
    sent, reason = RULE_BREAKERS[name]

    async def scenario() -> None:
        async with world() as both:
            caller = await RawCaller(both).connect()
            link = both.service._present["c"]
            caller.send(sent)
            await turns()
            assert reason in link.reason
            assert caller.ended
            assert not both.owner.requests
            assert both.link.state == "up"

    run(scenario())


def test_an_id_is_used_once_at_a_time() -> None:
    async def scenario() -> None:
        async with world() as both:
            caller = await RawCaller(both).connect()
            caller.send_request(numbered(write(1), 1))
            caller.send_request(numbered(write(2), 1))
            await turns()
            assert len(caller.answers) == 2
            both.owner.hold = True
            caller.send_request(numbered(write(1), 1))
            caller.send_request(numbered(write(2), 1))
            await turns()
            assert caller.ended
            assert len(both.owner.requests) == 3

    run(scenario())


@pytest.mark.parametrize("request_", [write(1), read(1, 0), Request(Operation.MIRROR, payload=b"m")])
def test_more_requests_than_were_granted(request_: Request) -> None:
    async def scenario() -> None:
        async with world() as both:
            both.owner.hold = True
            caller = await RawCaller(both).connect()
            link = both.service._present["c"]
            for number in range(1, 1000):
                caller.send_request(numbered(request_, number))
            await turns()
            assert link.reason == "more requests than were granted"
            lane = LaneName.MIRROR if request_.operation == Operation.MIRROR else LaneName.FORWARD
            assert len(both.owner.requests) == LIMITS[lane].requests

    run(scenario())


def test_more_bytes_than_were_granted() -> None:
    async def scenario() -> None:
        async with world() as both:
            both.owner.hold = True
            caller = await RawCaller(both).connect()
            link = both.service._present["c"]
            for number in range(1, 4):
                caller.send_request(numbered(read(1, 8 << 20), number))
            await turns()
            assert link.reason == "more requests than were granted"
            assert len(both.owner.requests) == 2

    run(scenario())


def test_who_takes_no_answers_is_not_read_any_more() -> None:
    async def scenario() -> None:
        async with world() as both:
            caller = await RawCaller(both).connect()
            here, there = both.wires.connections[-1]
            here.pause()
            for number in range(1, 40):
                caller.send_request(numbered(read(1, 1 << 20), number))
                await turns()
            assert UNSENT_PAUSE_BYTES < there.unsent_bytes < UNSENT_PAUSE_BYTES + (2 << 20)
            assert here.unsent_bytes  # waits at its sender
            here.resume()
            await turns(200)
            assert len(caller.answers) == 39
            assert not caller.ended

    run(scenario())


def test_who_wants_ever_more_in_one_batch_and_takes_nothing() -> None:
    async def scenario() -> None:
        async with world() as both:
            caller = await RawCaller(both).connect()
            link = both.service._present["c"]
            here, _there = both.wires.connections[-1]
            here.pause()
            caller.send(*(pack_request(numbered(read(1, 4 << 20), number)) for number in range(1, 1000)))
            await turns()
            assert link.reason == "takes no answers"
            assert len(both.owner.requests) * (4 << 20) <= UNSENT_MAX_BYTES + (8 << 20)

    run(scenario())


def test_requests_before_the_welcome() -> None:
    async def scenario() -> None:
        async with world() as both:
            both.owner.hold = True
            first = await RawCaller(both).connect()
            first.send_request(numbered(write(1), 1))
            await turns()
            second = await RawCaller(both).connect()
            second.send_request(numbered(write(2), 2))
            await turns()
            assert second.ended
            assert len(both.owner.requests) == 1

    run(scenario())


def test_silence_ends_a_link_and_a_slow_handshake_too() -> None:
    async def scenario() -> None:
        async with world() as both:
            silent = await RawCaller(both).connect()
            never = await RawCaller(both).connect(hello=False)
            link = both.service._present["c"]
            await asyncio.sleep(3)
            assert (silent.ended, never.ended) == ("", "")
            await asyncio.sleep(6)
            assert link.reason == "no sign of life"
            assert never.ended
            assert both.link.state == "up"

    run(scenario())


def test_many_that_never_finish_the_handshake_do_not_keep_others_out() -> None:
    async def scenario() -> None:
        async with world() as both:
            idle = [await RawCaller(both).connect(hello=False) for _ in range(service.UNPROVEN_MAX + 8)]
            await turns()
            assert sum(bool(each.ended) for each in idle) == 8
            assert (await RawCaller(both).connect()).welcome

    run(scenario())


def test_a_second_answer_is_our_own_mistake() -> None:
    async def scenario() -> None:
        async with world() as both:
            both.owner.hold = True
            task = asyncio.ensure_future(both.link.request(write(1), both.a.now_s() + 1))
            await turns()
            _peer, request, answer = both.owner.held.pop()
            answer(Answer(request.request_id))
            with pytest.raises(AssertionError, match="second one"):
                answer(Answer(request.request_id))
            await task

    run(scenario())


def test_an_answer_longer_than_asked_for_is_our_own_mistake_too() -> None:
    async def scenario() -> None:
        async with world() as both:
            both.owner.hold = True
            task = asyncio.ensure_future(both.link.request(read(1, 8), both.a.now_s() + 1))
            await turns()
            _peer, request, answer = both.owner.held.pop()
            answer(Answer(request.request_id, payload=b"nine byte"))
            assert (await task).status == Status.FAILED
            assert both.link.state == "up"

    run(scenario())


def test_a_long_reason_is_cut() -> None:
    async def scenario() -> None:
        async with world() as both:
            both.owner.hold = True
            task = asyncio.ensure_future(both.link.request(write(1), both.a.now_s() + 1))
            await turns()
            _peer, request, answer = both.owner.held.pop()
            answer(Answer(request.request_id, Status.BUSY, payload=b"r" * 10_000))
            assert (await task).payload == b"r" * REFUSAL_BYTES_MAX

    run(scenario())


def test_memory_for_answers() -> None:
    memory = service.AnswerMemory(1000)
    first, second = memory.take(600), memory.take(400)
    first[:] = b"1" * 600
    second[:] = b"2" * 400
    assert (bytes(first), bytes(second)) == (b"1" * 600, b"2" * 400)
    assert len(memory.take(500)) == 500, "beyond it there is other memory"
    memory.used_bytes = 0
    memory.take(600)[:] = b"3" * 600
    assert bytes(first) == b"3" * 600
    with pytest.raises(ValueError, match="the most is"):
        memory.take(PAYLOAD_BYTES_MAX + 1)


def test_limits_hold_in_bytes() -> None:
    """What one proven peer can make this side hold, at most."""
    assert UNSENT_MAX_BYTES < 64 << 20
    assert handshake.MESSAGE_BYTES_MAX * service.UNPROVEN_MAX < 1 << 20
    assert served_link.ANSWERS_PER_FLUSH == 16

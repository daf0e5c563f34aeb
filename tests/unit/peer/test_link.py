"""The client side: every request ends with one answer, whatever happens to the connection."""

import asyncio
import itertools

import pytest

from san_target.peer import link as link_module
from san_target.peer.frames import PAYLOAD_BYTES_MAX, Operation, Request, Status
from san_target.peer.link import PeerRefused, PeerUnreachable
from san_target.peer.messages import Done, FenceIngress
from tests.support.virtual_time import run
from tests.unit.peer.kit import BLOCK, Calls, read, turns, world, write


def test_a_written_block_is_read_back() -> None:
    async def scenario() -> None:
        async with world() as both:
            calls = Calls()
            assert both.link.try_send(write(7, b"a" * BLOCK), calls)
            assert both.link.try_send(read(7), calls)
            assert not calls.answers, "done is never called inside try_send"
            await turns()
            assert calls.statuses == [Status.GOOD, Status.GOOD]
            assert calls.answers[1].payload == b"a" * BLOCK
            assert both.link.tick == both.service.tick_now()

    run(scenario())


def test_all_fields_arrive() -> None:
    async def scenario() -> None:
        async with world() as both:
            request = Request(
                Operation.WRITE, bytes(range(16)), 1 << 40, 3, b"p" * 1536, 0, 11, 12, 13, 14, 1, acknowledged=15
            )
            answer = await both.link.request(request, both.a.now_s() + 1)
            assert (answer.request_id, answer.detail) == (request.request_id, 1536)
            assert both.owner.requests == [request]

    run(scenario())


def test_requests_of_one_turn_leave_together_and_so_do_their_answers() -> None:
    async def scenario() -> None:
        async with world() as both:
            await turns()  # the first sign of life
            caller, answerer = both.transports
            sends = caller.sends, answerer.sends
            calls = Calls()
            for lba in range(7):
                assert both.link.try_send(write(lba), calls)
            assert caller.sends == sends[0]
            await turns()
            assert len(calls.answers) == 7
            assert (caller.sends - sends[0], answerer.sends - sends[1]) == (1, 1)

    run(scenario())


def test_more_requests_leave_eight_at_a_time_so_that_the_other_member_can_begin() -> None:
    async def scenario() -> None:
        async with world() as both:
            await turns()  # the first sign of life
            caller, _ = both.transports
            sends = caller.sends
            calls = Calls()
            for lba in range(20):
                assert both.link.try_send(write(lba), calls)
            assert caller.sends - sends == 2
            await turns()
            assert len(calls.answers) == 20
            assert caller.sends - sends == 3

    run(scenario())


def test_more_answers_leave_sixteen_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "REQUESTS_PER_FLUSH", 64)  # so that they all arrive at once

    async def scenario() -> None:
        async with world() as both:
            await turns()  # the first sign of life
            _, answerer = both.transports
            sends = answerer.sends
            calls = Calls()
            for lba in range(40):
                assert both.link.try_send(read(lba), calls)
            await turns()
            assert len(calls.answers) == 40
            assert answerer.sends - sends == 3

    run(scenario())


def test_a_payload_may_be_changed_once_it_was_taken() -> None:
    async def scenario() -> None:
        async with world() as both:
            for size_bytes in (BLOCK, link_module.COPIED_BYTES_MAX + BLOCK):
                data = bytearray(b"a" * size_bytes)
                assert both.link.try_send(write(5, memoryview(data)), Calls())  # type: ignore[arg-type]
                data[:] = b"b" * size_bytes
                await turns()
                assert both.owner.medium[5] == b"a" * size_bytes

    run(scenario())


def test_a_request_sent_again_keeps_its_id() -> None:
    async def scenario() -> None:
        async with world() as both:
            first, second = write(1), write(2)
            for request in (first, second, first):
                await both.link.request(request, both.a.now_s() + 1)
            ids = [request.request_id for request in both.owner.requests]
            assert ids == [first.request_id, second.request_id, first.request_id]
            assert first.request_id != second.request_id

    run(scenario())


def test_an_answer_that_is_no_success_comes_through() -> None:
    async def scenario() -> None:
        async with world() as both:
            answer = await both.link.request(Request(Operation.UNMAP), both.a.now_s() + 1)
            assert (answer.status, answer.detail, answer.payload) == (Status.MOVED, 77, b"member c")

    run(scenario())


def test_a_defect_of_the_owner_costs_the_request_only() -> None:
    async def scenario() -> None:
        async with world() as both:
            calls = Calls()
            assert both.link.try_send(Request(Operation.FLUSH), calls)
            assert both.link.try_send(write(1), calls)
            await turns()
            assert calls.statuses == [Status.FAILED, Status.GOOD]
            assert both.link.state == "up"

    run(scenario())


def test_a_defect_of_who_takes_an_answer_costs_nothing_else() -> None:
    async def scenario() -> None:
        async with world() as both:

            def broken(answer: object) -> None:
                raise RuntimeError("a defect")

            calls = Calls()
            assert both.link.try_send(write(1), broken)
            assert both.link.try_send(write(2), calls)
            await turns()
            assert calls.statuses == [Status.GOOD]

    run(scenario())


# --- Loss -------------------------------------------------------------------------------------------------------------


def test_what_is_under_way_when_the_connection_ends_is_lost_once() -> None:
    async def scenario() -> None:
        async with world() as both:
            both.owner.hold = True
            calls = Calls()
            for lba in range(3):
                assert both.link.try_send(write(lba), calls)
            await turns()
            assert len(both.owner.held) == 3
            both.wires.cut()
            await turns()
            assert calls.statuses == [Status.LOST] * 3
            assert not both.link.try_send(write(9), calls)
            both.owner.release()
            await both.up()
            assert len(calls.answers) == 3
            assert both.changes == ["up", "waiting", "up"]

    run(scenario())


def test_what_had_not_left_is_told_apart() -> None:
    async def scenario() -> None:
        async with world() as both:
            calls = Calls()
            assert both.link.try_send(write(1), calls)
            both.wires.cut()
            await turns()
            assert calls.statuses == [Status.UNSENT]
            assert not both.owner.requests

    run(scenario())


def test_a_waiting_request_says_whether_it_may_have_been_executed() -> None:
    async def scenario() -> None:
        async with world() as both:
            both.owner.hold = True
            task = asyncio.ensure_future(both.link.request(write(1), both.a.now_s() + 10))
            await turns()
            both.wires.cut()
            with pytest.raises(PeerUnreachable, match="member 'b' at b:1") as caught:
                await task
            assert caught.value.maybe_executed

    run(scenario())


def test_a_request_waits_for_the_link() -> None:
    async def scenario() -> None:
        async with world() as both:
            both.wires.cut()
            await turns()
            assert both.link.state == "waiting"
            answer = await both.link.request(write(1), both.a.now_s() + 10)
            assert answer.status == Status.GOOD

    run(scenario())


def test_nobody_there() -> None:
    async def scenario() -> None:
        async with world() as both:
            await both.service.stop()
            await turns()
            before_s = both.a.now_s()
            with pytest.raises(PeerUnreachable, match="Connection refused") as caught:
                await both.link.request(write(1), before_s + 3)
            assert not caught.value.maybe_executed
            assert both.a.now_s() == pytest.approx(before_s + 3)
            with pytest.raises(PeerUnreachable, match="Connection refused"):
                await both.link.settled(both.a.now_s() + 1)

    run(scenario())


def test_the_link_comes_back_by_itself_and_is_not_in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with world() as both:
            tries: list[float] = []
            connect = both.a.connect_peer

            async def counted(*args: object) -> object:
                tries.append(both.a.now_s())
                return await connect(*args)  # type: ignore[arg-type]

            monkeypatch.setattr(both.a, "connect_peer", counted)
            listener = both.wires.listeners.pop("b:1")
            both.wires.cut()
            await asyncio.sleep(20)
            pauses = [later - earlier for earlier, later in itertools.pairwise(tries)]
            assert pauses[:6] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])
            assert pauses[6:] == pytest.approx([1.0] * len(pauses[6:]))
            both.wires.listeners["b:1"] = listener
            await both.up(1.5)
            both.wires.cut()
            before_s = both.a.now_s()
            await turns()
            await both.up(1.0)
            assert both.a.now_s() - before_s == pytest.approx(link_module.BACK_OFF_MIN_S)

    run(scenario())


def test_silence_ends_the_link() -> None:
    async def scenario() -> None:
        async with world() as both:
            calls = Calls()
            both.wires.dead = True
            assert both.link.try_send(write(1), calls)
            before_s = both.a.now_s()
            while both.link.state == "up":
                await asyncio.sleep(0.1)
            assert 3.0 <= both.a.now_s() - before_s <= 4.2
            assert "no sign of life" in both.link.reason
            await turns()
            assert calls.statuses == [Status.LOST]

    run(scenario())


def test_a_quiet_link_stays_and_hears_the_tick() -> None:
    async def scenario() -> None:
        async with world() as both:
            tick = both.link.tick
            await asyncio.sleep(60)
            assert both.changes == ["up"]
            assert 118 <= both.link.tick - tick <= 120
            assert not both.owner.requests

    run(scenario())


# --- Deadlines --------------------------------------------------------------------------------------------------------


def test_a_late_answer_goes_nowhere_and_its_credit_comes_back() -> None:
    async def scenario() -> None:
        async with world() as both:
            both.owner.hold = True
            calls = Calls()
            assert both.link.try_send(write(1), calls, both.a.now_s() + 2)
            assert both.link.try_send(write(2), calls)
            await asyncio.sleep(1.4)
            assert not calls.answers
            await asyncio.sleep(1.2)
            assert calls.statuses == [Status.TIMED_OUT]
            both.owner.release()
            await turns()
            assert calls.statuses == [Status.TIMED_OUT, Status.GOOD]
            assert both.link.state == "up"
            assert {lane.requests for lane in both.link._by_operation} == {0}

    run(scenario())


def test_a_waiting_request_gives_up_at_its_deadline() -> None:
    async def scenario() -> None:
        async with world() as both:
            both.owner.hold = True
            with pytest.raises(PeerUnreachable, match="no answer in time") as caught:
                await both.link.request(write(1), both.a.now_s() + 2)
            assert caught.value.maybe_executed
            both.owner.release()
            await turns()
            assert both.link.state == "up"

    run(scenario())


def test_reset_then_settled_means_that_nothing_runs_any_more() -> None:
    async def scenario() -> None:
        async with world() as both:
            both.owner.hold = True
            calls = Calls()
            assert both.link.try_send(write(1), calls, both.a.now_s() + 1)
            await asyncio.sleep(2)
            assert calls.statuses == [Status.TIMED_OUT]
            both.link.reset("it takes too long")
            settled = asyncio.ensure_future(both.link.settled(both.a.now_s() + 60))
            await asyncio.sleep(10)
            assert not settled.done(), "the request is still under way at the owner"
            assert "have not ended yet" in both.link.reason
            both.owner.release()
            await settled
            assert both.owner.executed == []

    run(scenario())


def test_a_cancelled_request_does_no_harm() -> None:
    async def scenario() -> None:
        async with world() as both:
            both.owner.hold = True
            task = asyncio.ensure_future(both.link.request(write(1), both.a.now_s() + 10))
            await turns()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            both.owner.release()
            await turns()
            assert both.link.state == "up"
            assert not both.link._pending

    run(scenario())


def test_a_request_that_was_given_up_is_asked_again_without_being_sent_again() -> None:
    async def scenario() -> None:
        async with world() as both:
            both.owner.hold = True
            request = write(1)
            for _ in range(3):
                with pytest.raises(PeerUnreachable, match="no answer in time"):
                    await both.link.request(request, both.a.now_s() + 1)
            calls = Calls()
            assert both.link.try_send(request, calls)
            with pytest.raises(AssertionError, match="under way already"):
                both.link.try_send(request, calls)
            assert {lane.requests for lane in both.link._by_operation} == {0, 1}
            both.owner.release()
            await turns()
            assert calls.statuses == [Status.GOOD]
            assert len(both.owner.requests) == 1
            await both.link.request(request, both.a.now_s() + 1)
            assert len(both.owner.requests) == 2, "it is not under way any more"

    run(scenario())


def test_larger_than_any_frame_is_a_mistake_of_ours() -> None:
    async def scenario() -> None:
        async with world() as both:
            for request in (write(1, bytes(PAYLOAD_BYTES_MAX + 1)), read(1, PAYLOAD_BYTES_MAX + 1)):
                with pytest.raises(AssertionError, match="a request of"):
                    both.link.try_send(request, Calls())
            answer = await both.link.request(read(1, PAYLOAD_BYTES_MAX), both.a.now_s() + 1)
            assert len(answer.payload) == PAYLOAD_BYTES_MAX

    run(scenario())


# --- Control messages -------------------------------------------------------------------------------------------------


def test_a_control_message_is_answered() -> None:
    async def scenario() -> None:
        async with world() as both:
            assert await both.link.ask(Done(), 1) == Done()
            assert await both.peers.ask("b", FenceIngress("x", 3), 1) == FenceIngress("x", 4)

    run(scenario())


@pytest.mark.parametrize(("member", "reason"), [("refuse", "not today"), ("defect", "a defect of the program")])
def test_a_control_message_is_refused(member: str, reason: str) -> None:
    async def scenario() -> None:
        async with world() as both:
            with pytest.raises(PeerRefused, match=reason):
                await both.link.ask(FenceIngress(member, 1), 1)
            assert both.link.state == "up"

    run(scenario())


def test_a_reply_longer_than_was_asked_for() -> None:
    async def scenario() -> None:
        async with world() as both:
            with pytest.raises(PeerRefused, match=r"a reply of .* bytes, only 8 were asked for"):
                await both.link.ask(FenceIngress("x", 1), 1, answer_bytes=8)

    run(scenario())


def test_an_unknown_control_message() -> None:
    async def scenario() -> None:
        async with world() as both:
            request = Request(Operation.CONTROL, payload=b"\x81\xa4type\xa3New", answer_bytes=100)
            answer = await both.link.request(request, both.a.now_s() + 1)
            assert answer.status == Status.MALFORMED
            assert both.link.state == "up"

    run(scenario())


def test_a_control_message_is_not_answered_in_time() -> None:
    async def scenario() -> None:
        async with world() as both:
            with pytest.raises(PeerUnreachable, match="no answer in time"):
                await both.link.ask(FenceIngress("wait", 1), 0.05)

    run(scenario())


# --- The end ----------------------------------------------------------------------------------------------------------


def test_stop_ends_everything() -> None:
    async def scenario() -> None:
        async with world() as both:
            both.owner.hold = True
            calls = Calls()
            link = both.link
            assert link.try_send(write(1), calls)
            link.flush()
            task = asyncio.ensure_future(link.request(read(1), both.a.now_s() + 10))
            await turns()
            both.peers.end()
            assert not calls.answers
            with pytest.raises(PeerUnreachable, match="life in the group has ended"):
                await task
            assert calls.statuses == [Status.LOST]
            assert not link.try_send(write(1), calls)
            with pytest.raises(PeerUnreachable, match="life in the group has ended"):
                await link.request(write(2), both.a.now_s() + 10)
            with pytest.raises(PeerUnreachable):
                await link.settled(both.a.now_s() + 10)

    run(scenario())


def test_stop_wakes_those_who_wait_for_a_connection() -> None:
    async def scenario() -> None:
        async with world() as both:
            both.wires.listeners.clear()
            both.wires.cut()
            await turns()
            request = asyncio.ensure_future(both.link.request(write(1), both.a.now_s() + 100))
            settled = asyncio.ensure_future(both.link.settled(both.a.now_s() + 100))
            await turns()
            before_s = both.a.now_s()
            both.peers.end()
            for task in (request, settled):
                with pytest.raises(PeerUnreachable, match="has ended"):
                    await task
            assert both.a.now_s() == before_s

    run(scenario())

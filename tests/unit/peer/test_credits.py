"""Credits: how much may be under way, at both ends, and that one kind of work never waits for another."""

import asyncio

import pytest

from san_target.peer import link as link_module
from san_target.peer.frames import PAYLOAD_BYTES_MAX, Operation, Request, Status
from san_target.peer.lanes import LANE_OF_OPERATION, LIMITS, Lane, LaneLimits, LaneName
from san_target.peer.link import PeerUnreachable
from san_target.peer.messages import Done
from tests.support.virtual_time import run
from tests.unit.peer.kit import Calls, read, turns, world, write

FORWARDS = LIMITS[LaneName.FORWARD]


def test_each_operation_has_its_lane() -> None:
    assert len(LANE_OF_OPERATION) == len(Operation)
    mirrors = {each.name for each in Operation if LANE_OF_OPERATION[each] is LaneName.MIRROR}
    assert mirrors == {"PREPARE", "COPY", "MIRROR", "MIRROR_UNMAP", "SEAL", "HANDOVER", "CANCEL"}
    assert [each for each in Operation if LANE_OF_OPERATION[each] is LaneName.CONTROL] == [Operation.CONTROL]


@pytest.mark.parametrize("limits", LIMITS)
def test_the_largest_request_fits_into_an_empty_lane(limits: LaneLimits) -> None:
    assert Lane(limits).fits(PAYLOAD_BYTES_MAX)


def test_forwards_end_at_their_credit_and_mirrors_and_control_go_on() -> None:
    async def scenario() -> None:
        async with world() as both:
            both.owner.hold = True
            calls = Calls()
            sent = 0
            while both.link.try_send(write(sent), calls):
                sent += 1
            assert sent == FORWARDS.requests
            await turns()
            assert both.link.try_send(Request(Operation.MIRROR, payload=b"m"), calls)
            assert await both.link.ask(Done(), 1) == Done()
            await turns()
            assert both.owner.requests[-1].operation == Operation.MIRROR
            both.owner.release()
            await turns()
            assert calls.statuses == [Status.GOOD] * (sent + 1)
            assert both.link.try_send(write(1), calls)

    run(scenario())


def test_bytes_count_in_both_directions() -> None:
    async def scenario() -> None:
        async with world() as both:
            both.owner.hold = True
            calls = Calls()
            half = FORWARDS.bytes // 2
            assert both.link.try_send(read(0, half), calls)
            assert both.link.try_send(write(1, b"w" * (half - 1)), calls)
            assert not both.link.try_send(read(2, 2), calls)
            assert both.link.try_send(read(2, 1), calls)

    run(scenario())


def test_who_waits_for_credit_is_served_in_order_and_not_overtaken() -> None:
    async def scenario() -> None:
        async with world() as both:
            both.owner.hold = True
            calls = Calls()
            for lba in range(FORWARDS.requests):
                assert both.link.try_send(write(lba), calls)
            tasks = [asyncio.ensure_future(both.link.request(write(1000 + n), both.a.now_s() + 60)) for n in range(3)]
            await turns()
            _peer, request, answer = both.owner.held.pop(0)
            both.owner.execute(request, answer)  # credit for one
            await turns()
            assert [each.lba for each in both.owner.requests[FORWARDS.requests :]] == [1000]
            assert not both.link.try_send(write(2000), calls)
            both.owner.release()
            await asyncio.gather(*tasks)
            assert [each.lba for each in both.owner.requests[FORWARDS.requests :]] == [1000, 1001, 1002]
            assert both.link.try_send(write(2000), calls)

    run(scenario())


def test_who_gives_up_waiting_for_credit_was_not_executed() -> None:
    async def scenario() -> None:
        async with world() as both:
            both.owner.hold = True
            for lba in range(FORWARDS.requests):
                assert both.link.try_send(write(lba), Calls())
            with pytest.raises(PeerUnreachable, match="busy") as caught:
                await both.link.request(write(1000), both.a.now_s() + 1)
            assert not caught.value.maybe_executed
            both.owner.release()
            await turns()
            assert len(both.owner.requests) == FORWARDS.requests

    run(scenario())


def test_waiting_for_credit_outlives_the_connection() -> None:
    async def scenario() -> None:
        async with world() as both:
            both.owner.hold = True
            for lba in range(FORWARDS.requests):
                assert both.link.try_send(write(lba), Calls())
            task = asyncio.ensure_future(both.link.request(write(1000), both.a.now_s() + 60))
            await turns()
            both.wires.cut()
            both.owner.release()
            assert (await task).status == Status.GOOD

    run(scenario())


def test_not_everybody_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(link_module, "WAITING_MAX", 2)
        async with world() as both:
            both.wires.listeners.clear()
            both.wires.cut()
            await turns()
            tasks = [asyncio.ensure_future(both.link.request(write(n), both.a.now_s() + 5)) for n in range(2)]
            await turns()
            with pytest.raises(PeerUnreachable, match="2 requests wait for it already") as caught:
                await both.link.request(write(9), both.a.now_s() + 5)
            assert not caught.value.maybe_executed
            await asyncio.gather(*tasks, return_exceptions=True)

    run(scenario())


def test_two_members_full_of_forwards_that_need_mirrors_get_on() -> None:
    """Each write that b executes needs a mirror at a, and the other way round; both have no credit for more writes."""

    async def scenario() -> None:
        async with world() as both:
            calls, mirrored = Calls(), Calls()
            both.owner.hold = True
            while both.link.try_send(write(1), calls):
                pass
            await turns()
            # b's writes at a wait in the same way; what both need now is room for mirrors.
            for _ in range(LIMITS[LaneName.MIRROR].requests):
                assert both.link.try_send(Request(Operation.MIRROR, payload=b"m"), mirrored)
            await turns()
            held = [each for each in both.owner.held if each[1].operation == Operation.MIRROR]
            assert len(held) == LIMITS[LaneName.MIRROR].requests
            for _peer, request, answer in held:
                both.owner.held.remove((_peer, request, answer))
                both.owner.execute(request, answer)
            await turns()
            assert mirrored.statuses == [Status.GOOD] * len(held)

    run(scenario())

"""Who gets which unit attention, as initiators see it; and RESERVE(6) beside persistent reservations."""

import asyncio

import pytest

from san_target.scsi.command import GOOD, RESERVATION_CONFLICT
from san_target.scsi.logical_unit import LogicalUnit
from san_target.scsi.nexus import Nexus
from tests.unit.scsi.state_support import (
    HOST_A,
    HOST_B,
    HOST_C,
    Surroundings,
    login,
    make_unit,
    reserve_out,
    run,
    sense_of,
)

REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT = range(6)
PREEMPTED, RELEASED, REGISTRATIONS_PREEMPTED = (0x2A, 3), (0x2A, 4), (0x2A, 5)
TEST_UNIT_READY = bytes(6)
RESERVE_6, RELEASE_6 = b"\x16\0\0\0\0\0", b"\x17\0\0\0\0\0"
READ_KEYS = b"\x5e\0\0\0\0\0\0\xff\xff\0"


async def three(unit: LogicalUnit) -> tuple[Nexus, Nexus, Nexus]:
    """Hosts A, B and C, registered with keys 1, 2 and 3; A reserves."""
    first, second, third = login(unit, HOST_A), login(unit, HOST_B), login(unit, HOST_C)
    for nexus, key in ((first, 1), (second, 2), (third, 3)):
        assert (await reserve_out(unit, nexus, REGISTER, action_key=key)).status == GOOD
    return first, second, third


@pytest.mark.parametrize("kind", [1, 3, 5, 6, 7, 8])
def test_release(kind: int) -> None:
    async def scenario() -> None:
        unit = make_unit(Surroundings())
        first, second, third = await three(unit)
        await reserve_out(unit, first, RESERVE, key=1, kind=kind)
        await reserve_out(unit, first, RELEASE, key=1, kind=kind)
        expected = [] if kind in (1, 3) else [RELEASED]
        assert [list(nexus.attentions) for nexus in (first, second, third)] == [[], expected, expected]

    asyncio.run(scenario())


def test_clear_and_how_the_initiator_learns_of_it() -> None:
    async def scenario() -> None:
        unit = make_unit(Surroundings())
        first, second, _ = await three(unit)
        await reserve_out(unit, first, CLEAR, key=1)
        assert list(first.attentions) == []
        assert not second.may_read
        assert sense_of(await run(unit, second, TEST_UNIT_READY)) == (6, *PREEMPTED)
        assert (await run(unit, second, TEST_UNIT_READY)).status == GOOD
        assert second.may_read

    asyncio.run(scenario())


@pytest.mark.parametrize("action", [PREEMPT, PREEMPT_AND_ABORT])
def test_preempt_with_another_type(action: int) -> None:
    async def scenario() -> None:
        unit = make_unit(Surroundings())
        first, second, third = await three(unit)
        await reserve_out(unit, second, RESERVE, key=2, kind=1)
        assert (await reserve_out(unit, first, action, key=1, action_key=2, kind=3)).status == GOOD
        assert list(first.attentions) == []
        assert list(second.attentions) == [REGISTRATIONS_PREEMPTED]
        assert list(third.attentions) == [RELEASED]
        assert unit.reservations.state.type == 3

    asyncio.run(scenario())


def test_nobody_else_is_told() -> None:
    async def scenario() -> None:
        unit = make_unit(Surroundings())
        first, _, _ = await three(unit)
        bystander = login(unit, HOST_B, isid=9)
        await reserve_out(unit, first, CLEAR, key=1)
        assert list(bystander.attentions) == []

    asyncio.run(scenario())


def test_reserve_6_conflicts_with_everything_persistent() -> None:
    async def scenario() -> None:
        unit = make_unit(Surroundings())
        first, second = login(unit, HOST_A), login(unit, HOST_B)
        assert (await run(unit, first, RESERVE_6)).status == GOOD
        assert (await run(unit, first, RESERVE_6)).status == GOOD
        for nexus in (first, second):
            assert (await run(unit, nexus, READ_KEYS)).status == RESERVATION_CONFLICT
            assert (await reserve_out(unit, nexus, REGISTER, action_key=1)).status == RESERVATION_CONFLICT
        assert (await run(unit, second, RESERVE_6)).status == RESERVATION_CONFLICT
        assert (await run(unit, second, RELEASE_6)).status == GOOD
        assert (await run(unit, second, TEST_UNIT_READY)).status == RESERVATION_CONFLICT
        assert (await run(unit, first, RELEASE_6)).status == GOOD
        assert (await run(unit, second, RESERVE_6)).status == GOOD

    asyncio.run(scenario())


@pytest.mark.parametrize("cdb", [RESERVE_6, RELEASE_6])
@pytest.mark.parametrize("kind", [None, 1, 3, 5, 6, 7, 8])
def test_compatible_handling_while_anybody_is_registered(cdb: bytes, kind: int | None) -> None:
    async def scenario() -> None:
        unit = make_unit(Surroundings())
        holder, registered, _ = await three(unit)
        stranger = login(unit, HOST_C, isid=9)
        if kind is not None:
            await reserve_out(unit, holder, RESERVE, key=1, kind=kind)
        before = unit.reservations.state
        statuses = [(await run(unit, nexus, cdb)).status for nexus in (holder, registered, stranger)]
        good_for = {None: 0, 1: 1, 3: 1}.get(kind, 2)
        assert statuses == [GOOD] * good_for + [RESERVATION_CONFLICT] * (3 - good_for)
        assert unit.reservations.state == before
        assert unit.reservations.reserved_by is None

    asyncio.run(scenario())


@pytest.mark.parametrize("cdb", [b"\x16\x01\0\0\0\0", b"\x16\x12\0\0\0\0", b"\x17\x10\0\0\0\0"])
def test_third_party_and_extent_reservations_are_not_offered(cdb: bytes) -> None:
    async def scenario() -> None:
        unit = make_unit(Surroundings())
        assert sense_of(await run(unit, login(unit, HOST_A), cdb)) == (5, 0x24, 0)

    asyncio.run(scenario())

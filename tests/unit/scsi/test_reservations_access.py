"""Every access x type x relation cell of SPC-4's "commands that are allowed in the presence of reservations"."""

import asyncio
import itertools
from types import MappingProxyType

import pytest

from san_target.scsi.operation import Access
from san_target.scsi.reservation_rules import Port, State, Type
from tests.unit.scsi.state_support import HOST_A, HOST_B, HOST_C, Surroundings, login, make_unit

HOLDER, REGISTERED, OTHER = Port("holder", "t"), Port("registered", "t"), Port("other", "t")

# Type -> what a nexus that does not hold the reservation may not do: (registered, not registered).
FORBIDDEN = {
    Type.WRITE_EXCLUSIVE: ("W", "W"),
    Type.EXCLUSIVE_ACCESS: ("RW", "RW"),
    Type.WRITE_EXCLUSIVE_REGISTRANTS_ONLY: ("", "W"),
    Type.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY: ("", "RW"),
    Type.WRITE_EXCLUSIVE_ALL_REGISTRANTS: ("", "W"),
    Type.EXCLUSIVE_ACCESS_ALL_REGISTRANTS: ("", "RW"),
}
LETTER = {Access.READ: "R", Access.WRITE: "W"}


@pytest.mark.parametrize(("kind", "access", "port"), list(itertools.product(Type, Access, (HOLDER, REGISTERED, OTHER))))
def test_cell(kind: Type, access: Access, port: Port) -> None:
    state = State(registrations=MappingProxyType({HOLDER: 1, REGISTERED: 2}), holder=HOLDER, type=kind)
    registered_may_not, other_may_not = FORBIDDEN[kind]
    forbidden = {HOLDER: "", REGISTERED: registered_may_not, OTHER: other_may_not}[port]
    assert state.conflicts(port, access) == (LETTER.get(access, "-") in forbidden)


@pytest.mark.parametrize("access", Access)
def test_no_reservation_conflicts_with_nobody(access: Access) -> None:
    state = State(registrations=MappingProxyType({HOLDER: 1}))
    assert not any(state.conflicts(port, access) for port in (HOLDER, REGISTERED, OTHER))


@pytest.mark.parametrize("access", Access)
def test_reserve_6_of_another_nexus(access: Access) -> None:
    async def scenario() -> None:
        unit = make_unit(Surroundings())
        first, second = login(unit, HOST_A), login(unit, HOST_B)
        assert (await unit.reservations.reserve_6(first)).status == 0
        assert not unit.reservations.conflict(first, access)
        assert unit.reservations.conflict(second, access) == (access not in (Access.ALWAYS, Access.RESERVE_6))

    asyncio.run(scenario())


def test_flags_of_the_hot_path_follow_every_change() -> None:
    async def scenario() -> None:
        surroundings = Surroundings()
        unit = make_unit(surroundings)
        first, second, third = login(unit, HOST_A), login(unit, HOST_B), login(unit, HOST_C)
        assert all(nexus.may_read and nexus.may_write for nexus in (first, second, third))
        await unit.reservations.reserve_6(first)
        assert (first.may_read, first.may_write) == (True, True)
        assert (second.may_read, second.may_write) == (False, False)
        unit.reservations.forget(first)
        await asyncio.gather(*surroundings.spawned)
        assert (second.may_read, second.may_write) == (True, True)
        await unit.reservations.reserve_6(second)
        assert await unit.reset_everywhere()
        third.attentions.clear()
        unit.refresh_all()
        assert (third.may_read, third.may_write) == (True, True)

    asyncio.run(scenario())


def test_a_reserve_6_outlives_its_session_only_while_the_store_is_away() -> None:
    async def scenario() -> None:
        surroundings = Surroundings()
        unit = make_unit(surroundings)
        first, second = login(unit, HOST_A), login(unit, HOST_B)
        await unit.reservations.reserve_6(first)
        surroundings.store_away = True
        unit.detach(first)
        for _ in range(20):
            await asyncio.sleep(0)
        assert not second.may_write
        surroundings.store_away = False
        await asyncio.gather(*surroundings.spawned)
        assert second.may_write

    asyncio.run(scenario())

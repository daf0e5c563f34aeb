"""Durable before effect, one change at a time, and what becomes of a record after a restart."""

import asyncio

import pytest

from san_target.metadata.schema import RegistrationRecord, ReservationsRecord
from san_target.scsi.command import BUSY, GOOD, RESERVATION_CONFLICT, Command, Outcome
from san_target.scsi.nexus import Nexus
from san_target.scsi.reservations import record_of, state_of
from tests.unit.scsi.state_support import (
    HOST_A,
    HOST_B,
    HOST_C,
    TARGET,
    Surroundings,
    login,
    make_unit,
    reserve_out,
    reserve_out_cdb,
    reserve_out_data,
)

REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT = range(6)
WRITE_EXCLUSIVE = 1
APTPL = 1


def test_a_change_is_stored_before_it_takes_effect() -> None:
    async def scenario() -> None:
        surroundings = Surroundings()
        unit = make_unit(surroundings)
        first, second = login(unit, HOST_A), login(unit, HOST_B)
        await reserve_out(unit, first, REGISTER, action_key=1)
        surroundings.store_gate = asyncio.Event()
        reserving = asyncio.create_task(reserve_out(unit, first, RESERVE, key=1, kind=WRITE_EXCLUSIVE))
        await asyncio.sleep(0)
        assert second.may_write
        assert unit.reservations.state.type is None
        surroundings.store_gate.set()
        assert (await reserving).status == GOOD
        assert not second.may_write
        assert surroundings.saved[-1] == unit.shared.record

    asyncio.run(scenario())


def test_a_store_that_is_away_means_busy_and_no_change() -> None:
    async def scenario() -> None:
        surroundings = Surroundings()
        unit = make_unit(surroundings)
        first, second = login(unit, HOST_A), login(unit, HOST_B)
        await reserve_out(unit, first, REGISTER, action_key=1)
        before, epoch = unit.reservations.state, unit.shared.epoch
        surroundings.store_away = True
        assert (await reserve_out(unit, first, RESERVE, key=1, kind=WRITE_EXCLUSIVE)).status == BUSY
        assert (unit.reservations.state, unit.shared.epoch) == (before, epoch)
        assert second.may_write
        surroundings.store_away = False
        assert (await reserve_out(unit, first, RESERVE, key=1, kind=WRITE_EXCLUSIVE)).status == GOOD

    asyncio.run(scenario())


def test_what_changes_nothing_needs_no_store() -> None:
    async def scenario() -> None:
        surroundings = Surroundings()
        unit = make_unit(surroundings)
        nexus = login(unit, HOST_A)
        await reserve_out(unit, nexus, REGISTER, action_key=1)
        surroundings.store_away = True
        assert (await reserve_out(unit, nexus, RELEASE, key=1, kind=WRITE_EXCLUSIVE)).status == GOOD

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("action", "key", "action_key"), [(REGISTER, 1, 0), (RELEASE, 1, 0), (CLEAR, 1, 0), (PREEMPT, 1, 2)]
)
def test_what_was_done_and_not_known_to_all_is_not_done_twice(action: int, key: int, action_key: int) -> None:
    """A repeated command would conflict with its own first attempt; GOOD comes when everybody goes by it."""

    async def scenario() -> None:
        surroundings = Surroundings()
        unit = make_unit(surroundings)
        nexus, other = login(unit, HOST_A), login(unit, HOST_B)
        await reserve_out(unit, nexus, REGISTER, action_key=1)
        await reserve_out(unit, other, REGISTER, action_key=2)
        await reserve_out(unit, nexus, RESERVE, key=1, kind=WRITE_EXCLUSIVE)
        surroundings.members_away = True
        kind = 0 if action in (REGISTER, CLEAR) else WRITE_EXCLUSIVE
        for _ in range(2):
            assert (await reserve_out(unit, nexus, action, key, action_key, kind)).status == BUSY
        stored = len(surroundings.saved)
        surroundings.members_away = False
        assert (await reserve_out(unit, nexus, action, key, action_key, kind)).status == GOOD
        assert len(surroundings.saved) == stored == surroundings.told[-1] == unit.shared.epoch
        # That was the end of it: once more is another command.
        if action != RELEASE:
            assert (await reserve_out(unit, nexus, action, key, action_key, kind)).status == RESERVATION_CONFLICT

    asyncio.run(scenario())


def test_a_repeated_command_is_another_one_after_any_change() -> None:
    async def scenario() -> None:
        surroundings = Surroundings()
        unit = make_unit(surroundings)
        nexus, other = login(unit, HOST_A), login(unit, HOST_B)
        surroundings.members_away = True
        assert (await reserve_out(unit, nexus, REGISTER, action_key=1)).status == BUSY
        surroundings.members_away = False
        assert (await reserve_out(unit, other, REGISTER, action_key=1)).status == GOOD
        assert (await reserve_out(unit, nexus, REGISTER, action_key=1)).status == RESERVATION_CONFLICT

    asyncio.run(scenario())


def test_what_changes_nothing_is_good_when_all_know_that_it_is_so() -> None:
    """The state may be there, and a member not go by it yet that others are served by."""

    async def scenario() -> None:
        surroundings = Surroundings()
        unit = make_unit(surroundings)
        nexus = login(unit, HOST_A)
        await reserve_out(unit, nexus, REGISTER, action_key=1)
        surroundings.members_away = True
        assert (await reserve_out(unit, nexus, RESERVE, key=1, kind=WRITE_EXCLUSIVE)).status == BUSY
        elsewhere = login(unit, HOST_A, isid=2)  # not the command that made it so
        await reserve_out(unit, elsewhere, REGISTER, action_key=1)
        assert (await reserve_out(unit, nexus, RESERVE, key=1, kind=WRITE_EXCLUSIVE)).status == BUSY
        surroundings.members_away = False
        assert (await reserve_out(unit, nexus, RESERVE, key=1, kind=WRITE_EXCLUSIVE)).status == GOOD
        assert surroundings.told[-1] == unit.shared.epoch

    asyncio.run(scenario())


def test_changes_are_made_one_after_the_other() -> None:
    async def scenario() -> None:
        surroundings = Surroundings()
        unit = make_unit(surroundings)
        first, second = login(unit, HOST_A), login(unit, HOST_B)
        await reserve_out(unit, first, REGISTER, action_key=1)
        await reserve_out(unit, second, REGISTER, action_key=2)
        surroundings.store_gate = asyncio.Event()
        race = [
            asyncio.create_task(reserve_out(unit, nexus, RESERVE, key=key, kind=WRITE_EXCLUSIVE))
            for nexus, key in ((first, 1), (second, 2))
        ]
        await asyncio.sleep(0)
        surroundings.store_gate.set()
        assert [outcome.status for outcome in await asyncio.gather(*race)] == [GOOD, RESERVATION_CONFLICT]
        assert len(surroundings.saved) == 3

    asyncio.run(scenario())


def test_a_nexus_that_ended_while_its_command_waited_changes_nothing() -> None:
    async def scenario() -> None:
        surroundings = Surroundings()
        unit = make_unit(surroundings)
        first, second = login(unit, HOST_A), login(unit, HOST_B)
        await reserve_out(unit, first, REGISTER, action_key=1)
        surroundings.store_gate = asyncio.Event()
        one = asyncio.create_task(reserve_out(unit, first, RESERVE, key=1, kind=WRITE_EXCLUSIVE))
        two = asyncio.create_task(reserve_out(unit, second, REGISTER, action_key=2))
        await asyncio.sleep(0)
        unit.detach(second)
        surroundings.store_gate.set()
        assert (await one).status == GOOD
        await two
        assert len(unit.reservations.state.registrations) == 1

    asyncio.run(scenario())


def test_reserve_6_waits_out_a_change_under_way() -> None:
    async def scenario() -> None:
        surroundings = Surroundings()
        unit = make_unit(surroundings)
        first, second = login(unit, HOST_A), login(unit, HOST_B)
        surroundings.store_gate = asyncio.Event()
        registering = asyncio.create_task(reserve_out(unit, first, REGISTER, action_key=1))
        await asyncio.sleep(0)
        reserving = asyncio.create_task(unit.reservations.reserve_6(second))
        await asyncio.sleep(0)
        surroundings.store_gate.set()
        assert (await registering).status == GOOD
        assert (await reserving).status == RESERVATION_CONFLICT

    asyncio.run(scenario())


def test_a_cancelled_change_lets_the_next_one_pass() -> None:
    async def scenario() -> None:
        surroundings = Surroundings()
        unit = make_unit(surroundings)
        nexus = login(unit, HOST_A)
        surroundings.store_gate = asyncio.Event()
        stuck = asyncio.create_task(reserve_out(unit, nexus, REGISTER, action_key=1))
        await asyncio.sleep(0)
        stuck.cancel()
        surroundings.store_gate.set()
        assert (await reserve_out(unit, nexus, REGISTER, action_key=2)).status == GOOD
        assert list(unit.reservations.state.registrations.values()) == [2]

    asyncio.run(scenario())


@pytest.mark.parametrize("aptpl", [False, True])
@pytest.mark.parametrize("power_lost", [False, True])
def test_restart(aptpl: bool, power_lost: bool) -> None:
    async def scenario() -> None:
        surroundings = Surroundings()
        unit = make_unit(surroundings)
        nexus = login(unit, HOST_A)
        await reserve_out(unit, nexus, REGISTER, action_key=1, flags=APTPL if aptpl else 0)
        await reserve_out(unit, nexus, RESERVE, key=1, kind=WRITE_EXCLUSIVE)
        again = make_unit(Surroundings())
        stranger, same = login(again, HOST_B), login(again, HOST_A)
        again.shared.load(surroundings.saved[-1], 7, power_lost)
        kept = aptpl or not power_lost
        assert stranger.may_write == (not kept)
        assert same.may_write
        assert again.reservations.holds(same) == kept
        assert again.reservations.state.generation == unit.reservations.state.generation
        if kept:
            assert again.reservations.state == unit.reservations.state

    asyncio.run(scenario())


def test_registrations_survive_the_session() -> None:
    async def scenario() -> None:
        unit = make_unit(Surroundings())
        first, second = login(unit, HOST_A), login(unit, HOST_B)
        await reserve_out(unit, first, REGISTER, action_key=1)
        await reserve_out(unit, first, RESERVE, key=1, kind=WRITE_EXCLUSIVE)
        unit.detach(first)
        assert not second.may_write
        assert login(unit, HOST_A).may_write
        assert not login(unit, HOST_A, isid=2).may_write

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "record",
    [
        ReservationsRecord(generation=1, holder=0, type=1),
        ReservationsRecord(generation=1, registrations=(RegistrationRecord(HOST_A, TARGET, 1),), holder=0, type=0),
        ReservationsRecord(generation=1, registrations=(RegistrationRecord(HOST_A, TARGET, 1),), holder=0, type=2),
        ReservationsRecord(generation=1, registrations=(RegistrationRecord(HOST_A, TARGET, 1),) * 2),
    ],
)
def test_a_record_that_makes_no_sense_is_refused(record: ReservationsRecord) -> None:
    with pytest.raises(ValueError):
        state_of(record)


def test_records_keep_everything() -> None:
    async def scenario() -> None:
        unit = make_unit(Surroundings())
        for index, host in enumerate((HOST_A, HOST_B, HOST_C), 1):
            await reserve_out(unit, login(unit, host), REGISTER, action_key=index, flags=APTPL)
        await reserve_out(unit, login(unit, HOST_B), RESERVE, key=2, kind=8)
        state = unit.reservations.state
        assert state_of(record_of(state)) == state
        assert list(state_of(record_of(state)).registrations) == list(state.registrations)

    asyncio.run(scenario())


@pytest.mark.parametrize("action", [PREEMPT, PREEMPT_AND_ABORT])
def test_preempt_is_answered_after_the_preempted_commands_ended(action: int) -> None:
    async def scenario() -> None:
        unit = make_unit(Surroundings())
        first, second, third = login(unit, HOST_A), login(unit, HOST_B), login(unit, HOST_C)
        for nexus, key in ((first, 1), (second, 2), (third, 3)):
            await reserve_out(unit, nexus, REGISTER, action_key=key)
        ended = asyncio.Event()
        asked: list[tuple[str, list[Nexus]]] = []

        async def abort_tasks(nexuses: list[Nexus]) -> None:
            asked.append(("abort", nexuses))
            await ended.wait()

        async def drain(nexuses: list[Nexus]) -> None:
            asked.append(("drain", nexuses))
            await ended.wait()

        unit.abort_tasks, unit.reservations.drain = abort_tasks, drain
        preempting = asyncio.create_task(reserve_out(unit, first, action, key=1, action_key=2, kind=1))
        for _ in range(10):
            await asyncio.sleep(0)
        assert asked == [("abort" if action == PREEMPT_AND_ABORT else "drain", [second])]
        assert not preempting.done()
        assert list(unit.reservations.state.registrations.values()) == [1, 3]
        ended.set()
        assert (await preempting).status == GOOD

    asyncio.run(scenario())


def test_preempt_waits_for_a_copy_from_another_unit() -> None:
    async def scenario() -> None:
        unit = make_unit(Surroundings())
        first, second = login(unit, HOST_A), login(unit, HOST_B)
        await reserve_out(unit, first, REGISTER, action_key=1)
        await reserve_out(unit, second, REGISTER, action_key=2)
        port = next(port for port in unit.reservations.state.registrations if port.initiator.startswith(HOST_B))
        with unit.reservations.guest_write(port):
            preempting = asyncio.create_task(reserve_out(unit, first, PREEMPT, key=1, action_key=2, kind=1))
            for _ in range(10):
                await asyncio.sleep(0)
            assert not preempting.done()
        assert (await preempting).status == GOOD

    asyncio.run(scenario())


def test_an_aborted_command_in_the_queue_is_not_carried_out() -> None:
    async def scenario() -> Outcome:
        unit = make_unit(Surroundings())
        command = Command(login(unit, HOST_A), reserve_out_cdb(REGISTER).ljust(16, b"\0"), reserve_out_data(0, 1))
        command.aborted = True
        outcome = await unit.execute(command)
        assert unit.reservations.state.registrations == {}
        return outcome

    assert asyncio.run(scenario()).status == 0x40

"""What happens to a path, and what the submitter of a command notices: that it took a little longer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from initiator_sim import cdb
from initiator_sim.client import Disk, Initiator
from initiator_sim.login import LoginError
from initiator_sim.nexus import Event, Kind
from initiator_sim.path import Path
from initiator_sim.personalities import ESXI, LIBISCSI, OPEN_ISCSI, WINDOWS, Personality
from initiator_sim.task import Failure, Task
from san_target.wire import opcodes
from tests.unit.initiator_sim.fake_target import FakeTarget

IQN = "iqn.2026-01.org.example:disk"
QUICK = replace(ESXI, reconnect_gap_s=0.0, login_retry_s=0.05, login_timeout_s=5.0)

Scenario = Callable[[FakeTarget, FakeTarget], Awaitable[None]]


def play(scenario: Scenario) -> None:
    async def run() -> None:
        async with asyncio.timeout(20), FakeTarget() as first, FakeTarget() as second:
            await scenario(first, second)

    asyncio.run(run())


async def connect(target: FakeTarget, personality: Personality = QUICK, **options: Any) -> tuple[Path, Disk]:
    path = Initiator(personality=personality).path(target.portal, IQN, **options)
    await path.connect()
    await target.next_visit()
    disk = Disk([path], 0)
    disk.block_bytes = 512
    return path, disk


async def until(condition: Callable[[], object]) -> None:
    """Wait for it; the scenario's own time limit is the end of patience."""
    while not condition():
        await asyncio.sleep(0.01)


def kinds(path: Path) -> list[Kind]:
    return [event.kind for event in path.events]


def test_a_redirection_is_followed() -> None:
    async def scenario(first: FakeTarget, second: FakeTarget) -> None:
        first.redirect = second.portal + ",1"
        path = Initiator(personality=QUICK).path(first.portal, IQN)
        await path.connect()
        visit = await second.next_visit()
        assert visit.login_keys["TargetName"] == IQN
        assert (path.address, kinds(path)) == (second.portal, [Kind.REDIRECTED, Kind.UP])
        await path.close()
        assert visit.logged_out

    play(scenario)


def test_a_redirection_loop_has_an_end() -> None:
    async def scenario(first: FakeTarget, second: FakeTarget) -> None:
        first.redirect, second.redirect = second.portal, first.portal
        path = Initiator(personality=QUICK).path(first.portal, IQN)
        with pytest.raises(LoginError, match="redirection loop"):
            await path.connect()
        assert first.connections + second.connections == QUICK.redirects_max + 1

    play(scenario)


@pytest.mark.parametrize(("personality", "follows"), [(OPEN_ISCSI, True), (LIBISCSI, False)])
def test_a_permanent_redirection(personality: Personality, follows: bool) -> None:
    async def scenario(first: FakeTarget, second: FakeTarget) -> None:
        first.redirect, first.redirect_detail = second.portal, 2
        path = Initiator(personality=personality).path(first.portal, IQN)
        if follows:
            await path.connect()
            await path.close()
        else:
            with pytest.raises(LoginError, match="0x0102"):
                await path.connect()

    play(scenario)


def test_a_refused_login_is_tried_again_only_where_that_can_help() -> None:
    async def scenario(first: FakeTarget, second: FakeTarget) -> None:
        first.refusals = [0x0301, 0x0301]
        path, _ = await connect(first)
        await path.close()
        assert first.connections == 3
        second.refusals = [0x0203]
        with pytest.raises(LoginError, match="target not found"):
            await Initiator(personality=QUICK).path(second.portal, IQN).connect()
        assert second.connections == 1

    play(scenario)


def test_a_lost_connection_is_made_again_and_commands_are_sent_again() -> None:
    async def scenario(first: FakeTarget, second: FakeTarget) -> None:
        path, disk = await connect(first)
        reissued: list[Task] = []
        path.on_reissue = reissued.append
        first.silent = True
        reading = asyncio.ensure_future(disk.read(7, 1))
        await until(lambda: first.visits[0].commands)
        first.silent = False
        first.visits[0].drop()
        assert await reading == bytes(512)
        assert (len(reissued), path.logins, path.moves) == (1, 2, 0)
        assert [visit.commands[0].cdb for visit in first.visits] == [cdb.read16(7, 1)] * 2
        await path.close()

    play(scenario)


@pytest.mark.parametrize("event", [opcodes.ASYNC_LOGOUT_REQUEST, opcodes.ASYNC_NEGOTIATION_REQUEST])
def test_a_request_to_log_out_moves_the_session(event: int) -> None:
    async def scenario(first: FakeTarget, second: FakeTarget) -> None:
        path, disk = await connect(first)
        first.redirect = second.portal
        first.visits[0].ask(event)
        await second.next_visit()
        assert await disk.read(0, 1) == bytes(512)
        assert first.visits[0].logged_out
        assert (path.moves, path.address) == (1, second.portal)
        assert Kind.ASKED_TO_MOVE in kinds(path)
        await path.close()

    play(scenario)


@pytest.mark.parametrize("event", [opcodes.ASYNC_CONNECTION_DROP, opcodes.ASYNC_SESSION_DROP])
def test_an_announced_drop_is_waited_for(event: int) -> None:
    async def scenario(first: FakeTarget, second: FakeTarget) -> None:
        # DefaultTime2Wait would be an hour: the message's Time2Wait of 0 is what counts.
        first.time2wait_s = 3600
        path, _ = await connect(first)
        first.redirect = second.portal
        first.visits[0].ask(event, 0)
        first.visits[0].drop()
        await second.next_visit()
        await until(lambda: path.moves == 1)
        assert not first.visits[0].logged_out
        await path.close()

    play(scenario)


def test_windows_renegotiates_when_asked_to() -> None:
    async def scenario(first: FakeTarget, second: FakeTarget) -> None:
        path, disk = await connect(first, replace(WINDOWS, login_timeout_s=5.0))
        session = path.session
        assert session is not None
        first.text = [("MaxRecvDataSegmentLength", "4096")]
        first.visits[0].ask(opcodes.ASYNC_NEGOTIATION_REQUEST)
        await until(lambda: session.parameters.max_send_data_segment_length == 4096)
        assert [header.opcode for header in first.visits[0].requests] == [opcodes.TEXT_REQUEST]
        assert await disk.read(0, 1) == bytes(512)
        assert (path.session, path.logins) == (session, 1)
        await path.close()

    play(scenario)


def test_a_renegotiated_length_must_be_one() -> None:
    async def scenario(first: FakeTarget, second: FakeTarget) -> None:
        path, _ = await connect(first, replace(WINDOWS, login_timeout_s=5.0, login_retry_s=0.05))
        first.text = [("MaxRecvDataSegmentLength", "1")]
        first.visits[0].ask(opcodes.ASYNC_NEGOTIATION_REQUEST)
        await until(lambda: path.violations)
        assert "MaxRecvDataSegmentLength=1" in path.violations[0]
        path.abort()

    play(scenario)


def test_a_logout_without_an_answer_is_waited_for_and_then_left() -> None:
    async def scenario(first: FakeTarget, second: FakeTarget) -> None:
        path, disk = await connect(first, replace(QUICK, logout_timeout_s=0.3))
        first.deaf = first.lingers = True
        first.visits[0].ask(opcodes.ASYNC_LOGOUT_REQUEST)
        await first.next_visit()
        assert first.visits[0].logged_out
        assert any("Logout" in event.text for event in path.events)
        assert await disk.read(0, 1) == bytes(512)
        path.abort()

    play(scenario)


@pytest.mark.parametrize("close_wait_s", [0.0, 0.2])
def test_the_initiator_closes_where_the_target_does_not(close_wait_s: float) -> None:
    async def scenario(first: FakeTarget, second: FakeTarget) -> None:
        path, _ = await connect(first, replace(QUICK, close_wait_s=close_wait_s))
        first.lingers = True
        first.redirect = second.portal
        first.visits[0].ask(opcodes.ASYNC_LOGOUT_REQUEST)
        await second.next_visit()
        await until(lambda: path.moves)
        path.abort()

    play(scenario)


def test_commands_that_come_while_the_session_moves_are_not_lost() -> None:
    async def scenario(first: FakeTarget, second: FakeTarget) -> None:
        path, disk = await connect(first)
        first.silent = True
        before = asyncio.ensure_future(disk.read(1, 1))
        await until(lambda: first.visits[0].commands)
        during: list[asyncio.Future[bytes]] = []

        def lost(_: Path, event: Event) -> None:
            if event.kind is Kind.LOST:
                during.append(asyncio.ensure_future(disk.read(2, 1)))

        path.on_event = lost
        first.redirect = second.portal
        first.visits[0].ask(opcodes.ASYNC_LOGOUT_REQUEST)
        assert await before == bytes(512)
        assert await asyncio.gather(*during) == [bytes(512)]
        assert [command.cdb for command in second.visits[0].commands] == [cdb.read16(1, 1), cdb.read16(2, 1)]
        await path.close()

    play(scenario)


def test_only_what_was_sent_counts_as_sent_again() -> None:
    async def scenario(first: FakeTarget, second: FakeTarget) -> None:
        path, _ = await connect(first, depth=2)
        again: list[Task] = []
        path.on_reissue = again.append
        ended: list[Task] = []
        tasks = [Task(cdb.read16(number, 1), ended.append, read_bytes=512) for number in range(4)]
        first.silent = True
        for task in tasks:
            path.submit(task)
        await until(lambda: len(first.visits[0].commands) == 2)
        first.silent = False
        path.drop_connection()
        await until(lambda: len(ended) == 4)
        assert again == tasks[:2]
        await path.close()

    play(scenario)


def test_libiscsi_takes_a_new_isid_and_open_iscsi_keeps_it() -> None:
    async def scenario(first: FakeTarget, second: FakeTarget) -> None:
        for target, personality in ((first, LIBISCSI), (second, OPEN_ISCSI)):
            path, _ = await connect(target, replace(personality, reconnect_gap_s=0.0, obeys_time2wait=False))
            path.drop_connection()
            await target.next_visit()
            assert (target.visits[0].isid == target.visits[1].isid) == (personality is OPEN_ISCSI)
            await path.close()

    play(scenario)


def test_a_silent_target_is_noticed_by_its_missing_ping() -> None:
    async def scenario(first: FakeTarget, second: FakeTarget) -> None:
        path, _ = await connect(first, replace(QUICK, nop_interval_s=0.2, nop_timeout_s=0.2))
        first.silent = True
        await first.next_visit()
        assert any("NOP" in event.text for event in path.events)
        await path.close()

    play(scenario)


def test_a_command_without_an_answer_is_aborted() -> None:
    async def scenario(first: FakeTarget, second: FakeTarget) -> None:
        path, disk = await connect(first, replace(QUICK, command_timeout_s=0.3))
        first.silent = True
        task = await disk.once(cdb.read16(0, 1), read_bytes=512)
        assert task.failure is Failure.ABORTED
        assert Kind.TIMED_OUT in kinds(path)
        path.abort()

    play(scenario)


def test_a_target_deaf_to_aborts_is_left() -> None:
    async def scenario(first: FakeTarget, second: FakeTarget) -> None:
        impatient = replace(QUICK, command_timeout_s=0.3, abort_timeout_s=0.3, reset_timeout_s=0.3)
        path, disk = await connect(first, impatient)
        first.silent = first.deaf = True
        reading = asyncio.ensure_future(disk.read(0, 1))
        await first.next_visit()
        functions = [header.function for header in first.visits[0].requests]
        assert functions == [opcodes.ABORT_TASK, opcodes.LOGICAL_UNIT_RESET]
        path.abort()
        with pytest.raises(Exception, match="no path"):
            await reading

    play(scenario)


def test_commands_fail_when_the_target_does_not_come_back() -> None:
    async def scenario(first: FakeTarget, second: FakeTarget) -> None:
        path, disk = await connect(first, replace(QUICK, replacement_timeout_s=0.3))
        first.refusals = [0x0301] * 100
        path.drop_connection()
        task = await disk.once(cdb.read16(0, 1), read_bytes=512)
        assert task.failure is Failure.PATH_LOST
        assert path.failed
        late = await disk.once(cdb.read16(0, 1), read_bytes=512)
        assert late.failure is Failure.PATH_LOST

    play(scenario)


def test_a_broken_rule_ends_the_connection_and_is_remembered() -> None:
    async def scenario(first: FakeTarget, second: FakeTarget) -> None:
        path, _ = await connect(first)
        first.visits[0].send(opcodes.SCSI_RESPONSE, initiator_task_tag=99)
        await first.next_visit()
        assert "does not exist" in path.violations[0]
        await path.close()

    play(scenario)

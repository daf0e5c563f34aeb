"""Ends of tasks in every state: each ends once, none lives on behind the answer that says it has ended."""

import asyncio

import pytest

from san_target.session.connection import Stage
from san_target.session.parameters import TargetLimits
from san_target.wire import opcodes, pdus
from tests.support.session_driver import Driver, OneTarget
from tests.unit.session.conftest import PausedDevice
from tests.unit.session.test_connection_commands import BLOCK, logged_in, pattern, read_16, write_16

ORDERED, HEAD_OF_QUEUE = 2, 3
TEST_UNIT_READY = bytes(6)
FUNCTIONS = [opcodes.ABORT_TASK_SET, opcodes.CLEAR_TASK_SET, opcodes.LOGICAL_UNIT_RESET, opcodes.TARGET_WARM_RESET]


def window(driver: Driver) -> int:
    return driver.connection.max_cmd_sn - driver.connection.exp_cmd_sn + 1


def manage(driver: Driver, function: int, referenced: int = opcodes.RESERVED_TAG) -> int:
    return driver.send(
        opcodes.TASK_MANAGEMENT_REQUEST,
        immediate=True,
        in_order=False,
        cmd_sn=driver.cmd_sn,
        function=function,
        referenced_task_tag=referenced,
    )


def in_every_state(driver: Driver, device: PausedDevice) -> None:
    """Tasks with the storage, waiting for older ones (one that could be served at once too), and collecting data."""
    device.at_once = False
    device.pause()
    driver.command(write_16(0, 1), pattern(1, 1), write=BLOCK)
    driver.command(write_16(1, 1), pattern(1, 2), write=BLOCK, attribute=ORDERED)
    driver.command(TEST_UNIT_READY)
    driver.command(write_16(2, 1), pattern(1, 3), write=BLOCK)
    driver.command(write_16(3, 2), write=2 * BLOCK)
    driver.command(write_16(5, 1), pattern(1, 4), write=BLOCK, attribute=HEAD_OF_QUEUE)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_task_management_ends_every_task_once(directory: OneTarget, device: PausedDevice, function: int) -> None:
    async def scenario() -> None:
        driver = await logged_in(directory)
        in_every_state(driver, device)
        await asyncio.sleep(0.01)
        [(r2t, _)] = driver.answers()
        assert r2t.opcode == opcodes.R2T
        tag = manage(driver, function)
        await asyncio.sleep(0.01)
        assert driver.answers() == []  # the storage still has two of them
        device.resume()
        [(answer, _)] = await driver.settle()
        assert (answer.opcode, answer.initiator_task_tag) == (opcodes.TASK_MANAGEMENT_RESPONSE, tag)
        assert (device.content(1), device.content(2), device.content(3)) == (bytes(BLOCK),) * 3
        assert not driver.connection.tasks
        assert window(driver) == driver.connection.limits.command_window
        device.at_once = True
        await driver.clear_attentions()
        driver.command(write_16(9, 1), pattern(1, 9), write=BLOCK)
        [(answer, _)] = await driver.settle()
        assert answer.status == 0
        assert driver.connection.hot

    asyncio.run(scenario())


@pytest.mark.parametrize("function", FUNCTIONS[1:])
def test_another_session_ends_every_task_once(directory: OneTarget, device: PausedDevice, function: int) -> None:
    async def scenario() -> None:
        driver = await logged_in(directory)
        other = Driver(directory, isid=b"\x80\0\0\0\0\x02")
        await other.login()
        await other.clear_attentions()
        in_every_state(driver, device)
        await asyncio.sleep(0.01)
        driver.answers()
        manage(other, function)
        await asyncio.sleep(0.01)
        assert other.answers() == []
        device.resume()
        assert await driver.settle() == []
        [(answer, _)] = await other.settle()
        assert answer.opcode == opcodes.TASK_MANAGEMENT_RESPONSE
        assert (device.content(1), device.content(2), device.content(3)) == (bytes(BLOCK),) * 3
        assert window(driver) == driver.connection.limits.command_window

    asyncio.run(scenario())


def test_two_functions_wait_for_the_same_tasks(directory: OneTarget, device: PausedDevice) -> None:
    async def scenario() -> None:
        driver = await logged_in(directory)
        in_every_state(driver, device)
        await asyncio.sleep(0.01)
        driver.answers()
        tags = [manage(driver, function) for function in (*FUNCTIONS, opcodes.ABORT_TASK_SET)]
        device.resume()
        answers = await driver.settle()
        assert sorted(answer.initiator_task_tag for answer, _ in answers) == tags
        assert {answer.opcode for answer, _ in answers} == {opcodes.TASK_MANAGEMENT_RESPONSE}
        assert window(driver) == driver.connection.limits.command_window

    asyncio.run(scenario())


@pytest.mark.parametrize("way", ["lost", "close", "drop", "terminate"])
def test_a_session_that_ends_takes_every_task_with_it(directory: OneTarget, device: PausedDevice, way: str) -> None:
    async def scenario() -> None:
        driver = await logged_in(directory)
        in_every_state(driver, device)
        await asyncio.sleep(0.01)
        connection = driver.connection
        if way == "lost":
            connection.lost()
        elif way == "close":
            connection.close("test")
        elif way == "drop":
            connection.drop("test")
        ended = asyncio.get_running_loop().create_task(connection.terminate("test"))
        await asyncio.sleep(0.01)
        assert not ended.done()
        device.resume()
        await ended
        assert (device.content(1), device.content(2), device.content(3)) == (bytes(BLOCK),) * 3
        assert not connection.tasks
        assert not directory.target.sessions
        assert not directory.target.unit.nexuses
        await connection.terminate("once more")

    asyncio.run(scenario())


@pytest.mark.parametrize("slow", [False, True])
def test_nothing_is_executed_after_a_logout_request(directory: OneTarget, device: PausedDevice, slow: bool) -> None:
    """RFC 7143 11.14: no command follows it; one that does must not outlive the response."""

    async def scenario() -> None:
        driver = await logged_in(directory)
        device.at_once = False
        device.pause()
        driver.command(write_16(0, 1), pattern(1, 1), write=BLOCK)
        await asyncio.sleep(0.01)
        device.at_once = not slow
        logout = pdus.build(opcodes.LOGOUT_REQUEST, immediate=True, initiator_task_tag=900, cmd_sn=driver.cmd_sn)
        late = pdus.build(
            opcodes.SCSI_COMMAND,
            data_segment_length=BLOCK,
            initiator_task_tag=901,
            cmd_sn=driver.cmd_sn,
            final=True,
            write=True,
            attribute=1,
            expected_data_transfer_length=BLOCK,
            cdb=write_16(50, 1),
        )
        driver.feed(logout + driver.frame(late, pattern(1, 7)))
        device.resume()
        [(answer, _)] = await driver.settle()
        assert (answer.opcode, answer.initiator_task_tag) == (opcodes.LOGOUT_RESPONSE, 900)
        assert driver.connection.stage is Stage.CLOSED
        assert device.content(50) == bytes(BLOCK)

    asyncio.run(scenario())


def test_several_logins_of_one_port_at_once_leave_one_session(directory: OneTarget, device: PausedDevice) -> None:
    async def scenario() -> None:
        old = await logged_in(directory)
        device.at_once = False
        device.pause()
        old.command(write_16(0, 1), pattern(1, 1), write=BLOCK)
        await asyncio.sleep(0.01)
        drivers = [Driver(directory) for _ in range(4)]
        logins = [asyncio.get_running_loop().create_task(driver.login()) for driver in drivers]
        await asyncio.sleep(0.02)
        drivers[1].connection.lost()
        device.resume()
        results = await asyncio.gather(*logins, return_exceptions=True)
        alive = [driver for driver in drivers if driver.connection.stage is Stage.FULL_FEATURE]
        assert len(alive) == 1
        assert list(directory.target.sessions.values()) == [alive[0].connection.session]
        assert len(directory.target.unit.nexuses) == 1
        assert isinstance(results[drivers.index(alive[0])], dict)
        device.at_once = True
        await alive[0].clear_attentions()
        alive[0].command(read_16(0, 1), read=BLOCK)
        [(_, data)] = await alive[0].settle()
        assert data == pattern(1, 1)

    asyncio.run(scenario())


def test_a_command_that_waits_for_memory_ends_once(directory: OneTarget, device: PausedDevice) -> None:
    async def scenario() -> None:
        driver = await logged_in(directory, limits=TargetLimits(buffered_bytes_max=4 * BLOCK))
        device.at_once = False
        device.pause()
        driver.command(read_16(0, 3), read=3 * BLOCK)
        driver.command(read_16(8, 4), read=4 * BLOCK)
        driver.command(TEST_UNIT_READY)
        driver.command(read_16(16, 1), read=BLOCK)
        manage(driver, opcodes.ABORT_TASK_SET)
        device.resume()
        [(answer, _)] = await driver.settle()
        assert answer.opcode == opcodes.TASK_MANAGEMENT_RESPONSE
        assert window(driver) == driver.connection.limits.command_window

    asyncio.run(scenario())

"""What an initiator that does not keep to the rules once got out of a connection, each as small as it can be said."""

import asyncio

import pytest

from san_target.wire import opcodes
from san_target.wire.text import encode_pairs
from tests.support.session_driver import Driver, OneTarget
from tests.unit.session.conftest import PausedDevice
from tests.unit.session.test_connection_commands import BLOCK, logged_in, pattern, read_16, write_16

ORDERED = 2


def data_out(driver: Driver, tag: int, ttt: int = opcodes.RESERVED_TAG, data: bytes = b"", data_sn: int = 0) -> None:
    driver.send(
        opcodes.DATA_OUT,
        data,
        in_order=False,
        initiator_task_tag=tag,
        target_transfer_tag=ttt,
        data_sn=data_sn,
        final=True,
    )


@pytest.mark.parametrize("late", [b"", bytes(BLOCK)])
def test_late_data_does_not_end_a_waiting_command_twice(
    directory: OneTarget, device: PausedDevice, late: bytes
) -> None:
    """A command that has its data waits behind an ORDERED one; then more data comes for it."""

    async def scenario() -> None:
        driver = await logged_in(directory)
        device.at_once = False
        device.pause()
        driver.command(write_16(0, 1), pattern(1), write=BLOCK, attribute=ORDERED)
        await asyncio.sleep(0)
        second = driver.command(write_16(1, 1), pattern(1), write=BLOCK)
        data_out(driver, second, data=late)
        device.resume()
        answers = await driver.settle()
        assert [answer.status for answer, _ in answers] == [0, 0]
        assert not driver.connection.tasks
        window = driver.connection.max_cmd_sn - driver.connection.exp_cmd_sn + 1
        assert window == driver.connection.limits.command_window

    asyncio.run(scenario())


@pytest.mark.parametrize("function", [opcodes.CLEAR_TASK_SET, opcodes.ABORT_TASK_SET, opcodes.LOGICAL_UNIT_RESET])
def test_commands_that_wait_for_each_other_are_aborted_once(
    directory: OneTarget, device: PausedDevice, function: int
) -> None:
    """One with the device, an ORDERED one behind it, and one behind that: the end of one is the turn of the next."""

    async def scenario() -> None:
        driver = await logged_in(directory)
        device.at_once = False
        device.pause()
        driver.command(read_16(0, 1), read=BLOCK)
        driver.command(write_16(1, 1), pattern(1), write=BLOCK, attribute=ORDERED)
        driver.command(read_16(2, 1), read=BLOCK)
        await asyncio.sleep(0)
        tag = driver.send(opcodes.TASK_MANAGEMENT_REQUEST, immediate=True, in_order=False, function=function)
        device.resume()
        [(answer, _)] = await driver.settle()
        assert (answer.opcode, answer.initiator_task_tag) == (opcodes.TASK_MANAGEMENT_RESPONSE, tag)
        assert not driver.connection.tasks
        window = driver.connection.max_cmd_sn - driver.connection.exp_cmd_sn + 1
        assert window == driver.connection.limits.command_window
        assert device.content(1) == bytes(BLOCK)

    asyncio.run(scenario())


def test_a_closed_window_stays_closed_where_numbers_wrap_around(directory: OneTarget) -> None:
    async def scenario() -> None:
        driver = Driver(directory)
        window = driver.connection.limits.command_window
        driver.cmd_sn = 2**32 - window - 4
        await driver.login()
        await driver.clear_attentions()
        while driver.connection.exp_cmd_sn + window != 2**32:
            driver.command(bytes(6))
        await driver.settle()
        for _ in range(window):
            driver.command(write_16(0, 1), write=BLOCK)
        assert (driver.connection.exp_cmd_sn, driver.connection.max_cmd_sn) == (0, 0xFFFFFFFF)
        driver.answers()
        driver.command(read_16(0, 1), read=BLOCK, cmd_sn=0)
        assert driver.answers() == []
        assert driver.connection.exp_cmd_sn == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("blocks", [1, 64])
def test_the_reserved_task_tag_names_no_command(directory: OneTarget, blocks: int) -> None:
    async def scenario() -> None:
        driver = await logged_in(directory)
        driver.command(read_16(0, blocks), read=blocks * BLOCK, initiator_task_tag=opcodes.RESERVED_TAG)
        [(answer, _)] = await driver.settle()
        assert (answer.opcode, answer.reason) == (opcodes.REJECT, opcodes.REJECT_INVALID_PDU_FIELD)

    asyncio.run(scenario())


def test_a_shorter_data_segment_declared_by_text_holds_for_reads(directory: OneTarget) -> None:
    async def scenario() -> None:
        driver = await logged_in(directory)
        driver.send(opcodes.TEXT_REQUEST, encode_pairs([("MaxRecvDataSegmentLength", "512")]), final=True)
        driver.answers()
        driver.command(read_16(0, 4), read=4 * BLOCK)
        assert [len(data) for _, data in driver.answers()] == [BLOCK] * 4

    asyncio.run(scenario())

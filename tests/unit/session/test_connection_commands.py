"""SCSI commands over a connection: hot and slow way, residuals, digests, windows."""

import asyncio
import struct

import pytest

from san_target.session.parameters import TargetLimits
from san_target.wire import opcodes
from tests.support.session_driver import Driver, OneTarget
from tests.unit.session.conftest import PausedDevice

BLOCK = 512


def read_16(lba: int, blocks: int) -> bytes:
    return struct.pack(">BBQIBB", 0x88, 0, lba, blocks, 0, 0)


def write_16(lba: int, blocks: int) -> bytes:
    return struct.pack(">BBQIBB", 0x8A, 0, lba, blocks, 0, 0)


def pattern(blocks: int, salt: int = 0) -> bytes:
    return b"".join(struct.pack(">Q", salt + index) * (BLOCK // 8) for index in range(blocks))


async def logged_in(directory: OneTarget, *pairs: tuple[str, str], limits: TargetLimits | None = None) -> Driver:
    driver = Driver(directory, limits)
    await driver.login(pairs)
    await driver.clear_attentions()
    return driver


@pytest.mark.parametrize("way", ["hot", "slow", "waiting"])
@pytest.mark.parametrize("digests", ["None", "CRC32C"])
def test_what_was_written_is_read(directory: OneTarget, device: PausedDevice, way: str, digests: str) -> None:
    async def scenario() -> None:
        driver = await logged_in(directory, ("HeaderDigest", digests), ("DataDigest", digests))
        device.at_once = way != "waiting"
        if way == "slow":
            driver.connection.trace = lambda direction, bhs: None
            driver.connection.refresh_hot()
        assert driver.connection.hot == (way != "slow" and digests == "None")
        driver.command(write_16(8, 4), pattern(4), write=4 * BLOCK)
        [(answer, _)] = await driver.settle()
        assert (answer.opcode, answer.status, answer.residual_count) == (opcodes.SCSI_RESPONSE, 0, 0)
        driver.command(read_16(8, 4), read=4 * BLOCK)
        [(answer, data)] = await driver.settle()
        assert answer.opcode == opcodes.DATA_IN
        assert answer.status_present
        assert answer.final
        assert data == pattern(4)
        assert not driver.connection.tasks
        assert not driver.host.errors

    asyncio.run(scenario())


def test_numbers_grow_by_the_rules(directory: OneTarget) -> None:
    async def scenario() -> None:
        driver = await logged_in(directory)
        driver.command(bytes(6))
        [(first, _)] = driver.answers()
        for _ in range(5):
            driver.command(read_16(0, 1), read=BLOCK)
        answers = [header for header, _ in driver.answers()]
        for index, header in enumerate(answers, 1):
            assert header.stat_sn == first.stat_sn + index
            assert header.exp_cmd_sn == first.exp_cmd_sn + index
            assert header.max_cmd_sn == first.max_cmd_sn + index

    asyncio.run(scenario())


def test_reads_are_cut_to_the_initiators_limits(directory: OneTarget, device: PausedDevice) -> None:
    async def scenario() -> None:
        driver = await logged_in(directory, ("MaxRecvDataSegmentLength", "1024"), ("MaxBurstLength", "2048"))
        await device.write(0, pattern(10))
        driver.command(read_16(0, 10), read=10 * BLOCK)
        answers = await driver.settle()
        assert [header.data_segment_length for header, _ in answers] == [1024] * 5
        assert [header.final for header, _ in answers] == [False, True, False, True, True]
        assert [header.status_present for header, _ in answers] == [False] * 4 + [True]
        assert [header.buffer_offset for header, _ in answers] == [0, 1024, 2048, 3072, 4096]
        assert b"".join(data for _, data in answers) == pattern(10)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("agreed", "length"), [(("ImmediateData", "No"), BLOCK), (("FirstBurstLength", "1024"), 3 * BLOCK)]
)
def test_immediate_data_beyond_what_was_agreed_is_not_written(
    directory: OneTarget, device: PausedDevice, agreed: tuple[str, str], length: int
) -> None:
    async def scenario() -> None:
        driver = await logged_in(directory, agreed)
        assert driver.connection.hot
        before = await device.read(8, length // BLOCK)
        driver.command(write_16(8, length // BLOCK), pattern(length // BLOCK), write=length)
        [(answer, sense)] = await driver.settle()
        assert (answer.opcode, answer.status) == (opcodes.SCSI_RESPONSE, 2)
        assert (sense[4] & 0x0F, sense[14], sense[15]) == (0x0B, 0x0C, 0x0C)  # RFC 7143 11.4.7.2
        assert await device.read(8, length // BLOCK) == before

    asyncio.run(scenario())


def test_write_with_unsolicited_and_solicited_data(directory: OneTarget, device: PausedDevice) -> None:
    async def scenario() -> None:
        driver = await logged_in(
            directory,
            ("InitialR2T", "No"),
            ("FirstBurstLength", "1024"),
            ("MaxBurstLength", "1024"),
            ("MaxOutstandingR2T", "2"),
        )
        data = pattern(8)
        tag = driver.command(write_16(16, 8), data[:512], write=8 * BLOCK, final=False)
        assert driver.answers() == []
        driver.send(
            opcodes.DATA_OUT, data[512:1024], in_order=False, initiator_task_tag=tag, buffer_offset=512, final=True
        )
        while True:
            answers = await driver.settle()
            if answers[0][0].opcode == opcodes.SCSI_RESPONSE:
                break
            for request, _ in answers:
                assert request.opcode == opcodes.R2T
                start = request.buffer_offset
                driver.send(
                    opcodes.DATA_OUT,
                    data[start : start + request.desired_data_transfer_length],
                    in_order=False,
                    initiator_task_tag=tag,
                    target_transfer_tag=request.target_transfer_tag,
                    buffer_offset=start,
                    final=True,
                )
        assert answers[0][0].status == 0
        driver.command(read_16(16, 8), read=8 * BLOCK)
        assert b"".join(part for _, part in await driver.settle()) == data

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("blocks", "expected", "overflow", "underflow", "residual"),
    [(1, 0, True, False, 512), (1, 10_000, False, True, 9488), (2, 512, True, False, 512), (1, 512, False, False, 0)],
)
def test_residuals(
    directory: OneTarget, blocks: int, expected: int, overflow: bool, underflow: bool, residual: int
) -> None:
    async def scenario() -> None:
        driver = await logged_in(directory)
        driver.command(read_16(0, blocks), read=expected)
        read = (await driver.settle())[-1][0]
        assert (read.residual_overflow, read.residual_underflow, read.residual_count) == (overflow, underflow, residual)
        driver.command(write_16(0, blocks), bytes(min(expected, 8192)), write=min(expected, 8192))
        [(write, _)] = await driver.settle()
        write_residual = residual if expected <= 8192 else 8192 - BLOCK
        assert (write.residual_overflow, write.residual_underflow) == (overflow, underflow)
        assert write.residual_count == write_residual

    asyncio.run(scenario())


def test_commands_out_of_turn_are_held_or_ignored(directory: OneTarget) -> None:
    async def scenario() -> None:
        driver = await logged_in(directory)
        exp_cmd_sn = driver.connection.exp_cmd_sn
        driver.command(bytes(6), cmd_sn=exp_cmd_sn - 1)
        driver.command(bytes(6), cmd_sn=driver.connection.max_cmd_sn + 1)
        assert driver.answers() == []
        second = driver.command(bytes(6), cmd_sn=exp_cmd_sn + 1)
        assert driver.answers() == []
        first = driver.command(bytes(6), cmd_sn=exp_cmd_sn)
        assert [header.initiator_task_tag for header, _ in driver.answers()] == [first, second]
        assert driver.connection.exp_cmd_sn == exp_cmd_sn + 2

    asyncio.run(scenario())


def test_the_window_closes_when_commands_are_under_way(directory: OneTarget, device: PausedDevice) -> None:
    async def scenario() -> None:
        driver = await logged_in(directory, limits=TargetLimits(command_window=4))
        device.at_once = False
        for _ in range(6):
            driver.command(read_16(0, 1), read=BLOCK)
        assert len(driver.connection.tasks) == 4
        answers = await driver.settle()
        assert len(answers) == 4
        assert answers[-1][0].max_cmd_sn == answers[-1][0].exp_cmd_sn + 3

    asyncio.run(scenario())


def test_a_task_tag_in_use_is_rejected(directory: OneTarget, device: PausedDevice) -> None:
    async def scenario() -> None:
        driver = await logged_in(directory)
        device.at_once = False
        tag = driver.command(read_16(0, 1), read=BLOCK)
        driver.command(read_16(0, 1), read=BLOCK, initiator_task_tag=tag)
        answers = await driver.settle()
        assert {header.opcode for header, _ in answers} == {opcodes.REJECT, opcodes.DATA_IN}
        [reject] = [(header, data) for header, data in answers if header.opcode == opcodes.REJECT]
        assert reject[0].reason == opcodes.REJECT_TASK_IN_PROGRESS
        assert len(reject[1]) == 48

    asyncio.run(scenario())


def test_an_unknown_opcode_is_rejected_and_the_connection_goes_on(directory: OneTarget) -> None:
    async def scenario() -> None:
        driver = await logged_in(directory)
        driver.feed(bytes([0x1C, 0x80]) + bytes(46))
        [(reject, data)] = driver.answers()
        assert reject.reason == opcodes.REJECT_COMMAND_NOT_SUPPORTED
        assert data == bytes([0x1C, 0x80]) + bytes(46)
        driver.command(bytes(6))
        assert driver.answers()[0][0].status == 0

    asyncio.run(scenario())


def test_ordered_commands_wait_for_older_ones_and_hold_younger_ones(directory: OneTarget, device: PausedDevice) -> None:
    async def scenario() -> None:
        driver = await logged_in(directory)
        device.at_once = False
        device.pause()
        tags = [driver.command(read_16(0, 1), read=BLOCK)]
        tags.append(driver.command(write_16(0, 1), pattern(1, 7), write=BLOCK, attribute=2))
        tags.append(driver.command(read_16(0, 1), read=BLOCK))
        await asyncio.sleep(0.01)
        assert driver.answers() == []
        device.resume()
        answers = await driver.settle()
        assert [header.initiator_task_tag for header, _ in answers] == tags
        assert answers[0][1] == bytes(BLOCK)
        assert answers[2][1] == pattern(1, 7)

    asyncio.run(scenario())


def test_a_broken_unit_ends_the_command_not_the_connection(directory: OneTarget, device: PausedDevice) -> None:
    async def scenario() -> None:
        driver = await logged_in(directory)
        device.at_once = False

        async def broken(lba: int, blocks: int) -> bytes:
            raise RuntimeError(f"no blocks at {lba}, {blocks}")

        device.read = broken  # type: ignore[method-assign]
        driver.command(read_16(0, 1), read=BLOCK)
        [(answer, sense)] = await driver.settle()
        assert answer.status == 2
        assert (sense[4] & 0x0F, sense[14], sense[15]) == (4, 0x44, 0)
        assert len(driver.host.errors) == 1

    asyncio.run(scenario())

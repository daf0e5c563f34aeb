"""What one initiator may cost: memory for data both ways, work in one turn, functions that wait. Bounded, always."""

import asyncio
import itertools
import struct

import pytest

from san_target.session.connection import IMMEDIATE_FUNCTIONS_MAX, WORK_PER_TURN, Stage
from san_target.session.parameters import TargetLimits
from san_target.wire import opcodes, pdus
from tests.support.session_driver import Driver, OneTarget
from tests.unit.session.conftest import PausedDevice
from tests.unit.session.test_connection_commands import BLOCK, logged_in, read_16, write_16

KIB = 1024


def r2ts(driver: Driver) -> list[tuple[int, int]]:
    """(task tag, transfer tag) of the R2Ts sent since the last call."""
    return [
        (header.initiator_task_tag, header.target_transfer_tag)
        for header, _ in driver.answers()
        if header.opcode == opcodes.R2T
    ]


def test_data_is_asked_for_as_memory_allows(directory: OneTarget) -> None:
    async def scenario() -> None:
        limits = TargetLimits(buffered_bytes_max=64 * KIB)
        driver = await logged_in(directory, limits=limits)
        tags = [driver.command(write_16(64 * n, 64), write=32 * KIB) for n in range(5)]
        first = r2ts(driver)
        assert [tag for tag, _ in first] == tags[:2]
        for tag, ttt in first:
            driver.send(
                opcodes.DATA_OUT,
                bytes([tag]) * 32 * KIB,
                in_order=False,
                initiator_task_tag=tag,
                target_transfer_tag=ttt,
                final=True,
            )
        assert [tag for tag, _ in r2ts(driver)] == tags[2:4]

    asyncio.run(scenario())


def test_a_command_larger_than_the_memory_still_has_its_turn(directory: OneTarget) -> None:
    async def scenario() -> None:
        driver = await logged_in(directory, limits=TargetLimits(buffered_bytes_max=16 * KIB))
        large = driver.command(write_16(0, 64), write=32 * KIB)
        small = driver.command(write_16(64, 1), write=BLOCK)
        [(tag, _)] = r2ts(driver)
        assert tag == large
        driver.send(
            opcodes.TASK_MANAGEMENT_REQUEST,
            immediate=True,
            in_order=False,
            function=opcodes.ABORT_TASK,
            referenced_task_tag=large,
        )
        [(tag, _)] = r2ts(driver)
        assert tag == small

    asyncio.run(scenario())


def test_aborted_commands_are_not_asked_for_data(directory: OneTarget) -> None:
    async def scenario() -> None:
        driver = await logged_in(directory, limits=TargetLimits(buffered_bytes_max=32 * KIB))
        for lba in range(0, 320, 64):
            driver.command(write_16(lba, 64), write=32 * KIB)
        assert len(r2ts(driver)) == 1
        driver.send(opcodes.TASK_MANAGEMENT_REQUEST, immediate=True, in_order=False, function=opcodes.ABORT_TASK_SET)
        [(answer, _)] = driver.answers()
        assert (answer.opcode, answer.response) == (opcodes.TASK_MANAGEMENT_RESPONSE, opcodes.FUNCTION_COMPLETE)
        driver.command(write_16(0, 64), write=32 * KIB)
        assert len(r2ts(driver)) == 1

    asyncio.run(scenario())


def test_one_byte_does_not_take_the_memory_of_all_that_follows(directory: OneTarget) -> None:
    async def scenario() -> None:
        driver = await logged_in(directory, ("InitialR2T", "No"))
        tag = driver.command(write_16(0, 1024), b"x" * 512, write=512 * KIB, final=False)
        transfer = driver.connection.tasks[tag].transfer
        assert transfer is not None
        assert len(transfer.data()) == 512

    asyncio.run(scenario())


@pytest.mark.parametrize("expected", [BLOCK, 1024 * KIB])
def test_reads_from_a_slow_disk_share_the_memory(directory: OneTarget, device: PausedDevice, expected: int) -> None:
    """... whatever length the initiator claims to expect."""

    async def scenario() -> None:
        driver = await logged_in(directory, limits=TargetLimits(buffered_bytes_max=2048 * KIB))
        device.at_once = False
        device.pause()
        for _ in range(6):
            driver.command(read_16(0, 2048), read=expected)
        await asyncio.sleep(0)
        assert sum(task.executing for task in driver.connection.tasks.values()) == 2
        device.resume()
        answers = await driver.settle()
        assert sum(header.opcode == opcodes.SCSI_RESPONSE or header.status_present for header, _ in answers) == 6

    asyncio.run(scenario())


def test_who_does_not_take_answers_is_not_read(directory: OneTarget) -> None:
    """The rest of a receive waits in the framer until the output has left; nothing of it is lost."""

    async def scenario() -> None:
        driver = await logged_in(directory, limits=TargetLimits(unsent_bytes_max=64 * KIB))
        driver.connection.trace = lambda direction, bhs: None  # the slow way
        driver.connection.refresh_hot()
        framer, shared = driver.connection.framer, memoryview(bytearray(1 << 20))
        commands = b"".join(
            pdus.build(
                opcodes.SCSI_COMMAND,
                initiator_task_tag=0x100 + number,
                final=True,
                read=True,
                expected_data_transfer_length=64 * KIB,
                cmd_sn=driver.cmd_sn + number,
                cdb=read_16(0, 128),
            )
            for number in range(10)
        )
        framer.buffers(shared)[0][: len(commands)] = commands
        sent_before = len(driver.host.sent)

        send = driver.host.flush

        def unsent() -> None:
            send()
            driver.host.unsent_bytes = len(driver.host.sent) - sent_before

        driver.host.flush = unsent  # type: ignore[method-assign]
        driver.connection.receive(framer.received(shared, len(commands)))
        assert framer.unread
        assert driver.host.unsent_bytes < 4 * 64 * KIB
        driver.host.flush = send  # type: ignore[method-assign]
        driver.host.unsent_bytes = 0
        while framer.unread:
            framer.buffers(shared)
            driver.connection.receive(framer.received(shared, 0))
        answers = await driver.settle()
        assert sum(bool(header.status_present) for header, _ in answers if header.opcode == opcodes.DATA_IN) == 10

    asyncio.run(scenario())


def test_a_flood_of_rare_pdus_is_handled_in_turns(directory: OneTarget) -> None:
    async def scenario() -> None:
        driver = await logged_in(directory)
        framer, shared = driver.connection.framer, memoryview(bytearray(1 << 20))
        ping = pdus.build(opcodes.NOP_OUT, immediate=True, initiator_task_tag=5)
        flood = ping * 1000
        framer.buffers(shared)[0][: len(flood)] = flood
        count, turns, answered = len(flood), 0, 0
        while True:
            driver.connection.receive(framer.received(shared, count))
            now = len(await driver.settle())
            assert now <= WORK_PER_TURN
            answered += now
            turns += 1
            if not framer.unread:
                break
            framer.buffers(shared)
            count = 0
        assert answered == 1000
        assert turns > 1

    asyncio.run(scenario())


@pytest.mark.parametrize("way", ["hot", "slow"])
def test_a_turn_ends_when_its_time_is_over(directory: OneTarget, way: str) -> None:
    """Each look at the clock is 2 ms later: after a few flushes it is the others' turn, and nothing is lost by that."""

    async def scenario() -> None:
        driver = await logged_in(directory)
        if way == "slow":
            driver.connection.trace = lambda direction, bhs: None
            driver.connection.refresh_hot()
        clock = itertools.count(1000.0, 0.002)
        driver.host.now = lambda: next(clock)  # type: ignore[method-assign]
        framer, shared = driver.connection.framer, memoryview(bytearray(1 << 20))
        reads = b"".join(
            pdus.build(
                opcodes.SCSI_COMMAND,
                initiator_task_tag=0x100 + number,
                final=True,
                read=True,
                expected_data_transfer_length=BLOCK,
                cmd_sn=driver.cmd_sn + number,
                cdb=read_16(number, 1),
            )
            for number in range(400)
        )
        framer.buffers(shared)[0][: len(reads)] = reads
        driver.connection.receive(framer.received(shared, len(reads)))
        tags = [header.initiator_task_tag for header, _ in await driver.settle()]
        assert framer.unread
        assert len(tags) < 100
        while framer.unread:
            framer.buffers(shared)
            driver.connection.receive(framer.received(shared, 0))
            tags += [header.initiator_task_tag for header, _ in await driver.settle()]
        assert tags == list(range(0x100, 0x100 + 400))

    asyncio.run(scenario())


@pytest.mark.parametrize("length", [8193, 1 << 20, (1 << 24) - 1])
def test_nobody_announces_more_than_8_kib_before_login(directory: OneTarget, length: int) -> None:
    async def scenario() -> None:
        driver = Driver(directory)
        driver.feed(pdus.build(opcodes.LOGIN_REQUEST, data_segment_length=length) + bytes(8000))
        assert driver.connection.stage is Stage.CLOSED
        assert "above the declared maximum of 8192" in driver.connection.close_reason

    asyncio.run(scenario())


def test_what_was_declared_holds_after_login(directory: OneTarget) -> None:
    async def scenario() -> None:
        driver = await logged_in(directory)
        driver.command(write_16(0, 64), bytes(32 * KIB), write=32 * KIB)
        [(answer, _)] = await driver.settle()
        assert answer.status == 0

    asyncio.run(scenario())


def test_immediate_functions_that_wait_are_so_many(directory: OneTarget, device: PausedDevice) -> None:
    async def scenario() -> None:
        driver = await logged_in(directory)
        device.at_once = False
        device.pause()
        tag = driver.command(read_16(0, 1), read=BLOCK)
        await asyncio.sleep(0)
        for _ in range(IMMEDIATE_FUNCTIONS_MAX + 5):
            driver.send(
                opcodes.TASK_MANAGEMENT_REQUEST,
                immediate=True,
                in_order=False,
                function=opcodes.ABORT_TASK,
                referenced_task_tag=tag,
            )
        refused = driver.answers()
        assert [header.reason for header, _ in refused] == [opcodes.REJECT_IMMEDIATE_COMMAND] * 5
        device.resume()
        answers = await driver.settle()
        assert [header.opcode for header, _ in answers] == [opcodes.TASK_MANAGEMENT_RESPONSE] * IMMEDIATE_FUNCTIONS_MAX
        driver.send(opcodes.TASK_MANAGEMENT_REQUEST, immediate=True, in_order=False, function=opcodes.ABORT_TASK_SET)
        [(answer, _)] = await driver.settle()
        assert answer.opcode == opcodes.TASK_MANAGEMENT_RESPONSE

    asyncio.run(scenario())


@pytest.mark.parametrize("sizes", [[0, 100, 20000, 4], [17000, 17000], [5, 0, 0]])
def test_a_framer_given_up_anywhere_loses_nothing(sizes: list[int]) -> None:
    from san_target.wire.framer import Framer

    stream = b"".join(
        pdus.build(opcodes.NOP_OUT, size, initiator_task_tag=number) + bytes([number]) * size + bytes(-size % 4)
        for number, size in enumerate(sizes)
    )
    for receive_bytes in (1000, 1 << 16):
        framer, shared = Framer(1 << 20), memoryview(bytearray(1 << 17))
        seen = []
        position = 0
        while position < len(stream) or framer.unread:
            buffer = framer.buffers(shared)[0]
            part = b"" if framer.unread else stream[position : position + min(receive_bytes, len(buffer))]
            buffer[: len(part)] = part
            position += len(part)
            received = framer.received(shared, len(part))
            for pdu in received:
                seen.append((struct.unpack_from(">I", pdu.bhs, 16)[0], bytes(pdu.data)))
                received.close()
        assert seen == [(number, bytes([number]) * size) for number, size in enumerate(sizes)]

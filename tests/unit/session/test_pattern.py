"""What is seen of a session's commands: sequential or not, where, and how many at a time; by samples."""

import asyncio
import struct

import pytest

from san_target.session.pattern import REGION_BLOCKS, REGIONS_MAX, SAMPLE_S, Pattern
from san_target.wire import opcodes, pdus
from tests.support.session_driver import Driver, OneTarget


def read(lba: int, blocks: int = 8) -> bytes:
    return struct.pack(">BBIxHB6x", 0x28, 0, lba, blocks, 0)


def test_a_sample_stands_for_the_commands_since_the_last() -> None:
    pattern = Pattern()
    pattern.look(read(0), read(8), 10, 2, 1.0)
    pattern.look(read(8), read(999), 14, 4, 1.1)
    taken = pattern.take()
    assert (taken.commands, taken.sequential, taken.depth) == (14, 10, 3.0)
    assert pattern.take().commands == 0


def test_regions_are_those_that_were_touched_and_their_number_is_bounded() -> None:
    pattern = Pattern()
    for number in range(REGIONS_MAX + 5):
        pattern.look(read(0), read(number * REGION_BLOCKS + 7), number + 1, 1, float(number))
    taken = pattern.take()
    assert taken.regions == dict.fromkeys(range(REGIONS_MAX), 1)
    assert taken.commands == REGIONS_MAX + 5


def test_other_commands_are_no_pattern() -> None:
    pattern = Pattern()
    pattern.look(read(0), bytes(16), 1, 1, 1.0)
    assert pattern.take().commands == 0
    assert pattern.next_s < 1.0
    pattern.look(bytes(16), read(8), 2, 1, 1.0)
    assert (pattern.take().sequential, pattern.next_s) == (0, 1.0 + SAMPLE_S)


@pytest.mark.parametrize("at_once", [1, 16])
def test_a_connection_samples_its_batches(directory: OneTarget, at_once: int) -> None:
    """Also those that are served at once, which never become tasks."""

    async def scenario() -> None:
        driver = Driver(directory)
        await driver.login()
        connection = driver.connection
        assert connection.session is not None
        await driver.clear_attentions()
        for batch in range(4):
            driver.host.time_s += 1.0
            frames = b""
            for index in range(at_once):
                number = batch * at_once + index
                header = pdus.build(
                    opcodes.SCSI_COMMAND,
                    final=True,
                    read=True,
                    attribute=1,
                    expected_data_transfer_length=4096,
                    cdb=read(number * 8),
                    initiator_task_tag=1000 + number,
                    cmd_sn=driver.cmd_sn,
                )
                driver.cmd_sn += 1
                frames += driver.frame(header)
            driver.feed(frames)
        taken = connection.pattern.take()
        assert connection.session.counters.reads == 4 * at_once
        assert taken.commands >= 4 * at_once
        assert taken.sequential >= 3 * at_once
        assert taken.depth == at_once
        assert set(taken.regions) == {0}

    asyncio.run(scenario())

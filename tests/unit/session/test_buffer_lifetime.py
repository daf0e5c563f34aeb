"""Received data in shared buffers: what outlives its PDU was copied, whatever way the PDU took.

Every shared buffer is overwritten as soon as a receive has been handled, so a view that was kept shows in the data.
"""

import asyncio
import random
from collections.abc import Iterator

import pytest

from san_target.wire import opcodes, pdus
from tests.support.session_driver import Driver, OneTarget
from tests.unit.session.conftest import PausedDevice
from tests.unit.session.test_connection_commands import BLOCK, pattern, read_16, write_16

POISON = 0xEE
LARGE = 64 * BLOCK  # longer than what a framer keeps in the shared buffer


class PoisoningDriver(Driver):
    """Feeds bytes in receives of chosen lengths."""

    lengths: Iterator[int] | None = None

    def feed(self, data: bytes) -> None:
        framer = self.connection.framer
        position = 0
        while position < len(data) or framer.unread:
            length = next(self.lengths) if self.lengths is not None else len(data)
            part = data[position : position + length]
            position += len(part)
            left = part
            for buffer in framer.buffers(self._shared):
                buffer[: min(len(left), len(buffer))] = left[: len(buffer)]
                left = left[len(buffer) :]
            assert not left
            self.connection.receive(framer.received(self._shared, len(part)))
            self._shared[:] = bytes([POISON]) * len(self._shared)
            for spare in self.host.large_buffers._spare:
                spare[:] = bytes([POISON]) * len(spare)
        self.host.flush()


def write_pdu(driver: Driver, lba: int, data: bytes, **fields: object) -> bytes:
    fields.setdefault("cmd_sn", driver.cmd_sn)
    driver.cmd_sn += 1
    bhs = pdus.build(
        opcodes.SCSI_COMMAND,
        data_segment_length=len(data),
        initiator_task_tag=0x1000 + lba,
        final=True,
        write=True,
        expected_data_transfer_length=len(data),
        cdb=write_16(lba, len(data) // BLOCK),
        **fields,
    )
    return driver.frame(bhs, data)


@pytest.mark.parametrize("digests", ["None", "CRC32C"])
@pytest.mark.parametrize("blocks", [1, 64])
@pytest.mark.parametrize("way", ["at once", "waiting", "behind an ordered one", "traced"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_written_data_is_what_was_sent(
    directory: OneTarget, device: PausedDevice, digests: str, blocks: int, way: str, seed: int
) -> None:
    async def scenario() -> None:
        driver = PoisoningDriver(directory)
        await driver.login(
            [("HeaderDigest", digests), ("DataDigest", digests), ("FirstBurstLength", "262144"), ("InitialR2T", "No")]
        )
        await driver.clear_attentions()
        randomness = random.Random(seed)
        driver.lengths = iter(lambda: randomness.choice((100, 560, 5000, 40000)), None)
        if way == "traced":
            driver.connection.trace = lambda direction, bhs: None
            driver.connection.refresh_hot()
        if way in ("waiting", "behind an ordered one"):
            device.at_once = False
            device.pause()
        first = write_pdu(driver, 4000, pattern(1, 77), attribute=2) if way == "behind an ordered one" else b""
        count = 12
        sent = [pattern(blocks, 1000 * number + 1) for number in range(count)]
        stream = first + b"".join(write_pdu(driver, number * blocks, data) for number, data in enumerate(sent))
        driver.feed(stream)
        device.resume()
        answers = await driver.settle()
        assert len(answers) == count + bool(first)
        assert all(answer.status == 0 for answer, _ in answers)
        for number, data in enumerate(sent):
            assert device.content(number * blocks, blocks) == data

    asyncio.run(scenario())


@pytest.mark.parametrize("blocks", [1, 64])
def test_commands_held_for_their_turn_keep_their_data(directory: OneTarget, device: PausedDevice, blocks: int) -> None:
    async def scenario() -> None:
        driver = PoisoningDriver(directory)
        await driver.login([("FirstBurstLength", "262144")])
        await driver.clear_attentions()
        base = driver.cmd_sn
        data = [pattern(blocks, 50 * number + 1) for number in range(4)]
        for number in (3, 1, 2, 0):
            driver.feed(write_pdu(driver, number * blocks, data[number], cmd_sn=base + number))
        answers = await driver.settle()
        assert [answer.initiator_task_tag - 0x1000 for answer, _ in answers] == [0, blocks, 2 * blocks, 3 * blocks]
        for number in range(4):
            assert device.content(number * blocks, blocks) == data[number]

    asyncio.run(scenario())


def test_data_collected_from_many_pdus(directory: OneTarget, device: PausedDevice) -> None:
    """Immediate, unsolicited and solicited parts of one command, and a ping between them."""

    async def scenario() -> None:
        driver = PoisoningDriver(directory)
        await driver.login([("InitialR2T", "No"), ("FirstBurstLength", "2048"), ("MaxBurstLength", "2048")])
        await driver.clear_attentions()
        device.at_once = False
        data = pattern(8, 5)
        tag = driver.command(write_16(0, 8), data[:512], write=len(data), final=False)

        def data_out(start: int, end: int, number: int, ttt: int, final: bool) -> None:
            driver.send(
                opcodes.DATA_OUT,
                data[start:end],
                in_order=False,
                initiator_task_tag=tag,
                target_transfer_tag=ttt,
                data_sn=number,
                buffer_offset=start,
                final=final,
            )

        data_out(512, 1024, 0, opcodes.RESERVED_TAG, False)
        driver.send(opcodes.NOP_OUT, b"between", immediate=True, in_order=False, cmd_sn=driver.cmd_sn)
        [(_, echoed)] = driver.answers()
        assert echoed == b"between"
        data_out(1024, 2048, 1, opcodes.RESERVED_TAG, True)
        [(r2t, _)] = driver.answers()
        data_out(2048, 3072, 0, r2t.target_transfer_tag, False)
        data_out(3072, 4096, 1, r2t.target_transfer_tag, True)
        [(answer, _)] = await driver.settle()
        assert answer.status == 0
        assert device.content(0, 8) == data
        device.at_once = True
        driver.command(read_16(0, 8), read=len(data))
        assert b"".join(part for _, part in await driver.settle()) == data

    asyncio.run(scenario())

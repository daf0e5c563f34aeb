"""List identifiers, RECEIVE COPY RESULTS, and the limits that hosts read."""

import asyncio
import struct

import pytest

from san_target.scsi import copy
from san_target.scsi.command import BUSY, GOOD, Outcome
from san_target.scsi.copy_results import copy_status, operating_parameters, third_party_copy_descriptors
from tests.unit.scsi.state_support import memory_of, sense_of
from tests.unit.scsi.test_copy_blocks import Pair, extended_copy
from tests.unit.scsi.test_copy_descriptors import parameter_list, segment

COPY_STATUS, RECEIVE_DATA, OPERATING_PARAMETERS, FAILED_SEGMENT_DETAILS = 0, 1, 3, 4
ONE = segment(0, 1, 1, 0, 0)


class Paused:
    """Holds the reads of a pair's first unit until `gate` is set."""

    def __init__(self, pair: Pair) -> None:
        self.gate = asyncio.Event()
        read = memory_of(pair.unit).read

        async def wait(lba: int, blocks: int) -> bytes:
            await self.gate.wait()
            return await read(lba, blocks)

        memory_of(pair.unit).read = wait  # type: ignore[method-assign]


async def started(pair: Pair, list_id: int = 1) -> "asyncio.Task[Outcome]":
    task = asyncio.create_task(pair.copy(ONE, list_id=list_id))
    await asyncio.sleep(0)
    return task


@pytest.mark.parametrize("action", [COPY_STATUS, RECEIVE_DATA, FAILED_SEGMENT_DETAILS])
def test_an_unknown_list_identifier(action: int) -> None:
    async def scenario() -> None:
        assert sense_of(await Pair().result(action, 9)) == (5, 0x24, 0)

    asyncio.run(scenario())


def test_status_of_a_good_copy() -> None:
    async def scenario() -> None:
        pair = Pair()
        await pair.copy(ONE, ONE)
        for _ in range(2):
            assert bytes((await pair.result(COPY_STATUS)).data_in) == struct.pack(">IBHBI", 8, 1, 2, 0, 1024)
        assert bytes((await pair.result(RECEIVE_DATA)).data_in) == bytes(4)
        assert bytes((await pair.result(FAILED_SEGMENT_DETAILS)).data_in) == bytes(4)

    asyncio.run(scenario())


def test_a_copy_under_way() -> None:
    async def scenario() -> None:
        pair = Pair()
        paused = Paused(pair)
        running = await started(pair)
        assert bytes((await pair.result(COPY_STATUS)).data_in) == struct.pack(">IBHBI", 8, 0, 0, 0, 0)
        assert sense_of(await pair.result(RECEIVE_DATA)) == (5, 0x24, 0)
        assert sense_of(await pair.result(FAILED_SEGMENT_DETAILS)) == (5, 0x24, 0)
        # OPERATION IN PROGRESS: the list identifier is in use by this nexus
        assert sense_of(await pair.copy(ONE)) == (5, 0, 0x16)
        paused.gate.set()
        assert (await running).status == GOOD
        assert (await pair.copy(ONE)).status == GOOD

    asyncio.run(scenario())


def test_list_identifiers_belong_to_a_nexus() -> None:
    async def scenario() -> None:
        pair = Pair()
        await pair.copy(ONE)
        pair.unit.detach(pair.nexus)
        assert pair.unit.copies.find(pair.nexus, 1) is None

    asyncio.run(scenario())


@pytest.mark.parametrize(("usage", "list_id", "kept"), [(0, 1, True), (2, 1, False), (3, 0, False)])
def test_list_id_usage(usage: int, list_id: int, kept: bool) -> None:
    async def scenario() -> None:
        pair = Pair()
        data = parameter_list([pair.here, pair.there], [ONE], list_id, usage)
        assert (await extended_copy(pair.unit, pair.nexus, data)).status == GOOD
        assert ((await pair.result(COPY_STATUS, list_id)).status == GOOD) == kept

    asyncio.run(scenario())


def test_as_many_copies_as_there_is_room_for() -> None:
    async def scenario() -> None:
        pair = Pair()
        paused = Paused(pair)
        running = [await started(pair, list_id) for list_id in range(copy.CONCURRENT_COPIES_MAX)]
        assert (await pair.copy(ONE, list_id=200)).status == BUSY
        paused.gate.set()
        assert {outcome.status for outcome in await asyncio.gather(*running)} == {GOOD}
        assert (await pair.copy(ONE, list_id=200)).status == GOOD

    asyncio.run(scenario())


def test_a_segment_that_is_too_long() -> None:
    async def scenario() -> None:
        pair = Pair(other_block_size=4096)
        blocks = (64 << 20) // 4096 + 1
        assert sense_of(await pair.copy(segment(0, 1, blocks, 0, 0, flags=2))) == (5, 0x26, 0)

    asyncio.run(scenario())


@pytest.mark.parametrize("block_size", [512, 4096])
def test_operating_parameters(block_size: int) -> None:
    data = operating_parameters(block_size)
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    assert data[4] == 1
    assert struct.unpack_from(">HHIIII", data, 8) == (64, 128, 8192, 64 << 20, 0, 0)
    assert data[34:40] == bytes([0, 16, 16, block_size.bit_length() - 1, 0, 0])
    assert data[43:] == bytes([2, 0x02, 0xE4])


def test_third_party_copy_descriptors() -> None:
    data = third_party_copy_descriptors(512)
    found, at = {}, 0
    while at < len(data):
        kind, length = struct.unpack_from(">HH", data, at)
        assert length % 4 == 0
        found[kind] = data[at + 4 : at + 4 + length]
        at += 4 + length
    assert at == len(data)
    assert list(found) == [0x0001, 0x0004, 0x0008, 0x000C, 0x8001]
    assert found[0x0001][:10] == bytes([9, 0x83, 1, 0, 0x84, 4, 0, 1, 3, 4])
    assert len(found[0x0004]) == 0x1C
    assert len(found[0x8001]) == 0x20


@pytest.mark.parametrize("written", [0, 1, 0xFFFFFFFF, 1 << 32, (1 << 42) + 5, 1 << 60])
def test_the_transfer_count_fits_its_unit(written: int) -> None:
    data = copy_status(copy.CopyOperation(True, bytes_written=written))
    unit, count = data[7], int.from_bytes(data[8:], "big")
    assert count << 10 * unit <= written < (count + 1) << 10 * unit

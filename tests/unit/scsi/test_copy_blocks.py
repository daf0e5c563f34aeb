"""EXTENDED COPY moves the blocks it was asked to move, and no others; and how it ends when it cannot."""

import asyncio
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from san_target.scsi import copy
from san_target.scsi.command import BUSY, GOOD, RESERVATION_CONFLICT, Command, Outcome
from san_target.scsi.copy_sense import DESTINATION, SOURCE
from san_target.scsi.logical_unit import LogicalUnit
from san_target.scsi.nexus import Nexus
from san_target.scsi.sanitize import Sanitizing
from san_target.volume.device import MediumError, OutOfSpace, Unavailable, VolumeError, WriteProtected
from tests.unit.scsi.state_support import (
    HOST_A,
    HOST_B,
    Surroundings,
    login,
    make_unit,
    memory_of,
    reserve_out,
    run,
    sense_of,
)
from tests.unit.scsi.test_copy_descriptors import cscd, parameter_list, segment

OTHER_TARGET = "iqn.2026-01.io.san-target:other"


def copy_cdb(length: int) -> bytes:
    return struct.pack(">BB8xIxx", 0x83, 0, length)


async def extended_copy(unit: LogicalUnit, nexus: Nexus, data: bytes) -> Outcome:
    return await run(unit, nexus, copy_cdb(len(data)), data)


def results_cdb(action: int, list_id: int = 1, allocation_length: int = 1024) -> bytes:
    return struct.pack(">BBB7xIxx", 0x84, action, list_id, allocation_length)


def fill(unit: LogicalUnit, lba: int, blocks: int) -> None:
    memory = memory_of(unit)
    for at in range(lba, lba + blocks):
        memory.written[at] = at.to_bytes(4, "big") * (unit.block_size // 4)


class Pair:
    """Two units with a session of host A at each."""

    def __init__(self, block_size: int = 512, other_block_size: int = 512, **options: bool) -> None:
        self.surroundings = Surroundings()
        self.unit = make_unit(self.surroundings, block_size=block_size)
        self.other = make_unit(
            self.surroundings, block_size=other_block_size, digit="2", target=OTHER_TARGET, **options
        )
        self.nexus = login(self.unit, HOST_A)
        self.other_nexus = login(self.other, HOST_A)
        self.here = cscd(self.unit.identity.naa, block_size)
        self.there = cscd(self.other.identity.naa, other_block_size)

    async def copy(self, *segments: bytes, cscds: list[bytes] | None = None, list_id: int = 1) -> Outcome:
        data = parameter_list([self.here, self.there] if cscds is None else cscds, list(segments), list_id)
        return await extended_copy(self.unit, self.nexus, data)

    async def result(self, action: int, list_id: int = 1) -> Outcome:
        return await run(self.unit, self.nexus, results_cdb(action, list_id))


def test_within_a_unit() -> None:
    async def scenario() -> None:
        pair = Pair()
        fill(pair.unit, 0, 10)
        expected = memory_of(pair.unit).content(2, 5)
        assert (await pair.copy(segment(0, 0, 5, 2, 100))).status == GOOD
        assert memory_of(pair.unit).content(100, 5) == expected
        assert set(memory_of(pair.unit).written) == {*range(10), *range(100, 105)}

    asyncio.run(scenario())


def test_between_units_and_the_unit_that_needs_no_descriptor() -> None:
    async def scenario() -> None:
        pair = Pair()
        fill(pair.unit, 0, 10)
        assert (await pair.copy(segment(0, 1, 5, 2, 50))).status == GOOD
        assert memory_of(pair.other).content(50, 5) == memory_of(pair.unit).content(2, 5)
        assert set(memory_of(pair.other).written) == set(range(50, 55))
        assert (await pair.copy(segment(1, copy.THIS_UNIT, 3, 50, 200))).status == GOOD
        assert memory_of(pair.unit).content(200, 3) == memory_of(pair.unit).content(2, 3)

    asyncio.run(scenario())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 20), st.integers(1, 7))
def test_overlapping_copies_read_before_they_overwrite(source: int, destination: int, blocks: int, slice_: int) -> None:
    async def scenario() -> None:
        pair = Pair()
        fill(pair.unit, 0, 64)
        expected = memory_of(pair.unit).content(source, blocks)
        whole, copy.SLICE_BYTES = copy.SLICE_BYTES, slice_ * 512
        try:
            assert (await pair.copy(segment(0, 0, blocks, source, destination))).status == GOOD
        finally:
            copy.SLICE_BYTES = whole
        assert memory_of(pair.unit).content(destination, blocks) == expected

    asyncio.run(scenario())


def test_block_sizes_that_differ() -> None:
    async def scenario() -> None:
        pair = Pair(512, 4096)
        fill(pair.unit, 0, 64)
        assert (await pair.copy(segment(0, 1, 16, 8, 3))).status == GOOD
        assert memory_of(pair.other).content(3, 2) == memory_of(pair.unit).content(8, 16)
        # DC: the count is of destination blocks
        assert (await pair.copy(segment(0, 1, 1, 0, 9, flags=2))).status == GOOD
        assert memory_of(pair.other).content(9, 1) == memory_of(pair.unit).content(0, 8)

    asyncio.run(scenario())


@pytest.mark.parametrize(("flags", "pad", "exact"), [(0, 0, False), (1, 1, False), (0, 1, True)])
def test_what_does_not_end_with_a_block(flags: int, pad: int, exact: bool) -> None:
    async def scenario() -> None:
        pair = Pair(512, 4096)
        fill(pair.unit, 0, 64)
        there = cscd(pair.other.identity.naa, 4096, pad=pad)
        outcome = await pair.copy(segment(0, 1, 3, 0, 0, flags=flags), cscds=[pair.here, there])
        if exact:
            assert outcome.status == GOOD
            assert memory_of(pair.other).content(0, 1) == memory_of(pair.unit).content(0, 3) + bytes(4096 - 1536)
        else:
            assert sense_of(outcome) == (0xA, 0x26, 0x0A)
            assert memory_of(pair.other).written == {}

    asyncio.run(scenario())


def test_nothing_to_do() -> None:
    async def scenario() -> None:
        pair = Pair()
        assert (await extended_copy(pair.unit, pair.nexus, b"")).status == GOOD
        assert (await pair.copy()).status == GOOD
        assert (await pair.copy(segment(0, 0, 0, 256, 256))).status == GOOD
        assert memory_of(pair.unit).written == {}

    asyncio.run(scenario())


def failed_side(outcome: Outcome) -> tuple[int, int, bytes]:
    """(side, status, sense) from fixed format sense data of a COPY ABORTED."""
    for side, at in ((SOURCE, outcome.sense[8]), (DESTINATION, outcome.sense[9])):
        if at:
            assert outcome.sense[7] == len(outcome.sense) - 8
            return side, outcome.sense[at], outcome.sense[at + 1 :]
    return 0, 0, b""


@pytest.mark.parametrize(
    ("wrong", "side", "field"),
    [
        (segment(0, 1, 2, 255, 0), SOURCE, 12),
        (segment(0, 1, 2, 0, 255), DESTINATION, 20),
        (segment(0, 1, 1, (1 << 64) - 1, 0), SOURCE, 12),
    ],
)
def test_out_of_range_after_a_segment_that_was_done(wrong: bytes, side: int, field: int) -> None:
    async def scenario() -> None:
        pair = Pair()
        fill(pair.unit, 0, 256)
        outcome = await pair.copy(segment(0, 1, 4, 0, 0), wrong)
        assert sense_of(outcome) == (0xA, 0, 0)
        assert int.from_bytes(outcome.sense[10:12], "big") == 1
        assert outcome.sense[15] == 0xA0
        assert int.from_bytes(outcome.sense[16:18], "big") == field
        where, status, sense = failed_side(outcome)
        assert (where, status) == (side, 2)
        assert sense_of(Outcome(2, sense=sense)) == (5, 0x21, 0)
        assert set(memory_of(pair.other).written) == {0, 1, 2, 3}
        status_data = bytes((await pair.result(0)).data_in)
        assert status_data == struct.pack(">IBHBI", 8, 2, 1, 0, 4 * 512)
        details = bytes((await pair.result(4)).data_in)
        assert int.from_bytes(details[:4], "big") == len(details) - 4
        assert details[56] == 2
        assert details[60:] == outcome.sense

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("error", "side", "status", "inner"),
    [
        (MediumError(3, "lost"), SOURCE, 2, (3, 0x11, 0)),
        (Unavailable("later"), SOURCE, BUSY, None),
        (OutOfSpace("full"), DESTINATION, 2, (7, 0x27, 7)),
        (WriteProtected("read-only"), DESTINATION, 2, (7, 0x27, 0)),
        (MediumError(3, "lost", writing=True), DESTINATION, 2, (3, 0x0C, 0)),
    ],
)
def test_what_the_environment_does(
    error: VolumeError, side: int, status: int, inner: tuple[int, int, int] | None
) -> None:
    async def scenario() -> None:
        pair = Pair()
        memory_of(pair.unit if side == SOURCE else pair.other).failures.append(error)
        outcome = await pair.copy(segment(0, 1, 4, 0, 0))
        assert sense_of(outcome) == (0xA, 0x0D, 1)
        found = failed_side(outcome)
        assert found[:2] == (side, status)
        assert (sense_of(Outcome(2, sense=found[2])) if found[2] else None) == inner

    asyncio.run(scenario())


def test_descriptor_format() -> None:
    async def scenario() -> None:
        pair = Pair()
        pair.nexus.d_sense = True
        outcome = await pair.copy(segment(0, 1, 2, 255, 0))
        sense = outcome.sense
        assert sense_of(outcome) == (0xA, 0, 0)
        assert sense[7] == len(sense) - 8
        at, kinds = 8, []
        while at < len(sense):
            kinds.append(sense[at])
            at += 2 + sense[at + 1]
        assert at == len(sense)
        assert kinds == [1, 2, 0x0C]

    asyncio.run(scenario())


def test_read_only_destination() -> None:
    async def scenario() -> None:
        pair = Pair(read_only=True)
        outcome = await pair.copy(segment(0, 1, 4, 0, 0))
        assert failed_side(outcome)[0] == DESTINATION
        assert sense_of(Outcome(2, sense=failed_side(outcome)[2])) == (7, 0x27, 0)
        assert (await pair.copy(segment(1, 0, 4, 0, 0))).status == GOOD

    asyncio.run(scenario())


@pytest.mark.parametrize(("kind", "reads"), [(1, True), (3, False)])
def test_reservations_of_both_units_are_honoured(kind: int, reads: bool) -> None:
    async def scenario() -> None:
        pair = Pair()
        stranger = login(pair.other, HOST_B)
        await reserve_out(pair.other, stranger, 0, action_key=1)
        await reserve_out(pair.other, stranger, 1, key=1, kind=kind)
        writing = await pair.copy(segment(0, 1, 4, 0, 0))
        assert sense_of(writing) == (0xA, 0x0D, 1)
        assert failed_side(writing) == (DESTINATION, RESERVATION_CONFLICT, b"")
        assert memory_of(pair.other).written == {}
        reading = await pair.copy(segment(1, 0, 4, 0, 0))
        assert (reading.status == GOOD) == reads
        if not reads:
            assert failed_side(reading) == (SOURCE, RESERVATION_CONFLICT, b"")

    asyncio.run(scenario())


def test_a_reservation_made_while_a_copy_runs_stops_it() -> None:
    async def scenario() -> None:
        pair = Pair()
        fill(pair.unit, 0, 256)
        stranger = login(pair.other, HOST_B)
        await reserve_out(pair.other, stranger, 0, action_key=1)
        whole, copy.SLICE_BYTES = copy.SLICE_BYTES, 512
        written = memory_of(pair.other).write

        async def write(lba: int, data: bytes, durable: bool = False) -> None:
            await written(lba, data, durable)
            if lba == 9:
                await reserve_out(pair.other, stranger, 1, key=1, kind=1)

        memory_of(pair.other).write = write  # type: ignore[method-assign,assignment]
        try:
            outcome = await pair.copy(segment(0, 1, 100, 0, 0))
        finally:
            copy.SLICE_BYTES = whole
        assert failed_side(outcome) == (DESTINATION, RESERVATION_CONFLICT, b"")
        assert set(memory_of(pair.other).written) == set(range(10))
        assert bytes((await pair.result(0)).data_in) == struct.pack(">IBHBI", 8, 2, 0, 0, 10 * 512)

    asyncio.run(scenario())


@pytest.mark.parametrize("how", ["abort", "fence"])
def test_an_aborted_copy_stops_at_the_next_slice(how: str) -> None:
    async def scenario() -> None:
        pair = Pair()
        data = parameter_list([pair.here, pair.there], [segment(0, 1, 100, 0, 0)])
        command = Command(pair.nexus, copy_cdb(len(data)), data)
        whole, copy.SLICE_BYTES = copy.SLICE_BYTES, 512
        written = memory_of(pair.other).write

        async def write(lba: int, data: bytes, durable: bool = False) -> None:
            await written(lba, data, durable)
            if lba == 4:
                command.aborted = how == "abort"
                pair.nexus.fenced = how == "fence"

        memory_of(pair.other).write = write  # type: ignore[method-assign,assignment]
        try:
            assert (await pair.unit.execute(command)).status == 0x40
        finally:
            copy.SLICE_BYTES = whole
        assert set(memory_of(pair.other).written) == set(range(5))
        found = pair.unit.copies.find(pair.nexus, 1)
        assert found is not None
        assert found.status is copy.Status.COMPLETED_WITH_ERRORS

    asyncio.run(scenario())


def test_only_where_the_same_initiator_is_logged_in_too() -> None:
    async def scenario() -> None:
        pair = Pair()
        there = segment(0, 1, 4, 0, 0)
        assert (await pair.copy(there)).status == GOOD
        # somebody who proved to be another user under the same name
        pair.other_nexus.user = "else"
        assert sense_of(await pair.copy(there)) == (0xA, 0x0D, 2)
        pair.other_nexus.user = ""
        pair.other.detach(pair.other_nexus)
        login(pair.other, HOST_B)
        assert sense_of(await pair.copy(there)) == (0xA, 0x0D, 2)

    asyncio.run(scenario())


def test_unknown_units_and_descriptors() -> None:
    async def scenario() -> None:
        pair = Pair()
        nobody = cscd(b"\x60" + bytes(15))
        unknown = await pair.copy(segment(0, 1, 1, 0, 0), cscds=[pair.here, nobody])
        assert sense_of(unknown) == (0xA, 0x0D, 2)
        assert int.from_bytes(unknown.sense[16:18], "big") == 6
        missing = await pair.copy(segment(0, 2, 1, 0, 0))
        assert sense_of(missing) == (0xA, 0x08, 4)
        wrong_size = cscd(pair.other.identity.naa, 4096)
        assert sense_of(await pair.copy(segment(0, 1, 1, 0, 0), cscds=[pair.here, wrong_size])) == (5, 0x26, 0)
        any_size = cscd(pair.other.identity.naa, 0)
        assert (await pair.copy(segment(0, 1, 1, 0, 0), cscds=[pair.here, any_size])).status == GOOD

    asyncio.run(scenario())


def test_a_unit_that_is_being_sanitized_takes_no_part() -> None:
    async def scenario() -> None:
        pair = Pair()
        pair.other.sanitizing = Sanitizing(unrestricted=False)
        outcome = await pair.copy(segment(0, 1, 1, 0, 0))
        assert sense_of(Outcome(2, sense=failed_side(outcome)[2])) == (2, 4, 0x1B)

    asyncio.run(scenario())

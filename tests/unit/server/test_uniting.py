"""Which blocks are moved where, so that a range has one owner; and that it has, before it is written as a whole."""

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from san_target.server.uniting import Way, ways
from san_target.volume.partition_map import LOST, PartitionMap, Placement
from tests.unit.server.conftest import run
from tests.unit.server.group_kit import HOST_B, Group, group
from tests.unit.server.initiator import Initiator

REGION = 64
REGIONS = 8
BLOCK = 512


def made(owners: str) -> PartitionMap:
    """A region for each letter; "-": lost. The generation of each is its number."""
    found = PartitionMap(REGION * len(owners), Placement("?", generation=1))
    for number, owner in enumerate(owners):
        placement = Placement(LOST if owner == "-" else owner, generation=number + 1)
        found.replace(number * REGION, (number + 1) * REGION, placement)
    return found


def test_the_two_ways() -> None:
    snapshot = made("abbc").snapshot()
    assert ways(snapshot, 60, 8, REGION) == [Way("a", 64, 128), Way("b", 0, 64)]
    assert ways(snapshot, 120, 16, REGION) == []  # two generations, one owner
    assert ways(snapshot, 190, 4, REGION) == [Way("b", 192, 256), Way("c", 128, 192)]
    assert ways(made("a-b").snapshot(), 60, 8, REGION) == []


@given(st.text("abc", min_size=REGIONS, max_size=REGIONS), st.integers(0, REGION * REGIONS - 1), st.integers(1, REGION))
def test_each_way_leaves_one_owner(owners: str, lba: int, blocks: int) -> None:
    blocks = min(blocks, REGION * REGIONS - lba)
    changed = made(owners)
    found = ways(changed.snapshot(), lba, blocks, REGION)
    assert bool(found) == (len({part.owner for part in changed.snapshot().segments(lba, blocks)}) > 1)
    for way in found:
        assert way.start % REGION == way.end % REGION == 0
        assert way.end - way.start <= REGION
        united = made(owners)
        united.replace(way.start, way.end, Placement(way.destination, generation=99))
        assert {part.owner for part in united.snapshot().segments(lba, blocks)} == {way.destination}


async def write_atomic(initiator: Initiator, lba: int, data: bytes) -> int:
    return (await initiator.command(struct.pack(">BBQHHBB", 0x9C, 0, lba, 0, len(data) // BLOCK, 0, 0), data))[0]


async def read(initiator: Initiator, lba: int, blocks: int) -> bytes:
    status, data = await initiator.command(struct.pack(">BBQIBB", 0x88, 0, lba, blocks, 0, 0), read=blocks * BLOCK)
    assert status == 0
    return data


def boundary_of(made: Group) -> int:
    export = next(iter(made.members["m1"].exports.by_id.values()))
    assert export.snapshot is not None
    return next(each.start for each in export.snapshot.ranges() if each.start)


@pytest.mark.parametrize("drained", ["", "m1", "m2"])
def test_an_atomic_write_over_two_owners(tmp_path: Path, drained: str) -> None:
    """Through both members, and whichever of them takes nothing any more."""

    async def body() -> None:
        async with group(tmp_path, "m1", "m2", size_bytes=4 << 20) as made:
            one, two = await made.log_in("m1"), await made.log_in("m2", HOST_B)
            boundary = boundary_of(made)
            if drained:
                await made.services["m1"].pause_balancing(True)
                await made.services["m1"].drain_member(drained)
            for number, initiator in enumerate((one, two)):
                data = bytes([number + 1]) * (64 * BLOCK)
                assert await write_atomic(initiator, boundary - 32, data) == 0
                assert await read(one, boundary - 32, 64) == data
                assert await read(two, boundary - 32, 64) == data
            # The other end of what was moved: two generations at one member, or another one's blocks.
            for start in (boundary + 2048 - 32, boundary - 2048 - 32):
                if 0 <= start < (4 << 20) // BLOCK - 64:
                    assert await write_atomic(two, start, bytes([9]) * (64 * BLOCK)) == 0
                    assert await read(one, start, 64) == bytes([9]) * (64 * BLOCK)

    run(body)

"""A volume that lies on all members is one disk through each of them, and through all of them at once."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from initiator_sim.fleet import Assignment, Fleet
from initiator_sim.personalities import PERSONALITIES
from initiator_sim.workload import Plan
from tests.support.group import Group
from tests.support.raw_initiator import (
    CHECK_CONDITION,
    UNMAP,
    RawInitiator,
    compare_and_write,
    or_write16,
    read16,
    synchronize_cache,
    unmap_parameters,
    write16,
    write_atomic16,
    write_same16,
)
from tests.support.target import Volume
from tests.support.tools import run

pytestmark = pytest.mark.slow

MIB = 1 << 20
BLOCK = 512
STEPS = 600
STEP_BLOCKS_MAX = 24
MISCOMPARE = 0xE


# --- images -----------------------------------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.mark.tool("qemu-img", "qemu-iscsi")
def test_an_image_that_went_in_through_one_member_comes_out_through_the_others(group: Group, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(random.Random(3).randbytes(96 * MIB))
    volume = group.create_volume("image", 96 * MIB)
    assert len(group.owners(volume)) == 3
    run(["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, group.at(volume, 0).url])
    for index in (1, 2):
        back = tmp_path / "back"
        run(["qemu-img", "convert", "-f", "raw", "-O", "raw", group.at(volume, index).url, back])
        assert sha256(back) == sha256(image), f"through {group[index].member_name}"


# --- verified load ----------------------------------------------------------------------------------------------------


def verified(portals: Sequence[str], volume: Volume, personality: str, seconds: float, sessions: int) -> dict[str, Any]:
    """The report of a load with an initiator for each portal."""
    plan = Plan("randrw", read_share=0.5, depth=8, block_bytes=4096, discard_share=0.05, flush_every=50)

    async def work() -> dict[str, Any]:
        fleet = Fleet(
            Assignment(
                tuple(portals),
                volume.iqn,
                plan,
                PERSONALITIES[personality],
                initiators=len(portals),
                sessions=sessions,
                seconds=seconds,
                verify=True,
                strict=True,
            )
        )
        await fleet.run()
        return fleet.report()

    return asyncio.run(work())


def assert_sound(report: dict[str, Any]) -> None:
    assert report["ok"], report
    assert report["verify"]["violation_count"] == 0
    assert report["verify"]["reads_checked"] > 100
    assert report["writes"] > 100


@pytest.mark.parametrize("index", range(3))
def test_a_verified_load_through_each_member(group: Group, index: int) -> None:
    volume = group.create_volume(f"load-{index}", 3 * MIB)
    assert_sound(verified([group[index].portal], volume, "open-iscsi", 1.0, sessions=2))


@pytest.mark.parametrize("personality", PERSONALITIES)
def test_a_verified_load_through_all_members_at_once(group: Group, personality: str) -> None:
    volume = group.create_volume(f"load-{personality}", 3 * MIB)
    report = verified(group.portals, volume, personality, 2.0, sessions=2)
    assert_sound(report)
    assert len(report["members"]) == 3


# --- commands over several owners -------------------------------------------------------------------------------------


class Model:
    """What the disk must hold: every command is done here too. boundaries: where another member's blocks begin."""

    def __init__(self, blocks: int, boundaries: Sequence[int], chance: random.Random) -> None:
        self.data = bytearray(blocks * BLOCK)
        self.boundaries = boundaries
        self.chance = chance

    def at(self, lba: int, blocks: int) -> bytes:
        return bytes(self.data[lba * BLOCK : (lba + blocks) * BLOCK])

    def put(self, lba: int, data: bytes) -> None:
        self.data[lba * BLOCK : lba * BLOCK + len(data)] = data

    def some(self, blocks: int) -> bytes:
        return self.chance.randbytes(blocks * BLOCK)


def write(model: Model, initiator: RawInitiator, lba: int, blocks: int) -> None:
    data = model.some(blocks)
    initiator.good(write16(lba, blocks, fua=model.chance.random() < 0.2), data)
    model.put(lba, data)


def write_same(model: Model, initiator: RawInitiator, lba: int, blocks: int) -> None:
    block = model.some(1)
    initiator.good(write_same16(lba, blocks), block)
    model.put(lba, block * blocks)


def unmap(model: Model, initiator: RawInitiator, lba: int, blocks: int) -> None:
    initiator.good(UNMAP, unmap_parameters(lba, blocks))
    model.put(lba, bytes(blocks * BLOCK))


def or_write(model: Model, initiator: RawInitiator, lba: int, blocks: int) -> None:
    data = model.some(blocks)
    initiator.good(or_write16(lba, blocks), data)
    before = int.from_bytes(model.at(lba, blocks), "big")
    model.put(lba, (before | int.from_bytes(data, "big")).to_bytes(len(data), "big"))


def swap_one(model: Model, initiator: RawInitiator, lba: int, blocks: int) -> None:
    """COMPARE AND WRITE of a block that is as expected, and again, when it is not any more."""
    data = model.some(1)
    expected = model.at(lba, 1)
    initiator.good(compare_and_write(lba), expected + data)
    model.put(lba, data)
    result = initiator.command(compare_and_write(lba), expected + model.some(1))
    assert result.status == CHECK_CONDITION
    assert result.condition is not None
    assert result.condition[0] == MISCOMPARE


def write_atomic(model: Model, initiator: RawInitiator, lba: int, blocks: int) -> None:
    """On one side of the boundary only: see below."""
    count = (blocks + 7) // 8 * 8
    start = next((boundary - count for boundary in model.boundaries if lba < boundary < lba + blocks), lba // 8 * 8)
    if any(start < boundary < start + count for boundary in model.boundaries):
        return
    data = model.some(count)
    initiator.good(write_atomic16(start, count), data)
    model.put(start, data)


def flush(model: Model, initiator: RawInitiator, lba: int, blocks: int) -> None:
    initiator.good(synchronize_cache(lba, blocks))


COMMANDS: tuple[Callable[[Model, RawInitiator, int, int], None], ...] = (
    write,
    write,
    write_same,
    unmap,
    or_write,
    swap_one,
    write_atomic,
    flush,
)


def logged_in_through_each(group: Group, volume: Volume) -> list[RawInitiator]:
    """One initiator at each member, each a port of its own."""
    initiators = []
    for index, member in enumerate(group):
        initiators.append(RawInitiator(member.portal))
        assert initiators[-1].login(volume.iqn, isid=bytes((0x80, 0, 0, 0, 0, index))) == 0
        initiators[-1].ready()
    return initiators


def test_any_command_over_any_boundary_through_any_member(group: Group) -> None:
    """One after the other, around the places where one member's blocks end, each read through another member."""
    volume = group.create_volume("model", 3 * MIB)
    boundaries = sorted(part.start for parts in group.owners(volume).values() for part in parts)[1:]
    assert len(boundaries) >= 2
    initiators = logged_in_through_each(group, volume)
    chance = random.Random(11)
    model = Model(volume.size_bytes // BLOCK, boundaries, chance)
    for _ in range(STEPS):
        blocks = chance.randint(1, STEP_BLOCKS_MAX)
        lba = chance.choice(boundaries) + chance.randint(-blocks - 8, 8)
        chance.choice(COMMANDS)(model, chance.choice(initiators), lba, blocks)
        first, count = lba - 32, 64
        found = chance.choice(initiators).good(read16(first, count), read_bytes=count * BLOCK)
        assert found == model.at(first, count)
    for initiator in initiators:
        whole = initiator.good(read16(0, len(model.data) // BLOCK), read_bytes=len(model.data))
        assert whole == model.data
        initiator.logout()


def test_what_is_written_as_a_whole_has_one_owner_then(group: Group) -> None:
    """WRITE ATOMIC over the end of one member's blocks into another's: those are brought to one of them first. And over
    the places where such a move has left two generations at one member; through each of them."""
    volume = group.create_volume("atomic", 12 * MIB)
    before = group.owners(volume)
    boundaries = sorted(part.start for parts in before.values() for part in parts)[1:]
    assert len(boundaries) >= 2
    initiators = logged_in_through_each(group, volume)
    chance = random.Random(12)
    for boundary in boundaries:
        for start in (boundary - 8, boundary - 128, boundary + 2048 - 128):
            for writer in initiators:
                data = chance.randbytes(256 * BLOCK)
                writer.good(write_atomic16(start, 256), data)
                for reader in initiators:
                    assert reader.good(read16(start, 256), read_bytes=len(data)) == data
    after = group.owners(volume)
    assert after != before
    assert sum(len(part) for parts in after.values() for part in parts) * BLOCK == volume.size_bytes

"""Migrations between members in this process: data, maps and pools before and after, and writes meanwhile."""

import asyncio
import random
from pathlib import Path

from san_target.admin.service import Migration, MigrationRequest
from tests.unit.server.conftest import MIB, run
from tests.unit.server.group_kit import Group, Initiator, group

BLOCK = 512
SLOT_BLOCKS = 16


async def migrate(made: Group, to: str, at: str = "m1", **options: int) -> Migration:
    """All to one member; returns when that is done."""
    service = made.services[at]
    started = await service.start_migrations(MigrationRequest(volume="disk", to=to, **options))
    ids = [each.id for each in started]
    async with asyncio.timeout(40):
        while True:
            found = [await service.migration(each) for each in ids]
            if all(each.state in ("done", "cancelled") for each in found):
                return found[0]
            await asyncio.sleep(0.05)


def owners(made: Group, at: str) -> list[str]:
    export = next(iter(made.members[at].exports.by_id.values()))
    return [each.placement.owner for each in export.map_now.ranges()]


def write10(lba: int, blocks: int) -> bytes:
    return b"\x2a\0" + lba.to_bytes(4, "big") + b"\0" + blocks.to_bytes(2, "big") + b"\0"


def read10(lba: int, blocks: int) -> bytes:
    return b"\x28\0" + lba.to_bytes(4, "big") + b"\0" + blocks.to_bytes(2, "big") + b"\0"


async def write(host: Initiator, slot: int, data: bytes) -> None:
    status, sense = await host.command(write10(slot * SLOT_BLOCKS, SLOT_BLOCKS), data)
    assert status == 0, sense.hex()


async def read(host: Initiator, slot: int) -> bytes:
    status, data = await host.command(read10(slot * SLOT_BLOCKS, SLOT_BLOCKS), read=SLOT_BLOCKS * BLOCK)
    assert status == 0
    return data


def test_a_volume_goes_to_another_member_while_it_is_written(tmp_path: Path) -> None:
    async def body() -> None:
        async with group(tmp_path, "m1", "m2", "m3", size_bytes=48 * MIB) as made:
            hosts = [await made.log_in(name, isid=bytes([0x80, 0, 0, 0, 0, n])) for n, name in enumerate(made.members)]
            slots = 48 * MIB // (SLOT_BLOCKS * BLOCK)
            rng = random.Random(7)
            wanted: dict[int, bytes] = {}
            for slot in rng.sample(range(slots), 400):
                wanted[slot] = rng.randbytes(SLOT_BLOCKS * BLOCK)
                await write(hosts[slot % 3], slot, wanted[slot])
            over = asyncio.Event()
            written = 0

            async def load(number: int) -> None:
                nonlocal written
                own = random.Random(number)
                while not over.is_set():
                    slot = own.randrange(slots // 3) * 3 + number
                    wanted[slot] = own.randbytes(SLOT_BLOCKS * BLOCK)
                    await write(hosts[number], slot, wanted[slot])
                    assert await read(hosts[number], slot) == wanted[slot]
                    written += 1

            loads = [asyncio.create_task(load(number)) for number in range(3)]
            for destination in ("m2", "m1", "m3"):
                done = await migrate(made, destination, at="m3")
                assert done.state == "done", done
            over.set()
            await asyncio.gather(*loads)
            assert written > 50
            for at in made.members:
                async with asyncio.timeout(5):
                    while owners(made, at) != ["m3"]:
                        await asyncio.sleep(0.01)
            for slot, data in wanted.items():
                assert await read(hosts[slot % 2], slot) == data
            for name in ("m1", "m2"):
                volume_id = next(iter(made.members[name].exports.by_id))
                found = made.members[name].pool.find_volume(volume_id)
                async with asyncio.timeout(5):
                    while found is not None and found.held:
                        await asyncio.sleep(0.01)
                assert found is None or found.file.allocated_bytes() == 0

    run(body)


def test_a_drained_member_gives_away_all_it_has(tmp_path: Path) -> None:
    async def body() -> None:
        async with group(tmp_path, "m1", "m2", "m3", size_bytes=12 * MIB) as made:
            await migrate(made, "m1", at="m2")
            host = await made.log_in("m2")
            await write(host, 5, b"\5" * SLOT_BLOCKS * BLOCK)
            drain = await made.services["m2"].drain_member("m1")
            assert drain.state == "draining"
            assert not drain.done
            async with asyncio.timeout(50):
                while not (drain := await made.services["m2"].drain_status("m1")).done:
                    await asyncio.sleep(0.1)
            assert drain.left == ()
            assert "m1" not in owners(made, "m2")
            assert await read(host, 5) == b"\5" * SLOT_BLOCKS * BLOCK
            assert (await made.services["m2"].activate_member("m1")).state == "active"

    run(body)

"""The data beyond a shrink: it is destroyed before the size can grow again, whatever happens on the way."""

from pathlib import Path

import pytest

from san_target.group.errors import Conflict
from san_target.server.member import Member
from san_target.storage.pool import Pool, PoolVolume
from san_target.storage.records import PoolError
from tests.unit.server.conftest import MIB, MemoryEnvironment, Site, run, spec
from tests.unit.server.initiator import Initiator

DATA = b"\xa5" * 512
LAST = (4095).to_bytes(4, "big") + b"\0\0\1\0"  # the last block of 2 MiB, in a CDB of ten bytes
READ_CAPACITY_10 = bytes([0x25, *bytes(9)])


async def logged_in(member: Member, iqn: str) -> Initiator:
    initiator = await Initiator.connect(member.portals.bound[0])
    assert await initiator.login(iqn) == 0
    await initiator.ready()
    return initiator


async def read_last(initiator: Initiator) -> tuple[int, bytes]:
    await initiator.ready()
    return await initiator.command(b"\x28\0" + LAST, read=512)


def test_a_volume_does_not_grow_before_its_shrink_was_carried_out(site: Site) -> None:
    """Else a member that was away in between would see no change, and old data would come back."""

    async def body() -> None:
        async with site.started() as (member, service):
            volume = await service.create_volume(spec(size_bytes=2 * MIB))
            initiator = await logged_in(member, volume.iqn)
            assert await initiator.command(b"\x2a\0" + LAST, DATA) == (0, b"")
            initiator.close()
            await member._followers.cancel()
            await member.volumes.resize("demo", MIB, force=True)
            with pytest.raises(Conflict, match="is being shrunk"):
                await member.volumes.resize("demo", 2 * MIB)
        async with site.started() as (member, service):
            await service.resize_volume("demo", 2 * MIB, False)
            initiator = await logged_in(member, volume.iqn)
            assert await read_last(initiator) == (0, bytes(512))
            initiator.close()

    run(body)


def test_a_shrink_that_failed_is_finished_before_the_volume_grows(tmp_path: Path) -> None:
    class Failing(Pool):
        fails = True

        async def resize_volume(self, volume_id: str, size_bytes: int, generation: int) -> PoolVolume:
            if self.fails:
                raise PoolError("the disk reports errors; check it")
            return await super().resize_volume(volume_id, size_bytes, generation)

    class FailingEnvironment(MemoryEnvironment):
        make_pool = staticmethod(Failing)

    async def body() -> None:
        async with Site(tmp_path, FailingEnvironment()).started() as (member, service):
            volume = await service.create_volume(spec(size_bytes=2 * MIB))
            initiator = await logged_in(member, volume.iqn)
            assert await initiator.command(b"\x2a\0" + LAST, DATA) == (0, b"")
            with pytest.raises(Conflict, match="cannot be resized: the disk reports errors"):
                await service.resize_volume("demo", MIB, True)
            with pytest.raises(Conflict, match="is being shrunk"):
                await service.resize_volume("demo", 2 * MIB, False)
            with pytest.raises(Conflict, match="cannot be resized: the disk reports errors"):
                await service.resize_volume("demo", MIB, True)
            member.pool.fails = False  # type: ignore[attr-defined]
            await service.resize_volume("demo", MIB, False)
            await service.resize_volume("demo", 2 * MIB, False)
            assert await read_last(initiator) == (0, bytes(512))
            _, capacity = await initiator.command(READ_CAPACITY_10, read=8)
            assert int.from_bytes(capacity[:4], "big") == 4095
            initiator.close()

    run(body)

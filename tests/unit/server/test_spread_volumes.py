"""Volumes that lie on several members: made, grown, shrunk and deleted at all of them, or at none."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from san_target.admin.service import MemberService
from san_target.group.errors import Conflict
from san_target.metadata.schema import MemberRecord, decode, encode, member_key
from san_target.metadata.store import Put
from san_target.server import volume_requests
from san_target.server.member import Member, StartError
from san_target.storage.pool import Pool, PoolVolume
from san_target.storage.records import HeldRange, PoolError
from tests.unit.server.conftest import MIB, MemoryEnvironment, Site, run, spec
from tests.unit.server.initiator import Initiator

NAMES = ("one", "two", "three")
BLOCKS_PER_MIB = MIB // 512


class Three:
    """Members on pools of their own, over one store. A member may be ended and started again."""

    def __init__(self, directory: Path, environment: MemoryEnvironment) -> None:
        self.sites = {name: Site(directory / name, environment) for name in NAMES}
        self.members: dict[str, Member] = {}
        self.services: dict[str, MemberService] = {}
        self._lives: dict[str, contextlib.AsyncExitStack] = {}

    async def start(self, *names: str) -> None:
        for name in names:
            life = self._lives[name] = contextlib.AsyncExitStack()
            options = {"name": name, "peer": "127.0.0.1:0"}
            self.members[name], self.services[name] = await life.enter_async_context(
                self.sites[name].started(**options)
            )

    async def stop(self, *names: str) -> None:
        for name in names:
            await self._lives.pop(name).aclose()

    async def stop_all(self) -> None:
        await self.stop(*self._lives)

    async def running(self, *names: str) -> None:
        """Wait until member "one" sees these, and no others, alive."""
        while {member.name for member in self.members["one"].members.alive()} != set(names):
            await asyncio.sleep(0.01)

    def held(self, name: str, volume_id: str) -> tuple[HeldRange, ...]:
        found = self.members[name].pool.find_volume(volume_id)
        return () if found is None else found.held

    def files(self) -> dict[str, int]:
        """Sizes of the volume's files, by member."""
        found = {name: site.blocks_files() for name, site in self.sites.items()}
        return {name: paths[0].stat().st_size for name, paths in found.items() if paths}

    async def owners(self, volume: str, asked: str = "one") -> list[tuple[int, int, str]]:
        return [(one.start_lba, one.end_lba, one.owner) for one in await self.services[asked].volume_map(volume)]


@contextlib.asynccontextmanager
async def three(directory: Path, environment: MemoryEnvironment | None = None) -> AsyncIterator[Three]:
    group = Three(directory, environment or MemoryEnvironment())
    try:
        await group.start(*NAMES)
        await group.running(*NAMES)
        yield group
    finally:
        await group.stop_all()


async def logged_in(member: Member, iqn: str, size_bytes: int = 0) -> Initiator:
    """A session, once the member serves the volume; size_bytes: and with this size."""
    while (target := member.directory.find(iqn)) is None or not target.ready:
        await asyncio.sleep(0.01)
    while size_bytes and target.unit.device.blocks * target.unit.block_size != size_bytes:
        await asyncio.sleep(0.01)
    initiator = await Initiator.connect(member.portals.bound[0])
    assert await initiator.login(iqn) == 0
    await initiator.ready()
    return initiator


def read_10(lba: int) -> bytes:
    return b"\x28\0" + lba.to_bytes(4, "big") + b"\0\0\1\0"


def write_10(lba: int) -> bytes:
    return b"\x2a\0" + lba.to_bytes(4, "big") + b"\0\0\1\0"


def total(ranges: Sequence[HeldRange]) -> int:
    return sum(piece.end_lba - piece.start_lba for piece in ranges)


def test_each_owner_has_its_part_and_every_member_the_whole(tmp_path: Path) -> None:
    async def body() -> None:
        async with three(tmp_path) as group:
            volume = await group.services["one"].create_volume(spec(size_bytes=192 * MIB))
            assert (volume.state, volume.members) == ("ready", ("one", "three", "two"))
            map_now = await group.owners("demo")
            assert len(map_now) == 12
            for name in NAMES:
                mine = [(start, end) for start, end, owner in map_now if owner == name]
                held = group.held(name, volume.id)
                assert [(piece.start_lba, piece.end_lba) for piece in held] == mine
                assert len(mine) >= 3
            assert group.files() == dict.fromkeys(NAMES, 192 * MIB)
            for name in NAMES:
                while (await group.services[name].volume("demo")).state != "ready":
                    await asyncio.sleep(0.01)
                assert await group.owners("demo", name) == map_now

    run(body)


def test_a_small_volume_lies_on_one_member_and_the_others_have_no_file(tmp_path: Path) -> None:
    async def body() -> None:
        async with three(tmp_path) as group:
            volume = await group.services["two"].create_volume(spec())
            assert len(volume.members) == 1
            assert group.files() == {volume.members[0]: MIB}

    run(body)


def test_growth_is_made_by_its_owners_before_anybody_sees_it(tmp_path: Path) -> None:
    async def body() -> None:
        async with three(tmp_path) as group:
            volume = await group.services["one"].create_volume(spec(size_bytes=2 * MIB, members=("one", "two")))
            grown = await group.services["one"].resize_volume("demo", 256 * MIB, False)
            assert grown.size_bytes == 256 * MIB
            map_now = await group.owners("demo")
            assert {owner for _, _, owner in map_now} == {"one", "two"}
            for name in ("one", "two"):
                blocks = sum(end - start for start, end, owner in map_now if owner == name)
                assert total(group.held(name, volume.id)) == blocks
            assert group.files() == {"one": 256 * MIB, "two": 256 * MIB}

    run(body)


def test_shrinking_destroys_what_lies_beyond_at_every_member(tmp_path: Path) -> None:
    async def body() -> None:
        async with three(tmp_path) as group:
            volume = await group.services["one"].create_volume(spec(size_bytes=3 * MIB, members=NAMES))
            map_now = await group.owners("demo")
            last_start, _, last_owner = map_now[-1]
            initiator = await logged_in(group.members[last_owner], volume.iqn, 3 * MIB)
            assert await initiator.command(write_10(last_start), b"\xa5" * 512) == (0, b"")
            await group.services["one"].resize_volume("demo", MIB, True)
            assert set(group.files().values()) == {MIB}
            assert [total(group.held(name, volume.id)) for name in NAMES].count(0) == 2
            await group.services["one"].resize_volume("demo", 3 * MIB, False)
            assert (await group.owners("demo"))[-1][1] == 3 * BLOCKS_PER_MIB
            owner = (await group.owners("demo"))[-1][2]
            initiator.close()
            initiator = await logged_in(group.members[owner], volume.iqn, 3 * MIB)
            assert await initiator.command(read_10(last_start), read=512) == (0, bytes(512))
            initiator.close()

    run(body)


def test_deletion_leaves_nothing_anywhere(tmp_path: Path) -> None:
    async def body() -> None:
        async with three(tmp_path) as group:
            await group.services["one"].create_volume(spec(size_bytes=3 * MIB, members=NAMES))
            await group.services["two"].delete_volume("demo", False)
            assert group.files() == {}
            assert await group.services["two"].volumes() == ()
            store = group.members["one"].store
            kinds = {item.key.partition("/")[0] for item in (await store.range("")).items}
            assert kinds == {"group", "group-secret", "members", "leases"}

    run(body)


def test_a_member_that_is_away_is_named_and_deletes_when_it_is_back(tmp_path: Path) -> None:
    async def body() -> None:
        async with three(tmp_path) as group:
            await group.services["one"].create_volume(spec(size_bytes=3 * MIB, members=NAMES))
            await group.stop("two")
            await group.running("one", "three")
            with pytest.raises(Conflict, match="member two, which holds some of its data, is not running"):
                await group.services["one"].delete_volume("demo", True)
            assert set(group.files()) == {"two"}
            assert [one.state for one in await group.services["one"].volumes()] == ["deleting"]
            await group.start("two")
            while await group.services["one"].volumes():
                await asyncio.sleep(0.01)
            assert group.files() == {}

    run(body)


def test_an_empty_file_of_a_volume_that_is_gone_goes_too(tmp_path: Path) -> None:
    """All of it had moved away, and this member was not needed for the deletion."""

    async def body() -> None:
        async with three(tmp_path) as group:
            volume = await group.services["one"].create_volume(spec(members=("one",)))
            while volume.id not in group.members["three"].exports.by_id:
                await asyncio.sleep(0.01)
            await group.members["three"].exports.by_id[volume.id].change_held(lambda held: held)
            assert set(group.files()) == {"one", "three"}
            await group.stop("three")
            await group.running("one", "two")
            await group.services["one"].delete_volume("demo", True)
            assert set(group.files()) == {"three"}
            await group.start("three")
            assert group.files() == {}

    run(body)


class Refusing(Pool):
    """A pool that refuses what its class is told to; which pool: by its directory."""

    refused: str = ""
    at = "two"

    def _check(self, what: str) -> None:
        if self.refused == what and self.at in self.directory.parts:
            raise PoolError("the disk reports errors; check it")

    async def create_volume(self, *arguments: Any) -> PoolVolume:
        self._check("create")
        return await super().create_volume(*arguments)

    async def resize_volume(self, volume_id: str, size_bytes: int, held: Sequence[HeldRange]) -> PoolVolume:
        self._check("resize")
        return await super().resize_volume(volume_id, size_bytes, held)


class RefusingEnvironment(MemoryEnvironment):
    make_pool = staticmethod(Refusing)


def test_a_volume_that_one_member_cannot_make_is_made_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Refusing, "refused", "create")

    async def body() -> None:
        async with three(tmp_path, RefusingEnvironment()) as group:
            with pytest.raises(Conflict, match="'demo' cannot be created: member two: the disk reports errors"):
                await group.services["one"].create_volume(spec(size_bytes=3 * MIB, members=NAMES))
            while await group.services["one"].volumes():
                await asyncio.sleep(0.01)
            assert group.files() == {}

    run(body)


def test_growth_that_one_member_refuses_is_taken_back_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        async with three(tmp_path, RefusingEnvironment()) as group:
            volume = await group.services["one"].create_volume(spec(size_bytes=3 * MIB, members=NAMES))
            before = {name: group.held(name, volume.id) for name in NAMES}
            with monkeypatch.context() as patched:
                patched.setattr(Refusing, "refused", "resize")
                with pytest.raises(Conflict, match="'demo' cannot be resized: member two: the disk reports errors"):
                    await group.services["one"].resize_volume("demo", 512 * MIB, False)
            while (record := await group.members["one"].volumes.named("demo")).unconfirmed:
                await asyncio.sleep(0.01)
            assert (record.size_bytes, record.shrinking, record.growing_from_bytes) == (3 * MIB, False, 0)
            assert {name: group.held(name, volume.id) for name in NAMES} == before
            assert set(group.files().values()) == {3 * MIB}
            assert (await group.services["one"].resize_volume("demo", 512 * MIB, False)).size_bytes == 512 * MIB

    run(body)


def test_what_a_member_was_asked_while_it_was_away_it_does_at_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        async with three(tmp_path) as group:
            volume = await group.services["one"].create_volume(spec(size_bytes=6 * MIB, members=NAMES))
            await group.stop("two")
            await group.running("one", "three")
            with monkeypatch.context() as patched:
                patched.setattr(volume_requests, "SETTLE_S", 0.5)
                with pytest.raises(Conflict, match=r"waiting for member .*two"):
                    await group.services["one"].resize_volume("demo", 4 * MIB, True)
            with pytest.raises(Conflict, match="is being shrunk"):
                await group.services["one"].resize_volume("demo", 8 * MIB, False)
            await group.start("two")
            while (await group.members["one"].volumes.named("demo")).unconfirmed:
                await asyncio.sleep(0.01)
            assert set(group.files().values()) == {4 * MIB}
            mine = sum(end - start for start, end, owner in await group.owners("demo") if owner == "two")
            assert total(group.held("two", volume.id)) == mine

    run(body)


def test_a_member_that_died_while_a_volume_was_made_finishes_it(tmp_path: Path) -> None:
    async def body() -> None:
        async with three(tmp_path) as group:
            await group.members["two"]._followers.cancel()  # it no longer carries out what the store says
            record = await group.members["one"].volumes.create("demo", 3 * MIB, members=NAMES)
            while (await group.members["one"].volumes.named("demo")).unconfirmed != ("two",):
                await asyncio.sleep(0.01)
            assert (await group.services["one"].volume("demo")).state == "not-ready"
            await group.stop("two")
            await group.start("two")
            assert (await group.services["two"].volume("demo")).state == "ready"
            assert total(group.held("two", record.id)) == 2048

    run(body)


class ShortLeases(MemoryEnvironment):
    lease_ttl_s = 3.0


class TestRemoval:
    def test_a_member_that_never_comes_back(self, tmp_path: Path) -> None:
        async def body() -> None:
            async with three(tmp_path, ShortLeases()) as group:
                volume = await group.services["one"].create_volume(spec(size_bytes=3 * MIB, members=NAMES))
                start = next(start for start, _, owner in await group.owners("demo") if owner == "two")
                await group.stop("two")
                await group.running("one", "three")
                with pytest.raises(Conflict, match="drain it first"):
                    await group.services["one"].remove_member("two", False)
                removal = await group.services["one"].remove_member("two", True)
                assert [(one.volume, one.size_bytes) for one in removal.lost] == [("demo", MIB)]
                shown = {one.name: one.state for one in await group.services["three"].members()}
                assert shown == {"one": "active", "two": "removed", "three": "active"}
                while "two" in (await group.services["one"].volume("demo")).members:
                    await asyncio.sleep(0.01)
                initiator = await logged_in(group.members["one"], volume.iqn)
                status, sense = await initiator.command(read_10(start), read=512)
                assert (status, sense[2 + 2] & 0xF) == (2, 3)  # MEDIUM ERROR
                initiator.close()
                with pytest.raises(StartError, match="was removed from the group"):
                    await group.start("two")
                assert f"{MIB} bytes of it are lost" in (await group.services["one"].volume("demo")).reason

        run(body)

    def test_a_drained_member_ends_by_itself(self, tmp_path: Path) -> None:
        async def body() -> None:
            async with three(tmp_path) as group:
                two = group.members["two"]
                await group.services["one"].create_volume(spec(members=("one",)))
                await two.membership.tell()
                await set_draining(two)
                ending = asyncio.ensure_future(ended(group, "two"))
                await group.services["one"].remove_member("two", False)
                await ending
                assert "was removed from the group" in two.must_end

        run(body)


async def set_draining(member: Member) -> None:
    item = await member.store.get(member_key(member.name))
    assert item is not None
    record = msgspec.structs.replace(decode(MemberRecord, item.value, item.key), state="draining")
    await member.store.transact([], [Put(item.key, encode(record))])


async def ended(group: Three, name: str) -> None:
    """What `serve_forever` does with a member that must end."""
    await group.members[name]._ended.wait()
    await group.stop(name)

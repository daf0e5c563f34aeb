"""Volumes of a running member: what creating, changing, resizing and deleting does to initiators and files."""

import asyncio
import os
from pathlib import Path

import pytest

from san_target.admin.service import ChapUser, MemberService, VolumeChanges
from san_target.group.errors import Conflict, Invalid, NotFound
from san_target.group.volumes import DELETING
from san_target.metadata.schema import volume_key
from san_target.metadata.store import Delete
from san_target.server.environment import Environment
from san_target.server.member import Member
from san_target.storage.blocks_file import SparseFile
from san_target.storage.pool import Pool, PoolVolume
from san_target.storage.records import HeldRange, PoolError
from tests.unit.server.conftest import MIB, MemoryEnvironment, Site, run, spec
from tests.unit.server.initiator import NAME, Initiator

WRITE_10 = bytes.fromhex("2a000000000000000100")
READ_10 = bytes.fromhex("28000000000000000100")
READ_CAPACITY_10 = bytes([0x25, *bytes(9)])
INQUIRY = bytes.fromhex("120000002400")
SERVICE_UNAVAILABLE = 0x0301
NOT_FOUND = 0x0203
NOT_ALLOWED = 0x0202
AUTHENTICATION_FAILURE = 0x0201
DATA = bytes(range(256)) * 2


async def connected(member: Member, isid: int = 1) -> Initiator:
    return await Initiator.connect(member.portals.bound[0], b"\x80\0\0\0\0" + bytes([isid]))


async def logged_in(member: Member, iqn: str, isid: int = 1) -> Initiator:
    initiator = await connected(member, isid)
    assert await initiator.login(iqn) == 0
    await initiator.ready()
    return initiator


async def login_status(member: Member, iqn: str, name: str = NAME) -> int:
    initiator = await connected(member, 9)
    status = await initiator.login(iqn, name)
    initiator.close()
    return status


def attention(sense_data: bytes) -> tuple[int, int]:
    """(ASC, ASCQ) of fixed format sense data with its length in front."""
    return sense_data[2 + 12], sense_data[2 + 13]


class TestCreate:
    def test_it_is_served_when_the_request_returns(self, site: Site) -> None:
        async def body() -> None:
            async with site.started() as (member, service):
                volume = await service.create_volume(spec(size_bytes=2 * MIB, block_size=4096))
                assert (volume.state, volume.reason, volume.size_bytes) == ("ready", "", 2 * MIB)
                assert volume.wwid.startswith("naa.6")
                [path] = site.blocks_files()
                assert (path.stem, path.stat().st_size) == (volume.id, 2 * MIB)
                initiator = await logged_in(member, volume.iqn)
                _, capacity = await initiator.command(READ_CAPACITY_10, read=8)
                assert capacity == (511).to_bytes(4, "big") + (4096).to_bytes(4, "big")
                assert [entry.end_lba for entry in await service.volume_map("demo")] == [512]
                initiator.close()

        run(body)

    def test_discovery_shows_what_the_initiator_may_use(self, site: Site) -> None:
        async def body() -> None:
            async with site.started() as (member, service):
                await service.create_volume(spec("mine", allow=(NAME,)))
                await service.create_volume(spec("other", allow=("iqn.1993-08.org.debian:01:other",)))
                everyone = await service.create_volume(spec("all"))
                initiator = await connected(member)
                assert await initiator.login(None) == 0
                pairs = await initiator.send_targets()
                [portal] = member.portals.bound
                assert [value for key, value in pairs if key == "TargetName"] == [
                    everyone.iqn,
                    "iqn.2026-01.io.san-target:mine",
                ]
                assert {value for key, value in pairs if key == "TargetAddress"} == {f"{portal},1"}
                initiator.close()

        run(body)

    def test_one_that_the_pool_cannot_make_is_taken_back(self, tmp_path: Path) -> None:
        class Full(Pool):
            async def create_volume(self, *arguments: object) -> PoolVolume:
                raise PoolError("no space is left; free some, or delete volumes")

        class FullEnvironment(MemoryEnvironment):
            make_pool = staticmethod(Full)

        async def body() -> None:
            async with Site(tmp_path, FullEnvironment()).started() as (member, service):
                with pytest.raises(Conflict, match="'demo' cannot be created: no space is left"):
                    await service.create_volume(spec())
                assert await service.volumes() == ()
                assert (await member.store.range("maps/")).items == ()
                assert await login_status(member, "iqn.2026-01.io.san-target:demo") == NOT_FOUND

        run(body)

    def test_refusals_of_the_group_reach_the_caller(self, site: Site) -> None:
        async def body() -> None:
            async with site.started() as (_, service):
                await service.create_volume(spec())
                with pytest.raises(Conflict, match="exists already"):
                    await service.create_volume(spec())
                with pytest.raises(Invalid, match="multiple"):
                    await service.create_volume(spec("odd", MIB + 1))
                with pytest.raises(NotFound, match="no member 'x'"):
                    await service.create_volume(spec("far", members=("x",)))
                assert [volume.name for volume in await service.volumes()] == ["demo"]

        run(body)

    def test_a_creation_that_was_interrupted_is_completed_at_the_next_start(self, site: Site) -> None:
        """The record was committed, the crash came before the file was made."""

        async def body() -> None:
            async with site.started() as (member, _):
                await member._followers.cancel()  # it no longer carries out what the store says
                record = await member.volumes.create("demo", MIB)
                assert site.blocks_files() == []
            async with site.started() as (member, service):
                assert (await service.volume("demo")).state == "ready"
                assert (await member.volumes.named("demo")).state == "ready"
                assert [path.stem for path in site.blocks_files()] == [record.id]

        run(body)


class TestChange:
    def test_access_is_in_force_for_the_next_login(self, site: Site) -> None:
        async def body() -> None:
            async with site.started() as (member, service):
                volume = await service.create_volume(spec())
                initiator = await logged_in(member, volume.iqn)
                await service.change_volume("demo", VolumeChanges(allow=("iqn.1993-08.org.debian:01:other",)))
                assert await login_status(member, volume.iqn) == NOT_ALLOWED
                assert await login_status(member, volume.iqn, "iqn.1993-08.org.debian:01:other") == 0
                user = ChapUser(user="alice", secret="a-secret-of-16-b")
                changed = await service.change_volume("demo", VolumeChanges(allow=(), chap=(user,)))
                assert changed.chap == ("alice",)
                assert await login_status(member, volume.iqn) == AUTHENTICATION_FAILURE
                await service.change_volume("demo", VolumeChanges(chap=()))
                assert await login_status(member, volume.iqn) == 0
                assert (await initiator.command(READ_10, read=512))[0] == 0
                initiator.close()

        run(body)

    def test_live_sessions_learn_of_write_protection(self, site: Site) -> None:
        async def body() -> None:
            async with site.started() as (member, service):
                volume = await service.create_volume(spec())
                initiator = await logged_in(member, volume.iqn)
                assert await initiator.command(WRITE_10, DATA) == (0, b"")
                await service.change_volume("demo", VolumeChanges(read_only=True))
                status, sense = await initiator.command(WRITE_10, bytes(512))
                assert (status, attention(sense)) == (2, (0x2A, 0x01))
                status, sense = await initiator.command(WRITE_10, bytes(512))
                assert (status, attention(sense)) == (2, (0x27, 0x00))
                assert await initiator.command(READ_10, read=512) == (0, DATA)
                await service.change_volume("demo", VolumeChanges(read_only=False))
                await initiator.ready()
                assert await initiator.command(WRITE_10, bytes(512)) == (0, b"")
                initiator.close()

        run(body)

    def test_a_removable_medium_is_seen_in_inquiry(self, site: Site) -> None:
        async def body() -> None:
            async with site.started() as (member, service):
                volume = await service.create_volume(spec())
                initiator = await logged_in(member, volume.iqn)
                await service.change_volume("demo", VolumeChanges(removable=True))
                _, inquiry = await initiator.command(INQUIRY, read=36)
                assert inquiry[1] & 0x80
                status, sense = await initiator.command(bytes(6))
                assert (status, attention(sense)) == (2, (0x3F, 0x03))
                initiator.close()

        run(body)

    def test_write_through_makes_writes_durable(self, sqlite_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        async def body() -> None:
            durable: list[bool] = []
            write = SparseFile.write

            def noted(self: SparseFile, offset_bytes: int, data: bytes, durable_: bool = False) -> None:
                durable.append(durable_)
                write(self, offset_bytes, data, durable_)

            monkeypatch.setattr(SparseFile, "write", noted)
            async with sqlite_site.started() as (member, service):
                volume = await service.create_volume(spec())
                await service.change_volume("demo", VolumeChanges(write_through=True))
                initiator = await logged_in(member, volume.iqn)
                assert await initiator.command(WRITE_10, DATA) == (0, b"")
                assert durable == [True]
                await service.change_volume("demo", VolumeChanges(write_through=False))
                await initiator.ready()
                await initiator.command(WRITE_10, DATA)
                assert durable.count(True) == 1
                initiator.close()

        run(body)

    def test_write_through_first_makes_durable_what_was_acknowledged(
        self, sqlite_site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A host that hears of write-through stops flushing, also what it wrote before."""

        async def body() -> None:
            flushed: list[Path] = []
            flush = SparseFile.flush

            def noted(self: SparseFile) -> None:
                flush(self)
                flushed.append(self.path)

            async with sqlite_site.started() as (member, service):
                volume = await service.create_volume(spec())
                initiator = await logged_in(member, volume.iqn)
                assert await initiator.command(WRITE_10, DATA) == (0, b"")
                monkeypatch.setattr(SparseFile, "flush", noted)
                await service.change_volume("demo", VolumeChanges(write_through=True))
                assert flushed == sqlite_site.blocks_files()
                initiator.close()

        run(body)


class TestResize:
    def test_growth_is_seen_by_live_sessions_and_after_a_restart(self, site: Site) -> None:
        async def body() -> None:
            last = WRITE_10[:2] + (4095).to_bytes(4, "big") + WRITE_10[6:]
            async with site.started() as (member, service):
                volume = await service.create_volume(spec())
                initiator = await logged_in(member, volume.iqn)
                assert (await initiator.command(last, DATA))[0] == 2
                assert (await service.resize_volume("demo", 2 * MIB, False)).size_bytes == 2 * MIB
                status, sense = await initiator.command(bytes(6))
                assert (status, attention(sense)) == (2, (0x2A, 0x09))
                assert await initiator.command(last, DATA) == (0, b"")
                initiator.close()
            async with site.started() as (member, service):
                initiator = await logged_in(member, volume.iqn)
                assert await initiator.command(b"\x28" + last[1:], read=512) == (0, DATA)
                initiator.close()

        run(body)

    def test_shrinking_needs_force_and_destroys_what_lies_beyond(self, site: Site) -> None:
        async def body() -> None:
            last = WRITE_10[:2] + (4095).to_bytes(4, "big") + WRITE_10[6:]
            async with site.started() as (member, service):
                volume = await service.create_volume(spec(size_bytes=2 * MIB))
                initiator = await logged_in(member, volume.iqn)
                assert await initiator.command(last, DATA) == (0, b"")
                with pytest.raises(Conflict, match="--force"):
                    await service.resize_volume("demo", MIB, False)
                assert await initiator.command(b"\x28" + last[1:], read=512) == (0, DATA)
                await service.resize_volume("demo", MIB, True)
                assert site.blocks_files()[0].stat().st_size == MIB
                await initiator.ready()
                assert (await initiator.command(b"\x28" + last[1:], read=512))[0] == 2
                await service.resize_volume("demo", 2 * MIB, False)
                await initiator.ready()
                assert await initiator.command(b"\x28" + last[1:], read=512) == (0, bytes(512))
                initiator.close()

        run(body)

    def test_a_resize_that_was_interrupted_is_completed_at_the_next_start(self, site: Site) -> None:
        async def body() -> None:
            for size_bytes in (4 * MIB, 2 * MIB):
                async with site.started() as (member, service):
                    if not await service.volumes():
                        await service.create_volume(spec())
                    await member._followers.cancel()
                    await member.volumes.resize("demo", size_bytes, force=True)
                async with site.started() as (member, service):
                    volume = await service.volume("demo")
                    assert (volume.state, volume.size_bytes) == ("ready", size_bytes)
                    assert site.blocks_files()[0].stat().st_size == size_bytes
                    initiator = await logged_in(member, volume.iqn)
                    _, capacity = await initiator.command(READ_CAPACITY_10, read=8)
                    assert int.from_bytes(capacity[:4], "big") == size_bytes // 512 - 1
                    initiator.close()

        run(body)

    def test_growth_that_the_pool_refuses_is_taken_back(self, tmp_path: Path) -> None:
        class Refusing(Pool):
            async def resize_volume(self, volume_id: str, size_bytes: int, generation: int) -> PoolVolume:
                raise PoolError("the file system has no such large files")

        class RefusingEnvironment(MemoryEnvironment):
            make_pool = staticmethod(Refusing)

        async def body() -> None:
            async with Site(tmp_path, RefusingEnvironment()).started() as (member, service):
                volume = await service.create_volume(spec())
                initiator = await logged_in(member, volume.iqn)
                with pytest.raises(Conflict, match="'demo' cannot be resized: the file system has no such large"):
                    await service.resize_volume("demo", 2 * MIB, False)
                shown = await service.volume("demo")
                assert (shown.size_bytes, shown.state, shown.reason) == (MIB, "ready", "")
                assert await initiator.command(WRITE_10, DATA) == (0, b"")
                initiator.close()

        run(body)


class TestDelete:
    def test_files_and_target_are_gone(self, site: Site) -> None:
        async def body() -> None:
            async with site.started() as (member, service):
                volume = await service.create_volume(spec())
                kept = await service.create_volume(spec("kept"))
                await service.delete_volume("demo", False)
                assert [name for name in site.volume_files() if volume.id in name] == []
                assert [name for name in site.volume_files() if kept.id in name] != []
                assert await login_status(member, volume.iqn) == NOT_FOUND
                with pytest.raises(NotFound):
                    await service.volume("demo")
                again = await service.create_volume(spec())
                assert again.id != volume.id
                initiator = await logged_in(member, again.iqn)
                assert await initiator.command(READ_10, read=512) == (0, bytes(512))
                initiator.close()

        run(body)

    def test_sessions_hinder_it_unless_forced(self, site: Site) -> None:
        async def body() -> None:
            async with site.started() as (member, service):
                volume = await service.create_volume(spec())
                initiator = await logged_in(member, volume.iqn)
                with pytest.raises(Conflict, match="1 session is logged in"):
                    await service.delete_volume("demo", False)
                assert await initiator.command(WRITE_10, DATA) == (0, b"")
                await service.delete_volume("demo", True)
                assert await initiator.ended()
                assert site.volume_files() == []
                assert service.counters().written_bytes == 512
                assert service.counters().logins == 1

        run(body)

    def test_a_deletion_that_was_interrupted_is_completed_at_the_next_start(self, site: Site) -> None:
        async def body() -> None:
            async with site.started() as (member, service):
                await service.create_volume(spec())
                await member._followers.cancel()
                assert (await member.volumes.delete("demo")).state == DELETING
            assert len(site.blocks_files()) == 1
            async with site.started() as (member, service):
                assert await service.volumes() == ()
                assert site.volume_files() == []
                assert [item.key for item in (await member.store.range("")).items if "/" in item.key] == [
                    "leases/one",
                    "members/one",
                ]

        run(body)

    def test_data_is_kept_when_a_record_vanishes(self, site: Site) -> None:
        async def body() -> None:
            async with site.started() as (member, service):
                volume = await service.create_volume(spec())
                await member.store.transact([], [Delete(volume_key(volume.id))])
                while volume.id in member.exports.by_id:
                    await asyncio.sleep(0.01)
                assert await login_status(member, volume.iqn) == NOT_FOUND
                assert len(site.blocks_files()) == 1

        run(body)

    def test_data_that_cannot_be_removed_yet_is_said(self, tmp_path: Path) -> None:
        class Stubborn(Pool):
            async def delete_volume(self, volume_id: str) -> None:
                raise PoolError("the file system is read-only")

        class StubbornEnvironment(MemoryEnvironment):
            make_pool = staticmethod(Stubborn)

        async def body() -> None:
            async with Site(tmp_path, StubbornEnvironment()).started() as (_, service):
                await service.create_volume(spec())
                with pytest.raises(Conflict, match="cannot be removed yet"):
                    await service.delete_volume("demo", False)
                assert (await service.volume("demo")).state == "deleting"

        run(body)


class TestTrouble:
    """One volume's trouble is its own."""

    async def two_volumes(self, service: MemberService) -> tuple[str, str]:
        return (await service.create_volume(spec("bad"))).id, (await service.create_volume(spec("good"))).iqn

    async def only_bad_is_missing(self, site: Site, reason: str) -> None:
        async with site.started() as (member, service):
            bad, good = await service.volume("bad"), await service.volume("good")
            assert (bad.state, good.state) == ("not-ready", "ready")
            assert reason in bad.reason
            assert await login_status(member, bad.iqn) == SERVICE_UNAVAILABLE
            assert await login_status(member, good.iqn) == 0
            assert service.health().status == "degraded"
            assert "volume bad is not-ready" in service.health().reasons[0]
            assert (await service.group_status()).state == "degraded"
            # Repaired, not changed, it is to be.
            with pytest.raises(Conflict, match="is not served now: "):
                await service.resize_volume("bad", 8 * MIB, False)
            assert await service.volume("bad") == bad

    def test_a_record_that_holds_too_little_stays_as_it_is(self, site: Site) -> None:
        async def body() -> None:
            async with site.started() as (member, service):
                bad, _ = await self.two_volumes(service)
                await member._followers.cancel()
                await member.volumes.resize("bad", 8 * MIB)  # interrupted, too
                await member.pool.update_held(bad, [HeldRange(0, 8, 1)])
            path = site.directory / "pool" / "volumes" / f"{bad}.held"
            before = path.read_bytes()
            await self.only_bad_is_missing(site, "does not hold all of its blocks")
            assert path.read_bytes() == before

        run(body)

    def test_a_missing_file(self, site: Site) -> None:
        async def body() -> None:
            async with site.started() as (_, service):
                bad, _ = await self.two_volumes(service)
            path = site.directory / "pool" / "volumes" / f"{bad}.blocks"
            path.rename(site.directory / "away")
            await self.only_bad_is_missing(site, "is missing")
            (site.directory / "away").rename(path)
            async with site.started() as (_, service):
                assert service.health().status == "ok"

        run(body)

    def test_a_file_that_was_cut(self, site: Site) -> None:
        async def body() -> None:
            async with site.started() as (_, service):
                bad, _ = await self.two_volumes(service)
            os.truncate(site.directory / "pool" / "volumes" / f"{bad}.blocks", 512)
            await self.only_bad_is_missing(site, "its end is lost")

        run(body)

    def test_a_damaged_record(self, site: Site) -> None:
        async def body() -> None:
            async with site.started() as (_, service):
                bad, _ = await self.two_volumes(service)
            (site.directory / "pool" / "volumes" / f"{bad}.held").write_bytes(b"{}")
            await self.only_bad_is_missing(site, "is damaged")

        run(body)

    def test_blocks_that_vanished_with_their_record_are_not_made_anew(self, site: Site) -> None:
        """A fresh empty file would show zeros where data was."""

        async def body() -> None:
            async with site.started() as (_, service):
                bad, _ = await self.two_volumes(service)
            for path in (site.directory / "pool" / "volumes").glob(f"{bad}.*"):
                path.unlink()
            await self.only_bad_is_missing(site, "no blocks of volume")
            assert len(site.blocks_files()) == 1

        run(body)

    def test_a_volume_with_a_missing_file_can_be_deleted(self, site: Site) -> None:
        async def body() -> None:
            async with site.started() as (_, service):
                bad, _ = await self.two_volumes(service)
            (site.directory / "pool" / "volumes" / f"{bad}.blocks").unlink()
            async with site.started() as (_, service):
                await service.delete_volume("bad", False)
                assert [volume.name for volume in await service.volumes()] == ["good"]
                assert service.health().status == "ok"

        run(body)

    def test_a_failed_flush_takes_one_volume_out_of_service(self, sqlite_site: Site) -> None:
        async def body() -> None:
            async with sqlite_site.started() as (member, service):
                bad, good = await self.two_volumes(service)
                member.pool.open_volume(bad).file.fail("the disk said EIO")
                shown = await service.volume("bad")
                assert shown.state == "failed"
                assert "start this member again" in shown.reason
                initiator = await logged_in(member, good)
                assert await initiator.command(WRITE_10, DATA) == (0, b"")
                initiator.close()

        run(body)

    def test_a_volume_of_another_member_is_served_without_a_file(self, tmp_path: Path) -> None:
        environment = Environment()
        store = f"sqlite://{tmp_path}/group.sqlite"

        async def body() -> None:
            one, two = Site(tmp_path / "1", environment), Site(tmp_path / "2", environment)
            async with (
                one.started(store=store) as (member, service),
                two.started(store=store, name="two") as (other, there),
            ):
                volume = await service.create_volume(spec(members=("two",)))
                assert (volume.state, volume.members) == ("ready", ("two",))
                assert await login_status(member, volume.iqn) == 0
                while await login_status(other, volume.iqn) != 0:
                    await asyncio.sleep(0.01)
                assert (await there.volume("demo")).state == "ready"
                assert [(member.name, member.state) for member in await there.members()] == [
                    ("one", "active"),
                    ("two", "active"),
                ]
                assert (one.blocks_files(), len(two.blocks_files())) == ([], 1)
                assert (await service.resize_volume("demo", 2 * MIB, False)).size_bytes == 2 * MIB
                assert two.blocks_files()[0].stat().st_size == 2 * MIB
                await service.delete_volume("demo", True)
                assert await service.volumes() == ()
                assert two.blocks_files() == []

        run(body)

"""The life of a member: start, serve, restart, stop, and what is said when it cannot start."""

import asyncio
import contextlib
import errno
import os
import signal
import sqlite3
import urllib.request
from pathlib import Path

import pytest

from san_target.metadata.schema import LeaseRecord, MemberRecord, decode, lease_key, member_key
from san_target.metadata.sqlite import SqliteStore
from san_target.metadata.store import Store
from san_target.server.environment import Environment
from san_target.server.member import Member, StartError
from san_target.storage.pool import Pool
from san_target.storage.threads import Threads
from tests.unit.server.conftest import MemoryEnvironment, Site, run, spec
from tests.unit.server.initiator import Initiator

WRITE_10 = bytes.fromhex("2a000000000000000100")
READ_10 = bytes.fromhex("28000000000000000100")
DATA = bytes(range(256)) * 2


async def logged_in(member: Member, iqn: str) -> Initiator:
    initiator = await Initiator.connect(member.portals.bound[0])
    assert await initiator.login(iqn) == 0
    await initiator.ready()
    return initiator


class TestLife:
    def test_a_restart_finds_volumes_and_data(self, site: Site) -> None:
        async def body() -> None:
            async with site.started() as (member, service):
                made = await service.create_volume(spec())
                initiator = await logged_in(member, made.iqn)
                assert await initiator.command(WRITE_10, DATA) == (0, b"")
            assert await initiator.ended()
            async with site.started() as (member, service):
                assert (await service.volume("demo")).id == made.id
                initiator = await logged_in(member, made.iqn)
                assert await initiator.command(READ_10, read=512) == (0, DATA)
                initiator.close()

        run(body)

    def test_each_start_is_a_new_incarnation_with_a_lease(self, site: Site) -> None:
        async def body() -> None:
            for incarnation in (1, 2):
                async with site.started() as (member, _):
                    item = await member.store.get(member_key("one"))
                    alive = await member.store.get(lease_key("one"))
                    assert item is not None
                    assert alive is not None
                    record = decode(MemberRecord, item.value, item.key)
                    assert record.incarnation == incarnation
                    assert record.portals == member.portals.bound
                    assert record.admin == member.admin_address
                    assert decode(LeaseRecord, alive.value, alive.key).pool_id == member.pool.pool_id
                store = site.environment.make_store(member.config.store_url)
                await store.open()
                assert await store.get(lease_key("one")) is None
                await store.close()

        run(body)

    def test_the_ready_line_names_the_addresses(self, site: Site) -> None:
        async def body() -> None:
            async with site.started() as (member, _):
                words = member.ready_line.split()
                assert words[:2] == ["ready", "name=one"]
                [portal] = member.portals.bound
                assert words[2:] == [f"portals={portal}", f"admin=http://{member.admin_address}"]
                initiator = await Initiator.connect(portal)
                assert await initiator.login(None) == 0
                initiator.close()
                url = f"http://{member.admin_address}/healthz"
                with await asyncio.to_thread(urllib.request.urlopen, url) as answer:
                    assert answer.status == 200

        run(body)

    def test_it_serves_until_a_signal(self, site: Site) -> None:
        async def body() -> None:
            member = site.member()
            announced: list[str] = []

            def announce(line: str) -> None:
                announced.append(line)
                os.kill(os.getpid(), signal.SIGTERM)

            await member.serve_forever(announce)
            assert announced == [member.ready_line]
            assert member.state == "stopping"
            with pytest.raises(OSError):
                await Initiator.connect(member.portals.bound[0])

        run(body)

    def test_a_signal_during_the_start_ends_it(self, tmp_path: Path) -> None:
        class Signalled(MemoryEnvironment):
            """The signal comes when the pool is about to be opened, which then takes until the signal is seen."""

            def make_pool(self, directory: Path, threads: Threads) -> Pool:
                os.kill(os.getpid(), signal.SIGTERM)
                return NeverOpen(directory, threads)

        class NeverOpen(Pool):
            async def open(self, *_arguments: object) -> None:
                await asyncio.Event().wait()

        async def body() -> None:
            member = Site(tmp_path, Signalled()).member()
            announced: list[str] = []
            await member.serve_forever(announced.append)
            assert announced == []
            assert member.state == "stopping"

        run(body)

    def test_stopping_flushes_what_was_written(self, sqlite_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        async def body() -> None:
            flushed: list[str] = []
            async with sqlite_site.started() as (member, service):
                made = await service.create_volume(spec())
                initiator = await logged_in(member, made.iqn)
                await initiator.command(WRITE_10, DATA)
                descriptor_flush = os.fdatasync

                def fdatasync(descriptor: int) -> None:
                    flushed.append(os.readlink(f"/proc/self/fd/{descriptor}"))
                    descriptor_flush(descriptor)

                monkeypatch.setattr(os, "fdatasync", fdatasync)
            assert str(sqlite_site.blocks_files()[0]) in flushed

        run(body)


class TestCannotStart:
    """Each ends with one line that says what to do, and leaves nothing open."""

    async def refused(self, site: Site, **options: object) -> str:
        member = site.member(**options)
        with pytest.raises(StartError) as caught:
            await member.start()
        assert member.state == "stopping"
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_a_pool_that_is_in_use(self, sqlite_site: Site) -> None:
        async def body() -> None:
            async with sqlite_site.started():
                message = await self.refused(sqlite_site)
                assert f"in use by process {os.getpid()}" in message
            async with sqlite_site.started():
                pass

        run(body)

    @pytest.mark.parametrize(("key", "what"), [("portals", "the portal"), ("admin", "the admin port")])
    def test_a_port_that_is_in_use(self, sqlite_site: Site, key: str, what: str) -> None:
        async def body() -> None:
            server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
            port = server.sockets[0].getsockname()[1]
            address = f"127.0.0.1:{port}"
            message = await self.refused(sqlite_site, **{key: [address] if key == "portals" else address})
            assert message.startswith(f"{what} {address} cannot be opened: another program uses it")
            server.close()
            async with sqlite_site.started():
                pass

        run(body)

    def test_an_address_of_another_machine(self, sqlite_site: Site) -> None:
        async def body() -> None:
            assert "no such address" in await self.refused(sqlite_site, portals=["192.0.2.1:3260"])

        run(body)

    def test_an_admin_port_for_everyone_without_a_token(self, sqlite_site: Site) -> None:
        async def body() -> None:
            message = await self.refused(sqlite_site, admin="0.0.0.0:0")
            assert "API token" in message
            assert not (sqlite_site.directory / "pool").exists()

        run(body)

    def test_a_damaged_store(self, sqlite_site: Site) -> None:
        async def body() -> None:
            async with sqlite_site.started():
                pass
            for path in (sqlite_site.directory / "pool").glob("group.sqlite*"):
                path.write_bytes(b"not a database " * 100)
            assert "is damaged" in await self.refused(sqlite_site)

        run(body)

    def test_a_store_that_was_lost_is_not_replaced_by_an_empty_one(self, sqlite_site: Site) -> None:
        async def body() -> None:
            async with sqlite_site.started() as (_, service):
                await service.create_volume(spec())
            for path in (sqlite_site.directory / "pool").glob("group.sqlite*"):
                path.unlink()
            for _ in range(2):
                message = await self.refused(sqlite_site)
                assert "belongs to a group; restore the store from a backup" in message
            assert len(sqlite_site.blocks_files()) == 1

        run(body)

    def test_a_store_restored_from_a_backup_that_is_too_old(self, sqlite_site: Site) -> None:
        async def body() -> None:
            pool = sqlite_site.directory / "pool"
            async with sqlite_site.started():
                pass
            old = (pool / "group.sqlite").read_bytes()
            async with sqlite_site.started() as (_, service):
                await service.create_volume(spec())
            for path in pool.glob("group.sqlite*"):
                path.unlink()
            (pool / "group.sqlite").write_bytes(old)
            assert "the store is older than the pool" in await self.refused(sqlite_site)

        run(body)

    def test_a_store_of_another_group(self, sqlite_site: Site) -> None:
        async def body() -> None:
            async with sqlite_site.started():
                pass
            assert "not 'other'" in await self.refused(sqlite_site, group="other")

        run(body)

    def test_a_member_of_the_same_name(self, sqlite_site: Site) -> None:
        async def body() -> None:
            async with sqlite_site.started() as (member, _):
                other = str(sqlite_site.directory / "pool2")
                message = await self.refused(sqlite_site, directory=other, store=member.config.store_url)
                assert "named 'one' is running" in message

        run(body)

    def test_an_unknown_store(self, sqlite_site: Site) -> None:
        async def body() -> None:
            assert "supported are sqlite:///PATH" in await self.refused(sqlite_site, store="mysql://host")

        run(body)

    def test_a_directory_that_cannot_be_made(self, sqlite_site: Site) -> None:
        async def body() -> None:
            (sqlite_site.directory / "file").write_text("")
            path = str(sqlite_site.directory / "file" / "pool")
            assert "no directory" in await self.refused(sqlite_site, directory=path)

        run(body)

    def test_a_read_only_file_system(self, sqlite_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        def mkdir(*_: object, **__: object) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        async def body() -> None:
            with monkeypatch.context() as patched:
                patched.setattr(Path, "mkdir", mkdir)
                assert "read-only; mount it writable" in await self.refused(sqlite_site)

        run(body)

    def test_a_failed_start_leaves_no_lease(self, sqlite_site: Site) -> None:
        """Another pool may take the name at once."""

        async def body() -> None:
            server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
            store = f"sqlite://{sqlite_site.directory}/group.sqlite"
            address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            await self.refused(sqlite_site, portals=[address], store=store)
            server.close()
            other = str(sqlite_site.directory / "pool2")
            async with sqlite_site.started(directory=other, store=store) as (member, _):
                assert member.membership.incarnation == 2

        run(body)


class Impatient(Environment):
    """Short leases, and a store that waits only a moment for others."""

    lease_ttl_s = 0.3

    def make_store(self, url: str) -> Store:
        return SqliteStore(Path(url.removeprefix("sqlite://")), busy_timeout_s=0.05)


class TestStore:
    def test_a_store_outage_is_shown_and_survived(self, tmp_path: Path) -> None:
        site = Site(tmp_path, Impatient())

        async def body() -> None:
            async with site.started() as (member, service):
                made = await service.create_volume(spec())
                initiator = await logged_in(member, made.iqn)
                path = tmp_path / "pool" / "group.sqlite"
                with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as blocker:
                    blocker.execute("BEGIN IMMEDIATE")
                    while service.health().status != "degraded":
                        assert await initiator.command(WRITE_10, DATA) == (0, b"")
                        await asyncio.sleep(0.01)
                    assert "locked by another process" in service.health().reasons[0]
                    blocker.execute("ROLLBACK")
                while service.health().status != "ok":
                    await asyncio.sleep(0.01)
                assert await initiator.command(READ_10, read=512) == (0, DATA)
                initiator.close()

        run(body)

    def test_a_lost_lease_begins_a_new_incarnation_and_goes_on(self, tmp_path: Path) -> None:
        site = Site(tmp_path, Impatient())

        async def body() -> None:
            async with site.started() as (member, service):
                made = await service.create_volume(spec())
                initiator = await logged_in(member, made.iqn)
                with contextlib.closing(sqlite3.connect(tmp_path / "pool" / "group.sqlite")) as other:
                    other.execute("UPDATE leases SET expires_at_s = 0")
                    other.commit()
                while member.membership.incarnation < 2:
                    assert await initiator.command(WRITE_10, DATA) == (0, b"")
                    await asyncio.sleep(0.01)
                assert await member.store.get(lease_key("one")) is not None
                assert (await service.create_volume(spec("second"))).state == "ready"
                initiator.close()

        run(body)

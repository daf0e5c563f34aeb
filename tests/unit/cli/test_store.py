"""`san-target store` on real stores and pools, without a member."""

from __future__ import annotations

import asyncio
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from san_target.cli.main import main
from san_target.group.group_record import ensure_group
from san_target.group.membership import Membership, PoolFacts
from san_target.group.volumes import Volumes
from san_target.metadata.clock import boottime_s
from san_target.metadata.schema import VolumeRecord
from san_target.metadata.sqlite import SqliteStore
from san_target.server.volume_blocks import owned
from san_target.storage.pool import Pool
from san_target.storage.threads import ThreadPool
from san_target.volume.partition_map import PartitionMap

GROUP_ID = "aa" * 16
MIB = 1 << 20


class Site:
    """A store, and the pools of two members of which no process runs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.store = directory / "group.sqlite"
        self.backup = directory / "backup"

    @property
    def url(self) -> str:
        return f"sqlite://{self.store}"

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, ["store", *arguments])

    def ok(self, *arguments: str) -> str:
        result = self.run(*arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    def error(self, *arguments: str) -> str:
        result = self.run(*arguments)
        assert result.exit_code == 1, result.output
        assert result.stderr.count("\n") == 1
        assert result.stderr.startswith("san-target: ")
        return result.stderr

    def pools(self, *names: str) -> list[str]:
        return [word for name in names for word in ("--pool", f"{name}={self.directory / name}")]

    def volumes(self) -> dict[str, VolumeRecord]:
        found: dict[str, VolumeRecord] = {}

        async def body() -> None:
            store = SqliteStore(self.store)
            await store.open()
            group = await ensure_group(store, "lab", GROUP_ID, bytes(32))
            found.update({record.name: record for record in await Volumes(store, group).all()})
            await store.close()

        asyncio.run(body())
        return found

    def make(self, *volumes: str, members_stay: bool = False) -> None:
        asyncio.run(self._make(volumes, members_stay))

    async def _make(self, names: tuple[str, ...], members_stay: bool) -> None:
        """The group with these volumes over both members, whose pools hold what the maps give them."""
        store, threads = SqliteStore(self.store), ThreadPool(1, 1)
        await store.open()
        group = await ensure_group(store, "lab", GROUP_ID, bytes(32))
        pools, members = {}, []
        for name in ("one", "two"):
            pools[name] = Pool(self.directory / name, threads)
            revision = (await store.range("")).revision
            await pools[name].open(group.id, revision, [(one.id, one.revision) for one in group.restores])
            member = Membership(store, name, PoolFacts(pools[name].pool_id, True, 1 << 40, 1 << 40), boottime_s)
            await member.join((), "")
            members.append(member)
        volumes = Volumes(store, group)
        for volume in names:
            record = await volumes.create(volume, 4 * MIB, members=("one", "two"))
            entries = await volumes.entries_of(volume)
            records = [(entry.start, entry.placement) for entry in entries]
            snapshot = PartitionMap.from_records(record.size_bytes // record.block_size, records).snapshot()
            for name, pool in pools.items():
                pieces = owned(snapshot, name, 0, snapshot.blocks)
                await pool.create_volume(record.id, record.size_bytes, record.block_size, pieces)
                await volumes.confirm(record, name)
        for member in () if members_stay else members:
            await member.leave()
        for pool in pools.values():
            await pool.note_revision((await store.range("")).revision)
            await pool.close()
        await store.close()
        threads.close()

    def starts(self) -> str:
        """What a member says when it opens its pool with the store as it is now; "" = all is well."""
        said: list[str] = []

        async def body() -> None:
            store, threads = SqliteStore(self.store), ThreadPool(1, 1)
            await store.open()
            group = await ensure_group(store, "lab", GROUP_ID, bytes(32))
            for name in ("one", "two"):
                pool = Pool(self.directory / name, threads)
                try:
                    await pool.open(
                        group.id, (await store.range("")).revision, [(r.id, r.revision) for r in group.restores]
                    )
                except Exception as error:
                    said.append(str(error))
                else:
                    await pool.close()
            await store.close()
            threads.close()

        asyncio.run(body())
        return " ".join(said)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_backup_and_restore(site: Site) -> None:
    site.make("disk")
    assert "keys written to" in site.ok("backup", str(site.backup), "--store", site.url)
    assert stat.S_IMODE(site.backup.stat().st_mode) == 0o600
    before = site.volumes()
    assert "--force" in site.error("restore", str(site.backup), "--store", site.url)
    for path in site.directory.glob("group.sqlite*"):
        path.unlink()
    assert "group lab is restored as of 2" in site.ok("restore", str(site.backup), "--store", site.url)
    assert site.volumes() == before
    assert site.starts() == ""


def test_members_refuse_a_backup_that_knows_less_than_they(site: Site) -> None:
    site.make("disk")
    site.ok("backup", str(site.backup), "--store", site.url)
    site.make("late")
    site.ok("restore", str(site.backup), "--store", site.url, "--force")
    assert "the store is older than the pool" in site.starts()
    assert "store rebuild" in site.starts()
    words = ["rebuild", "--store", site.url, "--backup", str(site.backup), *site.pools("one", "two")]
    shown = json.loads(site.ok(*words, "--dry-run", "--json"))
    assert [(one["name"][:9], one["members"], one["lost_bytes"], one["in_backup"]) for one in shown["volumes"]] in (
        [("disk", ["one", "two"], 0, True), ("recovered", ["one", "two"], 0, False)],
        [("recovered", ["one", "two"], 0, False), ("disk", ["one", "two"], 0, True)],
    )
    assert set(site.volumes()) == {"disk"}
    late = next(one["id"] for one in shown["volumes"] if not one["in_backup"])
    assert "--force" in site.error(*words)
    text = site.ok(*words, "--force", "--volume", f"{late}=late")
    assert "nobody may log in before `volume set late --allow ...`" in text
    assert set(site.volumes()) == {"disk", "late"}
    assert site.starts() == ""
    site.make("later")  # and the group goes on
    assert site.starts() == ""


def test_rebuild_without_a_backup_from_what_other_machines_printed(site: Site) -> None:
    site.make("disk")
    volume = site.volumes()["disk"]
    printed = site.directory / "two.json"
    printed.write_text(site.ok("held", str(site.directory / "two")))
    for path in site.directory.glob("group.sqlite*"):
        path.unlink()
    words = ["rebuild", "--store", site.url, "--group", "lab", *site.pools("one"), "--pool", f"two={printed}"]
    assert "the store is made, at revision" in site.ok(*words, "--volume", f"{volume.id}=disk")
    assert site.volumes()["disk"].size_bytes == 4 * MIB
    assert site.starts() == ""


def test_a_pool_that_is_left_out_is_lost(site: Site) -> None:
    site.make("disk")
    words = ["rebuild", "--store", site.url, "--group", "lab", "--force", *site.pools("one"), "--json"]
    shown: Any = json.loads(site.ok(*words))
    assert shown["volumes"][0]["lost_bytes"] == 2 * MIB
    assert shown["written"] is True


class TestRefusals:
    def test_a_group_that_runs(self, site: Site) -> None:
        site.make("disk", members_stay=True)
        site.ok("backup", str(site.backup), "--store", site.url)
        assert "member one, two runs with this store" in site.error(
            "restore", str(site.backup), "--store", site.url, "--force"
        )

    def test_a_store_that_does_not_exist_is_not_made(self, site: Site) -> None:
        assert "there is no store" in site.error("backup", str(site.backup), "--store", site.url)
        assert not site.store.exists()
        assert not site.backup.exists()

    def test_a_damaged_backup_changes_nothing(self, site: Site) -> None:
        site.make("disk")
        site.ok("backup", str(site.backup), "--store", site.url)
        site.backup.write_bytes(site.backup.read_bytes()[:-10])
        assert "cannot be read" in site.error("restore", str(site.backup), "--store", site.url, "--force")
        assert set(site.volumes()) == {"disk"}

    def test_a_directory_that_cannot_be_written(self, site: Site) -> None:
        site.make("disk")
        assert "No such file or directory" in site.error("backup", "/nonexistent/backup", "--store", site.url)

    def test_what_is_no_pool(self, site: Site) -> None:
        assert "is no pool" in site.error("held", str(site.directory))
        assert "cannot be read" in site.error("rebuild", "--store", site.url, "--pool", f"one={site.directory / 'x'}")

    @pytest.mark.parametrize("pools", [(), ("--pool", "one"), ("--pool", "one=a", "--pool", "one=b")])
    def test_wrong_usage(self, site: Site, pools: tuple[str, ...]) -> None:
        assert site.run("rebuild", "--store", site.url, *pools).exit_code == 2

"""What was lost or damaged on disk is said in one line that tells what to do. Never zeros, never a deletion.

Damage to one volume takes that volume out of service, and no other; damage to what all share keeps the member from
starting. Either way the files stay as they are, so that what was lost can be brought back.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import crc32c
import pytest

from tests.support.file_systems import Ext4, remount_read_only
from tests.support.member import Member
from tests.support.raw_initiator import (
    CHECK_CONDITION,
    GOOD,
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
from tests.support.target import PLAIN, Volume, wait_for

MIB = 1 << 20
VOLUME_BYTES = 4 * MIB
TARGET_ERROR_TRY_LATER = 0x0301
DATA = {name: bytes([number]) * 64 * 512 for number, name in enumerate(("good", "bad"), 1)}
WRITE_PROTECTED = (0x7, 0x27, 0x00)
MEDIUM_ERROR = 0x3


def login(member: Member, volume: Volume) -> RawInitiator:
    initiator = RawInitiator(member.portal)
    assert initiator.login(volume.iqn) == 0
    return initiator.ready()


def create(member: Member, name: str) -> Volume:
    made = member.ask("POST", "/volumes", {"name": name, "size_bytes": VOLUME_BYTES})
    return Volume(name, made["iqn"], 0, member.portal, VOLUME_BYTES, PLAIN)


def check_data(member: Member, volume: Volume) -> None:
    """It holds its DATA, and can be written to."""
    initiator = login(member, volume)
    assert initiator.good(read16(0, 64), read_bytes=64 * 512) == DATA[volume.name]
    initiator.good(write16(0, 64), DATA[volume.name])
    initiator.logout()


@dataclass(frozen=True)
class Site:
    """A member that was ended in order, with the volumes `good` and `bad`, each holding its DATA."""

    member: Member
    good: Volume
    bad: Volume
    blocks: Path

    def check_data(self) -> None:
        """The member is running: nothing is lost."""
        check_data(self.member, self.good)
        check_data(self.member, self.bad)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Volume, Volume, str]:
    """A directory with pool and store, never started again but as copies; and the stem of the files of `bad`."""
    member = Member(tmp_path_factory.mktemp("original"))
    try:
        member.start()
        good, bad = (create(member, name) for name in DATA)
        for volume in (good, bad):
            initiator = login(member, volume)
            initiator.good(write16(0, 64, fua=True), DATA[volume.name])
            initiator.logout()
        stem = member.ask("GET", "/volumes/bad")["id"]
        assert member.stop() == 0
    finally:
        member.kill()
    return member.directory, good, bad, stem


@pytest.fixture
def site(original: tuple[Path, Volume, Volume, str], new_member: Callable[..., Member]) -> Site:
    directory, good, bad, stem = original
    member = new_member()
    shutil.copytree(directory / "pool", member.pool)
    shutil.copy(directory / "store.db", member.store)
    return Site(member, good, bad, member.pool / "volumes" / f"{stem}.blocks")


def contents(*places: Path) -> dict[Path, str]:
    """Every file that is there or below, and a digest of what is in it."""
    found = [path for place in places for path in (place.rglob("*") if place.is_dir() else [place])]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(found) if path.is_file()}


def sealed(record: dict[str, object]) -> bytes:
    """A record of the pool with a right checksum."""
    body = json.dumps(record, separators=(",", ":")).encode()
    return b'{"crc32c":%d,"record":%s}\n' % (crc32c.crc32c(body), body)


def record_in(path: Path) -> dict[str, object]:
    record: dict[str, object] = json.loads(path.read_bytes())["record"]
    return record


def flip_a_byte(path: Path, offset: int = 60) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x01
    path.write_bytes(data)


# --- one volume -------------------------------------------------------------------------------------------------------


def lose_the_blocks(blocks: Path) -> None:
    blocks.unlink()


def cut_the_blocks(blocks: Path) -> None:
    with blocks.open("r+b") as file:
        file.truncate(VOLUME_BYTES - 4096)


def lose_the_record(blocks: Path) -> None:
    blocks.with_suffix(".held").unlink()


def lose_both(blocks: Path) -> None:
    blocks.unlink()
    blocks.with_suffix(".held").unlink()


def damage_the_record(blocks: Path) -> None:
    flip_a_byte(blocks.with_suffix(".held"))


def empty_the_record(blocks: Path) -> None:
    blocks.with_suffix(".held").write_bytes(b"")


def put_another_volumes_record_there(blocks: Path) -> None:
    held = blocks.with_suffix(".held")
    held.write_bytes(sealed(record_in(held) | {"volume_id": "ab" * 16}))


def have_a_newer_record(blocks: Path) -> None:
    held = blocks.with_suffix(".held")
    held.write_bytes(sealed(record_in(held) | {"format": 99}))


def hold_only_a_part(blocks: Path) -> None:
    held = blocks.with_suffix(".held")
    pieces = record_in(held)["held"]
    assert isinstance(pieces, list)
    held.write_bytes(sealed(record_in(held) | {"held": [pieces[0] | {"end_lba": 100}]}))


def have_other_blocks(blocks: Path) -> None:
    held = blocks.with_suffix(".held")
    pieces = record_in(held)["held"]
    assert isinstance(pieces, list)
    held.write_bytes(sealed(record_in(held) | {"block_size": 4096, "held": [pieces[0] | {"end_lba": 1024}]}))


DAMAGE_TO_A_VOLUME = [
    (lose_the_blocks, "blocks is missing", "restore it from a backup"),
    (cut_the_blocks, "its end is lost", "restore it from a backup, or delete the volume"),
    (lose_the_record, "held is missing", "restore it from a backup"),
    (lose_both, "no blocks of volume", "another pool directory?"),
    (damage_the_record, "is damaged", "restore it from a backup"),
    (empty_the_record, "is damaged", "restore it from a backup"),
    (put_another_volumes_record_there, "belongs to volume abab", "restore it from a backup"),
    (have_a_newer_record, "has format 99", "upgrade this member"),
    (hold_only_a_part, "does not hold all of its blocks", "restore the pool or the store from a backup"),
    (have_other_blocks, "the pool has it with blocks of 4096 bytes", "restore one of them from a backup"),
]


@dataclass(frozen=True)
class Victim:
    """A volume for one kind of damage; it holds its own name, padded."""

    volume: Volume
    blocks: Path
    damage: Callable[[Path], None]
    reason: str
    advice: str

    def content(self) -> bytes:
        return self.volume.name.encode().ljust(64 * 512)


def make_victims(member: Member) -> list[Victim]:
    victims = []
    for damage, reason, advice in DAMAGE_TO_A_VOLUME:
        volume = create(member, damage.__name__.replace("_", "-"))
        stem = member.ask("GET", f"/volumes/{volume.name}")["id"]
        victims.append(Victim(volume, member.pool / "volumes" / f"{stem}.blocks", damage, reason, advice))
        initiator = login(member, volume)
        initiator.good(write16(0, 64), victims[-1].content())
        initiator.logout()
    return victims


def test_damaged_volumes_are_not_served_and_the_others_are(site: Site, tmp_path: Path) -> None:
    """A volume for each kind of damage, all in one pool."""
    member = site.member
    member.start()
    victims = make_victims(member)
    assert member.stop() == 0
    backup = shutil.copytree(member.pool / "volumes", tmp_path / "backup")
    for victim in victims:
        victim.damage(victim.blocks)
    before = contents(member.pool / "volumes")

    member.start()
    site.check_data()
    reasons = "\n".join(member.ask("GET", "/group")["reasons"])
    for victim in victims:
        volume, reason, advice = victim.volume, victim.reason, victim.advice
        initiator = RawInitiator(member.portal)
        assert initiator.login(volume.iqn) == TARGET_ERROR_TRY_LATER, volume.name
        initiator.close()
        shown = member.ask("GET", f"/volumes/{volume.name}")
        assert shown["state"] == "not-ready", volume.name
        assert reason in shown["reason"], volume.name
        assert advice in shown["reason"], volume.name
        assert shown["reason"] in reasons, volume.name
    refused = member.command("volume", "resize", "lose-the-blocks", "--size", "8M")
    assert refused.returncode == 1
    assert "is not served now" in refused.stderr
    assert member.stop() == 0
    assert contents(member.pool / "volumes") == before

    for path in backup.iterdir():
        shutil.copy(path, member.pool / "volumes" / path.name)
    member.start()
    assert member.ask("GET", "/group")["state"] == "ok"
    for victim in victims:
        initiator = login(member, victim.volume)
        assert initiator.good(read16(0, 64), read_bytes=64 * 512) == victim.content()
        initiator.logout()


@pytest.mark.slow
def test_a_file_that_is_removed_or_cut_in_use_is_told(site: Site) -> None:
    """Its bytes are still there, until the member ends; or some are gone. Hosts may not notice for long."""
    site.member.start()
    cut = site.member.pool / "volumes" / f"{site.member.ask('GET', '/volumes/good')['id']}.blocks"
    site.blocks.unlink()
    os.truncate(cut, MIB)
    shown = site.member.ask("GET", "/volumes/bad")
    assert "was removed or moved while it was in use" in shown["reason"]
    assert "was cut to 1048576 bytes while it was in use" in site.member.ask("GET", "/volumes/good")["reason"]
    group = site.member.ask("GET", "/group")
    assert group["state"] == "degraded"
    assert shown["reason"] in "\n".join(group["reasons"])
    assert shown["reason"] in site.member.check("volume", "show", "bad").replace("\n", " ")

    check_data(site.member, site.bad)
    command = shown["reason"].partition("save it: ")[2].replace("COPY", str(site.member.directory / "saved"))
    subprocess.run(command.split(), check=True)
    assert site.member.stop() == 0
    shutil.move(site.member.directory / "saved", site.blocks)
    os.truncate(cut, VOLUME_BYTES)  # what was cut held nothing
    site.member.start()
    site.check_data()


def test_damaged_volumes_can_be_deleted(site: Site) -> None:
    """The way out where there is no backup; nothing of them stays, and nothing of others goes."""
    member = site.member
    member.start()
    victims = make_victims(member)
    assert member.stop() == 0
    for victim in victims:
        victim.damage(victim.blocks)
    member.start()
    for victim in victims:
        member.ask("DELETE", f"/volumes/{victim.volume.name}")
    left = member.ask("GET", "/volumes")
    assert [volume["name"] for volume in left] == ["bad", "good"]
    assert {path.stem for path in (member.pool / "volumes").iterdir()} == {volume["id"] for volume in left}
    assert member.ask("GET", "/group")["state"] == "ok"
    site.check_data()


# --- what all share ---------------------------------------------------------------------------------------------------


def damage_the_pools_record(pool: Path, store: Path) -> None:
    flip_a_byte(pool / "pool.json")


def cut_the_pools_record(pool: Path, store: Path) -> None:
    (pool / "pool.json").write_bytes((pool / "pool.json").read_bytes()[:40])


def lose_the_pools_record(pool: Path, store: Path) -> None:
    (pool / "pool.json").unlink()


def have_a_newer_pool(pool: Path, store: Path) -> None:
    (pool / "pool.json").write_bytes(sealed(record_in(pool / "pool.json") | {"format": 2}))


def have_the_pool_of_another_group(pool: Path, store: Path) -> None:
    (pool / "pool.json").write_bytes(sealed(record_in(pool / "pool.json") | {"group_id": "cd" * 16}))


def cut_the_journal(pool: Path, store: Path) -> None:
    (pool / "journal").write_bytes((pool / "journal").read_bytes()[:4096])


def lose_the_journal(pool: Path, store: Path) -> None:
    (pool / "journal").unlink()


def put_a_file_where_the_volumes_are(pool: Path, store: Path) -> None:
    (pool / "volumes").rename(pool / "moved")
    (pool / "volumes").write_bytes(b"")


def damage_the_start_of_the_store(pool: Path, store: Path) -> None:
    with store.open("r+b") as file:
        file.write(b"\xff" * 64)


def damage_a_page_of_the_store(pool: Path, store: Path) -> None:
    """The root page of the table of items."""
    connection = sqlite3.connect(store)
    (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'items'").fetchone()
    (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    connection.close()
    with store.open("r+b") as file:
        file.seek((root - 1) * page_bytes)
        file.write(b"\xff" * page_bytes)


def cut_the_store(pool: Path, store: Path) -> None:
    with store.open("r+b") as file:
        file.truncate(10_000)


def have_text_as_the_store(pool: Path, store: Path) -> None:
    store.write_text("this is no database, but it is long enough to be taken for one if nobody looked\n" * 100)


def have_another_programs_database(pool: Path, store: Path) -> None:
    store.unlink()
    connection = sqlite3.connect(store)
    connection.execute("CREATE TABLE photographs (taken TEXT)")
    connection.commit()
    connection.close()


def have_a_newer_store(pool: Path, store: Path) -> None:
    connection = sqlite3.connect(store)
    connection.execute("PRAGMA user_version = 99")
    connection.close()


def have_a_newer_record_in_the_store(pool: Path, store: Path) -> None:
    with sqlite3.connect(store) as connection:
        (value,) = connection.execute("SELECT value FROM items WHERE key = 'group'").fetchone()
        newer = json.dumps(json.loads(value) | {"version": 99}).encode()
        connection.execute("UPDATE items SET value = ? WHERE key = 'group'", (newer,))
    connection.close()


def have_an_unreadable_volume_in_the_store(pool: Path, store: Path) -> None:
    with sqlite3.connect(store) as connection:
        connection.execute("UPDATE items SET value = '{' WHERE key LIKE 'volumes/%'")
    connection.close()


def lose_the_store(pool: Path, store: Path) -> None:
    store.unlink()


def lose_the_groups_record(pool: Path, store: Path) -> None:
    with sqlite3.connect(store) as connection:
        connection.execute("DELETE FROM items WHERE key = 'group'")
    connection.close()


def have_a_store_from_yesterday(pool: Path, store: Path) -> None:
    with sqlite3.connect(store) as connection:
        connection.execute("UPDATE state SET revision = 3")
    connection.close()


DAMAGE_TO_A_MEMBER = [
    (damage_the_pools_record, "pool.json is damaged", "restore it from a backup of the pool"),
    (cut_the_pools_record, "pool.json is damaged", "restore it from a backup of the pool"),
    (lose_the_pools_record, "pool.json is missing", "restore"),
    (have_a_newer_pool, "has format 2", "upgrade this member"),
    (have_the_pool_of_another_group, "belongs to group cdcd", "start this member with the store of its group"),
    (cut_the_journal, "journal was cut", "restore it, or give them up: truncate -s"),
    (lose_the_journal, "journal is missing", "bring it back, or give them up: truncate -s"),
    (put_a_file_where_the_volumes_are, "volumes: it is not a directory", "move it away"),
    (damage_the_start_of_the_store, "is damaged", "restore it from a backup"),
    (damage_a_page_of_the_store, "is damaged", "restore it from a backup"),
    (cut_the_store, "is damaged", "restore it from a backup"),
    (have_text_as_the_store, "is damaged", "restore it from a backup"),
    (have_another_programs_database, "is another program's database", "give another path"),
    (have_a_newer_store, "has schema version 99", "use the version of san-target that wrote it"),
    (have_a_newer_record_in_the_store, "has schema version 99", "upgrade this member"),
    (have_an_unreadable_volume_in_the_store, "cannot be read", "restore the store from a backup"),
    (lose_the_store, "is empty, but the pool", "restore the store from a backup, or give the right --store"),
    (lose_the_groups_record, "the pool", "restore the store from a backup"),
    (have_a_store_from_yesterday, "the store is older than the pool", "Use the newest store"),
]


# One of each sort is in the quick loop; the other rows differ in what is found, not in what is done about it.
QUICK = {damage_the_pools_record, have_the_pool_of_another_group, damage_a_page_of_the_store, lose_the_store}


@pytest.mark.parametrize(
    ("damage", "reason", "advice"),
    [
        pytest.param(*row, id=row[0].__name__, marks=() if row[0] in QUICK else pytest.mark.slow)
        for row in DAMAGE_TO_A_MEMBER
    ],
)
def test_a_member_does_not_start_on_what_is_damaged(
    site: Site, damage: Callable[[Path, Path], None], reason: str, advice: str
) -> None:
    pool = site.member.pool
    damage(pool, site.member.store)
    before = contents(pool / "volumes", pool / "journal")
    line = site.member.refusal()
    assert reason in line
    assert advice in line
    assert contents(pool / "volumes", pool / "journal") == before


def create_a_volume(site: Site) -> None:
    create(site.member, "newest")


def register_a_key(site: Site) -> None:
    """PERSISTENT RESERVE OUT, REGISTER with APTPL: what an older store would forget is who is kept out."""
    initiator = login(site.member, site.good)
    initiator.good(bytes.fromhex("5f000000000000001800"), bytes(8) + b"my key!!" + bytes(4) + b"\x01" + bytes(3))
    initiator.logout()


@pytest.mark.parametrize("change", [create_a_volume, pytest.param(register_a_key, marks=pytest.mark.slow)])
def test_a_lost_write_ahead_log_is_noticed(site: Site, tmp_path: Path, change: Callable[[Site], None]) -> None:
    """After a kill the newest records are only there. Without it the store is an older one."""
    member = site.member
    member.start()
    seen = record_in(member.pool / "pool.json")["revision"]
    change(site)
    wait_for(lambda: record_in(member.pool / "pool.json")["revision"] != seen, 30, "the pool notes the revision")
    member.kill()
    log = member.store.with_name(member.store.name + "-wal")
    away = log.rename(tmp_path / "log")
    before = member.store.read_bytes()
    line = member.refusal()
    assert "the store is older than the pool" in line
    assert "was the store restored from a backup?" in line
    for path in member.store.parent.glob(f"{member.store.name}*"):
        path.unlink()
    member.store.write_bytes(before)
    away.rename(log)
    member.start()
    assert member.ask("GET", "/group")["state"] == "ok"
    site.check_data()


@pytest.mark.slow
def test_pool_and_store_of_two_groups_are_not_mixed(site: Site, new_member: Callable[..., Member]) -> None:
    other = new_member()
    other.start()
    create(other, "theirs")
    assert other.stop() == 0
    for mixed in (
        new_member(pool=site.member.pool, store=other.store),
        new_member(pool=other.pool, store=site.member.store),
    ):
        before = contents(mixed.pool / "volumes")
        line = mixed.refusal()
        assert "belongs to group" in line
        assert "start this member with the store of its group, or with another pool directory" in line
        assert contents(mixed.pool / "volumes") == before
    site.member.start()
    site.check_data()
    other.start()
    assert [volume["state"] for volume in other.ask("GET", "/volumes")] == ["ready"]


def test_an_empty_pool_directory_serves_no_zeros(site: Site, tmp_path: Path) -> None:
    """As when the disk was not mounted at the start: the directory is there, and nothing in it."""
    away = site.member.pool.rename(tmp_path / "away")
    site.member.start()
    for volume in (site.good, site.bad):
        initiator = RawInitiator(site.member.portal)
        assert initiator.login(volume.iqn) == TARGET_ERROR_TRY_LATER
        initiator.close()
        assert (
            "was this member started with another pool directory?"
            in (site.member.json("volume", "show", volume.name)["reason"])
        )
    assert site.member.stop() == 0
    shutil.rmtree(site.member.pool)
    away.rename(site.member.pool)
    site.member.start()
    site.check_data()


# --- file systems that are, or become, read-only ----------------------------------------------------------------------


@pytest.mark.parametrize("with_store", [False, True], ids=["the pool's", "the store's too"])
def test_a_member_does_not_start_on_a_read_only_file_system(
    small_disk: Callable[[int], Path], new_member: Callable[..., Member], with_store: bool
) -> None:
    disk = small_disk(32 * MIB)
    member = new_member(pool=disk / "pool", **({"store": disk / "store"} if with_store else {}))
    member.start()
    create(member, "good")
    assert member.stop() == 0
    remount_read_only(disk)
    line = member.refusal()
    assert str(disk) in line
    assert "read-only" in line


WRITES: dict[str, tuple[bytes, bytes]] = {
    "WRITE": (write16(8, 8), bytes([9]) * 8 * 512),
    "WRITE with FUA": (write16(8, 8, fua=True), bytes([9]) * 8 * 512),
    "WRITE to a hole": (write16(4096, 8), bytes([9]) * 8 * 512),
    "a long WRITE by R2T": (write16(0, 2048), bytes([9]) * 2048 * 512),
    "WRITE SAME": (write_same16(8, 64), bytes([9]) * 512),
    "WRITE SAME of zeros": (write_same16(8, 64), bytes(512)),
    "UNMAP": (UNMAP, unmap_parameters(0, 64)),
    "WRITE ATOMIC": (write_atomic16(8, 8), bytes([9]) * 8 * 512),
    "ORWRITE": (or_write16(8, 8), bytes([0xF0]) * 8 * 512),
    "COMPARE AND WRITE": (compare_and_write(8), DATA["good"][:512] + bytes([9]) * 512),
}


def served_on(disk: Ext4, new_member: Callable[..., Member]) -> tuple[Member, Volume, RawInitiator]:
    """A member whose pool lies on the disk, its volume `good` with all its DATA flushed, and a session on it."""
    member = new_member(pool=disk.directory / "pool")
    member.start()
    volume = create(member, "good")
    initiator = login(member, volume)
    initiator.good(write16(0, 64), DATA["good"])
    initiator.good(synchronize_cache())
    return member, volume, initiator


def test_a_file_system_that_becomes_read_only_is_still_read(
    ext4_disk: Callable[[int], Ext4], new_member: Callable[..., Member]
) -> None:
    disk = ext4_disk(48 * MIB)
    member, volume, initiator = served_on(disk, new_member)
    disk.meet_an_error()
    for name, (cdb, data) in WRITES.items():
        result = initiator.command(cdb, data)
        assert (result.status, result.condition) == (CHECK_CONDITION, WRITE_PROTECTED), name
        assert initiator.good(read16(0, 64), read_bytes=64 * 512) == DATA["good"], name
    initiator.good(synchronize_cache())
    assert initiator.good(read16(4096, 8), read_bytes=8 * 512) == bytes(8 * 512)
    (reason,) = [one for one in member.ask("GET", "/group")["reasons"] if "volume good" in one]
    assert "writes are refused" in reason
    assert "a file system that is read-only now" in reason
    refused = member.command("volume", "create", "more", "--size", "1M")
    assert refused.returncode == 1
    assert "the file system is read-only; mount it writable" in refused.stderr
    initiator.logout()
    assert member.stop() == 0
    assert "read-only" in member.refusal()

    disk.unmount()
    disk.check()
    disk.mount()
    member.start()
    initiator = login(member, volume)
    assert initiator.good(read16(0, 64), read_bytes=64 * 512) == DATA["good"]
    initiator.good(write16(0, 64), DATA["good"])
    assert member.ask("GET", "/group")["state"] == "ok"


def test_what_a_broken_file_system_may_have_dropped_is_not_served(
    ext4_disk: Callable[[int], Ext4], new_member: Callable[..., Member]
) -> None:
    """An acknowledged write was not yet on the disk. Nobody may be shown the block as it was before."""
    disk = ext4_disk(48 * MIB)
    member, volume, initiator = served_on(disk, new_member)
    other = login(member, create(member, "other"))
    other.good(synchronize_cache())
    initiator.good(write16(0, 8), bytes([9]) * 8 * 512)
    disk.meet_an_error()
    assert initiator.command(write16(64, 8), bytes([9]) * 8 * 512).status == CHECK_CONDITION
    for cdb, read_bytes in ((synchronize_cache(), 0), (read16(0, 8), 8 * 512)):
        result = initiator.command(cdb, read_bytes=read_bytes)
        assert result.status == CHECK_CONDITION
        assert result.condition is not None
        assert result.condition[0] == MEDIUM_ERROR
    shown = member.ask("GET", "/volumes/good")
    assert shown["state"] == "failed"
    assert "check it, restore what is lost, then start this member again" in shown["reason"]
    assert other.command(read16(0, 8), read_bytes=8 * 512).status == GOOD
    assert member.stop() == 0

    disk.unmount()
    disk.check()
    disk.mount()
    member.start()
    initiator = login(member, volume)
    assert initiator.good(read16(8, 56), read_bytes=56 * 512) == DATA["good"][8 * 512 :]

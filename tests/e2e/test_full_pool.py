"""Volumes promise more than the pool has, and initiators fill it: the right sense, nothing lost, and ways out.

Pool and store share one small disk, as they do by default, and so does what a filling initiator leaves of it: nothing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

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
from tests.support.stamps import stamps, versions_of
from tests.support.target import Options, Volume
from tests.support.tools import find, run

MIB = 1 << 20
DISK_BYTES = 28 * MIB
VOLUME_BYTES = 256 * MIB
BLOCK = 4096
BLOCKS = VOLUME_BYTES // BLOCK
FILLED_BLOCKS = BLOCKS // 2  # the rest stays a hole until a test says otherwise
SPACE_ALLOCATION_FAILED = (0x7, 0x27, 0x07)
MISCOMPARE = (0xE, 0x1D, 0x00)
SEED = random.SystemRandom().randrange(1 << 32)


@dataclass
class History:
    """What may be read from each block that was written to: the versions that are allowed, the last of them sure."""

    allowed: dict[int, set[int]] = field(default_factory=dict)
    last_version: int = 0

    def acknowledged(self, lba: int, blocks: int, version: int) -> None:
        self.allowed |= {at: {version} for at in range(lba, lba + blocks)}

    def failed(self, lba: int, blocks: int, version: int) -> None:
        """It may have been carried out in part."""
        for at in range(lba, lba + blocks):
            self.allowed.setdefault(at, {0}).add(version)

    def check(self, initiator: RawInitiator) -> None:
        """Read every block that was ever written to; versions are whole and allowed."""
        for lba in sorted({at // 64 * 64 for at in self.allowed}):
            found = versions_of(initiator.good(read16(lba, 64), read_bytes=64 * BLOCK), lba, BLOCK)
            for at, version in enumerate(found, lba):
                assert version in self.allowed.get(at, {0}), (
                    f"block {at}: version {version}, not {self.allowed.get(at)}"
                )


@dataclass
class Site:
    """A member whose pool and store lie on a small disk, with a volume that is larger than it."""

    member: Member
    volume: Volume
    disk: Path
    history: History = field(default_factory=History)

    def login(self) -> RawInitiator:
        initiator = RawInitiator(self.member.portal)
        assert initiator.login(self.volume.iqn) == 0
        return initiator.ready()

    def write(self, initiator: RawInitiator, lba: int, blocks: int, fua: bool = False) -> bool:
        """One write of stamped blocks; False if it ended for want of space (anything else fails the test)."""
        self.history.last_version += 1
        version = self.history.last_version
        result = initiator.command(write16(lba, blocks, fua), stamps(lba, blocks, version, BLOCK))
        if result.status == GOOD:
            self.history.acknowledged(lba, blocks, version)
            return True
        assert (result.status, result.condition) == (CHECK_CONDITION, SPACE_ALLOCATION_FAILED)
        self.history.failed(lba, blocks, version)
        return False

    def fill(self, initiator: RawInitiator, chance: random.Random) -> None:
        """Write at random places and of random sizes until not even a block finds space."""
        refused = 0
        while refused < 30:
            refused += not self.write(initiator, chance.randrange(FILLED_BLOCKS), chance.choice((1, 1, 7, 16, 64)))
        while self.write(initiator, chance.randrange(FILLED_BLOCKS), 1):
            pass

    def hole(self, blocks: int = 8) -> int:
        """The LBA of blocks that were never written to, each on a page of its own."""
        lba = BLOCKS - blocks
        while any(at in self.history.allowed for at in range(lba, lba + blocks)):
            lba -= blocks
        return lba

    def mapped(self) -> tuple[int, int]:
        """A block that holds acknowledged data, and its version."""
        return next((lba, next(iter(found))) for lba, found in self.history.allowed.items() if len(found) == 1)


def create(member: Member, name: str, size_bytes: int, block_size: int) -> Volume:
    made = member.ask("POST", "/volumes", {"name": name, "size_bytes": size_bytes, "block_size": block_size})
    return Volume(name, made["iqn"], 0, member.portal, size_bytes, Options(block_size=block_size))


@pytest.fixture
def site(small_disk: Callable[[int], Path], new_member: Callable[..., Member]) -> Site:
    disk = small_disk(DISK_BYTES)
    member = new_member(pool=disk / "pool", store=disk / "group.sqlite")
    member.start()
    return Site(member, create(member, "large", VOLUME_BYTES, BLOCK), disk)


@pytest.fixture
def full(site: Site) -> Iterator[tuple[Site, RawInitiator]]:
    """A site whose disk has just been filled, and the session that did it."""
    print(f"seed {SEED}")
    initiator = site.login()
    site.fill(initiator, random.Random(SEED))
    yield site, initiator
    initiator.close()


Full = tuple[Site, RawInitiator]


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_also_over_restarts(full: Full) -> None:
    site, initiator = full
    assert len(site.history.allowed) > DISK_BYTES // 3 // BLOCK
    site.history.check(initiator)
    initiator.good(synchronize_cache())
    site.history.check(initiator)
    initiator.close()
    for end in (site.member.stop, site.member.kill, site.member.stop):
        assert end() in (0, None)
        site.member.restart()  # on the full disk
        initiator = site.login()
        site.history.check(initiator)
        site.fill(initiator, random.Random(SEED))  # a restart may have left a little space
        initiator.close()


def test_what_holds_data_can_be_written_again(full: Full) -> None:
    site, initiator = full
    lba, version = site.mapped()
    for fua in (False, True):
        assert site.write(initiator, lba, 1, fua)
    initiator.good(write_same16(lba, 1), stamps(lba, 1, version, BLOCK))
    initiator.good(compare_and_write(lba), stamps(lba, 1, version, BLOCK) + stamps(lba, 1, version + 1, BLOCK))
    initiator.good(or_write16(lba, 1), stamps(lba, 1, version + 1, BLOCK))
    initiator.good(write_atomic16(lba, 1), stamps(lba, 1, version + 2, BLOCK))
    site.history.acknowledged(lba, 1, version + 2)
    initiator.good(synchronize_cache())
    site.history.check(initiator)


NEW = stamps(0, 8, 1, BLOCK)
WRITES_TO_HOLES = {
    "WRITE": (lambda lba: write16(lba, 8), NEW),
    "WRITE with FUA": (lambda lba: write16(lba, 8, fua=True), NEW),
    "a long WRITE by R2T": (lambda lba: write16(lba, 256), bytes([7]) * 256 * BLOCK),
    "WRITE SAME": (lambda lba: write_same16(lba, 2048), NEW[:BLOCK]),
    "WRITE ATOMIC": (lambda lba: write_atomic16(lba, 8), NEW),
    "ORWRITE": (lambda lba: or_write16(lba, 8), NEW),
    "COMPARE AND WRITE": (lambda lba: compare_and_write(lba), bytes(BLOCK) + NEW[:BLOCK]),
}
ALL_OR_NOTHING = {"WRITE ATOMIC", "COMPARE AND WRITE"}


def test_every_command_that_needs_space_says_so_and_the_session_goes_on(full: Full) -> None:
    site, initiator = full
    lba = site.hole(2048)
    for name, (cdb, data) in WRITES_TO_HOLES.items():
        result = initiator.command(cdb(lba), data)
        assert (result.status, result.condition) == (CHECK_CONDITION, SPACE_ALLOCATION_FAILED), name
        if name in ALL_OR_NOTHING:
            assert initiator.good(read16(lba, 8), read_bytes=8 * BLOCK) == bytes(8 * BLOCK), name
        initiator.good(UNMAP, unmap_parameters(lba, 2048))  # what was done in part takes space
        site.fill(initiator, random.Random(SEED))
    miscompare = initiator.command(compare_and_write(lba), NEW[:BLOCK] * 2)
    assert (miscompare.status, miscompare.condition) == (CHECK_CONDITION, MISCOMPARE)
    initiator.good(write_same16(lba, 2048), bytes(BLOCK))  # zeros need no space
    site.history.check(initiator)


def test_unmap_gives_space_for_new_writes(full: Full) -> None:
    site, initiator = full
    lba = next(
        at for at in sorted(site.history.allowed) if all(at + more in site.history.allowed for more in range(16))
    )
    initiator.good(UNMAP, unmap_parameters(lba, 16))
    site.history.acknowledged(lba, 16, 0)
    hole = site.hole(16)
    assert site.write(initiator, hole, 16)
    assert not site.write(initiator, site.hole(16), 16)
    site.history.check(initiator)


def test_deleting_another_volume_gives_space_for_new_writes(site: Site) -> None:
    """The deletion itself is recorded on the full disk."""
    other = create(site.member, "other", 8 * MIB, 512)
    guest = RawInitiator(site.member.portal)
    assert guest.login(other.iqn) == 0
    guest.ready().good(write_same16(0, 8192), bytes([1]) * 512)
    initiator = site.login()
    site.fill(initiator, random.Random(SEED))
    refused = site.member.command("volume", "delete", "other")
    assert refused.returncode == 1
    assert "1 session is logged in" in refused.stderr
    site.member.check("volume", "delete", "other", "--force")
    guest.read_to_the_end()
    assert [volume["name"] for volume in site.member.json("volume", "list")] == ["large"]
    for _ in range(100):
        assert site.write(initiator, site.hole(8), 8)
    site.history.check(initiator)
    site.member.kill()
    site.member.restart()
    site.history.check(site.login())
    assert len(list((site.disk / "pool" / "volumes").iterdir())) == 2


def test_shrinking_a_volume_gives_space_to_another(site: Site) -> None:
    other = create(site.member, "other", 8 * MIB, 512)
    guest = RawInitiator(site.member.portal)
    assert guest.login(other.iqn) == 0
    guest.ready().good(write_same16(0, 16384), bytes([1]) * 512)
    initiator = site.login()
    site.fill(initiator, random.Random(SEED))
    site.member.check("volume", "resize", "other", "--size", "4M", "--force")
    for _ in range(100):
        assert site.write(initiator, site.hole(8), 8)
    site.history.check(initiator)
    assert guest.command(bytes(6)).condition == (0x6, 0x2A, 0x09)  # CAPACITY DATA HAS CHANGED
    assert guest.good(read16(8191, 1), read_bytes=512) == bytes([1]) * 512


def test_the_member_can_be_administered(full: Full) -> None:
    site, _ = full
    pool = site.member.json("member", "show", "m0")["pool"]
    assert pool["state"] == "full"
    assert pool["free_bytes"] < BLOCK
    assert "free some space, or delete volumes" in pool["reason"]
    site.member.check("volume", "set", "large", "--read-only")
    site.member.check("volume", "set", "large", "--no-read-only")
    refused = site.member.command("volume", "create", "more", "--size", "1M")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "cannot be created" in refused.stderr
    assert "no space is left; free some, or delete volumes" in refused.stderr
    assert [volume["name"] for volume in site.member.json("volume", "list")] == ["large"]
    assert len(list((site.disk / "pool" / "volumes").iterdir())) == 2


@pytest.mark.slow
def test_the_member_stays_in_the_group_and_serves_for_long(full: Full) -> None:
    """Longer than its lease lasts, while writes are refused all the time."""
    site, initiator = full
    end = time.monotonic() + 12
    while time.monotonic() < end:
        assert not site.write(initiator, site.hole(1), 1)
        time.sleep(0.05)
    shown = site.member.json("member", "show", "m0")
    assert (shown["state"], shown["incarnation"]) == ("active", 1)
    reasons = site.member.json("group", "status")["reasons"]
    assert all("is full" in reason for reason in reasons), reasons
    site.history.check(initiator)


@pytest.mark.slow
@pytest.mark.tool("qemu-io", "qemu-iscsi")
def test_qemu_says_no_space_left(full: Full) -> None:
    site, initiator = full
    initiator.logout()
    words = [find("qemu-io"), "-f", "raw", "-c", f"write -P 5 {site.hole(64) * BLOCK} 256k", site.volume.url]
    with pytest.raises(AssertionError, match="No space left on device"):
        run(words)

"""kill -9 and power failures at random moments under a verifying load: nothing acknowledged is lost, nothing is mixed.

SAN_TARGET_KILL_ROUNDS sets the rounds of the long runs, SAN_TARGET_SEED repeats one.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import httpx
import pytest

from tests.support.crash_load import LARGE_ATOMIC, SMALL, Pattern, Writer
from tests.support.file_systems import Ext4
from tests.support.member import Member
from tests.support.raw_initiator import (
    GOOD,
    Ended,
    RawInitiator,
    compare_and_write,
    read16,
    write16,
)
from tests.support.stamps import stamp, version_of
from tests.support.target import Options, Volume, wait_for

MIB = 1 << 20
WRITERS = 3
ROUNDS = int(os.environ.get("SAN_TARGET_KILL_ROUNDS", "8"))
QUICK_ROUNDS = 1
SEED = int(os.environ.get("SAN_TARGET_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)

rounds = pytest.mark.parametrize(
    "rounds", [QUICK_ROUNDS, pytest.param(ROUNDS, marks=[pytest.mark.slow, pytest.mark.timeout(60 + 10 * ROUNDS)])]
)


@pytest.fixture
def chance() -> random.Random:
    print(f"SAN_TARGET_SEED={SEED}")
    return random.Random(SEED)


def moment(chance: random.Random, progress: Callable[[], Iterable[int]]) -> None:
    """Return at a random moment after each of these counts has gone up."""
    before = list(progress())
    wait_for(lambda: all(now > had for now, had in zip(progress(), before, strict=True)), 30, "something is done")
    time.sleep(chance.uniform(0.0, 0.6))


def create(member: Member, name: str, size_bytes: int, block_size: int = 512) -> Volume:
    made = member.ask("POST", "/volumes", {"name": name, "size_bytes": size_bytes, "block_size": block_size})
    return Volume(name, made["iqn"], 0, member.portal, size_bytes, Options(block_size=block_size))


def login(volume: Volume, number: int = 0) -> RawInitiator:
    initiator = RawInitiator(volume.portal)
    assert initiator.login(volume.iqn, isid=bytes((0x80, 0, 0, 0, 2, number))) == 0
    return initiator.ready()


def make_writers(member: Member, chance: random.Random, pattern: Pattern, power_fails: bool) -> list[Writer]:
    """Writers side by side on one volume."""
    block_size = 4096 if pattern is LARGE_ATOMIC else 512
    volume = create(member, "disk", WRITERS * pattern.blocks * block_size, block_size)
    return [Writer(volume, each, random.Random(chance.random()), pattern, power_fails) for each in range(WRITERS)]


patterns = pytest.mark.parametrize(
    "pattern", [pytest.param(SMALL, id="small"), pytest.param(LARGE_ATOMIC, id="large atomic", marks=pytest.mark.slow)]
)


@rounds
@patterns
def test_kill_9_loses_nothing_acknowledged_and_mixes_nothing(
    new_member: Callable[..., Member], chance: random.Random, rounds: int, pattern: Pattern
) -> None:
    """Acknowledged writes survive also without a flush: only the process died."""
    member = new_member()
    member.start()
    writers = make_writers(member, chance, pattern, power_fails=False)
    for _ in range(rounds):
        for writer in writers:
            writer.start()
        moment(chance, lambda: [writer.acknowledged for writer in writers])
        member.kill()
        for writer in writers:
            writer.join()
        member.restart()
        for writer in writers:
            writer.check()


@rounds
@patterns
def test_a_power_failure_loses_nothing_flushed_and_mixes_nothing(
    ext4_disk: Callable[[int], Ext4],
    new_member: Callable[..., Member],
    chance: random.Random,
    rounds: int,
    pattern: Pattern,
) -> None:
    """Pool and store lie on an ext4 that loses everything which had not reached its disk."""
    disk = ext4_disk(64 * MIB)
    member = new_member(pool=disk.directory / "pool", store=disk.directory / "group.sqlite")
    member.start()
    writers = make_writers(member, chance, pattern, power_fails=True)
    for number in range(rounds):
        create(member, f"acknowledged-{number}", MIB)
        for writer in writers:
            writer.start()
        moment(chance, lambda: [writer.acknowledged for writer in writers])
        disk.lose_power()
        member.kill()
        for writer in writers:
            writer.join()
        disk.unmount()
        disk.mount()
        member.restart()
        for writer in writers:
            writer.check()
        shown = {volume["name"]: volume["state"] for volume in member.ask("GET", "/volumes")}
        assert shown == {"disk": "ready"} | {f"acknowledged-{each}": "ready" for each in range(number + 1)}


class Counter:
    """A session that counts up blocks it shares with others, by COMPARE AND WRITE. `added`: acknowledged, by LBA."""

    def __init__(self, volume: Volume, number: int, chance: random.Random) -> None:
        self.added: dict[int, int] = {}
        self.under_way: int | None = None
        self.failure: BaseException | None = None
        self._initiator = login(volume, number)
        self._chance = chance
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def join(self) -> None:
        """Wait for the end of the target to be seen; raises what went wrong before."""
        self.thread.join(60)
        assert not self.thread.is_alive(), "a session hangs although its target is gone"
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        try:
            while True:
                self._count(self._chance.randrange(COUNTERS))
        except Ended:
            self._initiator.close()
        except BaseException as error:
            self.failure = error

    def _count(self, lba: int) -> None:
        old = self._initiator.good(read16(lba, 1), read_bytes=512)
        new = stamp(lba, version_of(old, lba) + 1, 512)
        self.under_way = lba
        result = self._initiator.command(compare_and_write(lba, fua=self._chance.random() < 0.3), old + new)
        self.under_way = None
        if result.status == GOOD:
            self.added[lba] = self.added.get(lba, 0) + 1
        else:
            assert result.condition == (0xE, 0x1D, 0x00), result.condition  # another session was faster


COUNTERS = 4


@rounds
def test_compare_and_write_stays_atomic_over_kill_9(
    new_member: Callable[..., Member], chance: random.Random, rounds: int
) -> None:
    """No count is lost, none is made twice: each counter is the sum of what the sessions were told."""
    member = new_member()
    member.start()
    volume = create(member, "counters", MIB)
    totals = dict.fromkeys(range(COUNTERS), 0)
    counters: list[Counter] = []
    for _ in range(rounds):
        counters[:] = [Counter(volume, number, random.Random(chance.random())) for number in range(4)]
        moment(chance, lambda: [sum(counter.added.values()) for counter in counters])
        member.kill()
        for counter in counters:
            counter.join()
        member.restart()
        reader = login(volume)
        for lba in totals:
            found = version_of(reader.good(read16(lba, 1), read_bytes=512), lba)
            least = totals[lba] + sum(counter.added.get(lba, 0) for counter in counters)
            most = least + sum(counter.under_way == lba for counter in counters)
            assert least <= found <= most, f"counter {lba}: {found} instead of {least} to {most}"
            totals[lba] = found
        reader.logout()


# --- deletion and resize ----------------------------------------------------------------------------------------------

MARK_EVERY = 512  # blocks between two marks in a volume
SIZES = [MIB, 2 * MIB, 3 * MIB, 5 * MIB]


class Administrator:
    """Creates, resizes and deletes volumes with marked blocks until the member is gone; knows what may be found.

    sizes: name -> the sizes that the volume may have (0 = it is not there), one unless a change was interrupted.
    marked: name -> bytes up to which its marks must be there; beyond them there are only zeros.
    """

    def __init__(self, member: Member, chance: random.Random) -> None:
        self._member = member
        self._chance = chance
        self._made = 0
        self.sizes: dict[str, set[int]] = {}
        self.marked: dict[str, int] = {}
        self.changes = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Until the member dies."""
        try:
            while True:
                self._change()
                self.changes += 1
        except (httpx.TransportError, ConnectionError, Ended):
            pass
        except BaseException as error:
            self.failure = error

    def _change(self) -> None:
        names = list(self.sizes)
        if len(names) < 4:
            self._create()
            return
        name = self._chance.choice(names)
        (size,) = self.sizes[name]
        if self._chance.random() < 0.3:
            self.sizes[name] = {size, 0}
            self._member.ask("DELETE", f"/volumes/{name}")
            del self.sizes[name], self.marked[name]
            return
        new = self._chance.choice([each for each in SIZES if each != size])
        self.sizes[name] = {size, new}
        self._member.ask("POST", f"/volumes/{name}/resize", {"size_bytes": new, "force": True})
        self.sizes[name] = {new}
        self.marked[name] = min(self.marked[name], new)

    def _create(self) -> None:
        name, size = f"v{self._made}", self._chance.choice(SIZES)
        self._made += 1
        self.sizes[name], self.marked[name] = {0, size}, 0
        volume = create(self._member, name, size)
        self.sizes[name] = {size}
        initiator = login(volume)
        for lba in range(0, size // 512, MARK_EVERY):
            initiator.good(write16(lba, 1), stamp(lba, 1, 512))
            self.marked[name] = (lba + 1) * 512
        self.marked[name] = size
        initiator.logout()

    def check(self) -> None:
        """After a restart: every volume is as it was before or after the change that was interrupted."""
        found = {volume["name"]: volume for volume in self._member.ask("GET", "/volumes")}
        for name, sizes in list(self.sizes.items()):
            size = found[name]["size_bytes"] if name in found else 0
            assert size in sizes, f"{name}: {size} bytes, allowed {sizes}"
            if name not in found:
                del self.sizes[name], self.marked[name]
                continue
            self.sizes[name], self.marked[name] = {size}, min(self.marked[name], size)
        assert set(found) == set(self.sizes)
        assert {volume["state"] for volume in found.values()} <= {"ready"}
        self._check_files({volume["id"]: volume["size_bytes"] for volume in found.values()})
        for name, volume in found.items():
            self._check_marks(name, volume["iqn"])

    def _check_files(self, sizes: dict[str, int]) -> None:
        """Nothing is missing, nothing is left over."""
        files = sorted((self._member.pool / "volumes").iterdir())
        assert files == sorted(self._path(each, kind) for each in sizes for kind in ("blocks", "held"))
        assert {each: self._path(each, "blocks").stat().st_size for each in sizes} == sizes

    def _path(self, volume_id: str, kind: str) -> Path:
        return self._member.pool / "volumes" / f"{volume_id}.{kind}"

    def _check_marks(self, name: str, iqn: str) -> None:
        (size,) = self.sizes[name]
        initiator = login(Volume(name, iqn, 0, self._member.portal, size, Options()))
        for lba in range(0, size // 512, MARK_EVERY):
            version = version_of(initiator.good(read16(lba, 1), read_bytes=512), lba)
            marked = lba * 512 < self.marked[name]
            unfinished = not marked and self.marked[name] < size and version == 1 and lba * 512 <= self.marked[name]
            assert version == marked or unfinished, f"{name}, block {lba}: {version}, marked up to {self.marked[name]}"
        initiator.logout()


@rounds
def test_creation_resize_and_deletion_are_finished_or_undone_after_kill_9(
    new_member: Callable[..., Member], chance: random.Random, rounds: int
) -> None:
    member = new_member()
    member.start()
    administrator = Administrator(member, chance)
    for _ in range(rounds):
        thread = threading.Thread(target=administrator.run, daemon=True)
        thread.start()
        moment(chance, lambda: [administrator.changes])
        member.kill()
        thread.join(60)
        assert not thread.is_alive()
        if administrator.failure is not None:
            raise administrator.failure
        member.restart()
        administrator.check()

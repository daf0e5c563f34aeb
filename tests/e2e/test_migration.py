"""Volumes that go from member to member under verified load, between processes that are drained and killed in the midst
of it, and whose disks fail.

Every kind of simulated initiator has a volume of its own; all of them go the same way at the same time.
"""

from __future__ import annotations

import asyncio
import random
import resource
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from initiator_sim.client import Initiator
from initiator_sim.fleet import Assignment, Fleet
from initiator_sim.personalities import OPEN_ISCSI, PERSONALITIES
from initiator_sim.workload import Plan
from tests.support.group import Group, running
from tests.support.group_trial import FIGURES
from tests.support.target import Volume, wait_for
from tests.support.upheavals import (
    PATIENCE_S,
    bring,
    drain_and_remove,
    join_again,
    kill_in_mid_migration,
    migrate,
    wait_until_done,
)

MIB = 1 << 20
SIZE_BYTES = 16 * MIB
RATES = {OPEN_ISCSI.name: 0.0}  # as fast as it goes
RATE = 150.0  # I/Os a second of the others, so that a machine of two cores is not only busy with these
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    """Three members that see each other."""
    with running(Group(tmp_path_factory.mktemp("members"))) as started:
        yield started


@pytest.fixture(scope="module")
def disks(members: Group) -> dict[str, Volume]:
    """One for each kind of initiator, by its name; full of data, so that there is something to move."""
    made = {name: members.create_volume(name, SIZE_BYTES) for name in PERSONALITIES}

    async def fill(volume: Volume) -> None:
        async with Initiator("iqn.2026-01.org.example:filler", OPEN_ISCSI).connect(volume.portal, volume.iqn) as disk:
            for lba in range(0, disk.blocks, MIB // disk.block_bytes):
                await disk.write(lba, random.randbytes(MIB))

    for volume in made.values():
        asyncio.run(fill(volume))
    return made


def assignment(name: str, disk: Volume, portal: str) -> Assignment:
    """A verified load on all of a disk by one kind of initiator."""
    rate = RATES.get(name, RATE)
    plan = Plan("randrw", read_share=0.5, depth=4 if rate else 8, block_bytes=4096, discard_share=0.1, rate=rate)
    kind = PERSONALITIES[name]
    return Assignment((portal,), disk.iqn, plan, kind, seconds=3 * PATIENCE_S, verify=True, strict=True)


def under_load(what: str, group: Group, disks: dict[str, Volume], portal: str, meanwhile: Callable[[], None]) -> None:
    """A verified load on all of each disk, that lasts as long as `meanwhile` does in its thread. Nothing may fail."""

    async def scenario() -> dict[str, dict[str, Any]]:
        fleets = {name: Fleet(assignment(name, disk, portal)) for name, disk in disks.items()}
        loads = [asyncio.ensure_future(fleet.run()) for fleet in fleets.values()]
        try:
            await asyncio.to_thread(meanwhile)
        finally:
            for fleet in fleets.values():
                fleet.finish()
            await asyncio.gather(*loads)
        return {name: fleet.report() for name, fleet in fleets.items()}

    for name, report in asyncio.run(scenario()).items():
        assert_sound(report, group)
        slowest_us = max(report[f"{kind}_latency_us"]["max"] for kind in ("read", "write", "other"))
        FIGURES.append(f"{what}, {name} simulated: slowest command {slowest_us / 1e6:.2f} s")


def assert_sound(report: dict[str, Any], group: Group) -> None:
    assert report["ok"], f"{report}\n{group.diagnosis()}"
    assert report["errors"] == 0, report
    assert report["verify"]["violation_count"] == 0
    assert report["verify"]["reads_checked"] > 100


def test_volumes_are_moved_there_and_back_under_verified_load(members: Group, disks: dict[str, Volume]) -> None:
    volumes = list(disks.values())

    def meanwhile() -> None:
        for destination in ("m2", "m1", "m3"):
            migrate(members, volumes, destination)

    under_load("volume migrated and back", members, disks, members[2].portal, meanwhile)
    assert sum(each["mirrored_writes"] for each in members[2].ask("GET", "/migrations")) > 0


@pytest.mark.parametrize("killed", ["destination", "source"])
def test_a_member_is_killed_in_mid_migration_and_started_again(
    members: Group, disks: dict[str, Volume], killed: str
) -> None:
    volumes = list(disks.values())
    bring(members, volumes, "m1")

    def meanwhile() -> None:
        kill_in_mid_migration(members, volumes, "m2", "m2" if killed == "destination" else "m1")

    under_load(f"{killed} killed in mid-migration", members, disks, members[2].portal, meanwhile)


def test_a_member_with_all_blocks_and_all_sessions_is_drained_and_removed(
    members: Group, disks: dict[str, Volume]
) -> None:
    """Sessions and volumes go one after the other, seconds apart, so these are two of each."""
    drained = {name: disks[name] for name in ("open-iscsi", "windows")}
    bring(members, list(disks.values()), "m1")
    bring(members, list(drained.values()), "m2")

    def meanwhile() -> None:
        wait_for(lambda: len(members[1].ask("GET", "/sessions")) == len(drained), PATIENCE_S, "all sessions")
        time.sleep(1.0)
        drain_and_remove(members, "m2")
        assert {each["member"] for each in members[0].ask("GET", "/sessions")} <= {"m1", "m3"}

    under_load("member drained and removed", members, drained, members[1].portal, meanwhile)
    join_again(members[1])
    members.wait_until_active()


def test_a_mirrored_write_that_fails_at_the_destination_restarts_its_piece(members: Group) -> None:
    """The destination's kernel lets no file of its be written beyond a place in the piece that moves (EFBIG): what is
    there is copied, but what is written behind that place meanwhile cannot be mirrored, nor copied before that ends."""
    volume = members.create_volume("limited", 64 * MIB, members="m1")
    source, destination = members[0], members[1]
    record = destination.backing_file(volume).with_suffix(".held")
    piece, allowed = 60 * MIB, 62 * MIB
    before, behind = random.randbytes(3 * MIB // 2), random.randbytes(8192)

    def limit_files(size_bytes: int) -> None:
        resource.prlimit(destination.pid, resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))

    def shown(migration: str) -> dict[str, Any]:
        found: dict[str, Any] = source.json("migrate", "show", migration)
        return found

    async def scenario() -> None:
        initiator = Initiator("iqn.2026-01.org.example:writer", OPEN_ISCSI)
        async with initiator.connect(volume.portal, volume.iqn) as disk:
            first, there = piece // disk.block_bytes, (allowed + MIB) // disk.block_bytes
            await disk.write(first, before)
            # So slowly that the second MiB is sent seconds after the first one.
            body = {"volume": volume.name, "to": "m2", "start_lba": first, "limit_bytes_per_second": MIB // 4}
            (migration,) = (each["id"] for each in source.ask("POST", "/migrations", body))
            wait_for(lambda: record.exists() and '"receiving"' in record.read_text(), PATIENCE_S, "the piece")
            limit_files(allowed)
            await asyncio.sleep(0.5)
            assert source.ask("GET", f"/migrations/{migration}")["restarts"] == 0
            await disk.write(there, behind)
            wait_for(lambda: shown(migration)["restarts"] > 0, PATIENCE_S, "a restart")
            restarted = shown(migration)
            assert (restarted["pieces_done"], restarted["mirrored_writes"]) == (0, 1), restarted
            assert "FAILED" in restarted["reason"], restarted
            limit_files(resource.RLIM_INFINITY)
            wait_until_done(members, [migration])
            done = shown(migration)
            assert done["restarts"] >= restarted["restarts"]
            assert await disk.read(first, len(before) // disk.block_bytes) == before
            assert await disk.read(there, len(behind) // disk.block_bytes) == behind
            told = [line for line in source.log.splitlines() if "begins anew" in line and migration in line]
            assert len(told) == done["restarts"]

    asyncio.run(scenario())
    with destination.backing_file(volume).open("rb") as file:
        file.seek(piece)
        assert file.read(len(before)) == before

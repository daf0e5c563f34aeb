"""Verified load: no false alarm on good targets, and every kind of damaged data found.

Members promise whole blocks to reads during writes; tgt does not, and now and then they are torn.

The damage is done behind the target's back, in the file that holds its blocks.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from initiator_sim.fleet import Assignment, Fleet
from initiator_sim.personalities import LIBISCSI, OPEN_ISCSI, PERSONALITIES
from initiator_sim.workload import Plan
from tests.support.file_systems import Ext4
from tests.support.member import Member
from tests.support.target import Target, Volume

TGT = "iqn.2026-01.org.example.tgt:"
IO_BYTES = 4096
# So few pieces that every one is read and written many times a second.
SIZE_BYTES = 1 << 20


def load(volume: Volume, seconds: float = 2.0, *, plan: Mapping[str, Any] | None = None, **options: Any) -> Assignment:
    """A verified load; `plan` and `options` change what is usual here."""
    usual: dict[str, Any] = {"workload": "randrw", "read_share": 0.5, "depth": 8, "block_bytes": IO_BYTES}
    strict = not volume.iqn.startswith(TGT)
    chosen: dict[str, Any] = {"personality": LIBISCSI, "seconds": seconds, "verify": True, "strict": strict} | options
    return Assignment((volume.portal,), volume.iqn, Plan(**(usual | dict(plan or {}))), **chosen)


def run(assignment: Assignment, meanwhile: Callable[[Fleet], Any] | None = None) -> dict[str, Any]:
    """The report of a run; meanwhile(fleet) is a coroutine function that runs beside it."""

    async def scenario() -> dict[str, Any]:
        fleet = Fleet(assignment)
        beside = asyncio.ensure_future(meanwhile(fleet)) if meanwhile else None
        try:
            await fleet.run()
        finally:
            if beside is not None:
                beside.cancel()
                await asyncio.gather(beside, return_exceptions=True)
        return fleet.report()

    return asyncio.run(scenario())


def assert_sound(report: dict[str, Any]) -> None:
    assert report["ok"], report
    assert report["verify"]["violation_count"] == 0
    assert report["verify"]["reads_checked"] > 100


@pytest.mark.parametrize("personality", PERSONALITIES)
def test_no_false_alarm(target: Target, personality: str) -> None:
    volume = target.create_volume("good", SIZE_BYTES)
    report = run(load(volume, sessions=2, initiators=2, personality=PERSONALITIES[personality]))
    assert_sound(report)
    assert report["writes"] > 100


def test_no_false_alarm_with_discards_and_flushes(target: Target) -> None:
    volume = target.create_volume("good", SIZE_BYTES)
    assert_sound(run(load(volume, sessions=3, plan={"discard_share": 0.1, "flush_every": 20})))


@pytest.mark.parametrize("workload", ["randwrite", "write", "read"])
def test_no_false_alarm_where_nothing_is_mixed(target: Target, workload: str) -> None:
    volume = target.create_volume("good", SIZE_BYTES)
    assert_sound(run(load(volume, sessions=2, plan={"workload": workload})))


def test_no_false_alarm_when_connections_are_lost(target: Target) -> None:
    async def cut_cables(fleet: Fleet) -> None:
        while True:
            await asyncio.sleep(0.4)
            for path in fleet.paths:
                path.drop_connection()

    volume = target.create_volume("good", SIZE_BYTES)
    report = run(load(volume, 3.0, sessions=2, personality=PERSONALITIES["esxi"]), cut_cables)
    assert_sound(report)
    assert report["logins"] > 2
    assert report["reissued"] > 0


def keep(before: bytes, other: bytes, now: bytes) -> bytes:
    """A lost write, or a stale read: what was there before is there again."""
    return before


def tear(before: bytes, other: bytes, now: bytes) -> bytes:
    """A torn write: its first half arrived."""
    return now[: IO_BYTES // 2] + before[IO_BYTES // 2 :]


def tear_block(before: bytes, other: bytes, now: bytes) -> bytes:
    """A write torn within a block."""
    return now[:256] + before[256:512] + now[512:]


def misplace(before: bytes, other: bytes, now: bytes) -> bytes:
    """The blocks of another place."""
    return other


def flip(before: bytes, other: bytes, now: bytes) -> bytes:
    """One wrong bit."""
    return bytes((now[0] ^ 1,)) + now[1:]


def zero(before: bytes, other: bytes, now: bytes) -> bytes:
    return bytes(len(now))


@pytest.mark.slow
@pytest.mark.parametrize("damage", [keep, tear, tear_block, misplace, flip, zero])
def test_damage_is_found(target: Target, damage: Callable[[bytes, bytes, bytes], bytes]) -> None:
    volume = target.create_volume("bad", SIZE_BYTES)
    source = random.Random(1)

    async def damage_one_piece_after_the_other(fleet: Fleet) -> None:
        await asyncio.sleep(0.5)
        with target.backing_file(volume).open("r+b") as file:
            while True:
                positions = source.sample(range(SIZE_BYTES // IO_BYTES), 2)
                before, other = (read_at(file, position) for position in positions)
                await asyncio.sleep(0.1)
                now = read_at(file, positions[0])
                file.seek(positions[0] * IO_BYTES)
                file.write(damage(before, other, now))
                file.flush()

    report = run(load(volume, 10.0), damage_one_piece_after_the_other)
    assert not report["ok"]
    assert report["verify"]["violations"]
    assert report["seconds"] < 10, "found only at the end"
    assert not report["errors"]


def read_at(file: Any, position: int) -> bytes:
    file.seek(position * IO_BYTES)
    data = file.read(IO_BYTES)
    assert isinstance(data, bytes)
    return data.ljust(IO_BYTES, b"\0")


def test_what_was_there_before_is_not_taken_for_an_error(target: Target) -> None:
    volume = target.create_volume("used", SIZE_BYTES)
    assert_sound(run(load(volume, 1.0, personality=OPEN_ISCSI)))
    assert_sound(run(load(volume, 1.0, personality=OPEN_ISCSI)))


@pytest.mark.slow
def test_what_was_flushed_is_there_after_power_failures(
    new_member: Callable[..., Member], ext4_disk: Callable[[int], Ext4]
) -> None:
    disk = ext4_disk(64 << 20)
    member = new_member(pool=disk.directory / "pool", store=disk.directory / "group.sqlite")
    member.start()
    volume = member.create_volume("disk", SIZE_BYTES)

    def fail(fleet: Fleet) -> None:
        disk.lose_power()
        member.kill()
        fleet.target_crashed()

    def repair() -> None:
        disk.unmount()
        disk.mount()
        member.restart()

    async def power_failures(fleet: Fleet) -> None:
        for _ in range(3):
            await asyncio.sleep(1.0)
            fail(fleet)
            await asyncio.to_thread(repair)
        await asyncio.sleep(1.0)
        fleet.finish()

    patient = replace(PERSONALITIES["esxi"], login_retry_s=0.1)
    plan = {"read_share": 0.3, "flush_every": 20}
    report = run(load(volume, 100.0, sessions=2, crashes=True, personality=patient, plan=plan), power_failures)
    assert report["verify"]["violations"] == []
    assert report["verify"]["reads_checked"] > 100
    assert report["logins"] >= 8
    assert report["others"] > 10

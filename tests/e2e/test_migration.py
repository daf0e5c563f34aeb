"""Volumes that go from member to member under verified load, between processes that are killed in the midst of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from initiator_sim.fleet import Assignment, Fleet
from initiator_sim.personalities import OPEN_ISCSI
from initiator_sim.workload import Plan
from tests.support.group import Group, running
from tests.support.target import Volume, wait_for

MIB = 1 << 20
SIZE_BYTES = 32 * MIB
PATIENCE_S = 90
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    """Three members that see each other."""
    with running(Group(tmp_path / "group")) as started:
        started.wait_until_active()
        yield started


def under_load(volume: Volume, meanwhile: Callable[[], None]) -> dict[str, Any]:
    """The report of a verified load on all of the volume, that lasts as long as `meanwhile` does in its thread."""
    plan = Plan(workload="randrw", read_share=0.5, depth=8, block_bytes=4096, discard_share=0.1)
    assignment = Assignment(
        (volume.portal,),
        volume.iqn,
        plan,
        personality=OPEN_ISCSI,
        seconds=3 * PATIENCE_S,
        sessions=2,
        verify=True,
        strict=True,
    )

    async def scenario() -> dict[str, Any]:
        fleet = Fleet(assignment)
        running_load = asyncio.ensure_future(fleet.run())
        try:
            await asyncio.to_thread(meanwhile)
        finally:
            fleet.finish()
            await running_load
        return fleet.report()

    return asyncio.run(scenario())


def assert_sound(report: dict[str, Any]) -> None:
    assert report["ok"], report
    assert report["errors"] == 0, report
    assert report["verify"]["violation_count"] == 0
    assert report["verify"]["reads_checked"] > 100


def start(group: Group, volume: Volume, destination: str, limit_bytes_per_second: int = 0) -> list[str]:
    body = {"volume": volume.name, "to": destination, "limit_bytes_per_second": limit_bytes_per_second}
    return [each["id"] for each in group[2].ask("POST", "/migrations", body)]


def shown(group: Group, ids: list[str]) -> list[dict[str, Any]]:
    return [each for each in group[2].ask("GET", "/migrations") if each["id"] in ids]


def wait_until_done(group: Group, ids: list[str]) -> None:
    wait_for(lambda: all(each["state"] == "done" for each in shown(group, ids)), PATIENCE_S, "the end of migrations")


def wait_until_begun(group: Group, ids: list[str]) -> None:
    wait_for(lambda: any(each["pieces_done"] > 1 for each in shown(group, ids)), PATIENCE_S, "some pieces")


def test_a_volume_is_moved_there_and_back_under_verified_load(group: Group) -> None:
    volume = group.at(group.create_volume("disk", SIZE_BYTES), 2)

    def meanwhile() -> None:
        for destination in ("m2", "m1", "m3"):
            wait_until_done(group, start(group, volume, destination))
            assert list(group.owners(volume)) == [destination]

    report = under_load(volume, meanwhile)
    assert_sound(report)
    assert sum(each["mirrored_writes"] for each in group[2].ask("GET", "/migrations")) > 0


@pytest.mark.parametrize("killed", ["m2", "m1"], ids=["destination", "source"])
def test_a_member_is_killed_in_mid_migration_and_started_again(group: Group, killed: str) -> None:
    volume = group.at(group.create_volume("disk", SIZE_BYTES), 2)

    def meanwhile() -> None:
        wait_until_done(group, start(group, volume, "m1"))
        ids = start(group, volume, "m2", 4 * MIB)
        wait_until_begun(group, ids)
        group.by_name(killed).kill()
        group.by_name(killed).start()
        wait_until_done(group, ids)
        assert list(group.owners(volume)) == ["m2"]

    assert_sound(under_load(volume, meanwhile))

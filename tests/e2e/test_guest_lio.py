"""Verified load on LIO, the Linux kernel's own target, in the guest: no false alarm."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from initiator_sim.client import Initiator
from initiator_sim.fleet import Assignment, Fleet
from initiator_sim.inspection import inspect
from initiator_sim.personalities import LIBISCSI, OPEN_ISCSI, Personality
from initiator_sim.workload import Plan
from tests.e2e.guest import lio
from tests.e2e.guest.machine import Guest
from tests.support.target import free_port

pytestmark = [pytest.mark.guest, pytest.mark.slow]

SIZE_BYTES = 1 << 20


@pytest.fixture(scope="module")
def portal(guest_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Guest, str]]:
    """A guest, and LIO's portal in it as the host sees it."""
    port = free_port()
    with Guest(guest_images, tmp_path_factory.mktemp("lio"), forward={port: lio.PORT}) as guest:
        yield guest, f"127.0.0.1:{port}"


async def cut_cables(fleet: Fleet) -> None:
    while True:
        await asyncio.sleep(0.7)
        for path in fleet.paths:
            path.drop_connection()


def run(portal: str, iqn: str, personality: Personality, plan: Plan, cables: bool) -> dict[str, Any]:
    """The report of a verified run; cables: all connections are cut now and then."""
    assignment = Assignment(
        (portal,), iqn, plan, personality=personality, initiators=2, sessions=2, verify=True, seconds=4.0
    )

    async def scenario() -> dict[str, Any]:
        fleet = Fleet(assignment)
        beside = asyncio.ensure_future(cut_cables(fleet)) if cables else None
        await fleet.run()
        if beside is not None:
            beside.cancel()
        return fleet.report()

    return asyncio.run(scenario())


@pytest.mark.parametrize(
    ("personality", "cables"),
    [
        pytest.param(OPEN_ISCSI, False, id="open-iscsi"),
        pytest.param(LIBISCSI, True, id="libiscsi, connections are cut"),
    ],
)
def test_no_false_alarm(portal: tuple[Guest, str], personality: Personality, cables: bool) -> None:
    guest, address = portal
    iqn = lio.serve(guest, f"{personality.name}-{int(cables)}", SIZE_BYTES)
    quick = replace(personality, obeys_time2wait=False, reconnect_gap_s=0.0)
    plan = Plan("randrw", read_share=0.5, depth=8, block_bytes=4096, flush_every=50)
    report = run(address, iqn, quick, plan, cables)
    assert report["ok"], report
    assert report["verify"]["violation_count"] == 0
    assert report["verify"]["reads_checked"] > 100
    assert report["writes"] > 100
    assert (report["reissued"] > 0) == cables


def test_it_is_inspected(portal: tuple[Guest, str]) -> None:
    guest, address = portal
    iqn = lio.serve(guest, "inspected", SIZE_BYTES)

    async def scenario() -> dict[str, Any]:
        async with Initiator().connect(address, iqn) as disk:
            return await inspect(disk)

    found = asyncio.run(scenario())
    assert "LIO" in str(found["inquiry"])

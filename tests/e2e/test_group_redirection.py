"""Logins at one member are spread over all of them: with every kind of initiator, and with CHAP."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from initiator_sim.chap import Credentials
from initiator_sim.fleet import Assignment, Fleet
from initiator_sim.personalities import PERSONALITIES
from initiator_sim.workload import Plan
from tests.support.group import Group, GroupMember
from tests.support.raw_initiator import RawInitiator
from tests.support.target import Chap, Options, Volume
from tests.support.tools import run

pytestmark = pytest.mark.slow

MIB = 1 << 20
ALICE = Chap("alice", "open-sesame-1001")
TARGET = Chap("the-target", "who-goes-there-1")
GUARDED = Options(chap=ALICE)
MUTUAL = Options(chap=ALICE, mutual_chap=TARGET)
POLICIES = ("round-robin", "least-loaded")


@pytest.fixture(scope="module")
def occupied(group: Group) -> Volume:
    return group.create_volume("occupied", 3 * MIB)


@pytest.fixture(params=POLICIES)
def policy(request: pytest.FixtureRequest, group: Group, occupied: Volume) -> Iterator[str]:
    """The group under that policy, for the test; the first member has some sessions already."""
    initiators = [RawInitiator(group[0].portal) for _ in range(3)]
    for number, initiator in enumerate(initiators):
        assert initiator.login(occupied.iqn, f"iqn.2026-01.org.example:host-{number}") == 0
    group.set_policy(request.param)
    yield str(request.param)
    group.set_policy("none")
    for initiator in initiators:
        initiator.close()


def redirections(member: GroupMember) -> int:
    """Logins that this member has sent elsewhere since its start."""
    text = httpx.get(f"{member.api}/metrics", headers=member._headers(), trust_env=False).text
    found = re.search(r"^san_target_redirections_total (\d+)", text, re.MULTILINE)
    assert found is not None, text
    return int(found[1])


def as_credentials(chap: Chap | None) -> Credentials | None:
    return None if chap is None else Credentials(chap.user, chap.secret.encode())


def spread_load(volume: Volume, personality: str) -> dict[str, Any]:
    """The report of a verified load whose initiators know the first member's portal only."""
    plan = Plan("randrw", read_share=0.5, depth=4, block_bytes=4096)
    assignment = Assignment(
        (volume.portal,),
        volume.iqn,
        plan,
        PERSONALITIES[personality],
        initiators=6,
        seconds=1.0,
        verify=True,
        strict=True,
        chap=as_credentials(volume.options.chap),
        mutual=as_credentials(volume.options.mutual_chap),
    )

    async def work() -> dict[str, Any]:
        fleet = Fleet(assignment)
        await fleet.run()
        return fleet.report()

    return asyncio.run(work())


@pytest.mark.parametrize("options", [Options(), MUTUAL], ids=["open", "mutual-chap"])
def test_every_personality_is_spread_over_the_members(group: Group, policy: str, options: Options) -> None:
    volume = group.create_volume(f"spread-{policy}-{'mutual' if options.chap else 'open'}", 3 * MIB, options)
    for personality in PERSONALITIES:
        report = spread_load(volume, personality)
        assert report["ok"], report
        assert report["verify"]["violation_count"] == 0
        # How evenly is a matter of how quickly members answer each other: who waits too long serves by itself.
        assert len(report["members"]) > 1, f"{personality}: {report['members']}"
        assert report["redirects"] > 0, personality


@pytest.mark.tool("qemu-img", "qemu-io", "qemu-iscsi")
@pytest.mark.parametrize("options", [Options(), GUARDED], ids=["open", "chap"])
def test_qemu_is_sent_elsewhere(group: Group, policy: str, options: Options, tmp_path: Path) -> None:
    image, back = tmp_path / "image", tmp_path / "back"
    image.write_bytes(random.Random(9).randbytes(6 * MIB))
    volume = group.create_volume(f"qemu-{policy}-{'chap' if options.chap else 'open'}", 6 * MIB, options)
    before = [redirections(member) for member in group]
    for _ in range(2):
        for index in range(3):
            url = group.at(volume, index).url
            assert json.loads(run(["qemu-img", "info", "--output=json", url]))["virtual-size"] == 6 * MIB
    url = group.at(volume, 0).url
    for _ in range(2):
        run(["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, url])
        run(["qemu-img", "convert", "-f", "raw", "-O", "raw", url, back])
        assert back.read_bytes() == image.read_bytes()
    assert sum(redirections(member) for member in group) > sum(before)


@pytest.mark.tool("iscsi-ls", "iscsi-inq", "iscsi-readcapacity16")
def test_libiscsi_tools_are_sent_elsewhere(group: Group, policy: str) -> None:
    volume = group.create_volume(f"tools-{policy}", 6 * MIB, GUARDED)
    before = [redirections(member) for member in group]
    for index in range(3):
        at = group.at(volume, index)
        assert run(["iscsi-readcapacity16", "-s", at.url]).strip() == str(6 * MIB)
        assert "Peripheral Device Type:DIRECT_ACCESS" in run(["iscsi-inq", at.url])
        # Discovery tells the portal that was asked: a host would take each address for one more disk.
        found = re.findall(
            rf"Target:{re.escape(volume.iqn)} Portal:(\S+),\d+", run(["iscsi-ls", f"iscsi://{at.portal}"])
        )
        assert found == [at.portal]
    assert sum(redirections(member) for member in group) > sum(before)

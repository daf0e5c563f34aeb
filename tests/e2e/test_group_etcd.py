"""Three members whose store is an etcd of three processes: under verified load one of those is killed, or a member
loses its lease, cut off from all of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from san_target.server.environment import LEASE_TTL_S
from san_target.server.last_known import OLD
from tests.support.etcd import EtcdCluster
from tests.support.group import Group, running
from tests.support.group_trial import Trial
from tests.support.network import Network, needs_root
from tests.support.target import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.tool("etcd"), pytest.mark.timeout(300)]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[EtcdCluster]:
    cluster = EtcdCluster(tmp_path)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.kill()


@pytest.fixture
def group(cluster: EtcdCluster, tmp_path: Path) -> Iterator[Group]:
    with running(Group(tmp_path / "group", store_url=cluster.url)) as group:
        yield group


def test_a_group_goes_on_without_one_etcd_and_without_one_member(group: Group, cluster: EtcdCluster) -> None:
    leader = cluster.leader_first()[0]

    async def story(trial: Trial) -> None:
        await trial.work(0.5)
        leader.kill()
        await trial.flows()
        # The rest still decides: a member begins a new life, which the others see.
        group[0].kill()
        await trial.flows(through=["m2", "m3"], owners=["m2", "m3"])
        started_s = time.monotonic()
        await asyncio.to_thread(group[0].start)
        await trial.recovery("kill -9 of a member, and of the etcd's leader: everything, from its start", started_s)
        await asyncio.to_thread(cluster.restart, leader)
        await trial.work(0.5)

    Trial(group).play(story)
    volume = group.create_volume("later", 3 << 20)
    assert len(group.owners(volume)) == 3
    assert [member.stop() for member in group] == [0, 0, 0]


def test_io_goes_on_without_the_etcd(group: Group, cluster: EtcdCluster) -> None:
    """All of it stands still for longer than a lease: forwarded I/O too goes on, who looks is told what is known, and
    afterwards everything is as before by itself."""
    logins = {}

    async def story(trial: Trial) -> None:
        await trial.work(0.5)
        for etcd in cluster.members:
            etcd.pause()
        await trial.flows()
        await trial.work(LEASE_TTL_S + 2)
        await trial.flows()
        for member in group:
            status = await asyncio.to_thread(member.ask, "GET", "/group")
            assert status["state"] == "degraded"
            assert OLD in status["reasons"]
            assert [one["reason"] for one in await asyncio.to_thread(member.ask, "GET", "/volumes")] == [OLD] * 2
        logins.update(trial.fleet.report())
        for etcd in cluster.members:
            etcd.resume()
        await trial.recovery(
            "an etcd that stood still for longer than a lease: everything, from its going on", time.monotonic()
        )
        await trial.work(3.0)

    report = Trial(group).play(story)
    assert logins["logins"] == logins["sessions"], "a session was lost while the store was away"
    assert report["reads"] > logins["reads"]
    group.wait_until_active()
    wait_for(lambda: all(member.ask("GET", "/group")["state"] == "ok" for member in group), 60, "all is well again")


@needs_root
@pytest.mark.tool("ip")
def test_a_member_that_lost_its_lease_begins_anew(tmp_path: Path) -> None:
    """Cut off from the etcd and from its peers for longer than its lease, while initiators reach it."""
    with ExitStack() as stack:
        network = stack.enter_context(Network(4))
        cluster = EtcdCluster(tmp_path / "etcd", address=network.address(3), prefix=network.prefix(3))
        stack.callback(cluster.kill)
        cluster.start()
        group = stack.enter_context(running(Group(tmp_path / "group", store_url=cluster.url, network=network)))
        group.wait_until_active()
        before = incarnation(group, "m1")

        async def story(trial: Trial) -> None:
            floating = await trial.floating_portal(group[0])
            moving = await trial.add_initiators(floating.portal, 2)
            await trial.work(0.5)
            network.cut(0, (1, 2, 3))
            await trial.work(1)
            floating.move(group[1].portal, leave=True)
            await trial.let_in(moving)
            await asyncio.to_thread(wait_for, lambda: state(group, "m1") == "unreachable", 60, "its lease ends")
            await trial.flows(through=["m2", "m3"], owners=["m2", "m3"])
            network.heal()
            await trial.recovery("a member that has lost its lease: everything, from the repair", time.monotonic())

        Trial(group).play(story)
        assert incarnation(group, "m1") > before


def incarnation(group: Group, name: str) -> int:
    return next(int(one["incarnation"]) for one in group[1].ask("GET", "/members") if one["name"] == name)


def state(group: Group, name: str) -> str:
    return next(str(one["state"]) for one in group[1].ask("GET", "/members") if one["name"] == name)

"""Three members whose store is an etcd of three processes, of which one is killed under verified load."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.etcd import EtcdCluster
from tests.support.group import Group, running
from tests.support.group_trial import Trial

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
    hosts = ",".join(member.host for member in cluster.members)
    with running(Group(tmp_path / "group", store_url=f"etcd://{hosts}")) as group:
        group.wait_until_active()
        yield group


def test_a_group_goes_on_without_one_etcd_and_without_one_member(group: Group, cluster: EtcdCluster) -> None:
    leader = cluster.leader_first()[0]

    async def story(trial: Trial) -> None:
        await trial.work(0.5)
        leader.kill()
        await trial.flows()
        # The rest still decides: a member begins a new life, which the others see.
        began_s = time.monotonic()
        group[0].kill()
        await trial.flows(through=["m2", "m3"], owners=["m2", "m3"])
        await asyncio.to_thread(group[0].start)
        await trial.recovery("kill -9 of a member, over an etcd that has lost its leader", began_s, time.monotonic())
        await asyncio.to_thread(cluster.restart, leader)
        await trial.work(0.5)

    Trial(group).play(story)
    volume = group.create_volume("later", 3 << 20)
    assert len(group.owners(volume)) == 3
    assert [member.stop() for member in group] == [0, 0, 0]

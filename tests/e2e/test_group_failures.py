"""Members that are killed, stand still or are cut off from each other under verified load.

No read ever finds anything but what was acknowledged, no command fails, and what cannot be served meanwhile is served
again by itself. How long that takes is told at the end of the run, and not judged.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import pytest

from tests.support.floating_portal import FloatingPortal
from tests.support.group import Group, running
from tests.support.group_store import OVER_ETCD, STORE, chosen_store
from tests.support.group_trial import Trial
from tests.support.network import Network, needs_root

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROUNDS = int(os.environ.get("SAN_TARGET_GROUP_ROUNDS", "1"))
STOP_S = float(os.environ.get("SAN_TARGET_STOP_S", "6"))
CUT_S = float(os.environ.get("SAN_TARGET_CUT_S", "5"))
SEED = int(os.environ.get("SAN_TARGET_SEED", random.randrange(1 << 32)))


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    directory = tmp_path_factory.mktemp("group")
    with ExitStack() as stack:
        yield stack.enter_context(running(Group(directory, store_url=chosen_store(stack, directory))))


@pytest.fixture
def group(members: Group) -> Group:
    """A group whose members may be killed and stopped; whatever the test before has left, all serve."""
    members.repair()
    return members


@pytest.fixture(scope="module")
def cut_members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    directory = tmp_path_factory.mktemp("network")
    with ExitStack() as stack:
        network = stack.enter_context(Network(STORE + OVER_ETCD))
        url = chosen_store(stack, directory, network)
        yield stack.enter_context(running(Group(directory, store_url=url, network=network)))


@pytest.fixture
def networked(cut_members: Group) -> tuple[Group, Network]:
    """The same with a network each."""
    cut_members.repair()
    assert cut_members.network is not None
    return cut_members, cut_members.network


async def flows_elsewhere(trial: Trial, victim: int, what: str, since_s: float) -> None:
    """Blocks of the other members are served through them, all the time."""
    others = [member.member_name for member in trial.group if member is not trial.group[victim]]
    await trial.flows(through=others, owners=set(others) & set(trial.owners))
    trial.note(f"{what}: the blocks of the others", since_s)


# --- kill -9 ----------------------------------------------------------------------------------------------------------


async def kill_and_restart(trial: Trial, victim: int, what: str, down_s: float = 0.5) -> None:
    began_s = time.monotonic()
    trial.group[victim].kill()
    await flows_elsewhere(trial, victim, f"kill -9 of {what}", began_s)
    await trial.work(down_s)
    started_s = time.monotonic()
    await asyncio.to_thread(trial.group[victim].start)
    await trial.recovery(f"kill -9 of {what}: everything, from its start", started_s)
    await trial.work(1.0)


@pytest.mark.parametrize("role", ["the ingress", "an owner", "a member that is both"])
def test_kill(group: Group, role: str) -> None:
    if role == "the ingress":
        trial, victim = Trial(group, portals=group.portals[:1], owners=(1, 2), sessions=2), 0
    elif role == "an owner":
        trial, victim = Trial(group, portals=group.portals[:2]), 2
    else:
        trial, victim = Trial(group), 0

    async def story(trial: Trial) -> None:
        await trial.work(0.5)
        for _ in range(ROUNDS):
            await kill_and_restart(trial, victim, role)

    report = trial.play(story)
    assert report["logins"] > report["sessions"] or role == "an owner"


def test_kill_all_at_once(group: Group) -> None:
    """Everything acknowledged is there: the page cache outlives processes."""

    async def story(trial: Trial) -> None:
        await trial.work(0.5)
        for _ in range(ROUNDS):
            trial.group.kill()
            started_s = time.monotonic()
            await asyncio.to_thread(trial.group.start)
            await trial.recovery("kill -9 of all members: everything, from their start", started_s)
            await trial.work(0.5)

    Trial(group).play(story)


# --- standing still ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("owners", [(1, 2), (0, 1, 2)], ids=["the ingress", "a member that is both"])
def test_a_member_that_stood_still_does_no_harm(group: Group, owners: Sequence[int]) -> None:
    """Its sessions have gone elsewhere meanwhile; what they had given it must never be carried out."""

    async def story(trial: Trial) -> None:
        floating = await trial.floating_portal(group[0])
        moving = await trial.add_initiators(floating.portal, 2)
        await trial.add_multipath()
        await trial.work(0.5)
        what = f"{'a member' if 0 in owners else 'an ingress'} stood still for {STOP_S:.0f} s"
        for _ in range(ROUNDS):
            began_s = time.monotonic()
            group[0].pause()
            await flows_elsewhere(trial, 0, what, began_s)
            await trial.work(0.5)
            floating.move(group[1].portal, leave=True)
            await trial.let_in(moving)
            await trial.work(STOP_S)
            group[0].resume()
            over_s = time.monotonic()
            if not group[0].runs:  # it was stopped in the midst of a transaction of SQLite's, and others ended it
                await asyncio.to_thread(group[0].start)
            await trial.recovery(f"{what}: everything, from its going on", over_s)
            await trial.work(0.5)
            floating.move(group[0].portal)

    Trial(group, owners=owners).play(story)


# --- cut off ----------------------------------------------------------------------------------------------------------


@needs_root
@pytest.mark.tool("ip")
@pytest.mark.parametrize(
    ("owners", "how"),
    [((1, 2), "both ways"), ((0, 1, 2), "one way"), ((0, 1, 2), "from everybody")],
    ids=["ingress", "one-way", "pulled"],
)
def test_a_member_that_is_cut_off(networked: tuple[Group, Network], owners: Sequence[int], how: str) -> None:
    """From its peers, and from the store if that is an etcd: initiators still reach it then, and some of them go to
    another member meanwhile. Or from initiators too."""
    group, network = networked

    async def story(trial: Trial) -> None:
        what = f"{'a member' if 0 in owners else 'an ingress'} cut off {how} for {CUT_S:.0f} s"
        floating = await trial.floating_portal(group[0])
        moving = await trial.add_initiators(floating.portal, 2)
        await trial.work(0.5)
        for _ in range(ROUNDS):
            began_s = time.monotonic()
            if how == "from everybody":
                network.pull(0)
            else:
                network.cut(0, (1, 2, STORE) if OVER_ETCD else (1, 2), how == "both ways")
            await flows_elsewhere(trial, 0, what, began_s)
            await trial.work(0.5)
            floating.move(group[1].portal, leave=True)
            await trial.let_in(moving)
            await trial.work(CUT_S)
            await flows_elsewhere(trial, 0, f"{what}, at its end", time.monotonic())
            network.heal()
            await trial.recovery(f"{what}: everything, from the repair", time.monotonic())
            floating.move(group[0].portal)

    Trial(group, owners=owners).play(story)


# --- anything ---------------------------------------------------------------------------------------------------------


@needs_root
@pytest.mark.tool("ip")
def test_anything_at_any_time(networked: tuple[Group, Network]) -> None:
    """Faults by chance, also two at a time. `SAN_TARGET_SEED` repeats the choice, though not what comes of it."""
    print(f"SAN_TARGET_SEED={SEED}")
    chance = random.Random(SEED)
    group, network = networked
    group.set_policy(chance.choice(("none", "round-robin", "least-loaded")))

    async def story(trial: Trial) -> None:
        portals = [await trial.floating_portal(member) for member in group.members[:2]]
        for floating in portals:
            await trial.add_initiators(floating.portal, 1)
        await trial.add_multipath()
        for _ in range(3 * ROUNDS):
            await anything(group, network, portals, chance)
            await trial.recovery("faults by chance, also two at a time", time.monotonic())
            await trial.work(chance.choice((0, 0.5)))

    Trial(group).play(story, seed=SEED & 0xFFFF)


async def anything(group: Group, network: Network, portals: Sequence[FloatingPortal], chance: random.Random) -> None:
    """One fault, or two of different kinds at the same time, until they are over."""
    victims = chance.sample(range(3), 2)
    kinds = chance.sample(("kill", "pause", "cut"), 2)
    faults = [fault(group, network, kinds[0], victims[0], chance)]
    if chance.random() < 0.3:
        faults.append(fault(group, network, kinds[1], victims[1], chance))
    running = asyncio.gather(*faults)
    for floating in portals:
        if chance.random() < 0.6:
            await asyncio.sleep(chance.choice((0, 0.2, 1)))
            floating.move(group[chance.randrange(3)].portal, leave=chance.random() < 0.7)
    await running


async def fault(group: Group, network: Network, kind: str, victim: int, chance: random.Random) -> None:
    seconds = chance.choice((0.3, 1, 2.5, 4, 7))
    if kind == "kill":
        group[victim].kill()
        await asyncio.sleep(seconds / 4)
        await asyncio.to_thread(group[victim].start)
    elif kind == "pause":
        group[victim].pause()
        await asyncio.sleep(seconds)
        group[victim].resume()
        if not group[victim].runs:
            await asyncio.to_thread(group[victim].start)
    elif chance.random() < 0.2:
        network.pull(victim)
        await asyncio.sleep(seconds)
        network.heal()
    else:
        others = [index for index in range(STORE + OVER_ETCD) if index != victim]
        network.cut(victim, chance.sample(others, chance.randint(1, 2)), both_ways=chance.random() < 0.6)
        await asyncio.sleep(seconds)
        network.heal()

"""What goes wrong in a run: a list of faults, drawn from the seed, or handed in where a failure is being shortened."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from san_target.admin.service import MigrationRequest

if TYPE_CHECKING:
    from tests.simulation.world import World

VOLUME: Final = "disk"


@dataclass(frozen=True, slots=True)
class Fault:
    """at_s: after the load began; kind: a key of FAULTS; whom, other: indices, taken modulo how many there are;
    for_s: how long; number: whatever else the kind wants to know."""

    at_s: float
    kind: str
    whom: int
    other: int
    for_s: float
    number: int

    def __str__(self) -> str:
        more = f"whom {self.whom}, other {self.other}, {self.for_s:.2f} s, {self.number}"
        return f"at {self.at_s:.3f} s: {self.kind} ({more})"


def draw(source: random.Random, weights: Mapping[str, int], count: int, duration_s: float) -> list[Fault]:
    """`count` faults in the order of their time."""
    kinds = list(weights)
    faults = []
    for _ in range(count):
        kind = source.choices(kinds, [weights[each] for each in kinds])[0]
        low, high = DURATION_S.get(kind, (0.1, 3.0))
        faults.append(
            Fault(
                round(source.uniform(0, duration_s), 4),
                kind,
                source.randrange(1 << 16),
                source.randrange(1 << 16),
                round(source.uniform(low, high), 4),
                source.randrange(12),
            )
        )
    return sorted(faults, key=lambda fault: fault.at_s)


# --- the kinds --------------------------------------------------------------------------------------------------------


async def _drop(world: World, fault: Fault) -> None:
    """A connection of a host is reset, as by a firewall."""
    machine = world.pick(world.hosts, fault.whom).machine
    ends = list(machine.ends)
    if ends:
        end = ends[fault.other % len(ends)]
        world.trace.note(f"a connection of {machine.name} is reset")
        end.break_off()


async def _part(world: World, fault: Fault) -> None:
    """Nothing gets through between two machines."""
    member = world.pick(world.members, fault.whom).machine
    other = world.pick([each for each in world.machines() if each is not member], fault.other)
    ways = [(member.name, other.name), (other.name, member.name)]
    if fault.number == 0:
        ways = ways[:1]
    elif fault.number == 1:
        ways = ways[1:]
    world.trace.note(f"cut: {ways}")
    for way in ways:
        world.network.cut(*way)
    await asyncio.sleep(fault.for_s)
    world.trace.note(f"whole again: {ways}")
    for way in ways:
        world.network.heal(*way)


async def _isolate(world: World, fault: Fault) -> None:
    """A member is cut off from everybody, or from everybody but the hosts, or but the store."""
    member = world.pick(world.members, fault.whom).machine
    spared = ([], world.hosts, [world.store])[fault.number % 3]
    others = [each for each in world.machines() if each is not member and each not in [one.machine for one in spared]]
    world.trace.note(f"cut off: {member.name} from {', '.join(each.name for each in others)}")
    for other in others:
        world.network.cut(member.name, other.name)
        world.network.cut(other.name, member.name)
    await asyncio.sleep(fault.for_s)
    world.trace.note(f"whole again: {member.name}")
    for other in others:
        world.network.heal(member.name, other.name)
        world.network.heal(other.name, member.name)


async def _cut_off(world: World, fault: Fault) -> None:
    """A member is alone just long enough for its initiators to go elsewhere, and no longer than it keeps commands."""
    await _isolate(world, dataclasses.replace(fault, number=2))


async def _drop_link(world: World, fault: Fault) -> None:
    """A connection between two members is reset."""
    machine = world.pick(world.members, fault.whom).machine
    members = [each.machine for each in world.members]
    ends = [end for end in machine.ends if end.peer_machine in members]
    if ends:
        world.trace.note(f"a link of {machine.name} is reset")
        ends[fault.other % len(ends)].break_off()


async def _migrate(world: World, fault: Fault) -> None:
    """The operator moves a part of the volume, or ends such a move."""
    asked = world.pick(world.members, fault.whom)
    if fault.number == 0:
        for migration in await asked.ask(lambda service: service.migrations()) or ():
            await asked.ask(lambda service, number=migration.id: service.cancel_migration(number))
        return
    regions = world.placements()[-1][1] // world.region_blocks
    first = fault.other % regions
    count = 1 + fault.number % (regions - first)
    request = MigrationRequest(
        volume=VOLUME,
        to=world.pick(world.members, fault.other).name,
        start_lba=first * world.region_blocks,
        end_lba=(first + count) * world.region_blocks,
    )
    await asked.ask(lambda service: service.start_migrations(request))


async def _move_session(world: World, fault: Fault) -> None:
    """The operator moves a session to another member."""
    asked = world.pick(world.members, fault.whom)
    found = await asked.ask(lambda service: service.sessions())
    sessions = (
        []
        if found is None or len(world.members) == 1
        else sorted(found.sessions, key=lambda each: (each.initiator, each.isid))
    )
    if sessions:
        session = world.pick(sessions, fault.other)
        to = world.pick([each.name for each in world.members if each.name != session.member], fault.number)
        await asked.ask(lambda service: service.move_session(session.id, to))


async def _drain(world: World, fault: Fault) -> None:
    """A member is to be idle: its sessions and its blocks go to others. After a while it is taken into use again."""
    asked, name = world.pick(world.members, fault.whom), world.pick(world.members, fault.other).name
    await asked.ask(lambda service: service.drain_member(name))
    await asyncio.sleep(fault.for_s)
    for member in world.members:
        if await member.ask(lambda service: service.activate_member(name)) is not None:
            return


async def _balance(world: World, fault: Fault) -> None:
    """The balancer acts now, if it finds something to do."""
    await world.pick(world.members, fault.whom).ask(lambda service: service.balance("run"))


async def _slow_network(world: World, fault: Fault) -> None:
    """Everything takes longer between a member and somebody else."""
    member = world.pick(world.members, fault.whom).machine
    other = world.pick([each for each in world.machines() if each is not member], fault.other)
    pair = frozenset((member.name, other.name))
    world.network.slow[pair] = 10.0 * (1 + fault.number)
    await asyncio.sleep(fault.for_s)
    world.network.slow.pop(pair, None)


async def _kill(world: World, fault: Fault) -> None:
    world.pick(world.members, fault.whom).kill()


async def _kill_in_a_job(world: World, fault: Fault) -> None:
    world.pick(world.members, fault.whom).kill_at_step(fault.number, power=False)


async def _power(world: World, fault: Fault) -> None:
    member = world.pick(world.members, fault.whom)
    member.lose_power()
    await asyncio.sleep(fault.for_s)
    member.power_is_back()


async def _power_in_a_job(world: World, fault: Fault) -> None:
    member = world.pick(world.members, fault.whom)
    member.kill_at_step(fault.number, power=True)
    await asyncio.sleep(fault.for_s)
    member.disk.dies_at = -1
    member.power_is_back()


async def _terminate(world: World, fault: Fault) -> None:
    """A service that is restarted; the disk may lose its power right after it ended, with nothing lost."""
    member = world.pick(world.members, fault.whom)
    flushes = [world.book.flush(start, end - start) for start, end, owner in world.placements() if owner == member.name]
    if await member.terminate() and not member.disk.has_failed:
        for flush in flushes:
            world.book.good(flush)
    if fault.number % 2:
        member.lose_power()
        await asyncio.sleep(fault.for_s)
        member.power_is_back()


async def _pause(world: World, fault: Fault) -> None:
    """SIGSTOP, and SIGCONT."""
    member = world.pick(world.members, fault.whom)
    member.pause()
    await asyncio.sleep(fault.for_s)
    member.resume()


async def _slow_disk(world: World, fault: Fault) -> None:
    disk = world.pick(world.members, fault.whom).disk
    disk.slow = 10.0 * (1 + fault.number)
    await asyncio.sleep(fault.for_s)
    disk.slow = 1.0


async def _full_disk(world: World, fault: Fault) -> None:
    disk = world.pick(world.members, fault.whom).disk
    world.trace.note(f"{disk.name}: the disk is full")
    world.excuse_full_disks(True)
    disk.fill()
    await asyncio.sleep(fault.for_s)
    disk.have_space()
    world.trace.note(f"{disk.name}: the disk has space again")
    world.excuse_full_disks(False)


async def _flush_fails(world: World, fault: Fault) -> None:
    """The disk could not write: the operator checks it, and starts the machine again."""
    member = world.pick(world.members, fault.whom)
    world.excuse_failed_disks()
    member.disk.flush_fails = True
    for _ in range(40):
        await asyncio.sleep(fault.for_s)
        if not member.disk.flush_fails:
            break
    else:
        member.disk.flush_fails = False
        return
    await asyncio.sleep(fault.for_s)
    member.lose_power()
    await asyncio.sleep(fault.for_s)
    member.power_is_back()


async def _store_away(world: World, fault: Fault) -> None:
    world.trace.note("the store is away")
    world.store.is_away = True
    await asyncio.sleep(fault.for_s)
    world.store.is_away = False
    world.trace.note("the store is back")


async def _watch_lag(world: World, fault: Fault) -> None:
    name = world.pick(world.members, fault.whom).machine.name
    world.store.lags[name] = 0.2 * fault.number
    await asyncio.sleep(fault.for_s)
    world.store.lags.pop(name, None)


async def _abort(world: World, fault: Fault) -> None:
    """An initiator loses patience."""
    world.pick(world.hosts, fault.whom).abort_something(reset=fault.number == 0)


async def _preempt(world: World, fault: Fault) -> None:
    """A host shuts another one out."""
    able = [host.registrant for host in world.hosts if host.registrant is not None and host.is_up]
    if len(able) < 2:
        return
    first = world.pick(able, fault.whom)
    other = world.pick([each for each in able if each is not first], fault.other)
    await first.run(first.preempt(other, abort=fault.number % 2 == 0))


FAULTS: Final[dict[str, Callable[[World, Fault], Coroutine[Any, Any, None]]]] = {
    "drop": _drop,
    "part": _part,
    "isolate": _isolate,
    "cut off": _cut_off,
    "drop link": _drop_link,
    "migrate": _migrate,
    "move session": _move_session,
    "drain": _drain,
    "balance": _balance,
    "slow network": _slow_network,
    "kill": _kill,
    "kill in a job": _kill_in_a_job,
    "power": _power,
    "power in a job": _power_in_a_job,
    "terminate": _terminate,
    "pause": _pause,
    "slow disk": _slow_disk,
    "full disk": _full_disk,
    "flush fails": _flush_fails,
    "store away": _store_away,
    "watch lag": _watch_lag,
    "abort": _abort,
    "preempt": _preempt,
}

DURATION_S: Final = {
    "drop": (0.0, 0.0),
    "part": (0.5, 25.0),
    "isolate": (0.5, 25.0),
    "cut off": (14.0, 20.0),
    "slow network": (0.1, 2.0),
    "pause": (0.01, 16.0),
    "drain": (0.5, 12.0),
    "slow disk": (0.1, 2.0),
    "full disk": (0.1, 3.0),
    "flush fails": (0.2, 0.5),
    "store away": (0.5, 25.0),
    "power": (0.2, 3.0),
    "power in a job": (0.2, 3.0),
    "terminate": (0.2, 1.0),
}

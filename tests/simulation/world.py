"""One run: a group, its initiators, and what happens to them, from a seed."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import traceback
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import structlog

from initiator_sim.personalities import ESXI, LIBISCSI, OPEN_ISCSI, WINDOWS
from initiator_sim.sense import DATA_PROTECT, MEDIUM_ERROR, Sense
from san_target.admin.service import VolumeSpec
from san_target.group.map_records import start_lba
from san_target.metadata.schema import MigrationRecord, PlacementRecord, decode
from tests.simulation.book import Book
from tests.simulation.faults import FAULTS, VOLUME, Fault, draw
from tests.simulation.hosts import Host
from tests.simulation.loop import PROCESS, START_S, Stuck, VirtualLoop
from tests.simulation.members import SimMember
from tests.simulation.network import Machine, Network
from tests.simulation.plan import USUAL_LOAD, Load, Plan, plan_for
from tests.simulation.store import StoreServer
from tests.simulation.trace import Trace

T = TypeVar("T")

MIB: Final = 1 << 20
FINISHED: Final = ("done", "cancelled")
POLL_S: Final = 0.05
READY_S: Final = 120.0
CALM_S: Final = 400.0
FULL_S: Final = 30.0
"""How long commands may still tell of a disk that was full."""
STEPS_MAX: Final = 3_000_000
POLICIES: Final = ("none", "round-robin", "least-loaded")
PERSONALITIES: Final = (OPEN_ISCSI, LIBISCSI, ESXI, WINDOWS)

FAULT_WEIGHTS: Final[Mapping[str, int]] = {
    "drop": 6,
    "part": 3,
    "isolate": 1,
    "drop link": 2,
    "migrate": 4,
    "move session": 2,
    "drain": 1,
    "balance": 1,
    "slow network": 3,
    "kill": 4,
    "kill in a job": 4,
    "power": 4,
    "power in a job": 4,
    "terminate": 2,
    "pause": 4,
    "slow disk": 3,
    "full disk": 2,
    "flush fails": 1,
    "store away": 2,
    "watch lag": 1,
    "abort": 3,
}


Direct = Callable[["World"], AbstractContextManager[None]]
"""Something that watches a whole run, and meddles with it."""


@dataclass(frozen=True)
class Scenario:
    """What kind of run. duration_s: of the load; faults_s: within what time faults begin; drift: how far clocks run
    apart at most, as a share; disk_s, network_s: usual delays; reservations: hosts use them; multipath: how
    likely it is that they have two paths; always: faults of every run; direct: what else is done. hosts_max, depth_max:
    cut off what the seed brings, where a failure is being shortened."""

    name: str = "usual"
    members: int = 1
    hosts: tuple[int, int] = (1, 3)
    duration_s: float = 2.0
    faults_s: float = 2.0
    faults: tuple[int, int] = (0, 5)
    weights: Mapping[str, int] = field(default_factory=lambda: FAULT_WEIGHTS)
    load: Load = USUAL_LOAD
    reservations: bool = False
    multipath: float = 0.4
    disk_s: tuple[float, float] = (0.0001, 0.004)
    network_s: tuple[float, float] = (0.0002, 0.002)
    drift: float = 0.001
    always: tuple[Fault, ...] = ()
    direct: Direct | None = None
    hosts_max: int = 99
    depth_max: int = 99


@dataclass(slots=True)
class Result:
    """wrong: empty if all went well. numbers, faults: which of the seed's faults there were, and what they were.
    digest: of the trace. commands: answered with GOOD. virtual_s: how long it was. last: lines of the trace."""

    seed: int
    scenario: str
    wrong: list[str]
    numbers: list[int]
    faults: list[Fault]
    digest: str
    commands: int
    virtual_s: float
    steps: int
    last: list[str]


class World:
    """Everything of one run. plan: what hosts do; book: what they saw."""

    plan: Plan
    book: Book

    def __init__(self, seed: int, scenario: Scenario, show: bool = False) -> None:
        self.seed = seed
        self.scenario = scenario
        self.loop = VirtualLoop()
        self.trace = Trace(self.loop, show)
        self._random = random.Random(f"{seed} world")
        self.network = Network(self.loop, random.Random(f"{seed} network"), self.trace, scenario.network_s)
        self.network.fragments = self._random.choice((0.0, 0.02, 0.2))
        self.network.buffer_bytes = self._random.choice((1 << 13, 1 << 16, 1 << 18))
        self.store = StoreServer(self.loop, self.network, random.Random(f"{seed} store"), self.trace)
        self.members = [SimMember(self, number) for number in range(scenario.members)]
        self.hosts: list[Host] = []
        self._full_disks = 0
        self._full_until_s = 0.0
        self._failed_disks = False
        self.faults: list[Fault] = []
        self.numbers: list[int] = []
        self.complaints: list[str] = []
        self.beside: list[Coroutine[Any, Any, None]] = []  # what else happens while there is load

    def pick(self, options: Sequence[T], index: int) -> T:
        return options[index % len(options)]

    def machines(self) -> list[Machine]:
        """Everything that a cable leads to."""
        return [self.store.machine, *(each.machine for each in (*self.members, *self.hosts))]

    def placements(self) -> list[tuple[int, int, str]]:
        """(first LBA, end LBA, owner) of the volume's ranges, as the store has them now."""
        found = []
        for item in self.store.data.range("maps/").items:
            placement = decode(PlacementRecord, item.value, item.key)
            found.append((start_lba(item.key), placement.end_lba, placement.owner))
        return found

    def may_be_split(self, blocks: int) -> bool:
        """May so many blocks have more than one owner?"""
        return blocks > 1 and len(self.members) > 1

    def crashed(self, member: SimMember) -> None:
        """A member lost what was not flushed."""
        if self.unfinished():
            # Blocks that move are at two members; which of them counts is for the product to know.
            self.book.crash()
            return
        for start, end, owner in self.placements():
            if owner == member.name:
                self.book.crash(start, end - start)

    def unfinished(self) -> list[str]:
        """The migrations that have not ended, and why."""
        records = [decode(MigrationRecord, item.value, item.key) for item in self.store.data.range("migrations/").items]
        return [f"{each.id}: {each.state}: {each.reason}" for each in records if each.state not in FINISHED]

    def excuse_full_disks(self, begins: bool) -> None:
        self._full_disks += 1 if begins else -1
        self._full_until_s = self.loop.time() + FULL_S

    def excuse_failed_disks(self) -> None:
        self._failed_disks = True

    def is_excused(self, sense: Sense | None) -> bool:
        """Is an I/O error of this kind no wonder?"""
        if sense is None:
            return False
        if sense.key == DATA_PROTECT and (sense.asc, sense.ascq) == (0x27, 0x07):
            return self._full_disks > 0 or self.loop.time() < self._full_until_s
        return self._failed_disks and sense.key in (MEDIUM_ERROR, DATA_PROTECT)

    # The run ----------------------------------------------------------------------------------------------------------

    async def run(self, numbers: Sequence[int] | None) -> None:
        scenario, chance = self.scenario, self._random
        block_size = chance.choice((512, 512, 4096))
        size_bytes = 2 * max(2, scenario.members) * MIB
        self.book = Book(VOLUME, block_size, self.loop.time)
        for member in self.members:
            member.disk.disk.sector_bytes = block_size
        self.region_blocks = MIB // block_size
        hosts = min(chance.randint(*scenario.hosts), scenario.hosts_max)
        source, count = random.Random(f"{self.seed} faults"), chance.randint(*scenario.faults)
        drawn = draw(source, scenario.weights, count, scenario.faults_s)
        self.numbers = list(range(count)) if numbers is None else list(numbers)
        self.faults = [drawn[number] for number in self.numbers]
        for member in self.members:
            member.start()
        await self._until(lambda: all(member.serves for member in self.members), READY_S, "the members serve")
        volume = await self._create_volume(size_bytes, block_size)
        self.plan = plan_for([start for start, _, _ in self.placements()][1:], scenario.load, chance)
        self.plan.depth = min(self.plan.depth, scenario.depth_max)
        for number in range(hosts):
            personality = chance.choice((OPEN_ISCSI, ESXI, WINDOWS) if volume.multipath else PERSONALITIES)
            members = chance.sample(self.members, 2 if volume.multipath else 1)
            portals = [member.portal for member in members]
            self.hosts.append(Host(self, number, personality, portals, volume.iqn))
        for host in self.hosts:
            host.start()
        striking = [self.loop.create_task(self._strike(fault)) for fault in (*scenario.always, *self.faults)]
        striking += [self.loop.create_task(each) for each in self.beside]
        await asyncio.sleep(scenario.duration_s)
        await asyncio.gather(*striking)
        await self._calm_down()

    async def _create_volume(self, size_bytes: int, block_size: int) -> Any:
        first, chance = self.members[0], self._random
        spec = VolumeSpec(
            name=VOLUME,
            size_bytes=size_bytes,
            block_size=block_size,
            members=tuple(member.name for member in self.members),
            multipath=len(self.members) > 1 and chance.random() < self.scenario.multipath,
        )
        volume = await first.ask(lambda service: service.create_volume(spec))
        if volume is None:
            raise Stuck("the volume cannot be created")
        policy = chance.choice(POLICIES)
        await first.ask(lambda service: service.set_portal_policy(policy))
        return volume

    async def _strike(self, fault: Fault) -> None:
        await asyncio.sleep(fault.at_s)
        self.trace.note(f"FAULT {fault}")
        await FAULTS[fault.kind](self, fault)

    async def _calm_down(self) -> None:
        """Nothing goes wrong any more: everything that was begun ends, and what is there is looked at."""
        self.trace.note("calm")
        for host in self.hosts:
            host.stop()
        for member in self.members:
            member.disk.dies_at = -1
        await self._until(
            lambda: all(host.is_idle for host in self.hosts),
            CALM_S,
            "all commands end",
            lambda: [line for host in self.hosts if not host.is_idle for line in host.unfinished()],
        )
        await self._until(lambda: not self.unfinished(), CALM_S, "all migrations end", self.unfinished)
        for host in self.hosts:
            host.look(self.plan.everything())
        await self._until(lambda: all(host.has_looked for host in self.hosts), CALM_S, "all is read")

    async def _until(self, condition: Any, within_s: float, what: str, details: Any = list) -> None:
        end_s = self.loop.time() + within_s
        while not condition():
            if self.loop.time() > end_s:
                raise Stuck(f"after {within_s:.0f} s it is still not true that {what}: {details()}")
            await asyncio.sleep(POLL_S)


class _Log:
    """The product's log lines, as part of the trace. What it calls a defect of its own is one."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.defects: list[str] = []

    def __call__(self, _logger: object, level: str, event: dict[str, Any]) -> str:
        if self._world.loop.is_closed():
            raise structlog.DropEvent
        process = PROCESS.get()
        who = process.name if process is not None else "?"
        error = event.pop("exc_info", None)
        words = [str(event.pop("event", "")), *(f"{key}={value}" for key, value in event.items())]
        text = f"{who}: {level}: {' '.join(words)}"
        if error is not None:
            text += f" {error!r}"
            self._world.loop.call_exception_handler({"message": text, "exception": error})
        self._world.trace.note(text)
        raise structlog.DropEvent


def simulate(seed: int, scenario: Scenario, numbers: Sequence[int] | None = None, show: bool = False) -> Result:
    """One run. numbers: of the faults that the seed brings, only these."""
    before = structlog.get_config()
    collecting = gc.isenabled()
    gc.disable()  # when it runs, and what it ends, must not depend on what ran before
    world = World(seed, scenario, show)
    structlog.configure(processors=[_Log(world)], wrapper_class=structlog.make_filtering_bound_logger(20))
    wrong: list[str] = []
    try:
        with contextlib.nullcontext() if scenario.direct is None else scenario.direct(world):
            world.loop.run(world.run(numbers), START_S + 3600.0, STEPS_MAX)
    except Stuck as error:
        wrong.append(str(error))
    except Exception:  # so that it is told with its seed, like any failure
        wrong.append(f"the simulation itself failed\n{traceback.format_exc()}")
    finally:
        world.loop.close()
        structlog.configure(**before)
        if collecting:
            gc.enable()
    wrong += world.loop.failures + world.complaints
    if hasattr(world, "book"):
        wrong += world.book.check()
    return Result(
        seed,
        scenario.name,
        wrong,
        world.numbers,
        world.faults,
        world.trace.digest,
        sum(host.finished for host in world.hosts),
        world.loop.time() - START_S,
        world.loop.steps,
        list(world.trace.kept),
    )

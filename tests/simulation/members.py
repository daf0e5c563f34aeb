"""A simulated member: its machine and disk, and the processes that run on it one after the other."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from san_target.group.errors import AdministrationError
from san_target.metadata.store import StoreError
from san_target.server.config import MemberConfig
from san_target.server.member import Member, StartError
from san_target.server.service import Service
from tests.simulation.disk import SimDisk
from tests.simulation.environment import SimEnvironment
from tests.simulation.loop import Process, State

if TYPE_CHECKING:
    from tests.simulation.world import World

T = TypeVar("T")

RESTART_S = (0.2, 2.0)
POLL_S = 0.05


class SimMember:
    """A member, and whoever starts it again when it has ended (as an init system does).

    serves: the product's member while it is up, else None. is_wanted: it is to run.
    """

    def __init__(self, world: World, number: int) -> None:
        self._world = world
        self._random = random.Random(f"{world.seed} member {number}")
        self.name = f"m{number}"
        self.machine = world.network.add(self.name)
        self.disk = SimDisk(world.loop, self._random, world.trace, self.name, world.scenario.disk_s)
        self.disk.busy = self._random.choice((0.0, 0.05, 0.3))
        self.drift = self._random.uniform(-world.scenario.drift, world.scenario.drift)
        self.serves: Member | None = None
        self.is_wanted = False
        self.portal = f"{self.machine.address}:3260"
        self._process: Process | None = None
        self._environment: SimEnvironment | None = None
        self._lives = 0

    # Life -------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin a life, if there is none."""
        self.is_wanted = True
        if self._process is not None or not self.machine.has_power:
            return
        self._lives += 1
        self._process = Process(f"{self.name}.{self._lives}")
        self._world.trace.note(f"{self._process.name}: starts")
        self._world.loop.spawn(self._process, self._live(self._process))

    async def _live(self, process: Process) -> None:
        world = self._world
        address = self.machine.address
        environment = self._environment = SimEnvironment(
            world.loop, self._random, self.machine, self.disk, world.store, self.drift
        )
        config = MemberConfig(
            name=self.name,
            directory="/pool",
            portals=(self.portal,),
            admin="127.0.0.1:3280",
            peer=f"{address}:3270",
            store="memory://",
            busy_poll_us=0,
        )
        member = Member(config, environment)
        try:
            await member.start()
        except StartError as error:
            world.trace.note(f"{process.name}: cannot start: {error}")
            self._ended()
            return
        world.trace.note(f"{process.name}: serves")
        self.serves = member

    def _ended(self) -> None:
        """The process is gone; its kernel cleans up, and the next one begins after a while."""
        process, self._process = self._process, None
        self.serves = None
        if process is not None:
            self._world.loop.kill_process(process)
            self.machine.process_ended(process)
        if self._environment is not None:
            self._environment.die()
            self._environment = None
        self.disk.directory.process_ended()
        self.disk.dies_at = -1
        if self.is_wanted and self.machine.has_power:
            self._world.loop.call_outside(self._random.uniform(*RESTART_S), self._start_again)

    def _start_again(self) -> None:
        if self.is_wanted:
            self.start()

    async def ask(self, request: Callable[[Service], Coroutine[Any, Any, T]]) -> T | None:
        """What an operator asks this member; None where it refuses, or dies meanwhile."""
        member, process = self.serves, self._process
        if member is None or process is None:
            return None
        asked = self._world.loop.spawn(process, request(Service(member)))
        while not asked.done() and self._process is process:
            await asyncio.sleep(POLL_S)
        if not asked.done():
            return None
        error = asked.exception()
        if isinstance(error, AdministrationError | StoreError):
            self._world.trace.note(f"{self.name}: refuses: {error}")
            return None
        return asked.result()

    # Faults -----------------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._world.trace.note(f"{self._process.name}: is killed")
            self._ended()

    def kill_at_step(self, steps: int, power: bool) -> None:
        """Die in the midst of a job on the disk, after so many steps of such jobs."""
        if self._process is not None:
            self.disk.dies_at = steps
            self.disk.on_death = self.lose_power if power else self.kill

    def lose_power(self) -> None:
        """What was not flushed may be lost."""
        if not self.machine.has_power:
            return
        self._world.trace.note(f"{self.name}: loses its power")
        if self._process is not None:
            self._world.loop.kill_process(self._process)
        self.machine.lose_power()
        self._ended()
        self.disk.directory.lose_power(self._random.choice)
        self.disk.has_failed = False
        self._world.crashed(self)

    def power_is_back(self) -> None:
        if not self.machine.has_power:
            self._world.trace.note(f"{self.name}: has power again")
            self._world.network.power_is_back(self.machine)
            if self.is_wanted:
                self.start()

    def pause(self) -> None:
        """SIGSTOP."""
        if self._process is not None:
            self._world.trace.note(f"{self._process.name}: is stopped")
            self._world.loop.stop_process(self._process)

    def resume(self) -> None:
        """SIGCONT."""
        if self._process is not None and self._process.state is State.STOPPED:
            self._world.trace.note(f"{self._process.name}: goes on")
            self._world.loop.continue_process(self._process)

    async def terminate(self) -> bool:
        """SIGTERM; False if it was not serving, or died meanwhile."""
        process, member = self._process, self.serves
        if process is None or member is None or process.state is not State.RUNNING:
            return False
        self._world.trace.note(f"{process.name}: is terminated")
        self.serves = None
        stopping = self._world.loop.spawn(process, member.stop())
        while not stopping.done() and self._process is process:
            await asyncio.sleep(POLL_S)
        if self._process is process:
            self._ended()
        return stopping.done()

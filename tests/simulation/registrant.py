"""A host of a cluster: it registers its key, and shuts others out by PREEMPT (SPC-4 5.13), as fence agents do.

All hosts use one reservation for registrants only, so whoever was preempted writes nothing until it registers again
(promise 4): every write that it sent before has happened by the time of the answer, or never will; every write that it
sends afterwards is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final

from initiator_sim import cdb
from initiator_sim import task as scsi
from initiator_sim.sense import Verdict, describe, judge
from initiator_sim.task import Task

if TYPE_CHECKING:
    from initiator_sim.disk_history import Command
    from initiator_sim.path import Path
    from tests.simulation.hosts import Host
    from tests.simulation.world import World

REGISTER_AND_IGNORE: Final = 6
RESERVE: Final = 1
PREEMPT: Final = 4
PREEMPT_AND_ABORT: Final = 5
WRITE_EXCLUSIVE_REGISTRANTS_ONLY: Final = 5
RETRY_S: Final = 0.3
TRIES_MAX: Final = 200


class Registrant:
    """fence: not 0 while this host writes nothing, as another one was told: it has not registered since then."""

    def __init__(self, world: World, host: Host) -> None:
        self._world = world
        self._host = host
        self._registering: asyncio.Task[None] | None = None
        self.key = host.number + 1
        self.fence = 0
        self._fences = 0
        self._is_registering = False
        self._limited: list[Command] = []

    def run(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Something that this host does."""
        return self._host.run(coroutine)

    async def begin(self) -> None:
        await self._register()
        path = self._host.paths[0]
        await self._until_it_ends(path, RESERVE, cdb.persistent_reserve_parameters(self.key))

    def was_preempted(self) -> None:
        """Somebody was told so. A registration that is under way may have come later, or not."""
        if self._is_registering:
            return
        self._fences += 1
        self.fence = self._fences
        self._limited += self._host.under_way()
        self._world.book.no_more(self._limited)

    def was_refused(self) -> None:
        """RESERVATION CONFLICT: it has lost its registration; it comes back as a node that was started again."""
        if self._registering is None or self._registering.done():
            self._registering = self._world.loop.create_task(self._come_back())

    async def _come_back(self) -> None:
        await asyncio.sleep(self._host.chance.uniform(0.3, 2.0))
        await self._register()

    async def _register(self) -> None:
        """By each path, since each is a nexus of its own."""
        self.fence = 0
        self._is_registering = True
        # What still waits for its data is judged when it has it, which may be after this.
        self._world.book.may_be_later(self._limited)
        self._limited.clear()
        parameters = cdb.persistent_reserve_parameters(0, self.key, aptpl=True)
        for path in self._host.paths:
            await self._until_it_ends(path, REGISTER_AND_IGNORE, parameters)
        self._is_registering = False

    async def preempt(self, other: Registrant, abort: bool) -> None:
        """Shut another host out. Nothing is known, and nothing claimed, unless the answer is GOOD."""
        action = PREEMPT_AND_ABORT if abort else PREEMPT
        parameters = cdb.persistent_reserve_parameters(self.key, other.key)
        self._world.trace.note(f"{self._host.name}: preempts {other._host.name}")
        sent = await self._send(self._host.paths[0], action, parameters)
        if sent.good:
            self._world.trace.note(f"{self._host.name}: has preempted {other._host.name}")
            other.was_preempted()
        elif sent.status == scsi.RESERVATION_CONFLICT:
            self.was_refused()

    async def _until_it_ends(self, path: Path, action: int, parameters: bytes) -> None:
        """Try until it is done, or refused for good."""
        for _ in range(TRIES_MAX):
            sent = await self._send(path, action, parameters)
            if sent.good or sent.status == scsi.RESERVATION_CONFLICT or self._host.is_stopping:
                return
            await asyncio.sleep(0.0 if judge(sent) is Verdict.RETRY else RETRY_S)

    async def _send(self, path: Path, action: int, parameters: bytes) -> Task:
        ended = self._world.loop.create_future()
        code = cdb.persistent_reserve_out(action, WRITE_EXCLUSIVE_REGISTRANTS_ONLY)
        task = Task(code, lambda task: ended.done() or ended.set_result(None), write_data=parameters)
        task.context = self
        path.submit(task)
        await ended
        self._world.trace.note(f"{self._host.name}: reservation action {action}: {describe(task)}")
        return task

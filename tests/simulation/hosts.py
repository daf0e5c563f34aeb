"""Simulated initiator machines: a disk each, through one path or two, and users that write to it.

The initiator is initiator_sim's own, with a personality, over simulated sockets: it logs in again after a loss, issues
again what had no answer, escalates from ABORT TASK to a new login. A command that is sent again carries another value,
so that it is seen which of the two took effect, and when.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final

from initiator_sim import cdb
from initiator_sim import task as scsi
from initiator_sim.history import INITIAL, Value
from initiator_sim.login import LoginError
from initiator_sim.multipath import Multipath
from initiator_sim.nexus import Event, Kind, Nexus
from initiator_sim.path import Path
from initiator_sim.reactor import Connection, Handler, Reactor
from initiator_sim.sense import MISCOMPARE, NOT_READY, UNIT_ATTENTION, Sense, Verdict, describe, judge
from initiator_sim.task import Failure, Task
from san_target.wire import opcodes
from tests.simulation.loop import Process
from tests.simulation.registrant import Registrant
from tests.simulation.sockets import SimSocket

if TYPE_CHECKING:
    from initiator_sim.disk_history import Command
    from initiator_sim.personalities import Personality
    from tests.simulation.network import Machine, Network
    from tests.simulation.world import World

# Not BUSY: a member says so too where it cannot learn what became of a command at its owner.
_NOT_EXECUTED: Final = frozenset({scsi.TASK_SET_FULL, scsi.RESERVATION_CONFLICT})
RETRY_S: Final = 0.2
NOT_WRITING: Final = frozenset({"read", "read atomic", "learn", "flush"})
REPLACEMENT_S: Final = 5.0
"""The least replacement_timeout that the documentation allows."""
WRITE_ATOMIC_16: Final = 0x9C


class SimReactor(Reactor):
    """Connections from one machine. open-iscsi closes its sockets with SO_LINGER 0, so that nothing stale gets out."""

    def __init__(self, network: Network, machine: Machine, random: random.Random) -> None:
        super().__init__()
        self._network = network
        self._machine = machine
        self.chance = random

    def now(self) -> float:
        return self._network.loop.time()

    def random_bytes(self, count: int) -> bytes:
        return self.chance.randbytes(count)

    async def open(self, host: str, port: int, handler: Handler, timeout_s: float) -> Connection:
        async with asyncio.timeout(timeout_s):
            end = await self._network.connect(self._machine, host, port)
        end.lingers_not = True
        sock: object = SimSocket(end)
        return Connection(self, sock, handler)  # type: ignore[arg-type]


class Work:
    """What one user of a host does now. kind: a key of `KINDS`; commands: of the attempt under way.

    earlier: of attempts without an answer: over when this one is answered.
    """

    def __init__(self, host: Host, number: int) -> None:
        self.host = host
        self.number = number
        self.kind = ""
        self.lba = 0
        self.blocks = 0
        self.fua = False
        self.command: Command
        self.expected = b""
        self.earlier: list[Command] = []
        self.reissued = False
        self.fence = 0  # of its host, when the attempt was sent
        self.rests = True
        self.task: Task | None = None


class Host:
    """A machine with one disk. finished: works that ended; the run waits for all of them at its end."""

    def __init__(self, world: World, number: int, personality: Personality, portals: list[str], iqn: str) -> None:
        self.name = f"h{number}"
        self.number = number
        self.personality = personality
        self.finished = 0
        self.paths: list[Path] = []
        self._world = world
        self._book = world.book
        self._plan = world.plan
        self.chance = random.Random(f"{world.seed} host {number}")
        self._network_random = random.Random(f"{world.seed} network of host {number}")
        self.machine = world.network.add(self.name)
        self._portals = portals
        self._iqn = iqn
        self._process = Process(self.name)
        self._sequence = 0
        self._known: dict[int, bytes] = {}  # content of the blocks for COMPARE AND WRITE, as last seen
        self._works: list[Work] = []
        self.is_stopping = False
        self._resting: list[Work] = []
        self._ready: list[Work] = []
        self._lost: dict[Path, list[Command]] = {}
        self._disk: Multipath
        self.registrant = Registrant(world, self) if world.scenario.reservations else None

    # Life -------------------------------------------------------------------------------------------------------------

    def start(self) -> asyncio.Task[None]:
        return self._world.loop.spawn(self._process, self._begin())

    def run(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Something that a program on this machine does."""
        return self._world.loop.spawn(self._process, coroutine)

    @property
    def is_up(self) -> bool:
        """Has it begun to work?"""
        return bool(self._works)

    async def _begin(self) -> None:
        """Log in, however long it takes, and begin to work."""
        reactor = SimReactor(self._world.network, self.machine, self._network_random)
        name = f"{self.personality.initiator_name}-{self.number}"
        for portal in self._portals:
            isid = b"\x80" + self._network_random.randbytes(5)
            nexus = Nexus(portal, self._iqn, name, isid, keys=self._world.plan.keys(self.personality, self.chance))
            path = Path(reactor, self.personality, nexus)
            path.on_reissue = lambda task, path=path: self._reissued(path, task)
            path.on_event = self._event
            self._lost[path] = []
            self.paths.append(path)
        self._disk = Multipath(self.paths)
        if len(self.paths) > 1:
            for path in self.paths:
                path.on_down = self._fail_over
        await asyncio.gather(*map(self._connect, self.paths))
        if self.registrant is not None:
            await self.registrant.begin()
        for number in range(self._plan.depth):
            work = Work(self, number)
            self._works.append(work)
            self._next(work)

    async def _connect(self, path: Path) -> None:
        while True:
            try:
                await path.connect()
                return
            except (LoginError, OSError) as error:
                if isinstance(error, LoginError) and error.final:
                    self._book.complain(f"{self.name}: {error}")
                self._world.trace.note(f"{self.name}: cannot connect: {error}")
                await asyncio.sleep(RETRY_S)

    def _event(self, path: Path, event: Event) -> None:
        self._world.trace.note(f"{self.name}: {event.kind.value} {event.address} {event.text}")
        if event.kind in (Kind.UP, Kind.BACK, Kind.MOVED):
            lost, self._lost[path] = self._lost[path], []
            if not self.personality.new_isid_each_login:
                # The same port: the old session has ended, with all its tasks (RFC 7143 6.3.5).
                self._book.no_more(lost)
        elif event.kind in (Kind.FAILED, Kind.VIOLATION):
            self._book.complain(f"{self.name}: {event.kind.value}: {event.text}")

    def stop(self) -> None:
        """Begin nothing more."""
        self.is_stopping = True
        self._resting += self._ready
        self._ready.clear()

    @property
    def is_idle(self) -> bool:
        return self.is_stopping and len(self._resting) == len(self._works) == self._plan.depth

    def unfinished(self) -> list[str]:
        return [
            f"{self.name}: {work.kind} of {work.blocks} blocks at LBA {work.lba}"
            for work in self._works
            if work not in self._resting
        ] or [f"{self.name}: not logged in"]

    def look(self, ranges: list[tuple[int, int]]) -> None:
        """Read these (LBA, blocks), once all is quiet."""
        self._resting.clear()
        self._works = self._works[:1]
        self._to_look_at = list(reversed(ranges))
        self._next(self._works[0])

    _to_look_at: list[tuple[int, int]] | None = None

    @property
    def has_looked(self) -> bool:
        return self._to_look_at is not None and not self._to_look_at and len(self._resting) == 1

    # Work -------------------------------------------------------------------------------------------------------------

    def _next(self, work: Work) -> None:
        if self._to_look_at is not None:
            if not self._to_look_at:
                self._resting.append(work)
                return
            work.kind = "read"
            work.lba, work.blocks = self._to_look_at.pop()
        elif self.is_stopping:
            self._resting.append(work)
            return
        else:
            self._plan.choose(work, self.chance, self._book)
        work.reissued = False
        work.earlier.clear()
        self._submit(work)

    def _rest(self, work: Work) -> None:
        """Before the next command, where users think, or wait for all others."""
        if self._plan.bursts and not self.is_stopping:
            self._ready.append(work)
            if len(self._ready) == self._plan.depth:
                together, self._ready = self._ready, []
                pause_s = self.chance.expovariate(1 / self._plan.think_s) if self._plan.think_s else 0.0
                self._world.loop.call_later(pause_s, self._burst, together)
        elif self._plan.think_s and not self.is_stopping:
            self._world.loop.call_later(self.chance.expovariate(1 / self._plan.think_s), self._next, work)
        else:
            self._next(work)

    def _burst(self, works: list[Work]) -> None:
        for work in works:
            self._next(work)

    def under_way(self) -> list[Command]:
        """Writes that were sent, with and without an answer that is still to come."""
        return [command for work in self._works if not work.rests for command in (*work.earlier, work.command)]

    def _submit(self, work: Work) -> None:
        work.rests = False
        work.fence = 0 if self.registrant is None else self.registrant.fence
        task = work.task = self._make(work)
        self._disk.submit(task)

    def _value(self) -> Value:
        self._sequence += 1
        return self.number + 1, self._sequence

    def _stamped(self, lba: int, blocks: int, value: Value) -> bytearray:
        buffer = bytearray(blocks * self._book.block_size)
        self._book.stamper.write_into(buffer, lba, *value)
        return buffer

    def _make(self, work: Work) -> Task:
        """The task of an attempt, and its entry in the book."""
        book, lba, blocks = self._book, work.lba, work.blocks
        if work.kind == "compare" and not work.reissued:
            if lba in self._known:
                work.expected = self._known[lba]
            else:
                work.kind = "learn"
        if work.kind in ("read", "read atomic", "learn"):
            work.command = book.read(lba, blocks)
            return self._task(work, cdb.read16(lba, blocks), read_bytes=blocks * book.block_size)
        if work.kind == "flush":
            work.command = book.flush()
            return self._task(work, cdb.synchronize_cache())
        value = self._value()
        if work.kind == "unmap":
            work.command = book.unmap(lba, blocks, value)
            parameters = cdb.unmap_parameters((lba, blocks))
            return self._task(work, cdb.unmap(len(parameters)), parameters)
        work.command = book.write(lba, blocks, value, work.fua)
        data = self._stamped(lba, blocks, value)
        if work.kind == "compare":
            return self._task(work, cdb.compare_and_write(lba, 1), work.expected + data)
        if work.kind == "write atomic":
            code = bytes((WRITE_ATOMIC_16, 0)) + lba.to_bytes(8, "big") + bytes((0, 0)) + blocks.to_bytes(2, "big")
            return self._task(work, code, data)
        return self._task(work, cdb.write16(lba, blocks, work.fua), data)

    def _task(self, work: Work, code: bytes, data: bytes | bytearray | None = None, read_bytes: int = 0) -> Task:
        task = Task(code, self._done, read_bytes=read_bytes, write_data=data)
        task.context = work
        return task

    def _reissued(self, path: Path, task: Task) -> None:
        """The connection was lost, and the same task is about to be sent again, with another value."""
        work = task.context
        if not isinstance(work, Work):
            return
        self._world.trace.note(f"{self.name}: {work.kind} at LBA {work.lba} is sent again")
        self._attempt_lost(path, work)
        fresh = self._make(work)
        task.cdb, task.write_data = fresh.cdb, fresh.write_data

    def _fail_over(self, path: Path, tasks: list[Task]) -> None:
        """As open-iscsi does: commands wait for replacement_timeout, then dm-multipath sends them another way."""
        for task in tasks:
            self._world.loop.call_later(REPLACEMENT_S, self._disk.submit, task)

    def _attempt_lost(self, path: Path | None, work: Work) -> None:
        work.reissued = True
        if work.kind not in NOT_WRITING:
            work.earlier.append(work.command)
            if path is not None:
                self._lost[path].append(work.command)
            if work.kind == "unmap":
                self._book.taint(work.lba, work.blocks)

    # Ends -------------------------------------------------------------------------------------------------------------

    def _done(self, task: Task) -> None:
        work = task.context
        assert isinstance(work, Work)
        book = self._book
        work.rests = True
        note = f"{self.name}.{work.number}: {work.kind} {work.lba}+{work.blocks}"
        if task.good:
            text = self._good(work, task)
            self._world.trace.note(f"{note} {work.command.value[1]} GOOD {text}")
            self.finished += 1
            self._rest(work)
            return
        self._world.trace.note(f"{note} {work.command.value[1]}: {describe(task)}")
        verdict = judge(task)
        sense = Sense.parse(task.sense)
        if work.kind == "compare" and sense is not None and sense.key == MISCOMPARE:
            book.refused(work.command)
            book.no_more(work.earlier)
            self._known.pop(work.lba, None)
            self._next(work)
            return
        if _not_executed(task):
            # Of a write with several owners a part may have been done when it was judged again and found wanting.
            if self._world.may_be_split(work.blocks):
                book.ended(work.command)
            else:
                book.refused(work.command)
            if task.status == scsi.RESERVATION_CONFLICT and self.registrant is not None:
                self.registrant.was_refused()
                self._again(work, RETRY_S)
                return
        elif task.failure in (None, Failure.ABORTED, Failure.REJECTED):
            book.ended(work.command)
            book.no_more(work.earlier)
            self._attempt_lost(None, work)
        else:
            self._attempt_lost(None, work)
        if task.failure is not None and task.failure is not Failure.ABORTED:
            book.complain(f"{note}: {describe(task)}")
            self._next(work)
        elif verdict is Verdict.FAIL and task.failure is None:
            if not self._world.is_excused(sense):
                book.complain(f"{note}: an I/O error: {describe(task)}")
            self._again(work, RETRY_S)
        else:
            self._again(work, RETRY_S if verdict is Verdict.RETRY_LATER else 0.0)

    def _again(self, work: Work, after_s: float) -> None:
        self._world.loop.call_later(after_s, self._submit, work)

    def _good(self, work: Work, task: Task) -> str:
        book = self._book
        book.no_more(work.earlier)
        fence = 0 if self.registrant is None else self.registrant.fence
        if fence and work.fence == fence and work.kind not in NOT_WRITING:
            book.complain(f"{self.name}: a {work.kind} of a fenced host at LBA {work.lba} was answered with GOOD")
        if work.kind in ("read", "read atomic", "learn"):
            data = memoryview(task.data)
            values = book.found(work.command, data, work.kind == "read atomic")
            if work.kind == "learn":
                self._known[work.lba] = bytes(data)
            return _short(values)
        book.good(work.command)
        if work.kind == "compare":
            old, _ = book.stamper.identify(work.expected, work.lba)
            book.replaced(work.command, INITIAL if old is None else old)
            self._known[work.lba] = bytes(self._stamped(work.lba, 1, work.command.value))
        return ""

    # Task management --------------------------------------------------------------------------------------------------

    def abort_something(self, reset: bool) -> None:
        """ABORT TASK of a command under way, or LOGICAL UNIT RESET: nothing of it happens after the answer."""
        for path in self.paths:
            session = path.session
            if session is not None and session.tasks and not session.logging_out:
                task = self.chance.choice(list(session.tasks.values()))
                function = opcodes.LOGICAL_UNIT_RESET if reset else opcodes.ABORT_TASK
                session.task_management(function, lambda header, _: self._aborted(header.response), task.lun, task)
                path.plan_flush()
                return

    def _aborted(self, response: int) -> None:
        self._world.trace.note(f"{self.name}: task management answered {response}")


def _short(values: list[Value] | None) -> str:
    if values is None:
        return "?"
    return " ".join(f"{writer}.{sequence}" for writer, sequence in dict.fromkeys(values))


def _not_executed(task: Task) -> bool:
    """The status says that the command was not begun (SAM-5 5.3.1, 5.14)."""
    if task.status in _NOT_EXECUTED:
        return True
    sense = Sense.parse(task.sense) if task.status == scsi.CHECK_CONDITION else None
    return sense is not None and sense.key in (UNIT_ATTENTION, NOT_READY)

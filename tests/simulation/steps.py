"""Migrations that are disturbed after each single step of their state machine.

The steps are read from the product's own table (`group.migration`), so that none can be forgotten: a point is an
instruction of the step that follows a phase and an event in it. The way there is the shortest through the table, each
event on it is brought about on purpose, and right after the instruction something breaks: a member (the source, the
destination, or the one that was asked for the migration), or the connections between source and destination.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple
from unittest import mock

from san_target.admin.service import MigrationRequest
from san_target.group.migration import FIRST, TABLE, Do, Event, Phase, Step
from san_target.group.piece_mover import CONFLICTS_MAX, PieceMover, StepFailed
from san_target.metadata.store import Put
from tests.simulation.faults import VOLUME
from tests.simulation.members import SimMember
from tests.simulation.plan import Load
from tests.simulation.store import Fate
from tests.simulation.world import Scenario, World

VICTIMS: Final = ("source", "destination", "asked")
DISTURBANCES: Final = (
    *(f"{kind} {victim}" for kind in ("kill", "power") for victim in VICTIMS),
    "links",
    "cut",
    "full destination",
)
"""A member dies, or loses its power; the links between source and destination are reset, or nothing gets through
between them for a while; the destination's disk is full for a while."""
BEGINS_S: Final = 0.15
BACK_S: Final = 0.5
LATE_S: Final = 0.3
CUT_S: Final = 0.4
LONG_S: Final = 4.0
WITHIN_S: Final = 5.0
AFTER_S: Final = 0.6
LIGHT: Final = Load(
    pace=((2, 0.005), (4, 0.02)),
    blocks_max=(1, 8),
    bursts=0.0,
    zone=(24, 100),
    weights={"read": 30, "write": 50, "flush": 8, "unmap": 4, "compare": 4},
)
BUSY: Final = Load(
    pace=((4, 0.0), (8, 0.002)),
    blocks_max=(1, 4),
    bursts=0.0,
    zone=(24, 100),
    fua=0.0,
    weights={"read": 35, "write": 55, "flush": 3, "unmap": 8},
)
WIDE: Final = replace(BUSY, blocks_max=(4, 8), zone=(1000,), weights={"read": 20, "write": 70, "flush": 3, "unmap": 10})
SCENARIO: Final = Scenario("steps", members=3, hosts=(1, 2), duration_s=0.5, faults=(0, 0), load=LIGHT)

Row = tuple[Phase, Event]


class Point(NamedTuple):
    """After `instruction`, the number `index` of the step that follows `row`; None: of the first step."""

    row: Row | None
    index: int
    instruction: Do

    def __str__(self) -> str:
        way = "begin" if self.row is None else f"{self.row[0].name}-{self.row[1].name}"
        return f"{way}-{self.instruction.name}".lower().replace("_", "-")


def rows() -> list[Row]:
    return [(phase, event) for phase, events in TABLE.items() for event in events]


def points() -> list[Point]:
    """Every instruction of every step that there is."""
    steps: list[tuple[Row | None, Step]] = [(None, FIRST), *((row, TABLE[row[0]][row[1]]) for row in rows())]
    return [
        Point(row, index, instruction) for row, step in steps for index, instruction in enumerate(step.instructions)
    ]


def way_to(phase: Phase) -> list[Row]:
    """The shortest way from the beginning to a phase."""
    ways: dict[Phase, list[Row]] = {FIRST.phase: []}
    waiting = deque([FIRST.phase])
    while waiting and phase not in ways:
        known = waiting.popleft()
        for event, step in TABLE[known].items():
            if step.phase not in ways:
                ways[step.phase] = [*ways[known], (known, event)]
                waiting.append(step.phase)
    return ways[phase]


# --- how each event is brought about ----------------------------------------------------------------------------------


@dataclass
class Run:
    """roles: who is what. fired: the disturbance has happened. chance: of several ways in which something may go
    wrong."""

    world: World
    point: Point
    disturbance: str
    chance: random.Random
    roles: dict[str, SimMember] = field(default_factory=dict)
    fired: int = 0
    fails_late: bool = False
    late_s: float = LATE_S

    @property
    def source(self) -> SimMember:
        return self.roles["source"]

    def fate(self, fate: Fate | None) -> None:
        """What becomes of the source's calls of the store from now on."""
        self.world.store.set_fate(self.source.machine, fate, self.late_s)

    def touch(self) -> None:
        """Somebody else writes something that commits compare."""
        data = self.world.store.data
        item = data.get(self._volumes()[0])
        if item is None:
            raise AssertionError("the volume is gone")
        data.transact([], [Put(item.key, item.value)])

    def _volumes(self) -> list[str]:
        return [item.key for item in self.world.store.data.range("volumes/").items]


Provoke = Callable[[Run, PieceMover, Do, bool], Coroutine[Any, Any, None]]
"""Called before and after (the last argument says which) each instruction of the phase."""


async def _nothing(_run: Run, _mover: PieceMover, _do: Do, _after: bool) -> None:
    """It comes by itself."""


async def _fail(run: Run, mover: PieceMover, do: Do, after: bool) -> None:
    """The last instruction goes wrong, before it was carried out or after that."""
    if do is _last(mover.phase) and after is run.fails_late:
        raise StepFailed("it went wrong on purpose")


async def _conflict(run: Run, _mover: PieceMover, do: Do, after: bool) -> None:
    if do is Do.COMMIT and not after:
        run.touch()


async def _last_conflict(run: Run, mover: PieceMover, do: Do, after: bool) -> None:
    mover._conflicts = CONFLICTS_MAX - 1
    await _conflict(run, mover, do, after)


async def _no_answer(run: Run, _mover: PieceMover, do: Do, after: bool) -> None:
    """The commit is lost on the way, or comes late, or its answer is lost, as the next event needs it."""
    if do is not Do.COMMIT or after:
        return
    wanted = run.point.row[1] if run.point.row is not None and run.point.row[0] is Phase.IN_DOUBT else None
    if wanted is Event.CONFLICT:
        run.fate(Fate.LATE)
    elif wanted is Event.REFUSED:
        run.fate(run.chance.choice((Fate.LATE, Fate.LOST)))
    elif wanted is Event.COMMITTED:
        run.fate(run.chance.choice((Fate.UNHEARD, Fate.DEAF)))
    else:
        run.fate(run.chance.choice((Fate.UNHEARD, Fate.DEAF, Fate.LOST)))


async def _store_is_back(run: Run, _mover: PieceMover, do: Do, after: bool) -> None:
    """What is late by now comes later still: it must not count any more."""
    if do is Do.RESOLVE and not after:
        run.fate(None)


async def _late_conflict(run: Run, mover: PieceMover, do: Do, after: bool) -> None:
    """The commit arrives after all, but something was changed meanwhile."""
    if do is Do.RESOLVE and not after and mover._commit is not None:
        run.touch()
        run.fate(None)
        await asyncio.wait([mover._commit])


async def _store_stays_away(run: Run, _mover: PieceMover, do: Do, after: bool) -> None:
    if do is Do.RESOLVE:
        run.fate(None if after else Fate.LOST)


PROVOKE: Final[dict[Row, Provoke]] = {
    **{row: _fail for row in rows() if row[1] is Event.FAILED},
    **{row: _nothing for row in rows() if row[1] is Event.STOPPED},  # the operator's wish comes before the phase
    **{row: _nothing for row in rows() if row[1] is Event.DONE},
    (Phase.COMMITTING, Event.COMMITTED): _nothing,
    (Phase.COMMITTING, Event.REFUSED): _last_conflict,
    (Phase.COMMITTING, Event.CONFLICT): _conflict,
    (Phase.COMMITTING, Event.UNANSWERED): _no_answer,
    (Phase.IN_DOUBT, Event.COMMITTED): _store_is_back,
    (Phase.IN_DOUBT, Event.REFUSED): _store_is_back,
    (Phase.IN_DOUBT, Event.CONFLICT): _late_conflict,
    (Phase.IN_DOUBT, Event.UNANSWERED): _store_stays_away,
}
"""All rows of the product's table; a test says so."""


def _steps_of(phase: Phase) -> tuple[Do, ...]:
    """The instructions by which the phase is reached first."""
    way = way_to(phase)
    return FIRST.instructions if not way else TABLE[way[-1][0]][way[-1][1]].instructions


def _last(phase: Phase) -> Do:
    return _steps_of(phase)[-1]


# --- one run ----------------------------------------------------------------------------------------------------------


class _Watch:
    """Follows each mover along the way to the point."""

    def __init__(self, run: Run) -> None:
        self._run = run
        point = run.point
        self._way = [] if point.row is None else [*way_to(point.row[0]), point.row]

    @contextlib.contextmanager
    def patched(self) -> Iterator[None]:
        carry_out = PieceMover._carry_out
        initialize = PieceMover.__init__
        done: dict[PieceMover, list[Event]] = {}  # of each attempt that is still on the way

        async def watched(mover: PieceMover, instructions: Any) -> Event:
            on_the_way = done.setdefault(mover, [])
            expected = self._way[len(on_the_way)] if len(on_the_way) < len(self._way) else None
            if expected == (mover.phase, Event.STOPPED) and not self._run.fired:
                mover._journal.is_stopped = True
            event = await carry_out(mover, instructions)
            on_the_way.append(event)
            if expected != (mover.phase, event):
                on_the_way += [event] * len(self._way)  # it went another way
            return event

        def initialized(mover: PieceMover, *arguments: Any) -> None:
            initialize(mover, *arguments)
            for instruction, method in list(mover._doing.items()):
                mover._doing[instruction] = self._around(mover, instruction, method, done)

        with (
            mock.patch.object(PieceMover, "_carry_out", watched),
            mock.patch.object(PieceMover, "__init__", initialized),
        ):
            yield

    def _around(
        self, mover: PieceMover, instruction: Do, method: Any, done: dict[PieceMover, list[Event]]
    ) -> Callable[[], Coroutine[Any, Any, Event | None]]:
        run, way = self._run, self._way

        async def carried_out() -> Event | None:
            number = len(done[mover])
            provoke = PROVOKE[way[number]] if number < len(way) and way[number][0] is mover.phase else _nothing
            is_active = not run.fired and run.roles
            if is_active:
                await provoke(run, mover, instruction, False)
            event: Event | None = await method()
            if is_active:
                await provoke(run, mover, instruction, True)
                if number == len(way) and instruction is run.point.instruction:
                    await _disturb(run)
            return event

        return carried_out


async def _disturb(run: Run) -> None:
    """Break something, in the midst of the source's migration."""
    run.fired += 1
    world = run.world
    world.trace.note(f"FAULT after {run.point}: {run.disturbance}")
    if run.point.instruction not in (Do.COMMIT, Do.UNLOCK) or run.point.row == (Phase.IN_DOUBT, Event.UNANSWERED):
        run.fate(None)
    else:
        world.loop.call_outside(BACK_S, run.fate, None)
    kind, _, victim = run.disturbance.partition(" ")
    if kind in BESIDE:  # of no process, so that it outlives any
        world.loop.outside.run(world.loop.create_task, BESIDE[kind](run))
        await asyncio.sleep(0)
        return
    member = run.roles[victim]
    world.loop.call_outside(0.0, member.kill if kind == "kill" else member.lose_power)
    if kind == "power":
        world.loop.call_outside(BACK_S, member.power_is_back)
    if victim == "source":
        await world.loop.create_future()  # it does nothing more
    await asyncio.sleep(0)


async def _reset_links(run: Run) -> None:
    source, destination = run.source.machine, run.roles["destination"].machine
    for end in [end for end in source.ends if end.peer_machine is destination]:
        end.break_off()


async def _cut(run: Run) -> None:
    names = [run.source.name, run.roles["destination"].name]
    for one, other in (names, names[::-1]):
        run.world.network.cut(one, other)
    await asyncio.sleep(run.chance.choice((CUT_S, LONG_S)))
    for one, other in (names, names[::-1]):
        run.world.network.heal(one, other)


async def _fill(run: Run) -> None:
    disk = run.roles["destination"].disk
    run.world.excuse_full_disks(True)
    disk.fill()
    await asyncio.sleep(run.chance.choice((0.005, 0.01, CUT_S)))
    disk.have_space()
    run.world.excuse_full_disks(False)


BESIDE: Final = {"links": _reset_links, "cut": _cut, "full": _fill}


async def _migrate(run: Run) -> None:
    """The member that takes no part is asked to move the first share of the volume."""
    world = run.world
    while not world.hosts:
        await asyncio.sleep(BEGINS_S)
    await asyncio.sleep(BEGINS_S)
    start, end, owner = world.placements()[0]
    others = [each for each in world.members if each.name != owner]
    roles = {"source": next(each for each in world.members if each.name == owner)}
    roles |= dict(zip(("destination", "asked"), others, strict=True))
    run.roles.update(roles)
    request = MigrationRequest(volume=VOLUME, to=roles["destination"].name, start_lba=start, end_lba=end)
    await roles["asked"].ask(lambda service: service.start_migrations(request))
    end_s = world.loop.time() + WITHIN_S
    while not run.fired and world.loop.time() < end_s:
        await asyncio.sleep(BEGINS_S)
    await asyncio.sleep(AFTER_S)


@dataclass(frozen=True)
class Disturbed:
    """What makes a run of it: `Scenario.direct`. late_s: how long after the store's return what was late arrives."""

    point: Point
    disturbance: str
    late_s: float = LATE_S

    @contextlib.contextmanager
    def __call__(self, world: World) -> Iterator[None]:
        chance = random.Random(f"{world.seed} step")
        run = Run(world, self.point, self.disturbance, chance, fails_late=chance.random() < 0.5, late_s=self.late_s)
        world.beside.append(_migrate(run))
        with _Watch(run).patched():
            yield
        # What is late for a moment only may come before anybody asks for it: then this goes another way.
        if run.fired != 1 and (run.fired or self.late_s >= LATE_S):
            world.complaints.append(f"it was disturbed {run.fired} times {self.point}")


def name_of(point: Point, disturbance: str) -> str:
    return f"step/{point}/{disturbance.replace(' ', '-')}"


STEPS: Final[dict[str, Scenario]] = {
    name: replace(SCENARIO, name=name, direct=Disturbed(point, disturbance))
    for point in points()
    for disturbance in DISTURBANCES
    for name in [name_of(point, disturbance)]
}
"""Each point with each disturbance."""

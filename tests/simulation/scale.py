"""Groups of 3 to 5,000 members and up to 100,000 connections, in a model: how well is the load spread over time?

    python -m tests.simulation.scale [--members 1000] [--connections 20000] [--seconds 240] [--pattern shifting]
    python -m tests.simulation.scale --pictures docs/images        (needs the extra `plot`)
    python -m tests.simulation.scale --planning --members 1000 --connections 20000

The product's own planners decide here, by load reports as members make them (rates smoothed, some seconds old). What
becomes of a decision is worked out by the model of `group.efficiency` from the rates as they are at that moment. Beside
them, on the same trace: round robin, least connections, the power of two choices, and a balancer that acts above a
threshold. The same seed gives the same run.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import exp
from pathlib import Path

from san_target.group.connection_balancer import plan_moves
from san_target.group.data_balancer import plan_migrations
from san_target.group.decisions import RULES, Kind, View, chosen
from san_target.group.efficiency import Flow, Model, RangeFlow, Station, model_of
from san_target.group.load import DETAILS_MAX, SMOOTHED_S
from san_target.group.login_balancer import Expected, order
from san_target.peer.load_report import MemberLoad, SessionLoad

STEP_S = 4.0
"""One action and three fresh reports."""
BUSY_MEAN = 0.13
"""Share of their time that members would be busy, if everything were local and evenly spread."""
BYTES_EACH = 8192.0
GIB = 1 << 30
COPY_BYTES_PER_S = 200e6
PATTERNS = ("steady", "shifting", "bursty", "newcomers")


@dataclass(slots=True)
class Connection:
    """A session of the trace. owners: where its volume lies, by share; rates: base, and when it is hot or at rest."""

    number: int
    volume: str
    owners: dict[str, float]
    base_iops: float
    hot_in: int
    phase_s: float
    member: str = ""
    since_s: float = 0.0
    iops: float = 0.0
    seen_iops: float = 0.0


@dataclass(slots=True)
class Trace:
    """What is asked for, whatever the balancer does."""

    members: list[str]
    connections: list[Connection]
    pattern: str

    def iops(self, one: Connection, at_s: float) -> float:
        if self.pattern == "shifting":
            # Every two minutes another fifth of all connections does three times as much, and the others half.
            return one.base_iops * (3.0 if int(at_s // 120) % 5 == one.hot_in else 0.5)
        if self.pattern == "bursty":
            # Ten seconds of work in twenty, everybody at another time.
            return one.base_iops * (1.7 if (at_s + one.phase_s) % 20.0 < 10.0 else 0.3)
        return one.base_iops


def make_trace(members: int, connections: int, pattern: str, seed: int) -> Trace:
    """Rates are skewed (a few connections do most); each volume lies mostly on one member, whichever."""
    dice = random.Random(seed)
    names = [f"m{number:04}" for number in range(members)]
    raw = [min(30.0, dice.paretovariate(1.3)) for _ in range(connections)]
    costs = Model().costs
    each_s = costs.ingress_s + BYTES_EACH * costs.ingress_byte_s
    scale = BUSY_MEAN * members / each_s / sum(raw)
    highest = 0.12 / each_s  # one connection never fills a member
    made = []
    for number, weight in enumerate(raw):
        home, other = dice.choice(names), dice.choice(names)
        share = dice.choice((1.0, 0.8, 0.5))
        owners = {home: share} if share == 1.0 or other == home else {home: share, other: 1.0 - share}
        if sum(owners.values()) < 1.0:
            owners = {home: 1.0}
        made.append(
            Connection(
                number, f"v{number}", owners, min(highest, weight * scale), dice.randrange(5), dice.random() * 20.0
            )
        )
    return Trace(names, made, pattern)


@dataclass
class World:
    """The group at one moment."""

    trace: Trace
    dice: random.Random
    now_s: float = 0.0
    moves: int = 0
    migrations: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    seen: Model = field(default_factory=Model)
    stays: dict[tuple[str, int, int], float] = field(default_factory=dict)
    copying: list[tuple[float, Connection, str, str]] = field(default_factory=list)
    moved: dict[str, float] = field(default_factory=dict)
    migrated: dict[str, float] = field(default_factory=dict)
    following: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.counts = dict.fromkeys(self.trace.members, 0)

    def place(self, one: Connection, member: str) -> None:
        if one.member:
            self.counts[one.member] -= 1
            self.moves += 1
        one.member, one.since_s = member, self.now_s
        self.counts[member] += 1

    def model(self) -> Model:
        """The truth: by the rates of this moment."""
        model = Model(stations={name: Station() for name in self.trace.members})
        for one in self.trace.connections:
            if one.member:
                model.add(Flow(one.member, one.iops, BYTES_EACH, one.owners))
        return model

    def loads(self) -> dict[str, MemberLoad]:
        """What the members tell: rates as they were seen over the last seconds, of their busiest sessions."""
        sessions: dict[str, list[SessionLoad]] = {name: [] for name in self.trace.members}
        for one in self.trace.connections:
            if one.member:
                sessions[one.member].append(
                    SessionLoad(
                        str(one.number),
                        one.volume,
                        one.volume,
                        f"i{one.number}",
                        "",
                        self.now_s - one.since_s,
                        one.seen_iops,
                        one.seen_iops * BYTES_EACH,
                        1.0,
                        0.7,
                        0.2,
                        one.owners,
                    )
                )
        return {
            name: MemberLoad(
                name,
                1,
                1,
                len(found),
                pool_capacity_bytes=10_000 * GIB,
                pool_free_bytes=5_000 * GIB,
                details=tuple(sorted(found, key=lambda row: -row.iops)[:DETAILS_MAX]),
            )
            for name, found in sessions.items()
        }

    def advance(self) -> None:
        """STEP_S later."""
        self.now_s += STEP_S
        weight = 1.0 - exp(-1.0 / SMOOTHED_S)
        for one in self.trace.connections:
            one.iops = self.trace.iops(one, self.now_s)
            for second in range(int(STEP_S)):
                rate = self.trace.iops(one, self.now_s - STEP_S + second + 1)
                one.seen_iops += (rate - one.seen_iops) * weight
        left = []
        for due_s, one, source, to in self.copying:
            if due_s <= self.now_s:
                one.owners = dict(one.owners)
                one.owners[to] = one.owners.get(to, 0.0) + one.owners.pop(source)
            else:
                left.append((due_s, one, source, to))
        self.copying = left


class Policy:
    """Where a connection goes at its login, and what is moved at each step. The base: nothing is moved."""

    name = "none"

    def login(self, world: World, one: Connection, turn: int) -> str:
        raise NotImplementedError

    def step(self, world: World) -> None:
        """Whatever is to be moved now."""


class RoundRobin(Policy):
    name = "round robin"

    def login(self, world: World, one: Connection, turn: int) -> str:
        return world.trace.members[turn % len(world.trace.members)]


class LeastConnections(Policy):
    name = "least connections"

    def login(self, world: World, one: Connection, turn: int) -> str:
        tries = world.trace.members if len(world.trace.members) <= 64 else world.dice.sample(world.trace.members, 64)
        return min(tries, key=lambda name: (world.counts[name], name))


class TwoChoices(Policy):
    """Of two members taken at random, the one that is less busy by the last reports."""

    name = "two choices"

    def login(self, world: World, one: Connection, turn: int) -> str:
        two = [world.dice.choice(world.trace.members) for _ in range(2)]
        return min(two, key=lambda name: (_busy(world, name), world.counts[name], name))


class Threshold(LeastConnections):
    """A member that is busy for more than 80% of its time gives its busiest session to the least busy one."""

    name = "threshold"

    def step(self, world: World) -> None:
        model = model_of(world.loads())
        for name in [name for name, one in model.stations.items() if one.busy > 0.8]:
            here = [one for one in world.trace.connections if one.member == name and world.now_s - one.since_s > 20]
            if here:
                busiest = max(here, key=lambda one: (one.seen_iops, -one.number))
                idle = min(model.stations, key=lambda other: (model.stations[other].busy, other))
                model.move(Flow(name, busiest.seen_iops, BYTES_EACH, busiest.owners), idle)
                world.place(busiest, idle)


class Ours(Policy):
    """Logins and sessions by predicted efficiency, by the product's planners."""

    name = "adaptive, sessions"
    migrates = False

    def __init__(self) -> None:
        self.planning_s: list[float] = []
        self.efficiency_fell = 0.0

    def login(self, world: World, one: Connection, turn: int) -> str:
        """Asked at some member, which offers it to the best of those that it would look at."""
        here = world.trace.members[turn % len(world.trace.members)]
        expected = Expected(2000.0, BYTES_EACH, one.owners)
        present = [name for name in one.owners if name in world.counts]
        some = {*present, here, *(world.dice.choice(world.trace.members) for _ in range(2))}
        found = [*order(world.seen, here, some, expected, turn=turn), here][0]
        world.seen.add(Flow(found, expected.iops, BYTES_EACH, one.owners))
        return found

    def step(self, world: World) -> None:
        loads = world.loads()
        began_s = time.process_time()
        view = View(
            world.now_s,
            loads,
            model_of(loads),
            frozenset(loads),
            moved=world.moved,
            migrated=world.migrated,
            stays=world.stays,
            busy=frozenset(one.volume for _, one, _, _ in world.copying),
            ranges=list(_ranges(world)) if self.migrates else (),
            following={
                volume: to
                for volume, to in world.following.items()
                if world.now_s - world.moved[volume] <= RULES.follow_s
            },
        )
        decisions = [*plan_moves(view), *(plan_migrations(view) if self.migrates else ())]
        taken = chosen(decisions, RULES, len(loads))
        self.planning_s.append(time.process_time() - began_s)
        for one in taken:
            self.efficiency_fell = max(self.efficiency_fell, one.before - one.after)
            if one.kind is Kind.MOVE:
                world.moved[one.volume_id] = world.now_s
                world.following.pop(one.volume_id, None)
                if one.with_data:
                    world.following[one.volume_id] = one.destination
                world.place(world.trace.connections[int(one.session)], one.destination)
            else:
                owner = world.trace.connections[int(one.volume_id[1:])]
                size_bytes = _size_bytes(owner, one.source)
                world.migrated[one.volume_id] = world.now_s
                world.stays[one.volume_id, one.start_lba, one.end_lba] = world.now_s
                world.copying.append((world.now_s + size_bytes / COPY_BYTES_PER_S, owner, one.source, one.destination))
                world.migrations += 1


class OursWithData(Ours):
    name = "adaptive, sessions and data"
    migrates = True


POLICIES: tuple[type[Policy], ...] = (RoundRobin, LeastConnections, TwoChoices, Threshold, Ours, OursWithData)


def _busy(world: World, name: str) -> float:
    return world.seen.stations[name].busy


def _size_bytes(one: Connection, owner: str) -> int:
    return int(2 * GIB * one.owners.get(owner, 1.0))


def _ranges(world: World) -> Iterator[RangeFlow]:
    """Every volume has a range at each of its owners."""
    for one in world.trace.connections:
        start = 0
        for owner in sorted(one.owners):
            size = _size_bytes(one, owner)
            end = start + size // 512
            yield RangeFlow(
                one.volume, start, end, owner, size, {one.member: one.seen_iops * one.owners[owner]}, BYTES_EACH
            )
            start = end


@dataclass
class Run:
    """What came of it. at_s, efficiency, moves: at each step; moves are counted from the beginning, logins left out."""

    policy: str
    at_s: list[float] = field(default_factory=list)
    efficiency: list[float] = field(default_factory=list)
    moves: list[int] = field(default_factory=list)
    migrations: list[int] = field(default_factory=list)
    planning_s: list[float] = field(default_factory=list)
    fell: float = 0.0

    @property
    def mean(self) -> float:
        return sum(self.efficiency) / len(self.efficiency)

    @property
    def settled_s(self) -> float:
        """From then on it is within a tenth of what it is at the end."""
        last = self.efficiency[-1]
        for at_s, value in reversed(list(zip(self.at_s, self.efficiency, strict=True))):
            if abs(value - last) > 0.1 * last:
                return at_s + STEP_S
        return 0.0


def simulate(policy: Policy, members: int, connections: int, seconds: float, pattern: str, seed: int) -> Run:
    """All log in at the beginning; with the pattern `newcomers` only a third of the members is there by then."""
    trace = make_trace(members, connections, pattern, seed)
    world = World(trace, random.Random(seed + 1))
    everybody = trace.members
    if pattern == "newcomers":
        trace.members = everybody[: max(1, members // 3)]
        world.counts = dict.fromkeys(trace.members, 0)
    world.seen = Model(stations={name: Station() for name in everybody})
    for turn, one in enumerate(trace.connections):
        if turn % 50 == 0 and not isinstance(policy, Ours):
            world.seen = world.model() if turn % 1000 == 0 else world.seen
            world.seen.stations = {name: world.seen.stations.get(name, Station()) for name in everybody}
        one.iops = one.seen_iops = trace.iops(one, 0.0)
        one.since_s = -1000.0
        member = policy.login(world, one, turn)
        world.place(one, member)
        one.since_s = -1000.0
    trace.members = everybody
    run = Run(policy.name)
    for name in everybody:
        world.counts.setdefault(name, 0)
    while world.now_s < seconds:
        run.at_s.append(world.now_s)
        run.efficiency.append(world.model().efficiency())
        run.moves.append(world.moves)
        run.migrations.append(world.migrations)
        policy.step(world)
        world.advance()
    if isinstance(policy, Ours):
        run.planning_s, run.fell = policy.planning_s, policy.efficiency_fell
    return run


def compare(members: int, connections: int, seconds: float, pattern: str, seed: int) -> list[Run]:
    return [simulate(policy(), members, connections, seconds, pattern, seed) for policy in POLICIES]


def table(runs: list[Run]) -> str:
    lines = [
        f"{'policy':28} {'mean':>7} {'first':>7} {'last':>7} {'settled':>8} {'moves':>7} {'migrations':>10} planning"
    ]
    for run in runs:
        planning = f"{max(run.planning_s) * 1000:.0f} ms at most" if run.planning_s else "-"
        lines.append(
            f"{run.policy:28} {run.mean:7.3f} {run.efficiency[0]:7.3f} {run.efficiency[-1]:7.3f} "
            f"{run.settled_s:6.0f} s {run.moves[-1]:7} {run.migrations[-1]:10} {planning}"
        )
    return "\n".join(lines)


def draw(all_runs: dict[str, list[Run]], file: Path, title: str) -> None:
    """Efficiency over time, one picture a pattern, side by side; below, the moves."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "san-target"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(all_runs), figsize=(4.2 * len(all_runs), 6.0), sharey="row", squeeze=False)
    for column, (pattern, runs) in enumerate(all_runs.items()):
        for run in runs:
            axes[0][column].plot(run.at_s, run.efficiency, label=run.policy, linewidth=1.4)
            axes[1][column].plot(
                run.at_s, [a + b for a, b in zip(run.moves, run.migrations, strict=True)], linewidth=1.4
            )
        axes[0][column].set_title(pattern)
        axes[0][column].set_ylim(0, 1)
        axes[1][column].set_xlabel("seconds")
    axes[0][0].set_ylabel("overall efficiency")
    axes[1][0].set_ylabel("moves and migrations")
    axes[0][-1].legend(fontsize=7, loc="upper right")
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def pictures(directory: Path, seed: int, show: Callable[[str], None] = print) -> None:
    for members, connections, seconds in ((3, 60, 300.0), (100, 2000, 300.0)):
        runs = {pattern: compare(members, connections, seconds, pattern, seed) for pattern in PATTERNS}
        for pattern, found in runs.items():
            show(f"{members} members, {connections} connections, {pattern}\n{table(found)}\n")
        title = f"{members} members, {connections} connections"
        draw(runs, directory / f"balancing-{members}.svg", title)


def planning(members: int, connections: int, seed: int) -> tuple[float, float, float]:
    """CPU seconds of one look, the best of three: the model, all sessions, all data. Turns say where sessions are."""
    trace = make_trace(members, connections, "steady", seed)
    world = World(trace, random.Random(seed + 1))
    for turn, one in enumerate(trace.connections):
        one.iops = one.seen_iops = trace.iops(one, 0.0)
        world.place(one, trace.members[turn % members])
        one.since_s = -1000.0
    loads, ranges = world.loads(), list(_ranges(world))
    found: list[tuple[float, float, float]] = []
    for _ in range(3):
        began_s = time.process_time()
        model = model_of(loads)
        modelled_s = time.process_time()
        view = View(world.now_s, loads, model, frozenset(loads), ranges=ranges)
        plan_moves(view)
        moved_s = time.process_time()
        plan_migrations(view)
        found.append((modelled_s - began_s, moved_s - modelled_s, time.process_time() - moved_s))
    model_s, sessions_s, data_s = (min(each) for each in zip(*found, strict=True))
    return model_s, sessions_s, data_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=100)
    parser.add_argument("--connections", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--pattern", choices=PATTERNS, default="shifting")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pictures", type=Path, metavar="DIRECTORY")
    parser.add_argument("--planning", action="store_true", help="only how long one look takes")
    options = parser.parse_args()
    if options.planning:
        parts = zip(
            ("model", "sessions", "data"), planning(options.members, options.connections, options.seed), strict=True
        )
        print(", ".join(f"{name} {seconds * 1000:.1f} ms" for name, seconds in parts))
        return
    if options.pictures is not None:
        pictures(options.pictures, options.seed)
        return
    print(table(compare(options.members, options.connections, options.seconds, options.pattern, options.seed)))


if __name__ == "__main__":
    main()

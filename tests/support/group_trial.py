"""A verified load on a group while things happen to its members, and how long it then takes until I/O flows again.

The load and its checker are initiator_sim's. Beside it, on a small volume of their own, probes write and read blocks of
every member through every portal: I/O flows when all of them have been answered.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, cast

from initiator_sim.client import Disk, Initiator
from initiator_sim.fleet import Assignment, Fleet
from initiator_sim.multipath import Multipath
from initiator_sim.path import Path
from initiator_sim.personalities import ESXI, Personality
from initiator_sim.task import Task
from initiator_sim.workload import Plan
from tests.support.floating_portal import FloatingPortal
from tests.support.group import Group, GroupMember
from tests.support.target import PLAIN

MIB = 1 << 20
# So few pieces that a write which comes too late is sure to meet a younger one.
BYTES_OF_EACH = 1 * MIB
FLOWS_S_MAX = 120
LONGEST_S = 3600.0
# Comes back to a portal as soon as it is there, and waits for that longer than any of these trials takes.
PATIENT: Personality = replace(ESXI, login_retry_s=0.1, login_retry_max_s=0.1, nop_interval_s=5.0)

_numbers = itertools.count(1)
FIGURES: list[str] = []
"""What was measured in this process, for people; told at the end of a test run."""
RECOVERIES: dict[str, list[float]] = {}
"""By what happened: seconds until I/O flowed, each time that it did. Told with the figures."""


class ManyPaths:
    """Several paths of one host to one disk, for a stream.

    A path that is lost hands its commands to another one that is logged in already: no login tells the target of it.
    """

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths
        self._multipath = Multipath(paths)
        self.personality = paths[0].personality
        self.address = " and ".join(path.address for path in paths)

    @property
    def failed(self) -> str | None:
        return self._paths[0].failed if all(path.failed for path in self._paths) else None

    @property
    def on_reissue(self) -> Callable[[Task], None] | None:
        return self._paths[0].on_reissue

    @on_reissue.setter
    def on_reissue(self, told: Callable[[Task], None]) -> None:
        for path in self._paths:
            path.on_reissue = told

    def enqueue(self, task: Task) -> None:
        self._multipath.submit(task)

    def plan_flush(self) -> None:
        for path in self._paths:
            path.plan_flush()


class Trial:
    """portals: for the load; each gets an initiator with `sessions` sessions. owners: the members that hold blocks.

    The story is told by `play`; it uses `fleet`, `group` and what there is below.
    """

    def __init__(
        self, group: Group, portals: Sequence[str] | None = None, owners: Sequence[int] = (0, 1, 2), sessions: int = 1
    ) -> None:
        self.group = group
        self._portals = tuple(portals or group.portals)
        self._sessions = sessions
        names = ",".join(group[index].member_name for index in owners)
        number = next(_numbers)
        size_bytes = len(owners) * BYTES_OF_EACH
        self.volume = group.create_volume(f"trial-{number}", size_bytes, PLAIN, members=names)
        self._probed = group.create_volume(f"probed-{number}", size_bytes, PLAIN, members=names)
        self._blocks = {name: parts[0].start for name, parts in group.owners(self._probed).items()}
        self._probes: dict[str, Disk] = {}
        self._writes = 0
        self._depth = 0
        self.fleet: Fleet

    def play(self, story: Callable[[Trial], Awaitable[None]], seed: int = 0, depth: int = 16) -> dict[str, Any]:
        """Run the load from the story's beginning to its end; the report, which must be without fault."""
        self._depth = depth
        plan = Plan("randrw", read_share=0.5, depth=depth, block_bytes=4096, flush_every=50, seed=seed)
        assignment = Assignment(
            self._portals,
            self.volume.iqn,
            plan,
            PATIENT,
            initiators=len(self._portals),
            sessions=self._sessions,
            seconds=LONGEST_S,
            hang_s=FLOWS_S_MAX,
            verify=True,
            strict=True,
        )
        report = asyncio.run(self._play(story, assignment))
        assert report["verify"]["violations"] == [], report["verify"]
        assert report["ok"], {key: report[key] for key in ("errors", "error_messages", "violations", "hung")}
        assert report["verify"]["reads_checked"] > 100
        return report

    async def _play(self, story: Callable[[Trial], Awaitable[None]], assignment: Assignment) -> dict[str, Any]:
        self.fleet = Fleet(assignment)
        async with AsyncExitStack() as stack:
            self._stack = stack
            for member in self.group:
                initiator = Initiator(f"iqn.2026-01.org.example:probe-{member.member_name}", PATIENT)
                probe = initiator.connect(member.portal, self._probed.iqn)
                self._probes[member.member_name] = await stack.enter_async_context(probe)
            telling = asyncio.ensure_future(self._tell(story))
            try:
                await self.fleet.run()
            finally:
                telling.cancel()
                await asyncio.wait([telling])
            if not telling.cancelled():
                telling.result()
            return self.fleet.report()

    async def _tell(self, story: Callable[[Trial], Awaitable[None]]) -> None:
        while not self.fleet.streams:
            await asyncio.sleep(0.01)
        try:
            await story(self)
        finally:
            self.fleet.finish()

    # --- for stories --------------------------------------------------------------------------------------------------

    @property
    def owners(self) -> list[str]:
        """The names of the members that hold blocks."""
        return list(self._blocks)

    async def floating_portal(self, member: GroupMember) -> FloatingPortal:
        """An address that leads to that member, until it is moved; it is there until the load has ended."""
        return await self._stack.enter_async_context(FloatingPortal(member.portal))

    async def add_initiators(self, portal: str, count: int) -> list[Path]:
        """Further initiators with a session each, which join the load; their paths.

        Every second one takes a new ISID at each login, as libiscsi does: no other session is reinstated by that.
        """
        paths = []
        for _ in range(count):
            personality = replace(PATIENT, new_isid_each_login=len(self.fleet.streams) % 2 == 0)
            path = await self._add_path(portal, personality)
            self._add_stream(path)
            paths.append(path)
        return paths

    async def add_multipath(self) -> list[Path]:
        """A further initiator with a path to each member, which joins the load; it gives a path up within seconds."""
        hasty = replace(PATIENT, nop_interval_s=1.0, nop_timeout_s=1.0)
        paths = [await self._add_path(portal, hasty) for portal in self.group.portals]
        self._add_stream(cast(Path, ManyPaths(paths)))
        return paths

    async def _add_path(self, portal: str, personality: Personality) -> Path:
        name = f"{personality.initiator_name}-{len(self.fleet.streams)}"
        initiator = Initiator(name, personality, reactor=self.fleet.reactor)
        path = initiator.path(portal, self.volume.iqn, self._depth)
        await path.connect()
        self.fleet.paths.append(path)
        return path

    def _add_stream(self, path: Path) -> None:
        stream = self.fleet.make_stream(len(self.fleet.streams), path, 0)
        self.fleet.streams.append(stream)
        stream.start()

    async def work(self, seconds: float) -> None:
        """Let the load go on for so long."""
        await asyncio.sleep(seconds)

    async def let_in(self, paths: Sequence[Path]) -> None:
        """Return when these, which have just lost their sessions, have others: the blocks of the living are theirs."""
        began_s = time.monotonic()
        before = {path: path.logins for path in paths}
        async with asyncio.timeout(FLOWS_S_MAX):
            while not all(path.up and path.logins > before[path] for path in paths):
                await asyncio.sleep(0.02)
        self.note("logged in at another member", began_s)

    async def flows(self, through: Iterable[str] | None = None, owners: Iterable[str] | None = None) -> None:
        """Return when blocks of each of these owners (by name; all) were written and read through each of these members
        (all). AssertionError if that does not come by itself."""
        disks = [self._probes[name] for name in (self._probes if through is None else through)]
        lbas = [self._blocks[name] for name in (self._blocks if owners is None else owners)]
        try:
            async with asyncio.timeout(FLOWS_S_MAX):
                await asyncio.gather(*(self._write_and_read(disk, lba) for disk in disks for lba in lbas))
        except TimeoutError:
            raise AssertionError(f"no I/O within {FLOWS_S_MAX} s") from None

    async def _write_and_read(self, disk: Disk, lba: int) -> None:
        self._writes += 1
        place = lba + 1 + list(self._probes.values()).index(disk)
        data = self._writes.to_bytes(4, "big") * (disk.block_bytes // 4)
        await disk.write(place, data)
        assert await disk.read(place, 1) == data

    async def recovery(self, what: str, over_s: float) -> None:
        """Wait until I/O flows everywhere, and note how long that took. over_s: when the fault was, by
        time.monotonic()."""
        await self.flows()
        self.note(what, over_s)

    def note(self, what: str, since_s: float) -> None:
        """I/O flows. since_s: since when it has not, by time.monotonic()."""
        RECOVERIES.setdefault(f"{what}, {self.group.store}", []).append(time.monotonic() - since_s)


def told_recoveries() -> list[str]:
    """A line for each thing that happened, for people."""
    return [
        f"{what}: median {statistics.median(times):.1f} s, worst {max(times):.1f} s, {len(times)} rounds"
        for what, times in sorted(RECOVERIES.items())
    ]
